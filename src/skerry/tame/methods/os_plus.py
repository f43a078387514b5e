"""Outlier Suppression+: a shift and a scale per channel, so that outlier channels stop stretching the grid of all others.

    z_j = (max_t x_tj + min_t x_tj) / 2,   s_j from one threshold t per seam,   x' = (x - z) / s,   W' = W s,   b' = b + W z

t is searched so that the rounded readers of the seam give what they gave: attention (for q, k, v), the gated product (gate, up), or each
map's own output (Wei et al. 2023, arXiv 2304.09145, section 4). `os_plus_published` has the choices of the paper and of its code. Here,
in addition: ranges and losses over all calibration tokens; the seams v -> o and up -> down; scales below 1; thresholds of their own for
the two sides; a shift wherever a bias can take it (v -> o of models without norm biases too, since rows of attention sum to one); and a
check that a block as a whole gets nearer to what it gave.

Blocks are done in order, each with what the rounded blocks before it give (`upstream`).

Limit: a scheme that rounds nothing changes nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from skerry.anatomy.dense import dense_maps
from skerry.anatomy.walk import Walk
from skerry.corpus.batch import Batch
from skerry.tame.capture import pieces
from skerry.tame.method import Found, Job, Method
from skerry.tame.os_plus_block import Block
from skerry.tame.os_plus_choices import OsPlusChoices
from skerry.tame.os_plus_rows import Row, channel_rows
from skerry.tame.transform import SeamChange, Transform

SEARCH_SHARE = 8
_ROWS = "rows"


def find(job: Job) -> Found:
    """Search all seams of a model, block by block; the model is left as it is.

    Raises:
        UnknownOption: An option that it does not have.
        BadText: Calibration gives numbers that are not finite; input and block are named.
    """
    return search(job, OsPlusChoices.of(job.options))


@torch.no_grad()
def search(job: Job, choices: OsPlusChoices) -> Found:
    """`find` with choices that are made already.

    Args:
        job: The model, its seams, calibration and scheme.
        choices: What is searched, and how.
    """
    batches = pieces(job.batches[:1] if choices.batches == "first" else job.batches)
    sample = range(len(batches)) if choices.search == "every" else sample_of(batches, choices.tokens)
    walk = Walk(job.anatomy, batches)
    maps = dense_maps(job.anatomy, routers=True)
    seams = [s for s in job.seams.of(*choices.kinds) if s.carries]
    found = Found(notes=notes_of(job, choices))
    rows: list[Row] = []
    channels: list[Row] = []
    job.progress.start("searching seams", len(walk.blocks), "blocks")
    for layer in walk:
        here = [s for s in seams if s.layer == layer]
        block = Block(
            walk, batches, here, [d for d in maps if d.layer == layer], job.scheme, choices, list(sample)
        )
        state = job.recalled.get(layer)
        if state is None:
            changes = block.search()
            job.remember(layer, _state(changes, block.rows))
        else:
            changes, block.rows = _recall(state)
        found.changes += changes
        rows += block.rows
        by_name = {c.seam: c for c in changes}
        for seam in block.seams:
            if seam.name in by_name and (ranges := block.range_of(seam)) is not None:
                channels += channel_rows(seam, ranges, by_name[seam.name])
        walk.advance(block.outputs if choices.upstream == "float" else block.rounded_outputs(changes))
        job.progress.advance()
    job.progress.done()
    found.rows = {"seam_changes": rows, "channel_ranges": channels}
    return found


def sample_of(batches: Sequence[Batch], tokens: int) -> list[int]:
    """Numbers of pieces at equal distances that hold so many tokens, or an eighth of all if that is more."""
    total = sum(b.num_tokens for b in batches)
    wanted = max(tokens, total // SEARCH_SHARE)
    count = max(1, min(len(batches), -(-wanted * len(batches) // total)))
    # Odd ones: the static grids that candidates are compared with are those of the even ones.
    middles = ((2 * i + 1) * len(batches) // (2 * count) for i in range(count))
    return sorted({min(len(batches) - 1, middle | 1) for middle in middles})


def notes_of(job: Job, choices: OsPlusChoices) -> list[str]:
    """What is not done and why, one sentence per kind of seam and reason."""
    notes = [f"no {kind} seam: {reason}" for kind, reason in job.seams.missing.items()]
    skipped: Counter[tuple[str, str]] = Counter()
    for seam in job.seams.of(*choices.kinds):
        if (reason := choices.no_shift(seam)) is not None:
            skipped[seam.kind, reason] += 1
        if "scale" not in seam.carries:
            skipped[seam.kind, f"no scale: {seam.cannot.get('scale', 'it is not declared')}"] += 1
    for (kind, reason), number in skipped.items():
        what = reason if reason.startswith("no scale") else f"no shift: {reason}"
        notes.append(f"{number} {kind} seam{'s' if number > 1 else ''} with {what}")
    return notes


def _state(changes: list[SeamChange], rows: list[Row]) -> dict[str, Tensor]:
    """What is known of a block, as tensors; the rows as the bytes of their JSON."""
    text = torch.tensor(list(json.dumps(rows).encode()), dtype=torch.uint8)
    return {**Transform(changes).state(), _ROWS: text}


def _recall(state: Mapping[str, Tensor]) -> tuple[list[SeamChange], list[Row]]:
    rows = json.loads(bytes(state[_ROWS].tolist()).decode())
    return Transform.from_state({k: v for k, v in state.items() if k != _ROWS}).changes, rows


METHOD = Method(
    name="os+",
    what="shifts and scales channels on every seam, one searched threshold each",
    source="Wei et al. 2023 (arXiv 2304.09145), section 4, equations 3 to 6; widened",
    kind="transform",
    find=find,
    cost=3,
    needs=("inputs",),
)

__all__ = ["METHOD", "find", "search"]
