"""Claims about trainings, on studies and monitors whose answer was planted."""

from __future__ import annotations

import pytest

from skerry.claims.claim import NotApplicable
from skerry.claims.evidence import Evidence
from skerry.claims.run import run_claims
from skerry.run.tables import from_rows

SEEDS = 3


def evidence(versus, *, peak=60.0, seeds=SEEDS, label_values=None):
    """A study: {label: {quantity: (mean, low, high) beside the baseline}}."""
    labels = ["softmax", *versus]
    arms = [
        {"label": label, "size": "s", "seed": s, "parameters": 10, "loss": 2.0}
        for label in labels
        for s in range(seeds)
    ]
    values = {
        ("softmax", "max_to_median"): (peak, peak - 1, peak + 1),
        ("softmax", "first_share"): (0.4, 0.35, 0.45),
    }
    values |= label_values or {}
    quantities = []
    for label in labels:
        for quantity in {q for v in versus.values() for q in v} | {"max_to_median", "first_share"}:
            value, beside = (
                values.get((label, quantity), (1.0, 0.9, 1.1)),
                versus.get(label, {}).get(quantity),
            )
            quantities.append(
                {"label": label, "size": "s", "quantity": quantity, "kind": "ratio", "num_seeds": seeds}
                | dict(zip(("value", "ci_low", "ci_high"), value, strict=True))
                | dict(
                    zip(("versus", "versus_low", "versus_high"), beside or (None, None, None), strict=True)
                )
            )
    tables = {
        "study_arms": from_rows("study_arms", arms),
        "study_quantities": from_rows("study_quantities", quantities),
    }
    return Evidence(None, tables)


def verdict(claim, found):
    return run_claims(found, [claim])[0]


LOW, HIGH, ACROSS = (0.3, 0.2, 0.4), (0.9, 0.8, 1.0), (0.5, 0.3, 0.8)


@pytest.mark.parametrize(
    ("free", "bias", "told"),
    [
        (LOW, HIGH, "supported"),
        (HIGH, HIGH, "refuted"),  # a variant that is free keeps its outliers
        (LOW, LOW, "refuted"),  # a bias alone removes them
        (ACROSS, HIGH, "inconclusive"),
        (LOW, None, "supported"),  # no bias was trained
    ],
)
def test_softmax_is_the_root_when_freedom_removes_outliers_and_bias_does_not(free, bias, told):
    versus = {"sink-logit": {"max_to_median": free}, "scaled": {"max_to_median": LOW}}
    if bias:
        versus["context-bias"] = {"max_to_median": bias}
    result = verdict("3.1b", evidence(versus))
    assert result.verdict == told, result.why
    assert result.effect == pytest.approx(max(free[0], LOW[0]))


@pytest.mark.parametrize(
    ("sink", "told"),
    [
        ((0.0, -0.05, 0.05), "supported"),
        ((-0.35, -0.39, -0.3), "refuted"),
        ((-0.2, -0.3, -0.1), "inconclusive"),
    ],
)
def test_the_optimiser_makes_the_peaks_when_sinks_stay_without_adam(sink, told):
    result = verdict("3.1c", evidence({"muon": {"max_to_median": LOW, "first_share": sink}}))
    assert result.verdict == told, result.why


def test_a_study_without_another_optimiser_says_nothing_of_adam():
    result = verdict("3.1c", evidence({"scaled": {"max_to_median": LOW}}))
    assert result.verdict == "not applicable" and "muon" in result.why


FASTER = {
    "max_to_median": LOW,
    "steps_to_baseline": (0.8, 0.7, 0.9),
    "loss_over_run": (-0.1, -0.2, -0.05),
    "loss": (-0.02, -0.04, -0.01),
}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, "supported"),
        ({"steps_to_baseline": None}, "refuted"),  # never gets to the baseline's loss
        ({"loss_over_run": (0.1, 0.05, 0.2)}, "refuted"),
        ({"loss": (0.02, 0.01, 0.03)}, "refuted"),  # faster at first, worse at the end
        ({"loss_over_run": (-0.1, -0.3, 0.1)}, "inconclusive"),
        ({"max_to_median": HIGH}, "not applicable"),  # it has outliers, so it is no test
    ],
)
def test_convergence_is_judged_over_the_whole_run(change, told):
    result = verdict("4.2a", evidence({"scaled": {**FASTER, **change}}))
    assert result.verdict == told, result.why


@pytest.mark.parametrize(
    ("peaks", "sink", "told"),
    [
        (LOW, (-0.2, -0.3, -0.1), "supported"),
        (HIGH, (-0.2, -0.3, -0.1), "refuted"),
        (LOW, (-0.1, -0.3, 0.1), "inconclusive"),
    ],
)
def test_a_scale_removes_outliers_when_peak_and_sink_fall(peaks, sink, told):
    result = verdict("5.3a", evidence({"scaled": {"max_to_median": peaks, "first_share": sink}}))
    assert result.verdict == told, result.why


def test_a_baseline_without_outliers_is_no_test():
    result = verdict("5.3a", evidence({"scaled": {"max_to_median": LOW}}, peak=9.0))
    assert result.verdict == "not applicable" and "grew no outliers" in result.why


@pytest.mark.parametrize(
    ("rounding", "pruning", "told"),
    [
        ((-0.1, -0.2, -0.05), (-0.3, -0.4, -0.2), "supported"),
        ((0.1, 0.05, 0.2), (-0.3, -0.4, -0.2), "refuted"),
        ((-0.1, -0.2, 0.05), (-0.3, -0.4, -0.2), "inconclusive"),
    ],
)
def test_compression_is_robust_when_both_cost_less(rounding, pruning, told):
    versus = {
        "scaled": {"max_to_median": LOW, "change w8a8-tensor": rounding, "change magnitude-50%": pruning}
    }
    assert verdict("5.3b", evidence(versus)).verdict == told


def test_one_seed_decides_nothing_about_peaks():
    result = verdict("3.1b", evidence({"scaled": {"max_to_median": (0.3, None, None)}}, seeds=1))
    assert result.verdict == "inconclusive"


def test_the_largest_size_is_judged():
    found = evidence({"scaled": {"max_to_median": LOW, "first_share": (-0.2, -0.3, -0.1)}})
    arms = [
        *found.rows("study_arms"),
        {"label": "softmax", "size": "tiny", "seed": 0, "parameters": 1, "loss": 3.0},
    ]
    tables = {**found.tables, "study_arms": from_rows("study_arms", arms)}
    assert verdict("5.3a", Evidence(None, tables)).verdict == "supported"


def battery(gains, chance=0.0):
    """Softmax scores 0.5 in every task; the variant 0.5 + gain."""
    found = evidence({"scaled": {"max_to_median": LOW}})
    rows = [
        {
            "label": label,
            "size": "s",
            "seed": seed,
            "task": task,
            "measure": "accuracy",
            "value": value,
            "low": value - 0.01,
            "high": value + 0.01,
            "better": "higher",
            "chance": chance,
        }
        for seed in range(SEEDS)
        for task, gain in gains.items()
        for label, value in (("softmax", 0.5), ("scaled", 0.5 + gain))
    ]
    return Evidence(None, {**found.tables, "study_battery": from_rows("study_battery", rows)})


@pytest.mark.parametrize(
    ("gains", "told"),
    [
        ({"a": 0.01, "b": 0.0, "c": -0.01}, "supported"),
        ({"a": -0.2, "b": -0.21, "c": -0.19}, "refuted"),
        ({"a": 0.1, "b": 0.1, "c": 0.1, "d": -0.3}, "inconclusive"),  # one function is lost
    ],
)
def test_no_function_is_lost_when_every_score_stays_near_the_softmax_model(gains, told):
    result = verdict("7.2a", battery(gains))
    assert result.verdict == told, result.why


def test_a_score_at_chance_is_no_function():
    result = verdict("7.2a", battery({"a": -0.3, "b": 0.0, "c": 0.1}, chance=0.5))
    assert result.verdict == "not applicable" and "at chance" in result.why


def births(onset, final=10.0, peak=12.0, last=1000):
    rows = [
        {
            "series": "s",
            "kind": "activation",
            "site": "resid.out",
            "step": n,
            "layer": 0,
            "max_to_median": 1.0 * n,
        }
        for n in (0, last)
    ]
    onsets = [
        {
            "series": "s",
            "kind": kind,
            "measure": "m",
            "start": 1.0,
            "final": final,
            "peak": peak,
            "peak_step": 5,
            "threshold": 5.0,
            "onset": o,
        }
        for kind, o in zip(("activation", "attention", "weight"), onset, strict=True)
    ]
    return Evidence(
        None, {"births": from_rows("births", rows), "birth_onsets": from_rows("birth_onsets", onsets)}
    )


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (births((100, 120, 140)), "supported"),
        (births((900, 910, 920)), "refuted"),  # born at the end
        (births((100, 120, 140), final=1.0), "refuted"),  # born and gone
        (births((100, 120, None)), "inconclusive"),
        (births((None, None, None)), "refuted"),
    ],
)
def test_a_life_cycle_is_birth_early_and_staying(found, told):
    result = verdict("7.2b", found)
    assert result.verdict == told, result.why


def test_claims_about_a_model_do_not_apply_to_a_study():
    result = verdict("2.1a", evidence({"scaled": {"max_to_median": LOW}}))
    assert result.verdict == "not applicable"
    with pytest.raises(NotApplicable, match="not of one model"):
        _ = evidence({}).summary
