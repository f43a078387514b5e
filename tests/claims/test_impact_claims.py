"""Claims on costs and taming. Each way round, and plain where there is nothing to judge."""

import pytest

from skerry.claims import list_claims, stages_of
from skerry.claims.costs import integer_bits, is_per_tensor, os_plus, plain_of, together
from skerry.claims.effects import CONSTANT, EQUAL_ENERGY, EQUALLY_MANY, REMOVED
from skerry.claims.stages import STAGES, command_of, stage_of
from skerry.run.tables import TABLES

from .worlds import LAYERS, effect, evidence, outlier, site, verdict

NEW = ["4.1a", "4.1b", "4.1c", "4.3a-q", "4.3b-q", "5.2a", "5.2b", "5.4"]


def grid(scheme, change, *, half=0.01, outcome="loss"):
    return {"scheme": scheme, "outcome": outcome, "value": 2 + change, "change": change, "ci_low": change - half, "ci_high": change + half}  # fmt: skip


def priced(layer, part, change, without, *, levels=0.1, scheme="w8a8-tensor", half=0.005, outcome="loss"):
    return {
        "layer": layer, "site": part, "scheme": scheme, "outcome": outcome, "change": change, "ci_low": change - half, "ci_high": change + half,
        "change_without_channels": without, "central_levels": levels,
    }  # fmt: skip


def method(name, scheme, change, *, half=0.005, outcome="loss", seed=0):
    return {**grid(scheme, change, half=half, outcome=outcome), "method": name, "seed": seed, "chosen": False}


@pytest.mark.parametrize("identifier", NEW)
def test_a_run_without_the_stage_says_which_command_measures_it(identifier):
    found = verdict(identifier, evidence())
    assert found.verdict == "not applicable" and found.why.startswith("needs the table")
    own = {
        "4.1b": "skerry scan",
        "4.3a-q": "skerry claims --only '4.3*'",
        "4.3b-q": "skerry claims --only '4.3*'",
    }
    command = own.get(identifier, "skerry claims --only '5.*'" if identifier[0] == "5" else "skerry impact")
    assert f"`{command}`" in found.why


@pytest.mark.parametrize("identifier", NEW)
def test_a_stage_that_measured_nothing_is_told_with_its_reason(identifier):
    needs = next(r["needs"] for r in list_claims([identifier]))
    notes = {stage: ["the model has no linear map"] for stage in STAGES}
    found = verdict(identifier, evidence({t: [] for t in needs}, notes=notes))
    assert found.verdict == "not applicable" and found.effect is None
    assert "the model has no linear map" in found.why or identifier == "4.1b"


def test_each_claim_asks_only_for_the_stages_that_measure_its_tables():
    assert stages_of(["4.1a"]) == {"impact_grid", "impact_sites"}
    assert stages_of(["4.1b"]) == set()
    assert stages_of(["4.1c"]) == {"impact_pruning"}
    assert stages_of(["5.*"]) == {"tame"}
    assert stages_of(["4.3a-q"]) == {"lifecycle", "impact_removal"}
    assert all(set(tables) <= set(TABLES) for tables in STAGES.values())
    assert [command_of(t) for t in ("sites", "effects", "clipping", "methods")] == [
        "skerry scan", "skerry trace", "skerry impact", "skerry claims --only '5.*'",
    ]  # fmt: skip
    assert stage_of("pruning") == "impact_pruning"


def catastrophe(damage=1.5, without=0.05, levels=0.08):
    sites = [priced(n, "mlp.down.in", 0.2 + 0.01 * n, without, levels=levels) for n in range(LAYERS)]
    sites.append(priced(0, "w.down", 0.5, 0.5, levels=0.9))
    return evidence(
        {
            "quantization_grid": [
                grid("original", 0.0, half=0),
                grid("w8a8", 0.002, half=0.001),
                grid("w8a8-tensor", damage),
                grid("w4a4", 9.0),
            ],
            "quantization_sites": sites,
        }
    )


def test_quantization_fails_where_outliers_stretch_the_range_and_cause_the_damage():
    found = verdict("4.1a", catastrophe())
    assert found.verdict == "supported" and found.effect == 1.5
    assert "Under w8a8-tensor" in found.why and "8 %" in found.why
    assert found.figure.x == ("w8a8", "w8a8-tensor", "w4a4")
    assert verdict("4.1a", catastrophe(damage=0.01)).verdict == "refuted"
    assert verdict("4.1a", catastrophe(damage=0.1)).verdict == "inconclusive"
    assert verdict("4.1a", catastrophe(without=0.2)).verdict == "refuted"
    assert verdict("4.1a", catastrophe(levels=0.6)).verdict == "refuted"


def test_a_range_per_token_can_support_the_catastrophe_and_not_refute_it():
    def told(damage):
        sites = [priced(n, "mlp.in", 0.2, 0.01, scheme="w8a8") for n in range(4)]
        tables = {"quantization_grid": [grid("w8a8", damage)], "quantization_sites": sites}
        return verdict("4.1a", evidence(tables))

    assert told(1.0).verdict == "supported"
    gentle = told(0.001)
    assert gentle.verdict == "inconclusive" and "which is coarser, was not measured" in gentle.why
    none = verdict("4.1a", evidence({"quantization_grid": [grid("w4a8", 1.0)], "quantization_sites": []}))
    assert none.verdict == "not applicable" and "w8a8-tensor" in none.why


def test_damage_that_no_single_input_does_leaves_the_cause_open():
    sites = [priced(n, "mlp.in", 0.0, 0.0) for n in range(4)]
    tables = {"quantization_grid": [grid("w8a8-tensor", 1.0)], "quantization_sites": sites}
    found = verdict("4.1a", evidence(tables))
    assert found.verdict == "inconclusive" and "cannot be told" in found.why


def asymmetric(low, high, gain):
    sites = [site(n, "attn.in", 50.0, abs_max=max(-low, high), shift_gain=gain) for n in range(LAYERS)]
    sites += [site(n, "mlp.in", 8.0, abs_max=1.0, shift_gain=1.0) for n in range(LAYERS)]
    rows = [{"layer": n, "site": "attn.in", "min": low, "max": high} for n in range(LAYERS)]
    rows += [{"layer": n, "site": "mlp.in", "min": -1.0, "max": 1.0} for n in range(LAYERS)]
    return evidence({"sites": rows}, sites=sites, findings=[outlier(n, "attn.in") for n in range(LAYERS)])


def test_levels_are_wasted_where_channels_stand_off_centre():
    # Channels in [-97, -58] and [5.7, 43]: a symmetric grid of 97 a side; 39 a side would not do, 19.5 would.
    found = verdict("4.1b", asymmetric(-97.0, 43.0, 140 / 39))
    assert found.verdict == "supported" and found.effect == pytest.approx(1 - 39 / 194)
    assert "27.8 %" in found.why and "8 tensors without outlier channels it is 0 %" in found.why
    assert verdict("4.1b", asymmetric(-50.0, 50.0, 1.0)).verdict == "refuted"
    assert "no outlier channel" in verdict("4.1b", evidence({"sites": [{"layer": 0, "site": "attn.in", "min": -1.0, "max": 1.0}]})).why  # fmt: skip


def pruned(kept, damage, *, half=0.01):
    conflict = [
        {
            "layer": n, "site": "w.down", "method": name, "sparsity": s, "num_weights": 1000, "num_outlier_weights": 10 + n,
            "share_outliers_kept": share, "share_rest_kept": 1 - s, "share_in_band": 0.02,
        }
        for n in range(LAYERS) for s in (0.3, 0.5) for name, share in (("magnitude-global", kept), ("wanda", 0.9))
    ]  # fmt: skip
    cost = [
        {"method": name, "scope": "model", "sparsity": s, "outcome": "loss", "change": s * change, "ci_low": s * change - half, "ci_high": s * change + half}
        for s in (0.3, 0.5) for name, change in (("magnitude-global", damage), ("wanda", 0.1))
    ]  # fmt: skip
    return evidence({"pruning": cost, "pruning_conflict": conflict})


def test_a_threshold_that_keeps_every_outlier_weight_is_no_conflict():
    found = verdict("4.1c", pruned(0.7, 3.0))
    assert found.verdict == "supported" and found.effect == pytest.approx(0.3)
    assert "wanda 2 %" in found.why and set(found.figure.series) == {"magnitude-global", "wanda"}
    assert verdict("4.1c", pruned(1.0, 3.0)).verdict == "refuted"
    assert verdict("4.1c", pruned(0.7, 0.01)).verdict == "refuted"
    assert verdict("4.1c", pruned(0.7, 0.2)).verdict == "inconclusive"
    other = pruned(0.7, 3.0)
    rows = [r for r in other.rows("pruning_conflict") if r["method"] == "wanda"]
    told = verdict("4.1c", evidence({"pruning": other.rows("pruning"), "pruning_conflict": rows}))
    assert told.verdict == "not applicable" and "magnitude-global" in told.why


def removal(zero, mean, many, energy):
    rows = [
        effect("removal", REMOVED, "loss", zero, half=0.1),
        effect("removal", CONSTANT, "loss", mean, half=0.05),
    ]
    for draw in range(5):
        rows.append(effect("removal", EQUALLY_MANY, "loss", many, control=True, draw=draw))
        rows.append(effect("removal", EQUAL_ENERGY, "loss", energy, control=True, draw=draw))
    return evidence({"quantized_removal": [{**r, "scheme": "w8a8"} for r in rows]})


def test_removal_is_judged_in_the_quantized_model_as_in_the_float_one():
    found = verdict("4.3a-q", removal(4.0, 0.02, 0.01, 0.5))
    assert found.verdict == "supported" and found.effect == pytest.approx(8)
    assert found.why.startswith("In the model quantized to w8a8: Zeroing the outliers")
    assert verdict("4.3a-q", removal(0.3, 0.02, 0.01, 0.5)).verdict == "refuted"
    assert verdict("4.3b-q", removal(4.0, 0.02, 0.01, 0.5)).verdict == "supported"
    assert verdict("4.3b-q", removal(4.0, 3.9, 0.01, 0.5)).verdict == "refuted"


def equal(error=1e-15, *, added=0, seconds=1.0, name="os+", more=0):
    checks = [
        {"method": name, "check": "float64", "error": error, "bound": 1e-10, "dtype": "float64", "num_tokens": 64},
        {"method": name, "check": "stored", "error": 1e-7, "bound": 2e-6, "dtype": "float32", "num_tokens": 64},
    ]  # fmt: skip
    cost = [{"method": name, "seconds_before": 1.0, "seconds_after": seconds, "parameters_before": 100, "parameters_after": 100 + more, "operations_added": added}]  # fmt: skip
    return evidence({"equivalence": checks, "overhead": cost})


def test_equivalence_and_overhead_must_both_hold():
    found = verdict("5.2a", equal())
    assert found.verdict == "supported" and found.effect == 1.0 and "float64 1.00e-15" in found.why
    assert verdict("5.2a", equal(1e-3)).verdict == "refuted"
    assert verdict("5.2a", equal(added=2)).verdict == "refuted"
    assert verdict("5.2a", equal(seconds=1.5)).verdict == "refuted"
    assert verdict("5.2a", equal(seconds=1.1)).verdict == "supported"  # the very same code: the clock errs
    assert verdict("5.2a", equal(seconds=1.1, more=8)).verdict == "inconclusive"
    assert verdict("5.2a", equal(seconds=1.01, more=8)).verdict == "supported"
    other = verdict("5.2a", equal(name="rotate"))
    assert other.verdict == "not applicable" and "skerry claims --only '5.*'" in other.why
    without = evidence({"equivalence": equal().rows("equivalence")})
    assert verdict("5.2a", without).verdict == "inconclusive"


def tamed(eight, six, *, clip=5.0, plain=1.0, half=0.005, outcome="loss"):
    rows = []
    for scheme, change in (("w8a8-tensor", eight), ("w6a6-tensor", six)):
        if change is None:
            continue
        rows += [
            method("os+", scheme, change, half=half, outcome=outcome),
            method("rtn", scheme, plain, outcome=outcome),
        ]
        rows += [method("clip", scheme, clip, outcome=outcome)] if clip is not None else []
    rows.append(method("os+", "float", 0.0, half=0.0, outcome=outcome))
    return evidence({"methods": rows})


def test_eight_and_six_bits_must_both_be_nearly_lossless():
    found = verdict("5.2b", tamed(0.001, 0.01))
    assert found.verdict == "supported" and found.effect == 0.01
    assert "w6a6-tensor 0.01 [0.005, 0.015] (without any method 1 [0.995, 1])" in found.why
    assert verdict("5.2b", tamed(0.001, 0.5)).verdict == "refuted"
    assert verdict("5.2b", tamed(0.001, 0.02)).verdict == "inconclusive"
    only = verdict("5.2b", tamed(0.001, None))
    assert only.verdict == "inconclusive" and "6 bits not measured" in only.why
    none = verdict("5.2b", evidence({"methods": [method("awq", "w8a8", 0.1)]}))
    assert none.verdict == "not applicable" and "--only '5.*'" in none.why
    assert (
        "distance, of the last hidden states" in verdict("5.2b", tamed(0.001, 0.01, outcome="distance")).why
    )


def test_seeds_are_taken_together_without_becoming_surer_than_one_of_them():
    rows = [method("os+", s, 0.01, seed=n, half=0.002) for s in ("w8a8", "w6a6") for n in range(2)]
    rows.append(method("os+", "w6a6", 0.04, seed=2, half=0.001))
    found = verdict("5.2b", evidence({"methods": rows}))
    assert found.verdict == "inconclusive" and found.effect == pytest.approx(0.02)
    assert found.low == pytest.approx(0.008) and found.high == pytest.approx(0.041)


def test_the_comparison_is_recomputed_and_the_redesign_is_not_invented():
    found = verdict("5.4", tamed(0.01, 0.1))
    assert found.verdict == "supported" and found.effect == pytest.approx(4.9)
    assert found.why.startswith("Under w6a6-tensor")
    assert "Attention redesign: not applicable" in found.why
    assert set(found.figure.x) == {"os+", "no method", "clip"}
    assert verdict("5.4", tamed(0.01, 0.1, clip=0.05)).verdict == "refuted"
    assert verdict("5.4", tamed(0.01, 0.1, plain=0.1)).verdict == "inconclusive"
    assert verdict("5.4", tamed(0.01, 1.5, plain=1.0)).verdict == "refuted"
    absent = verdict("5.4", tamed(0.01, 0.1, clip=None))
    assert absent.verdict == "not applicable" and absent.why.startswith("clipping not measured")
    assert "redesign" in absent.why


@pytest.mark.parametrize(
    ("scheme", "bits", "per_tensor"),
    [("w8a8", 8, False), ("w8a8-tensor", 8, True), ("w6a6-static", 6, True), ("w4a16", None, False), ("w4a8", None, False),
     ("wfp8afp8", None, False), ("float", None, False), ("nonsense", None, False)],
)  # fmt: skip
def test_schemes_are_read_by_what_they_do(scheme, bits, per_tensor):
    assert integer_bits(scheme) == bits and is_per_tensor(scheme) is per_tensor


def test_os_plus_counts_as_published_where_it_was_measured():
    assert os_plus(["rtn", "os+", "os+published"]) == "os+published" and os_plus(["os+"]) == "os+"
    assert os_plus(["os+,gptq", "smoothquant"]) is None
    costs = (("os+", 0.001), ("os+published", 0.3))
    rows = [method(name, s, c) for s in ("w8a8", "w6a6") for name, c in costs]
    found = verdict("5.2b", evidence({"methods": rows}))
    assert found.verdict == "refuted" and found.why.startswith("Damage with os+published")
    assert "With os+: w8a8 0.001" in found.why
    assert plain_of([], "w8a8") is None


def test_an_interval_of_seeds_reaches_to_the_outermost_ends():
    assert together([verdict_interval(0.0), verdict_interval(1.0)]).low == -0.1


def verdict_interval(value):
    from skerry.causes.bootstrap import Interval

    return Interval(value, value - 0.1, value + 0.1)
