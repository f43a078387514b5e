"""Interventions do what they say, on every family, in any nesting, and leave nothing behind."""

import copy
import dataclasses
from contextlib import ExitStack

import pytest
import torch
import zoo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from leftovers import bits, same_bits, state
from strangers import stranger
from torch.testing import assert_close

from skerry.anatomy import Site, attention, capture, resolve, watch
from skerry.anatomy.model import run
from skerry.causes.ablations import (
    ablate_channel,
    ablate_head,
    ablate_sink,
    ablate_weight,
    edit_mix,
)
from skerry.causes.interventions import clip, edit_site, replace, resample, scale, set_mean, zero
from skerry.causes.resample import donors
from skerry.causes.sinks import Sinks
from skerry.corpus.batch import Batch
from skerry.errors import SkerryError, UnknownOption, UnknownSite

every_family = pytest.mark.parametrize("name", zoo.NAMES)
KINDS = ["llama", "gpt2", "falcon_40b", "gemma2", "gpt_oss", "mixtral", "opt_350m", "bert"]
every_kind = pytest.mark.parametrize("name", KINDS)


@pytest.fixture(scope="module")
def resolved():
    """`resolved(name, dtype)`: an anatomy, its ids and what the trunk gives, made once; a test must leave it as it was."""
    made = {}

    def get(name, dtype=torch.float64, attention="eager"):
        key = (name, dtype, attention)
        if key not in made:
            anatomy = resolve(zoo.tiny(name, dtype=dtype, attention=attention))
            ids, _ = zoo.tokens(anatomy.model, num_samples=3, length=10)
            made[key] = anatomy, ids, last(anatomy, ids)
        return made[key]

    return get


def last(anatomy, ids, keep=None):
    return run(anatomy, ids, keep).last_hidden_state


def batch_of(ids, keep=None):
    keep = torch.ones_like(ids, dtype=torch.bool) if keep is None else keep
    return Batch(ids, keep, torch.arange(len(ids)))


def seen(anatomy, ids, part):
    # A change parts places that are one tensor otherwise.
    return capture(dataclasses.replace(anatomy, same_as={}), ids, [part])


# Values


def test_each_says_what_it_does_and_where_it_begins(resolved):
    anatomy, _, _ = resolved("llama")
    for made, first, says in [
        (clip(anatomy, "1.mlp.down.in", 3.0), 1, "clipping of 1.mlp.down.in"),
        (zero(anatomy, "0.resid.out", [3]), 1, "zeroing of 0.resid.out"),
        (set_mean(anatomy, "0.resid.mid", 1.0), 0, "replacement at 0.resid.mid"),
        (replace(anatomy, "head.in", 1.0), 2, "replacement at head.in"),
        (scale(anatomy, Site(1, "attn.q"), 2.0), 1, "scaling of 1.attn.q"),
        (resample(anatomy, "1.resid.out"), 2, "resampling of 1.resid.out"),
        (ablate_channel(anatomy, 3, 1), 1, "ablation of residual channels [3]"),
        (ablate_weight(anatomy, "1.w.down", 3, 4), 1, "ablation of weights of 1.w.down"),
        (ablate_weight(anatomy, "w.embed", 3, 4), 0, "ablation of weights of w.embed"),
        (ablate_weight(anatomy, "w.head", 3, 4), 2, "ablation of weights of w.head"),
        (ablate_weight(anatomy, "norm.final", None, 4), 2, "ablation of weights of norm.final"),
        (ablate_head(anatomy, 1, [0, 2]), 1, "ablation of heads [0, 2] of block 1"),
        (ablate_sink(anatomy, [0], layers=[1]), 1, "ablation of sinks"),
        (edit_site(anatomy, "0.mlp.out", lambda x, rows: x), 0, "change of 0.mlp.out"),
    ]:
        assert made.first_layer == first
        assert repr(made) == f"<{says}; open it with `with`>"


def test_a_model_does_as_well_as_its_anatomy_and_text_as_well_as_a_site(tiny_model):
    model = tiny_model("llama")
    ids, _ = zoo.tokens(model)
    with torch.no_grad():
        with zero(model, "1.mlp.out"):
            by_text = model(ids).logits
        with zero(resolve(model), Site(1, "mlp.out")):
            assert torch.equal(model(ids).logits, by_text)


@every_kind
def test_channels_and_tokens_pick_a_rectangle_and_nothing_else(resolved, name):
    anatomy, ids, _ = resolved(name)
    site = Site(1, "mlp.out")
    old = seen(anatomy, ids, "mlp.out")[site]
    channels, tokens = [5, 0, 30], [29, 1]
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    mask[2, 9] = mask[0, 1] = True
    per_channel, table = torch.tensor([1.0, 2.0, 3.0]), torch.arange(6.0).reshape(2, 3)
    place = (torch.tensor(tokens)[:, None], torch.tensor(channels))
    limit = old.abs().median()
    cases = [
        (zero(anatomy, site, channels, tokens), lambda x: x * 0),
        (zero(anatomy, site, torch.tensor(channels), mask), lambda x: x * 0),
        (replace(anatomy, site, 7.0, channels, tokens), lambda x: torch.full_like(x, 7.0)),
        (set_mean(anatomy, site, per_channel, channels, tokens), lambda x: per_channel.to(x).expand(2, 3)),
        (
            set_mean(anatomy, site, [1.0, 2.0, 3.0], channels, tokens),
            lambda x: per_channel.to(x).expand(2, 3),
        ),
        (replace(anatomy, site, table, channels, tokens), lambda x: table.to(x)),
        (scale(anatomy, site, -2.0, channels, tokens), lambda x: x * -2),
        (scale(anatomy, site, per_channel, channels, tokens), lambda x: x * per_channel.to(x)),
        (scale(anatomy, site, table, channels, tokens), lambda x: x * table.to(x)),
        (clip(anatomy, site, float(limit), channels, tokens), lambda x: x.clamp(-limit, limit)),
        (clip(anatomy, site, per_channel, channels, tokens), lambda x: x.clamp(-per_channel, per_channel)),
    ]
    for made, expected in cases:
        with made:
            new = seen(anatomy, ids, "mlp.out")[site]
        by_hand = old.clone()
        by_hand[place] = expected(old[place]).to(old)
        assert torch.equal(new, by_hand), made
    for made, rows, columns in [
        (zero(anatomy, site, 5), slice(None), 5),
        (zero(anatomy, site, tokens=7), 7, slice(None)),
        (zero(anatomy, site), slice(None), slice(None)),
    ]:
        with made:
            new = seen(anatomy, ids, "mlp.out")[site]
        by_hand = old.clone()
        by_hand[rows, columns] = 0
        assert torch.equal(new, by_hand)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_changes_nothing_changes_nothing_bit_for_bit(resolved, name, dtype):
    anatomy, ids, plain = resolved(name, dtype)
    sites = [s for s in anatomy.taps if s.layer == 0]
    for make in (
        lambda site: scale(anatomy, site, 1.0),
        lambda site: clip(anatomy, site, torch.inf),
        lambda site: zero(anatomy, site, []),
        lambda site: replace(anatomy, site, 1.0, tokens=[]),
    ):
        with ExitStack() as stack:
            for site in sites:
                stack.enter_context(make(site))
            assert torch.equal(last(anatomy, ids), plain)


@pytest.mark.parametrize("name", zoo.ROUTED)
def test_tokens_of_an_expert_get_their_own_values(resolved, name):
    anatomy, ids, _ = resolved(name)
    layer = min(anatomy.experts)
    rows_of = {}

    def note(site, x, rows):
        rows_of[site] = rows, x.clone()

    site = max(
        seen(anatomy, ids, "mlp.down.in"), key=lambda s: (s.layer == layer, s.expert is not None, str(s))
    )
    if site.expert is None or site.expert >= anatomy.num_experts:
        site = Site(layer, "mlp.down.in", anatomy.num_experts - 1)
    values = torch.arange(float(ids.numel()), dtype=torch.float64)[:, None].expand(
        -1, 24 if name != "mixtral" and name != "gpt_oss" else 48
    )
    chosen = torch.arange(0, ids.numel(), 2).flip(0)
    with watch(anatomy, ["mlp.down.in"], on_activation=note):
        run(anatomy, ids)
    old_rows, old = rows_of[site]
    for made, of in [
        (replace(anatomy, site, values), old_rows),
        (replace(anatomy, site, values[chosen], tokens=chosen), old_rows[old_rows % 2 == 0]),
    ]:
        with made, watch(anatomy, ["mlp.down.in"], on_activation=note):
            run(anatomy, ids)
        rows, new = rows_of[site]
        expected = old.clone()
        hit = torch.isin(rows, of)
        expected[hit] = values[rows[hit]]
        assert torch.equal(rows, old_rows) and torch.equal(new, expected)


@every_family
def test_zeroing_what_the_feed_forward_gives_equals_taking_its_down_projection_away(resolved, name):
    anatomy, ids, plain = resolved(name)
    weights = {
        id(anatomy.matrices[w].parameter) for w in anatomy.matrices if w.layer == 1 and w.part == "w.down"
    }
    parameters = dict(anatomy.model.named_parameters())
    removed = [name for name, p in parameters.items() if id(p) in weights]
    removed += [
        b for w in removed for b in (w.removesuffix("weight") + "bias", w + "_bias") if b in parameters
    ]
    old = bits(anatomy.model)
    with torch.no_grad():
        for key in removed:
            parameters[key].zero_()
        expected = last(anatomy, ids)
        for key in removed:
            parameters[key].copy_(old[key])
    with zero(anatomy, Site(1, "mlp.out")):
        found = last(anatomy, ids)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not torch.equal(found, plain)


@every_family
def test_ablated_heads_equal_the_output_projection_without_their_columns(resolved, name):
    anatomy, ids, plain = resolved(name)
    w, width = anatomy.weight(Site(1, "w.o")), anatomy.dims.head_dim
    old = w.clone()
    try:
        w[:, 1 * width : 2 * width] = 0
        w[:, 3 * width : 4 * width] = 0
        expected = last(anatomy, ids)
    finally:
        w.copy_(old)
    with ablate_head(anatomy, 1, [1, 3]):
        found = last(anatomy, ids)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found, plain)


@every_kind
def test_an_ablated_channel_is_zero_from_the_first_to_the_last_block(resolved, name):
    anatomy, ids, _ = resolved(name)
    with ablate_channel(anatomy, [3, 5], 0, 0, tokens=range(10)):
        found = capture(anatomy, ids)
    for site in (s for s in anatomy.taps if s.part.startswith("resid.")):
        gone = found[site][:10, [3, 5]] == 0
        assert gone.all() == (site.layer == 0 or site.part == "resid.in"), site
        assert found[site][10:, [3, 5]].all()
        assert found[site][:, [2, 4]].all()


def test_clipping_equals_clamping_hooks(tiny_model):
    model = tiny_model("llama")
    ids, _ = zoo.tokens(model)
    with torch.no_grad():
        with clip(model, "1.mlp.down.in", 0.3, [1, 2]):
            found = model(ids).logits

        def clamp(_module, args):
            x = args[0].clone()
            x[..., 1:3].clamp_(-0.3, 0.3)
            return (x,)

        handle = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(clamp)
        assert torch.equal(model(ids).logits, found)
        handle.remove()
        assert not torch.equal(model(ids).logits, found)


@every_kind
def test_an_ablated_weight_equals_a_copy_without_it(resolved, name):
    anatomy, ids, plain = resolved(name)
    site = next(s for s in anatomy.weight_sites if s.layer == 1 and s.part == "w.down")
    found = []
    for factor in (0.0, -3.0):
        with ablate_weight(anatomy, site, [3, 3], [1, 7], factor):
            edited = copy.deepcopy(anatomy.model)
            found.append(last(anatomy, ids))
        assert torch.equal(last(anatomy, ids), plain)
        twin = resolve(edited)
        assert torch.equal(twin.weight(site)[[3, 3], [1, 7]], anatomy.weight(site)[[3, 3], [1, 7]] * factor)
        assert torch.equal(last(twin, ids), found[-1])
    assert not torch.equal(found[0], found[1])


# Attention


def naive_attention(view, sinks):
    """Softmax without the sinks by hand, in float64; learned sinks are left out too; 0 where nothing is left."""
    logits = attention.naive_logits(view).double()
    hidden = logits.clone()
    for key in sinks:
        hidden[..., key] = -torch.inf
    probs = hidden.softmax(-1).nan_to_num(0.0)
    mix = probs @ view.value.double().repeat_interleave(view.num_heads // view.value.shape[1], 1)
    return mix.transpose(1, 2).flatten(0, 1).flatten(1)


@every_family
def test_attention_without_sinks_equals_a_softmax_that_does_not_see_them(resolved, name):
    """Also where a kernel of its own, a soft cap, a window, distance biases or a learned sink makes the scores."""
    anatomy, ids, _ = resolved(name)
    views = {}
    with watch(anatomy, on_attention=lambda v: views.setdefault(v.layer, v)):
        old = capture(anatomy, ids, ["attn.mix"])[Site(1, "attn.mix")]
    before = state(anatomy.model)
    # Only block 1: what block 0 gives is then the same in both.
    with ablate_sink(anatomy, [0, 4], layers=[1]):
        new = capture(anatomy, ids, ["attn.mix"])[Site(1, "attn.mix")]
    assert state(anatomy.model) == before
    expected = naive_attention(views[1], [0, 4])
    position = torch.arange(ids.numel()) % ids.shape[1]
    is_sink = (position == 0) | (position == 4)
    assert torch.equal(new[is_sink], old[is_sink])
    # transformers' eager softmax is float32 in a float64 model.
    assert_close(new[~is_sink], expected[~is_sink], rtol=1e-5, atol=1e-6)
    assert ((new - old)[~is_sink].abs().amax(-1) > 1e-6).float().mean() > 0.7


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "bloom", "bert"])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_sinks_that_are_tokens_are_found_in_the_batch_and_padding_is_none(name, padding):
    anatomy = resolve(zoo.tiny(name))
    ids, keep = zoo.tokens(anatomy.model, num_samples=3, length=10, padding=padding)
    ids[:, 5] = 7
    batch = batch_of(ids, keep)
    sinks = Sinks({1: frozenset({0})}, {1: frozenset({7})})
    views = {}
    with watch(anatomy, on_attention=lambda v: views.setdefault(v.layer, v)):
        run(anatomy, ids, keep)
    with ablate_sink(anatomy, sinks, batch), watch(anatomy, ["attn.mix"], on_activation=lambda s, x, _: views.update({s: x.clone()})):  # fmt: skip
        out = last(anatomy, ids, keep)
    mix = views[Site(1, "attn.mix")].unflatten(0, ids.shape)
    for b in range(3):
        first = int(keep[b].int().argmax())
        at = {first, *(ids[b] == 7).nonzero()[:, 0].tolist()}
        expected = naive_attention(views[1], sorted(at)).unflatten(0, ids.shape)
        for t in range(10):
            if keep[b, t] and t not in at:
                assert_close(mix[b, t].double(), expected[b, t], rtol=1e-4, atol=1e-5)
    assert out[keep].isfinite().all()


def test_where_nearly_all_attention_is_on_the_sink_the_rest_is_still_right(tiny_model):
    """(mix - bias) / (1 - mass) has no digit left there."""
    model = tiny_model("llama")
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model, num_samples=1, length=6)
    direction = torch.randn(16, generator=torch.Generator().manual_seed(0))
    first = torch.tensor([0])
    with (
        replace(anatomy, "1.attn.k", direction * 30, tokens=first),
        replace(anatomy, "1.attn.q", direction.reshape(2, 8).repeat_interleave(2, 0).reshape(-1) * 3),
    ):
        views, mixes = {}, {}
        with watch(anatomy, ["attn.mix"], on_activation=lambda s, x, _: mixes.update({s: x.clone()}), on_attention=lambda v: views.update({v.layer: v})):  # fmt: skip
            run(anatomy, ids)
        mass = attention.naive_probs(views[1])[..., 0]
        assert mass[..., 1:].min() > 1 - 1e-6
        with ablate_sink(anatomy, [0], layers=[1]), watch(anatomy, ["attn.mix"], on_activation=lambda s, x, _: mixes.update({s: x.clone()})):  # fmt: skip
            run(anatomy, ids)
    expected = naive_attention(views[1], [0])
    assert_close(mixes[Site(1, "attn.mix")][1:].double(), expected[1:], rtol=1e-3, atol=1e-4)
    assert mixes[Site(1, "attn.mix")][2].abs().max() > 0.01


@pytest.mark.parametrize("name", ["llama", "bloom", "gpt_oss"])
def test_nested_ablations_of_sinks_take_all_of_them_out(resolved, name):
    anatomy, ids, _ = resolved(name)
    one, other, both = (ablate_sink(anatomy, s) for s in ([0], [3], [0, 3]))
    with both:
        expected = last(anatomy, ids)
    for outer, inner in ((one, other), (other, one), (both, both)):
        with outer, inner:
            assert torch.equal(last(anatomy, ids), expected)
        with outer:
            alone = last(anatomy, ids)
            with inner:
                pass
            assert torch.equal(last(anatomy, ids), alone)


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_an_ablated_head_stays_ablated_whichever_is_opened_first(resolved, name):
    anatomy, ids, _ = resolved(name)
    head, sink = ablate_head(anatomy, 1, 2), ablate_sink(anatomy, [0])
    with head, sink:
        one = seen(anatomy, ids, "attn.mix")[Site(1, "attn.mix")], last(anatomy, ids)
    with sink, head:
        other = seen(anatomy, ids, "attn.mix")[Site(1, "attn.mix")], last(anatomy, ids)
    assert not one[0][:, 16:24].any()
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sinks_are_taken_out_under_every_kernel_and_in_half_precision(dtype, kernel):
    exact = resolve(zoo.tiny("llama", dtype=torch.float64))
    ids, _ = zoo.tokens(exact.model, num_samples=2, length=10)
    with ablate_sink(exact, [0]):
        expected = last(exact, ids)
    anatomy = resolve(zoo.tiny("llama", dtype=dtype, attention=kernel))
    with ablate_sink(anatomy, [0]):
        found = last(anatomy, ids)
    tolerance = 1e-4 if dtype == torch.float32 else 0.15
    assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_a_query_that_sees_only_sinks_gets_nothing(tiny_model):
    anatomy = resolve(tiny_model("llama"))
    ids, _ = zoo.tokens(anatomy.model, num_samples=1, length=4)
    # Position 1 sees 0 and itself; both are sinks for it, but only 0 is one of its own row.
    made = edit_mix(
        anatomy,
        [1],
        lambda layer, view: torch.tensor([[True, False, False, False]]),
        lambda layer, mix, part, sink: part.rest(),
    )
    with made:
        mix = seen(anatomy, ids, "attn.mix")[Site(1, "attn.mix")]
    assert mix.isfinite().all()
    one = torch.zeros(1, 1, dtype=torch.long)
    with ablate_sink(anatomy, [0]):
        assert last(anatomy, one).isfinite().all()


# Resampling


def check_donors(keep, flat):
    num_samples, num_positions = keep.shape
    flat = flat.reshape(num_samples, num_positions)
    assert (flat % num_positions == torch.arange(num_positions)).all(), "another position"
    for t in range(num_positions):
        present = keep[:, t].nonzero()[:, 0]
        givers = flat[present, t] // num_positions
        assert sorted(givers.tolist()) == present.tolist(), (
            "not a permutation of the inputs that have the position"
        )
        if len(present) > 1:
            assert (givers != present).all(), "gives to itself"
        absent = (~keep[:, t]).nonzero()[:, 0]
        assert (flat[absent, t] // num_positions == absent).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(1, 8), st.integers(0, 99), st.randoms(use_true_random=False))
def test_donors_are_a_derangement_of_the_inputs_that_have_the_position(
    num_samples, num_positions, seed, random
):
    lengths = [random.randint(0, num_positions) for _ in range(num_samples)]
    keep = torch.tensor([[t < n for t in range(num_positions)] for n in lengths])
    check_donors(keep, donors(keep, seed))
    check_donors(keep.flip(1), donors(keep.flip(1), seed))


@every_kind
def test_resampled_values_are_those_of_another_input(resolved, name):
    anatomy, ids, plain = resolved(name)
    old = seen(anatomy, ids, "mlp.in")[Site(1, "mlp.in")]
    giver = donors(torch.ones(ids.shape, dtype=torch.bool), 5)
    with resample(anatomy, "1.mlp.in", seed=5):
        assert torch.equal(seen(anatomy, ids, "mlp.in")[Site(1, "mlp.in")], old[giver])
        assert not torch.equal(last(anatomy, ids), plain)
    with resample(anatomy, "1.mlp.in", seed=5, channels=[4, 2], tokens=[11, 3]):
        new = seen(anatomy, ids, "mlp.in")[Site(1, "mlp.in")]
    expected = old.clone()
    for t in (11, 3):
        expected[t, [4, 2]] = old[giver[t], [4, 2]]
    assert torch.equal(new, expected)


@pytest.mark.parametrize("given_mask", [True, False])
def test_padding_gives_no_values_and_gets_none(tiny_model, given_mask):
    anatomy = resolve(tiny_model("llama"))
    ids, keep = zoo.tokens(anatomy.model, num_samples=3, length=10, padding="right")
    old = capture(anatomy, ids, ["mlp.in"], keep)[Site(1, "mlp.in")]
    with resample(anatomy, "1.mlp.in", keep=keep if given_mask else None):
        new = capture(anatomy, ids, ["mlp.in"], keep)[Site(1, "mlp.in")]
    assert torch.equal(new, old[donors(keep, 0)])


def test_resampling_works_from_embeddings_too(tiny_model):
    model = tiny_model("llama")
    ids, _ = zoo.tokens(model)
    with torch.no_grad(), resample(model, "1.mlp.in"):
        embedded = model.model(inputs_embeds=model.get_input_embeddings()(ids)).last_hidden_state
        assert torch.equal(embedded, model.model(ids).last_hidden_state)


# Nesting


def some_interventions(anatomy, ids):
    """One or more of every sort, of small size."""
    keep = torch.ones_like(ids, dtype=torch.bool)
    made = [
        zero(anatomy, "0.resid.out", [3]),
        scale(anatomy, "1.attn.in", 1.5),
        set_mean(anatomy, "1.resid.mid", 0.5, [1]),
        clip(anatomy, "0.mlp.out", 0.2),
        replace(anatomy, "0.attn.out", 1.0, [2], [3, 4]),
        resample(anatomy, "1.resid.out", seed=2),
        ablate_channel(anatomy, 7),
        ablate_head(anatomy, 1, 2),
        ablate_sink(anatomy, [0]),
        ablate_sink(anatomy, Sinks({1: frozenset({0, 3})}), batch_of(ids, keep)),
        edit_site(anatomy, "0.resid.in", lambda x, rows: x + 1),
    ]
    down = [s for s in anatomy.weight_sites if s.part == "w.down"]
    made += [
        ablate_weight(anatomy, s, [1, 2], [3, 3], f) for s in (down[0], down[0], down[-1]) for f in (0.0, 3.0)
    ]
    made += [
        ablate_weight(anatomy, s, None, [1, 2])
        for s in anatomy.weight_sites
        if s.part.startswith("norm.attn") and s.layer == 1 and not s.part.endswith(".bias")
    ]
    made += [ablate_weight(anatomy, "w.embed", ids[0, :2], [1, 2])]
    for layer in anatomy.experts:
        made += [
            scale(anatomy, Site(layer, "mlp.down.in", 1), 2.0),
            zero(anatomy, Site(layer, "mlp.router"), [0]),
        ]
    return made


class Broken(Exception):
    pass


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon_rw", "gemma", "gpt_oss", "mixtral", "bert"])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_nesting_with_any_end_leaves_the_model_as_it_was_bit_for_bit(resolved, name, data):
    kernel = (
        data.draw(st.sampled_from(["eager", "sdpa"])) if name not in ("gpt_oss", "falcon_rw") else "eager"
    )
    anatomy, ids, plain = resolved(name, torch.float32, attention=kernel)
    before, weights = state(anatomy.model), bits(anatomy.model)
    made = some_interventions(anatomy, ids)
    order = data.draw(st.lists(st.integers(0, len(made) - 1), min_size=1, max_size=6))
    fails_at = data.draw(st.sampled_from([None, "body", "forward", *range(len(order))]))
    mode = data.draw(st.sampled_from([torch.inference_mode, torch.no_grad]))

    def fail(*_):
        raise Broken

    error = None
    try:
        with mode(), ExitStack() as stack:
            for depth, i in enumerate(order):
                if fails_at == depth:
                    raise Broken
                stack.enter_context(made[i])
            if fails_at == "forward":
                stack.enter_context(edit_site(anatomy, "1.mlp.out", fail))
            changed = last(anatomy, ids)
            # An expert may have no token.
            assert name in zoo.ROUTED or not torch.equal(changed, plain)
            assert torch.equal(last(anatomy, ids), changed), "another result the second time"
            if fails_at == "body":
                raise Broken
    except Broken as raised:
        error = raised
    assert (error is None) == (fails_at is None)
    assert state(anatomy.model) == before
    assert same_bits(anatomy.model, weights)
    assert torch.equal(last(anatomy, ids), plain)


def test_one_intervention_may_be_open_twice(resolved):
    anatomy, ids, plain = resolved("llama")
    twice = scale(anatomy, "1.mlp.out", 2.0)
    with scale(anatomy, "1.mlp.out", 4.0):
        expected = last(anatomy, ids)
    with twice:
        with twice:
            assert torch.equal(last(anatomy, ids), expected)
        assert not torch.equal(last(anatomy, ids), expected)
    assert torch.equal(last(anatomy, ids), plain)


# Bad input


def test_what_cannot_be_meant_is_refused_before_the_model_runs(resolved):
    anatomy, ids, _ = resolved("llama")
    routed, _, _ = resolved("mixtral")
    nan = float("nan")
    mask = torch.ones(31, dtype=torch.bool)
    for make, error, says in [
        (lambda: zero(anatomy, "1.mlp.dwn.in"), UnknownSite, "no site 'mlp.dwn.in'; did you mean 'mlp.down.in'"),
        (lambda: zero(anatomy, "2.mlp.out"), UnknownSite, "no block 2; its blocks are 0 to 1"),
        (lambda: zero(anatomy, "mlp.out"), UnknownSite, "write which one, for example 0.mlp.out"),
        (lambda: zero(anatomy, "1.w.down"), UnknownSite, "is a weight; an activation is needed"),
        (lambda: zero(anatomy, "1.attn.probs"), UnknownSite, "change attn.q, attn.k or attn.mix instead"),
        (lambda: zero(anatomy, "1.mlp.out[x]"), UnknownSite, "sites are written 3.mlp.out or 3.mlp.out.5."),
        (lambda: zero(anatomy, "1.mlp.out[0]"), UnknownSite, "did you mean '1.mlp.out'"),
        (lambda: zero(routed, "1.mlp.up"), UnknownSite, "once per expert"),
        (lambda: zero(routed, "1.mlp.up[4]"), UnknownSite, "has no activation 1.mlp.up.4."),
        (lambda: zero(anatomy, "1.mlp.out", [32]), UnknownOption, "1.mlp.out has no channel 32; it has 32 .0 to 31."),
        (lambda: zero(anatomy, "1.mlp.down.in", 48), UnknownOption, "no channel 48; it has 48"),
        (lambda: zero(anatomy, "1.attn.k", [16]), UnknownOption, "no channel 16; it has 16"),
        (lambda: zero(anatomy, "1.attn.mix", [-1]), UnknownOption, "no channel -1"),
        (lambda: zero(routed, "1.mlp.down.in[2]", [48]), UnknownOption, "no channel 48"),
        (lambda: zero(routed, "1.mlp.router", [4]), UnknownOption, "no channel 4"),
        (lambda: zero(anatomy, "1.mlp.out", mask), UnknownOption, "a mask of 31 channels was given; .* has 32"),
        (lambda: zero(anatomy, "1.mlp.out", torch.tensor([0.5])), UnknownOption, "whole numbers from 0"),
        (lambda: zero(anatomy, "1.mlp.out", tokens=[-1]), UnknownOption, "no token -1; they count from 0"),
        (lambda: clip(anatomy, "1.mlp.out", -1.0), UnknownOption, "needs limits from 0 up, not -1.0"),
        (lambda: clip(anatomy, "1.mlp.out", [1.0, -2.0], [0, 1]), UnknownOption, "not -2.0"),
        (lambda: clip(anatomy, "1.mlp.out", nan), UnknownOption, "not nan"),
        (lambda: replace(anatomy, "1.mlp.out", torch.zeros(1, 2, 3)), UnknownOption, r"shape \[1, 2, 3\] at 1.mlp.out"),
        (lambda: replace(anatomy, "1.mlp.out", torch.zeros(3, 32), tokens=[1, 2]), UnknownOption, "for 3 tokens were given; 2 are chosen"),
        (lambda: resample(routed, "1.mlp.up[1]"), UnknownOption, "resample mlp.in or mlp.out instead"),
        (lambda: resample(anatomy, "1.mlp.out", channels=[40]), UnknownOption, "no channel 40"),
        (lambda: ablate_channel(anatomy, 32), UnknownOption, "no channel 32"),
        (lambda: ablate_channel(anatomy, 3, 2), UnknownOption, "no block 2"),
        (lambda: ablate_channel(anatomy, 3, 0, 5), UnknownOption, "no block 5"),
        (lambda: ablate_channel(anatomy, 3, 1, 0), UnknownOption, "the first comes after the last"),
        (lambda: ablate_weight(anatomy, "1.w.down", 32, 0), UnknownOption, "1.w.down has no row 32"),
        (lambda: ablate_weight(anatomy, "1.w.down", 0, 48), UnknownOption, "1.w.down has no column 48"),
        (lambda: ablate_weight(anatomy, "1.w.router", 0, 0), UnknownSite, "no weight 1.w.router"),
        (lambda: ablate_weight(anatomy, "1.mlp.out", 0, 0), UnknownSite, "a weight is needed"),
        (lambda: ablate_head(anatomy, 1, 4), UnknownOption, "block 1 has no head 4; it has 4 .0 to 3."),
        (lambda: ablate_head(anatomy, 1, [0, -1]), UnknownOption, "no head -1"),
        (lambda: ablate_head(anatomy, 3, 0), UnknownOption, "no block 3; its blocks are 0 to 1"),
        (lambda: ablate_sink(anatomy, [0], layers=[2]), UnknownOption, "no block 2"),
        (lambda: ablate_sink(anatomy, [-1]), UnknownOption, "no position -1"),
        (lambda: ablate_sink(anatomy, Sinks(token_ids={0: frozenset({7})})), UnknownOption, "give the batch that will run"),
    ]:  # fmt: skip
        with pytest.raises(error, match=says):
            make()


def test_what_only_the_forward_can_tell_is_refused_there_in_words(resolved):
    anatomy, ids, plain = resolved("llama")
    before = state(anatomy.model)
    wide = torch.ones(3, 11, dtype=torch.bool)
    for made, given_ids, says in [
        (zero(anatomy, "1.mlp.out", tokens=[3, 30]), ids, "token 30 was asked for; this forward has 30 .0 to 29."),
        (zero(anatomy, "1.mlp.out", tokens=wide), ids, "a mask of 33 tokens was given; this forward has 30"),
        (replace(anatomy, "1.mlp.out", torch.zeros(31)), ids, r"shape \[31\] at 1.mlp.out do not fit 30 tokens and 32 channels"),
        (replace(anatomy, "1.mlp.out", torch.zeros(29, 32)), ids, r"shape \[29, 32\] at 1.mlp.out do not fit"),
        (scale(anatomy, "1.mlp.out", torch.zeros(3), [1, 2]), ids, "do not fit 30 tokens and 2 channels"),
        (clip(anatomy, "1.mlp.out", torch.ones(3), [1, 2]), ids, "do not fit 30 tokens and 2 channels"),
        (edit_site(anatomy, "1.mlp.out", lambda x, rows: x[1:]), ids, r"gave values of shape \[29, 32\]"),
        (resample(anatomy, "1.mlp.out"), ids[:1], "a batch needs at least two"),
        (resample(anatomy, "1.mlp.out", keep=wide), ids, r"keep is of shape \[3, 11\]; the inputs are .* \[3, 10\]"),
        (ablate_sink(anatomy, Sinks({0: frozenset({0})}), batch_of(ids)), ids[:, :5], r"\[3, 10\]; this forward has \[3, 5\]"),
    ]:  # fmt: skip
        with pytest.raises(SkerryError, match=says), made:
            run(anatomy, given_ids)
    assert state(anatomy.model) == before
    assert torch.equal(last(anatomy, ids), plain)


@pytest.mark.parametrize("name", ["mamba", "fnet", "rwkv"])
def test_a_model_without_attention_says_so_and_takes_the_rest(name):
    model = stranger(name)
    anatomy = resolve(model)
    ids = torch.randint(4, 90, (2, 6), generator=torch.Generator().manual_seed(0))
    with pytest.raises(UnknownSite, match="shows no attention, so it has no sinks"):
        ablate_sink(anatomy, [0])
    with pytest.raises(UnknownSite, match="has no heads in block 0: it has no 0.attn.mix"):
        ablate_head(anatomy, 0, 0)
    with pytest.raises(UnknownSite, match="has no activation 0.attn.q"):
        zero(anatomy, "0.attn.q")
    plain, before = last(anatomy, ids), state(model)
    for made in (
        zero(anatomy, "1.resid.out", [3]),
        ablate_channel(anatomy, 3),
        resample(anatomy, "0.resid.out"),
    ):
        with made:
            assert not torch.equal(last(anatomy, ids), plain)
    assert state(model) == before
    assert torch.equal(last(anatomy, ids), plain)
