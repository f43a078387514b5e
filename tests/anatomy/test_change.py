"""A change reaches exactly what reads the place, and leaves no trace."""

import copy
from dataclasses import replace

import pytest
import torch
import zoo
from leftovers import bits, same_bits, state
from strangers import stranger
from torch import nn

from skerry.anatomy import Anatomy, Site, resolve, watch
from skerry.anatomy.change import change, weight_entries
from skerry.anatomy.family import Family, Input, Matrix, Output
from skerry.anatomy.model import bind, run
from skerry.anatomy.splits import Dims
from skerry.errors import UnknownOption, UnknownSite

every_family = pytest.mark.parametrize("name", zoo.NAMES)
# One of each kind: separate, fused and transposed, interleaved, grouped, fused gate and up, gain + 1, experts, post-norm.
KINDS = ["llama", "gpt2", "gpt_neox", "falcon_40b", "phi3", "gemma", "gpt_oss", "qwen2_moe", "bert"]
every_kind = pytest.mark.parametrize("name", KINDS)
# What a block's places are made of, where a block has them; the first that exists of a row of alternatives.
READS = {
    "attn.in": [("resid.in",)],
    "attn.q": [("attn.in",)],
    "attn.k": [("attn.in",)],
    "attn.v": [("attn.in",)],
    "attn.mix": [("attn.q",), ("attn.k",), ("attn.v",)],
    "attn.out": [("attn.mix",)],
    "attn.add": [("attn.out",)],
    "resid.mid": [("resid.in",), ("attn.add", "attn.out")],
    "mlp.in": [("resid.mid", "resid.in")],
    "mlp.router": [("mlp.in",)],
    "mlp.gate": [("mlp.in",)],
    "mlp.up": [("mlp.in",)],
    "mlp.down.in": [("mlp.gate",), ("mlp.up",)],
    "mlp.out": [("mlp.down.in",)],
    "mlp.add": [("mlp.out",)],
}


def seen_in(anatomy: Anatomy, ids, edits=None, keep=None):
    """Every place as a forward shows it, the changed ones as they are read; and what the trunk gives."""
    found = {}
    # Every place on its own: a change parts places that are one tensor otherwise.
    apart = replace(anatomy, same_as={})
    with (
        change(anatomy, edits or {}),
        watch(apart, on_activation=lambda s, x, rows: found.__setitem__(s, x.clone())),
    ):
        last = run(anatomy, ids, keep).last_hidden_state
    return found, last


def parents(site, places):
    """What the place is made of, among the places that are looked at."""
    if site.part == "resid.in":
        return [s for s in [Site(site.layer - 1, "resid.out")] if s in places]
    if site.part == "head.in":
        return [max((s for s in places if s.part == "resid.out"), key=lambda s: s.layer)]
    have = {s.part for s in places if s.layer == site.layer}
    if site.part == "resid.out":
        adds = [("mlp.add", "mlp.out")]
        reads = (
            [("resid.mid",), *adds]
            if "resid.mid" in have
            else [("resid.in",), ("attn.add", "attn.out"), *adds]
        )
    elif site.part == "mlp.out" and "mlp.router" in have:
        reads = [("mlp.in",), ("mlp.router",), ("mlp.down.in",)]
    else:
        reads = READS[site.part]
    chosen = [next((p for p in row if p in have), None) for row in reads]
    return [Site(site.layer, part) for part in chosen if part is not None]


def expected_states(patched, places):
    """Of every place: is it still the old one ("old"), the other input's ("new"), or something between ("mixed")?"""
    status = {}
    for site in sorted(places):
        if site in patched:
            status[site] = "new"
            continue
        of = {status[p] for p in parents(site, places)}
        status[site] = of.pop() if len(of) == 1 else "mixed" if of else "old"
    return status


@every_family
def test_putting_another_inputs_values_somewhere_changes_exactly_what_reads_them(name):
    """Truth: two plain runs. What is made of patched places only equals the other run, what is made of none equals its own.

    All patches run at once: copy i of the input gets patch i.
    """
    anatomy = resolve(zoo.tiny(name, dtype=torch.float64))
    layer = anatomy.dims.num_layers - 2
    places = [s for s in anatomy.taps if s.expert is None and s.layer in (layer, layer + 1, None)]
    patches = [{s} for s in places if s.layer in (layer, None)]
    patches += [{Site(layer, p) for p in ("attn.q", "attn.k", "attn.v")}]
    patches += [{Site(layer, p) for p in ("mlp.gate", "mlp.up") if Site(layer, p) in places}]
    (ids, _), (others, _) = (zoo.tokens(anatomy.model, num_samples=1, seed=i) for i in (0, 1))
    old, old_last = seen_in(anatomy, ids.repeat(len(patches), 1))
    new, new_last = seen_in(anatomy, others.repeat(len(patches), 1))

    def edit(site):
        patched = torch.tensor([site in p for p in patches]).repeat_interleave(ids.shape[1])
        return lambda x, rows: torch.where(patched[:, None], new[site], x)

    seen, last = seen_in(anatomy, ids.repeat(len(patches), 1), {s: edit(s) for s in set().union(*patches)})
    # In float64 the order of sums is far below this, and every other difference far above.
    same = {
        s: {"old": far_apart(seen[s], old[s], len(patches)), "new": far_apart(seen[s], new[s], len(patches))}
        for s in places
    }
    for i, patch in enumerate(patches):
        for site, status in expected_states(patch, places).items():
            assert {k: bool(v[i] < 1e-11) for k, v in same[site].items()} == {
                "old": status == "old",
                "new": status == "new",
            }, f"{patch} -> {site} is not {status}"
    after = patches.index({Site(layer, "resid.out")})
    assert far_apart(last, new_last, len(patches))[after] < 1e-11


def far_apart(x, y, num):
    """Largest difference in each of the copies."""
    return (x - y).abs().reshape(num, -1).amax(1)


def far(x, rows):
    return x + 1.5


class Broken(Exception):
    pass


@every_kind
@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt])
def test_changes_of_every_place_leave_no_trace_however_they_end(name, error):
    model = zoo.tiny(name)
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    plain, before, weights = run(anatomy, ids).last_hidden_state, state(model), bits(model)
    edits = dict.fromkeys(anatomy.activation_sites, far)
    with pytest.raises(error), change(anatomy, edits), change(anatomy, edits):
        assert not torch.equal(run(anatomy, ids).last_hidden_state, plain)
        raise error
    assert state(model) == before

    def fail(x, rows):
        raise error

    # Some experts have no token.
    for broken in (s for s in seen_in(anatomy, ids)[0] if s.layer == 0):
        with pytest.raises(error), change(anatomy, {broken: fail}):
            run(anatomy, ids)
    assert state(model) == before
    assert same_bits(model, weights)
    assert torch.equal(run(anatomy, ids).last_hidden_state, plain)


@every_kind
def test_changes_of_one_place_add_up_in_the_order_in_which_they_were_opened(name):
    anatomy = resolve(zoo.tiny(name, dtype=torch.float64))
    ids, _ = zoo.tokens(anatomy.model)
    for site in (s for s in anatomy.activation_sites if s.layer == 0):
        with change(anatomy, {site: lambda x, _: x * 2}), change(anatomy, {site: lambda x, _: x + 1}):
            both = run(anatomy, ids).last_hidden_state
        with change(anatomy, {site: lambda x, _: x * 2 + 1}):
            assert torch.equal(run(anatomy, ids).last_hidden_state, both), site


@every_kind
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_changing_works_in_every_gradient_mode_and_attention(name, kernel):
    # gpt-oss has no sdpa form.
    model = zoo.tiny(name, attention=None if name == "gpt_oss" else kernel)
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    sites = [s for s in anatomy.taps if s.layer == 0]
    with change(anatomy, dict.fromkeys(sites, far)):
        expected = run(anatomy, ids).last_hidden_state
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode(), change(anatomy, dict.fromkeys(sites, far)):
            assert torch.equal(anatomy.trunk(ids, use_cache=False).last_hidden_state, expected)


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2"])
def test_gradients_flow_through_a_change(name):
    model = zoo.tiny(name)
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    with change(anatomy, {Site(0, "resid.mid"): lambda x, _: x * 2, Site(1, "attn.in"): lambda x, _: x * 2}):
        anatomy.trunk(ids).last_hidden_state.sum().backward()
    gradient = anatomy.matrices[Site(0, "w.q")].parameter.grad
    assert gradient is not None and gradient.isfinite().all() and gradient.abs().max() > 0


@pytest.mark.parametrize("name", zoo.ROUTED)
def test_an_expert_is_changed_for_its_tokens_only_and_by_hand_comes_the_same(name):
    """Doubling what the down projection of an expert reads doubles its product: the bias of gpt-oss stays."""
    anatomy = resolve(zoo.tiny(name, dtype=torch.float64))
    ids, _ = zoo.tokens(anatomy.model)
    layer = min(anatomy.experts)
    old, _ = seen_in(anatomy, ids)
    for expert in range(anatomy.num_experts):
        mid, out = Site(layer, "mlp.down.in", expert), Site(layer, "mlp.out", expert)
        if mid not in old:
            continue
        seen, _ = seen_in(anatomy, ids, {mid: lambda x, rows: x * 2})
        product = old[mid] @ anatomy.weight(Site(layer, "w.down", expert)).T
        torch.testing.assert_close(seen[out], old[out] + product, rtol=1e-9, atol=1e-9)
        for other in range(anatomy.num_experts):
            if other != expert and (site := Site(layer, "mlp.out", other)) in old:
                assert torch.equal(seen[site], old[site])
        torch.testing.assert_close(seen[mid], 2 * old[mid])
        twice, _ = seen_in(anatomy, ids, {out: lambda x, rows: x + 1})
        rest = twice[Site(layer, "mlp.out")] - old[Site(layer, "mlp.out")]
        rows = (rest.abs().max(-1).values > 1e-9).nonzero()[:, 0]
        assert len(rows) == len(old[mid])


def test_router_logits_that_forbid_an_expert_leave_it_without_tokens():
    for name in zoo.ROUTED:
        anatomy = resolve(zoo.tiny(name, dtype=torch.float64))
        ids, _ = zoo.tokens(anatomy.model)
        layer = min(anatomy.experts)

        def forbid(x, rows):
            return torch.cat([x[:, :1] - 1e4, x[:, 1:]], 1)

        seen, _ = seen_in(anatomy, ids, {Site(layer, "mlp.router"): forbid})
        assert Site(layer, "mlp.down.in", 0) not in seen
        assert Site(layer, "mlp.down.in", 1) in seen


def test_a_router_that_computes_otherwise_is_refused():
    model = zoo.tiny("mixtral")
    anatomy = resolve(model)
    router = anatomy.taps[Site(0, "mlp.router")].module
    product = router.weight.detach().clone()
    router.forward = lambda x: (lambda y: (y, *y.topk(2)))(x @ product.T)
    with (
        pytest.raises(UnknownSite, match="change mlp.in or mlp.out instead"),
        change(anatomy, {Site(0, "mlp.router"): far}),
    ):
        run(anatomy, zoo.tokens(model)[0])


class InPlace(nn.Module):
    """A block that writes into what it is given."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.down = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        y = self.q(x) + self.k(x)
        x += self.down(y)
        return x


class InPlaceModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.layers = nn.Embedding(10, 4), nn.ModuleList([InPlace(), InPlace()])

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return x


def in_place_anatomy():
    model = InPlaceModel()
    family = Family(
        name="in_place",
        model_types=frozenset(),
        blocks="layers",
        activations={"resid.in": Input(""), "attn.in": Input("q"), "mlp.out": Output("down"), "resid.out": Output("")},
        weights={"w.q": Matrix("q.weight"), "w.k": Matrix("k.weight")},
        outer={},
    )  # fmt: skip
    return bind(model, family, Dims(2, 4, 0, 0, 0), list(model.layers))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_model_that_writes_into_its_tensors_does_not_write_into_those_of_the_change(mode):
    anatomy = in_place_anatomy()
    ids = torch.arange(6).reshape(2, 3)
    for site in anatomy.taps:
        values = torch.randn(6, 4)
        before = values.clone()
        with mode(), change(anatomy, {site: lambda x, rows: values}):  # noqa: B023
            first = anatomy.model(ids).clone()
            assert torch.equal(anatomy.model(ids), first), site
        assert torch.equal(values, before), site


def test_a_change_that_gives_something_else_each_time_is_asked_in_each_forward(tiny_model):
    """Also when the very same tensor is read again: a block that is run by hand."""
    anatomy = resolve(tiny_model("llama"))
    calls = []

    def count(x, rows):
        calls.append(1)
        return x + len(calls)

    x = torch.randn(1, 5, 32)
    attention = anatomy.attention[0]
    with torch.no_grad(), change(anatomy, {Site(0, "attn.in"): count}):
        for _ in range(2):
            attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)
    assert len(calls) == 2


def test_rows_are_sample_by_sample_where_the_model_keeps_positions_first():
    """XLNet: [position, sample, channel]."""
    anatomy = resolve(stranger("xlnet"))
    ids = torch.randint(4, 90, (3, 5), generator=torch.Generator().manual_seed(0))
    for site in (s for s in anatomy.taps if s.layer == 0):
        old, _ = seen_in(anatomy, ids)
        seen, _ = seen_in(anatomy, ids, {site: lambda x, _: torch.cat([x[:5], x[5:6] + 1, x[6:]])})
        expected = old[site].clone()
        expected[5] += 1
        assert torch.equal(seen[site], expected), site


def test_what_cannot_be_changed_is_refused_before_the_model_runs(look):
    anatomy = look("llama").anatomy
    routed = resolve(zoo.tiny("mixtral"))
    for site, where, says in [
        (Site(0, "attn.probs"), anatomy, "change attn.q, attn.k or attn.mix instead"),
        (Site(7, "mlp.out"), anatomy, "no block 7; its blocks are 0 to 1"),
        (Site(None, "mlp.out"), anatomy, "write which one, for example 0.mlp.out"),
        (Site(1, "head.in"), anatomy, "write head.in without a number"),
        (Site(0, "mlp.router"), anatomy, "has no activation 0.mlp.router.* It has 0.resid.in, 0.attn.in"),
        (Site(0, "w.q"), anatomy, "0.w.q is a weight; an activation is needed here"),
        (Site(0, "mlp.out", 0), anatomy, "has no activation 0.mlp.out.0.; did you mean '0.mlp.out'"),
        (Site(0, "mlp.down.in"), routed, "once per expert, 0.mlp.down.in.0. to 0.mlp.down.in.3."),
        (Site(0, "mlp.down.in", 4), routed, "has no activation 0.mlp.down.in.4."),
        (Site(0, "attn.q", 1), routed, "has no activation 0.attn.q.1.; did you mean '0.attn.q'"),
    ]:
        with pytest.raises(UnknownSite, match=says), change(where, {site: far}):
            pytest.fail("opened")


@pytest.mark.parametrize("shape", [(24, 31), (12, 64), (24,), (1, 32)])
def test_new_values_of_another_shape_are_refused_with_both_shapes(look, shape):
    seen = look("llama")
    with (
        pytest.raises(
            UnknownOption, match=r"the change at 0.mlp.in gave values of shape .*\[24, 32\] is needed"
        ),
        change(seen.anatomy, {Site(0, "mlp.in"): lambda x, rows: torch.zeros(shape)}),
    ):
        run(seen.anatomy, seen.ids)


@every_family
def test_entries_of_every_weight_change_alone_and_come_back(name):
    model = zoo.tiny(name)
    anatomy, weights = resolve(model), bits(model)
    generator = torch.Generator().manual_seed(0)
    for site in anatomy.weight_sites:
        if anatomy.matrices[site].more:
            with (
                pytest.raises(UnknownSite, match="spread over"),
                weight_entries(anatomy, site, [0], [0], far),
            ):
                pass
            continue
        old = anatomy.weight(site).clone()
        columns = torch.randperm(old.shape[-1], generator=generator)[:3]
        rows = None if old.dim() == 1 else torch.randint(len(old), columns.shape, generator=generator)
        place = (columns,) if rows is None else (rows, columns)
        values = torch.randn(len(columns), generator=generator)

        def put(x, values=values, expected=old[place]):
            assert torch.equal(x, expected)
            return values

        with weight_entries(anatomy, site, rows, columns, put):
            now = anatomy.weight(site).clone()
            torch.testing.assert_close(now[place], values, rtol=1e-6, atol=1e-6)
            now[place] = old[place]
            assert torch.equal(now, old), site
            num_changed = sum(int((x != weights[k]).sum()) for k, x in dict(model.named_parameters()).items())
            assert num_changed == len(columns), site
        assert same_bits(model, weights), site


# How the matrices are stored, written down by hand: (family, site, row, column) to a parameter and its index.
def _gpt2(p):
    return p["transformer.h.1.attn.c_attn.weight"], (5, 32 + 9)  # [in, q | k | v]


def _gpt_neox(p):
    return p["gpt_neox.layers.1.attention.query_key_value.weight"], (
        (1 * 3 + 2) * 8 + 1,
        5,
    )  # [head (q, k, v) channel]


def _falcon(p):
    return p["transformer.h.1.self_attention.query_key_value.weight"], (
        (0 * 4 + 1) * 8 + 1,
        5,
    )  # [kv_head (q, q, k, v)]


def _phi3(p):
    return p["model.layers.1.mlp.gate_up_proj.weight"], (48 + 9, 5)  # gate | up


def _gpt_oss(p):
    return p["model.layers.1.mlp.experts.gate_up_proj"], (2, 5, 2 * 9 + 1)  # [expert, in, (gate, up)]


def _mixtral(p):
    return p["model.layers.1.mlp.experts.down_proj"], (2, 9, 5)


def _llama(p):
    return p["model.layers.1.mlp.down_proj.weight"], (9, 5)


BY_HAND = [
    ("gpt2", Site(1, "w.k"), _gpt2),
    ("gpt_neox", Site(1, "w.v"), _gpt_neox),
    ("falcon_40b", Site(1, "w.q"), _falcon),
    ("phi3", Site(1, "w.up"), _phi3),
    ("gpt_oss", Site(1, "w.up", 2), _gpt_oss),
    ("mixtral", Site(1, "w.down", 2), _mixtral),
    ("llama", Site(1, "w.down"), _llama),
]


@pytest.mark.parametrize(("name", "site", "by_hand"), BY_HAND, ids=[b[0] for b in BY_HAND])
def test_a_changed_entry_equals_a_copy_with_the_parameter_edited(name, site, by_hand):
    model = zoo.tiny(name)
    anatomy, edited = resolve(model), copy.deepcopy(model)
    ids, _ = zoo.tokens(model, num_samples=4)
    with torch.no_grad():
        parameter, index = by_hand(dict(edited.named_parameters()))
        parameter[index] = 40.0
        expected = edited(ids).logits
        with weight_entries(anatomy, site, 9, 5, lambda w: torch.full_like(w, 40.0)):
            assert torch.equal(model(ids).logits, expected)
        assert not torch.equal(model(ids).logits, expected)


def test_a_tied_embedding_changes_with_its_head(tiny_model):
    model = tiny_model("llama", tie_word_embeddings=True)
    anatomy = resolve(model)
    with weight_entries(anatomy, Site(None, "w.embed"), [3], [5], torch.zeros_like):
        assert model.lm_head.weight[3, 5] == 0 and model.model.embed_tokens.weight[3, 5] == 0
    assert model.lm_head.weight[3, 5] != 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gain_that_is_multiplied_by_one_is_not_rounded(tiny_model, dtype):
    """Gemma stores gain - 1: adding 1 and taking it away again loses bits."""
    model = tiny_model("gemma", dtype=dtype)
    anatomy, weights = resolve(model), bits(model)
    with weight_entries(anatomy, Site(0, "norm.attn"), None, range(32), lambda w: w * 1.0):
        assert same_bits(model, weights)
    with weight_entries(anatomy, Site(0, "norm.attn"), None, range(32), torch.zeros_like):
        assert not anatomy.weight(Site(0, "norm.attn")).any()
    assert same_bits(model, weights)


def test_changes_of_the_same_entries_may_close_in_any_order(tiny_model):
    model = tiny_model("llama")
    anatomy, weights, site = resolve(model), bits(model), Site(0, "w.down")
    old = anatomy.weight(site)[3, 5].clone()
    first = weight_entries(anatomy, site, [3], [5], lambda w: w + 1)
    second = weight_entries(anatomy, site, [3, 4], [5, 5], lambda w: w * 4)
    first.__enter__(), second.__enter__()
    assert anatomy.weight(site)[3, 5] == (old + 1) * 4
    first.__exit__(None, None, None)
    assert anatomy.weight(site)[3, 5] == old * 4
    second.__exit__(None, None, None)
    assert same_bits(model, weights)


def test_entries_that_are_not_there_are_refused_before_anything_changes(look):
    anatomy = look("llama").anatomy
    for site, rows, columns, error, says in [
        (Site(0, "w.down"), [32], [0], UnknownOption, "0.w.down has no row 32; it has 32 .0 to 31."),
        (Site(0, "w.down"), [0], [48], UnknownOption, "0.w.down has no column 48; it has 48"),
        (Site(0, "w.down"), [-1], [0], UnknownOption, "no row -1"),
        (Site(0, "w.down"), None, [0], UnknownOption, "is a matrix of shape .32, 48.; give the rows"),
        (Site(0, "norm.mlp"), [0], [0], UnknownOption, "is a vector, so it has no rows; give None"),
        (Site(0, "norm.mlp"), None, [32], UnknownOption, "no column 32"),
        (Site(0, "w.down"), [1, 2], [1, 2, 3], UnknownOption, "2 rows and 3 columns of 0.w.down do not pair"),
        (Site(0, "w.down"), torch.tensor([1.5]), [1], UnknownOption, "whole numbers from 0 are needed"),
        (
            Site(0, "w.down"),
            torch.ones(31, dtype=torch.bool),
            [1],
            UnknownOption,
            "a mask of 31 rows was given",
        ),
        (Site(9, "w.down"), [0], [0], UnknownSite, "no block 9"),
        (Site(0, "w.router"), [0], [0], UnknownSite, "has no weight 0.w.router"),
        (Site(0, "mlp.out"), [0], [0], UnknownSite, "0.mlp.out is an activation; a weight is needed here"),
    ]:
        with pytest.raises(error, match=says), weight_entries(anatomy, site, rows, columns, torch.zeros_like):
            pytest.fail("opened")
    wrong = weight_entries(anatomy, Site(0, "w.down"), [0, 1], [0, 1], lambda w: w[:1])
    with pytest.raises(UnknownOption, match="the change of 2 weights gave values of shape"), wrong:
        pass
