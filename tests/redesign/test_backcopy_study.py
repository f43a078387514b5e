import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from skerry.redesign.backcopy_reading import Excess, LayerReading, Reading
from skerry.redesign.backcopy_study import MEASURES, Plan, estimate, plans, summarize, tabulate
from skerry.redesign.backcopy_train import Arm, Point, Size
from skerry.redesign.optimisers import find_optimiser
from skerry.redesign.variants import variant


def point(step, *, share=0.2, on_triggers=0.1, peak=1.0, other_peak=1.0, excess=0.5):
    quiet = LayerReading(0, 0.1, 0.1, 0.3, 0.3, 0.0, 1.0, 9.0, other_peak)
    sink = LayerReading(1, 0.1, 0.1, on_triggers, share, 2.5, 0.4, 9.0, peak)
    return Point(step, Reading(Excess(excess, 2 * excess), (quiet, sink)))


def test_a_summary_reads_the_sink_in_its_layer_and_the_peak_where_it_is_largest():
    found = summarize([point(0, share=0.9, on_triggers=0.05, peak=1.5, other_peak=4.0)])
    assert (found["sink"], found["sink_on_triggers"], found["value_ratio"]) == (0.9, 0.05, 0.4)
    assert found["peak"] == 4.0 and found["delta_logit"] == 2.5
    assert (found["backcopy_excess"], found["bigram_excess"]) == (0.5, 1.0)


def test_a_summary_is_the_mean_of_the_last_third():
    points = [point(step, peak=step) for step in (0, 10, 20, 30)]
    assert summarize(points)["peak"] == 25


def test_estimates_are_students():
    values = [1.0, 2.5, 2.0, 4.0]
    found = estimate(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert found == pytest.approx((np.mean(values), low, high))
    assert estimate([2.0]).mean == 2.0 and np.isnan(estimate([2.0]).low)


def test_arms_are_compared_seed_by_seed():
    runs = [
        {"arm": arm, "seed": seed, **dict.fromkeys(MEASURES, base + seed)}
        for arm, base in (("softmax", 1.0), ("relu", 0.5))
        for seed in (0, 10, 20)
    ]
    first, second = tabulate(runs, "softmax")
    assert first["change"] == {} and first["seeds"] == 3
    # The seeds differ by far more than the arms, but the pairs agree.
    assert second["change"]["sink"] == pytest.approx((-0.5, -0.5, -0.5))
    assert second["sink"].low < first["sink"].mean < second["sink"].high


def test_the_plans_name_what_exists_and_differ_in_their_arms_alone():
    for plan in plans().values():
        assert plan.arms[0].name == "softmax"
        for arm in plan.arms:
            assert variant(arm.attention) and find_optimiser(arm.optimiser)


@pytest.fixture
def script(monkeypatch):
    path = Path(__file__).parents[2] / "studies" / "backcopy.py"
    spec = importlib.util.spec_from_file_location("backcopy_study_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = Size(layers=1, width=16, length=16, samples=4, steps=4, warmup=1, read_every=2, read_samples=4)
    arms = (Arm("softmax"), Arm("relu", attention="relu"))
    monkeypatch.setattr(module, "plans", lambda: {"tiny": Plan(small, arms)})
    return module


def test_the_study_writes_its_table_and_trains_nothing_twice(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["backcopy.py", str(tmp_path), "--seeds", "2"])
    script.main()
    first = (tmp_path / "table.md").read_text()
    assert "| softmax | 2 |" in first and "| relu | 2 |" in first and "4 trainings" in first
    assert len((tmp_path / "curves.csv").read_text().splitlines()) == 1 + 4 * 3
    kept = json.loads((tmp_path / "tiny-relu-1.json").read_text())
    assert kept["asked"]["arm"]["attention"] == "relu" and kept["begin"].keys() == MEASURES.keys()
    monkeypatch.setattr(script, "grow", None)  # nothing is left to grow
    script.main()
    assert (tmp_path / "table.md").read_text() == first
    small = script.plans()["tiny"]
    monkeypatch.setattr(script, "plans", lambda: {"tiny": small._replace(size=replace(small.size, width=8))})
    with pytest.raises(TypeError):
        script.main()


@pytest.mark.slow
def test_one_layer_of_softmax_grows_a_sink_and_a_value_drain_and_relu_none():
    from skerry.redesign.backcopy_train import grow

    plan = plans()["one layer"]
    softmax, relu = (summarize(grow(arm, plan.size).points) for arm in plan.arms[:2])
    assert softmax["sink"] > 0.5 > 0.2 > relu["sink"]
    assert softmax["value_ratio"] < 0.5 and softmax["sink_on_triggers"] < 0.1
