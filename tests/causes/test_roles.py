"""Roles of sinks: heads built for one role get that verdict, the identity holds everywhere, and nothing is made up."""

import dataclasses

import numpy as np
import pytest
import torch
import zoo

from skerry.anatomy import resolve
from skerry.anatomy.change import change
from skerry.anatomy.sites import Site
from skerry.anatomy.watch import capture, watch
from skerry.causes.outcome import Judge
from skerry.causes.roles import affordable_heads, measure_roles
from skerry.causes.roles_measures import MEASURES
from skerry.causes.roles_parts import ARMS, Moved, Terms, delta, reading
from skerry.causes.roles_runs import choose_inputs, profile
from skerry.causes.roles_verdict import SHARES, decide, resampled, role_shares
from skerry.causes.sinks import Sinks
from skerry.corpus.batch import Batch
from skerry.run.tables import from_rows

from .planted_roles import FIRST, KINDS, LAYER, VOCABULARY, planted_roles, role_inputs

FIRST_IS_SINK = Sinks({layer: frozenset({0}) for layer in range(6)})
VERDICTS = {
    "fixed": "fixed bias",
    "context": "context-aware bias",
    "scale": "implicit scaling",
    "both": "mixed",
    "idle": "no role",
}


def roles_of(model, batches, sinks=FIRST_IS_SINK, **options):
    anatomy = resolve(model)
    return measure_roles(anatomy, batches, sinks, Judge(anatomy), **options)


def batch_of(model, **options):
    ids, keep = zoo.tokens(model, **options)
    return Batch(ids, keep, torch.arange(len(ids)))


@pytest.fixture(scope="module")
def built():
    """The roles of the model with one head of each kind."""
    return roles_of(planted_roles(), role_inputs(), Sinks({LAYER: frozenset({0})}))


def arm_of(found, head, arm, outcome="kl"):
    (row,) = [
        r
        for r in found["roles"]
        if r["level"] == "head" and (r["head"], r["arm"], r["outcome"]) == (head, arm, outcome)
    ]
    return row


def share_of(found, head, name):
    (row,) = [
        r for r in found["role_measures"] if r["head"] == head and r["measure"] == f"role share of {name}"
    ]
    return row


def measure_of(found, head, name):
    values = [r["value"] for r in found["role_measures"] if (r["head"], r["measure"]) == (head, name)]
    return values[0] if values else None


@pytest.mark.parametrize("kind", KINDS)
def test_each_planted_head_gets_its_own_verdict(built, kind):
    (row,) = [r for r in built["role_verdicts"] if r["head"] == KINDS.index(kind)]
    assert row["verdict"] == VERDICTS[kind], row["why"]
    assert (row["level"], row["layer"], row["outcome"]) == ("head", LAYER, "kl")
    if kind in ("fixed", "context", "scale"):
        assert row["low"] > 0.99
    if kind == "idle":
        assert row["strength"] is None


def test_the_intervals_of_a_pure_bias_and_a_pure_scale_exclude_each_other(built):
    heads = {kind: KINDS.index(kind) for kind in KINDS}
    for bias in ("fixed", "context"):
        assert (
            share_of(built, heads[bias], "scaling")["high"]
            < share_of(built, heads["scale"], "scaling")["low"]
        )
    assert (
        share_of(built, heads["fixed"], "context dependence")["high"]
        < share_of(built, heads["context"], "context dependence")["low"]
    )
    for head, free, costly in [
        (heads["fixed"], "both frozen", "implicit scaling"),
        (heads["context"], "context-aware bias", "fixed bias"),
        (heads["scale"], "implicit scaling", "context-aware bias"),
    ]:
        assert arm_of(built, head, free)["high"] < arm_of(built, head, costly)["low"]


def test_verdicts_do_not_depend_on_the_planting():
    found = roles_of(planted_roles(seed=1, strength=1.0), role_inputs(seed=1, num_samples=12))
    told = {r["head"]: r["verdict"] for r in found["role_verdicts"] if r["level"] == "head"}
    assert told == {h: VERDICTS[kind] for h, kind in enumerate(KINDS)}


def test_an_arm_that_has_nothing_to_change_costs_exactly_nothing(built):
    heads = {kind: KINDS.index(kind) for kind in KINDS}
    for kind, arms in {
        "fixed": ["context-aware bias"],
        "context": ["context-aware bias"],
        "scale": ["fixed bias", "implicit scaling"],
        "idle": list(ARMS),
    }.items():
        for arm in arms:
            for outcome in ("kl", "loss"):
                assert arm_of(built, heads[kind], arm, outcome)["change"] == 0.0


def test_a_change_that_is_the_same_everywhere_costs_what_its_control_costs(built):
    row = arm_of(built, KINDS.index("fixed"), "implicit scaling")
    assert row["control"] == pytest.approx(row["change"], rel=1e-4)
    row = arm_of(built, KINDS.index("context"), "fixed bias")
    assert row["against_both"] == 0.0 and row["control"] > 0


def test_a_layer_alone_is_the_whole_model(built):
    def rows(level):
        return {(r["arm"], r["outcome"]): r["change"] for r in built["roles"] if r["level"] == level}

    assert rows("layer") == pytest.approx(rows("model"), rel=1e-4, abs=1e-9)


def test_the_rows_fit_their_tables(built):
    for name in ("roles", "role_verdicts", "role_measures"):
        assert from_rows(name, built[name]).num_rows == len(built[name]) > 0


def test_measures_of_planted_heads(built):
    scale, both, fixed, idle = (KINDS.index(k) for k in ("scale", "both", "fixed", "idle"))
    assert measure_of(built, scale, "value norm ratio") == 0.0
    assert measure_of(built, both, "value norm ratio") == pytest.approx(1.0, abs=1e-4)
    assert measure_of(built, scale, "variance share of scale") == pytest.approx(1.0, abs=1e-4)
    assert measure_of(built, fixed, "variance share of bias") == pytest.approx(1.0, abs=1e-4)
    assert (
        measure_of(built, fixed, "dormant share") == 1.0 and measure_of(built, fixed, "active share") == 0.0
    )
    assert measure_of(built, idle, "variance share of bias") is None, (
        "a head that gives nothing has no variance"
    )
    # Half of the tokens open the gate: p is about 0.05 or 0.98.
    assert 0.4 < measure_of(built, both, "sink mass std") < 0.5


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "falcon_40b", "gpt_oss", "gemma2", "mistral"])
def test_the_identity_holds(tiny_model, name):
    model = tiny_model(name)
    batch = batch_of(model, num_samples=3, padding="right")
    profiles, notes = profile(resolve(model), [batch], FIRST_IS_SINK, [0, 1])
    assert not notes and set(profiles) == {0, 1}
    assert all(p.error < 1e-5 for p in profiles.values())


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_variance_shares_are_the_covariances_of_the_terms(tiny_model, name):
    """Against the definition, written out token by token in float64 on what the output projection writes."""
    model = tiny_model(name)
    anatomy, batch = resolve(model), batch_of(model, num_samples=4)
    found = roles_of(model, [batch], max_heads=0)
    terms: dict[int, Terms] = {}
    with reading(anatomy, [1], FIRST_IS_SINK, batch, terms.__setitem__):
        mix = capture(anatomy, batch.input_ids, ["attn.mix"])[Site(1, "attn.mix")]
    assert mix is not None
    kept, head, width = terms[1].queries, 2, terms[1].rest.shape[-1]
    w = anatomy.weight(Site(1, "w.o")).double()[:, head * width : (head + 1) * width]
    s, r, b = (x[:, head][kept].double() for x in (terms[1].scale, terms[1].rest, terms[1].bias))
    s = s[:, None]
    ds, dr, db = s - s.mean(0), r - r.mean(0), b - b.mean(0)
    parts = {
        "scale": ds * r.mean(0),
        "bias": db,
        "rest": s.mean(0) * dr,
        "interaction": ds * dr - (ds * dr).mean(0),
    }
    whole = sum(parts.values()) @ w.T
    real = (s * r + b) @ w.T
    assert torch.allclose(whole, real - real.mean(0), atol=1e-6)
    for part, x in parts.items():
        expected = ((x @ w.T) * whole).sum() / whole.square().sum()
        rows = [
            m
            for m in found["role_measures"]
            if (m["layer"], m["head"], m["measure"]) == (1, head, f"variance share of {part}")
        ]
        assert rows[0]["value"] == pytest.approx(float(expected), abs=1e-4)
        if part == "scale":
            correlation = np.corrcoef(s[:, 0], (r @ w.T).norm(dim=1))[0, 1]
            assert measure_at(found, 1, head, "update correlation") == pytest.approx(correlation, abs=1e-4)
    assert sum(measure_at(found, 1, head, f"variance share of {p}") for p in parts) == pytest.approx(1)


def measure_at(found, layer, head, name):
    (value,) = [
        r["value"]
        for r in found["role_measures"]
        if (r["layer"], r["head"], r["measure"]) == (layer, head, name)
    ]
    return value


def test_arms_are_the_formulas(tiny_model):
    model = tiny_model("llama")
    anatomy, batch = resolve(model), batch_of(model, num_samples=3, padding="left")
    profiles, _ = profile(anatomy, [batch], FIRST_IS_SINK, [0])
    means, terms = profiles[0].means, {}
    with reading(anatomy, [0], FIRST_IS_SINK, batch, terms.__setitem__):
        model(batch.input_ids, attention_mask=batch.keep.long())
    t = terms[0]
    s, frozen, bias = t.scale[:, 1, :, None], means.scale[1], means.bias[1]
    r, b = t.rest[:, 1], t.bias[:, 1]
    wanted = {
        "fixed bias": s * r + bias,
        "context-aware bias": frozen * r + b,
        "implicit scaling": s * r,
        "both frozen": frozen * r + bias,
        "neither": frozen * r,
    }
    width = r.shape[-1]
    sinks = FIRST_IS_SINK.mask(0, batch)
    assert sinks.sum() == 3 and torch.equal(t.queries, batch.keep & ~sinks)
    for name, expected in wanted.items():
        added = delta(ARMS[name], t, means, [1]).reshape(*batch.keep.shape, -1, width)
        assert torch.allclose((t.output[:, 1] + added[:, :, 1])[t.queries], expected[t.queries], atol=1e-5)
        assert not added[~t.queries].any() and not added[:, :, [0, 2, 3]].any()


def test_a_control_moves_every_change_to_another_token_and_keeps_its_energy():
    generator = torch.Generator().manual_seed(0)
    queries = torch.rand(4, 9, generator=generator) < 0.7
    flat = queries.reshape(-1)
    added = torch.randn(36, 5, generator=generator) * flat[:, None]
    moved = Moved.drawn(queries, generator)(added)
    assert not moved[~flat].any()
    assert torch.equal(moved.square().sum(1).sort()[0], added.square().sum(1).sort()[0])
    assert not (moved[flat] == added[flat]).all(1).any()


def test_the_means_come_from_the_untouched_model_and_the_model_is_left_alone(tiny_model):
    model = tiny_model("gpt2")
    batch = batch_of(model, num_samples=6)
    before = model(batch.input_ids).logits
    first = roles_of(model, [batch], max_heads=1)
    assert torch.equal(model(batch.input_ids).logits, before)
    assert roles_of(model, [batch], max_heads=1) == first
    assert {r["level"] for r in first["roles"]} == {"head", "layer", "model"}


def test_a_model_without_a_head_is_judged_by_distance(tiny_model):
    model = tiny_model("bert", headless=True)
    found = roles_of(model, [batch_of(model, num_samples=6, padding="right")], max_heads=2)
    assert {r["outcome"] for r in found["roles"]} == {"distance"}
    assert found["role_verdicts"] and any("no language-model head" in note for note in found["notes"])


def test_learned_sinks_have_mass_and_no_value(tiny_model):
    model = tiny_model("gpt_oss")
    found = roles_of(model, [batch_of(model, num_samples=6)], Sinks(learned=frozenset({0, 1})))
    heads = [r for r in found["role_verdicts"] if r["level"] == "head"]
    assert heads
    ratios = [r["value"] for r in found["role_measures"] if r["measure"] == "value norm ratio"]
    assert ratios and set(ratios) == {0.0}
    # Without a value there is no bias: whatever it is for, it is scaling.
    for row in found["roles"]:
        if row["arm"] in ("fixed bias", "implicit scaling"):
            assert row["change"] == 0.0


def test_sinks_that_are_tokens_are_found_wherever_they_stand():
    batches = role_inputs(num_samples=8)
    for batch in batches:
        batch.input_ids[:, 0] = 4
        batch.input_ids[:, 8] = FIRST
    found = roles_of(planted_roles(), batches, Sinks(token_ids={LAYER: frozenset({FIRST})}))
    told = {r["head"]: r["verdict"] for r in found["role_verdicts"] if r["level"] == "head"}
    # Queries before the token see no sink: its bias is there or not, and so depends on context.
    assert told[KINDS.index("scale")] == "implicit scaling"
    assert told[KINDS.index("fixed")] in ("context-aware bias", "undecided")


def test_only_the_strongest_heads_are_changed_one_by_one():
    found = roles_of(planted_roles(), role_inputs(num_samples=8), max_heads=2)
    assert len([r for r in found["role_verdicts"] if r["level"] == "head"]) == 2
    assert any("the 2 with the most attention" in note for note in found["notes"])


def test_large_models_get_fewer_heads_one_by_one(tiny_model):
    anatomy = resolve(tiny_model("llama"))
    judge = Judge(anatomy)
    assert affordable_heads(anatomy, judge, 10**3) == 24
    assert affordable_heads(anatomy, judge, 10**12) == 6
    headless = resolve(tiny_model("bert", headless=True))
    assert affordable_heads(headless, Judge(headless), 10**3) == 24


def test_the_reason_names_damage_and_control(built):
    why = {r["head"]: r["why"] for r in built["role_verdicts"] if r["level"] == "head"}
    assert "scaling is 1 (1 to 1)" in why[KINDS.index("scale")]
    assert "freezing the scale costs" in why[KINDS.index("scale")]
    assert "dropping the bias costs 1 x its control" in why[KINDS.index("fixed")]


def empty(found, words):
    assert not found["roles"] and not found["role_verdicts"] and not found["role_measures"]
    assert any(words in note for note in found["notes"]), found["notes"]


def test_what_cannot_be_tested_is_said(tiny_model):
    model = tiny_model("llama")
    anatomy, batches = resolve(model), [batch_of(model)]
    judge = Judge(anatomy)
    empty(measure_roles(anatomy, batches, Sinks(), judge), "no sinks were found")
    none = dataclasses.replace(anatomy, attention={})
    empty(measure_roles(none, batches, FIRST_IS_SINK, judge), "no attention")
    weak = Sinks(token_ids={0: frozenset({VOCABULARY - 1})})
    empty(measure_roles(anatomy, batches, weak, judge), "no head gives sinks a mean of 0.1")
    single = Batch(torch.tensor([[4], [5]]), torch.ones(2, 1, dtype=torch.bool), torch.arange(2))
    empty(measure_roles(anatomy, [single], FIRST_IS_SINK, judge), "2 inputs of a single token")
    with change(anatomy, {Site(layer, "attn.mix"): lambda x, _rows: 2 * x for layer in (0, 1)}):
        empty(
            measure_roles(anatomy, batches, FIRST_IS_SINK, judge), "is not the sum of attention times values"
        )


def test_hidden_values_are_said(tiny_model, monkeypatch):
    def hiding(anatomy, parts, *, on_activation, on_attention):
        return watch(
            anatomy,
            parts,
            on_activation=on_activation,
            on_attention=lambda view: on_attention(dataclasses.replace(view, value=None)),
        )

    monkeypatch.setattr("skerry.causes.roles_runs.watch", hiding)
    model = tiny_model("llama")
    empty(roles_of(model, [batch_of(model)]), "block 1 shows no value vectors")


def test_inputs_are_packed_with_their_like(tiny_model):
    keep = torch.zeros(8, 16, dtype=torch.bool)
    for row, length in enumerate([16, 3, 4, 1, 12, 2, 3, 9]):
        keep[row, :length] = True
    batch = Batch(torch.full((8, 16), 5), keep, torch.arange(8))
    chosen, short = choose_inputs([batch], None, resolve(tiny_model("llama")))
    assert short == 1 and [tuple(b.input_ids.shape) for b in chosen] == [(3, 16), (4, 4)]
    assert sorted(torch.cat([b.sample for b in chosen]).tolist()) == [0, 1, 2, 4, 5, 6, 7]
    some, _ = choose_inputs([batch, batch], 9, resolve(tiny_model("llama")))
    assert sum(len(b.sample) for b in some) == 9


def test_shares_of_pure_roles_and_their_sum():
    names = list(ARMS)

    def shares(*damage):
        return role_shares(np.array(damage, dtype=float)).tolist()

    assert names == ["fixed bias", "context-aware bias", "implicit scaling", "both frozen", "neither"]
    assert shares(0, 0, 1, 0, 1) == pytest.approx([1, 0, 0])
    # Without a mean of its own the bias is context only.
    assert shares(1, 0, 1, 1, 1) == pytest.approx([0, 1, 0])
    assert shares(0, 1, 0, 1, 1) == pytest.approx([0, 0, 1])
    random = np.random.default_rng(0).random((50, len(names)))
    assert role_shares(random).sum(-1) == pytest.approx(np.ones(50))


@pytest.mark.parametrize(
    ("damage", "verdict"),
    [
        ((0.0, 0.0, 1.0, 0.0, 1.0), "fixed bias"),
        ((1.0, 0.0, 1.0, 1.0, 1.0), "context-aware bias"),
        ((0.0, 1.0, 0.0, 1.0, 1.0), "implicit scaling"),
        ((0.5, 0.5, 0.5, 1.0, 1.0), "mixed"),
        ((1e-5, 2e-5, 1e-5, 2e-5, 3e-5), "no role"),
        ((1.0, 1.0, 1.0, 1.0, 0.1), "undecided"),
    ],
)
def test_rules(damage, verdict):
    noise = 1 + 0.05 * np.random.default_rng(0).standard_normal((20, 1))
    table = np.array(damage) * noise
    found = decide(dict(zip(ARMS, table.T, strict=True)))
    assert found.verdict == verdict, found.why
    assert np.isnan(found.strength.value) or 0 <= found.strength.low <= found.strength.high <= 1


def test_few_or_contradicting_inputs_are_undecided():
    arms = list(ARMS)
    few = np.tile([0.0, 1.0, 0.0, 1.0, 1.0], (4, 1))
    assert "4 inputs" in decide(dict(zip(arms, few.T, strict=True))).why
    # Half of the inputs say scaling, half fixed bias; with six of them the interval says that it could be either.
    halves = np.array([[0.0, 1, 0, 1, 1], [0, 0, 1, 0, 1]] * 3)
    assert decide(dict(zip(arms, halves.T, strict=True))).verdict == "undecided"
    broken = np.vstack([few, np.full((9, 5), np.nan)])
    assert decide(dict(zip(arms, broken.T, strict=True))).verdict == "undecided"


def test_an_interval_of_a_ratio_resamples_inputs_together():
    rng = np.random.default_rng(0)
    size = rng.random(40) + 0.5
    (ratio,) = resampled(np.stack([3 * size, size], -1), lambda x: x[..., :1] / x[..., 1:])
    assert (
        ratio.value == pytest.approx(3) and ratio.low == pytest.approx(3) and ratio.high == pytest.approx(3)
    )
    (alone,) = resampled(np.array([[2.0]]), lambda x: x)
    assert alone.value == 2.0 and np.isnan(alone.low)


def test_every_measure_has_its_name_in_the_table_of_measures(built):
    names = {r["measure"] for r in built["role_measures"]}
    assert names <= {*MEASURES, *(f"role share of {name}" for name in SHARES)}
