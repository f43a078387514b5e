"""Learning rates against their closed forms."""

import itertools
import math

import pytest

from skerry.redesign.schedule import SCHEDULES, factor

WAYS = {"steps": 100, "warmup": 10, "final": 0.1}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_rises_in_equal_steps_to_the_peak(schedule):
    rates = [factor(t, schedule=schedule, **WAYS) for t in range(10)]
    assert rates == pytest.approx([(t + 1) / 10 for t in range(10)])


def test_cosine_is_half_way_between_peak_and_end_in_the_middle():
    assert factor(10, schedule="cosine", **WAYS) == 1.0
    assert factor(55, schedule="cosine", **WAYS) == pytest.approx(0.55)
    assert factor(99, schedule="cosine", **WAYS) == pytest.approx(
        0.1 + 0.45 * (1 + math.cos(math.pi * 89 / 90))
    )


def test_wsd_stays_at_the_peak_and_falls_in_a_line_over_its_last_share():
    rates = [factor(t, schedule="wsd", decay_share=0.2, **WAYS) for t in range(100)]
    assert rates[10:81] == [1.0] * 71
    assert rates[90] == pytest.approx(0.1 + 0.9 * 10 / 20)
    falls = [a - b for a, b in itertools.pairwise(rates[80:])]
    assert falls == pytest.approx([0.9 / 20] * 19)


def test_wsd_never_jumps_up_when_warm_up_reaches_into_the_decay():
    rates = [factor(t, schedule="wsd", steps=10, warmup=9, final=0.0, decay_share=0.5) for t in range(10)]
    assert max(rates) <= 1.0 and rates[-1] == pytest.approx(0.2)


def test_without_warm_up_the_first_step_is_at_the_peak():
    for schedule in SCHEDULES:
        assert factor(0, schedule=schedule, steps=5, warmup=0, final=0.1) == 1.0


def test_wsd_without_a_decay_is_constant():
    rates = [factor(t, schedule="wsd", steps=5, warmup=0, final=0.1, decay_share=0.0) for t in range(5)]
    assert rates == [1.0] * 5
