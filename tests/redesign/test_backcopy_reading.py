import pytest
import torch

from skerry.errors import UnknownOption
from skerry.redesign.backcopy import START, make_task
from skerry.redesign.backcopy_reading import FIRST_QUERY, excess_risk, read_backcopy
from skerry.redesign.backcopy_train import Arm, Size, flat_rows, grow, make_decoder
from skerry.redesign.positions import Places
from skerry.redesign.variants import variant

TEXT = "the cat sat on the mat and ate the hat that the rat had on; then a dog came in and sat. " * 3
SMALL = Size(layers=2, width=16, length=20, samples=8, steps=3, warmup=2, read_every=2, read_samples=6)


@pytest.fixture(scope="module")
def task():
    return make_task(TEXT)


@pytest.fixture(scope="module")
def ids(task):
    return task.batch(9, 0, samples=6, length=20)


def test_who_predicts_the_law_has_no_excess_risk(task, ids):
    found = excess_risk(task.law(ids).log(), ids, task)
    assert found.backcopy == pytest.approx(0, abs=1e-12) and found.bigram == pytest.approx(0, abs=1e-12)


def test_who_predicts_nothing_has_the_missing_nats_as_excess_risk(task, ids):
    found = excess_risk(torch.zeros(*ids.shape, task.vocab_size), ids, task)
    uniform = torch.log(torch.tensor(float(task.vocab_size), dtype=torch.float64))
    assert found.backcopy == pytest.approx(float(uniform))
    others = task.bigram[ids[~task.is_trigger(ids)]]
    assert found.bigram == pytest.approx(float((uniform - torch.special.entr(others).sum(-1)).mean()))


def test_excess_risk_is_the_mean_loss_less_the_best_loss(task):
    ids = task.batch(0, 0, samples=3000, length=16)
    torch.manual_seed(0)
    table = torch.randn(task.vocab_size, task.vocab_size, dtype=torch.float64)
    losses = -table.log_softmax(-1)[ids[:, :-1]].gather(-1, ids[:, 1:, None])[..., 0]
    found = excess_risk(table[ids][:, :-1], ids[:, :-1], task)
    on_trigger = task.is_trigger(ids[:, :-1])
    assert float(losses[on_trigger].mean()) == pytest.approx(found.backcopy, rel=1e-12)
    best = task.bayes_loss(16).bigram
    assert float(losses[~on_trigger].mean()) - best == pytest.approx(found.bigram, abs=0.03)


@pytest.mark.parametrize("attention", ["softmax", "relu"])
def test_a_reading_is_what_the_formulas_give_step_by_step(task, ids, attention):
    model = make_decoder(Arm("x", attention=attention), SMALL, task, seed=0)
    found = read_backcopy(model, ids, task)
    with torch.no_grad():
        x = model.model.embed_tokens(ids)
        for layer, block in enumerate(model.model.layers):
            attend = block.self_attn
            y = block.input_layernorm(x)
            rotation = model.model.rotary(Places(0, ids.shape[1]), x)
            q, k = (p(y)[:, None] for p in (attend.q_proj, attend.k_proj))
            half = q.shape[-1] // 2
            q, k = (
                z * rotation.cos + torch.cat([-z[..., half:], z[..., :half]], -1) * rotation.sin
                for z in (q, k)
            )
            values = attend.v_proj(y).norm(dim=-1)
            weights, deltas = {True: [], False: []}, []
            for s in range(len(ids)):
                for i in range(FIRST_QUERY, ids.shape[1]):
                    logits = (k[s, 0, : i + 1] @ q[s, 0, i]) / q.shape[-1] ** 0.5
                    rule = logits.softmax(0) if attention == "softmax" else logits.relu() / (i + 1)
                    is_trigger = bool(task.is_trigger(ids[s, i]))
                    weights[is_trigger].append(
                        (float(rule[0]), float(rule[0] / rule.sum()) if rule.sum() > 0 else 0.0)
                    )
                    if not is_trigger:
                        deltas.append(float(logits[0] - logits[1:].mean()))
            rotated = model.model.rotary(Places(0, ids.shape[1]), x)
            x = block(x, rotation=rotated, mask=None, cache=None)
            norms = x.norm(dim=-1)
            told = found.layers[layer]
            mean = lambda xs: sum(xs) / len(xs)  # noqa: E731
            assert told.layer == layer
            for is_trigger, weight, share in (
                (True, told.weight_on_triggers, told.share_on_triggers),
                (False, told.weight_on_others, told.share_on_others),
            ):
                assert weight == pytest.approx(mean([w for w, _ in weights[is_trigger]]), rel=1e-4)
                assert share == pytest.approx(mean([w for _, w in weights[is_trigger]]), rel=1e-4)
            assert told.delta_logit == pytest.approx(mean(deltas), rel=1e-3, abs=1e-6)
            assert told.value_ratio == pytest.approx(
                float(values[:, 0].mean() / values[:, 1:].mean()), rel=1e-4
            )
            assert told.residual_norm == pytest.approx(float(norms[:, 0].mean()), rel=1e-4)
            assert told.residual_ratio == pytest.approx(
                float(norms[:, 0].mean() / norms[:, 1:].mean()), rel=1e-4
            )


def test_a_planted_sink_is_read_as_one(task, ids):
    model = make_decoder(Arm("x"), SMALL, task, seed=0)
    attend = model.model.layers[0].self_attn
    with torch.no_grad():
        # Channel 0 tells <s> from all others; its key is long there, every query asks for it, and its value is nothing.
        table = model.model.embed_tokens.weight
        table[:, 0] = 0.0
        table[START] = 0.0
        table[START, 0] = 1.0
        table[1:, 1] = 1.0
        half = SMALL.width // 2
        attend.k_proj.weight.zero_()
        attend.k_proj.weight[half - 1, 0] = 50.0  # the slowest pair of channels: hardly rotated
        attend.q_proj.weight.zero_()
        attend.q_proj.weight[half - 1, 1] = 5.0
        attend.v_proj.weight[:, 0] = 0.0
    found = read_backcopy(model, ids, task).layers[0]
    assert found.share_on_triggers > 0.999 and found.share_on_others > 0.999
    assert found.delta_logit > 20 and found.value_ratio < 1e-6


def test_reading_changes_nothing(task, ids):
    model = make_decoder(Arm("x"), SMALL, task, seed=0).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert read_backcopy(model, ids, task) == read_backcopy(model, ids, task)
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_the_same_seed_grows_the_same_decoder_and_is_told_as_it_grows(task):
    told = []
    first = grow(Arm("x"), SMALL, seed=1, task=task, told=told.append)
    assert [p.step for p in first.points] == [0, 2, 3] and told == first.points
    assert first.points == grow(Arm("x"), SMALL, seed=1, task=task).points
    assert first.points != grow(Arm("x"), SMALL, seed=2, task=task).points
    rows = flat_rows(Arm("x"), SMALL, 1, first.points)
    assert len(rows) == 6 and {r["layer"] for r in rows} == {0, 1}
    assert rows[0]["backcopy_excess"] == first.points[0].reading.excess.backcopy


def test_unknown_arms_are_refused(task):
    with pytest.raises(UnknownOption, match="sofmax"):
        grow(Arm("x", attention="sofmax"), SMALL, task=task)
    with pytest.raises(UnknownOption, match="no optimiser 'sdg'"):
        grow(Arm("x", optimiser="sdg"), SMALL, task=task)


def test_relu_weights_are_positive_parts_over_the_visible_keys(task):
    logits = torch.tensor([[2.0, -torch.inf, -torch.inf], [-1.0, 3.0, -torch.inf], [-1.0, -2.0, -0.5]])[
        None, None
    ]
    config = make_decoder(Arm("x"), SMALL, task, seed=0).config
    divided = variant("relu")(config, 0).weights(logits)[0, 0]
    assert torch.equal(divided, torch.tensor([[2.0, 0, 0], [0, 1.5, 0], [0, 0, 0]]))
    plain = variant("relu")(config, 0, divided=False).weights(logits)[0, 0]
    assert torch.equal(plain, torch.tensor([[2.0, 0, 0], [0, 3.0, 0], [0, 0, 0]]))


def test_a_short_training_learns_to_copy_before_it_knows_the_text_less_badly(task):
    size = Size(layers=1, width=32, length=24, samples=16, steps=150, warmup=10, read_every=150)
    first, last = (p.reading.excess for p in grow(Arm("x", lr=1e-2), size, task=task).points)
    assert last.backcopy < 0.1 * first.backcopy and last.bigram < 0.3 * first.bigram
