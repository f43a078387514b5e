"""Trainings: against a loop written by hand, interrupted and gone on with, and what they leave in their folder."""

import errno
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from skerry.errors import BrokenRun, Diverged, NoSpace, RunExists
from skerry.redesign.config import DecoderConfig
from skerry.redesign.decoder import DecoderForCausalLM
from skerry.redesign.optimisers import optimiser
from skerry.redesign.recipe import Recipe
from skerry.redesign.schedule import factor
from skerry.redesign.text import tokenize, train_tokenizer, window_batch
from skerry.redesign.train import read_trained, train
from skerry.run import TABLES

TEXT = "The quick brown fox jumps over the lazy dog. " * 60 + "Pack my box with five dozen jugs! " * 60


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "fox.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture(scope="module")
def recipe(text):
    return Recipe(
        text=text,
        vocabulary=270,
        context=16,
        layers=1,
        width=16,
        heads=2,
        steps=12,
        warmup=3,
        batch=4,
        precision="fp32",
        held_out=0.1,
    )


class Stop(Exception):
    pass


def stopped_at(step):
    def stop(done, _loss, _model):
        if done == step:
            raise Stop

    return stop


def weights(trained):
    return {n: p.detach() for n, p in trained.model.named_parameters()}


def same_weights(a, b):
    return all(torch.equal(x, weights(b)[n]) for n, x in weights(a).items())


def test_losses_are_those_of_a_loop_written_by_hand(recipe, tmp_path):
    trained = train(recipe, tmp_path / "t")
    tokenizer = train_tokenizer([TEXT], vocabulary=270, context=16)
    ids = tokenize([TEXT], tokenizer)
    ids = ids[: int(len(ids) * 0.9)]
    torch.manual_seed(0)
    model = DecoderForCausalLM(
        DecoderConfig(
            vocab_size=270,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).train()
    optimizer = optimiser("adamw", model, lr=3e-3, weight_decay=0.01)
    losses = []
    for step in range(12):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * factor(step, schedule="cosine", steps=12, warmup=3, final=0.1)
        x = window_batch(ids, count=4, context=16, bos=0, seed=0, step=step)
        loss = model(x, labels=x).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert trained.losses.tolist() == losses
    assert all(torch.equal(p, weights(trained)[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "bf16"},
        {"accumulation": 3, "attention": "sink-logit", "schedule": "wsd", "optimiser": "lion"},
        {"optimiser": "muon", "clip": 0.0},
        {"objective": {"quantization": {"scheme": "w8a8", "probability": 0.5}, "kurtosis": 1e-3}},
    ],
    ids=["bf16", "accumulated", "muon", "objective"],
)
def test_an_interrupted_training_gives_the_same_losses_and_weights_bit_for_bit(recipe, tmp_path, change):
    asked = replace(recipe, **change)
    whole = train(asked, tmp_path / "whole")
    for step in (7, 11):
        with pytest.raises(Stop):
            train(asked, tmp_path / "broken", save_every=5, on_step=stopped_at(step))
    again = train(asked, tmp_path / "broken", save_every=5)
    assert again.losses.tolist() == whole.losses.tolist() and len(whole.losses) == 12
    assert again.held_out == whole.held_out and same_weights(again, whole)


def test_a_finished_training_is_read_and_not_trained_again(recipe, tmp_path):
    first = train(recipe, tmp_path / "t")
    again = train(recipe, tmp_path / "t", on_step=stopped_at(1))
    assert again.losses.tolist() == first.losses.tolist() and same_weights(first, again)
    assert "12 steps" in repr(again) and read_trained(tmp_path / "t").seconds == first.seconds


def test_training_lowers_the_loss_and_leaves_the_callers_random_state_and_threads_alone(recipe, tmp_path):
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    trained = train(replace(recipe, steps=60), tmp_path / "t", threads=1)
    assert trained.losses[-5:].mean() < trained.losses[:5].mean() - 0.5
    assert abs(trained.held_out - trained.losses[-5:].mean()) < 0.5
    assert torch.equal(before, torch.get_rng_state()) and threads == torch.get_num_threads()


def test_the_folder_holds_checkpoints_tables_and_what_was_chosen(recipe, tmp_path):
    trained = train(recipe, tmp_path / "t", save_every=5, births_every=4)
    found = {p.name for p in (tmp_path / "t").iterdir()}
    assert {
        "checkpoint-5",
        "checkpoint-10",
        "checkpoint-12",
        "model",
        "recipe.json",
        "losses.parquet",
    } <= found
    assert "lock" not in found and not any(name.startswith(".writing") for name in found)
    losses = pq.read_table(tmp_path / "t" / "losses.parquet")
    assert (
        losses.schema.names == list(TABLES["losses"])
        and losses["loss"].to_pylist() == trained.losses.tolist()
    )
    births = pq.read_table(tmp_path / "t" / "births.parquet")
    assert set(births["step"].to_pylist()) == {0, 1, 2, 4, 8, 12}
    facts = json.loads((tmp_path / "t" / "facts.json").read_text())
    assert facts["precision"] == "fp32" and facts["vocab_size"] == 270 and facts["threads"] >= 1
    assert len(list((tmp_path / "t" / "resume").iterdir())) == 2
    plain = train(recipe, tmp_path / "plain")
    assert plain.losses.tolist() == trained.losses.tolist()


def test_births_go_on_without_gap_or_double(recipe, tmp_path):
    whole = train(recipe, tmp_path / "whole", births_every=4)
    with pytest.raises(Stop):
        train(recipe, tmp_path / "broken", births_every=4, save_every=5, on_step=stopped_at(9))
    train(recipe, tmp_path / "broken", births_every=4, save_every=5)
    tables = [
        pq.read_table(f / "births.parquet").drop_columns("series")
        for f in (whole.folder, tmp_path / "broken")
    ]
    assert tables[0].equals(tables[1])


def test_a_softmax_decoder_is_a_plain_llama_that_transformers_loads_alone(recipe, tmp_path):
    trained = train(recipe, tmp_path / "t")
    code = f"""
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "t" / "model")!r})
tokenizer = AutoTokenizer.from_pretrained({str(tmp_path / "t" / "model")!r})
ids = tokenizer("The quick brown", return_tensors="pt")["input_ids"]
with torch.no_grad():
    print(type(model).__name__, "skerry" in sys.modules, model(ids).logits.double().sum().item())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kind, has_skerry, total = done.stdout.split()
    assert kind == "LlamaForCausalLM" and has_skerry == "False"
    tokenizer = train_tokenizer([TEXT], vocabulary=270)
    ids = tokenizer("The quick brown", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        mine = trained.model(ids).logits.double().sum().item()
    assert float(total) == pytest.approx(mine, rel=1e-5)


def test_the_final_model_can_be_bfloat16_while_states_stay_float32(recipe, tmp_path):
    trained = train(replace(recipe, attention="scaled"), tmp_path / "t", dtype="bf16", save_every=12)
    assert trained.model.dtype == torch.bfloat16 and type(trained.model) is DecoderForCausalLM
    full = DecoderForCausalLM.from_pretrained(tmp_path / "t" / "checkpoint-12")
    assert full.dtype == torch.float32
    for name, value in full.named_parameters():
        assert torch.equal(value.bfloat16(), weights(trained)[name])


def test_another_recipe_is_refused_with_the_difference_in_words(recipe, tmp_path):
    train(recipe, tmp_path / "t")
    with pytest.raises(
        RunExists, match="learning_rate is 0.003 there and 0.01 here; seed is 0 there and 3 here"
    ):
        train(replace(recipe, learning_rate=0.01, seed=3), tmp_path / "t")


def test_a_text_that_changed_under_its_name_is_refused(recipe, tmp_path):
    path = tmp_path / "own.txt"
    path.write_text(TEXT)
    asked = replace(recipe, text=str(path))
    with pytest.raises(Stop):
        train(asked, tmp_path / "t", save_every=2, on_step=stopped_at(5))
    path.write_text(TEXT + "One more sentence.")
    with pytest.raises(RunExists, match="the text of the training in .* has changed"):
        train(asked, tmp_path / "t")


def test_a_folder_of_others_is_refused_and_one_of_a_refused_training_is_not_left(recipe, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(RunExists, match="is not empty and holds no training"):
        train(recipe, tmp_path / "mine")
    with pytest.raises(Exception, match="one batch reads"):
        train(replace(recipe, batch=4096), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_value_that_is_not_finite_stops_before_the_step_and_names_step_and_site(recipe, tmp_path):
    def plant(step, _loss, model):
        if step == 8:
            with torch.no_grad():
                model.model.layers[0].mlp.up_proj.weight.fill_(3e38)

    with pytest.raises(Diverged) as caught:
        train(recipe, tmp_path / "t", save_every=5, on_step=plant)
    words = str(caught.value)
    assert words.startswith("step 9: the loss is nan")
    assert "the first site that is not finite is 0.mlp.up" in words and "the state of step 5 is kept" in words
    assert "smaller learning rate" in words
    # What was good is kept, and goes on.
    assert (
        train(recipe, tmp_path / "t", save_every=5).losses.tolist()
        == train(recipe, tmp_path / "u").losses.tolist()
    )


def test_a_gradient_that_is_not_finite_is_named_by_its_parameter(recipe, tmp_path):
    def plant(step, _loss, model):
        if step == 3:
            model.lm_head.register_full_backward_hook(lambda _m, grads, _o: (grads[0] * float("inf"),))

    with pytest.raises(
        Diverged, match="step 4: the loss is 5.* all activations are finite; the gradient of model.norm"
    ):
        train(recipe, tmp_path / "t", on_step=plant)


def full_disk(monkeypatch, at):
    """torch.save writes some bytes, then the disk is full, from the call number `at` on."""
    calls = []
    real = torch.save

    def save(content, path):
        calls.append(path)
        if len(calls) < at:
            return real(content, path)
        path.write_bytes(b"half a state")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", save)


def test_a_full_disk_leaves_the_state_before_as_it_was(recipe, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        full_disk(patch, at=2)
        with pytest.raises(NoSpace, match="the run so far is kept"):
            train(recipe, tmp_path / "t", save_every=4)
    left = [p.name for p in (tmp_path / "t" / "resume").iterdir()]
    assert len(left) == 1 and left[0].startswith("state-00000004-")
    assert train(recipe, tmp_path / "t").losses.tolist() == train(recipe, tmp_path / "u").losses.tolist()


def test_a_full_disk_while_a_model_is_written_leaves_no_half_model(recipe, tmp_path, monkeypatch):
    def save(self, folder, **_):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(DecoderForCausalLM, "save_pretrained", save)
        with pytest.raises(NoSpace):
            train(recipe, tmp_path / "t", save_every=4)
    assert not list((tmp_path / "t").glob("*checkpoint*"))


def test_a_damaged_state_is_passed_over_and_a_training_of_damaged_states_is_refused(recipe, tmp_path):
    with pytest.raises(Stop):
        train(recipe, tmp_path / "t", save_every=4, on_step=stopped_at(10))
    shutil.copytree(tmp_path / "t", tmp_path / "worse")
    newest = sorted((tmp_path / "t" / "resume").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    notes = []

    class Listener:
        def start(self, *_): ...
        def advance(self, *_): ...
        def done(self): ...
        def note(self, words):
            notes.append(words)

    again = train(recipe, tmp_path / "t", save_every=4, progress=Listener())
    assert f"{newest.name} is damaged; going on from step 4" in notes
    assert again.losses.tolist() == train(recipe, tmp_path / "u").losses.tolist()
    for state in (tmp_path / "worse" / "resume").iterdir():
        state.write_bytes(b"")
    with pytest.raises(BrokenRun, match="all states of the training .* are damaged"):
        train(recipe, tmp_path / "worse")


def test_half_a_line_of_a_killed_process_is_forgotten(recipe, tmp_path):
    with pytest.raises(Stop):
        train(recipe, tmp_path / "t", save_every=4, on_step=stopped_at(10))
    with (tmp_path / "t" / "losses.jsonl").open("a") as file:
        file.write('{"step": 9, "loss"')
    again = train(recipe, tmp_path / "t", save_every=4)
    assert again.losses.tolist() == train(recipe, tmp_path / "u").losses.tolist()


def test_micro_batches_add_up_to_the_mean_gradient(recipe, tmp_path):
    seen = {}

    def keep(step, _loss, model):
        seen[step] = {n: p.grad.clone() for n, p in model.named_parameters()}
        raise Stop

    asked = replace(recipe, accumulation=3, clip=0.0)
    with pytest.raises(Stop):
        train(asked, tmp_path / "t", on_step=keep)
    tokenizer = train_tokenizer([TEXT], vocabulary=270)
    ids = tokenize([TEXT], tokenizer)
    ids = ids[: int(len(ids) * 0.9)]
    x = torch.cat([window_batch(ids, count=4, context=16, bos=0, seed=0, step=s) for s in range(3)])
    torch.manual_seed(0)
    from skerry.redesign.train_model import make_model

    model = make_model(asked, vocab_size=270, bos=0).train()
    model(x, labels=x).loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(seen[1][name], p.grad, rtol=1e-4, atol=1e-7)


def test_the_synthetic_task_is_a_text_too(recipe, tmp_path):
    trained = train(replace(recipe, text="backcopy", steps=6), tmp_path / "t")
    assert trained.model.config.vocab_size == 65 and np.isfinite(trained.losses).all()
    assert not (tmp_path / "t" / "tokenizer").exists()


def test_private_training_goes_on_bit_for_bit_and_says_what_it_promises(recipe, tmp_path):
    pytest.importorskip("opacus")
    asked = replace(recipe, objective={"private": {"noise": 1.0, "clip": 0.5}})
    whole = train(asked, tmp_path / "whole")
    with pytest.raises(Stop):
        train(asked, tmp_path / "broken", save_every=5, on_step=stopped_at(8))
    again = train(asked, tmp_path / "broken")
    assert np.array_equal(again.losses, whole.losses, equal_nan=True) and same_weights(again, whole)
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert result["privacy"]["epsilon"] > 0 and result["privacy"]["steps"] == 12
