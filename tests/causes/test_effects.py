"""Causal proof of each arrow: on planted lives, where what a change must do is known; on hand-made forwards; on matched controls."""

import math

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from leftovers import bits, same_bits, state

from skerry.anatomy import Site, resolve
from skerry.causes.carrier import Carrier, Places, SuperWeight
from skerry.causes.effect_arm import Chain
from skerry.causes.effect_case import (
    Cells,
    alive_sites,
    choose_cases,
    mean_value,
    other_contexts,
    read_values,
)
from skerry.causes.effect_outlier import (
    EQUAL_ENERGY,
    energy_share,
    random_channels,
    zero_random,
)
from skerry.causes.effect_weights import equally_large, largest, shrink
from skerry.causes.effects import affordable_draws, measure_effects
from skerry.causes.notes import ALONE
from skerry.causes.outcome import Judge
from skerry.causes.sinks import Sinks
from skerry.corpus.batch import Batch
from skerry.outliers.finding import Finding

DRAWS = 3


def carrier_of(life, number=0, **more):
    row = {
        "kind": "massive activation", "channel": life.channel, "sign": life.sign, "birth_layer": life.birth_layer,
        "peak_layer": life.birth_layer, "exit_layer": life.exit_layer, "peak": life.value, "ratio": 500.0, "threshold": 100.0, **more,
    }  # fmt: skip
    return Carrier(number=number, **row)


def places_of(life):
    return Places([{0: at} for at in life.carried], [torch.tensor([2, 3]) for _ in life.carried])


def sinks_of(life):
    return Sinks({layer: frozenset({0}) for layer, _ in life.sink_heads})


def effects_of(life, **options):
    weights = [SuperWeight(0, life.birth_layer, None, row, column, 1.0) for row, column in life.entries]
    given_to = {
        "draws": DRAWS,
        "weights": weights,
        "sinks": sinks_of(life),
        "carriers": [carrier_of(life)],
        **options,
    }
    return measure_effects(
        life.anatomy, life.batches, given_to.pop("carriers"), places_of(life), given_to.pop("weights"), given_to.pop("sinks"),
        given_to.pop("judge", None) or Judge(life.anatomy), **given_to,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["llama", "gpt2", "opt"])
def effects(request, planted):
    """A planted life of each layout and its table of effects."""
    life = planted(request.param, 3)
    return life, effects_of(life)["effects"]


def pick(rows, group, arm, outcome, layer=None, **more):
    """The one row of an arm."""
    more = {"control": False, **more}
    found = [
        r
        for r in rows
        if (r["group"], r["arm"], r["outcome"], r["outcome_layer"]) == (group, arm, outcome, layer)
        and all(r[k] == v for k, v in more.items())
    ]
    assert len(found) == 1, (group, arm, outcome, layer, len(found))
    return found[0]


def first_sink_layer(life):
    return min(layer for layer, _ in life.sink_heads)


def test_without_the_outlier_at_its_birth_it_and_the_attention_on_its_token_are_gone(effects):
    life, rows = effects
    for layer in range(life.birth_layer, life.exit_layer):
        row = pick(rows, "birth", "zero", "outlier", layer)
        assert row["clean"] == pytest.approx(abs(life.value), rel=0.05)
        assert abs(row["value"]) < 0.02 * row["clean"]
    row = pick(rows, "birth", "zero", "sink mass", first_sink_layer(life))
    assert row["high"] < 0 and row["change"] < -0.05
    controls = [
        abs(r["change"])
        for r in rows
        if r["group"] == "birth"
        and r["control"]
        and r["arm"] != "random channel to zero in every block"
        and (r["outcome"], r["outcome_layer"]) == ("sink mass", first_sink_layer(life))
    ]
    assert len(controls) == 2 * DRAWS and max(controls) < -row["change"] / 4
    assert row["p_value"] == pytest.approx(1 / (1 + 2 * DRAWS))


def test_in_every_block_it_is_gone_to_the_last_digit(effects):
    life, rows = effects
    for layer in range(life.birth_layer, life.exit_layer):
        row = pick(rows, "birth", "zero in every block", "outlier", layer)
        assert row["value"] == pytest.approx(0, abs=1e-9)
    row = pick(rows, "birth", "zero in every block", "sink mass", first_sink_layer(life))
    assert row["p_value"] == pytest.approx(1 / (1 + DRAWS)) and row["layer"] is None


def test_super_weights_of_the_scan_stand_in_where_none_carries_the_growth(planted):
    life = planted("llama", 3)
    row, column = life.entries[0]
    found = Finding.model_construct(
        type="super weight", layer=life.birth_layer, expert=None, row=row, column=column
    )
    other = Finding.model_construct(type="super weight", layer=0, expert=None, row=row + 1, column=column)
    told = effects_of(life, weights=[], findings=[found, other])
    assert any(
        "so the 1 super weight of the scan that writes these channels was removed" in n for n in told["notes"]
    )
    gone = pick(told["effects"], "super weight", "super weights removed", "outlier", life.birth_layer)
    assert abs(gone["value"]) < 0.02 * gone["clean"]


def test_an_outlier_that_is_the_same_in_all_inputs_can_be_a_constant(effects):
    life, rows = effects
    for arm in ("mean", "value of another input"):
        row = pick(rows, "birth", arm, "kl")
        assert row["change"] < 1e-6
        assert pick(rows, "birth", arm, "outlier", life.birth_layer)["change"] == pytest.approx(
            0, abs=1e-3 * abs(life.value)
        )


def test_the_super_weight_is_the_outlier_and_equally_large_weights_are_not(effects):
    life, rows = effects
    row = pick(rows, "super weight", "super weights removed", "outlier", life.birth_layer)
    assert abs(row["value"]) < 0.02 * row["clean"] and row["p_value"] == pytest.approx(1 / (1 + DRAWS))
    again = pick(rows, "start", "feed-forward weights zeroed", "outlier", life.birth_layer)
    assert again["change"] == row["change"]
    controls = [
        r["change"]
        for r in rows
        if r["group"] == "super weight" and r["control"] and (r["outcome"], r["outcome_layer"]) == ("outlier", life.birth_layer)
    ]  # fmt: skip
    assert len(controls) == DRAWS and max(map(abs, controls)) < 0.1 * row["clean"]


def test_the_dose_is_the_factor_on_the_outlier(effects):
    life, rows = effects
    for dose in (0.0, 0.25, 0.5, 1.0, 2.0):
        row = pick(rows, "dose", f"outlier x {dose:g}", "outlier", life.birth_layer, dose=dose)
        assert row["value"] == pytest.approx(dose * row["clean"], rel=1e-5, abs=1e-4)
    assert pick(rows, "dose", "outlier x 1", "loss", dose=1.0)["change"] == 0.0
    zero = pick(rows, "dose", "outlier x 0", "loss", dose=0.0)
    assert zero["change"] == pick(rows, "birth", "zero in every block", "loss")["change"]


def test_only_keys_carry_what_makes_the_sink(effects):
    life, rows = effects
    layer = first_sink_layer(life)
    whole = pick(rows, "birth", "zero", "sink mass", layer)["change"]
    # In the block after the birth, queries have seen nothing of the change yet but through keys and values.
    assert layer == life.birth_layer + 1
    assert pick(rows, "path", "only keys", "sink mass", layer)["change"] == pytest.approx(whole, abs=1e-5)
    assert pick(rows, "path", "only values", "sink mass", layer)["change"] == pytest.approx(0, abs=1e-6)
    assert pick(rows, "path", "only the residual", "sink mass", layer)["change"] == pytest.approx(0, abs=1e-6)


def test_the_residual_of_the_first_token_reaches_no_other_token_of_a_causal_model(effects):
    life, rows = effects
    row = pick(rows, "path", "only the residual", "kl")
    others = (
        pick(rows, "path", "only keys", "kl")["change"] + pick(rows, "path", "only values", "kl")["change"]
    )
    length = life.batches[0].input_ids.shape[1]
    # All it can change is the prediction of the first token, one of all.
    assert 0 <= row["change"] <= 20 / (length - 1) and others > 0
    last = pick(rows, "path", "only the residual", "sink mass", max(x for x, _ in life.sink_heads))
    assert last["change"] == pytest.approx(0, abs=1e-6)


def test_attention_that_the_first_token_cannot_see_does_not_make_its_outlier(effects):
    life, rows = effects
    for r in rows:
        if r["group"] == "sink" and r["outcome"] == "outlier" and not r["control"]:
            assert r["change"] == pytest.approx(0, abs=1e-4 * abs(life.value))
    assert pick(rows, "sink", "no attention on sinks", "kl")["change"] > 0
    assert not [r for r in rows if r["group"] == "sink" and r["outcome"] == "sink mass"]


def test_large_query_and_key_weights_do_not_start_an_outlier_that_a_neuron_writes(effects):
    life, rows = effects
    row = pick(rows, "start", "query/key weights shrunk", "outlier", life.birth_layer)
    assert abs(row["change"]) < 0.2 * row["clean"]


def test_outcomes_before_the_change_are_not_told(effects):
    life, rows = effects
    assert all(
        r["outcome_layer"] is None or r["outcome_layer"] >= life.birth_layer
        for r in rows
        if r["group"] in ("birth", "dose", "path", "super weight")
    )


def test_removal_equals_a_forward_with_plain_hooks(planted):
    life = planted("llama", 3)
    rows = effects_of(life)["effects"]
    blocks = life.model.model.layers
    handles = []
    ids = torch.cat([b.input_ids for b in life.batches])

    def hook(_m, _a, out):
        whole = out[0] if isinstance(out, tuple) else out
        whole[:, 0, life.channel] = 0.0
        return out

    def loss():
        with torch.no_grad():
            logits = life.model(ids).logits[:, :-1].double()
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:]).item()

    before = loss()
    for block in blocks[life.birth_layer : life.exit_layer]:
        handles.append(block.register_forward_hook(hook))  # noqa: PERF401 - all of them, or those that there are, are removed
    try:
        after = loss()
    finally:
        for h in handles:
            h.remove()
    row = pick(rows, "removal", "outliers zeroed", "loss")
    assert row["clean"] == pytest.approx(before, abs=1e-5) and row["change"] == pytest.approx(
        after - before, abs=1e-5
    )


def test_rows_tell_values_that_fit_and_intervals_only_of_what_is_no_control(effects):
    _, rows = effects
    for r in rows:
        assert r["value"] == pytest.approx(r["clean"] + r["change"])
        assert (r["draw"] is not None) == r["control"]
        if r["control"]:
            assert r["low"] is None and r["p_value"] is None
        else:
            assert r["low"] <= r["change"] + 1e-12 and r["high"] >= r["change"] - 1e-12
            assert (
                r["p_value"] is not None
                or (r["group"], r["dose"]) == ("dose", 1.0)
                or r["arm"] == "outliers to mean"
            )


def test_the_model_is_left_bit_for_bit_and_the_same_seed_gives_the_same_table(planted):
    life = planted("gpt2", 4)
    before, weights = state(life.model), bits(life.model)
    once = effects_of(life, seed=5)
    assert same_bits(life.model, weights) and state(life.model) == before
    assert once == effects_of(life, seed=5)
    assert once["effects"] != effects_of(life, seed=6)["effects"]


def test_without_an_outlier_nothing_is_changed_and_that_is_said(planted):
    found = effects_of(planted("llama", 3), carriers=[])
    assert found["effects"] == []
    assert found["notes"] == ["no outlier of the residual stream was found, so no intervention was made"]


def test_inputs_of_one_token_are_said(planted):
    life = planted("llama", 3)
    batches = [type(b)(b.input_ids[:, :1], b.keep[:, :1], b.sample) for b in life.batches]
    places = Places([{0: torch.arange(len(b.input_ids))} for b in batches], [torch.tensor([0])] * 2)
    found = measure_effects(
        life.anatomy, batches, [carrier_of(life)], places, [], sinks_of(life), Judge(life.anatomy)
    )
    assert found["effects"] == [] and "at least two tokens" in found["notes"][-1]


def test_where_the_mask_decides_it_is_said(planted):
    assert ALONE in effects_of(planted("llama", 3), draws=1)["notes"]
    assert ALONE not in effects_of(planted("llama", 3, delimiter=True), draws=1)["notes"]


def test_one_input_has_numbers_but_no_interval(planted):
    life = planted("llama", 3)
    found = effects_of(life, inputs=1)
    row = pick(found["effects"], "birth", "zero", "loss")
    assert row["num_samples"] == 1 and row["low"] is None and row["change"] is not None
    assert not [r for r in found["effects"] if r["arm"] == "value of another input"]


def test_what_cannot_be_done_is_said(planted):
    life = planted("llama", 3)
    found = effects_of(life, weights=[], sinks=Sinks())
    told = " ".join(found["notes"])
    assert "no entries of w.down carry the growth at the birth" in told
    assert "no attention sinks were found" in told and "no block has attention sinks" in told
    assert "3 draws of each control: no p-value can be below 0.25" in told
    # Then all rows of the channel are taken.
    row = pick(found["effects"], "start", "feed-forward weights zeroed", "outlier", life.birth_layer)
    assert abs(row["value"]) < 0.02 * row["clean"]
    in_embedding = effects_of(life, carriers=[carrier_of(life, birth_layer=None)])
    assert "in the embedding already" in " ".join(in_embedding["notes"])
    assert not [r for r in in_embedding["effects"] if r["group"] in ("start", "super weight")]


def test_controls_of_equal_energy_are_left_out_where_outliers_hold_it_all(planted):
    found = effects_of(planted("llama", 3))
    assert not [r for r in found["effects"] if r["arm"] == EQUAL_ENERGY]
    assert any("times the energy of all other values" in note for note in found["notes"])


def chain_of(life, seed=0):
    own = [carrier_of(life)]
    cases = choose_cases(life.anatomy, life.batches, own, places_of(life))
    read_values(life.anatomy, cases, own)
    return Chain(life.anatomy, cases, own, own, sinks_of(life), seed, DRAWS)


def test_cases_hold_the_tokens_that_carry_it_and_what_stands_there(planted):
    life = planted("opt", 3)
    chain = chain_of(life)
    assert sum(len(case.batch.input_ids) for case in chain.cases) == 16
    site = alive_sites(life.anatomy, chain.born[0])[0]
    assert site == Site(life.birth_layer, "resid.out")
    for case in chain.cases:
        assert case.batch.input_ids.reshape(-1)[case.tokens[0]].eq(life.token_id).all()
        assert case.values[0, site] == pytest.approx(life.value, rel=0.05)
    every = torch.cat([case.values[0, site] for case in chain.cases])
    assert mean_value(chain.cases, chain.born[0], site) == pytest.approx(float(every.double().mean()))
    assert energy_share(chain.cases, site, chain.born) > 1


def test_the_value_of_another_input_is_never_the_own_one(planted):
    life = planted("llama", 3)
    chain = chain_of(life)
    site = alive_sites(life.anatomy, chain.born[0])[0]
    number = 0.0
    for case in chain.cases:  # each input its own value
        case.values[0, site] = torch.arange(len(case.tokens[0])) + number
        number += len(case.tokens[0])
    for case, theirs in zip(
        chain.cases, other_contexts(chain.cases, chain.born[0], site, seed=1), strict=True
    ):
        assert not (theirs == case.values[0, site]).any() and (theirs < number).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.floats(0.5, 4.0))
def test_random_values_of_equal_energy_hold_as_much_and_no_value_more(seed, size):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 8, generator=generator)
    x[0, 3] = size
    keep = torch.ones(12, dtype=torch.bool)
    keep[10:] = False
    cells = Cells(torch.tensor([0]), torch.tensor([3]))
    edit = zero_random(keep, cells, [3], seed, by_energy=True)
    new = edit(x, None)
    gone = (x != new).nonzero()
    assert not (gone[:, 1] == 3).any() and not (gone[:, 0] >= 10).any() and torch.equal(new, edit(x, None))
    removed = x[gone[:, 0], gone[:, 1]].double().square()
    assert removed.sum() >= size**2 * (1 - 1e-6) and removed.sum() - removed.max() < size**2 * (1 + 1e-6)
    many = zero_random(keep, cells, [3], seed, by_energy=False)(x, None)
    assert int((many != x).sum()) == 1


def test_equally_large_weights_are_as_large_and_write_no_outlier(planted):
    life = planted("llama", 3)
    chain = chain_of(life)
    site = Site(life.birth_layer, "w.down")
    weight = life.anatomy.weight(site).abs()
    entries = [(site, life.channel, j) for j in weight[life.channel].topk(5).indices.tolist()]
    order = weight.reshape(-1).argsort().argsort().reshape(weight.shape)
    for draw in range(20):
        found = equally_large(chain, entries, draw)
        assert len(set(found)) == 5 and all(row != life.channel for _, row, _ in found)
        for (_, a, b), (_, c, d) in zip(entries, found, strict=True):
            assert abs(int(order[a, b]) - int(order[c, d])) <= 32 + weight.shape[1]
    assert equally_large(chain, entries, 1) != equally_large(chain, entries, 2)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_shrunk_weights_have_the_median_size_and_their_sign_while_open(tiny_model, name):
    anatomy = resolve(tiny_model(name))
    site = Site(0, "w.q")
    before = anatomy.weight(site).clone()
    flat = largest(before)
    with shrink(anatomy, site, flat):
        inside = anatomy.weight(site).clone()
    changed = (inside != before).reshape(-1).nonzero()[:, 0]
    assert set(changed.tolist()) == set(flat.tolist())
    assert torch.allclose(inside.reshape(-1)[flat], before.reshape(-1)[flat].sign() * before.abs().median())
    assert torch.equal(anatomy.weight(site), before)


def test_random_channels_are_never_an_outliers(planted):
    own = [carrier_of(planted("llama", 3), channel=j) for j in (1, 5)]
    for seed in range(30):
        found = random_channels(8, own, 2, torch.Generator().manual_seed(seed))
        assert len(set(found)) == 2 and not {1, 5} & set(found)


def test_large_models_get_fewer_draws(tiny_model):
    anatomy = resolve(tiny_model("llama"))
    assert affordable_draws(anatomy, 10**3) == 19 and affordable_draws(anatomy, 10**13) == 5


def test_an_encoder_has_distances(tiny_model, planted):
    anatomy = resolve(tiny_model("bert", headless=True))
    ids = torch.randint(4, 90, (6, 10), generator=torch.Generator().manual_seed(0))
    batch = type(planted("llama", 3).batches[0])(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(6))
    own = Carrier(0, "massive activation", 3, 1, None, 1, None, 10.0, 30.0, 5.0)
    places = Places([{0: torch.arange(0, 60, 10)}], [torch.tensor([4])])
    judge = Judge(anatomy)
    found = measure_effects(anatomy, [batch], [own], places, [], Sinks({1: frozenset({0})}), judge, draws=2)
    assert {r["outcome"] for r in found["effects"]} == {
        "distance",
        "outlier",
        "sink mass",
        "value norm ratio",
    }
    row = pick(found["effects"], "birth", "zero", "distance")
    assert row["change"] > 0 and math.isfinite(row["low"]) and judge.note in found["notes"]


@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_family_can_be_changed_at_every_arm_and_is_left_as_it_was(name):
    anatomy = resolve(zoo.tiny(name))
    weights, num_layers = bits(anatomy.model), anatomy.dims.num_layers
    ids = torch.randint(4, 90, (6, 12), generator=torch.Generator().manual_seed(0))
    keep = torch.ones_like(ids, dtype=torch.bool)
    keep[2, 9:] = False
    keep[4, :3] = False
    own = [
        Carrier(0, "massive activation", 3, 1, 0, 0, None, 10.0, 30.0, 5.0),
        Carrier(1, "outlier channel", 5, -1, None, 0, num_layers - 1, 10.0, 30.0, 5.0),
    ]
    first = torch.tensor([0, 12, 24, 36, 51, 60])
    places = Places([{0: first, 1: keep.reshape(-1).nonzero()[:, 0]}], [torch.tensor([4])])
    sinks = Sinks({layer: frozenset({0}) for layer in anatomy.attention})
    batch = Batch(ids, keep, torch.arange(6))
    found = measure_effects(anatomy, [batch], own, places, [], sinks, Judge(anatomy), draws=1)
    rows = found["effects"]
    assert {r["group"] for r in rows} == {"birth", "dose", "path", "start", "sink", "removal"}
    assert all(math.isfinite(r["change"]) for r in rows)
    for r in rows:
        if r["arm"] == "outlier x 1":
            assert abs(r["change"]) < 1e-6, r
        if r["arm"] == "zero in every block" and r["outcome"] == "outlier":
            assert abs(r["value"]) < 1e-6, r
    assert same_bits(anatomy.model, weights)
