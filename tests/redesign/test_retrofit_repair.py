"""Massive activations taken out, the distillation that repairs, and the folder that is written."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import zoo

from skerry.anatomy import resolve
from skerry.corpus.batch import Batch
from skerry.errors import BrokenModel, RunExists, UnknownOption
from skerry.impact.evaluate import Evaluator
from skerry.redesign.config import DecoderConfig
from skerry.redesign.decoder import DecoderForCausalLM
from skerry.redesign.retrofit import RetrofitOptions, fold_first_token, retrofit
from skerry.redesign.retrofit_carriers import loud_channels, remove_carriers
from skerry.redesign.retrofit_distil import Distillation, distil, divergence
from skerry.redesign.retrofit_fit import Fitter
from skerry.redesign.retrofit_folder import without_first
from skerry.redesign.retrofit_measure import read_outliers

BOS, COMMA, VOCAB = 1, 5, 60


def small(seed=0, **choices):
    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return DecoderForCausalLM(DecoderConfig(**{**sizes, "initializer_range": 0.2, **choices})).eval()


def inputs(count=8, length=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(6, VOCAB, (count, length), generator=generator)
    ids[:, 0] = BOS
    ids[torch.arange(count), torch.arange(count) % (length - 3) + 2] = COMMA
    return Batch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(count))


def planted(channel=3, size=300.0):
    """A neuron of block 0 that only the comma opens, and that writes a massive activation into one channel.

    The comma's embedding has a channel (31) of its own, which nothing else uses.
    """
    model = small()
    model.model.embed_tokens.weight.data[:, 31] = 0
    model.model.embed_tokens.weight.data[COMMA, 31] = 5
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data[31] = 0
        layer.mlp.down_proj.weight.data[31] = 0
    mlp = model.model.layers[0].mlp
    for projection in (mlp.gate_proj, mlp.up_proj):
        projection.weight.data[0] = 0
        projection.weight.data[0, 31] = 3
    mlp.down_proj.weight.data[:, 0] = 0
    mlp.down_proj.weight.data[channel, 0] = size / 100
    return model


def test_a_planted_massive_activation_is_taken_out_and_other_tokens_keep_what_they_have():
    model, batch = planted(), inputs()
    anatomy = resolve(model)
    loud = loud_channels(anatomy, [batch], 30)
    assert [c.channel for c in loud] == [3]
    before = model.model(batch.input_ids, output_hidden_states=True).hidden_states[1].detach()
    others = [p.detach().clone() for p in model.parameters()]
    rows, notes = remove_carriers(anatomy, [batch], ratio=30)
    assert [(r["channel"], r["layer"], r["num_tokens"]) for r in rows] == [(3, 0, 8)] and not notes
    after = model.model(batch.input_ids, output_hidden_states=True).hidden_states[1].detach()
    comma = batch.input_ids == COMMA
    assert float(after[comma][:, 3].abs().max()) < 0.05 * float(before[comma][:, 3].abs().min())
    assert float((after - before)[~comma][:, 3].abs().max()) < 0.05 * float(before[comma][:, 3].abs().min())
    # Nothing but one row of one matrix is changed.
    changed = [
        (n, int((p != o).any(-1).sum()))
        for (n, p), o in zip(model.named_parameters(), others, strict=True)
        if not torch.equal(p, o)
    ]
    assert changed == [("model.layers.0.mlp.down_proj.weight", 1)]
    assert not loud_channels(anatomy, [batch], 30)


def test_what_the_embedding_brings_stays_and_is_named():
    model, batch = small(), inputs()
    model.model.embed_tokens.weight.data[COMMA, 7] = 200.0
    rows, notes = remove_carriers(resolve(model), [batch], ratio=50)
    assert not rows and any("channel 7" in n and "the embedding brings it" in n for n in notes)


def trained(steps=60):
    """A small decoder that has learned something: the next token is the last one plus one."""
    model = small(num_hidden_layers=2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        batch = counted(seed=step)
        optimiser.zero_grad()
        model(batch.input_ids, labels=batch.input_ids).loss.backward()
        optimiser.step()
    return model.eval()


def counted(seed=0, count=16, length=12):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(4, VOCAB, (count, 1), generator=generator)
    ids = 4 + (start - 4 + torch.arange(length)) % (VOCAB - 4)
    ids[:, 0] = BOS
    return Batch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(count))


@pytest.fixture(scope="module")
def learner():
    return trained()


def mean_kl(student, teacher, batch):
    with torch.no_grad():
        return float(divergence(student, teacher, batch.input_ids, batch.keep)) / batch.behind(1).num_tokens


def test_the_bound_of_a_trained_decoder_is_below_its_output(learner):
    from skerry.redesign.retrofit_bound import bound_rows

    folded = fold_first_token(resolve(learner), [counted()]).model
    fitter = Fitter(folded).read([counted(seed=1).behind(1)])
    rows = bound_rows(folded, {"sink-value": fitter.make("sink-value")}, [counted(seed=2).behind(1)])
    assert all(r["measured"] <= r["bound"] < 1 and not r["tokens_over_bound"] for r in rows)


def test_the_exact_fold_does_not_diverge(learner):
    folded = fold_first_token(resolve(learner), [counted()]).model
    assert mean_kl(folded, resolve(learner), counted(seed=3)) < 1e-6


@pytest.mark.parametrize("train", ["all", "attention", "sinks"])
def test_distillation_brings_the_prediction_back_and_leaves_the_teacher_alone(learner, train):
    teacher, text, unseen = resolve(learner), [counted(seed=i) for i in range(4)], counted(seed=77)
    before = copy.deepcopy(learner.state_dict())
    folded = fold_first_token(teacher, text).model
    student = Fitter(folded).read([text[0].behind(1)]).make("sink-logit")
    for layer in student.model.layers:
        layer.self_attn.variant.sinks.data += 2.0
    start = {n: p.detach().clone() for n, p in student.named_parameters()}
    first = mean_kl(student, teacher, unseen)
    done = distil(student, teacher, text, Distillation(30, 3e-2 if train == "sinks" else 3e-3, train=train))
    assert mean_kl(student, teacher, unseen) < 0.85 * first
    assert done.is_kept and done.after < done.before
    assert done.rows[-1]["step"] == 30 and done.rows[-1]["kl"] < done.rows[0]["kl"]
    assert all(torch.equal(t, before[n]) for n, t in learner.state_dict().items())
    part = {"all": "", "attention": ".self_attn.", "sinks": ".variant."}[train]
    assert all(torch.equal(p, start[n]) for n, p in student.named_parameters() if part not in n)
    assert all(p.requires_grad for p in student.parameters()) and not student.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_distillation_that_does_harm_is_undone(learner, dtype):
    teacher, text = resolve(learner), [counted(seed=i) for i in range(2)]
    student = fold_first_token(teacher, text).model.to(dtype)
    student.model.layers[0].self_attn.variant.value_bias.data += 1e-3
    start = copy.deepcopy(student.state_dict())
    done = distil(student, teacher, text, Distillation(4, 0.5))
    assert not done.is_kept and done.after > done.before and "undone" in done.words()
    assert all(torch.equal(t, start[n]) and t.dtype == dtype for n, t in student.state_dict().items())
    assert all(p.requires_grad for p in student.parameters()) and not student.training


def test_the_same_seed_gives_the_same_decoder(learner):
    text = [counted(seed=1)]
    found = []
    for seed in (0, 0, 1):
        student = fold_first_token(resolve(learner), text).model
        student.model.layers[0].self_attn.variant.value_bias.data += 0.5
        distil(student, resolve(learner), text, Distillation(3, 1e-3, batch=4, seed=seed))
        found.append(student.lm_head.weight.detach().clone())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_divergence_that_is_no_number_stops_the_distillation_and_names_the_step(learner):
    student = fold_first_token(resolve(learner), [counted()]).model
    student.model.layers[0].self_attn.variant.value_bias.data[:] = torch.nan
    with pytest.raises(BrokenModel, match="no number at step 0"):
        distil(student, resolve(learner), [counted()], Distillation(3))


def test_padding_counts_for_nothing(learner):
    folded = fold_first_token(resolve(learner), [counted()]).model
    folded.model.layers[0].self_attn.variant.value_bias.data += 0.5
    batch = counted()
    ids = torch.nn.functional.pad(batch.input_ids, (0, 4))
    keep = torch.nn.functional.pad(batch.keep, (0, 4))
    with torch.no_grad():
        plain = divergence(folded, resolve(learner), batch.input_ids, batch.keep)
        padded = divergence(folded, resolve(learner), ids, keep)
    torch.testing.assert_close(plain, padded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"train": "heads"}, {"steps": -1}, {"learning_rate": 0.0}, {"batch": 0}])
def test_a_distillation_that_cannot_be_meant_is_refused(wrong):
    with pytest.raises(UnknownOption):
        Distillation(**wrong).check()


def test_scores_of_a_model_that_reads_less_are_those_of_the_same_tokens(learner):
    anatomy, batch = resolve(learner), counted(seed=5)
    evaluator = Evaluator(anatomy, [batch], skip=1)
    scores = evaluator.score_model(resolve(fold_first_token(anatomy, [batch]).model))
    with torch.no_grad():
        logits = learner(batch.input_ids).logits[:, 1:-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.input_ids[:, 2:].flatten())
    assert evaluator.original.loss == pytest.approx(float(expected), abs=1e-5)
    assert scores.loss == pytest.approx(float(expected), abs=1e-4) and scores.kl < 1e-5
    assert evaluator.score().loss == pytest.approx(float(expected), abs=1e-5)


def test_the_sink_of_a_folded_decoder_is_told_as_one_that_is_no_token():
    model, batch = small(), inputs()
    for layer in model.model.layers:  # all logits 0: 1 / n for every key, the folded one included
        layer.self_attn.q_proj.weight.data.zero_()
    before = read_outliers(resolve(model), [batch])
    after = read_outliers(resolve(fold_first_token(resolve(model), [batch]).model), [batch.behind(1)])
    assert before["sink_share"] == pytest.approx(sum(1 / n for n in range(9, 17)) / 8, rel=1e-5)
    assert "explicit_share" not in before
    assert after["explicit_share"] == pytest.approx(sum(1 / n for n in range(10, 17)) / 7, rel=1e-4)


def tensors(seeds):
    return torch.cat([counted(seed=s).input_ids for s in seeds])


def test_a_retrofit_tells_every_stage_and_its_folder_computes_the_same(learner, tmp_path):
    before = copy.deepcopy(learner.state_dict())
    done = retrofit(
        learner,
        tensors(range(3)),
        wanted=RetrofitOptions(
            form="sink-value",
            inputs=32,
            calibration=16,
            samples=16,
            schemes=("w8a8",),
            distillation=Distillation(4),
        ),
        out=tmp_path / "new",
    )
    stages = [s["stage"] for s in done.document["stages"]]
    assert stages[:2] == ["original", "folded, exact"] and stages[-1] == "distilled"
    assert {f"{f}, untrained" for f in ("sink-value", "sink-logit", "gate")} <= set(stages)
    exact = done.document["stages"][1]
    assert abs(exact["change"]) < 1e-4 and exact["ci_low"] <= exact["change"] <= exact["ci_high"]
    assert done.document["proof"]["float64"] <= 1e-10 and len(done.document["bounds"]) == 6
    assert all(torch.equal(t, before[n]) for n, t in learner.state_dict().items())
    again = DecoderForCausalLM.from_pretrained(tmp_path / "new")
    ids = counted().input_ids[:, 1:]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, done.model(ids).logits)
    written = json.loads((tmp_path / "new" / "retrofit.json").read_text())
    assert written["stages"] == json.loads(json.dumps(done.document["stages"]))
    assert "do not put that token in front" in (tmp_path / "new" / "README.md").read_text()
    with pytest.raises(RunExists):
        retrofit(learner, tensors(range(3)), out=tmp_path / "new")


def test_the_exact_form_needs_no_repair(learner):
    done = retrofit(
        learner,
        tensors(range(2)),
        wanted=RetrofitOptions(compare=False, ratio=1e9, inputs=16, samples=16, schemes=()),
    )
    assert [s["stage"] for s in done.document["stages"]] == ["original", "folded, exact"]
    assert not done.document["distillation"]["kl"] and done.path is None
    assert any("nothing to repair" in n for n in done.document["notes"])


def test_half_precision_is_distilled_in_float32_and_rounded_back(learner):
    model = copy.deepcopy(learner).bfloat16()
    student = fold_first_token(resolve(model), [counted()]).model
    student.model.layers[0].self_attn.variant.value_bias.data += 0.5
    distil(student, resolve(model), [counted()], Distillation(2))
    assert {p.dtype for p in student.parameters()} == {torch.bfloat16}


def test_the_tokenizer_puts_nothing_in_front_any_more():
    from skerry.redesign.text import train_tokenizer

    tokenizer = train_tokenizer(["a skerry is a rock in the sea " * 20], vocabulary=300, context=128)
    assert tokenizer("a rock")["input_ids"][0] == 0
    new, note = without_first(tokenizer, 0)
    assert note is None and new("a rock")["input_ids"] == tokenizer("a rock")["input_ids"][1:]
    assert new.model_max_length == 127 and tokenizer("a rock")["input_ids"][0] == 0
    assert without_first(None, 0) == (None, None)


def test_a_model_of_a_zoo_family_goes_all_the_way():
    model = zoo.tiny("llama")
    ids = torch.randint(4, model.config.vocab_size, (12, 16))
    ids[:, 0] = BOS
    done = retrofit(model, ids, wanted=RetrofitOptions(inputs=8, samples=4, schemes=("w4a4",)))
    assert len(done.document["stages"]) >= 5
