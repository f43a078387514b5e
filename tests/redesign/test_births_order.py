"""Onsets and their order on planted series."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.redesign.birth_order import birth_order, order_rows
from skerry.redesign.births import births_table
from skerry.redesign.births_channels import channel_rows
from skerry.redesign.births_onset import KINDS, Curve, curve, onset_of, onset_rows

STEPS = tuple(range(0, 1001, 10))


def step_curve(at, low=5.0, high=50.0, noise=0.0, seed=0):
    wobble = 1 + noise * np.random.default_rng(seed).standard_normal(len(STEPS))
    return Curve(STEPS, tuple(np.where(np.array(STEPS) >= at, high, low) * wobble))


def planted(onsets, steps=STEPS, layers=2):
    """Rows of a monitor in which each kind jumps at its step, in the last layer."""
    rows = []
    for step in steps:
        for kind, (site, measure, _) in KINDS.items():
            for layer in range(layers):
                born = step >= onsets[kind] and layer == layers - 1
                row = {"step": step, "kind": kind, "layer": layer, "site": site, "expert": None}
                rows.append({**row, measure: 40.0 if born else 5.0, "top_index": [layer], "top_size": [1.0]})
    return rows


@given(at=st.integers(1, 90), noise=st.sampled_from([0.0, 0.05]), seed=st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_the_onset_of_a_step_is_the_step(at, noise, seed):
    found = onset_of(step_curve(at * 10, noise=noise, seed=seed))
    assert (found.onset, found.before) == (at * 10, at * 10 - 10)


def test_the_onset_of_a_straight_line_is_half_way():
    levels = tuple(float(s) for s in STEPS)
    found = onset_of(Curve(STEPS, levels))
    # The end is the median of the last eleven steps: 950.
    assert found.final == 950 and found.threshold == 475 and found.onset == 480


def test_a_logistic_rise_is_born_at_its_middle():
    levels = tuple(6 + 90 / (1 + np.exp(-(s - 400) / 30)) for s in STEPS)
    found = onset_of(Curve(STEPS, levels))
    assert found.before <= 400 <= found.onset


def test_half_of_a_final_level_that_lies_below_the_start_is_no_onset():
    """A ratio that goes from 6 to 10 passes 5 before the first step; what is halved is the rise."""
    found = onset_of(step_curve(500, low=6.0, high=10.0))
    assert (found.threshold, found.onset) == (8.0, 500)


def test_a_spike_is_no_onset_and_a_late_dip_does_not_move_one():
    levels = np.array(step_curve(500).levels)
    levels[10:13] = 300.0
    levels[80:82] = 5.0
    found = onset_of(Curve(STEPS, tuple(levels)))
    assert (found.onset, found.peak, found.peak_step) == (500, 300.0, 100)


def test_what_never_grows_or_dies_is_not_born():
    assert onset_of(step_curve(5000)).onset is None
    levels = np.array(step_curve(200).levels)
    levels[60:] = 5.0
    assert onset_of(Curve(STEPS, tuple(levels))).onset is None
    assert onset_of(Curve((), ())) is None
    assert onset_of(Curve((0,), (3.0,))).onset is None


def test_a_kind_that_is_there_from_the_first_step_has_no_step_before_it():
    found = onset_of(Curve((0, 1, 2, 3, 4, 5, 6, 7), (1.0, 1.0, 1.0, 9.0, 9.0, 9.0, 9.0, 9.0)))
    assert (found.onset, found.before) == (3, 2)


def test_a_curve_is_the_largest_layer_and_leaves_out_what_has_no_number():
    rows = [
        {"step": 1, "site": "resid.out", "max_to_median": 3.0},
        {"step": 1, "site": "resid.out", "max_to_median": 7.0},
        {"step": 0, "site": "resid.out", "max_to_median": 2.0},
        {"step": 2, "site": "resid.out", "max_to_median": None},
        {"step": 2, "site": "w.down", "weight_ratio": 2.0},
    ]
    assert curve(rows, "resid.out", "max_to_median") == Curve((0, 1), (2.0, 7.0))


def test_onset_rows_are_the_planted_steps_of_all_three():
    rows = onset_rows(planted({"activation": 300, "attention": 200, "weight": 610}), "a")
    assert {r["kind"]: r["onset"] for r in rows} == {"activation": 300, "attention": 200, "weight": 610}


def test_the_order_over_seeds_is_the_planted_one_with_an_interval():
    tables = {}
    for seed in range(5):
        jitter = 10 * seed
        onsets = {"activation": 300 + jitter, "attention": 200, "weight": 300 + 3 * jitter}
        tables[f"seed-{seed}"] = births_table(planted(onsets), "training")
    order = {(r["first"], r["second"]): r for r in birth_order(tables)}
    a = order["activation", "attention"]
    assert a["difference"] == pytest.approx(-120) and a["num_series"] == 5 and a["num_first"] == 0
    assert a["verdict"] == "attention first" and a["ci_low"] <= -120 <= a["ci_high"] < 0
    b = order["activation", "weight"]
    assert (b["num_tied"], b["num_first"]) == (1, 4) and b["difference"] == pytest.approx(40)
    assert birth_order(tables) == birth_order(list(tables.values()))


def test_one_training_has_an_order_and_no_verdict():
    (first, *_) = birth_order(
        [births_table(planted({"activation": 300, "attention": 200, "weight": 610}), "x")]
    )
    assert first["difference"] == -100 and first["ci_low"] is None and first["verdict"] == "undecided"


def test_trainings_in_which_a_kind_was_not_born_are_left_out():
    onsets = [{"activation": 300, "attention": 200, "weight": 5000}] * 3
    rows = [r for i, o in enumerate(onsets) for r in onset_rows(planted(o), str(i))]
    order = {(r["first"], r["second"]): r for r in order_rows(rows)}
    assert order["activation", "weight"]["num_series"] == 0
    assert order["activation", "weight"]["difference"] is None
    assert order["activation", "attention"]["num_series"] == 3


def test_a_channel_is_known_since_the_step_from_which_on_it_stays():
    named = {0: [3, 9], 10: [7, 3], 20: [3, 5], 30: [7, 3], 40: [7, 3]}
    rows = [
        {"step": s, "layer": 1, "site": "resid.out", "top_index": c, "top_size": [2.0 + s, 1.0]}
        for s, c in named.items()
    ]
    found = {r["channel"]: r for r in channel_rows(rows, "a")}
    assert set(found) == {7, 3}
    assert (found[3]["since"], found[3]["first"], found[3]["share"]) == (0, 0, 1.0)
    assert (found[7]["since"], found[7]["first"], found[7]["share"]) == (30, 10, 0.6)
    assert found[7]["size"] == 42.0
    assert [r["channel"] for r in channel_rows(rows, "a")] == [3, 7]


def test_a_series_that_begins_with_outliers_says_by_when_and_has_no_part_in_the_order():
    """What stands at the first checkpoint was born before it; what has not half of its end there is born later."""
    late = Curve(STEPS[25:], step_curve(300, low=22.0, high=48.0).levels[25:])
    found = onset_of(late, standing=20.0)
    assert (found.threshold, found.onset, found.before) == (24.0, 300, 290)
    there = onset_of(Curve(STEPS[25:], step_curve(0, high=0.45).levels[25:]), standing=0.3)
    assert (there.onset, there.before) == (250, None)
    # The same levels from step 0 on are those of the model that the training began with.
    assert onset_of(step_curve(0, high=0.45), standing=0.3).onset is None
    # Outliers that were there and went are not born.
    assert (
        onset_of(Curve(STEPS[25:], step_curve(300, low=48.0, high=6.0).levels[25:]), standing=20.0).onset
        is None
    )
    rows = onset_rows(planted({"activation": 300, "attention": 200, "weight": 610}, steps=STEPS[25:]), "a")
    order = {(r["first"], r["second"]): r for r in order_rows(rows)}
    assert {r["kind"]: r["before"] for r in rows}["attention"] is None
    assert order["activation", "attention"]["num_series"] == 0
    assert order["activation", "weight"]["difference"] == 310
