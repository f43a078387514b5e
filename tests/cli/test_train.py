"""skerry train as a user runs it: answers, interruptions, several processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SIZE = "--layers 1 --width 16 --heads 2 --vocabulary 260 --context 16 --batch 4 --warmup 2 --precision fp32 --held-out 0.1"
SMALL = (*SIZE.split(), "--threads", "1")


def losses_of(folder):
    return [json.loads(line)["loss"] for line in (Path(folder) / "losses.jsonl").read_text().splitlines()]


def start(cwd, *words, launcher=()):
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "skerry", "train", *map(str, words)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A background shell may ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)


def test_the_document_tells_what_was_trained_and_a_repeat_is_the_same_answer(inside, text):
    words = ("train", text, *SMALL, "--steps", 6, "--save-every", 3, "--out", "t", "--json")
    code, out, err = inside(*words)
    assert code == 0 and err == ""
    document = json.loads(out)
    assert document["schema"] == 1 and document["checkpoints"] == ["checkpoint-3", "checkpoint-6"]
    assert document["recipe"]["width"] == 16 and document["facts"]["precision"] == "fp32"
    assert document["result"]["tokens"] == 6 * 4 * 16 and document["result"]["held_out"] > 0
    assert [p["step"] for p in document["curve"]] == [1, 2, 3, 4, 5, 6]
    assert inside(*words)[1] == out


def test_the_terminal_shows_the_curve_and_what_to_do_next(inside, text):
    code, out, err = inside("train", text, *SMALL, "--steps", 20, "--attention", "scaled", "--quiet")
    assert code == 0 and err == ""
    assert "scaled attention, 1 layer of 16 channels, 2 heads" in out and "held out" in out
    assert "skerry audit skerry-runs/train-scaled-" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 100


def test_a_dry_run_writes_nothing_and_tells_sizes_tokens_and_time(inside, text, tmp_path):
    words = ("train", text, *SMALL, "--steps", 50, "--out", "t", "--dry-run")
    code, out, _ = inside(*words)
    assert code == 0 and "nothing was written" in out and "3,200 tokens in 50 steps of 64" in out
    assert not (tmp_path / "t").exists() and not (tmp_path / "skerry-runs").exists()
    plan = json.loads(inside(*words, "--json")[1])["plan"]
    parts = plan["parameters_by_part"]
    assert parts["embedding"] == 260 * 16 and sum(parts.values()) == plan["parameters"]
    assert plan["seconds"] > 0 and plan["tokens"] == 3200


def test_options_of_the_choices_reach_the_recipe(inside, text):
    options = ("--optimizer-option", "betas=[0.9,0.99]", "--objective", "z_loss.weight=1e-4", "--lr", "1e-2")
    code, out, err = inside("train", text, *SMALL, "--steps", 3, *options, "--json")
    assert code == 0, err
    recipe = json.loads(out)["recipe"]
    assert recipe["optimiser_options"] == {"betas": [0.9, 0.99]} and recipe["learning_rate"] == 0.01
    assert recipe["objective"] == {"z_loss": {"weight": 1e-4}}
    (Path(json.loads(out)["folder"]) / "recipe.json").read_text()
    again = inside("train", "--recipe", json.loads(out)["folder"], "--json")
    assert again[1] == out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--attention", "softmx"), "did you mean 'softmax'"),
        (("--attention-option", "3"), "'3' is no setting; write NAME=VALUE"),
        (("--accumulation", "0"), "accumulation is 0; it must be at least 1"),
        (("--recipe", "nothing"), "there is no recipe 'nothing'"),
        (("--seed", "two"), "two"),
    ],
)
def test_mistakes_are_told_in_one_line_with_exit_code_2(inside, text, words, said):
    code, out, err = inside("train", text, *SMALL, "--steps", 3, *words)
    assert code == 2 and out == "" and said in err and len(err.splitlines()) == 1


def test_another_recipe_in_the_same_folder_is_refused(inside, text):
    assert inside("train", text, *SMALL, "--steps", 2, "--out", "t", "--quiet")[0] == 0
    code, _, err = inside("train", text, *SMALL, "--steps", 3, "--out", "t")
    assert code == 2 and "steps is 2 there and 3 here" in err


def test_the_choices_are_listed(inside):
    code, out, _ = inside("train", "--list")
    assert code == 0 and all(word in out for word in ("softmax", "adamw", "rmsnorm", "wsd"))
    assert "softmax" in json.loads(inside("train", "--list", "--json")[1])["attention"]


@pytest.mark.parametrize("more", [(), pytest.param(("--compile",), marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_goes_on_with_the_same_losses(text, tmp_path, more):
    words = (text, *SMALL, *more, "--steps", 400, "--save-every", 40, "--quiet", "--out")
    whole = start(tmp_path, *words, "whole")
    broken = start(tmp_path, *words, "broken")
    wait_for(lambda: (tmp_path / "broken" / "checkpoint-80").exists(), broken)
    broken.kill()
    broken.communicate()
    assert not (tmp_path / "broken" / "result.json").exists()
    again = start(tmp_path, *words, "broken")
    for process in (whole, again):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert losses_of(tmp_path / "broken") == losses_of(tmp_path / "whole")
    assert len(losses_of(tmp_path / "whole")) == 400
    weights = [(tmp_path / n / "model" / "model.safetensors").read_bytes() for n in ("whole", "broken")]
    assert weights[0] == weights[1]


def test_ctrl_c_saves_the_state_says_how_to_go_on_and_ends_with_130(text, tmp_path):
    words = (text, *SMALL, "--steps", 3000, "--save-every", 20, "--quiet", "--out", "t")
    process = start(tmp_path, *words)
    wait_for(lambda: (tmp_path / "t" / "checkpoint-20").exists(), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and out == ""
    assert err.strip() == "skerry: stopped; the same command goes on where it stopped"
    newest = sorted((tmp_path / "t" / "resume").iterdir())[-1]
    step = int(newest.name.split("-")[1])
    assert 20 <= step < 3000 and len(losses_of(tmp_path / "t")) == step
    assert not (tmp_path / "t" / "lock").exists()


def test_two_processes_train_as_one_and_only_the_first_writes(text, tmp_path):
    words = (text, *SMALL, "--steps", 8, "--save-every", 4, "--quiet", "--device", "cpu", "--out")
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    two, one = start(tmp_path, *words, "two", launcher=launcher), start(tmp_path, *words, "one")
    said = {}
    for name, process in (("two", two), ("one", one)):
        said[name], err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert said["two"].count("held out") == 1
    facts = json.loads((tmp_path / "two" / "facts.json").read_text())
    assert facts["processes"] == 2
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), rel=1e-5)
    held_out = [json.loads((tmp_path / n / "result.json").read_text())["held_out"] for n in ("one", "two")]
    assert held_out[0] == pytest.approx(held_out[1], rel=1e-5)
    assert len(losses_of(tmp_path / "two")) == 8
