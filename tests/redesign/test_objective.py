"""The objective as a whole: neutral settings are the plain loss, hooks leave no trace, the noise is what `skerry impact` prices."""

from __future__ import annotations

import pytest
import torch

from skerry.anatomy import capture, resolve
from skerry.anatomy.sites import Site
from skerry.errors import NotPossible, UnknownOption, UnknownSite
from skerry.impact.scheme import Scheme, TensorSpec
from skerry.impact.simulate import Simulation
from skerry.redesign.config import DecoderConfig
from skerry.redesign.decoder import DecoderForCausalLM, next_token_loss
from skerry.redesign.objective import make_objective
from skerry.redesign.objective_kurtosis import kurtosis
from skerry.redesign.objective_maximum import maximum
from skerry.redesign.objective_rounding import round_straight
from skerry.redesign.objective_settings import Settings, read_settings
from skerry.redesign.objective_z import z_loss
from skerry.redesign.variants import variants

SMALL = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def small(**choices):
    torch.manual_seed(0)
    return DecoderForCausalLM(DecoderConfig(**{**SMALL, **choices})).train()


def some_ids(count=3, length=16):
    return torch.randint(0, 61, (count, length), generator=torch.Generator().manual_seed(1))


def gradients(model):
    return [p.grad.clone() for p in model.parameters()]


def plain(model, ids):
    model.zero_grad(set_to_none=True)
    loss = next_token_loss(model(ids, use_cache=False).logits, ids)
    loss.backward()
    found = loss.detach(), gradients(model)
    model.zero_grad(set_to_none=True)
    return found


def by(settings, model, ids, **more):
    model.zero_grad(set_to_none=True)
    with make_objective(model, settings, **more) as objective:
        found = objective.backward(model, ids)
        objective.finish(0)
    grads = gradients(model)
    model.zero_grad(set_to_none=True)
    return found, grads


NEUTRAL = [
    {},
    {"kurtosis": 0.0},
    {"maximum": {"weight": 0, "sites": ["mlp.down.in"]}},
    {"z_loss": 0},
    {"quantization": "w16a16"},
    {"quantization": {"scheme": "w4a4", "probability": 0}},
    {"kurtosis": None, "private": None},
]


@pytest.mark.parametrize("settings", NEUTRAL, ids=str)
def test_neutral_settings_are_the_plain_loss_and_gradient_bit_for_bit(settings):
    model, ids = small(), some_ids()
    loss, grads = plain(model, ids)
    found, mine = by(settings, model, ids)
    assert read_settings(settings) == Settings()
    assert torch.equal(found.total, loss) and torch.equal(found.parts["loss"], loss)
    assert all(torch.equal(a, b) for a, b in zip(mine, grads, strict=True))


@pytest.mark.parametrize("attention", sorted(variants()))
def test_every_part_is_its_formula_on_what_the_anatomy_shows(attention):
    model, ids = small(attention=attention).double(), some_ids()
    settings = {
        "kurtosis": {"weight": 0.3, "sites": ["resid.out", "attn.in"]},
        "maximum": {"weight": 0.2, "sites": "mlp.down.in", "form": "soft", "layers": [1]},
        "z_loss": 0.1,
    }
    found, grads = by(settings, model, ids)
    seen = {s: x.reshape(3, 16, -1) for s, x in capture(resolve(model), ids).items()}
    tails = [kurtosis(seen[Site(layer, part)]) for layer in range(2) for part in ("resid.out", "attn.in")]
    expected = {
        "kurtosis": torch.stack(tails).mean(),
        "maximum": maximum(seen[Site(1, "mlp.down.in")], form="soft"),
        "z_loss": z_loss(model(ids, use_cache=False).logits.detach()),
        "loss": plain(model, ids)[0].double(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found.parts[name].double(), value)
    total = (
        expected["loss"] + 0.3 * expected["kurtosis"] + 0.2 * expected["maximum"] + 0.1 * expected["z_loss"]
    )
    torch.testing.assert_close(found.total, total)
    assert all(bool(g.isfinite().all()) for g in grads)


def test_the_gradient_of_a_penalty_in_a_model_is_that_of_finite_differences():
    model, ids = small(num_hidden_layers=1).double(), some_ids(2, 8)
    settings = {"kurtosis": {"weight": 1.0, "sites": ["resid.out", "mlp.down.in"]}, "z_loss": 0.5}
    with make_objective(model, settings) as objective:

        def value():
            parts = objective.loss(model, ids).parts
            return parts["kurtosis"] + 0.5 * parts["z_loss"]

        weight = model.model.layers[0].mlp.up_proj.weight
        (grad,) = torch.autograd.grad(value(), weight)
        for row, column in ((0, 0), (7, 3), (20, 31)):
            with torch.no_grad():
                weight[row, column] += 1e-5
                high = value()
                weight[row, column] -= 2e-5
                low = value()
                weight[row, column] += 1e-5
            assert float(grad[row, column]) == pytest.approx(float((high - low) / 2e-5), rel=1e-5, abs=1e-9)


def test_an_objective_that_was_closed_leaves_no_trace():
    model, ids = small(), some_ids()
    loss, grads = plain(model, ids)
    state = torch.get_rng_state()
    by({"kurtosis": 1, "maximum": 1, "z_loss": 1, "quantization": "w4a4"}, model, ids)
    by({"private": {}}, model, ids, batch=3)
    assert torch.equal(state, torch.get_rng_state())
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert "weight" not in module.__dict__
    for p in model.parameters():
        assert not hasattr(p, "grad_sample") and not hasattr(p, "summed_grad")
    again, mine = plain(model, ids)
    assert torch.equal(again, loss) and all(torch.equal(a, b) for a, b in zip(mine, grads, strict=True))


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16-g16", "w4a4", "w8a8-tensor-dynamic", "wmxfp4a16", "w16a8"])
@pytest.mark.parametrize("attention", ["softmax", "sink-logit", "scaled"])
def test_the_noised_forward_is_the_one_that_impact_prices_bit_for_bit(scheme, attention):
    model, ids = small(attention=attention), some_ids()
    with make_objective(model, {"quantization": scheme}) as objective:
        found = objective.loss(model, ids).total.detach()
    with torch.no_grad(), Simulation(Scheme.parse(scheme)).open(resolve(model)):
        priced = next_token_loss(model(ids, use_cache=False).logits, ids)
    assert torch.equal(found, priced)
    assert not torch.equal(found, plain(model, ids)[0])


def test_the_gradient_goes_straight_through_a_rounded_map():
    """y = Q(x) Q(W)^T: dW is g^T Q(x) and dx is g Q(W), as if Q were not there in the backward."""
    spec = TensorSpec.parse("int4:sym:channel")
    rows = TensorSpec.parse("int8:sym:token")
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    g = torch.randn(5, 3, dtype=torch.float64)
    qx, qw = round_straight(x, rows), round_straight(w, spec)
    (qx @ qw.T).backward(g)
    torch.testing.assert_close(w.grad, g.T @ qx.detach(), rtol=0, atol=0)
    torch.testing.assert_close(x.grad, g @ qw.detach(), rtol=0, atol=0)


def test_maps_are_drawn_by_seed_and_number_with_the_probability_asked_for():
    model = small(num_hidden_layers=4)

    def drawn(seed, numbers):
        objective = make_objective(model, {"quantization": {"scheme": "w8a8", "probability": 0.3}}, seed=seed)
        found = []
        for n in numbers:
            objective._rounding.draw(n)
            found += list(objective._rounding._on.values())
        return found

    many = drawn(0, range(200))
    share, count = sum(many) / len(many), len(many)
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / count) ** 0.5
    assert drawn(0, [7]) == drawn(0, [7]) and drawn(0, range(9)) != drawn(1, range(9))


@pytest.mark.parametrize("attention", sorted(variants()))
def test_everything_together_goes_under_bfloat16_autocast(attention):
    model, ids = small(attention=attention), some_ids()
    settings = {"kurtosis": 0.01, "maximum": 0.01, "z_loss": 0.01, "quantization": "w8a8"}
    wide, expected = by(settings, model, ids)
    with make_objective(model, settings) as objective:
        found = objective.backward(model, ids, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    # bfloat16 keeps 8 bits; of a whole gradient the direction must stay.
    assert float(found.total) == pytest.approx(float(wide.total), rel=0.02)
    mine, theirs = (torch.cat([g.flatten() for g in many]) for many in (gradients(model), expected))
    assert bool(mine.isfinite().all())
    assert float(torch.cosine_similarity(mine, theirs, dim=0)) > 0.95


def test_micro_batches_add_up_to_the_batch():
    model, ids = small().double(), some_ids(4)
    _, whole = by({"z_loss": 0.1}, model, ids)
    with make_objective(model, {"z_loss": 0.1}) as objective:
        for some in ids.split(2):
            objective.backward(model, some, share=0.5)
    for a, b in zip(gradients(model), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)  # the loss itself is float32


def test_a_penalty_lowers_what_it_is_on():
    found = {}
    for weight in (0.0, 1.0):
        model, ids = small(), some_ids(8)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        with make_objective(model, {"kurtosis": {"weight": weight, "form": "energy"}}) as objective:
            for step in range(30):
                optimizer.zero_grad(set_to_none=True)
                objective.backward(model, ids, number=step)
                optimizer.step()
        seen = capture(resolve(model), ids, ["resid.out"])
        found[weight] = max(float(kurtosis(x.reshape(8, 16, -1), form="energy")) for x in seen.values())
    # 1 is the least: every channel with equal energy.
    assert found[1.0] - 1 < 0.2 * (found[0.0] - 1)


REFUSED = [
    ({"kurtosiss": 1}, UnknownOption, "'kurtosis'"),
    ({"kurtosis": {"wieght": 1}}, UnknownOption, "'weight'"),
    ({"kurtosis": {"weight": 1, "sites": ["resid.ot"]}}, UnknownSite, "'resid.out'"),
    ({"kurtosis": {"weight": 1, "sites": ["attn.probs"]}}, UnknownSite, "never stored"),
    ({"kurtosis": {"weight": 1, "sites": []}}, UnknownOption, "list of parts"),
    ({"kurtosis": {"weight": 1, "form": "energie"}}, UnknownOption, "'energy'"),
    ({"kurtosis": {"weight": 1, "layers": [-1]}}, UnknownOption, "layers from 0"),
    ({"maximum": {"weight": -1}}, UnknownOption, "0 or more"),
    ({"maximum": {"weight": True}}, UnknownOption, "a number"),
    ({"maximum": {"weight": float("nan")}}, UnknownOption, "a number"),
    ({"maximum": {"weight": 1, "form": "soft", "temperature": 0}}, UnknownOption, "above 0"),
    ({"maximum": {"weight": 1, "form": 3}}, UnknownOption, "it is a word"),
    ({"z_loss": "much"}, UnknownOption, "a number"),
    ({"quantization": "w8a9"}, UnknownOption, "8"),
    ({"quantization": {"scheme": "w8a8", "probability": 1.5}}, UnknownOption, "at most 1"),
    ({"quantization": "w8a8-tensor"}, NotPossible, "-dynamic"),
    ({"quantization": "w4a4kv4"}, NotPossible, "kv"),
    ({"private": {"accountant": "rpd"}}, UnknownOption, "'rdp'"),
    ({"private": {"clip": 0}}, UnknownOption, "above 0"),
    ({"private": {"chunk": 1.5}}, UnknownOption, "whole number"),
    ({"private": {"delta": 1}}, UnknownOption, "above 0"),
]


@pytest.mark.parametrize(("settings", "error", "words"), REFUSED, ids=lambda x: str(x)[:60])
def test_settings_that_cannot_be_meant_are_refused_with_what_comes_near(settings, error, words):
    with pytest.raises(error) as refused:
        read_settings(settings)
    assert words in str(refused.value)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(NotPossible, match="compile off"):
        read_settings({"kurtosis": 1}, compiled=True)
    assert read_settings({"z_loss": 1}, compiled=True).z_loss is not None
    with pytest.raises(NotPossible, match="4 micro-batches"):
        read_settings({"private": {}}, accumulation=4)
    model, ids = small(), some_ids()
    with pytest.raises(UnknownOption, match="layers 0 to 1"):
        make_objective(model, {"kurtosis": {"weight": 1, "layers": [2]}})
    with pytest.raises(UnknownSite, match=r"no 'attn\.add'"):
        make_objective(model, {"kurtosis": {"weight": 1, "sites": ["attn.add"]}})
    with pytest.raises(NotPossible, match="not open"):
        make_objective(model, {"kurtosis": 1}).loss(model, ids)
