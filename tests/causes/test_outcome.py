"""The loss is the model's own, the divergence is none without a change, the distance is its formula."""

import math

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch.testing import assert_close

from skerry.anatomy import resolve
from skerry.anatomy.model import run
from skerry.causes import outcome
from skerry.causes.ablations import ablate_weight
from skerry.causes.interventions import scale, zero
from skerry.causes.outcome import Judge
from skerry.causes.rerun import Rerun
from skerry.corpus.batch import Batch

DECODERS = pytest.mark.parametrize("name", zoo.DECODERS)


def batch_of(ids, keep=None):
    return Batch(
        ids, torch.ones_like(ids, dtype=torch.bool) if keep is None else keep, torch.arange(len(ids))
    )


@DECODERS
@pytest.mark.parametrize("padding", [None, "right"])
def test_the_clean_loss_is_transformers_own(name, padding):
    """Also with multipliers (Granite), soft caps (Gemma 2), narrow heads (OPT-350m) and biases on the logits."""
    model = zoo.tiny(name)
    ids, keep = zoo.tokens(model, num_samples=3, length=9, padding=padding)
    clean = Rerun(resolve(model), batch_of(ids, keep)).clean
    assert clean["loss"].dtype == torch.float64 and not clean["kl"].any()
    for b in range(3):
        labels = ids[b : b + 1].masked_fill(~keep[b : b + 1], -100)
        with torch.no_grad():
            theirs = model(ids[b : b + 1], attention_mask=keep[b : b + 1].long(), labels=labels).loss
        assert_close(clean["loss"][b].float(), theirs, rtol=1e-5, atol=1e-5)


def test_left_padding_does_not_count(tiny_model):
    model = tiny_model("llama")
    ids, keep = zoo.tokens(model, num_samples=3, length=9, padding="left")
    clean = Rerun(resolve(model), batch_of(ids, keep)).clean["loss"]
    for b in range(3):
        alone = Rerun(resolve(model), batch_of(ids[b : b + 1, 2 * b :])).clean["loss"]
        assert_close(clean[b : b + 1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "granite", "gemma2", "opt_350m", "bloom", "gptj"])
def test_loss_and_divergence_of_a_change_are_those_of_the_changed_logits(name):
    model = zoo.tiny(name)
    anatomy = resolve(model)
    ids, keep = zoo.tokens(model, num_samples=3, length=9, padding="right")
    made = scale(anatomy, "1.mlp.out", 3.0)
    found = Rerun(anatomy, batch_of(ids, keep)).run(made)
    with torch.no_grad():
        old = model(ids, attention_mask=keep.long()).logits.double().log_softmax(-1)
        with made:
            new = model(ids, attention_mask=keep.long()).logits.double().log_softmax(-1)
    counts = (keep[:, 1:] & keep[:, :-1]).double()
    loss = -new[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    kl = F.kl_div(new, old, reduction="none", log_target=True).sum(-1)[:, :-1]
    for name_of, x in (("loss", loss), ("kl", kl)):
        assert_close(found[name_of], (x * counts).sum(-1) / counts.sum(-1), rtol=1e-4, atol=1e-5)
    assert (found["kl"] > 0).all()


@pytest.mark.parametrize("factor", [1.0, 1.0 + 1e-7, 1.0 + 1e-6, 1.001])
def test_the_divergence_is_never_below_zero(tiny_model, factor):
    model = tiny_model("llama")
    anatomy = resolve(model)
    rerun = Rerun(anatomy, batch_of(zoo.tokens(model, num_samples=8)[0]))
    kl = rerun.run(scale(anatomy, "1.resid.out", torch.tensor(factor)), first_layer=0)["kl"]
    assert (kl >= 0).all()
    if factor == 1.0:
        assert not kl.any()


def test_many_logits_are_read_in_parts_with_the_same_result(tiny_model, monkeypatch):
    model = tiny_model("llama")
    anatomy, ids = resolve(model), zoo.tokens(model, num_samples=5)[0]
    made = zero(anatomy, "1.mlp.out", [3])
    whole = Rerun(anatomy, batch_of(ids)).run(made)
    monkeypatch.setattr(outcome, "LOGITS_AT_ONCE", 96 * 12 * 2)
    parts = Rerun(anatomy, batch_of(ids)).run(made)
    for key, x in whole.items():
        assert_close(parts[key], x, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("tied", [True, False])
def test_a_changed_head_counts(tiny_model, tied):
    """Also the head's side of a tied embedding, although the blocks give the same."""
    model = tiny_model("llama", tie_word_embeddings=tied)
    anatomy, ids = resolve(model), zoo.tokens(model, num_samples=3)[0]
    absent = next(i for i in range(4, 96) if not (ids == i).any())
    made = ablate_weight(anatomy, "w.embed" if tied else "w.head", absent, range(32), 30.0)
    assert made.changes_head
    rerun = Rerun(anatomy, batch_of(ids))
    found = rerun.run(made)
    with torch.no_grad():
        old = model(ids).logits.double().log_softmax(-1)
        with made:
            new = model(ids).logits.double().log_softmax(-1)
    kl = (old.exp() * (old - new)).sum(-1)[:, :-1].mean(-1)
    assert_close(found["kl"], kl, rtol=1e-4, atol=1e-5)
    assert (found["kl"] > 0.01).all()
    assert torch.equal(rerun.run()["loss"], rerun.clean["loss"])


def test_weights_of_the_blocks_do_not_change_the_head(tiny_model):
    model = tiny_model("llama")
    assert not ablate_weight(resolve(model), "1.w.down", 0, 0).changes_head
    assert not ablate_weight(resolve(model), "w.embed", 0, 0).changes_head


@pytest.mark.parametrize("name", zoo.ENCODERS)
def test_an_encoder_without_a_head_has_a_distance_by_its_formula(name):
    model = zoo.tiny(name, headless=True)
    anatomy = resolve(model)
    ids, keep = zoo.tokens(model, num_samples=3, length=9, padding="right")
    rerun = Rerun(anatomy, batch_of(ids, keep))
    assert rerun.judge.outcomes == ("distance",)
    assert "no language-model head" in rerun.judge.note
    assert not rerun.clean["distance"].any()
    made = scale(anatomy, "0.mlp.out", 2.0)
    with made:
        changed = run(anatomy, ids, keep).last_hidden_state
    clean = run(anatomy, ids, keep).last_hidden_state
    for b in range(3):
        total = 0.0
        for c in range(clean.shape[-1]):
            variance = clean[..., c][keep].double().var()
            total += ((changed - clean)[b, keep[b], c].double() ** 2 / variance).mean()
        assert_close(
            rerun.run(made)["distance"][b], torch.as_tensor(total / clean.shape[-1]), rtol=1e-9, atol=0
        )


def test_unrelated_states_are_two_apart_and_a_scaled_outlier_counts_like_any_channel():
    generator = torch.Generator().manual_seed(0)
    clean, other = torch.randn(2, 200, 8, 16, generator=generator)
    spread = torch.ones(16)
    spread[3] = 1000.0
    keep = torch.ones(200, 8, dtype=torch.bool)
    ids = torch.zeros(200, 8, dtype=torch.long)
    for by in (torch.ones(16), spread):
        found = outcome._distance(batch_of(ids, keep), other * by, clean * by)
        assert abs(float(found.mean()) - 2.0) < 0.05


def test_a_channel_that_never_moves_does_not_swamp_the_distance():
    clean = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(0))
    clean[..., 5] = 0.25
    moved = clean.clone()
    moved[..., 5] += 1e-6
    batch = batch_of(torch.zeros(4, 8, dtype=torch.long))
    assert (outcome._distance(batch, moved, clean) < 1e-3).all()


def test_what_stands_at_padding_does_not_count_even_if_it_is_no_number():
    clean = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    keep = torch.tensor([[True, True, True, True], [True, True, False, False]])
    batch = batch_of(torch.zeros(2, 4, dtype=torch.long), keep)
    other = clean + 1
    expected = outcome._distance(batch, other, clean)
    other[1, 2:] = math.nan
    assert torch.equal(outcome._distance(batch, other, clean), expected)
    assert expected.isfinite().all()
    x = torch.tensor([[1.0, 2.0, math.nan], [3.0, math.inf, math.nan]])
    counts = torch.tensor([[True, True, False], [True, False, False]])
    assert outcome._mean(x, counts).tolist() == [1.5, 3.0]
    assert outcome._mean(x, torch.zeros(2, 3, dtype=torch.bool)).isnan().all()


def test_one_token_has_no_loss_and_no_crash(tiny_model):
    for name, headless in (("llama", False), ("gpt2", False), ("bert", True)):
        model = zoo.tiny(name, headless=headless)
        anatomy = resolve(model)
        rerun = Rerun(anatomy, batch_of(torch.tensor([[5]])))
        for found in (rerun.clean, rerun.run(zero(anatomy, "1.mlp.out"))):
            assert all(len(x) == 1 for x in found.values())
        assert all(x.isnan().all() for x in rerun.run(zero(anatomy, "1.mlp.out")).values())
        # Two inputs of one token each: a distance, but still no loss.
        found = Rerun(anatomy, batch_of(torch.tensor([[5], [6]]))).run(zero(anatomy, "1.mlp.out"))
        assert all(x.isnan().all() != headless for x in found.values())
    keep = torch.tensor([[True, False, False], [True, True, True]])
    model = tiny_model("llama")
    found = Rerun(resolve(model), batch_of(torch.tensor([[5, 0, 0], [6, 7, 8]]), keep)).clean
    assert found["loss"].isnan().tolist() == [True, False]


def test_logits_that_are_no_numbers_are_said_and_not_hidden(tiny_model):
    model = tiny_model("llama")
    anatomy, ids = resolve(model), zoo.tokens(model, num_samples=2)[0]
    found = Rerun(anatomy, batch_of(ids)).run(scale(anatomy, "1.resid.out", math.nan))
    assert all(x.isnan().all() for x in found.values())


def test_a_masked_model_is_judged_by_distance_although_it_has_a_head():
    judge = Judge(resolve(zoo.tiny("bert")))
    assert judge.vocab is None and judge.outcomes == ("distance",)
    assert Judge(resolve(zoo.tiny("llama"))).note is None
