"""Each penalty against its closed form, value and gradient, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.redesign.objective_kurtosis import kurtosis
from skerry.redesign.objective_maximum import maximum
from skerry.redesign.objective_z import z_loss


def random(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kurtosis_of_a_sequence_is_the_fourth_moment_over_the_unbiased_variance_squared():
    x = random(3, 5, 7)
    flat = x.flatten(1)
    expected = []
    for row in flat:
        m4 = sum((v - row.mean()) ** 4 for v in row) / len(row)
        expected.append(m4 / (row.std() ** 4 + 1e-6))
    torch.testing.assert_close(kurtosis(x), torch.stack(expected).mean())


def test_signs_alone_have_the_least_kurtosis():
    x = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(1, 500).reshape(1, 100, 10)
    n = x.numel()
    assert float(kurtosis(x)) == pytest.approx(1 / ((n / (n - 1)) ** 2 + 1e-6), rel=1e-12)


def test_energy_kurtosis_is_one_for_equal_channels_and_their_number_for_one_channel():
    equal = torch.full((2, 3, 8), -2.5, dtype=torch.float64)
    one = torch.zeros(2, 3, 8, dtype=torch.float64)
    one[..., 5] = 4.0
    assert float(kurtosis(equal, form="energy")) == pytest.approx(1.0, rel=1e-12)
    assert float(kurtosis(one, form="energy")) == pytest.approx(8.0, rel=1e-12)


def test_the_gradient_of_the_energy_kurtosis_is_its_closed_form():
    x = random(2, 3, 6).requires_grad_()
    kurtosis(x, form="energy").backward()
    with torch.no_grad():
        energy = (x * x).flatten(0, 1).mean(0)
        mean, square = energy.mean(), (energy**2).mean()
        by_energy = (2 * energy / mean**2 - 2 * square / mean**3) / 6
        expected = by_energy * 2 * x / 6
    torch.testing.assert_close(x.grad, expected)


@given(factor=st.floats(0.1, 50), form=st.sampled_from(["sequence", "energy"]), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_kurtosis_does_not_care_for_scale(factor, form, seed):
    x = random(2, 6, 5, seed=seed, scale=30.0)
    assert float(kurtosis(factor * x, form=form)) == pytest.approx(float(kurtosis(x, form=form)), rel=1e-5)


def test_a_target_makes_it_the_squared_distance():
    x = random(2, 4, 4)
    one_by_one = torch.stack([(kurtosis(x[i : i + 1]) - 1.8) ** 2 for i in range(2)]).mean()
    torch.testing.assert_close(kurtosis(x, target=1.8), one_by_one)


def test_nothing_below_the_limit_costs_or_is_pushed():
    x = torch.tensor([[[1.0, -3.0, 12.0], [0.5, -14.0, 2.0]]], dtype=torch.float64, requires_grad=True)
    found = maximum(x, limit=10.0)
    found.backward()
    assert found.item() == pytest.approx((2.0**2 + 4.0**2) / 2)
    torch.testing.assert_close(
        x.grad, torch.tensor([[[0, 0, 2.0], [0, -4.0, 0]]], dtype=torch.float64), atol=0, rtol=0
    )


@given(seed=st.integers(0, 99), temperature=st.floats(0.05, 3))
@settings(max_examples=25, deadline=None)
def test_the_smooth_maximum_lies_between_its_bounds(seed, temperature):
    x = random(2, 3, 8, seed=seed, scale=5.0)
    largest = float(x.abs().amax(-1).mean())
    found = float(maximum(x, form="soft", temperature=temperature))
    assert largest - temperature * math.log(8) - 1e-9 <= found <= largest + 1e-9


def test_the_smooth_maximum_pushes_by_the_softmax_of_the_sizes():
    x = random(1, 1, 6, scale=3.0).requires_grad_()
    maximum(x, form="soft", temperature=0.7).backward()
    with torch.no_grad():
        expected = torch.softmax(x.abs() / 0.7, -1) * x.sign()
    torch.testing.assert_close(x.grad, expected)


def test_z_loss_is_the_squared_log_of_the_sum_and_nothing_for_log_probabilities():
    logits = random(2, 4, 9).requires_grad_()
    found = z_loss(logits)
    found.backward()
    with torch.no_grad():
        z = logits[:, :-1].exp().sum(-1)
        torch.testing.assert_close(found, (z.log() ** 2).mean())
        expected = torch.zeros_like(logits)
        expected[:, :-1] = 2 * z.log()[..., None] * logits[:, :-1].softmax(-1) / 6
        torch.testing.assert_close(logits.grad, expected)
        assert float(z_loss(logits.log_softmax(-1))) == pytest.approx(0.0, abs=1e-25)
        assert float(z_loss(torch.zeros(1, 3, 9))) == pytest.approx(math.log(9) ** 2)
