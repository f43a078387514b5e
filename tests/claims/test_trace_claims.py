"""Claims that need a trace: causes, roles, removal. Each way round, and plain where there is nothing to judge."""

import pytest

from skerry.causes.notes import ALONE
from skerry.claims.c3_3e_tokens import is_delimiter
from skerry.claims.effects import (
    CONSTANT,
    EQUAL_ENERGY,
    EQUALLY_MANY,
    FEED_FORWARD,
    QUERY_KEY,
    REMOVED,
    WITHOUT,
)

from .worlds import carrier, effect, evidence, grown, sink, site, verdict

ALL_OF_A_TRACE = ("carriers", "carrier_tokens", "lifecycle", "growth", "effects", "role_verdicts", "role_measures", "tokens")  # fmt: skip


def nothing(notes=None):
    """A trace that found nothing."""
    return evidence({name: [] for name in ALL_OF_A_TRACE}, notes=notes)


@pytest.mark.parametrize(
    "identifier", ["3.2a", "3.2b", "3.2c", "3.3a", "3.3b", "3.3c", "3.3e", "4.3a", "4.3b"]
)
def test_a_trace_that_found_nothing_and_a_run_without_a_trace_say_so(identifier):
    found = verdict(
        identifier,
        nothing({s: ["nothing to follow"] for s in ("lifecycle", "effects", "roles")}),
    )
    assert found.verdict == "not applicable" and "nothing" in found.why and found.effect is None
    absent = verdict(identifier, evidence())
    assert absent.verdict == "not applicable" and absent.why.startswith("needs the table")


def start(query_key, feed_forward):
    rows = [
        effect("start", arm, "outlier", -gone * clean, clean=clean, half=0.02 * clean, outcome_layer=layer)
        for arm, gone in ((QUERY_KEY, query_key), (FEED_FORWARD, feed_forward))
        for layer, clean in ((2, 100.0), (3, 300.0), (4, 20.0))
    ]
    return evidence(
        {"effects": rows, "growth": [grown(0, "birth", "mlp.out", 0.9), grown(0, "birth", "attn.out", 0.1)]}
    )


def test_the_chain_starts_where_its_removal_ends_it():
    assert verdict("3.2a", start(0.9, 0.1)).verdict == "supported"
    found = verdict("3.2a", start(0.05, 0.97))
    assert found.verdict == "refuted" and found.effect == pytest.approx(0.05)
    assert "the feed-forward writes 90 %, attention 10 %" in found.why
    assert verdict("3.2a", start(0.5, 0.5)).verdict == "inconclusive"
    assert verdict("3.2a", start(0.9, 0.95)).verdict == "inconclusive"


def test_what_the_mask_decides_is_said_with_the_verdict():
    for told in (start(0.0, 0.9), arrows(0.0, 0.9)):
        claim = "3.2a" if told.rows("effects")[0]["group"] == "start" else "3.2b"
        assert "attends to itself alone" not in verdict(claim, told).why
        told.notes = {"effects": [ALONE]}
        found = verdict(claim, told)
        assert found.verdict == "refuted" and f"But {ALONE}." in found.why


def arrows(outlier_gone, sinks_gone):
    rows = [
        effect("sink", "sinks removed", "outlier", -100 * outlier_gone, clean=100.0, half=2, layer=1, outcome_layer=3, p_value=0.01),
        effect("birth", WITHOUT, "sink mass", -0.6 * sinks_gone, clean=0.6, half=0.01, outcome_layer=4),
    ]  # fmt: skip
    return evidence({"effects": rows})


def test_both_arrows_between_sinks_and_outliers():
    assert verdict("3.2b", arrows(0.9, 0.0)).verdict == "supported"
    found = verdict("3.2b", arrows(0.01, 0.95))
    assert found.verdict == "refuted" and "95 %" in found.why and "p = 0.01" in found.why
    assert verdict("3.2b", arrows(0.3, 0.3)).verdict == "inconclusive"


def test_an_outlier_before_the_sinks_is_not_downstream_of_them():
    rows = [effect("sink", "sinks removed", "outlier", 0.0, clean=100.0, layer=5, outcome_layer=3)]
    found = verdict("3.2b", evidence({"effects": rows}))
    assert found.verdict == "not applicable" and "after one whose sinks" in found.why


def ends(carriers, growth):
    life = [
        {"carrier": c["carrier"], "layer": n, "site": "resid.out", "value": 100.0 if n < 7 else 8.0}
        for c in carriers
        for n in range(8)
    ]
    return evidence({"carriers": carriers, "growth": growth, "lifecycle": life})


def test_outliers_that_are_written_away_and_outliers_that_stay_or_are_normed_away():
    away = [grown(0, "exit", "mlp.out", 0.95), grown(0, "exit", "attn.out", 0.05, half=0)]
    found = verdict("3.2c", ends([carrier()], away))
    assert found.verdict == "supported" and found.effect == pytest.approx(0.9)
    stays = verdict("3.2c", ends([carrier(exit_layer=None)], [grown(0, "birth", "mlp.out", 1.0)]))
    assert stays.verdict == "refuted" and "1 stays to the end" in stays.why
    normed = [grown(0, "exit", "norm gain", 0.9), grown(0, "exit", "mlp.out", 0.1)]
    assert verdict("3.2c", ends([carrier()], normed)).verdict == "refuted"
    assert verdict("3.2c", ends([carrier(exit_layer=2)], away)).verdict == "refuted"


def roles(model, shares, heads=("implicit scaling",) * 6):
    rows = [{"level": "model", "verdict": model, "outcome": "kl", "strength": 0.8, "why": "by rule"}]
    rows += [{"level": "head", "layer": 1, "head": i, "verdict": v} for i, v in enumerate(heads)]
    names = ("fixed bias", "context dependence", "scaling")
    measures = [
        {"measure": f"role share of {n}", "value": s, "low": s - 0.05, "high": s + 0.05}
        for n, s in zip(names, shares, strict=True)
    ]
    return evidence({"role_verdicts": rows, "role_measures": measures})


@pytest.mark.parametrize(
    ("model", "shares", "words"),
    [
        ("fixed bias", (0.9, 0.05, 0.05), ("supported", "refuted", "refuted")),
        ("context-aware bias", (0.2, 0.7, 0.1), ("refuted", "supported", "refuted")),
        ("implicit scaling", (0.05, 0.05, 0.9), ("refuted", "refuted", "supported")),
        ("mixed", (0.2, 0.4, 0.4), ("refuted", "inconclusive", "inconclusive")),
        ("mixed", (0.5, 0.05, 0.45), ("refuted", "refuted", "inconclusive")),
        ("undecided", (0.4, 0.2, 0.2), ("inconclusive",) * 3),
        ("no role", (0.3, 0.3, 0.3), ("refuted",) * 3),
    ],
)
def test_the_three_hypotheses_about_sinks(model, shares, words):
    world = roles(model, shares)
    found = [verdict(i, world) for i in ("3.3a", "3.3b", "3.3c")]
    assert tuple(r.verdict for r in found) == words
    assert [r.effect for r in found] == list(shares)
    assert "Of 6 heads tested 6 have this role, 100 % [54.1, 100]" in found[2].why


def told(share, rho, *, sinks=0, num_tokens=40):
    """One outlier that start and delimiters carry to this share, and tokens whose size follows their frequency or not."""
    rows = [{"carrier": 0, "position": 0, "token_id": None, "count": 1, "share": share / 2},
            {"carrier": 0, "position": None, "token_id": 5, "token": "the", "count": 1, "share": 1 - share},
            {"carrier": 0, "position": None, "token_id": 6, "token": ".", "count": 1, "share": share / 2}]  # fmt: skip
    tokens = [
        {
            "layer": 3, "site": "resid.out", "token_id": i, "token": f"word{i}", "count": 5 + 3 * i,
            "abs_max_mean": 10 + (i if rho > 0 else -i) / 10 + (i % 3),
        }
        for i in range(60)
    ]  # fmt: skip
    carriers = [carrier(num_tokens=num_tokens)] if num_tokens else []
    return evidence(
        {"carriers": carriers, "carrier_tokens": rows, "tokens": tokens},
        findings=[sink(1, i, position=i % 2 * 7) for i in range(sinks)],
        sites=[site(3, "resid.out", 500)],
    )


def test_outlier_tokens_that_begin_and_delimit_and_others():
    assert verdict("3.3e", told(0.98, 1)).verdict == "supported"
    other = verdict("3.3e", told(0.1, 1))
    assert other.verdict == "refuted" and other.effect == pytest.approx(0.1)
    assert verdict("3.3e", told(0.98, -1)).verdict == "refuted"


def test_outliers_of_most_tokens_are_bound_to_none_and_sinks_count_alone():
    found = verdict("3.3e", told(0.98, 1, num_tokens=3900))
    assert found.verdict == "not applicable" and "bound to tokens" in found.why
    sinks = verdict("3.3e", told(0.98, 1, num_tokens=3900, sinks=40))
    assert sinks.effect == 0.5 and "40 attention sinks" in sinks.why


@pytest.mark.parametrize(
    ("token", "is_one"),
    [
        (".", True), ("Ġ.", True), ("▁", True), ("Ċ", True), ("<s>", True), ("[CLS]", True), ("<|endoftext|>", True), ("##,", True), ("\n", True),
        ("the", False), ("Ġa", False), ("7", False), (None, False), ("<html", False), ("日", False),
    ],
)  # fmt: skip
def test_what_counts_as_a_delimiter(token, is_one):
    assert is_delimiter(token) is is_one


def removal(zeroed, many, energy, *, outcome="loss", constant=0.0):
    rows = [
        effect("removal", REMOVED, outcome, zeroed, half=0.1 * abs(zeroed)),
        effect("removal", CONSTANT, outcome, constant, half=0.01),
    ]
    for arm, mean in ((EQUALLY_MANY, many), (EQUAL_ENERGY, energy)):
        rows += [
            effect("removal", arm, outcome, mean * (1 + 0.1 * d), control=True, draw=d) for d in range(5)
        ]
    return evidence({"effects": rows})


def test_removing_outliers_against_equally_many_and_equal_energy():
    assert verdict("4.3a", removal(4.0, 0.01, 0.3)).verdict == "supported"
    assert verdict("4.3a", removal(4.0, 0.01, 3.0)).verdict == "refuted"
    assert verdict("4.3a", removal(0.001, 0.01, 0.01)).verdict == "refuted"
    assert verdict("4.3a", removal(1.0, 0.01, 0.4)).verdict == "inconclusive"


def test_without_a_head_the_distance_counts_and_is_named():
    found = verdict("4.3a", removal(4.0, 0.01, 0.3, outcome="distance"))
    assert found.verdict == "supported" and "distance" in found.why


def test_controls_that_do_no_damage_give_no_ratio():
    found = verdict("4.3a", removal(4.0, 0.0, 0.0))
    assert found.verdict == "supported" and found.effect is None and "no ratio" in found.why


def test_a_constant_that_suffices_and_one_that_does_not():
    assert verdict("4.3b", removal(4.0, 0.01, 0.3, constant=0.02)).verdict == "supported"
    assert verdict("4.3b", removal(4.0, 0.01, 0.3, constant=3.5)).verdict == "refuted"
    idle = verdict("4.3b", removal(0.0, 0.01, 0.01))
    assert idle.verdict == "not applicable" and "no damage for a constant" in idle.why
