"""Copying: what follows a token is what followed it before. r is a sequence of L random tokens, all different; the input is r r.

    accuracy         of the second r, tokens 2 to L (nothing says that r begins again)
    loss             of the same tokens, nats
    gain             loss of tokens 2 to L in the first r, less that in the second
    text_gain        of text: loss of r behind another text s of the same length, in s r, less that in r r, the same tokens at the same
                     positions. Small models copy text before they copy what they have never read
    prefix_matching  of a head: mean over queries i of the second r of its attention on key i - L + 1, the token behind the same token's
                     earlier place. The head that is strongest on the inputs of even number is measured on those of odd number

Olsson et al. 2022 (arXiv 2209.11895), with one repetition instead of three. The tokens mean nothing together, so no knowledge of language
helps. A model that only knows which tokens were seen reaches an accuracy of 1 / L and a small gain; induction brings it near 1.
Limits: an even prediction has accuracy 1 / V, loss log V and gain 0; even attention matches with mean 1 / (i + 1).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from skerry.anatomy.attention import AttentionView, naive_probs
from skerry.errors import SkerryError
from skerry.redesign.battery.choosing import of_all, stack
from skerry.redesign.battery.material import Material, digest
from skerry.redesign.battery.score import Score, mean_parts
from skerry.redesign.battery.subject import Subject
from skerry.redesign.battery.task import NotApplicable, Outcome, Task

LONGEST, SHORTEST = 50, 8
# A head above this is counted as an induction head; even attention gives a few hundredths.
MATCHES = 0.3
# Attention scores of one layer in one forward: heads * queries * keys * inputs.
_SCORES_AT_ONCE = 2**22


class Repeated(NamedTuple):
    """Inputs of the form: prefix, r, r.

    Attributes:
        ids: The inputs.
        start: Where r begins.
        length: L.
    """

    ids: Int[Tensor, "sample position"]
    start: int
    length: int


def repeated(material: Material) -> Repeated:
    """Draw the inputs.

    Raises:
        NotApplicable: Too few positions or tokens.
    """
    length = min(LONGEST, (material.room - len(material.prefix)) // 2, len(material.pool))
    if length < SHORTEST:
        raise NotApplicable(
            f"a repeated sequence of {SHORTEST} tokens takes {2 * SHORTEST + len(material.prefix)} positions and {SHORTEST} "
            f"different ids; there are {material.room} and {len(material.pool)}"
        )
    rng = material.generator("induction")
    rows = [rng.choice(material.pool, length, replace=False) for _ in range(material.num_inputs)]
    once = np.stack(rows)
    return Repeated(material.begun(np.concatenate([once, once], axis=1)), len(material.prefix), length)


def repeated_text(material: Material) -> Repeated | None:
    """The same with the beginnings of the windows of text, and behind them every r again with the next input's r in front; None without text.

    Half of the inputs are r r, the other half s r, in the same order.
    """
    start = len(material.prefix)
    if material.text is None:
        return None
    length = min(LONGEST, (material.room - start) // 2, material.text.shape[1] - start)
    if length < SHORTEST or len(material.text) < 2:
        return None
    once = material.text[:, start : start + length].numpy()
    front = np.concatenate([once, np.roll(once, -1, axis=0)])
    return Repeated(material.begun(np.concatenate([front, np.tile(once, (2, 1))], axis=1)), start, length)


class Copied(NamedTuple):
    """Means over tokens 2 to L of each input, float64.

    Attributes:
        first: Loss in the first r.
        second: Loss in the second.
        accuracy: In the second.
    """

    first: Float[np.ndarray, "sample"]
    second: Float[np.ndarray, "sample"]
    accuracy: Float[np.ndarray, "sample"]


def copying(subject: Subject, given: Repeated) -> Copied:
    """Read the inputs."""
    first = range(given.start, given.start + given.length - 1)
    places = torch.tensor([*first, *(i + given.length for i in first)])
    right = given.ids[:, places + 1]
    found = stack([of_all(logits[:, places], right[rows]) for rows, logits in subject.read(given.ids)])
    half = given.length - 1
    loss = -found.log_probability.numpy()
    return Copied(loss[:, :half].mean(1), loss[:, half:].mean(1), found.accuracy[:, half:].mean(1).numpy())


def run(subject: Subject, material: Material) -> Outcome:
    """See above."""
    given = repeated(material)
    copied = copying(subject, given)
    guess = {"chance_is": "an even guess"}

    def score(name: str, what: str, x: np.ndarray, ids: Tensor, **more: Any) -> Score:
        return Score("induction", name, what, mean_parts(x), inputs=digest(ids), seed=material.seed, **more)

    scores = [
        score(
            "accuracy",
            "share of repeated tokens predicted",
            copied.accuracy,
            given.ids,
            kind="share",
            chance=1 / subject.vocab,
            **guess,
        ),
        score(
            "gain",
            "loss that repetition saves, nats per token",
            copied.first - copied.second,
            given.ids,
            chance=0.0,
            chance_is="repetition unseen",
        ),
        score(
            "loss",
            "loss of repeated tokens, nats per token",
            copied.second,
            given.ids,
            better="lower",
            chance=math.log(subject.vocab),
            **guess,
        ),
    ]
    text = repeated_text(material)
    if text is not None:
        behind_itself, behind_another = np.split(copying(subject, text).second, 2)
        what = "loss that repetition of text saves, nats per token"
        saved = behind_another - behind_itself
        scores.append(score("text_gain", what, saved, text.ids, chance=0.0, chance_is="repetition unseen"))
    notes: list[str] = []
    tables: dict[str, list[dict[str, Any]]] = {}
    try:
        matching = prefix_matching(subject, given)
    except SkerryError as error:
        notes.append(f"attention cannot be seen, so no head is scored for prefix matching: {error}")
    else:
        heads = _of_heads(matching, given, material.seed)
        scores.append(heads.score)
        tables = {"best_head": [heads.best], "heads": heads.rows}
    return Outcome(scores, notes, tables)


def prefix_matching(subject: Subject, given: Repeated) -> dict[tuple[int, int], Float[np.ndarray, "input"]]:
    """By layer and head: mean attention of each input's second r on the token behind the earlier place.

    Raises:
        SkerryError: No attention shows itself.
    """
    from skerry.anatomy import resolve, run, watch
    from skerry.errors import UnresolvedArchitecture

    anatomy = resolve(subject.model)
    queries = torch.arange(given.start + given.length, given.start + 2 * given.length - 1)
    keys = queries - given.length + 1
    found: dict[tuple[int, int], list[Tensor]] = {}

    def look(view: AttentionView) -> None:
        probs = naive_probs(view)
        matched = probs[:, :, queries.to(probs.device), keys.to(probs.device)].double().mean(-1).cpu()
        for head in range(matched.shape[1]):
            found.setdefault((view.layer, head), []).append(matched[:, head])

    heads = max(1, anatomy.dims.num_heads)
    step = max(1, _SCORES_AT_ONCE // (heads * given.ids.shape[1] ** 2))
    with watch(anatomy, (), on_attention=look):
        for some in given.ids.split(step):
            run(anatomy, some)
    if not found:
        raise UnresolvedArchitecture("no attention showed itself")
    return {place: torch.cat(x).numpy() for place, x in sorted(found.items())}


class Heads(NamedTuple):
    """What the heads gave.

    Attributes:
        score: Of the best head.
        best: Which it is, and how many are above `MATCHES`: one row.
        rows: Of every head.
    """

    score: Score
    best: dict[str, Any]
    rows: list[dict[str, Any]]


def _of_heads(matching: dict[tuple[int, int], np.ndarray], given: Repeated, seed: int) -> Heads:
    layer, head = max(matching, key=lambda place: float(np.nanmean(matching[place][::2])))
    judged = matching[layer, head].copy()
    judged[::2] = np.nan
    queries = np.arange(given.start + given.length, given.start + 2 * given.length - 1)
    score = Score(
        "induction",
        "prefix_matching",
        "attention of the best head on the token to copy",
        mean_parts(judged),
        kind="share",
        chance=float((1 / (queries + 1)).mean()),
        chance_is="even attention",
        inputs=digest(given.ids),
        seed=seed,
    )
    rows = [
        {"layer": place[0], "head": place[1], "prefix_matching": float(np.nanmean(x))}
        for place, x in matching.items()
    ]
    num = sum(row["prefix_matching"] > MATCHES for row in rows)
    best = {"layer": layer, "head": head, "num_above": num, "num_heads": len(rows), "bar": MATCHES}
    return Heads(score, best, rows)


TASK = Task(
    "induction",
    "Does it copy what followed the same token before?",
    "Olsson et al. 2022 (arXiv 2209.11895)",
    run,
)
