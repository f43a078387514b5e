"""The numbers of the battery against other ways to get them: intervals, calibration, generation, comparison."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from skerry.causes.bootstrap import bootstrap
from skerry.redesign.battery import Score, compare, run_battery
from skerry.redesign.battery.calibration import WIDTHS, bin_predictions
from skerry.redesign.battery.choosing import among, of_all
from skerry.redesign.battery.compare import compare_score
from skerry.redesign.battery.generation import generate, sample
from skerry.redesign.battery.repetition import distinct, loops, repeated_end
from skerry.redesign.battery.score import combine, mean_parts
from skerry.redesign.battery.subject import subject_of

from .battery_models import Known, copying, even


def made(values, weights=None, **more):
    return Score("task", "measure", "what", mean_parts(values, weights), **more)


def test_the_interval_of_a_mean_is_the_bootstrap_of_causes():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=30), rng.integers(0, 5, 30).astype(float)
    values[3] = np.nan
    assert made(values, weights, seed=4).interval == pytest.approx(bootstrap(values, weights, seed=4))


@pytest.mark.parametrize("hit", [0.0, 1.0])
def test_where_all_inputs_agree_a_share_has_its_exact_interval(hit):
    found = made([hit] * 20, kind="share").interval
    exact = binomtest(int(20 * hit), 20).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))


def test_standing_is_told_by_the_interval_and_the_better_direction():
    values = np.linspace(0.4, 0.6, 30)
    assert made(values, chance=0.5).standing == "at"
    assert made(values, chance=0.1).standing == "better"
    assert made(values, chance=0.1, better="lower").standing == "worse"
    assert made(values).standing is None
    assert made([0.5], chance=0.1).standing is None


def test_the_same_model_differs_from_itself_by_nothing_and_a_copier_from_an_even_guess_by_much():
    options = {"inputs": 8, "training_length": 128, "tasks": ["induction", "retrieval"]}
    a, b = (run_battery(Known(rule), **options) for rule in (even, copying))
    for d in compare(a, a):
        assert tuple(d.difference) == (0.0, 0.0, 0.0) and d.verdict == "no difference seen" and d.is_paired
    for d in compare(a, b):
        assert d.verdict == "better", d
        assert d.difference.value == pytest.approx(d.b - d.a)


def test_pairs_are_narrower_than_inputs_drawn_apart():
    rng = np.random.default_rng(0)
    hard, gain = rng.normal(size=40) * 3, 0.2 + 0.05 * rng.normal(size=40)
    a, b = made(hard, inputs="x"), made(hard + gain, inputs="x")
    paired = compare_score(a, b)
    expected = bootstrap(gain)
    assert paired.difference == pytest.approx(expected) and paired.verdict == "better"
    apart = compare_score(a, made(hard + gain, inputs="y"))
    assert not apart.is_paired and apart.verdict == "no difference seen"
    assert apart.difference.value == pytest.approx(paired.difference.value)


def naive_top_error(p, happened):
    """Guo et al.'s definition, prediction by prediction."""
    bins = [[] for _ in range(WIDTHS)]
    for row, token in zip(p, happened, strict=True):
        confidence = row.max()
        number = next(i for i in range(WIDTHS) if confidence <= (i + 1) / WIDTHS + 1e-12)
        bins[number].append((confidence, float(row.argmax() == token)))
    total = sum(map(len, bins))
    return sum(
        len(b) / total * abs(np.mean([c for c, _ in b]) - np.mean([h for _, h in b])) for b in bins if b
    )


def naive_error_of_all(p, happened, *, rest):
    """By powers of two, event by event."""
    hits, mass = np.zeros(21), np.zeros(21)
    for row, token in zip(p, happened, strict=True):
        for v, x in enumerate(row):
            if rest and v == row.argmax():
                continue
            k = min(20, int(np.floor(-np.log2(x))))
            mass[k] += x
            hits[k] += v == token
    return np.abs(hits - mass).sum() / len(p)


def test_calibration_is_that_of_the_definition():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 25, 30, generator=generator, dtype=torch.float64)
    happened = torch.randint(30, (4, 25), generator=generator)
    found = bin_predictions(logits, happened)
    p, y = logits.softmax(-1).reshape(-1, 30).numpy(), happened.reshape(-1).numpy()
    values = [float(combine("ece", x.sum(0, keepdims=True))[0]) for x in found[:3]]
    assert values[0] == pytest.approx(naive_top_error(p, y))
    assert values[1] == pytest.approx(naive_error_of_all(p, y, rest=False))
    assert values[2] == pytest.approx(naive_error_of_all(p, y, rest=True))
    brier = ((p - np.eye(30)[y]) ** 2).sum(1).mean()
    assert found.brier[:, 0].sum() / found.brier[:, 1].sum() == pytest.approx(brier)


def test_ties_share_the_hit_and_candidates_share_the_probability():
    logits = torch.tensor([[[2.0, 2.0, 0.0, 1.0]]])
    assert of_all(logits, torch.tensor([[1]])).accuracy.item() == 0.5
    assert of_all(logits, torch.tensor([[3]])).accuracy.item() == 0.0
    found = among(logits, torch.tensor([[2, 3]]), torch.tensor([[1]]))
    assert found.accuracy.item() == 1.0
    assert found.log_probability.item() == pytest.approx(1.0 - np.log(np.e + 1))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "mistral", "bloom"])
@pytest.mark.parametrize("sampled", [False, True])
def test_generation_with_the_cache_is_generation_without(tiny_model, name, sampled):
    model = tiny_model(name).double().eval()
    subject = subject_of(model, length=48)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(4, 90, (5, 6), generator=generator)
    uniform = torch.rand(5, 20, generator=generator) if sampled else None
    fast, slow = (generate(subject, prompts, 20, uniform=uniform, use_cache=c) for c in (True, False))
    assert torch.equal(fast, slow)
    if not sampled:
        theirs = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=None,
        )
        assert torch.equal(fast, theirs[:, 6:])


def test_sampling_follows_the_distribution_and_the_same_numbers_give_the_same_tokens():
    logits = torch.tensor([0.1, 2.0, -1.0, 0.5]).expand(20_000, 4)
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = sample(logits, uniform)
    # Four standard errors of a share of 20,000.
    np.testing.assert_allclose(
        np.bincount(tokens, minlength=4) / 20_000, logits[0].softmax(-1), atol=4 * 0.5 / 20_000**0.5
    )
    assert torch.equal(tokens, sample(logits, uniform))
    ends = sample(torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]]), torch.tensor([0.999999, 0.0]))
    assert ends.tolist() == [0, 1]


def naive_loops(new):
    return any(
        all(new[-i] == new[-i - p] for i in range(1, size - p + 1))
        for p in range(1, len(new) // 3 + 1)
        for size in [max(3 * p, 12)]
        if size <= len(new)
    )


def naive_repeated_end(prompt, new):
    text = [*prompt, *new]
    fits = (
        m for m in range(len(new), 0, -1) if any(text[i : i + m] == text[-m:] for i in range(len(text) - m))
    )
    return next(fits, 0)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.integers(0, 2), max_size=6),
    st.lists(st.integers(0, 2), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(0, 6),
)
def test_repetition_is_that_of_the_definition(prompt, new, period, turns):
    new = new + new[-period:] * turns
    assert loops(new) == naive_loops(new)
    assert repeated_end(prompt, new) == naive_repeated_end(prompt, new)
    grams = [tuple(new[i : i + 3]) for i in range(len(new) - 2)]
    if grams:
        assert distinct(new, 3) == len(set(grams)) / len(grams)
