"""What outliers do after the norm, against a slow recomputation in float64 from whole activations, and where the truth is planted."""

import math

import numpy as np
import pytest
import strangers
import torch
import zoo

from skerry.anatomy import resolve
from skerry.anatomy.sites import Site
from skerry.anatomy.watch import capture
from skerry.causes import spread_logits
from skerry.causes.bootstrap import bootstrap
from skerry.causes.carrier import Carrier, Places
from skerry.causes.sinks import Sinks
from skerry.causes.spread import MEASURES, measure_spread
from skerry.causes.spread_numbers import constancy_interval, mean_interval, ratio_interval
from skerry.causes.spread_vectors import difference_elsewhere, natural_directions, participation_ratio
from skerry.corpus.batch import Batch
from skerry.run.tables import from_rows

from .spread_naive import Naive, naive_shares


def carrier(number=0, kind="massive activation", birth=None, end=None):
    return Carrier(number, kind, 3, 1, birth, 0, end, 100.0, 1000.0, 50.0)


def text(model, *, padding=None, carried=((0, 4, 13, 24), (0, 12, 30)), length=12):
    """Two batches of three inputs; the flat tokens that carry outlier 0, those that are padding left out; all others to compare."""
    batches = [
        Batch(*zoo.tokens(model, num_samples=3, length=length, seed=i, padding=padding), torch.arange(3) + 3 * i)
        for i in range(2)
    ]  # fmt: skip
    at = [
        torch.tensor([t for t in c if b.keep.flatten()[t]], dtype=torch.int64)
        for b, c in zip(batches, carried, strict=True)
    ]
    others = [
        torch.tensor(
            [t for t in range(1, 3 * length, 5) if t not in c and b.keep.flatten()[t]], dtype=torch.int64
        )
        for b, c in zip(batches, at, strict=True)
    ]
    return batches, Places([{0: t} for t in at], others)


def spread(anatomy, batches, places, carriers=None, sinks=None):
    return measure_spread(
        anatomy, batches, [carrier()] if carriers is None else list(carriers), places, sinks or Sinks()
    )


def values(found, measure, key="value"):
    return {(r["layer"], r["head"]): r[key] for r in found["spread"] if r["measure"] == measure}


def close(a, b, rel=2e-4):
    return a == pytest.approx(b, rel=rel, abs=2e-5)


@pytest.mark.parametrize(
    ("name", "padding"),
    [("llama", "left"), ("bert", "left"), ("bert", None), ("gpt2", None), ("gemma2", "left"), ("gpt_oss", "right"), ("falcon_7b", None), ("bloom", "left"), ("mpnet", None)],
)  # fmt: skip
def test_measures_of_one_forward_agree_with_a_slow_recomputation(name, padding, tiny_model):
    anatomy = resolve(tiny_model(name))
    batches, places = text(anatomy.model, padding=padding)
    found, naive = spread(anatomy, batches, places), Naive(anatomy, batches, places)
    heads = range(anatomy.dims.num_heads)
    for layer in range(anatomy.dims.num_layers):
        for measure, truth in (("participation ratio", naive.participation), ("constancy", naive.constancy)):
            for which, key in enumerate(("value", "other")):
                assert close(values(found, measure, key)[layer, None], truth(layer, which)), (measure, key)
        for head in heads:
            assert close(values(found, "attention mass")[layer, head], naive.mass(layer, head))
            assert close(values(found, "attention mass", "other")[layer, head], naive.mass(layer, head, True))
            assert close(values(found, "value norm ratio")[layer, head], naive.value_ratio(layer, head))
            assert close(values(found, "reach")[layer, head], naive.reach(layer, [head]))
            assert close(values(found, "reach", "other")[layer, head], naive.reach(layer, [head], rest=True))
        assert close(values(found, "reach")[layer, None], naive.reach(layer, heads))
        assert close(values(found, "reach", "other")[layer, None], naive.reach(layer, heads, rest=True))
        for measure in ("attention mass", "value norm ratio"):
            by_head = [values(found, measure)[layer, h] for h in heads]
            assert close(values(found, measure)[layer, None], np.mean(by_head))
    from_rows("spread", found["spread"])


# OLMo clips after the projection, Qwen 3 has a key norm, Gemma 2 a cap, Falcon a fused projection, BLOOM distances.
KINDS = ["llama", "bert", "gemma2", "qwen3", "olmo", "falcon_40b", "bloom", "gpt_oss"]


@pytest.mark.parametrize("name", KINDS)
def test_the_share_of_the_logit_agrees_with_one_forward_per_layer_and_input(name, tiny_model, monkeypatch):
    anatomy = resolve(tiny_model(name))
    batches, places = text(anatomy.model, padding="right")
    truth = naive_shares(anatomy, batches, places)
    kept = {}
    rows = spread_logits.LogitReader.rows
    monkeypatch.setattr(
        spread_logits.LogitReader, "rows", lambda self, seed: kept.update(self.found) or rows(self, seed=seed)
    )
    found = spread(anatomy, batches, places)
    for layer in range(anatomy.dims.num_layers):
        got = kept[layer]
        for i, series in enumerate((got.level, got.whole, got.without)):
            np.testing.assert_allclose(series, truth[layer][:, :, i], rtol=2e-3, atol=1e-4)
        assert np.isfinite(got.without_other).all() and (got.without_other != got.without).all()
    for (layer, head), share in values(found, "logit share").items():
        if head is not None:
            level, whole, without = truth[layer][:, head].sum(0)
            assert level > 0
            assert close(share, 1 - without / whole, 5e-3)


def test_only_the_keys_of_carriers_see_less_and_every_block_sees_the_untouched_stream(
    tiny_model, monkeypatch
):
    anatomy = resolve(tiny_model("llama", num_hidden_layers=4))
    batches, places = text(anatomy.model)
    logits = {}
    read = spread_logits.LogitReader._attention

    def keep(self, view):
        logits.setdefault(view.layer, []).append(spread_logits.blocks(view).__next__().logits.clone())
        read(self, view)

    monkeypatch.setattr(spread_logits.LogitReader, "_attention", keep)
    spread(anatomy, batches, places)
    for i, batch in enumerate(batches):
        clean = capture(anatomy, batch.input_ids)
        at = (
            torch.zeros_like(batch.keep)
            .flatten()
            .index_fill(0, places.carried[i][0], True)
            .reshape(batch.keep.shape)
        )
        for layer in range(4):
            for copy in logits[layer][i].chunk(3):
                seen = at[:, None, None].expand_as(copy)
                torch.testing.assert_close(
                    copy[~seen], clean[Site(layer, "attn.logits")][~seen], rtol=1e-4, atol=1e-4
                )
            changed = logits[layer][i].chunk(3)[1][seen] - clean[Site(layer, "attn.logits")][seen]
            assert changed[changed.isfinite()].abs().max() > 0.1
    # and nothing stays behind
    assert torch.equal(
        capture(anatomy, batches[1].input_ids)[Site(3, "resid.out")], clean[Site(3, "resid.out")]
    )


def test_a_participation_ratio_counts_channels():
    x = torch.zeros(5, 48)
    x[0, 7], x[1], x[2, :6] = -3.0, 0.5, 2.0
    x[3, 0], x[3, 1] = 4.0, 1e-6
    ratio = participation_ratio(x)
    assert ratio[:4].tolist() == pytest.approx([1.0, 48.0, 6.0, 1.0]) and ratio[4].isnan()


def test_constancy_of_constant_orthogonal_and_random_directions():
    one = np.eye(6)[[2, 2, 2, 2]]
    assert constancy_interval(one, seed=0) == pytest.approx((1.0, 1.0, 1.0))
    assert constancy_interval(np.eye(6), seed=0) == pytest.approx((0.0, 0.0, 0.0))
    rng = np.random.default_rng(0)
    hits, truth = 0, 0.25
    for trial in range(200):
        x = np.concatenate([np.full((40, 1), 0.5), rng.standard_normal((40, 5)) / 6], axis=1)
        got = constancy_interval(x, seed=trial)
        hits += got.low <= truth <= got.high
    assert hits >= 180
    for few in (one[:1], np.full((3, 2), np.nan)):
        assert math.isnan(constancy_interval(few, seed=0).value)


def test_intervals_are_those_of_the_shared_bootstrap():
    rng = np.random.default_rng(1)
    x = rng.standard_normal(30)
    x[4] = np.nan
    assert mean_interval(x, seed=3) == bootstrap(x, seed=3)
    weights = 1 + rng.random(30)
    assert ratio_interval(x * weights, weights, seed=3)[1:] != bootstrap(x, seed=3)[1:]
    whole = ratio_interval(x[:4] * weights[:4], weights[:4], seed=3)
    assert whole == pytest.approx(bootstrap(x[:4], weights[:4], seed=3))
    assert math.isnan(ratio_interval(x, -weights, seed=3).value)


def test_a_direction_leaves_its_own_input_out():
    at = torch.cat([3 * torch.eye(3), torch.full((1, 3), torch.nan)])
    other = torch.tensor([[1.0, 1.0, 1.0], [torch.nan] * 3, [3.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    found = difference_elsewhere(at, other)
    torch.testing.assert_close(found.others[:, 0], torch.tensor([2.5, 2.0, 1.5, 2.0]))
    for i, others in enumerate([2.5, 2.0, 1.5, 2.0]):
        d = torch.stack([at[j] for j in range(3) if j != i]).mean(0) - others
        torch.testing.assert_close(found.direction[i], d / d.norm())
    assert difference_elsewhere(at[:1], other[:1]).direction.isnan().all()
    drawn = natural_directions(torch.cat([other, other + torch.randn(4, 3)]), seed=1)
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(8))
    assert natural_directions(other[:2], seed=0).isnan().all()


@torch.no_grad()
def test_keys_that_read_one_constant_direction_owe_their_logit_to_it(tiny_model, monkeypatch):
    """Token 5 stands first: all carriers have one attn.in in block 0, and queries ask for what the keys read of it."""
    anatomy = resolve(tiny_model("gpt2"))
    anatomy.model.transformer.wpe.weight.zero_()
    generator = torch.Generator().manual_seed(0)
    batches = [Batch(torch.randint(10, 90, (8, 32), generator=generator), torch.ones(8, 32, dtype=torch.bool), torch.arange(8) + 8 * i) for i in range(2)]  # fmt: skip
    for b in batches:
        b.input_ids[:, 0] = 5
    first = torch.arange(0, 256, 32)
    places = Places([{0: first}, {0: first}], [torch.arange(256)[torch.arange(256) % 32 > 0]] * 2)
    x = torch.cat([capture(anatomy, b.input_ids, ["attn.in"])[Site(0, "attn.in")] for b in batches])
    d = x[0] - x[torch.arange(512) % 32 > 0].mean(0)
    d /= d.norm()
    asked = torch.randn(32, generator=generator)
    bias, key = anatomy.model.transformer.h[0].attn.c_attn.bias, anatomy.weight(Site(0, "w.k"))
    bias[:32] = 100 * asked
    key.copy_(key + 0.5 * asked[:, None] * d)
    found = spread(anatomy, batches, places)
    assert values(found, "constancy")[0, None] == pytest.approx(1.0, abs=1e-6)
    assert values(found, "constancy", "other")[0, None] < 0.9
    for head in (None, 0, 1, 2, 3):
        assert values(found, "logit share")[0, head] == pytest.approx(1.0, abs=0.1)
        assert values(found, "logit share", "other")[0, head] < 0.5
    # Keys that do not see the direction owe it nothing; they read what token 5 has beside it, and others less.
    aside = torch.linalg.svd(d[None]).Vh[1:]
    inputs = torch.cat([x[:1], x[torch.arange(512) % 32 > 0]]) @ aside.T
    want = torch.cat([torch.ones(1), torch.zeros(len(inputs) - 1)])
    key.copy_(asked[:, None] * (torch.linalg.lstsq(inputs, want[:, None]).solution[:, 0] @ aside))
    blind = {}
    rows = spread_logits.LogitReader.rows
    monkeypatch.setattr(
        spread_logits.LogitReader,
        "rows",
        lambda self, seed: blind.update(self.found) or rows(self, seed=seed),
    )
    spread(anatomy, batches, places)
    assert blind[0].without.sum(0) / blind[0].whole.sum(0) == pytest.approx([1.0] * 4, abs=0.1)


@pytest.mark.parametrize(("kind", "seed"), [("llama", 0), ("gpt2", 1), ("opt", 2)])
def test_a_planted_chain_spreads_as_the_papers_describe(kind, seed, planted):
    chain = planted(kind, seed)
    c = Carrier(0, "massive activation", chain.channel, chain.sign, chain.birth_layer, chain.birth_layer, chain.exit_layer, chain.value, 1e3, 50.0)  # fmt: skip
    others = [torch.arange(1, len(b.keep.flatten()), 7) for b in chain.batches]
    others = [o[~torch.isin(o, t)] for o, t in zip(others, chain.carried, strict=True)]
    found = spread(chain.anatomy, chain.batches, Places([{0: t} for t in chain.carried], others), [c])
    assert found["notes"] == []
    ratio, constancy = values(found, "participation ratio"), values(found, "constancy")
    for layer in range(chain.birth_layer + 1, (chain.exit_layer or 0) + 1):
        assert ratio[layer, None] < 2 < values(found, "participation ratio", "other")[layer, None]
        assert constancy[layer, None] > 0.99 > values(found, "constancy", "other")[layer, None]
    mass, uniform = values(found, "attention mass"), values(found, "attention mass", "other")
    share, low = values(found, "logit share"), values(found, "logit share", "low")
    for place in chain.sink_heads:
        assert mass[place] > 0.8 > uniform[place]
        assert share[place] > 0.9 and low[place] > 0.9
        assert values(found, "value norm ratio")[place] < 0.8
        assert values(found, "reach")[place] >= 0


def notes(found):
    return " ".join(found["notes"])


def test_nothing_to_follow_gives_no_rows_and_says_so(tiny_model):
    anatomy = resolve(tiny_model("llama"))
    batches, places = text(anatomy.model)
    everywhere = Places([{0: torch.arange(36)}, {0: torch.arange(36)}], places.others)
    for carriers, where in (
        ((), places),
        ((carrier(kind="outlier channel"),), everywhere),
        ((carrier(7),), places),
    ):
        found = spread(anatomy, batches, where, carriers)
        assert found["spread"] == [] and "nothing spreads" in notes(found)
    few = spread(anatomy, batches, places, [carrier(kind="outlier channel")])
    assert values(few, "attention mass")
    both = spread(anatomy, batches, places, [carrier(), carrier(1, kind="outlier channel")])
    assert both["spread"] == spread(anatomy, batches, places)["spread"]


def test_each_block_is_measured_at_the_carriers_that_are_alive_in_it(tiny_model):
    anatomy = resolve(tiny_model("llama", num_hidden_layers=4))
    batches, places = text(anatomy.model)
    two = Places([{0: p[0], 1: torch.tensor([7, 19, 31])} for p in places.carried], places.others)
    carriers = [carrier(0, birth=0, end=1), carrier(1, birth=None, end=1)]
    found = values(spread(anatomy, batches, two, carriers), "participation ratio")

    def alone(*numbers):
        which = Places([{0: p.any_of(i, numbers)} for i, p in ((0, two), (1, two))], two.others)
        return values(spread(anatomy, batches, which), "participation ratio")

    assert found[0, None] == alone(1)[0, None]
    assert found[1, None] == alone(0, 1)[1, None]
    assert found[2, None] == alone(0, 1)[2, None]  # none is alive: all of them


def test_one_token_and_one_input_say_what_cannot_be_measured(tiny_model):
    anatomy = resolve(tiny_model("llama"))
    single, places = text(anatomy.model, length=1, carried=((0, 1), (2,)))
    found = spread(anatomy, single, Places(places.carried, [torch.zeros(0, dtype=torch.int64)] * 2))
    assert {r["measure"] for r in found["spread"]} == {"participation ratio", "constancy"}
    assert all(r["other"] is None for r in found["spread"])
    assert "no token can see another one that carries" in notes(found)
    batches, places = text(anatomy.model, carried=((4,), ()))
    found = spread(anatomy, batches, places)
    assert {r["measure"] for r in found["spread"]} == set(MEASURES) - {"constancy", "logit share"}
    assert all(r["low"] is None and r["num_samples"] == 1 for r in found["spread"])
    assert "fewer than two inputs" in notes(found)


def test_every_family_is_measured_and_learned_sinks_are_told(tiny_model):
    for name in ("opt_350m", "gptj", "distilbert", "mixtral", "phi3"):
        anatomy = resolve(tiny_model(name))
        found = spread(anatomy, *text(anatomy.model, padding="right"))
        assert {r["measure"] for r in found["spread"]} == set(MEASURES), name
        assert found["notes"] == [], name
    anatomy = resolve(tiny_model("gpt_oss"))
    found = spread(anatomy, *text(anatomy.model), sinks=Sinks(learned=frozenset({0, 1})))
    assert "learned sink logits" in notes(found)


# Gated outputs and linear attention; keys that no projection writes alone; no attention at all.
@pytest.mark.parametrize(
    ("name", "missing", "said"),
    [
        ("qwen3_next", {"reach"}, "no attention that could be watched in block 0 spread: something lies between attention and its output"),
        ("deepseek_v3", {"logit share"}, "the keys cannot be changed in this model"),
        ("mamba", set(MEASURES), "the model has no attention that could be watched"),
    ],
)  # fmt: skip
def test_architectures_that_hide_something_are_measured_without_it(name, missing, said):
    model = strangers.stranger(name)
    anatomy = resolve(model)
    found = spread(anatomy, *text(model))
    assert missing & {r["measure"] for r in found["spread"]} == set() and said in notes(found)
    assert name == "mamba" or values(found, "attention mass")


def test_values_that_are_not_finite_are_left_out_and_told(tiny_model):
    anatomy = resolve(tiny_model("gpt2"))
    with torch.no_grad():
        anatomy.model.transformer.wte.weight[5] = math.nan
    batches, places = text(anatomy.model)
    for b in batches:
        b.input_ids[b.input_ids == 5] = 6
    clean = spread(anatomy, batches, places)
    batches[0].input_ids[1, 3] = 5
    found = spread(anatomy, batches, places)
    assert "not finite" in notes(found) and notes(clean) == ""
    assert values(found, "attention mass", "num_samples")[0, None] == 5
    assert all(math.isfinite(r["value"]) for r in found["spread"])


def test_small_blocks_and_few_inputs_change_nothing(tiny_model, monkeypatch):
    from skerry.causes import spread_attention, spread_text

    anatomy = resolve(tiny_model("gemma2"))
    batches, places = text(anatomy.model, padding="left")
    whole = spread(anatomy, batches, places)["spread"]
    monkeypatch.setattr(spread_attention.blocks, "__defaults__", (slice(None), 100))
    for a, b in zip(whole, spread(anatomy, batches, places)["spread"], strict=True):
        assert {k: a[k] for k in ("layer", "head", "measure")} == {
            k: b[k] for k in ("layer", "head", "measure")
        }
        assert a["value"] == pytest.approx(b["value"], rel=1e-4, abs=1e-5)
    monkeypatch.setattr(spread_text, "MOST_INPUTS", 4)
    few = spread(anatomy, *text(anatomy.model))["spread"]
    assert {r["num_samples"] for r in few if r["measure"] == "constancy"} == {4}
