"""Pipelines: what is found is proved, folded and judged; what cannot be held or done is said."""

import copy

import pytest
import torch
import zoo

from skerry.anatomy import resolve
from skerry.corpus.batch import Batch
from skerry.errors import BadText, NotPossible, UnknownOption
from skerry.impact.scheme import Scheme
from skerry.tame.choose import choose, limit_of, pipelines_for
from skerry.tame.held_out import HeldOut, damage_of
from skerry.tame.memory import is_out_of_memory, sized, smaller, split
from skerry.tame.method import Found, Method
from skerry.tame.pipeline import Setting, find, proof_ids, run_pipeline, usable_seams
from skerry.tame.register import METHODS, parse_pipeline
from skerry.tame.study import compare_methods
from skerry.tame.tame import check_calibration
from skerry.tame.transform import SeamChange
from skerry.tame.wanted import TameOptions, parse_settings


def batches_of(model, num=6, length=12, seed=0):
    ids, keep = zoo.tokens(model, num_samples=num, length=length, seed=seed)
    return [Batch(ids, keep, torch.arange(num))]


def setting_of(name, bits="w8a8-tensor", **more):
    model = zoo.tiny(name)
    return Setting(resolve(model), batches_of(model), Scheme.parse(bits), **more)


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "mixtral", "bert", "gemma2", "falcon_7b"])
@pytest.mark.parametrize("pipeline", ["rtn", "smoothquant", "os+", "os+,gptq"])
def test_a_pipeline_changes_the_model_only_by_what_it_proves(name, pipeline):
    setting = setting_of(name)
    held_out = HeldOut(
        setting.anatomy, batches_of(setting.anatomy.model, seed=9), setting.batches, own_copy=True
    )
    tamed = run_pipeline(setting, parse_pipeline(pipeline))
    for proof in tamed.equivalence.values():
        assert proof.float64 <= 1e-10 and proof.stored <= 2e-6
    changed = held_out.changed(tamed)
    assert abs(changed["change"]) < 1e-4
    assert held_out.quantized(tamed)["value"] is not None


def test_a_rotation_may_follow_and_precede_other_transforms():
    setting = setting_of("llama")
    tamed = run_pipeline(setting, parse_pipeline("rotation,os+"))
    assert [p.stored <= 2e-6 for p in tamed.equivalence.values()] == [True, True]
    assert len(tamed.transforms) == 2


def test_static_grids_are_calibrated_on_the_changed_model():
    setting = setting_of("opt")
    plain = run_pipeline(replace_model(setting), parse_pipeline("rtn")).found.grids
    scaled = run_pipeline(replace_model(setting), parse_pipeline("os+")).found.grids
    assert set(plain) == set(scaled) and plain
    assert any(not torch.allclose(plain[n].scale, scaled[n].scale) for n in plain)


def replace_model(setting):
    return Setting(resolve(copy.deepcopy(setting.anatomy.model)), setting.batches, setting.scheme)


def test_out_of_memory_goes_on_with_half_the_batch_and_says_so():
    seen, notes = [], []

    class Listener:
        def start(self, *_): ...
        def advance(self, *_): ...
        def done(self): ...
        def note(self, text):
            notes.append(text)

    def greedy(job):
        size = max(len(b.input_ids) for b in job.batches)
        seen.append(size)
        if size > 1:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return Found()

    setting = setting_of("llama", progress=Listener())
    method = Method("greedy", "needs memory", "none", "weights", greedy)
    find(setting, method, 0, setting.anatomy, usable_seams(setting.anatomy, setting))
    assert seen == [6, 3, 1]
    assert notes[-1] == "out of memory in greedy: going on with 1 inputs per batch"


def test_other_errors_are_not_taken_for_a_full_memory():
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(RuntimeError("CUDA out of memory. Tried"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7, 100])
def test_inputs_are_split_and_resized_without_loss(count):
    model = zoo.tiny("llama")
    batches = batches_of(model, num=4) + batches_of(model, num=3, seed=1)
    first, rest = split(batches, count)
    assert sum(len(b.input_ids) for b in first) == min(count, 7)
    whole = torch.cat([b.input_ids for b in (*first, *rest)])
    assert torch.equal(whole, torch.cat([b.input_ids for b in batches]))
    assert torch.equal(torch.cat([b.input_ids for b in sized(batches, 2)]), whole)
    assert max(len(b.input_ids) for b in smaller(batches)) == 2


def test_for_an_export_only_what_a_checkpoint_can_hold_is_used():
    phi, bert = setting_of("phi3", for_export=True), setting_of("bert", for_export=True)
    assert all("shift" not in s.carries for s in usable_seams(phi.anatomy, phi).of("value"))
    assert "no place for the biases" in usable_seams(phi.anatomy, phi).of("value")[0].cannot["shift"]
    seams = usable_seams(bert.anatomy, bert)
    assert not seams.of("post-norm") and "compensated shortcut" in seams.missing["post-norm"]
    free = setting_of("bert")
    assert usable_seams(free.anatomy, free).of("post-norm")


def test_a_shift_tells_the_export_which_configuration_holds_it():
    setting = setting_of("qwen2")
    shift = Method(
        "shift",
        "shifts values",
        "none",
        "transform",
        lambda job: Found(
            changes=[SeamChange(s.name, shift=torch.ones(s.free)) for s in job.seams.of("value")]
        ),
    )
    tamed = run_pipeline(setting, [shift])
    assert tamed.config_changes == {"attention_bias": True} and tamed.becomes == "llama"


def test_the_proof_reads_real_tokens_without_padding():
    model = zoo.tiny("llama")
    ids, keep = zoo.tokens(model, num_samples=3, padding="right")
    found = proof_ids([Batch(ids, keep, torch.arange(3))])
    assert torch.equal(found, ids[:1])


def test_auto_takes_the_cheapest_that_reaches_the_target_and_tells_what_it_tried():
    setting = setting_of("llama")
    held_out = HeldOut(
        setting.anatomy, batches_of(setting.anatomy.model, seed=9), setting.batches, own_copy=True
    )

    def run(name):
        fresh = Setting(held_out.fresh(), setting.batches, setting.scheme)
        return run_pipeline(fresh, parse_pipeline(name))

    easy = choose(held_out, ["rtn", "os+"], run, target=10.0)
    assert easy.reached and easy.tamed.name == "rtn" and len(easy.rows) == 1 and easy.row["chosen"]
    hard = choose(held_out, ["rtn", "smoothquant", "os+"], run, target=-10.0)
    assert not hard.reached and len(hard.rows) == 3
    assert damage_of(hard.row) == min(damage_of(r) for r in hard.rows)
    assert "none reaches the target" in hard.why
    original = held_out.original()
    assert limit_of(original, 0.01) == pytest.approx(0.01 * original["value"])


def test_auto_skips_what_the_model_cannot_do_and_says_why():
    setting = setting_of("bert")
    held_out = HeldOut(
        setting.anatomy, batches_of(setting.anatomy.model, seed=9), setting.batches, own_copy=True
    )

    def run(name):
        if name == "rotation":
            raise NotPossible("this model cannot be rotated")
        return run_pipeline(Setting(held_out.fresh(), setting.batches, setting.scheme), parse_pipeline(name))

    found = choose(held_out, ["rotation", "rtn"], run, target=1e9)
    assert [r["method"] for r in found.rows] == ["rotation", "rtn"]
    assert found.rows[0]["note"] == "this model cannot be rotated" and found.tamed.name == "rtn"
    with pytest.raises(NotPossible, match="none of the pipelines"):
        choose(held_out, ["rotation"], run)


def test_every_pipeline_of_auto_is_one_that_the_register_takes():
    for bits in ("w8a8", "w4a16-g128", "w6a6-tensor"):
        for name in pipelines_for(Scheme.parse(bits)):
            assert parse_pipeline(name)
    assert all("gptq" not in p for p in pipelines_for(Scheme.parse("w16a8")))


def test_the_comparison_has_a_row_for_every_method_and_scheme_and_leaves_the_model_alone():
    model = zoo.tiny("opt")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rows = compare_methods(
        resolve(model),
        batches_of(model),
        batches_of(model, seed=9),
        pipelines=("smoothquant", "os+"),
        schemes=("w8a8-tensor", "w4a4-tensor"),
    )
    found = {(r["method"], r["scheme"]) for r in rows["methods"]}
    assert found >= {(m, s) for m in ("none", "smoothquant", "os+") for s in ("w8a8-tensor", "w4a4-tensor")}
    assert ("none", "float") in found and ("os+", "float") in found
    assert {r["method"] for r in rows["overhead"]} == {"smoothquant", "os+"}
    assert all(r["operations_added"] == 0 and r["seconds_after"] > 0 for r in rows["overhead"])
    assert all(r["error"] <= r["bound"] for r in rows["equivalence"])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_calibration_of_one_token_repeated_is_refused():
    ids = torch.full((4, 32), 7)
    with pytest.raises(BadText, match=r"128 tokens of only 1 kinds"):
        check_calibration([Batch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(4))])
    check_calibration(batches_of(zoo.tiny("llama")))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bits": "w9a8"}, "9"),
        ({"method": "os++"}, "os"),
        ({"method": "gptq,gptq"}, "once is enough"),
        ({"calibration": 0}, "calibration is 0"),
        ({"samples": -1}, "samples is -1"),
        ({"target": 0.0}, "target is 0"),
        ({"method": "auto", "evaluate": False}, "auto chooses by held-out loss"),
        ({"settings": {"smoothqant": {"alpha": 1}}}, "did you mean 'smoothquant'"),
        ({"out": "somewhere", "form": "onxx"}, "form is 'onxx'"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(change, said):
    with pytest.raises((UnknownOption, NotPossible), match=said):
        TameOptions(**change).check()


def test_method_options_are_read_from_words():
    found = parse_settings(["smoothquant.alpha=0.7", "os+.shift=false", "os+.steps=12", "a.b=x,1"])
    assert found == {
        "smoothquant": {"alpha": 0.7},
        "os+": {"shift": False, "steps": 12},
        "a": {"b": ("x", 1)},
    }
    for word in ("alpha=0.7", "smoothquant.alpha", "=1", "smoothquant.=1", "smoothquant.alpha="):
        with pytest.raises(UnknownOption, match=r"METHOD\.OPTION=VALUE"):
            parse_settings([word])


def test_every_method_says_what_it_is_and_where_it_comes_from():
    assert {"rtn", "smoothquant", "os", "os+", "os+published", "awq", "gptq", "rotation", "spinquant"} <= set(
        METHODS
    )
    assert {"llm.int8", "super-weights", "prefix", "clip"} <= set(METHODS)
    for method in METHODS.values():
        assert method.kind in ("transform", "weights", "runtime")
        assert len(method.what) > 10 and len(method.source) > 10
