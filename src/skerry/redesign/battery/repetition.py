"""Repetition in generated text: from prompts of text, greedily and at temperature 1.

    loops          share of texts that end in a cycle: some period p such that the last max(3p, 12) tokens repeat with it
    distinct_n     different n-grams / n-grams, n = 1 and 3 (Li et al. 2016, arXiv 1510.03055)
    repeated_end   length of the longest ending that stood earlier in the text, prompt included; the two may overlap

Holtzman et al. 2020 (arXiv 1904.09751) on loops of greedy text; cycles as in Xu et al. 2022 (arXiv 2206.02369). A text ends at the
model's end-of-text token and counts from its first to its last new token. The level to compare with is the text's own continuation of the
same prompts, measured alike. Limits: a model that walks round 3 tokens has loops 1 and distinct_1 = 3 / N; one that never repeats a token
has loops 0, distinct 1 and repeated_end 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from skerry.redesign.battery.generation import generate
from skerry.redesign.battery.material import Material, digest
from skerry.redesign.battery.score import Score, mean_parts
from skerry.redesign.battery.subject import Subject
from skerry.redesign.battery.task import NotApplicable, Outcome, Task

PROMPT, NUM_NEW, FEWEST_NEW = 24, 96, 24
TURNS, SHORTEST_CYCLE = 3, 12
MEASURES = {
    "loops": "share of texts that end in a cycle",
    "distinct_1": "different tokens, of all tokens",
    "distinct_3": "different groups of 3 tokens, of all",
    "repeated_end": "longest ending that stood earlier, tokens",
}


def matching_ends(tokens: Sequence[int]) -> Int[np.ndarray, "lag"]:
    """For each lag p = 1, 2, ...: how many tokens at the end equal the token p before."""
    x = np.asarray(tokens)
    found = np.zeros(max(0, len(x) - 1), np.int64)
    for p in range(1, len(x)):
        differs = np.flatnonzero((x[p:] != x[:-p])[::-1])
        found[p - 1] = differs[0] if len(differs) else len(x) - p
    return found


def loops(new: Sequence[int]) -> bool:
    """Whether a text ends in a cycle."""
    ends = matching_ends(new)
    return any(n + p >= max(TURNS * p, SHORTEST_CYCLE) for p, n in enumerate(ends.tolist(), start=1))


def distinct(new: Sequence[int], n: int) -> float:
    """Different n-grams of all; NaN in a text without one."""
    grams = list(zip(*(new[i:] for i in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else float("nan")


def repeated_end(prompt: Sequence[int], new: Sequence[int]) -> int:
    """Length of the longest ending that stood earlier, at most as long as the new text."""
    ends = matching_ends([*prompt, *new])
    return min(int(ends.max(initial=0)), len(new))


def measures(prompt: Sequence[int], new: Sequence[int]) -> dict[str, float]:
    """All measures of one text; NaN where it has no token."""
    if not len(new):
        return dict.fromkeys(MEASURES, float("nan"))
    return {
        "loops": float(loops(new)),
        "distinct_1": distinct(new, 1),
        "distinct_3": distinct(new, 3),
        "repeated_end": float(repeated_end(prompt, new)),
    }


def run(subject: Subject, material: Material) -> Outcome:
    """See above."""
    room = material.room if material.text is None else min(material.room, material.text.shape[1])
    prompt = min(PROMPT, room // 4)
    num_new = min(NUM_NEW, room - prompt)
    if num_new < FEWEST_NEW or prompt < 1:
        raise NotApplicable(f"{FEWEST_NEW} new tokens behind a prompt do not fit in {room} positions")
    rng = material.generator("repetition")
    notes = []
    if material.text is None:
        body = rng.choice(material.pool, size=(material.num_inputs, max(1, prompt - len(material.prefix))))
        ids, own = material.begun(body), None
        notes.append("repetition: prompts are random ids, because there is no text")
    else:
        ids = material.text[:, :prompt]
        own = material.text[:, prompt : prompt + num_new]
    uniform = torch.from_numpy(rng.random((len(ids), num_new)))
    level = None if own is None else _table(ids, own.tolist())
    scores: list[Score] = []
    texts: dict[str, list[list[int]]] = {}
    for way, given in (("greedy", None), ("sampled", uniform)):
        new = _ended(generate(subject, ids, num_new, uniform=given), material.ends)
        texts[way] = new
        scores += _scores(way, _table(ids, new), level, digest(ids), material.seed)
    rows = [
        {"way": way, "prompt": ids[i].tolist(), "text": new[i]}
        for way, new in texts.items()
        for i in range(min(4, len(new)))
    ]
    return Outcome(scores, notes, {"texts": rows})


def _ended(new: Tensor, ends: Iterable[int]) -> list[list[int]]:
    """Each text up to its end-of-text token."""
    last = set(ends)
    rows: list[list[int]] = []
    for row in new.tolist():
        cut = next((i for i, token in enumerate(row) if token in last), len(row))
        rows.append(row[:cut])
    return rows


def _table(prompts: Tensor, texts: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    found = [measures(prompt, new) for prompt, new in zip(prompts.tolist(), texts, strict=True)]
    return {name: np.array([row[name] for row in found]) for name in MEASURES}


def _scores(
    way: str, found: dict[str, np.ndarray], level: dict[str, np.ndarray] | None, key: str, seed: int
) -> list[Score]:
    mean: Callable[[np.ndarray], float] = np.nanmean
    scores = []
    for name, what in MEASURES.items():
        more: dict[str, Any] = {"kind": "share"} if name == "loops" else {}
        scores.append(
            Score(
                "repetition",
                f"{way}_{name}",
                f"{way}: {what}",
                mean_parts(found[name]),
                better="higher" if name.startswith("distinct") else "lower",
                chance=None if level is None else float(mean(level[name])),
                chance_is="the text itself",
                inputs=key,
                seed=seed,
                **more,
            )
        )
    return scores


TASK = Task(
    "repetition",
    "Does its text run into loops?",
    "Holtzman et al. 2020 (arXiv 1904.09751); Li et al. 2016 (arXiv 1510.03055); Xu et al. 2022 (arXiv 2206.02369)",
    run,
)
