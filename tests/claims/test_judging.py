"""Claims on runs of real scans: results are kept, asked again and shown."""

import json
import math

import pytest
import torch

from skerry.claims import Evidence, judge_run, read_results, run_claims
from skerry.claims.statistics import decide, mean_over, rank_correlation, share, times
from skerry.claims.words import number, percent_span, span


@pytest.fixture(scope="session")
def scanned(tiny_model, tmp_path_factory):
    """The run of a scan of a small random model."""
    import skerry

    ids = torch.randint(4, 90, (12, 24), generator=torch.Generator().manual_seed(0))
    model = tiny_model("llama")
    return skerry.scan(model, ids, out=tmp_path_factory.mktemp("claims") / "run").run


def test_a_real_scan_is_judged_and_what_needs_a_trace_says_so(scanned):
    results = run_claims(Evidence.of_run(scanned))
    by_id = {r.id: r for r in results}
    assert by_id["4.3a"].verdict == "not applicable" and "needs the table `effects`" in by_id["4.3a"].why
    assert by_id["2.2a"].verdict == "not applicable" and "no activation outlier" in by_id["2.2a"].why
    assert by_id["2.1a"].verdict != "supported"
    assert all(r.seconds < 10 for r in results)


def test_results_are_kept_in_the_run_and_judged_again_only_when_asked(scanned):
    first = judge_run(scanned, ["2.*"])
    assert [r.id for r in read_results(scanned)] == [r.id for r in first]
    judge_run(scanned, ["3.1a"])
    kept = json.loads(scanned.text("claims.json"))
    assert [c["id"] for c in kept["claims"]] == [*(r.id for r in first), "3.1a"]
    before = scanned.record.stages["claims"].finished
    assert judge_run(scanned, ["2.1a"])[0].id == "2.1a"
    assert scanned.record.stages["claims"].finished == before
    everything = judge_run(scanned)
    assert [r.id for r in read_results(scanned)] == [r.id for r in everything] and len(everything) >= 19


def test_the_reader_of_a_run_finds_the_same_results(scanned):
    from skerry.run import Run

    judge_run(scanned)
    told = [r.model_copy(update={"seconds": 0.0}) for r in read_results(Run.open(scanned.path))]
    again = [r.model_copy(update={"seconds": 0.0}) for r in judge_run(Run.open(scanned.path))]
    assert told == again


def test_intervals_hold_their_mean_and_need_units():
    assert math.isnan(mean_over([]).value) and math.isnan(share(0, 0).low)
    assert mean_over([1.0, 2.0]).value == 1.5 and decide(mean_over([1.0, 2.0]), 0.0) == "inconclusive"
    few = mean_over([1.0, 2.0, 3.0])
    assert few.low < few.value == 2.0 < few.high and few.low == pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-3)
    many = mean_over([float(i % 7) for i in range(200)])
    assert many.low < many.value < many.high
    assert times([4.0, 4.0, 4.0, 4.0]).value == pytest.approx(4)
    assert share(10, 10).low == pytest.approx(0.6915, abs=1e-4)


def test_an_interval_covers_as_often_as_it_says():
    import numpy as np

    rng = np.random.default_rng(0)
    for n in (6, 40):
        found = [mean_over(rng.standard_normal(n) + 1) for _ in range(200)]
        assert 0.89 < np.mean([f.low <= 1 <= f.high for f in found]) <= 1


def test_rank_correlation_of_what_goes_together():
    import numpy as np

    x = np.arange(30.0)
    assert rank_correlation(x, x**3).value == pytest.approx(1)
    assert not np.isfinite(rank_correlation(x, np.ones(30)).value)


def test_numbers_in_words():
    assert [number(v) for v in (0.0, 0.01234, 4.2149, 1180.4, 3.2e-7, float("nan"), -0.0)] == [
        "0", "0.0123", "4.21", "1180", "3.20e-07", "unknown", "0",
    ]  # fmt: skip
    assert percent_span(share(1, 2)).startswith("50 % [1.26, 98.7]")
    assert "too few units" in span(mean_over([1.0]))
