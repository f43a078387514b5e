"""The decomposition of an outlier's growth against direct recomputation, float64 models, and planted neurons."""

from dataclasses import replace

import pytest
import torch
import zoo

from skerry.anatomy import Site, resolve, watch
from skerry.anatomy.model import run
from skerry.causes.carrier import Carrier, Places
from skerry.causes.gather import Gathered, gather
from skerry.causes.growth import decompose, growth_sites
from skerry.corpus.batch import Batch
from skerry.run.tables import from_rows

AT = torch.tensor([0, 3, 7, 12, 15, 20, 25, 31, 36, 40])
OTHER = torch.tensor([1, 2, 5, 8, 13, 16, 21, 26, 33, 37, 41, 44])
LENGTH, NUM_SAMPLES, CHANNEL = 12, 4, 5
# A norm that follows the sublayer or the sum makes an entry's effect on the output unlike its term.
NORMED = ["gemma2", "gemma3", "olmo2", "olmo3", "glm4", "opt_350m", *zoo.ENCODERS]


def carrier(channel=CHANNEL, birth=0, exit=None):
    return Carrier(0, "massive activation", channel, 1, birth, birth or 0, exit, 100.0, 1000.0, 50.0)


def everything(anatomy, ids, sites, at=AT, other=OTHER):
    """What `gather` collects, in the model's own precision."""
    wanted, found = set(sites), {}
    num = ids.numel()

    def look(site, x, rows):
        whole = torch.full((num, x.shape[1]), torch.nan, dtype=x.dtype)
        whole[torch.arange(num) if rows is None else rows] = x
        found[site] = whole

    with watch(anatomy, {s.part for s in wanted}, on_activation=look):
        run(anatomy, ids)
    some = {
        s: found[o] for s in wanted if (o := anatomy.same_as.get(s, s)) in found
    }  # experts without a token are missing
    return Gathered(
        {s: x[at] for s, x in some.items()},
        at // ids.shape[1],
        {s: x[other] for s, x in some.items()},
        other // ids.shape[1],
        ids_at=ids.flatten()[at],
        positions_at=at % ids.shape[1],
    )


def inputs(model, *, same=False):
    """Random tokens; on demand those in AT are all one token, so that a neuron can be made to know them."""
    ids = zoo.tokens(model, num_samples=NUM_SAMPLES, length=LENGTH)[0]
    if same:
        ids.view(-1)[AT] = 7
    return ids


def grown(name, layer=0, event="birth", **options):
    model = zoo.tiny(name, dtype=torch.float64, **options)
    anatomy = resolve(model)
    ids = inputs(model)
    c = carrier(birth=layer) if event == "birth" else carrier(birth=0, exit=layer)
    at = carrying(anatomy, ids, layer)
    gathered = everything(anatomy, ids, growth_sites(anatomy, layer), at=at)
    return anatomy, ids, gathered, decompose(anatomy, c, event, gathered)


def carrying(anatomy, ids, layer, num=10):
    """The tokens whose channel a block moves most, in its usual direction: like an outlier's, they have one sign."""
    every = torch.arange(ids.numel())
    at = everything(anatomy, ids, [Site(layer or 0, "resid.in"), Site(layer or 0, "resid.out")], at=every).at
    before, after = (at[Site(layer or 0, part)][:, CHANNEL] for part in ("resid.in", "resid.out"))
    raised = before if layer is None else after - before
    raised = raised * raised.sum().sign()
    return raised.topk(min(num, int((raised > 0).sum()))).indices.sort().values


def at_of(gathered):
    return gathered.sample_at * LENGTH + gathered.positions_at


def rows(result, level, **wanted):
    return [r for r in result["growth"] if r["level"] == level and all(r[k] == v for k, v in wanted.items())]


def hidden(anatomy, ids, at):
    with torch.no_grad():
        return [h.flatten(0, 1)[at] for h in anatomy.trunk(ids, output_hidden_states=True).hidden_states]


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", zoo.NAMES)
def test_shares_add_up_in_every_family(name, layer):
    anatomy, ids, gathered, result = grown(name, layer)
    at = gathered.at
    change = (at[Site(layer, "resid.out")] - at[Site(layer, "resid.in")])[:, CHANNEL].mean()
    block = rows(result, "block")
    assert sum(r["value"] for r in block) == pytest.approx(float(change), rel=1e-9)
    assert sum(r["share"] for r in block) == pytest.approx(1, rel=1e-9)
    (left,) = rows(result, "block", part="unexplained")
    # transformers computes RMSNorm in float32, whatever the model's type.
    assert abs(left["share"]) < (1e-6 if name in NORMED else 1e-9)
    shares = {r["part"]: r["share"] for r in block}
    for level, part in (("neuron", "mlp.out"), ("head", "attn.out"), ("expert", "mlp.out")):
        found = rows(result, level)
        assert found or level == "expert"
        if found:
            assert sum(r["share"] for r in found) == pytest.approx(shares[part], rel=1e-6)
    assert not any("add up" in note or "no sum" in note for note in result["notes"])
    for table in ("growth", "factors", "growth_weights", "units"):
        from_rows(table, result[table])
    assert sum(r["best"] for r in result["units"]) == 1


@pytest.mark.parametrize("name", [n for n in zoo.DECODERS if n not in NORMED])
def test_a_neuron_contributes_what_its_entry_adds_to_the_output(name):
    anatomy, ids, gathered, result = grown(name)
    before = everything(anatomy, ids, [Site(0, "resid.out")], at=at_of(gathered)).at[Site(0, "resid.out")]
    for row in rows(result, "neuron", part="mlp.out")[:3]:
        weight = anatomy.weight(Site(0, "w.down", row["expert"]))
        with torch.no_grad():
            old = weight[CHANNEL, row["index"]].clone()
            weight[CHANNEL, row["index"]] = 0
            after = everything(anatomy, ids, [Site(0, "resid.out")], at=at_of(gathered)).at[
                Site(0, "resid.out")
            ]
            weight[CHANNEL, row["index"]] = old
        assert float((before - after)[:, CHANNEL].mean()) == pytest.approx(row["value"], rel=1e-9)
        rest = torch.arange(before.shape[1]) != CHANNEL
        torch.testing.assert_close(before[:, rest], after[:, rest])


@pytest.mark.parametrize("name", [n for n in zoo.DECODERS if n not in NORMED])
def test_a_head_contributes_what_its_row_of_the_output_projection_adds(name):
    anatomy, ids, gathered, result = grown(name, layer=1)
    size = anatomy.dims.head_dim
    mix = gathered.at[Site(1, "attn.mix")]
    factor = 0.22 if name == "granite" else 1.0
    for row in rows(result, "head", part="attn.out"):
        here = slice(row["index"] * size, (row["index"] + 1) * size)
        naive = factor * mix[:, here] @ anatomy.weight(Site(1, "w.o"))[CHANNEL, here]
        assert row["value"] == pytest.approx(float(naive.mean()), rel=1e-9)
    assert len(rows(result, "head", part="attn.out")) == anatomy.dims.num_heads


def test_block_shares_are_those_of_the_hidden_states():
    anatomy, ids, gathered, result = grown("llama", layer=0)
    states = hidden(anatomy, ids, at_of(gathered))
    change = (states[1] - states[0])[:, CHANNEL]
    attention = gathered.at[Site(0, "attn.out")][:, CHANNEL]
    (row,) = rows(result, "block", part="attn.out")
    assert row["share"] == pytest.approx(float(attention.sum() / change.sum()), rel=1e-9)
    assert row["low"] <= row["share"] <= row["high"]


@pytest.mark.parametrize("name", ["gemma2", "olmo2"])
def test_a_norm_behind_the_sublayer_scales_each_neuron(name):
    anatomy, ids, gathered, result = grown(name)
    x, a = gathered.at[Site(0, "mlp.out")], gathered.at[Site(0, "mlp.down.in")]
    gain = anatomy.weight(Site(0, "norm.mlp.add"))[CHANNEL]
    factor = gain / (x.square().mean(1) + anatomy.config.rms_norm_eps).sqrt()
    row = rows(result, "neuron", part="mlp.out")[0]
    naive = factor * a[:, row["index"]] * anatomy.weight(Site(0, "w.down"))[CHANNEL, row["index"]]
    assert row["value"] == pytest.approx(float(naive.mean()), rel=1e-6)
    assert "centre" not in {r["part"] for r in rows(result, "block")}


def test_a_post_norm_block_is_its_two_layer_norms_written_out():
    anatomy, ids, gathered, result = grown("bert")
    at = {s.part: x for s, x in gathered.at.items()}
    eps = anatomy.config.layer_norm_eps

    def norm(part, x):
        mean = x.mean(1)
        sigma = (x.var(1, correction=0) + eps).sqrt()
        return (
            anatomy.weight(Site(0, part))[CHANNEL] / sigma,
            mean,
            anatomy.weight(Site(0, part + ".bias"))[CHANNEL],
        )

    s1, m1, b1 = norm("norm.attn.resid", at["resid.in"] + at["attn.out"])
    s2, m2, b2 = norm("norm.mlp.resid", at["resid.mid"] + at["mlp.out"])
    naive = {
        "norm gain": (s1 * s2 - 1) * at["resid.in"][:, CHANNEL],
        "attn.out": s1 * s2 * at["attn.out"][:, CHANNEL],
        "mlp.out": s2 * at["mlp.out"][:, CHANNEL],
        "norm bias": s2 * b1 + b2,
        "centre": -s1 * s2 * m1 - s2 * m2,
    }
    for part, values in naive.items():
        (row,) = rows(result, "block", part=part)
        assert row["value"] == pytest.approx(float(values.mean()), rel=1e-7)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_experts_count_with_the_weight_that_the_router_gives(name):
    anatomy, ids, gathered, result = grown(name)
    logits = {}
    with watch(anatomy, ["mlp.router"], on_activation=lambda s, x, r: logits.__setitem__(s.layer, x)):
        run(anatomy, ids)
    if name == "gpt_oss":
        naive = logits[0].topk(2, -1)
        weights = torch.zeros_like(logits[0]).scatter(1, naive.indices, naive.values.softmax(-1))
    else:
        probs = logits[0].softmax(-1)
        naive = probs.topk(2, -1)
        kept = naive.values / naive.values.sum(-1, keepdim=True) if name == "mixtral" else naive.values
        weights = torch.zeros_like(probs).scatter(1, naive.indices, kept)
    for row in rows(result, "expert", part="mlp.out"):
        if row["expert"] < 4:
            out = gathered.at[Site(0, "mlp.out", row["expert"])][:, CHANNEL].nan_to_num()
            value = float((weights[at_of(gathered), row["expert"]] * out).mean())
            assert row["value"] == pytest.approx(value, rel=1e-6)


def plant(anatomy, layer, neuron, ids, *, spread=False, expert=None):
    """A neuron that fires at the carrier's tokens, its gate and up rows along what these tokens have in common."""
    weight = {
        p: anatomy.weight(Site(layer, p, expert))
        for p in ("w.gate", "w.up", "w.down")
        if Site(layer, p, expert) in anatomy.matrices
    }
    x = everything(anatomy, ids, [Site(layer, "mlp.in")]).at[Site(layer, "mlp.in")].mean(0)
    with torch.no_grad():
        for part in ("w.gate", "w.up"):
            if part in weight:
                weight[part][neuron] = 20 * x / x.norm()
        weight["w.down"][:, neuron] = 30.0 if spread else 0.0
        weight["w.down"][CHANNEL, neuron] = 40.0


def planted_neuron(name, *, layer=1, neuron=17, spread=False):
    model = zoo.tiny(name, dtype=torch.float64)
    anatomy = resolve(model)
    ids = inputs(model, same=True)
    plant(anatomy, layer, neuron, ids, spread=spread)
    gathered = everything(anatomy, ids, growth_sites(anatomy, layer))
    return anatomy, gathered, decompose(anatomy, carrier(birth=layer), "birth", gathered)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox", "granite"])
def test_a_planted_entry_is_the_super_weight(name):
    anatomy, gathered, result = planted_neuron(name)
    (weight,) = result["growth_weights"]
    assert (weight["layer"], weight["row"], weight["column"], weight["rank"]) == (1, CHANNEL, 17, 0)
    assert weight["value"] == 40.0
    assert weight["share"] == pytest.approx(1, abs=0.1)
    (best,) = [r for r in result["units"] if r["best"]]
    assert (best["unit"], best["index"], best["part"], best["count"]) == ("weight", 17, "mlp.out", 1)
    top = rows(result, "neuron", part="mlp.out")[0]
    assert top["index"] == 17
    assert top["low"] <= top["share"] <= top["high"]


def test_a_neuron_that_writes_many_channels_is_named_and_not_its_entry():
    _, _, result = planted_neuron("llama", spread=True)
    (best,) = [r for r in result["units"] if r["best"]]
    assert (best["unit"], best["index"]) == ("neuron", 17)
    shares = {r["unit"]: r["share"] for r in result["units"]}
    assert shares["weight"] == shares["neuron"]


@pytest.mark.parametrize("all_neurons", [False, True])
def test_a_planted_expert_is_named_by_its_number(all_neurons):
    model = zoo.tiny("mixtral", dtype=torch.float64)
    anatomy, ids = resolve(model), inputs(model, same=True)
    sites = growth_sites(anatomy, 1)
    before = everything(anatomy, ids, sites).at
    passed = [
        int(before[s].isfinite().all(1).sum()) if (s := Site(1, "mlp.out", e)) in before else 0
        for e in range(4)
    ]
    expert = passed.index(max(passed))
    if all_neurons:
        mean = before[Site(1, "mlp.down.in", expert)].nan_to_num().mean(0)
        with torch.no_grad():
            anatomy.weight(Site(1, "w.down", expert))[CHANNEL] = 40 * mean.sign()
    else:
        plant(anatomy, 1, 17, ids, expert=expert)
    result = decompose(anatomy, carrier(birth=1), "birth", everything(anatomy, ids, sites))
    (best,) = [r for r in result["units"] if r["best"]]
    assert best["expert"] == expert
    assert (best["unit"], best["index"]) == (("expert", None) if all_neurons else ("weight", 17))
    if not all_neurons:
        assert (result["growth_weights"][0]["expert"], result["growth_weights"][0]["column"]) == (expert, 17)
        assert {r["expert"] for r in result["factors"]} == {expert}


def test_factors_of_a_planted_gated_neuron_are_both_aligned():
    anatomy, gathered, result = planted_neuron("llama")
    factors = {r["factor"]: r for r in result["factors"] if r["neuron"] == 17}
    assert list(factors) == ["norm", "gate", "act(gate)", "up", "product", "weight"]
    at, other = gathered.at, gathered.other
    x, down = at[Site(1, "mlp.in")], at[Site(1, "mlp.down.in")][:, 17]
    assert factors["norm"]["value"] == pytest.approx(float(x.norm(dim=1).mean()))
    assert factors["product"]["value"] == pytest.approx(float(down.mean()))
    assert factors["product"]["other"] == pytest.approx(
        float(other[Site(1, "mlp.down.in")][:, 17].abs().mean())
    )
    gate = torch.nn.functional.silu(at[Site(1, "mlp.gate")][:, 17])
    assert factors["act(gate)"]["value"] == pytest.approx(float(gate.mean()))
    for name in ("gate", "up"):
        row = anatomy.weight(Site(1, f"w.{name}"))[17]
        cosine = x @ row / x.norm(dim=1) / row.norm()
        assert factors[name]["alignment"] == pytest.approx(float(cosine.mean()))
        assert factors[name]["alignment"] > 0.7 > factors[name]["alignment_other"]
    assert factors["weight"]["value"] == 40.0
    shares = [factors[name]["log_share"] for name in ("act(gate)", "up")]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0.2


def test_factors_of_a_plain_neuron_have_no_gate():
    _, _, result = planted_neuron("gpt2")
    factors = {r["factor"]: r for r in result["factors"] if r["neuron"] == 17}
    assert list(factors) == ["norm", "up", "product", "weight"]
    assert all(r["log_share"] is None for r in factors.values())


def test_growth_by_attention_names_a_head_and_no_super_weight():
    model = zoo.tiny("llama", dtype=torch.float64)
    anatomy = resolve(model)
    ids = inputs(model)
    ids.view(-1)[:] = 7
    mix = everything(anatomy, ids, [Site(1, "attn.mix")]).at[Site(1, "attn.mix")].mean(0)
    with torch.no_grad():
        anatomy.weight(Site(1, "w.o"))[CHANNEL, 16:24] = 500 * mix[16:24]
    gathered = everything(anatomy, ids, growth_sites(anatomy, 1))
    result = decompose(anatomy, carrier(birth=1), "birth", gathered)
    assert result["growth_weights"] == []
    assert any(
        "attention carries most of it" in note and "no super weight" in note for note in result["notes"]
    )
    (best,) = [r for r in result["units"] if r["best"]]
    assert (best["unit"], best["index"], best["part"]) == ("head", 2, "attn.out")


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma2", "bert", "granite"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_all_that_a_narrow_type_leaves_unexplained(name, dtype):
    model = zoo.tiny(name, dtype=dtype)
    anatomy, ids = resolve(model), inputs(model)
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(NUM_SAMPLES))
    sites, places = growth_sites(anatomy, 1), Places([{0: carrying(anatomy, ids, 1)}], [OTHER])
    result = decompose(anatomy, carrier(birth=1), "birth", gather(anatomy, [batch], places, 0, sites))
    (left,) = rows(result, "block", part="unexplained")
    assert abs(left["share"]) < (1e-4 if dtype == torch.float32 else 0.1)
    assert not any("add up" in note or "no sum" in note for note in result["notes"])


def test_a_sum_that_is_no_sum_is_said():
    model = zoo.tiny("bloom", dtype=torch.float64, apply_residual_connection_post_layernorm=True)
    anatomy, ids = resolve(model), inputs(model)
    gathered = everything(anatomy, ids, growth_sites(anatomy, 0), at=carrying(anatomy, ids, 0))
    result = decompose(anatomy, carrier(), "birth", gathered)
    assert any(
        "is no sum of what attention, feed-forward and norms write" in note for note in result["notes"]
    )
    assert sum(r["share"] for r in rows(result, "block")) == pytest.approx(1)


def test_an_exit_has_no_growth_weights():
    _, _, _, result = grown("llama", layer=1, event="exit")
    assert result["growth_weights"] == []
    assert {r["event"] for t in ("growth", "units") for r in result[t]} == {"exit"}


def test_an_outlier_that_stays_has_no_exit():
    anatomy, _, gathered, _ = grown("llama")
    result = decompose(anatomy, carrier(), "exit", gathered)
    assert result["growth"] == []
    assert result["notes"] == ["outlier 0 stays to the end: no block takes it away"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("llama", {"w.embed"}),
        ("gemma", {"w.embed"}),
        ("granite", {"w.embed"}),
        ("gpt2", {"w.embed", "w.position"}),
        ("opt", {"w.embed", "w.position"}),
        ("bloom", {"w.embed", "norm bias", "centre"}),
        ("bert", {"w.embed", "w.position", "w.type", "norm bias", "centre"}),
        ("roberta", {"w.embed", "w.position", "w.type", "norm bias", "centre"}),
        ("distilbert", {"w.embed", "w.position", "norm bias", "centre"}),
    ],
)
def test_an_outlier_of_the_embedding_is_split_into_its_tables(name, parts):
    anatomy, ids, gathered, result = grown(name, layer=None)
    block = {r["part"]: r for r in rows(result, "block")}
    assert set(block) == parts | {"unexplained"}
    assert abs(block["unexplained"]["share"]) < 1e-9
    assert sum(r["share"] for r in block.values()) == pytest.approx(1)
    total = float(gathered.at[Site(0, "resid.in")][:, CHANNEL].mean())
    assert sum(r["value"] for r in block.values()) == pytest.approx(total)
    if name in ("gpt2", "opt"):
        table = anatomy.weight(Site(None, "w.position"))
        offset = 2 if name == "opt" else 0
        naive = table[gathered.positions_at + offset][:, CHANNEL].mean()
        assert block["w.position"]["value"] == pytest.approx(float(naive))
    (unit,) = result["units"]
    assert (unit["unit"], unit["best"], unit["layer"]) == ("sublayer", True, None)
    from_rows("units", result["units"])


def test_an_embedding_without_known_tokens_says_so():
    anatomy, _, gathered, _ = grown("gpt2", layer=None)
    bare = Gathered(gathered.at, gathered.sample_at, gathered.other, gathered.sample_other)
    result = decompose(anatomy, carrier(birth=None), "birth", bare)
    assert any("its tokens are not known" in note for note in result["notes"])
    assert [r["part"] for r in result["growth"]] == ["unexplained"]


def test_tokens_that_are_not_finite_are_left_out_and_counted():
    anatomy, _, gathered, result = grown("llama")
    at = {s: x.clone() for s, x in gathered.at.items()}
    at[Site(0, "mlp.down.in")][2] = torch.nan
    broken = Gathered(at, gathered.sample_at, gathered.other, gathered.sample_other)
    some = decompose(anatomy, carrier(), "birth", broken)
    keep = torch.arange(len(AT)) != 2
    expected = decompose(
        anatomy,
        carrier(),
        "birth",
        Gathered(
            {s: x[keep] for s, x in gathered.at.items()},
            gathered.sample_at[keep],
            gathered.other,
            gathered.sample_other,
        ),
    )
    assert some["growth"] == expected["growth"]
    assert "1 tokens are not finite" in some["notes"][0]


def test_no_carrying_token_gives_no_number():
    anatomy, _, gathered, _ = grown("llama")
    none = Gathered(
        {s: x[:0] for s, x in gathered.at.items()}, gathered.sample_at[:0], {}, gathered.sample_other[:0]
    )
    result = decompose(anatomy, carrier(), "birth", none)
    assert result["growth"] == [] and "no token carries it" in result["notes"][0]


def test_a_change_without_a_sign_gets_no_share():
    model = zoo.tiny("llama", dtype=torch.float64)
    anatomy, ids = resolve(model), inputs(model)
    gathered = everything(anatomy, ids, growth_sites(anatomy, 0), at=torch.arange(ids.numel()))
    at = {s: x.clone() for s, x in gathered.at.items()}
    out = at[Site(0, "resid.out")]
    out[:, CHANNEL] = at[Site(0, "resid.in")][:, CHANNEL] + (-1.0) ** torch.arange(len(out)) * (1 + 1e-3)
    out[0, CHANNEL] += 1
    result = decompose(anatomy, carrier(), "birth", replace(gathered, at=at))
    assert result["growth"] == result["units"] == []
    assert result["notes"] == [
        "outlier 0 (channel 5), birth: the change there is not clearly different from 0"
    ]


def test_a_single_input_has_no_interval():
    model = zoo.tiny("llama", dtype=torch.float64)
    anatomy, ids = resolve(model), inputs(model)
    gathered = everything(anatomy, ids, growth_sites(anatomy, 0), at=torch.tensor([2, 4]))
    result = decompose(anatomy, carrier(), "birth", gathered)
    assert all(r["low"] is None and r["high"] is None for r in result["growth"])


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt"])
def test_a_planted_life_has_its_entries_at_birth_and_exit(planted, model_type, seed):
    chain = planted(model_type, seed)
    c = carrier(chain.channel, birth=chain.birth_layer, exit=chain.exit_layer)
    others = [torch.arange(b.input_ids.numel())[3::7] for b in chain.batches]
    places = Places([{0: rows} for rows in chain.carried], others)
    for event, layer, entries in (
        ("birth", chain.birth_layer, chain.entries),
        ("exit", chain.exit_layer, chain.exit_entries),
    ):
        sites = growth_sites(chain.anatomy, layer)
        gathered = gather(chain.anatomy, chain.batches, places, 0, sites)
        result = decompose(chain.anatomy, c, event, gathered)
        (best,) = [r for r in result["units"] if r["best"]]
        assert (best["unit"], best["index"], best["count"]) == ("weight", entries[0][1], 1)
        assert best["share"] == pytest.approx(1, abs=0.1)
        if event == "birth":
            assert [(r["row"], r["column"]) for r in result["growth_weights"]] == entries
        block = {r["part"]: r for r in rows(result, "block")}
        assert abs(block["unexplained"]["share"]) < 1e-4
        assert not any("add up" in n or "no sum" in n for n in result["notes"])
