import io
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skerry.errors import MissingExtra, NotPossible, UnknownOption
from skerry.redesign.optimisers import find_optimiser, optimiser, optimisers, split_parameters
from skerry.redesign.optimisers.orthoadam import OrthoAdam, random_orthogonal

NAMES = [o.name for o in optimisers()]


class Tiny(nn.Module):
    """Table, norm, two matrices with a bias, something per head, and a head that may be tied."""

    def __init__(self, tied=False):
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8, bias=False)
        self.sink_value = nn.Parameter(torch.zeros(2, 4))
        self.head = nn.Linear(8, 11, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def get_output_embeddings(self):
        return self.head

    def forward(self, ids):
        x = self.table(ids)
        y = x + self.down(torch.relu(self.up(self.norm(x)))) + self.sink_value.flatten()
        return self.head(y)


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    return Tiny(**options)


def loss_of(model, seed):
    ids = torch.randint(0, 11, (16, 9), generator=torch.Generator().manual_seed(seed))
    return nn.functional.cross_entropy(model(ids).flatten(0, 1), ((ids * 3 + 1) % 11).flatten())


def walk(model, optimizer, steps, start=0, autocast=False):
    losses = []
    for step in range(start, start + steps):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = loss_of(model, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def moved(optimizer_name, weight, gradients, *, role="matrices", **options):
    """`weight` after a step per gradient, in float64."""
    found = find_optimiser(optimizer_name)
    parameter = nn.Parameter(weight.double().clone())
    lr, decay = options.pop("lr", 0.1), options.pop("weight_decay", 0.0)
    optimizer = found.build(
        [{"params": [parameter], "role": role, "lr": lr, "weight_decay": decay}], **options
    )
    for gradient in gradients:
        parameter.grad = gradient.double().clone()
        optimizer.step()
    return parameter.detach()


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_parameters_are_sorted_by_what_they_are():
    model = tiny()
    found = split_parameters(model)
    assert found.matrices == [model.up.weight, model.down.weight]
    assert found.head == [model.head.weight] and found.embeddings == [model.table.weight]
    assert len(found.vectors) == 4 and model.sink_value in set(found.vectors)
    tied = tiny(tied=True)
    found = split_parameters(tied)
    assert found.head == [] and found.embeddings == [tied.table.weight]
    tied.up.weight.requires_grad_(False)
    assert split_parameters(tied).matrices == [tied.down.weight]


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_reaches_matrices_and_nothing_else(name):
    for choice in (False, True):
        model = tiny()
        optimizer = optimiser(name, model, weight_decay=0.25, decay_embeddings=choice)
        decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
        assert len(decays) == len(list(model.parameters()))
        for label, parameter in model.named_parameters():
            decayed = label in ("up.weight", "down.weight", "head.weight") or (
                choice and label == "table.weight"
            )
            assert decays[id(parameter)] == (0.25 if decayed else 0.0), label


@pytest.mark.parametrize("name", NAMES)
def test_every_optimiser_lowers_the_loss_of_a_tiny_model(name):
    model = tiny()
    losses = walk(model, optimiser(name, model, weight_decay=0.0, lr=0.2 if name == "sgd" else 0.01), 60)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5]), losses


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_state_continues_bit_for_bit(name):
    model = tiny()
    optimizer = optimiser(name, model)
    walk(model, optimizer, 13)
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    whole = walk(model, optimizer, 9, start=13)

    kept = torch.load(buffer, weights_only=True)
    again = tiny(seed=5)
    again.load_state_dict(kept["model"])
    restored = optimiser(name, again)
    restored.load_state_dict(kept["optimizer"])
    assert walk(again, restored, 9, start=13) == whole
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_one_rate_set_in_all_groups_rules_every_parameter(name):
    model = tiny()
    optimizer = optimiser(name, model)
    assert {g["lr"] for g in optimizer.param_groups} == {find_optimiser(name).lr}
    walk(model, optimizer, 2)
    before = [p.clone() for p in model.parameters()]
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    walk(model, optimizer, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_two_walks_from_one_seed_agree_and_bfloat16_autocast_keeps_float32(name):
    found = []
    for _ in range(2):
        model = tiny()
        optimizer = optimiser(name, model)
        found.append(walk(model, optimizer, 6, autocast=True))
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert all(math.isfinite(x) for x in found[-1])
    assert found[0] == found[1]


def naive_adam(weight, gradients, *, lr, decay, b1=0.9, b2=0.95, eps=1e-8):
    m = v = torch.zeros_like(weight)
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        weight = weight - lr * (m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + eps) + decay * weight)
    return weight


@pytest.mark.parametrize(("name", "options"), [("adamw", {}), ("adam-eps", {"eps": 0.3})])
def test_adamw_is_its_formula(name, options):
    weight, gradients = numbers(5, 3), [numbers(5, 3, seed=i) for i in (1, 2, 3)]
    truth = naive_adam(weight, gradients, lr=0.1, decay=0.2, **options)
    torch.testing.assert_close(
        moved(name, weight, gradients, weight_decay=0.2, **options), truth, rtol=1e-12, atol=1e-12
    )


def test_a_large_eps_makes_the_step_proportional_to_the_gradient():
    gradient = 1e-6 * numbers(4, 4, seed=1)
    step = moved("adam-eps", torch.zeros(4, 4), [gradient], eps=1e3)
    torch.testing.assert_close(step, -0.1 * gradient / 1e3, rtol=1e-6, atol=0)


def test_sgd_is_its_formula():
    weight, (g1, g2) = numbers(4, 2), (numbers(4, 2, seed=1), numbers(4, 2, seed=2))
    first = weight - 0.1 * (g1 + 0.2 * weight)
    second = first - 0.1 * (0.9 * (g1 + 0.2 * weight) + g2 + 0.2 * first)
    torch.testing.assert_close(moved("sgd", weight, [g1, g2], weight_decay=0.2), second, rtol=1e-12, atol=0)


def test_lion_is_its_formula():
    weight, gradients = numbers(6, 4), [numbers(6, 4, seed=i) for i in range(1, 6)]
    truth, m = weight, torch.zeros_like(weight)
    for g in gradients:
        truth = truth - 0.1 * (0.2 * truth + (0.9 * m + 0.1 * g).sign())
        m = 0.99 * m + 0.01 * g
    torch.testing.assert_close(
        moved("lion", weight, gradients, weight_decay=0.2), truth, rtol=1e-12, atol=1e-12
    )


def test_soap_takes_adams_step_in_the_eigenbasis_of_the_first_gradient():
    weight, (g1, g2) = numbers(5, 5), (numbers(5, 5, seed=1), numbers(5, 5, seed=2))
    left, right = (torch.linalg.eigh(x).eigenvectors for x in (g1 @ g1.T, g1.T @ g1))
    assert torch.equal(moved("soap", weight, [g1]), weight)  # it only measures
    # One step of Adam: m^ / sqrt(v^) is the sign of the turned gradient.
    truth = weight - 0.1 * left @ (left.T @ g2 @ right).sign() @ right.T
    torch.testing.assert_close(moved("soap", weight, [g1, g2]), truth, rtol=0, atol=1e-5)


def test_soap_turns_only_the_channels_of_a_table():
    model = tiny()
    optimizer = optimiser("soap", model)
    walk(model, optimizer, 2)
    table, up = optimizer.state[model.table.weight], optimizer.state[model.up.weight]
    assert [len(q) for q in table["Q"]] == [0, 8] and [len(q) for q in up["Q"]] == [12, 8]


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (8, 8)])
def test_muon_moves_all_directions_of_a_matrix_equally_far(shape):
    weight = torch.zeros(shape)
    moved_by = -moved("muon", weight, [numbers(*shape, seed=3)]) / (0.1 * 0.2 * math.sqrt(max(shape)))
    values = torch.linalg.svdvals(moved_by)
    # The quintic iteration does not converge to 1: it stays in a band about it.
    assert values.min() > 0.6 and values.max() < 1.3
    u, _, v = torch.linalg.svd(numbers(*shape, seed=3), full_matrices=False)
    assert nn.functional.cosine_similarity(moved_by.flatten(), (u @ v).flatten(), dim=0) > 0.97


def test_muon_has_the_matrices_and_adamw_the_rest():
    model, other = tiny(), tiny()
    walk(model, optimiser("muon", model), 3)
    with_adamw = optimiser("muon", other)
    state = with_adamw.state
    walk(other, with_adamw, 1)
    for label, parameter in other.named_parameters():
        is_matrix = label in ("up.weight", "down.weight")
        assert set(state[parameter]) == (
            {"momentum_buffer"} if is_matrix else {"step", "exp_avg", "exp_avg_sq"}
        )
    assert len(with_adamw.state_dict()["state"]) == len(list(other.parameters()))


def test_orthoadam_without_a_rotation_is_adamw():
    for seed in range(3):
        model, twin = tiny(seed).double(), tiny(seed).double()
        ours = walk(model, optimiser("orthoadam", model, rotation="identity"), 12)
        assert ours == pytest.approx(walk(twin, optimiser("adamw", twin), 12), rel=1e-9)
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_orthoadam_is_its_formula():
    weight, gradients = numbers(5, 7), [numbers(5, 7, seed=i) for i in (1, 2, 3)]
    left, right = random_orthogonal(5, 4, 0, 0, 0), random_orthogonal(7, 4, 0, 1, 0)
    # In the turned coordinates it is Adam without decay, and decay commutes with a rotation.
    turned = naive_adam(left @ weight @ right.T, [left @ g @ right.T for g in gradients], lr=0.1, decay=0.2)
    found = moved("orthoadam", weight, gradients, weight_decay=0.2, seed=4)
    torch.testing.assert_close(found, left.T @ turned @ right, rtol=1e-10, atol=1e-10)


def test_orthoadam_turns_the_channels_of_a_table_and_never_its_tokens():
    weight, gradient = numbers(5, 4), numbers(5, 4, seed=1)
    q = random_orthogonal(4, 0, 0, 1, 0)
    truth = weight - 0.1 * (gradient @ q.T).sign() @ q
    torch.testing.assert_close(
        moved("orthoadam", weight, [gradient], role="embeddings"), truth, rtol=0, atol=1e-6
    )


def test_orthoadam_in_blocks_is_a_block_diagonal_rotation():
    weight, gradient = torch.zeros(1, 7), numbers(1, 7, seed=1)
    blocks = torch.block_diag(random_orthogonal(4, 0, 0, 1, 0), random_orthogonal(3, 0, 0, 1, 1))
    truth = -0.1 * (gradient @ blocks.T).sign() @ blocks
    torch.testing.assert_close(
        moved("orthoadam", weight, [gradient], largest_block=4), truth, rtol=0, atol=1e-6
    )


@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_rotations_are_orthogonal_and_follow_from_the_seed(size, seed):
    q = random_orthogonal(size, seed, 1)
    torch.testing.assert_close(q @ q.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(q, random_orthogonal(size, seed, 1))
    assert size == 1 or not torch.allclose(q, random_orthogonal(size, seed, 2))


def test_two_parameters_of_one_shape_have_two_bases_and_a_checkpoint_holds_none():
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    optimizer = optimiser("orthoadam", model, seed=3)
    assert isinstance(optimizer, OrthoAdam)
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    first, second = optimizer._rotations.values()
    assert not torch.allclose(first.rows[0], second.rows[0])
    kept = optimizer.state_dict()
    assert {k for state in kept["state"].values() for k in state} == {"step", "exp_avg", "exp_avg_sq"}
    other = optimiser("orthoadam", model, seed=8)
    other.load_state_dict(kept)
    optimizer.step()
    other.step()
    assert torch.equal(other._rotations[0].rows[0], first.rows[0])


def test_orthoadam_does_not_move_quiet_channels_as_far_as_the_one_that_matters():
    gradient = torch.zeros(1, 64, dtype=torch.float64)
    gradient[0, 5] = 1.0
    adam = moved("adamw", torch.zeros(1, 64), [gradient + 1e-3 * numbers(1, 64, seed=2)])
    ortho = moved("orthoadam", torch.zeros(1, 64), [gradient + 1e-3 * numbers(1, 64, seed=2)])
    assert (
        adam.abs().median() / adam.abs().max() > 0.99
    )  # Adam moves noise channels as far as the one that matters
    assert ortho.abs().median() / ortho.abs().max() < 0.25


def test_unknown_names_options_and_numbers_are_refused():
    model = tiny()
    with pytest.raises(UnknownOption, match="no optimiser 'moun'; did you mean 'muon'"):
        optimiser("moun", model)
    with pytest.raises(UnknownOption, match="muon has no option 'momentun'; did you mean 'momentum'"):
        optimiser("muon", model, momentun=0.9)
    with pytest.raises(UnknownOption, match="learning rate is 0"):
        optimiser("adamw", model, lr=0.0)
    with pytest.raises(UnknownOption, match="weight decay is -1"):
        optimiser("adamw", model, weight_decay=-1.0)
    with pytest.raises(UnknownOption, match="no rotation 'randon'; did you mean 'random'"):
        optimiser("orthoadam", model, rotation="randon")
    with pytest.raises(UnknownOption, match="largest_block is 0"):
        optimiser("orthoadam", model, largest_block=0)
    with pytest.raises(UnknownOption, match="the seed is -1"):
        optimiser("orthoadam", model, seed=-1)
    with pytest.raises(NotPossible, match="nothing to train"):
        optimiser("adamw", nn.ReLU())
    with pytest.raises(NotPossible, match="this model has none"):
        optimiser("muon", nn.LayerNorm(4))
    with pytest.raises(NotPossible, match=r"one of shape \[4, 2, 3\]"):
        optimiser("muon", nn.Conv1d(2, 4, 3))
    assert find_optimiser("Adam_Eps").name == "adam-eps"


def test_an_absent_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(MissingExtra, match="pip install 'skerry\\[train\\]'"):
        optimiser("lion", tiny())


def test_every_optimiser_says_where_it_is_from_and_what_it_takes():
    for found in optimisers():
        assert found.what and found.source and found.lr > 0
        assert found.lr * found.weight_decay == pytest.approx(3e-4)
        assert found.options
