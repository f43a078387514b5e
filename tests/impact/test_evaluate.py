"""What a change costs: against cross entropy, closed forms and slow twins."""

import copy
import math

import numpy as np
import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.anatomy import resolve
from skerry.anatomy.dense import dense_maps, replace_weights
from skerry.corpus.batch import Batch
from skerry.errors import EmptyBatch, UsageError
from skerry.impact.evaluate import Evaluator, agreement
from skerry.impact.inputs import compact, split
from skerry.impact.scheme import Scheme
from skerry.impact.simulate import Simulation


def batches_of(model, *, num_samples=6, sizes=(3, 3), **options):
    ids, keep = zoo.tokens(model, num_samples=num_samples, **options)
    found, start = [], 0
    for size in sizes:
        found.append(
            Batch(ids[start : start + size], keep[start : start + size], torch.arange(start, start + size))
        )
        start += size
    return found


def test_loss_and_perplexity_are_cross_entropy():
    model = zoo.tiny("llama")
    batches = batches_of(model)
    scores = Evaluator(resolve(model), batches).original
    ids = torch.cat([b.input_ids for b in batches])
    with torch.no_grad():
        logits = model(ids).logits
    per = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    np.testing.assert_allclose(scores.per_input["loss"], per.mean(1), rtol=1e-5)
    assert scores.perplexity == pytest.approx(math.exp(float(per.mean())), rel=1e-5)
    assert (scores.kl, scores.top1, scores.distance, scores.cosine) == (0, 1, None, None)


def test_divergence_and_agreement_are_their_definitions():
    model = zoo.tiny("gpt2")
    anatomy, batches = resolve(model), batches_of(model)
    evaluator = Evaluator(anatomy, batches)
    simulation = Simulation(Scheme.parse("w3a4"))
    scores = evaluator.score(simulation.open(anatomy))
    ids = torch.cat([b.input_ids for b in batches])
    with torch.no_grad():
        p = model(ids).logits[:, :-1].double().log_softmax(-1)
        with simulation.open(anatomy):
            q = model(ids).logits[:, :-1].double().log_softmax(-1)
    assert scores.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
    assert scores.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert scores.kl > 0 and 0 < scores.top1 < 1
    change = evaluator.change(scores)
    assert change.value == pytest.approx(scores.loss - evaluator.original.loss, abs=1e-6)
    assert change.low < change.value < change.high


def test_padding_and_the_cut_into_batches_change_nothing():
    model = zoo.tiny("llama")
    anatomy = resolve(model)
    ids, keep = zoo.tokens(model, num_samples=6, padding="right")
    whole = [Batch(ids, keep, torch.arange(6))]
    parts = split(whole)
    assert sum(len(b.input_ids) for b in parts.scoring) == 6 and parts.note
    simulation = Simulation(Scheme.parse("w4a4"))
    scores = [Evaluator(anatomy, b).score(simulation.open(anatomy)) for b in (whole, parts.scoring)]
    assert scores[0].loss == pytest.approx(scores[1].loss, abs=1e-5)
    assert scores[0].kl == pytest.approx(scores[1].kl, rel=1e-3)


def test_longer_inputs_count_more_as_perplexity_needs_it():
    model = zoo.tiny("llama")
    ids, keep = zoo.tokens(model, num_samples=2)
    keep = keep.clone()
    keep[1, 4:] = False
    scores = Evaluator(resolve(model), [Batch(ids, keep, torch.arange(2))]).original
    long, short = scores.per_input["loss"]
    assert scores.loss == pytest.approx((11 * long + 3 * short) / 14)


def test_an_encoder_has_distance_cosine_and_neighbours():
    model = zoo.tiny("bert", headless=True)
    anatomy, batches = resolve(model), batches_of(model)
    evaluator = Evaluator(anatomy, batches)
    first = evaluator.original
    assert evaluator.damage == "distance" and first.loss is None
    assert first.distance == 0 and first.neighbours == 1 and first.cosine == pytest.approx(1)
    scores = evaluator.score(Simulation(Scheme.parse("w3a4")).open(anatomy))
    ids = torch.cat([b.input_ids for b in batches])
    with torch.no_grad():
        old = model(ids).last_hidden_state.mean(1)
        with Simulation(Scheme.parse("w3a4")).open(anatomy):
            new = model(ids).last_hidden_state.mean(1)
    np.testing.assert_allclose(scores.per_input["cosine"], torch.cosine_similarity(old, new), atol=1e-5)
    assert scores.distance > 0 and 0 < scores.cosine < 1


def naive_agreement(new, old, k):
    found = []
    for i in range(len(new)):
        near = []
        for x in (new, old):
            likeness = [(float(x[i] @ x[j]), j) for j in range(len(x)) if j != i]
            near.append({j for _, j in sorted(likeness, reverse=True)[:k]})
        found.append(len(near[0] & near[1]) / k)
    return found


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 30))
def test_neighbours_agree_as_counted_one_by_one(seed, num):
    g = torch.Generator().manual_seed(seed)
    old = torch.nn.functional.normalize(torch.randn(num, 5, generator=g, dtype=torch.float64), dim=-1)
    new = torch.nn.functional.normalize(old + 0.5 * torch.randn(num, 5, generator=g), dim=-1)
    k = min(10, max(1, (num - 1) // 2))
    assert agreement(new, old).tolist() == pytest.approx(naive_agreement(new, old, k))
    assert agreement(old, old).eq(1).all()


def test_one_input_has_no_neighbours():
    assert agreement(torch.ones(1, 3), torch.ones(1, 3)).isnan().all()


def test_a_prefix_is_read_and_not_counted():
    model = zoo.tiny("llama")
    anatomy, batches = resolve(model), batches_of(model)
    evaluator = Evaluator(anatomy, batches, prefix=[7, 8])
    scores = evaluator.score()
    ids = torch.cat([b.input_ids for b in batches])
    longer = torch.cat([torch.tensor([[7, 8]]).expand(len(ids), -1), ids], 1)
    with torch.no_grad():
        log_q = model(longer).logits[:, 2:-1].log_softmax(-1)
    loss = -log_q.gather(-1, ids[:, 1:, None]).mean()
    assert scores.loss == pytest.approx(float(loss), rel=1e-5)
    assert evaluator.original.loss == pytest.approx(Evaluator(anatomy, batches).original.loss)
    assert scores.kl > 0


def test_another_model_is_scored_with_its_own_head():
    model = zoo.tiny("llama")
    batches = batches_of(model)
    evaluator = Evaluator(resolve(model), batches)
    same = evaluator.score_model(resolve(copy.deepcopy(model)))
    assert same.kl == pytest.approx(0, abs=1e-6) and same.top1 == 1
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.mul_(3)
    assert evaluator.score_model(resolve(other)).kl > 0.01


def test_a_changed_head_of_the_untouched_model_is_refused_and_not_compared_with_itself():
    model = zoo.tiny("llama")
    anatomy = resolve(model)
    evaluator = Evaluator(anatomy, batches_of(model))
    (head,) = [d for d in dense_maps(anatomy, head=True) if d.layer is None]
    with pytest.raises(UsageError, match="change a copy of the model and use score_model"):
        evaluator.score(replace_weights({head: head.weight * 2}))


def test_nothing_to_score_is_an_error():
    with pytest.raises(EmptyBatch):
        Evaluator(resolve(zoo.tiny("llama")), [])


# Inputs.


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(0, 2**31))
def test_every_input_is_in_one_part_once_with_its_own_tokens(lengths, seed):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 90, (len(lengths), max(lengths)), generator=g)
    keep = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    parts = split([Batch(ids, keep, torch.arange(len(lengths)))])
    groups = [parts.scoring] if parts.note else [parts.calibration, parts.scoring]
    seen = {
        int(b.sample[i]): b.input_ids[i][b.keep[i]].tolist()
        for batches in groups
        for b in batches
        for i in range(len(b.input_ids))
    }
    assert seen == {i: ids[i, :n].tolist() for i, n in enumerate(lengths)}
    assert sum(len(b.input_ids) for batches in groups for b in batches) == len(lengths)
    scored = {int(n) for b in parts.scoring for n in b.sample}
    assert {int(n) for b in parts.pricing for n in b.sample} <= scored


def test_inputs_that_calibrate_are_not_scored():
    ids = torch.arange(40 * 4).reshape(40, 4)
    parts = split([Batch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(40))])
    calibration, scoring = (
        {int(n) for b in batches for n in b.sample} for batches in (parts.calibration, parts.scoring)
    )
    assert parts.note is None and len(calibration) == 10 and len(scoring) == 30 and not calibration & scoring


def test_padding_on_the_left_stays_where_it_is():
    keep = torch.tensor([[False, False, True, True], [True, True, True, False]])
    ids = torch.arange(8).reshape(2, 4)
    (batch,) = split([Batch(ids, keep, torch.arange(2))]).scoring
    rows = {int(n): (batch.input_ids[i], batch.keep[i]) for i, n in enumerate(batch.sample)}
    assert rows[0][0].tolist() == [0, 1, 2, 3] and rows[0][1].tolist() == keep[0].tolist()
    assert compact([]) == []
