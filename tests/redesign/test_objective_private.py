"""Private gradients against a naive loop over windows; noise against its statistics; epsilon against opacus and a closed form."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from skerry.errors import MissingExtra, NotPossible
from skerry.redesign.config import DecoderConfig
from skerry.redesign.decoder import DecoderForCausalLM
from skerry.redesign.objective import make_objective
from skerry.redesign.private import epsilon_of, noise_for, num_windows, poisson_windows
from skerry.redesign.variants import variants

SMALL = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
# Their weights come from functions that torch cannot vectorise over samples.
NO_VMAP = {"entmax15", "sparsemax"}
MORE = {"kurtosis": {"weight": 0.1, "sites": ["mlp.down.in"]}, "z_loss": 0.01, "quantization": "w8a8"}


def small(**choices):
    torch.manual_seed(0)
    return DecoderForCausalLM(DecoderConfig(**{**SMALL, **choices})).double().train()


def some_ids(count=5, length=12):
    return torch.randint(0, 61, (count, length), generator=torch.Generator().manual_seed(1))


def naive_private(model, ids, clip, settings):
    """sum_i g_i min(1, C / ||g_i||), one window after the other; opacus divides by the norm + 1e-6."""
    total = [torch.zeros_like(p) for p in model.parameters()]
    norms = []
    with make_objective(model, settings) as objective:
        for i in range(len(ids)):
            loss = objective.loss(model, ids[i : i + 1]).total
            grads = torch.autograd.grad(loss, list(model.parameters()))
            norm = math.sqrt(sum(float((g**2).sum()) for g in grads))
            norms.append(norm)
            total = [t + g * min(1.0, clip / (norm + 1e-6)) for t, g in zip(total, grads, strict=True)]
    return total, norms


def private(model, ids, step=0, settings=None, seed=0, **private):
    model.zero_grad(set_to_none=True)
    wanted = {**(settings or {}), "private": {"noise": 0.0, **private}}
    with make_objective(model, wanted, batch=len(ids), seed=seed) as objective:
        found = objective.backward(model, ids)
        objective.finish(step)
    return found, [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("way", ["loop", "vmap"])
@pytest.mark.parametrize("attention", sorted(variants()))
def test_the_clipped_sum_is_that_of_a_naive_loop_over_windows(attention, way):
    if way == "vmap" and attention in NO_VMAP:
        pytest.skip("refused, see below")
    model, ids = small(attention=attention), some_ids()
    _, norms = naive_private(model, ids, 1.0, {})
    clip = float(np.median(norms))
    expected, _ = naive_private(model, ids, clip, {"z_loss": 0.01})
    found, grads = private(model, ids, clip=clip, gradients=way, chunk=2, settings={"z_loss": 0.01})
    assert sum(n > clip for n in norms) == 2, "some windows are cut and some are not"
    for a, b in zip(grads, expected, strict=True):
        # The loss is float32, whatever the model is.
        torch.testing.assert_close(a, b / len(ids), rtol=1e-5, atol=1e-8)
    assert float(found.parts["loss"]) == pytest.approx(math.log(61), rel=0.05)


@pytest.mark.parametrize("choices", [{}, {"tie_word_embeddings": False, "num_key_value_heads": 2}], ids=str)
@pytest.mark.parametrize("way", ["loop", "vmap"])
def test_every_part_of_the_objective_is_cut_with_its_window(way, choices):
    model, ids = small(attention="relu", **choices), some_ids()
    expected, norms = naive_private(model, ids, 0.7, MORE)
    _, grads = private(model, ids, clip=0.7, gradients=way, settings=MORE)
    assert max(norms) > 0.7
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a, b / len(ids), rtol=1e-5, atol=1e-8)


def test_without_noise_and_cuts_it_is_the_plain_gradient():
    model, ids = small(), some_ids()
    _, grads = private(model, ids, clip=1e6)
    model.zero_grad(set_to_none=True)
    with make_objective(model, {}) as objective:
        objective.backward(model, ids)
    for a, b in zip(grads, model.parameters(), strict=True):
        torch.testing.assert_close(a, b.grad, rtol=1e-4, atol=1e-7)  # the loss is float32


def test_one_window_moves_the_sum_by_the_clip_at_most():
    model, ids = small(), some_ids(6)
    with make_objective(model, {"private": {"noise": 0.0, "clip": 0.3}}, batch=5) as objective:
        sums = []
        for some in (ids, ids[:-1]):
            objective.backward(model, some)
            objective.finish(0)
            sums.append([5 * p.grad.clone() for p in model.parameters()])
    moved = math.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in zip(*sums, strict=True)))
    assert 0.299 < moved <= 0.3


def test_the_noise_is_gaussian_with_noise_times_clip_over_the_batch():
    model, ids = small(), some_ids(4)
    _, clean = private(model, ids, clip=0.5)
    _, noisy = private(model, ids, clip=0.5, noise=2.0, step=3)
    noise = torch.cat([(a - b).flatten() for a, b in zip(noisy, clean, strict=True)]) / (2.0 * 0.5 / 4)
    n = len(noise)
    assert abs(float(noise.mean())) < 4 / math.sqrt(n)
    assert abs(float(noise.var()) - 1) < 4 * math.sqrt(2 / n)
    assert stats.kstest(noise.numpy(), "norm").pvalue > 1e-3


def test_the_noise_is_a_function_of_seed_and_step():
    model, ids = small(num_hidden_layers=1), some_ids(2)

    def noised(step, seed):
        return torch.cat([g.flatten() for g in private(model, ids, noise=1.0, step=step, seed=seed)[1]])

    first = noised(4, 0)
    assert torch.equal(first, noised(4, 0))
    others = [noised(5, 0), noised(4, 1)]
    assert not any(torch.equal(first, other) for other in others)


def test_a_batch_without_a_window_is_noise_alone():
    model = small()
    ids = some_ids(0)
    with make_objective(model, {"private": {"noise": 1.0, "clip": 0.5}}, batch=8) as objective:
        found = objective.backward(model, ids)
        objective.finish(0)
    assert math.isnan(float(found.total))
    noise = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert float(noise.std()) == pytest.approx(0.5 / 8, rel=0.05)


def test_it_trains_under_autocast():
    model, ids = small().float(), some_ids(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    found = []
    with make_objective(model, {"private": {"noise": 0.02}}, batch=8) as objective:
        for step in range(12):
            optimizer.zero_grad(set_to_none=True)
            told = objective.backward(
                model, ids, number=step, autocast=lambda: torch.autocast("cpu", torch.bfloat16)
            )
            objective.finish(step)
            optimizer.step()
            found.append(float(told.parts["loss"]))
    assert found[-1] < found[0] - 0.1


@pytest.mark.parametrize("attention", sorted(NO_VMAP))
def test_what_cannot_be_computed_together_says_what_can(attention):
    with pytest.raises(NotPossible, match="'loop'"):
        private(small(attention=attention), some_ids(), gradients="vmap")


def test_epsilon_of_one_full_batch_is_that_of_the_gaussian_mechanism():
    """Sampling everything once is the Gaussian mechanism: delta = Phi(1/2s - es) - e^e Phi(-1/2s - es) (Balle & Wang 2018)."""
    found = epsilon_of(noise=2.0, sample_rate=1.0, steps=1, delta=1e-5, accountant="prv")
    s = 2.0
    delta = stats.norm.cdf(1 / (2 * s) - found * s) - math.exp(found) * stats.norm.cdf(
        -1 / (2 * s) - found * s
    )
    assert delta == pytest.approx(1e-5, rel=0.15)
    looser = epsilon_of(noise=2.0, sample_rate=1.0, steps=1, delta=1e-5, accountant="rdp")
    assert found < looser < 1.5 * found


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_epsilon_is_that_of_the_accountant_of_opacus_step_by_step(accountant):
    from opacus.accountants import create_accountant

    model = small()
    made = make_objective(
        model,
        {"private": {"noise": 1.1, "accountant": accountant}},
        batch=16,
        tokens=1600 * 11 + 5,
        context=12,
        bos=0,
    )
    found = made.privacy(50)
    account = create_accountant(accountant)
    for _ in range(50):
        account.step(noise_multiplier=1.1, sample_rate=16 / 1600)
    assert found.sample_rate == 16 / 1600 and found.delta == pytest.approx(1 / 16000)
    assert found.epsilon == pytest.approx(account.get_epsilon(delta=1 / 16000), rel=1e-9)
    assert made.privacy(0).epsilon == 0 < found.epsilon < made.privacy(100).epsilon


def test_without_noise_epsilon_is_infinite_and_without_privacy_there_is_none():
    made = make_objective(small(), {"private": 0.0}, batch=4, tokens=1000, context=10)
    assert made.privacy(10).epsilon == math.inf
    assert make_objective(small(), {}).privacy(10) is None


def test_the_noise_of_a_wanted_epsilon_gives_that_epsilon():
    model = small()
    made = make_objective(
        model, {"private": {"epsilon": 4.0, "delta": 1e-5}}, batch=8, tokens=8000, context=10, steps=100
    )
    found = made.privacy(100)
    assert 3.9 < found.epsilon <= 4.0
    assert found.noise == pytest.approx(
        noise_for(epsilon=4.0, delta=1e-5, sample_rate=8 / 800, steps=100, accountant="rdp")
    )


def test_every_window_is_drawn_by_its_own_coin_and_windows_are_disjoint():
    ids = np.arange(1003)
    assert num_windows(1003, context=11, bos=0) == 100
    counts, sizes = np.zeros(100), []
    for step in range(400):
        rows = poisson_windows(ids, count=20, context=11, bos=7, seed=3, step=step)
        assert (rows[:, 0] == 7).all() and rows.shape[1] == 11
        starts = rows[:, 1].numpy()
        assert (starts % 10 == 0).all() and len(set(starts)) == len(starts)
        counts[starts // 10] += 1
        sizes.append(len(rows))
    # Binomial: mean n p, variance n p (1 - p).
    assert abs(np.mean(sizes) - 20) < 4 * math.sqrt(100 * 0.2 * 0.8 / 400)
    assert abs(np.var(sizes) / 16 - 1) < 4 * math.sqrt(2 / 400)
    assert abs(counts.mean() - 80) < 3 and counts.std() == pytest.approx(math.sqrt(400 * 0.2 * 0.8), rel=0.35)
    again = poisson_windows(ids, count=20, context=11, bos=7, seed=3, step=399)
    assert torch.equal(rows, again)


def test_numbers_that_privacy_cannot_do_without_are_asked_for(monkeypatch):
    model, ids = small(), some_ids()
    with pytest.raises(NotPossible, match="expected batch"), make_objective(model, {"private": {}}) as o:
        o.backward(model, ids)
    with pytest.raises(NotPossible, match="tokens and context"):
        make_objective(model, {"private": {"epsilon": 3}}, batch=4)
    with pytest.raises(NotPossible, match="its steps"):
        make_objective(model, {"private": {"epsilon": 3}}, batch=4, tokens=1000, context=10)
    with pytest.raises(NotPossible, match="3 disjoint windows"):
        make_objective(model, {"private": {}}, batch=4, tokens=30, context=10)
    with pytest.raises(NotPossible, match="tokens and context"):
        make_objective(model, {"private": {}}, batch=4).privacy(3)
    with pytest.raises(NotPossible, match="3 disjoint windows"):
        poisson_windows(np.arange(30), count=4, context=10, bos=None, seed=0, step=0)
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(MissingExtra, match=r"skerry\[private\]"):
        make_objective(model, {"private": {}}, batch=4)
