"""Learned rotations: steps stay on the group and descend; the objective is the simulated model's; the result is never worse than its start."""

import copy
import math

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.anatomy import resolve
from skerry.anatomy.content import content_key
from skerry.corpus.batch import Batch
from skerry.errors import EmptyBatch, NotPossible, UnknownOption
from skerry.impact.evaluate import Evaluator
from skerry.impact.quantize import fake_quantize
from skerry.impact.scheme import Scheme, TensorSpec
from skerry.impact.simulate import Simulation
from skerry.tame.hadamard import keeping_ones, random_orthogonal
from skerry.tame.rotation import Rotation, hadamard_rotation, plan_rotation
from skerry.tame.spinquant import cayley_step, learn_rotation
from skerry.tame.straight import straight_through


def batches_of(model, num=3, length=16, padding=None):
    out = []
    for i in range(num):
        ids, keep = zoo.tokens(model, num_samples=2, length=length, seed=i, padding=padding)
        out.append(Batch(ids, keep, torch.arange(2 * i, 2 * i + 2)))
    return out


def simulated(anatomy, batches, scheme, rotation):
    """The damage that another path gives: rotation folded, quantization simulated by hooks."""
    rotation.fold(anatomy)
    evaluator = Evaluator(anatomy, batches)
    scores = evaluator.score(Simulation(scheme).open(anatomy))
    return getattr(scores, evaluator.damage)


@pytest.fixture(scope="module")
def trained():
    """A small decoder that has learned to count on in steps of 1 to 5, with a channel of the stream made 30 times larger on the way."""
    model = zoo.tiny("llama", hidden_size=64, intermediate_size=128).train()
    generator = torch.Generator().manual_seed(0)

    def draw(num):
        start = torch.randint(0, 96, (num, 1), generator=generator)
        step = torch.randint(1, 6, (num, 1), generator=generator)
        return (start + step * torch.arange(24)) % 96

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for i in range(300):
        ids = draw(16)
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        if i == 150:
            model.model.embed_tokens.weight.data[:, 5] *= 30
    keep = torch.ones(16, 24, dtype=torch.bool)
    return model.eval(), [Batch(draw(16), keep, torch.arange(16) + 16 * i) for i in range(6)]


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 24), seed=st.integers(0, 999), rate=st.floats(1e-4, 10), keep=st.booleans())
def test_steps_stay_orthogonal_and_keep_the_ones_where_asked(n, seed, rate, keep):
    x = random_orthogonal(n, seed=seed)
    x = keeping_ones(x) if keep else x
    generator = torch.Generator().manual_seed(seed)
    momentum = torch.zeros(n, n, dtype=torch.float64)
    for _ in range(20):
        gradient = torch.randn(n, n, dtype=torch.float64, generator=generator)
        x, momentum = cayley_step(x, gradient, momentum, rate=rate, keep_ones=keep)
    assert (x @ x.T - torch.eye(n)).abs().max() < 1e-12
    if keep:
        assert (x.sum(1) - 1).abs().max() < 1e-11


@pytest.mark.parametrize("keep", [False, True])
def test_steps_find_the_nearest_rotation(keep):
    # max tr(X^T T) over the group of T's own component has its only maximum in X = T.
    x = target = random_orthogonal(6, seed=1)
    if torch.linalg.det(target) < 0:
        target = target[[1, 0, 2, 3, 4, 5]]
    target = keeping_ones(keeping_ones(target)) if keep else target
    if torch.linalg.det(target) < 0:
        target = target[:, [1, 0, 2, 3, 4, 5]]
    x, momentum = torch.eye(6, dtype=torch.float64), torch.zeros(6, 6, dtype=torch.float64)
    for i in range(400):
        x, momentum = cayley_step(x, x - target, momentum, rate=0.2 * (1 - i / 400), keep_ones=keep)
    assert (x - target).abs().max() < 1e-6


def test_a_batch_of_matrices_steps_like_each_alone():
    generator = torch.Generator().manual_seed(0)
    x = torch.stack([random_orthogonal(5, seed=i) for i in range(3)])
    g, m = torch.randn(2, 3, 5, 5, dtype=torch.float64, generator=generator)
    new, momentum = cayley_step(x, g, m, rate=0.3)
    for i in range(3):
        alone, alone_momentum = cayley_step(x[i], g[i], m[i], rate=0.3)
        assert (new[i] - alone).abs().max() < 1e-14
        assert (momentum[i] - alone_momentum).abs().max() < 1e-14


@pytest.mark.parametrize(
    "spec", ["int4:sym:token", "int4:asym:token", "int3:sym:group4", "fp8_e4m3:tensor", "int4:sym:column"]
)
def test_values_are_the_rounded_ones_and_the_gradient_knows_the_range(spec):
    spec = TensorSpec.parse(spec)
    generator = torch.Generator().manual_seed(0)
    x, c = torch.randn(2, 6, 8, dtype=torch.float64, generator=generator)
    x.requires_grad_(True)
    y = straight_through(x, spec)
    rounded = fake_quantize(x.detach(), spec)
    assert (y - rounded).abs().max() < 1e-15
    (gradient,) = torch.autograd.grad((y * c).sum(), x)
    # The naive twin: errors in units of the range held fixed, each entry moved a little by itself.
    error = rounded - x.detach()

    def value(z):
        def slices(t):
            if spec.granularity == "tensor":
                return t.reshape(1, -1)
            if spec.granularity == "column":
                return t.T
            return t.reshape(-1, spec.group_size or t.shape[-1])

        size = slices(z).abs().amax(-1) if spec.symmetric else slices(z).amax(-1) - slices(z).amin(-1)
        old = slices(x.detach()).abs().amax(-1)
        old = old if spec.symmetric else slices(x.detach()).amax(-1) - slices(x.detach()).amin(-1)
        return (z * c).sum() + (slices(error * c).sum(-1) * size / old).sum()

    for row, column in [(i, j) for i in range(6) for j in range(8)]:
        step = torch.zeros_like(x)
        step[row, column] = 1e-6
        slope = (value(x.detach() + step) - value(x.detach() - step)) / 2e-6
        assert abs(float(slope - gradient[row, column])) < 1e-7


def test_a_slice_of_zeros_has_a_gradient_of_one():
    x = torch.zeros(2, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(straight_through(x, TensorSpec.parse("int4:token")).sum(), x)
    assert torch.equal(gradient, torch.ones(2, 4))


@pytest.mark.parametrize("scheme", ["w4a4", "w4a8kv4", "w8a16", "wmxfp4amxfp4"])
@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "bloom", "falcon_40b", "qwen2_moe", "gemma2", "phi3", "bert"]
)
def test_the_objective_is_that_of_the_simulated_quantization(name, scheme):
    scheme = Scheme.parse(scheme)
    overrides = {"intermediate_size": 64} if name in ("llama", "phi3", "gemma2", "bert") else {}
    if "mx" in str(scheme) and name in ("gpt2", "bloom", "falcon_40b", "qwen2_moe"):
        pytest.skip("widths are no multiple of the block")
    model = zoo.tiny(name, **overrides)
    anatomy = resolve(model)
    batches = batches_of(model)
    start = hadamard_rotation(plan_rotation(anatomy))
    learned = learn_rotation(anatomy, batches, scheme, start=start, steps=0)
    assert learned.objective == ("distance" if name == "bert" else "loss")
    assert learned.before == learned.after
    other = simulated(anatomy, batches, scheme, start)
    if learned.objective == "loss":
        # Rounding in float32 puts a few values on the other side of a step, which moves a 4-bit model's loss in the third digit.
        assert math.isclose(learned.before, other, rel_tol=2e-2)
    else:  # the judge takes the variance of each input, the learner that of a batch
        assert math.isclose(learned.before, other, rel_tol=0.5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "qwen2_moe", "gemma2", "bert", "gpt_oss", "olmo"])
def test_the_result_is_orthogonal_applicable_and_not_worse_than_its_start(name):
    model = zoo.tiny(name)
    anatomy = resolve(model)
    plan = plan_rotation(anatomy)
    key = content_key(model)
    batches = batches_of(model, padding="right" if name != "gpt_oss" else None)
    learned = learn_rotation(anatomy, batches, Scheme.parse("w4a4"), plan=plan, steps=6, score_every=2)
    assert content_key(model) == key
    assert learned.after <= learned.before
    assert list(learned.scores) == [0, 2, 4, 6]
    assert learned.after == min(learned.scores.values())
    matrices = [*learned.rotation.heads.values(), *([learned.rotation.residual] if plan.stream else [])]
    assert matrices
    for m in matrices:
        assert (m @ m.transpose(-1, -2) - torch.eye(m.shape[-1])).abs().max() < 1e-12
    if plan.keeps_ones:
        assert (learned.rotation.residual.sum(1) - 1).abs().max() < 1e-11
    assert learned.rotation.prove(anatomy, plan) < 1e-12


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_learning_lowers_the_loss(name):
    anatomy = resolve(zoo.tiny(name))
    learned = learn_rotation(
        anatomy, batches_of(anatomy.model), Scheme.parse("w4a4"), steps=24, score_every=4
    )
    assert learned.after < 0.999 * learned.before  # 4.95 to 4.88 or 4.93, by the processor; 8.31 to 8.13


@pytest.mark.slow
def test_a_learned_rotation_of_a_trained_model_beats_every_one_of_eight_random_hadamards(trained):
    model, batches = trained
    anatomy = resolve(model)
    plan = plan_rotation(anatomy)
    scheme = Scheme.parse("w4a4")
    evaluator = Evaluator(anatomy, batches)
    plain = evaluator.score(Simulation(scheme).open(anatomy)).loss
    starts = [learn_rotation(anatomy, batches, scheme, plan=plan, steps=0, seed=i).before for i in range(8)]
    learned = learn_rotation(anatomy, batches, scheme, plan=plan, steps=64)
    assert learned.before == starts[0]
    assert evaluator.original.loss < learned.after < min(starts)
    assert max(starts) < evaluator.original.loss + 0.5 * (plain - evaluator.original.loss)
    # The same number on another path: folded in float64, rounded once, quantization simulated by hooks.
    again = simulated(copy.deepcopy(anatomy), batches, scheme, learned.rotation)
    assert math.isclose(again, learned.after, rel_tol=0.05)


def test_runs_with_one_seed_agree_and_budgets_are_kept():
    anatomy = resolve(zoo.tiny("llama"))
    batches = batches_of(anatomy.model)
    scheme = Scheme.parse("w4a4")
    one, two = (learn_rotation(anatomy, batches, scheme, steps=3, seed=4) for _ in range(2))
    assert torch.equal(one.rotation.residual, two.rotation.residual)
    assert one.scores == two.scores
    assert one.stopped == "all 3 steps were made"
    none = learn_rotation(anatomy, batches, scheme, steps=3, seconds=0.0)
    assert (none.num_steps, none.stopped) == (0, "0 seconds were over")
    half = learn_rotation(anatomy, batches, scheme, steps=2, dtype=torch.bfloat16)
    assert half.rotation.residual.dtype == torch.float64
    assert half.after <= half.before


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_model_that_was_loaded_under_inference_mode_learns_the_same(name):
    plain = resolve(zoo.tiny(name))
    with torch.inference_mode():
        model = zoo.tiny(name)
    anatomy = resolve(model)
    batches, scheme = batches_of(model), Scheme.parse("w4a4")
    one, two = (learn_rotation(a, batches, scheme, steps=3) for a in (plain, anatomy))
    assert torch.equal(one.rotation.residual, two.rotation.residual)
    two.rotation.fold(anatomy)
    one.rotation.fold(plain)
    with torch.no_grad():
        ids = batches[0].input_ids
        assert torch.equal(model(ids).logits, plain.model(ids).logits)


def test_what_cannot_be_learned_is_refused():
    anatomy = resolve(zoo.tiny("llama"))
    scheme = Scheme.parse("w4a4")
    with pytest.raises(EmptyBatch, match="nothing to learn from: no input was given"):
        learn_rotation(anatomy, [], scheme)
    with pytest.raises(UnknownOption, match="steps -1, score_every 8 and rate 1.5"):
        learn_rotation(anatomy, batches_of(anatomy.model), scheme, steps=-1)
    bare = resolve(zoo.tiny("olmo", headless=True))
    with pytest.raises(
        NotPossible, match="nothing can be rotated: .*the model has no head.*not linear in its values"
    ):
        learn_rotation(bare, batches_of(bare.model), scheme)
    lone = [Batch(torch.tensor([[5]]), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.long))]
    with pytest.raises(EmptyBatch, match="no token of the calibration inputs counts"):
        learn_rotation(anatomy, lone, scheme)
    anatomy.model.lm_head.bias = torch.nn.Parameter(torch.full((96,), float("inf")))
    with pytest.raises(NotPossible, match="the quantized model's loss is no number"):
        learn_rotation(anatomy, batches_of(anatomy.model), scheme, start=Rotation(heads={0: torch.eye(8)}))
