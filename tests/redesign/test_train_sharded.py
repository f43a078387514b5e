"""Weights in shards (FSDP): the same training as in one process, also when it was killed and went on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from skerry.redesign.recipe import Recipe
from skerry.redesign.train import train

SCRIPT = Path(__file__).with_name("sharded_training.py")


def sharded(recipe, out, *killed_at):
    words = (
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(SCRIPT),
        str(recipe),
        str(out),
    )
    return subprocess.run(
        [sys.executable, "-m", *words, *map(str, killed_at)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("attention", ["softmax", "scaled"])
def test_a_sharded_training_that_was_killed_ends_as_one_process_does(tmp_path, attention):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"the {word} stone" for word in range(3000)))
    recipe = Recipe(
        text=str(text), layers=2, width=16, heads=2, vocabulary=260, context=16, batch=4, steps=10, warmup=2,
        precision="fp32", held_out=0.1, attention=attention, clip=0.5,
    )  # fmt: skip
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.plain()))
    killed = sharded(tmp_path / "recipe.json", tmp_path / "two", 6)
    assert killed.returncode != 0 and not (tmp_path / "two" / "result.json").exists()
    went_on = sharded(tmp_path / "recipe.json", tmp_path / "two")
    assert went_on.returncode == 0, went_on.stderr
    one = train(recipe, tmp_path / "one", device="cpu", threads=1, save_every=4)
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "two" / "losses.jsonl").read_text().splitlines()
    ]
    assert losses == pytest.approx(one.losses.tolist(), rel=1e-5)
    ours, theirs = (load_file(tmp_path / n / "model" / "model.safetensors") for n in ("two", "one"))
    assert ours.keys() == theirs.keys()
    for name, weights in theirs.items():
        torch.testing.assert_close(ours[name], weights, rtol=1e-4, atol=1e-5)
