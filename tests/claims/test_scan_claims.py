"""Claims that a scan is enough for: each is found supported, refuted and not applicable where that is true by construction."""

import numpy as np
import pytest

from skerry.outliers.finding import Alignment

from .worlds import READ, WIDTH, channels, evidence, head, outlier, sink, site, verdict


def test_the_same_channels_in_every_input_recur():
    high = np.zeros(WIDTH, int)
    high[:3] = 40
    rows = [r for layer in range(5) for r in channels(layer, "mlp.in", high)]
    found = verdict("2.1a", evidence({"channels": rows}))
    assert found.verdict == "supported" and found.effect == pytest.approx(1.0)


def test_other_channels_at_random_in_every_input_do_not_recur():
    rng = np.random.default_rng(0)
    rows = []
    for layer in range(8):
        drawn = np.stack([rng.permutation(WIDTH)[:4] for _ in range(40)])
        rows += channels(layer, "mlp.in", np.bincount(drawn.ravel(), minlength=WIDTH))
    found = verdict("2.1a", evidence({"channels": rows}))
    assert found.verdict == "refuted" and found.effect == pytest.approx(0, abs=0.03)


def test_recurrence_is_no_question_without_outliers_or_with_one_input():
    none = evidence({"channels": channels(0, "mlp.in", np.zeros(WIDTH))})
    assert "5 x the median" in verdict("2.1a", none).why
    one = evidence({"channels": channels(0, "mlp.in", np.ones(WIDTH), num_samples=1)})
    found = verdict("2.1a", one)
    assert found.verdict == "not applicable" and "one input" in found.why and found.effect is None


def extremes(down, rest, *, layers=8):
    """Ratios of the tensors of each block, varied a little."""
    sites = [
        site(n, p, (down if p == "mlp.down.in" else rest) * (1 + 0.05 * n))
        for n in range(layers)
        for p in READ
    ]
    return evidence({"sites": [{"layer": 0, "site": "mlp.in"}]}, sites=sites, findings=[outlier(0, "mlp.in")], num_layers=layers)  # fmt: skip


def test_the_down_projection_reads_the_most_extreme_tensor_or_not():
    assert verdict("2.2a", extremes(200, 20)).verdict == "supported"
    found = verdict("2.2a", extremes(20, 200))
    assert found.verdict == "refuted" and found.effect == pytest.approx(0.1)


def test_two_blocks_decide_nothing():
    found = verdict("2.2a", extremes(200, 20, layers=2))
    assert found.verdict == "inconclusive" and found.low is None and "too few" in found.why


def matrices(down, rest):
    return [
        {
            "layer": n,
            "site": p,
            "num_rows": WIDTH,
            "num_columns": WIDTH,
            "abs_max": (down if p == "w.down" else rest) * (1 + 0.05 * n),
            "median": 1.0,
        }
        for n in range(8)
        for p in ("w.q", "w.o", "w.up", "w.down")
    ]


def weight(layer, **place):
    return outlier(layer, "w.down", None, "weight", "outlier row", **place)


def test_weight_outliers_in_the_down_projection_and_the_same_channels():
    findings = [weight(n, row=7) for n in range(8)] + [outlier(n, "mlp.out", 7) for n in range(8)]
    found = verdict("2.2b", evidence({"matrices": matrices(50, 10)}, findings=findings))
    assert found.verdict == "supported" and "8 of its 8 outlier lines" in found.why


def test_weight_outliers_elsewhere_refute():
    assert verdict("2.2b", evidence({"matrices": matrices(10, 50)})).verdict == "refuted"


def test_weight_outliers_in_other_channels_refute():
    findings = [weight(n, row=7 + n) for n in range(8)] + [outlier(n, "mlp.out", 40) for n in range(8)]
    found = verdict("2.2b", evidence({"matrices": matrices(50, 10)}, findings=findings))
    assert found.verdict == "refuted" and "0 of its 8" in found.why


def test_columns_of_the_down_projection_meet_the_channels_that_it_reads():
    findings = [weight(n, column=5) for n in range(8)] + [outlier(n, "mlp.down.in", 5) for n in range(8)]
    found = verdict("2.2b", evidence({"matrices": matrices(50, 10)}, findings=findings))
    assert found.verdict == "supported"


def masses(of):
    heads = [head(n, h, sink_mass=of(n, h)) for n in range(8) for h in range(8)]
    return {
        "tables": {"heads": [], "keys": []},
        "heads": heads,
        "findings": [sink(n, 0) for n in range(2, 8)],
    }


def test_heads_that_differ_and_heads_that_agree():
    assert (
        verdict("2.2c", evidence(**masses(lambda n, h: 0.9 if (h + n) % 3 == 0 else 0.05))).verdict
        == "supported"
    )
    found = verdict("2.2c", evidence(**masses(lambda n, h: 0.5 + 0.01 * h)))
    assert found.verdict == "refuted" and found.effect < 0.05


def test_heads_without_a_sink_or_no_heads_at_all_say_so():
    without = evidence({"heads": [], "keys": []}, heads=[head(0, h) for h in range(8)])
    assert "no attention sink" in verdict("2.2c", without).why
    none = evidence({"heads": [], "keys": []}, num_heads=None)
    assert verdict("2.2c", none).why == "the model has no attention"
    assert (
        verdict("3.3d", evidence({"heads": [], "keys": []}, num_heads=4)).why == "attention was not measured"
    )


def depth(early, late, *, layers=8):
    sites = [
        site(n, p, (early if n < layers - 2 else late) * (1 + 0.1 * i))
        for n in range(layers)
        for i, p in enumerate(("attn.in", "mlp.in", "mlp.out", "resid.out"))
    ]
    findings = [outlier(0, p) for p in ("attn.in", "mlp.in", "mlp.out", "resid.out")]
    return evidence({"sites": []}, sites=sites, findings=findings, num_layers=layers)


def test_outliers_that_decline_and_outliers_that_grow_with_depth():
    assert verdict("2.2d", depth(100, 20)).verdict == "supported"
    found = verdict("2.2d", depth(20, 100))
    assert found.verdict == "refuted" and found.effect == pytest.approx(0.2)
    assert "at least 4" in verdict("2.2d", depth(20, 100, layers=3)).why


@pytest.mark.parametrize(("share", "word"), [(0.8, "supported"), (0.2, "refuted")])
def test_the_range_belongs_to_few_channels_or_to_many(share, word):
    sites = [site(n, "mlp.out", 50, range_share_top1pct=share + 0.01 * n) for n in range(8)]
    findings = [outlier(n, "mlp.out") for n in range(8)]
    found = verdict("2.3a", evidence({"sites": [], "channels": []}, sites=sites, findings=findings))
    assert found.verdict == word


def shifted(low, high, gain):
    sites = [site(n, "mlp.in", 50, shift_gain=gain * (1 + 0.01 * n)) for n in range(8)]
    findings = [outlier(n, "mlp.in", c, range=(low, high)) for n in range(8) for c in range(4)]
    return evidence({"channels": []}, sites=sites, findings=findings)


def test_asymmetric_channels_and_what_a_shift_brings():
    assert verdict("2.3b", shifted(-97.0, -58.0, 3.5)).verdict == "supported"
    assert verdict("2.3b", shifted(-50.0, 50.0, 3.5)).verdict == "refuted"
    assert verdict("2.3b", shifted(-97.0, -58.0, 1.05)).verdict == "refuted"
    assert "never cross" in verdict("2.3b", shifted(-97.0, -58.0, 3.5)).why


def test_the_shift_is_read_where_a_norm_is_the_same_tensor_as_the_residual():
    sites = [site(n, "resid.mid", 50, shift_gain=2.0 + 0.01 * n) for n in range(8)]
    sites += [site(n, "mlp.in", 50, same_as=f"{n}.resid.mid") for n in range(8)]
    findings = [outlier(n, "resid.mid", c, range=(-9.0, -5.0)) for n in range(8) for c in range(4)]
    assert verdict("2.3b", evidence({"channels": []}, sites=sites, findings=findings)).verdict == "supported"


def overlap(relation, left, right, shared, p):
    words = tuple(str(i) for i in range(100))
    return Alignment(
        relation=relation,
        left=words[:left],
        right=words[left - shared : left - shared + right],
        shared=words[left - shared : left],
        overlap=shared / (left + right - shared),
        expected=0.01,
        p_value=p,
    )


CHANNELS = "outlier channels of resid and rows of w.down"
TOKENS = "tokens of massive activations and tokens of attention sinks"


def test_kinds_that_coincide_and_kinds_that_do_not():
    tables = {"channels": [], "lines": []}
    both = [overlap(CHANNELS, 8, 4, 4, 1e-6), overlap(TOKENS, 3, 2, 2, 1e-4)]
    assert verdict("2.4a", evidence(tables, alignment=both)).verdict == "supported"
    none = [overlap(CHANNELS, 12, 12, 0, 1.0), overlap(TOKENS, 10, 10, 1, 0.6)]
    assert verdict("2.4a", evidence(tables, alignment=none)).verdict == "refuted"
    half = verdict("2.4a", evidence(tables, alignment=both[:1]))
    assert half.verdict == "inconclusive" and "could not be compared" in half.why
    assert verdict("2.4a", evidence(tables)).verdict == "not applicable"


def logits(sign):
    rng = np.random.default_rng(1)
    rows = []
    for i, peak in enumerate(np.linspace(2, 40, 48)):
        entropy = 0.5 + sign * 0.4 * (i / 47 - 0.5) + 0.02 * rng.standard_normal()
        rows.append({"layer": i // 8, "head": i % 8, "entropy": entropy, "entropy_uniform": 1.0, "logit_max": peak, "logit_mean": 0.0,
                     "logit_std": peak / 5})  # fmt: skip
    return evidence({"heads": rows}, heads=[head(0, 0)])


def test_sharp_heads_with_extreme_logits_and_the_other_way_round():
    assert verdict("3.1a", logits(-1)).verdict == "supported"
    found = verdict("3.1a", logits(1))
    assert found.verdict == "refuted" and found.effect > 0.9


@pytest.mark.parametrize(("ratio", "word"), [(0.1, "supported"), (2.0, "refuted")])
def test_small_and_large_values_at_sinks(ratio, word):
    heads = [
        head(n, h, value_norm_ratio=ratio * (1 + 0.02 * h), sink_mass=0.6) for n in range(3) for h in range(8)
    ]
    heads += [head(4, h, value_norm_ratio=1.0, sink_mass=0.1) for h in range(8)]
    findings = [sink(n, h) for n in range(3) for h in range(8)]
    found = verdict("3.3d", evidence({"heads": [], "keys": []}, heads=heads, findings=findings))
    assert found.verdict == word and "without a sink 1" in found.why
