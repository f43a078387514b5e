"""Exports are read back by plain transformers, equal our own model or simulation, or are refused before anything is written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from skerry.anatomy.dense import dense_maps
from skerry.anatomy.resolve import resolve
from skerry.corpus.batch import Batch
from skerry.errors import MissingExtra, NoSpace, NotPossible, RunExists, UnknownOption
from skerry.impact.calibrate import calibrate
from skerry.impact.quantize import Grid, fake_quantize, observe
from skerry.impact.scheme import Scheme
from skerry.impact.simulate import Simulation
from skerry.tame import export_float
from skerry.tame.export import CardFacts, Export, Loss, ReadBackFailed, export
from skerry.tame.export_compressed import pack
from skerry.tame.export_folder import written_whole
from skerry.tame.export_refuse import RUNTIME, needs_of, refuse_runtime

FACTS = CardFacts("tiny-tamed", "someone/tiny")


def asked(model, scheme=None, **more):
    return Export(
        model,
        more.pop("tokenizer", None),
        more.pop("card", FACTS),
        Scheme.parse(scheme) if scheme else None,
        **more,
    )


def config_in(folder: Path):
    return json.loads((folder / "config.json").read_text())


def tensors_in(folder: Path):
    return load_file(folder / "model.safetensors")


def nothing_in(folder: Path):
    return sorted(p.name for p in folder.iterdir()) == []


def grids_for(model, scheme):
    anatomy = resolve(model)
    ids, keep = zoo.tokens(model, num_samples=4)
    batch = Batch(ids, keep, torch.arange(len(ids)))
    return calibrate(anatomy, [batch], Scheme.parse(scheme))


# The float checkpoint -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe", "gpt2", "falcon_40b", "bloom"])
def test_a_model_in_memory_is_the_same_after_plain_transformers_loaded_it(name, tmp_path):
    model = zoo.tiny(name)
    done = export(asked(model), tmp_path / "out")
    assert done.readback.max_relative_error <= 2e-6
    assert done.readback.loaded_as == type(model).__name__
    assert done.readback.top1_agreement == 1.0
    assert set(done.files) >= {"config.json", "model.safetensors", "README.md"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_family_is_the_same_after_plain_transformers_loaded_it(name, tmp_path):
    assert export(asked(zoo.tiny(name)), tmp_path / "out").readback.max_relative_error <= 2e-6


def test_biases_that_taming_made_are_declared_and_their_neighbours_are_zeros(tmp_path):
    model = zoo.tiny("llama")
    for dense in dense_maps(resolve(model)):
        if dense.name.endswith(("o_proj", "down_proj")):
            dense.add_bias().normal_()
    done = export(asked(model), tmp_path / "out")
    assert done.readback.max_relative_error <= 2e-6
    assert done.config_changes == {"attention_bias": True, "mlp_bias": True}
    config, stored = config_in(tmp_path / "out"), tensors_in(tmp_path / "out")
    assert config["attention_bias"] and config["mlp_bias"]
    assert not stored["model.layers.0.self_attn.q_proj.bias"].any()
    assert stored["model.layers.0.self_attn.o_proj.bias"].any()
    assert not model.config.attention_bias and model.model.layers[0].self_attn.q_proj.bias is None


def with_output_bias(**overrides):
    model = zoo.tiny("qwen2", **overrides)
    for dense in dense_maps(resolve(model)):
        if dense.name.endswith("o_proj"):
            dense.add_bias().normal_()
    return model


def test_a_bias_without_a_place_in_its_class_is_refused_or_goes_to_a_class_that_has_one(tmp_path):
    model = with_output_bias(use_sliding_window=False, layer_types=None)
    with pytest.raises(
        NotPossible,
        match=r"Qwen2ForCausalLM has no place for model\.layers\.0\.self_attn\.o_proj\.bias and 1 more",
    ):
        export(asked(model), tmp_path / "out")
    assert nothing_in(tmp_path)
    done = export(asked(model, becomes="llama"), tmp_path / "out")
    assert done.readback.loaded_as == "LlamaForCausalLM"
    assert done.readback.max_relative_error <= 2e-6


def test_a_class_that_cannot_say_what_the_model_does_is_no_way_out(tmp_path):
    with pytest.raises(
        NotPossible, match=r"LlamaForCausalLM: that class has no word for layer_types=.*sliding"
    ):
        export(asked(with_output_bias(), becomes="llama"), tmp_path / "out")
    with pytest.raises(UnknownOption, match="did you mean 'llama'"):
        export(asked(with_output_bias(), becomes="lama"), tmp_path / "out")
    with pytest.raises(NotPossible, match="cannot be exported as t5: it has no class of the same task"):
        export(asked(with_output_bias(), becomes="t5"), tmp_path / "out")
    assert nothing_in(tmp_path)


def test_a_head_that_was_untied_is_stored_and_declared(tmp_path):
    model = zoo.tiny("llama", tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() * 1.5)
    done = export(asked(model), tmp_path / "out")
    assert done.readback.max_relative_error <= 2e-6
    assert config_in(tmp_path / "out")["tie_word_embeddings"] is False
    assert "lm_head.weight" in tensors_in(tmp_path / "out")


def test_another_number_type_is_stored_with_its_error_and_the_model_keeps_its_own(tmp_path):
    model = zoo.tiny("llama")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    done = export(asked(model, dtype=torch.bfloat16), tmp_path / "out")
    assert done.readback.max_relative_error <= 2e-6  # the same bfloat16 model
    assert 1e-4 < done.conversion_error < 3e-2  # 2^-9 per weight, over the depth of the model
    assert {t.dtype for t in tensors_in(tmp_path / "out").values()} == {torch.bfloat16}
    assert config_in(tmp_path / "out")["dtype"] == "bfloat16"
    assert all(torch.equal(v, before[k]) and v.dtype == torch.float32 for k, v in model.state_dict().items())


def small_tokenizer(size=96):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "skerry": 4, "is": 5, "sea": 6}
    words.update({f"w{i}": i for i in range(7, size)})
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>")


def test_the_tokenizer_goes_along_and_cuts_text_as_before(tmp_path):
    import transformers

    export(asked(zoo.tiny("llama"), tokenizer=small_tokenizer()), tmp_path / "out")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again("skerry is sea")["input_ids"] == [4, 5, 6]


def test_what_is_no_checkpoint_of_transformers_is_refused(tmp_path):
    class Own(type(zoo.tiny("llama"))):
        pass

    with pytest.raises(NotPossible, match="Linear is not a model of transformers"):
        export(asked(nn.Linear(2, 2)), tmp_path / "out")
    with pytest.raises(NotPossible, match="plain transformers cannot load it"):
        export(asked(Own(zoo.config_of("llama"))), tmp_path / "out")
    assert nothing_in(tmp_path)


# The read-back --------------------------------------------------------------------------------------------------------


def spoiled(monkeypatch, change):
    """Let every checkpoint be written with other tensors than it should have."""
    import transformers.modeling_utils as modeling

    real = modeling.safe_save_file

    def save(tensors, path, **kwargs):
        real(change({k: v.clone() for k, v in tensors.items()}), path, **kwargs)

    monkeypatch.setattr(modeling, "safe_save_file", save)


def test_a_checkpoint_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    def change(tensors):
        tensors["model.layers.0.mlp.up_proj.weight"][3, 5] += 0.5
        return tensors

    spoiled(monkeypatch, change)
    with pytest.raises(ReadBackFailed, match="computes another function: relative error .* nothing was kept"):
        export(asked(zoo.tiny("llama")), tmp_path / "out")
    assert nothing_in(tmp_path)


def test_a_checkpoint_that_lacks_a_tensor_is_not_kept(tmp_path, monkeypatch):
    def change(tensors):
        del tensors["model.layers.0.mlp.up_proj.weight"]
        return tensors

    spoiled(monkeypatch, change)
    with pytest.raises(ReadBackFailed, match=r"missing keys in the export.*layers\.0\.mlp\.up_proj\.weight"):
        export(asked(zoo.tiny("llama")), tmp_path / "out")
    assert nothing_in(tmp_path)


def test_a_checkpoint_that_cannot_be_loaded_gives_the_last_words_of_its_reader(tmp_path, monkeypatch):
    real = export_float.write_float

    def write(shell, folder, **kwargs):
        notes = real(shell, folder, **kwargs)
        (folder / "model.safetensors").write_bytes(b"no tensors")
        return notes

    monkeypatch.setattr(export_float, "write_float", write)
    with pytest.raises(
        ReadBackFailed, match="plain transformers cannot load or run the export.*[Ss]afetensors?"
    ):
        export(asked(zoo.tiny("llama")), tmp_path / "out")
    assert nothing_in(tmp_path)


def test_a_reader_that_does_not_come_back_is_stopped(tmp_path, monkeypatch):
    from skerry.tame import readback

    monkeypatch.setattr(readback, "_SCRIPT", "import time; time.sleep(60)")
    real = readback.read_back
    monkeypatch.setattr(export_float, "read_back", lambda *a, **k: real(*a, **k, timeout_seconds=0.5))
    with pytest.raises(ReadBackFailed, match="not read back within"):
        export(asked(zoo.tiny("llama")), tmp_path / "out")
    assert nothing_in(tmp_path)


# The folder -----------------------------------------------------------------------------------------------------------


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(RunExists, match=r"is not empty \(it has mine\.txt\).*--out"):
        export(asked(zoo.tiny("llama")), tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    with pytest.raises(RunExists, match="is a file"):
        export(asked(zoo.tiny("llama")), tmp_path / "out" / "mine.txt")


def test_an_empty_folder_is_filled_and_an_error_or_interrupt_leaves_it_empty(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), written_whole(out) as folder:
            (folder / "half").write_text("half")
            raise error
        assert list(out.iterdir()) == [] and [p.name for p in tmp_path.iterdir()] == ["out"]
    with written_whole(out) as folder:
        (folder / "whole").write_text("whole")
        assert list(out.iterdir()) == []
    assert [p.name for p in out.iterdir()] == ["whole"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_faster_of_two_exports_wins_and_the_other_is_refused(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RunExists), written_whole(out) as folder:
        (folder / "late").write_text("late")
        out.mkdir()
        (out / "early").write_text("early")
    assert [p.name for p in out.iterdir()] == ["early"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_left_overs_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [
        f".out.writing-{dead.pid}",
        f".out.writing-{os.getpid()}",
        f".out.writing-{os.getppid()}",
        ".other.writing-1",
    ]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("half")
    with written_whole(tmp_path / "out") as folder:
        (folder / "whole").write_text("whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([names[2], names[3], "out"])


_KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
import zoo
import transformers.modeling_utils as modeling
from pathlib import Path
from skerry.tame import export as e, export_float as f, export_folder as o
from skerry.tame.readback import Readback

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def half(tensors, path, **kwargs):
    Path(path).write_bytes(b"half")
    die()

def after(module, name):
    real = getattr(module, name)
    def run(*args, **kwargs):
        real(*args, **kwargs)
        die()
    setattr(module, name, run)

fine = Readback(0.0, 1.0, 0.0, 1.0, 1, "LlamaForCausalLM", {}, 0.0)
f.read_back = lambda *args, **kwargs: fine
moments = {
    "before": lambda: setattr(f, "write_float", die),
    "half a file": lambda: setattr(modeling, "safe_save_file", half),
    "reading back": lambda: setattr(f, "read_back", die),
    "card": lambda: setattr(e, "render_card", die),
    "sync": lambda: after(o, "_sync_files"),
    "named": lambda: setattr(o, "sync_folder", die),
}
for moment, arrange in moments.items():
    pid = os.fork()
    if pid == 0:
        arrange()
        e.export(e.Export(zoo.tiny("llama"), None, e.CardFacts("a", "b")), Path(sys.argv[1]) / moment)
        os._exit(7)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), (moment, status)
"""


def test_a_killed_export_never_leaves_a_folder_that_looks_finished(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _KILLED, str(tmp_path), str(Path(zoo.__file__).parent)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    moments = ["before", "half a file", "reading back", "card", "sync"]
    whole = {"README.md", "config.json", "generation_config.json", "model.safetensors"}
    assert {p.name for p in (tmp_path / "named").iterdir()} == whole  # killed after it had its name
    assert not any((tmp_path / moment).exists() for moment in moments)
    assert len([p for p in tmp_path.iterdir() if ".writing-" in p.name]) == len(moments)
    for moment in moments:
        with written_whole(tmp_path / moment) as folder:
            (folder / "whole").write_text("whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*moments, "named"])


_SMALL_DISK = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
import zoo
from skerry.errors import NoSpace
from skerry.tame import export as e
model = zoo.tiny("llama")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    e.export(e.Export(model, None, e.CardFacts("a", "b")), sys.argv[1] + "/out")
except NoSpace as error:
    print(error)
"""


def test_a_disk_that_fills_up_is_named_and_nothing_is_left(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _SMALL_DISK, str(tmp_path), str(Path(zoo.__file__).parent)],
        capture_output=True,
        text=True,
    )
    assert "no space left on the disk" in done.stdout and "nothing was left behind" in done.stdout, (
        done.stderr
    )
    assert nothing_in(tmp_path)


def test_a_disk_that_is_too_small_is_refused_before_writing(tmp_path, monkeypatch):
    from skerry.run import space

    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(NoSpace, match="choose another place with --out"):
        export(asked(zoo.tiny("llama")), tmp_path / "out")
    assert nothing_in(tmp_path)


def test_progress_hears_the_steps_and_the_end_also_of_a_failure(tmp_path):
    class Heard:
        def __init__(self):
            self.said = []

        def start(self, stage, total, unit):
            self.said.append(f"{stage} {total} {unit}")

        def advance(self, amount=1):
            self.said.append("advance")

        def note(self, text):
            self.said.append(text)

        def done(self):
            self.said.append("done")

    heard = Heard()
    with pytest.raises(NotPossible):
        export(asked(nn.Linear(2, 2)), tmp_path / "out", progress=heard)
    assert heard.said == ["export 3 step", "done"]
    heard = Heard()
    export(asked(zoo.tiny("llama")), tmp_path / "out", progress=heard)
    assert heard.said == ["export 3 step", "advance", "advance", "advance", "done"]


# Quantized checkpoints ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("llama", "w8a8"),
        ("llama", "w8a8-static"),
        ("llama", "w4a16-g16"),
        ("phi3", "w8a16"),
        ("falcon_rw", "w8a8"),
        ("bert", "w4a8"),
        ("llama", "wfp8afp8"),
    ],
)
def test_transformers_computes_what_our_simulation_computes(name, scheme, tmp_path):
    model = zoo.tiny(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    done = export(asked(model, scheme, input_grids=grids_for(model, scheme)), tmp_path / "out")
    assert done.form == "compressed-tensors"
    assert done.readback.max_relative_error == 0.0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    stored = tensors_in(tmp_path / "out")
    quantized = [d.name for d in dense_maps(resolve(model))]
    kept = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Linear)} - {
        f"{n}.weight" for n in quantized
    }
    assert sorted(config_in(tmp_path / "out")["quantization_config"]["ignore"]) == sorted(
        n.removesuffix(".weight") for n in kept
    )
    for n in quantized:
        t = stored.get(f"{n}.weight", stored.get(f"{n}.weight_packed"))
        assert t.dtype in (torch.int8, torch.int32, torch.float8_e4m3fn)


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheme",
    [
        "w4a16", "w8a16-g8", "w4a8-g16", "w4a8", "w8a8-tensor", "w8a8-tensor-dynamic", "weights=int8:channel,inputs=int8:asym:token",
        "weights=int8:channel,inputs=int8:asym:tensor:static", "wfp8a16", "weights=fp8:channel,inputs=fp8:tensor:static",
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_scheme_that_is_written_equals_our_simulation(scheme, dtype, tmp_path):
    model = zoo.tiny("llama")
    done = export(asked(model, scheme, input_grids=grids_for(model, scheme), dtype=dtype), tmp_path / "out")
    assert done.readback.max_relative_error == 0.0


def test_a_quantized_export_is_the_simulation_that_was_scored(tmp_path):
    """The simulation of the whole scheme, opened elsewhere, gives the logits of the exported folder."""
    import transformers

    model = zoo.tiny("llama")
    export(asked(model, "w8a8"), tmp_path / "out")
    ids, _ = zoo.tokens(model)
    with torch.no_grad(), Simulation(Scheme.parse("w8a8")).open(resolve(model)):
        ours = model(input_ids=ids).logits
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")(input_ids=ids).logits
        plain = model(input_ids=ids).logits
    assert torch.equal(ours, theirs)
    assert not torch.equal(plain, theirs)


def package_scheme(config):
    from compressed_tensors.quantization import QuantizationConfig

    read = QuantizationConfig.model_validate({k: v for k, v in config.items() if k != "quant_method"})
    return read.config_groups["group_0"]


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16-g16", "w8a16", "wfp8afp8"])
def test_stored_tensors_are_those_of_the_package_bit_for_bit(scheme, tmp_path):
    from compressed_tensors.compressors import BaseCompressor

    model = zoo.tiny("llama")
    export(asked(model, scheme), tmp_path / "out")
    stored, config = tensors_in(tmp_path / "out"), config_in(tmp_path / "out")["quantization_config"]
    compressor = BaseCompressor.get_value_from_registry(config["format"])
    for dense in dense_maps(resolve(model)):
        mine = {
            k.removeprefix(f"{dense.name}."): t
            for k, t in stored.items()
            if k.startswith(f"{dense.name}.weight")
        }
        theirs = compressor.compress(
            {"weight": dense.weight.clone(), "weight_scale": mine["weight_scale"]}, package_scheme(config)
        )
        assert set(theirs) == set(mine)
        for key, t in theirs.items():
            assert t.dtype == mine[key].dtype and torch.equal(
                t.view(torch.uint8), mine[key].view(torch.uint8)
            ), key


@given(bits=st.integers(2, 8), rows=st.integers(1, 5), columns=st.integers(1, 70), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_packed_words_are_those_of_the_package(bits, rows, columns, seed):
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, columns), generator=generator)
    mine = pack(levels.to(torch.int8), bits)
    assert torch.equal(mine, pack_to_int32(levels.to(torch.int8), bits))
    assert torch.equal(unpack_from_int32(mine, bits, (rows, columns)).long(), levels)


def test_weights_found_elsewhere_are_stored_as_they_are(tmp_path):
    """A grid of half the range, as a search would choose it, survives; a weight off its grid does not."""
    model, scheme = zoo.tiny("llama"), Scheme.parse("w4a16-g16")
    dense = dense_maps(resolve(model))[0]
    wide = observe(dense.weight, scheme.weights)
    grid = Grid(wide.scale * 0.5, wide.zero_point)
    found = fake_quantize(dense.weight, scheme.weights, grid)
    export(asked(model, "w4a16-g16", weights={dense.name: (found, grid)}), tmp_path / "out")
    stored = tensors_in(tmp_path / "out")
    assert torch.equal(stored[f"{dense.name}.weight_scale"], grid.scale.reshape(len(found), -1))
    with pytest.raises(NotPossible, match=f"the quantized weight of {dense.name} does not lie on its grid"):
        export(asked(model, "w4a16-g16", weights={dense.name: (found + 1e-3, grid)}), tmp_path / "more")


def attention_of(model):
    return frozenset(d.name for d in dense_maps(resolve(model)) if "self_attn" in d.name)


@pytest.mark.parametrize(("name", "scheme"), [("mixtral", "wfp8afp8"), ("gpt_oss", "w8a8")])
def test_only_some_maps_of_a_routed_model(name, scheme, tmp_path):
    model = zoo.tiny(name)
    done = export(asked(model, scheme, only=attention_of(model)), tmp_path / "out")
    assert done.readback.max_relative_error == 0.0
    config = config_in(tmp_path / "out")["quantization_config"]
    assert config["config_groups"]["group_0"]["targets"] == sorted(attention_of(model))


def test_float_experts_that_transformers_would_lose_beside_integer_maps_are_refused(tmp_path):
    model = zoo.tiny("qwen3_moe")
    with pytest.raises(
        NotPossible, match=r"experts\.gate_up_proj\[0\] stays float beside integer maps.*wfp8afp8"
    ):
        export(asked(model, "w8a8", only=attention_of(model)), tmp_path / "out")
    assert nothing_in(tmp_path)


def test_a_name_that_no_map_has_is_refused(tmp_path):
    with pytest.raises(NotPossible, match=r"lm_head is no linear map of the model's blocks"):
        export(asked(zoo.tiny("llama"), "w8a8", only=frozenset({"lm_head"})), tmp_path / "out")


REFUSED_MAPS = {
    ("gpt2", "w8a8"): r"h\.0\.attn\.c_attn is a Conv1D.*without a word.*form 'float'",
    ("mixtral", "w8a8"): r"experts\.gate_up_proj\[0\] is an expert inside one 3-D tensor.*form 'float'",
    ("falcon_rw", "w4a16"): r"query_key_value is a FalconLinear.*quantize the inputs too",
    ("opt", "w8a8"): r"4 maps read \[token channel\].*one grid for all tokens.*static inputs",
    ("llama", "w4a16-g128"): r"reads 32 values, which groups of 128 do not divide",
    ("llama", "w8a8-static"): r"inputs are static and model\.layers\.0.* has no grid: calibrate",
}


@pytest.mark.parametrize(("name", "scheme"), REFUSED_MAPS)
def test_maps_that_a_reader_would_leave_alone_or_misread_are_refused(name, scheme, tmp_path):
    with pytest.raises((NotPossible, UnknownOption), match=REFUSED_MAPS[name, scheme]):
        export(asked(zoo.tiny(name), scheme), tmp_path / "out")
    assert nothing_in(tmp_path)


REFUSED_SCHEMES = {
    "w4a16-g16-asym": "transformers 5.23 fails on zero points of weights",
    "w6a6": "weights of 6 bits have no reader",
    "w8a8kv8": "transformers ignores a quantized cache",
    "w8a8-attn": "products of attention have no place",
    "inputs=int8:token": "the weights must be quantized",
    "wmxfp4amxfp4": "mxfp4 weights load on CUDA only",
    "wnvfp4a16": "nvfp4 weights load on CUDA only",
    "weights=fp8_e5m2:channel": "its 8-bit float is fp8_e4m3",
    "w8a16-tensor": "one scale per channel or group, not per tensor",
    "weights=int8:channel,inputs=fp8:token": "both be integers or both floats",
    "weights=int8:channel,inputs=int8:channel:static": "one grid per column have no reader",
    "weights=int8:channel,inputs=int8:tensor:mse": "minimum and maximum when the model runs",
    "weights=int8:channel,inputs=int4:token": "inputs of 4 bits with weights of 8",
    "w4a4": "int4 inputs have no reader",
}


@pytest.mark.parametrize("scheme", REFUSED_SCHEMES)
def test_schemes_that_the_format_or_its_reader_lacks_are_refused_with_the_reason(scheme, tmp_path):
    with pytest.raises(NotPossible, match=REFUSED_SCHEMES[scheme]) as caught:
        export(asked(zoo.tiny("llama"), scheme), tmp_path / "out")
    assert "the float model can be exported" in str(caught.value)
    assert nothing_in(tmp_path)


def test_asymmetric_int4_is_still_refused_for_a_reason(tmp_path, monkeypatch):
    """When this fails, transformers reads zero points of packed weights and the refusal can go."""
    from compressed_tensors.compressors import BaseCompressor

    from skerry.tame import export_compressed as writer

    real = writer._store

    def store(given, grid, spec, dtype, *, packed):
        tensors, weight = real(given, grid, spec, dtype, packed=packed)
        zero = grid.zero_point.reshape(len(given), -1).to(torch.int8)
        packer = BaseCompressor.get_value_from_registry("pack-quantized")
        scheme = package_scheme(
            {
                "config_groups": {
                    "group_0": {"targets": ["Linear"], "weights": writer._arguments(spec, dynamic=False)}
                }
            }
        )
        made = packer.compress(
            {"weight": given, "weight_scale": tensors["weight_scale"], "weight_zero_point": zero}, scheme
        )
        return made, weight

    monkeypatch.setattr(writer, "_store", store)
    monkeypatch.setattr(writer, "refuse_scheme", lambda scheme: scheme.weights)
    with pytest.raises(ReadBackFailed, match="cannot load|mismatch"):
        export(asked(zoo.tiny("llama"), "w4a16-g16-asym"), tmp_path / "out")


@pytest.mark.parametrize("kind", RUNTIME)
def test_what_only_the_running_model_has_is_refused(kind, tmp_path):
    with pytest.raises(NotPossible, match=rf"{kind} \(layer 3\) cannot be exported"):
        export(asked(zoo.tiny("llama"), "w8a8", needs={kind: "layer 3"}), tmp_path / "out")
    assert nothing_in(tmp_path)


def test_a_float_checkpoint_loses_only_what_changes_the_float_model():
    also_float = ("online rotation", "compensated shortcut", "another model")
    refuse_runtime({kind: "here" for kind in RUNTIME if kind not in also_float}, quantized=False)
    with pytest.raises(NotPossible, match="Leave the post-norm seams out"):
        refuse_runtime({"compensated shortcut": "here"}, quantized=False)
    with pytest.raises(NotPossible, match="transformers 5.23 ignores `transform_config`"):
        refuse_runtime({"online rotation": "here"}, quantized=False)
    with pytest.raises(UnknownOption, match="did you mean 'prefix tokens'"):
        refuse_runtime({"prefix token": "here"}, quantized=False)


def test_a_simulation_says_what_a_checkpoint_cannot():
    scheme = Scheme.parse("w8a8")
    assert needs_of(Simulation(scheme)) == {}
    full = Simulation(
        scheme, keep_columns={"a": torch.tensor([1])}, keep_entries={"a": torch.tensor([1]), "b": torch.tensor([2])},
        keep_positions=2, clip={"a": (-1.0, 1.0)}, keep_above={"a": 3.0},
    )  # fmt: skip
    needs = needs_of(full)
    assert set(needs) <= set(RUNTIME) and len(needs) == 5
    assert needs["entries in full precision"] == "a and 1 more"


def test_a_form_that_does_not_exist_or_lacks_its_scheme_is_refused(tmp_path):
    with pytest.raises(UnknownOption, match="did you mean 'gguf-q8_0'"):
        export(asked(zoo.tiny("llama")), tmp_path / "out", form="gguf-q8")
    with pytest.raises(UnknownOption, match="needs a scheme"):
        export(asked(zoo.tiny("llama")), tmp_path / "out", form="compressed-tensors")


def test_without_the_package_that_transformers_needs_nothing_is_written(tmp_path, monkeypatch):
    from skerry.tame import export_compressed

    monkeypatch.setattr(export_compressed.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"skerry\[compressed\]"):
        export(asked(zoo.tiny("llama"), "w8a8"), tmp_path / "out")
    assert nothing_in(tmp_path)


# The card -------------------------------------------------------------------------------------------------------------


def card_of(**more):
    from skerry.tame.export_card import render_card
    from skerry.tame.readback import Readback

    readback = Readback(1e-7, 2e-6, 1e-6, 1.0, 64, "LlamaForCausalLM", {"transformers": "5.23.0"}, 3.0)
    return render_card(
        CardFacts("tiny-tamed", "someone/tiny: with a colon", **more),
        form="float",
        scheme=None,
        readback=readback,
    )


def test_the_card_says_what_it_was_given_and_nothing_else():
    import yaml

    text = card_of()
    head = yaml.safe_load(text.split("---")[1])
    assert head == {
        "base_model": "someone/tiny: with a colon",
        "library_name": "transformers",
        "tags": ["skerry", "outliers"],
    }
    for absent in (
        "## Losses",
        "## Method",
        "## Calibration",
        "## Run it again",
        "license",
        "## Versions",
        "None",
        "nan",
    ):
        assert absent not in text
    assert "1e-07 (2e-06 allowed)" in text and "64 positions" in text and "transformers 5.23.0" in text


def test_the_card_has_losses_with_intervals_and_the_command():
    import yaml

    text = card_of(
        license="mit", methods=("Scale of attn.in by SmoothQuant, alpha 0.5.",), skipped=("mlp.down.in: no seam.",),
        data={"corpus": "built-in | 1", "tokens": "4,096"}, damage="loss in nats per token",
        losses=(Loss("original", 3.5, 3.4, 3.6), Loss("tamed, w8a8", 3.51)), interval="95 %, bootstrap over inputs.",
        equivalence={"tamed against original, float64": 1.2e-12}, command="skerry tame someone/tiny --seed 0",
        versions={"skerry": "0.1.0"}, limits=("Measured on English text only.",),
    )  # fmt: skip
    assert yaml.safe_load(text.split("---")[1])["license"] == "mit"
    for line in (
        "| original | 3.5000 | 3.4000 to 3.6000 |",
        "| tamed, w8a8 | 3.5100 |  |",
        "| model | loss in nats per token | interval |",
        "| corpus | built-in \\| 1 |",
        "| tamed against original, float64 | 1.2e-12 |",
        "- Scale of attn.in by SmoothQuant, alpha 0.5.",
        "skerry tame someone/tiny --seed 0",
        "- Measured on English text only.",
    ):
        assert line in text


def test_the_card_in_the_folder_has_the_error_that_was_measured(tmp_path):
    done = export(asked(zoo.tiny("llama"), "w8a8"), tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"{done.readback.max_relative_error:.2g} ({done.readback.bound:.2g} allowed)" in text
    assert str(Scheme.parse("w8a8")) in text and "compressed-tensors" in text
    assert not any(
        str(tmp_path) in p.read_text() for p in (tmp_path / "out").glob("*.*") if p.suffix in (".json", ".md")
    )
