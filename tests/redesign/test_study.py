"""Studies: what is planned, what is counted, what is compared."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from skerry.errors import UnknownOption
from skerry.redesign.recipe import Recipe
from skerry.redesign.study_arm import ask, curve_of, points_of, result_of, run_arm
from skerry.redesign.study_measure import even_windows, headline, measure, window_losses
from skerry.redesign.study_plan import Measured, Plan, content_key, make_arms, parse_variant
from skerry.redesign.study_presets import PRESETS, make_plan
from skerry.redesign.study_quantities import quantities
from skerry.redesign.study_statistics import crossed, mean_over_run, over_seeds, steps_to
from skerry.redesign.train_model import make_model
from skerry.report.study_functions import functions_table

TINY = Recipe(layers=1, width=16, heads=2, vocabulary=64, context=16, steps=4, warmup=2, batch=2)


def test_a_variant_may_carry_options():
    assert parse_variant("softmax") == ("softmax", {})
    assert parse_variant("clipped-softmax:alpha=4,form=new") == (
        "clipped-softmax",
        {"alpha": 4, "form": "new"},
    )
    with pytest.raises(UnknownOption, match="no option=value"):
        parse_variant("clipped-softmax:alpha")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"variants": ("scalled",)}, "did you mean 'scaled'"),
        ({"variants": ("scaled:colour=3",)}, "has no option .colour"),
        ({"variants": ("scaled", "scaled")}, "given twice"),
        ({"preset": "labtop"}, "did you mean 'laptop'"),
        ({"sizes": ("3m",)}, "no size '3m'"),
        ({"seeds": 0}, "at least 1"),
        ({"steps": 0}, "at least 1"),
        ({"optimiser": "adamv"}, "adamw"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_trained(asked, words):
    with pytest.raises(UnknownOption, match=words):
        make_plan(**{"preset": "smoke", **asked})


def test_every_preset_is_a_plan_with_the_baseline_first():
    for name in PRESETS:
        plan = make_plan(name)
        assert plan.labels[0] == plan.baseline == "softmax"
        assert len(plan.arms) == len(plan.labels) * len(plan.sizes) * len(plan.seeds)
        assert len({a.name for a in plan.arms}) == len(plan.arms)
    laptop = make_plan("laptop")
    assert len(laptop.labels) == 5 and len(laptop.seeds) == 1
    recipe = laptop.arms[0].recipe
    with torch.device("meta"):
        model = make_model(recipe, vocab_size=recipe.vocabulary, bos=0)
    assert 1.5e6 < sum(p.numel() for p in model.parameters()) < 2.5e6


def test_an_arm_is_known_by_all_that_decides_its_result_and_nothing_else(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("one")
    key = content_key(Recipe(text=str(text)), Measured())
    assert content_key(Recipe(text=str(text)), Measured()) == key
    assert content_key(Recipe(text=str(text), steps=7), Measured()) != key
    assert content_key(Recipe(text=str(text)), Measured(windows=7)) != key
    text.write_text("two words")
    assert content_key(Recipe(text=str(text)), Measured()) != key


def test_more_variants_and_seeds_are_the_same_study_and_other_steps_are_not():
    small = make_plan("smoke", variants=("scaled",))
    assert make_plan("smoke", variants=("off-by-one",), seeds=2).request() == small.request()
    assert make_plan("smoke", steps=21).request() != small.request()
    assert make_plan("smoke", variants=("off-by-one",)).whole_key() != small.whole_key()


def test_points_are_spread_over_the_whole_run_and_end_at_its_end():
    assert points_of(1000, 4) == [250, 500, 750, 1000]
    assert points_of(1000, 10)[:3] == [25, 50, 100] and points_of(1000, 10)[-1] == 1000
    assert points_of(3, 20) == [1, 2, 3]


def test_windows_are_even_and_begin_with_the_first_token():
    windows = even_windows(np.arange(1, 101), 4, context=11, bos=0)
    assert windows.shape == (4, 11) and windows[:, 0].tolist() == [0] * 4
    assert windows[:, 1].tolist() == [1, 31, 61, 91] and windows[-1, -1] == 100


def test_an_interval_of_one_seed_is_over_windows_and_of_equal_numbers_has_no_width():
    x = np.random.default_rng(0).normal(size=(1, 400))
    found = crossed(x)
    assert found.value == pytest.approx(x.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * x.std() / 20, rel=0.15)
    same = crossed(np.full((3, 5), 2.5))
    assert same.low == pytest.approx(2.5) and same.high == pytest.approx(2.5)


def test_seeds_that_differ_widen_the_interval_however_many_windows_there_are():
    windows = np.random.default_rng(1).normal(size=(1, 500)) * 0.01
    seeds = np.array([-1.0, 0.0, 1.0])[:, None]
    found = crossed(windows + seeds)
    # Of three numbers drawn again, 2.5 % of the means are the smallest or largest value: 1/27 = 3.7 %.
    assert found.low == pytest.approx(-1, abs=0.35) and found.high == pytest.approx(1, abs=0.35)


def test_the_interval_over_seeds_is_students():
    x = [1.0, 2.0, 4.0]
    found = over_seeds(x)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(x), scale=stats.sem(x))
    assert (found.value, found.low, found.high) == pytest.approx((7 / 3, low, high))
    ratios = over_seeds(x, logarithmic=True)
    assert ratios.value == pytest.approx(2.0) and ratios.low * ratios.high == pytest.approx(4.0)
    alone = over_seeds([3.0])
    assert alone.value == 3.0 and math.isnan(alone.low)
    assert math.isnan(over_seeds([1.0, 0.0], logarithmic=True).value)


def test_the_step_at_which_a_line_reaches_a_level_is_between_its_points():
    assert steps_to([10, 20, 30], [5.0, 4.0, 3.0], 3.5).step == 25
    assert steps_to([10, 20], [5.0, 4.0], 6.0).step == 10
    never = steps_to([10, 20], [5.0, 4.0], 3.0)
    assert never.step is None and never.lowest == 4.0
    assert mean_over_run([0, 10, 30], [4.0, 2.0, 2.0]) == pytest.approx((30 + 40) / 30)
    assert mean_over_run([5], [4.0]) == 4.0


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return make_model(TINY, vocab_size=64, bos=0).eval()


def test_what_is_measured_is_what_the_model_gives_and_sixteen_bits_change_nothing(model):
    windows = even_windows(np.random.default_rng(0).integers(1, 64, 400), 6, context=16, bos=0)
    measured = Measured(schemes=("w16a16", "w4a4-tensor"), sparsities=(0.0, 0.5))
    found = measure(model, windows, windows[:2], measured=measured)
    with torch.no_grad():
        expected = [float(model(w[None], labels=w[None]).loss) for w in windows]
    assert found["loss"] == pytest.approx(expected, abs=1e-5)
    assert window_losses(model, windows) == pytest.approx(expected, abs=1e-5)
    by_name = {c["what"]: c["loss"] for c in found["compressed"]}
    assert by_name["w16a16"] == found["loss"] and by_name["magnitude-0%"] == found["loss"]
    assert by_name["w4a4-tensor"] != found["loss"] and by_name["magnitude-50%"] != found["loss"]
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert {r["site"] for r in found["layers"]} == {"resid.out", "mlp.down.in", "attn.probs", "w.down"}
    assert headline(found["layers"])["max_to_median"] > 1


def layers(peak, share):
    return [
        {"site": "resid.out", "layer": 0, "max_to_median": peak, "kurtosis": 3.0},
        {"site": "resid.out", "layer": 1, "max_to_median": peak / 2, "kurtosis": 4.0},
        {"site": "attn.probs", "layer": 0, "first_share": share, "value_drain": 0.2, "sink_rate": 0.5},
        {"site": "attn.probs", "layer": 1, "first_share": share / 2, "value_drain": 0.9, "sink_rate": 0.1},
    ]


def result(label, seed, shift, peak, *, end):
    rng = np.random.default_rng(seed)
    loss = (3 + rng.normal(size=40) * 0.2 + shift).tolist()
    return {
        "label": label,
        "size": "s",
        "seed": seed,
        "loss": loss,
        "compressed": [{"what": "w8a8", "loss": [x + 0.1 * peak / 10 for x in loss]}],
        "layers": layers(peak, 0.4),
        "curve": [{"step": 10, "loss": 5.0}, {"step": 20, "loss": end}],
        "parameters": 100 + (label != "softmax"),
    }


def test_planted_differences_are_found_with_their_sign_and_the_baseline_is_none_to_itself():
    seeds = range(3)
    results = [result("softmax", s, 0.0, 40.0, end=3.0) for s in seeds]
    results += [result("better", s, -0.05, 10.0 + s, end=2.5) for s in seeds]
    rows = {(r["label"], r["quantity"]): r for r in quantities(results, baseline="softmax")}
    loss = rows["better", "loss"]
    assert loss["versus"] == pytest.approx(-0.05) and loss["versus_low"] == pytest.approx(-0.05)
    assert loss["over"] == "windows and seeds" and loss["num_seeds"] == 3
    peak = rows["better", "max_to_median"]
    assert peak["versus"] == pytest.approx((10 * 11 * 12) ** (1 / 3) / 40) and peak["versus_high"] < 0.4
    assert rows["better", "steps_to_baseline"]["value"] == pytest.approx(18)
    assert rows["better", "steps_to_baseline"]["versus"] == pytest.approx(0.9)
    assert rows["better", "change w8a8"]["versus"] == pytest.approx(0.1 * (11 - 40) / 10)
    assert rows["better", "parameters"]["versus"] == 1
    assert rows["better", "first_share"]["versus"] == 0
    for (label, _), row in rows.items():
        if label == "softmax" and row["versus"] is not None:
            assert row["versus"] == (1 if row["kind"] == "ratio" else 0)


def test_a_seed_that_never_got_there_is_counted_and_not_averaged():
    results = [result("softmax", s, 0.0, 40.0, end=3.0) for s in range(2)]
    results += [result("slow", 0, 0.1, 10.0, end=3.5), result("slow", 1, 0.1, 10.0, end=2.9)]
    rows = {(r["label"], r["quantity"]): r for r in quantities(results, baseline="softmax")}
    row = rows["slow", "steps_to_baseline"]
    assert row["note"] == "reached by 1 of 2 seeds" and row["ci_low"] is None and row["num_seeds"] == 1


def test_a_diverged_arm_has_a_row_without_numbers():
    results = [
        result("softmax", 0, 0.0, 40.0, end=3.0),
        {"label": "bad", "size": "s", "seed": 0, "note": "diverged: step 3", "curve": []},
    ]
    bad = [r for r in quantities(results, baseline="softmax") if r["label"] == "bad"]
    assert [(r["quantity"], r["value"], r["note"]) for r in bad] == [("loss", None, "no seed was finished")]


def test_an_arm_that_was_stopped_goes_on_and_one_that_is_finished_is_read(tmp_path, monkeypatch):
    tokens = tmp_path / "tokens.npy"
    np.save(tokens, np.random.default_rng(0).integers(0, 64, 4000).astype(np.uint16))
    measured = Measured(windows=4, calibration=2, points=4, schemes=("w8a8-tensor",))
    from dataclasses import replace

    recipe = replace(TINY, text=str(tokens))
    arms = make_arms(["scaled"], base=recipe, sizes={"tiny": {}}, seeds=[0])
    plan = Plan("test", "test", "scaled", arms, measured)
    whole, stopped = (
        ask(tmp_path / name, plan, arms[0], text=recipe, device="cpu", threads=1) for name in ("a", "b")
    )
    expected = run_arm(whole)
    from skerry.redesign import study_arm

    real = study_arm.window_losses

    def stop(model, windows):
        if len(curve_of(stopped)) == 2:
            raise KeyboardInterrupt
        return real(model, windows)

    monkeypatch.setattr(study_arm, "window_losses", stop)
    with pytest.raises(KeyboardInterrupt):
        run_arm(stopped)
    assert result_of(stopped) is None
    monkeypatch.setattr(study_arm, "window_losses", real)
    again = run_arm(stopped)
    for name in ("loss", "losses", "compressed", "curve"):
        assert again[name] == expected[name], name
    monkeypatch.setattr(study_arm, "_train_and_measure", lambda *_: pytest.fail("trained again"))
    assert run_arm(stopped) == again
    assert json.loads((stopped / "result.json").read_text())["label"] == "scaled"


def test_the_battery_of_a_study_is_a_table_of_means_over_seeds():
    def arm(label, seed, value):
        score = {"task": "induction", "measure": "gain", "better": "higher", "chance": 0.0}
        scores = [{**score, "value": value, "place": None}, {**score, "value": 9.0, "place": 16}]
        return {"label": label, "size": "2m", "seed": seed, "battery": {"scores": scores}}

    document = {
        "labels": ["softmax", "scaled", "broken"],
        "batteries": [arm("softmax", 0, 1.0), arm("softmax", 1, 3.0), arm("scaled", 0, 0.5)],
    }
    head, rows = functions_table(document, "2m")
    assert head == ["Task", "Score", "Chance", "softmax", "scaled", "broken"]
    assert rows == [["induction", "gain ↑", "0", "2 [1, 3]", "0.5", "–"]]
    assert functions_table(document, "5m")[1] == functions_table({"labels": []}, "2m")[1] == []
