"""Train the three built-in decoders and put them into the package: about an hour on one core.

    python studies/pebbles.py train OUT [NAME ...]      trainings that differ in their attention only, OUT/NAME; an interrupted one goes on
    python studies/pebbles.py pack OUT                  bf16 weights, tokenizer, recipe, curve, card and licence into src/skerry/anatomy/zoo/

The recipe is `RECIPE` below; `skerry train --recipe pebble` trains it again. It was chosen on the softmax decoder alone, as the one of a dozen whose outliers are
clearest: share of the strongest sink head, largest / median of the stream. One training each, 4 blocks, 4.3 to 5.6 million parameters; all but the last three have
windows of 8, a peak of 2e-3 behind 400 steps of warm-up, and heads of 32 channels unless said.

    320 wide, weight decay 0.45 (the recipe)    0.37    86        untied, decay 0.3, stopped at step 4,000             0.17    75
    320 wide, decay 0.3                         0.38    62        untied, 5 heads, decay 0.3, stopped at step 3,700    0.18    87
    288 wide, decay 0.3, 6,000 steps            0.27    89        16 windows, 3e-3, decay 1.0, 2,000 steps             0.07    57

    8 windows, 3e-3 or 5e-3, 100 steps of warm-up: no sink but a bias; heads of block 0 give the first token 0.4 and fetch a value 1.5 to 4 times as
    long as the others'.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import skerry
from skerry.anatomy import load, resolve
from skerry.anatomy.builtins import ZOO
from skerry.corpus import builtin
from skerry.corpus.batch import Batch
from skerry.redesign.recipe import Recipe
from skerry.redesign.text import tokenize, window_batch
from skerry.redesign.train import train
from skerry.redesign.twins import describe

RECIPE = Recipe(
    vocabulary=1024,
    context=128,
    layers=4,
    width=320,
    heads=10,
    batch=8,
    steps=7000,
    learning_rate=2e-3,
    warmup=400,
    weight_decay=0.45,
    compile=True,
)
ATTENTION = {"pebble": "softmax", "pebble-scaled": "scaled", "pebble-sink": "sink-logit"}
WHAT = {
    "pebble": "decoder with softmax attention: sinks and massive activations",
    "pebble-scaled": "its twin with an explicit context-aware scale",
    "pebble-sink": "its twin with a learned sink logit without value",
}


def main() -> None:
    """Train or pack."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("do", choices=["train", "pack"])
    ask.add_argument("out", type=Path)
    ask.add_argument("names", nargs="*")
    given = ask.parse_args()
    for name in given.names or ATTENTION:
        if given.do == "train":
            recipe = replace(RECIPE, attention=ATTENTION[name])
            done = train(recipe, given.out / name, save_every=500, births_every=100, threads=1)
            print(f"{name}: held-out loss {done.held_out:.3f}, {done.tokens_per_second:.0f} tokens/s")
        else:
            pack(name, given.out / name)


def pack(name: str, trained: Path) -> None:
    """Write one model into the package."""
    place = ZOO / name
    shutil.rmtree(place, ignore_errors=True)
    loaded = load(trained / "model", dtype="fp32")
    loaded.model.to(torch.bfloat16).save_pretrained(place)
    loaded.tokenizer.save_pretrained(place)
    result = json.loads((trained / "result.json").read_text())
    facts = {
        "name": name,
        "what": WHAT[name],
        "num_parameters": sum(p.numel() for p in loaded.model.parameters()),
        "measured": measure(place, loaded.tokenizer),
        "trained_with": {"skerry": skerry.__version__, "torch": torch.__version__},
    }
    for file, content in {
        "facts.json": facts,
        "recipe.json": json.loads((trained / "recipe.json").read_text()),
        "curve.json": curve(trained),
    }.items():
        (place / file).write_text(json.dumps(content, indent=1) + "\n")
    trained_on = json.loads((trained / "facts.json").read_text())["num_tokens"]
    losses = [json.loads(line)["loss"] for line in (trained / "losses.jsonl").read_text().splitlines()]
    final = sum(losses[-50:]) / 50
    (place / "README.md").write_text(card(name, facts, result, num_tokens=trained_on, final=final))
    shutil.copy(Path(__file__).parents[1] / "LICENSE", place / "LICENSE")
    for file in place.iterdir():
        file.chmod(0o644)
    print(f"{name}: {sum(p.stat().st_size for p in place.iterdir()) / 1e6:.1f} MB, {facts['measured']}")


def measure(place: Path, tokenizer: Any) -> dict[str, Any]:
    """The packed model, in bfloat16 as it is stored, on 64 held-out windows."""
    loaded = load(place)
    ids = tokenize(list(builtin().documents), tokenizer)
    held = ids[int(len(ids) * (1 - RECIPE.held_out)) :]
    x = window_batch(held, count=64, context=RECIPE.context, bos=0, seed=1, step=0)
    batch = Batch(x, torch.ones_like(x, dtype=torch.bool), torch.arange(len(x)))
    with torch.no_grad():
        loss = float(loaded.model(input_ids=x, labels=x).loss)
    found = describe(resolve(loaded.model), [batch])
    return {
        "loss": loss,
        **{k: found[k] for k in ("max_to_median", "sink_layer", "sink_head", "sink_share", "sink_value")},
    }


def curve(trained: Path) -> list[dict[str, Any]]:
    """One row per step at which the monitor read the training: loss so far, outliers of each kind."""
    losses = [json.loads(line)["loss"] for line in (trained / "losses.jsonl").read_text().splitlines()]
    rows: dict[int, dict[str, Any]] = {}
    for line in (trained / "births.jsonl").read_text().splitlines():
        read = json.loads(line)
        row = rows.setdefault(
            read["step"],
            {"step": read["step"], "max_to_median": 0.0, "first_share": 0.0, "weight_ratio": 0.0},
        )
        if read["kind"] == "activation" and read["site"] == "resid.out":
            row["max_to_median"] = max(row["max_to_median"], read["max_to_median"] or 0.0)
        for part in ("first_share", "weight_ratio"):
            row[part] = max(row[part], read.get(part) or 0.0)
    for step, row in rows.items():
        recent = losses[max(0, step - 50) : step]
        row["loss"] = sum(recent) / len(recent) if recent else None
    return [
        {k: round(v, 4) if isinstance(v, float) else v for k, v in rows[step].items()}
        for step in sorted(rows)
    ]


def card(name: str, facts: dict[str, Any], result: dict[str, Any], *, num_tokens: int, final: float) -> str:
    """The model card."""
    m = facts["measured"]
    others = ", ".join(f"`{n}`" for n in ATTENTION if n != name)
    loads = (
        "Plain transformers loads it."
        if ATTENTION[name] == "softmax"
        else "`AutoModelForCausalLM` loads it once skerry is imported."
    )
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# {name}

{WHAT[name][0].upper()}{WHAT[name][1:]}. {facts["num_parameters"] / 1e6:.2f} million parameters in bfloat16, {RECIPE.layers} blocks of
{RECIPE.width} channels, {RECIPE.heads} heads, vocabulary {RECIPE.vocabulary} (byte-level BPE), context {RECIPE.context}. {loads}

It is a specimen: small enough to be read to the last number in a minute on a laptop. Its twins, {others}, had the same recipe, the same
text and the same seed; only the attention differs.

## Measured

On 64 held-out windows, in bfloat16: loss {m["loss"]:.3f} nats per token; largest over median of the residual stream {m["max_to_median"]:.0f};
strongest sink head (block {m["sink_layer"]}, head {m["sink_head"]}): {m["sink_share"]:.0%} of attention on the first token, whose value vector is
{m["sink_value"]:.2f} times as long as the others'.

## Training

`recipe.json` holds every choice, `curve.json` loss and outliers over the steps; `skerry train --recipe {name} --out DIR` trains it again
({result["seconds"] / 60:.0f} minutes on one shared core). The text is skerry's built-in corpus, the prose of Python's standard library
(Python Software Foundation License), of which the last {RECIPE.held_out:.0%} was held out. The text is short, {num_tokens:,} tokens, and was read
{RECIPE.steps * RECIPE.batch * RECIPE.context / num_tokens:.0f} times over: the model knows much of it by heart. Its loss was {final:.2f} on the last training batches,
well below that on held-out text.

Licence of the weights: Apache-2.0 (`LICENSE`).
"""


if __name__ == "__main__":
    main()
