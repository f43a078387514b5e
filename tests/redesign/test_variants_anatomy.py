"""What anatomy and measure see of every attention variant, norm and feed-forward, against the definition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from skerry.anatomy import Site, resolve, watch
from skerry.anatomy.attention import AttentionEdit, naive_probs
from skerry.anatomy.attention_change import change_attention
from skerry.anatomy.find_seams import _Proof, check_seams, find_seams
from skerry.anatomy.model import run
from skerry.anatomy.seams import Seams
from skerry.measure.attention_reading import read_plain
from skerry.redesign.config import DecoderConfig
from skerry.redesign.decoder import DecoderForCausalLM
from skerry.redesign.feed_forwards import feed_forwards
from skerry.redesign.norms import norms
from skerry.redesign.positions import Places
from skerry.redesign.variants import variants

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
}
every_variant = pytest.mark.parametrize("attention", list(variants()))


def shaken(**choices):
    """A decoder with no parameter at a neutral value."""
    torch.manual_seed(0)
    model = DecoderForCausalLM(DecoderConfig(**{**SMALL, **choices})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


BOTH, SCALE, SHIFT = {"scale", "shift"}, {"scale"}, {"shift"}
VALUE = {
    **dict.fromkeys(["softmax", "qk-norm", "sliding-window", "sliding-window-sink", "entmax15"], BOTH),
    **dict.fromkeys(["sparsemax", "registers"], BOTH),
    **dict.fromkeys(["value-bias", "context-bias"], SHIFT),
    **dict.fromkeys(["sink-logit", "off-by-one", "key-bias", "relu", "sigmoid", "sigmoid-length"], SCALE),
    **dict.fromkeys(["softpick", "clipped-softmax", "scaled", "scaled-1", "gate-all", "gate-linear"], SCALE),
    **dict.fromkeys(["gate-mlp", "qwen-gate", "qwen-gate-headwise"], SCALE),
    **{name: set() for name in ("kv-bias", "sink-value", "value-gate", "differential")},
}


@every_variant
def test_every_variant_declares_just_the_seams_that_hold(attention):
    anatomy = resolve(shaken(attention=attention))
    declared = find_seams(anatomy)
    carried = {(s.layer, s.kind, s.site.part): set(s.carries) for s in declared}
    assert carried.get((0, "value", "attn.mix"), set()) == VALUE[attention]
    norm = carried.get((0, "norm", "attn.in"), set())
    assert norm == (set() if attention in ("gate-linear", "gate-mlp") else SCALE)
    assert carried[0, "norm", "mlp.in"] == carried[0, "up", "mlp.down.in"] == SCALE
    # Nothing that is declared is taken away by the proof, and the proof would find it: random changes of all at once are exact.
    proven = check_seams(anatomy)
    assert [(s.name, s.carries) for s in proven] == [(s.name, s.carries) for s in declared]
    assert _Proof(anatomy, seed=7).error(list(declared)) < 1e-12
    for reasons in (s.cannot for s in declared):
        assert all(len(reason) > 20 for reason in reasons.values())


@pytest.mark.parametrize("attention", [a for a, carried in VALUE.items() if carried != BOTH])
def test_what_is_not_declared_between_v_and_o_does_not_hold(attention):
    anatomy = resolve(shaken(attention=attention))
    anatomy.cannot = {}
    whole = [s for s in find_seams(anatomy) if s.kind == "value"]
    kept = check_seams(anatomy, Seams(whole))
    assert all(set(s.carries) <= VALUE[attention] for s in kept)


@pytest.mark.parametrize("norm", norms())
def test_every_norm_declares_the_seams_that_hold(norm):
    anatomy = resolve(shaken(norm=norm))
    carried = {(s.layer, s.site.part): set(s.carries) for s in find_seams(anatomy) if s.kind == "norm"}
    # Attention's projections have no bias, and nn.Linear takes one.
    expected = {"rmsnorm": SCALE, "sandwich": SCALE, "layernorm": BOTH, "dyt": BOTH}.get(norm)
    assert carried == (
        {} if expected is None else {(i, p): expected for i in (0, 1) for p in ("attn.in", "mlp.in")}
    )
    assert [(s.name, s.carries) for s in check_seams(anatomy)] == [
        (s.name, s.carries) for s in find_seams(anatomy)
    ]
    assert (Site(0, "norm.attn.add") in anatomy.matrices) == (norm == "sandwich")
    assert (Site(0, "attn.add") in anatomy.taps) == (norm == "sandwich")
    assert not anatomy.unplaced


@pytest.mark.parametrize("feed_forward", feed_forwards())
def test_every_feed_forward_has_its_places(feed_forward):
    anatomy = resolve(shaken(feed_forward=feed_forward))
    gated = feed_forward.endswith("swiglu")
    assert (Site(0, "w.gate") in anatomy.matrices) == (Site(0, "mlp.gate") in anatomy.taps) == gated
    assert {Site(0, p) for p in ("mlp.in", "mlp.up", "mlp.down.in", "mlp.out")} <= set(anatomy.taps)
    seams = check_seams(anatomy)
    assert bool(seams.of("up")) == gated
    if not gated:
        assert {"gelu": "gelu(x / s)", "relu2": "relu2(x / s)"}[feed_forward] in seams.missing["up-down"]


def eager_weights(model, layer, ids):
    """The weights of one layer by the formulas of the variants' docstrings, from what its own projections write."""
    seen = {}
    attention = model.model.layers[layer].self_attn
    own = attention.variant.attention

    def look(query, key, value, *, mask):
        seen.update(query=query, key=key, mask=mask)
        return own(query, key, value, mask=mask)

    attention.variant.attention = look
    with torch.no_grad():
        model(ids, use_cache=False)
    del attention.variant.attention
    return seen["query"], seen["key"].repeat_interleave(2, 1), seen["mask"]


RULES = {
    "relu": lambda s, n, T: s.relu() / n,
    "sigmoid": lambda s, n, T: (s - n.log()).sigmoid(),
    "sigmoid-length": lambda s, n, T: 1 / (1 + 16 * (-s).exp()),
    "clipped-softmax": lambda s, n, T: ((1 + 4 / 16) * s.softmax(-1) - 4 / 16).clamp(0, 1),
    "softpick": lambda s, n, T: torch.where(
        s.isfinite(),
        (s.exp() - 1).relu() / torch.where(s.isfinite(), (s.exp() - 1).abs(), 0).sum(-1, keepdim=True),
        0,
    ),
}


@every_variant
@pytest.mark.parametrize("length", [6, 14])
def test_measured_weights_are_those_of_the_definition(attention, length):
    if attention in ("entmax15", "sparsemax"):
        pytest.skip("their weights are checked against their own definition in test_variants")
    model = shaken(attention=attention).double()
    anatomy = resolve(model)
    ids = torch.randint(0, 60, (2, length))
    views = {}
    with watch(anatomy, on_attention=lambda view: views.__setitem__(view.layer, view)):
        run(anatomy, ids)
    if attention == "registers":
        view = views[1]
        whole = model.model._fronts()[1].key.repeat_interleave(2, 1)
        scores = (
            view.query
            @ torch.cat([whole.expand(2, -1, -1, -1), view.key.repeat_interleave(2, 1)], 2).mT
            / 8**0.5
        )
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        scores[..., 4:] = scores[..., 4:].masked_fill(future, -torch.inf)
        truth = scores.softmax(-1)[..., 4:]
        mass = 1 - truth.sum(-1)
    else:
        query, key, _ = eager_weights(model, 1, ids)
        at = torch.arange(length)
        visible = at[:, None] >= at
        window = 8
        near = at[:, None] - at < window
        if attention == "sliding-window":
            visible = visible & near
        elif attention == "sliding-window-sink":
            visible = visible & (near | (at < 4))
        scale = 8**-0.5
        if attention == "differential":  # the first map: the even channels
            query, scale = query * torch.tensor([1.0, 0.0] * 4), 4**-0.5
        scores = (query @ key.mT * scale).masked_fill(~visible, -torch.inf)
        variant, extra = model.model.layers[1].self_attn.variant, None
        if attention in ("sink-logit", "sink-value"):
            extra = variant.sinks[None, :, None].expand(2, -1, length)
        elif attention == "off-by-one":
            extra = torch.zeros(2, 4, length, dtype=torch.float64)
        elif attention in ("kv-bias", "key-bias"):
            extra = (query * variant.key_bias[:, None]).sum(-1) * 8**-0.5
        rule = RULES.get(attention, lambda s, n, T: s.softmax(-1))
        weights = (
            torch.cat([scores, extra[..., None]], -1).softmax(-1)[..., :-1] if extra is not None else None
        )
        truth = rule(scores, visible.sum(-1, keepdim=True).double(), length) if weights is None else weights
        mass = 1 - truth.sum(-1) if extra is not None else torch.zeros(2, 4, length, dtype=torch.float64)
    truth, mass = truth.detach(), mass.detach()
    torch.testing.assert_close(naive_probs(views[1]).detach(), truth, atol=1e-7, rtol=1e-6)
    keep = torch.ones(2, length, dtype=torch.bool).numpy()
    reading = read_plain(views[1], keep)
    torch.testing.assert_close(torch.from_numpy(reading.received), truth.sum(2), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(
        torch.from_numpy(reading.sums[2]), truth.amax(-1).sum((0, 2)), atol=1e-7, rtol=1e-6
    )
    torch.testing.assert_close(torch.from_numpy(reading.sums[3]), mass.sum((0, 2)), atol=1e-7, rtol=1e-6)
    share = truth / truth.sum(-1, keepdim=True).clamp(min=1e-300)
    entropy = -torch.special.xlogy(share, share).sum(-1)
    if attention in RULES:
        torch.testing.assert_close(
            torch.from_numpy(reading.sums[0]), entropy.sum((0, 2)), atol=1e-7, rtol=1e-6
        )


@every_variant
def test_watching_and_an_edit_that_changes_nothing_leave_the_output_alone(attention):
    model = shaken(attention=attention).double()
    anatomy = resolve(model)
    ids = torch.randint(0, 60, (2, 11))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with torch.no_grad():
        before = model(ids, mask).logits
        with watch(anatomy, on_attention=lambda view: None):
            torch.testing.assert_close(model(ids, mask).logits, before, atol=1e-10, rtol=0)
        with change_attention(model, anatomy.attention, AttentionEdit(probs=lambda layer, p: p)):
            torch.testing.assert_close(model(ids, mask).logits, before, atol=1e-10, rtol=0)
        with change_attention(model, anatomy.attention, AttentionEdit(probs=lambda layer, p: p * 0)):
            assert (model(ids, mask).logits - before).abs().max() > 1e-6


def test_registers_are_tokens_in_front_that_no_observer_sees():
    """The same blocks over registers and tokens in one sequence, without the sink's kernel."""
    model = shaken(attention="registers").double()
    ids = torch.randint(0, 60, (2, 9))
    shapes = {}
    anatomy = resolve(model)
    with watch(anatomy, on_activation=lambda site, x, rows: shapes.setdefault(site, x.shape[0])):
        with torch.no_grad():
            ours = model(ids).logits
    assert set(shapes.values()) == {18}
    decoder = model.model
    x = torch.cat([decoder.registers.expand(2, -1, -1), decoder.embed_tokens(ids)], 1)
    with torch.no_grad():
        for block in decoder.layers:
            x = block(x, rotation=decoder.rotary(Places(0, 13), x), mask=None, cache=None)
        theirs = nn.functional.linear(decoder.norm(x)[:, 4:], model.lm_head.weight)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
