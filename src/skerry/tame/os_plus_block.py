"""One block of Outlier Suppression+: ranges of its seams, the search on each, the comparison on all tokens, and the check of the block."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from skerry.anatomy.dense import Dense
from skerry.anatomy.seams import RowsWriter, Seam
from skerry.anatomy.walk import Walk
from skerry.corpus.batch import Batch
from skerry.impact.scheme import Scheme
from skerry.tame.capture import View, ranges_of, view
from skerry.tame.consumers import Consumer, is_router
from skerry.tame.os_plus_choices import OsPlusChoices
from skerry.tame.os_plus_rows import Row, seam_row
from skerry.tame.rounded import Reading, Rounded, computing_dtype, reading_of, rounded, rounded_block
from skerry.tame.seam_search import BEHIND, Candidate, SeamSearch, finish
from skerry.tame.threshold import Ranges
from skerry.tame.transform import SeamChange

# Numbers of a block that may be kept beside those of the search; the rest is run again for the last comparison.
KEPT_FLOATS = 1 << 25
# The check leaves a change out only for a difference that is not noise of the tokens it reads.
BETTER = 0.995
# Share of all tokens after which a finalist that is behind is given up.
GIVE_UP_AFTER = 0.25


class Block:
    """All calibration tokens before one block.

    Args:
        walk: Stands before the block.
        batches: The pieces that it walks.
        seams: The seams to change whose readers are in the block.
        maps: All linear maps of the block, routers included.
        scheme: How the model will be rounded.
        choices: Of the search.
        sample: Numbers of the pieces that the search reads.
    """

    def __init__(
        self,
        walk: Walk,
        batches: Sequence[Batch],
        seams: Sequence[Seam],
        maps: Sequence[Dense],
        scheme: Scheme,
        choices: OsPlusChoices,
        sample: Sequence[int],
    ) -> None:
        self.walk, self.batches, self.scheme, self.choices = walk, batches, scheme, choices
        self.maps = list(maps)
        self.seams = [_on(maps, seam) for seam in seams]
        self.consumers = {s: Consumer(walk.anatomy, s, maps, loss=choices.loss) for s in self.seams}
        modules = {id(m): m for c in self.consumers.values() for m in c.modules}
        self.modules = list(modules.values())
        self.ranges: dict[Dense, Ranges] = {}
        self.half: dict[Dense, Ranges] = {}
        self.outputs: list[Tensor] = []
        self.kept: dict[int, View] = {}
        self._read(set(sample))
        self.sample = [self.kept[n] for n in sample]
        self.rows: list[Row] = []

    def _read(self, sample: set[int]) -> None:
        room = KEPT_FLOATS
        # A static grid clips what calibration has not seen, the more the fuller its channels are. So candidates are compared with the grids
        # of every second piece, on all pieces; ranges that were fitted to the very tokens of the comparison would always seem to suffice.
        halves = self.choices.search == "fine"
        half = set(range(0, len(self.batches), 2 if halves else 1))
        for number in range(len(self.batches)):
            seen = view(self.walk, self.batches, number, self.maps, self.modules)
            for dense in seen.inputs:
                if (new := ranges_of(seen, dense)) is not None:
                    for known in (self.ranges, self.half) if number in half else (self.ranges,):
                        known[dense] = new if dense not in known else known[dense].joined(new)
            assert seen.output is not None
            self.outputs.append(seen.output)
            room -= seen.num_floats
            if number in sample or room > 0:
                self.kept[number] = seen

    def range_of(self, seam: Seam, *, half: bool = False) -> Ranges | None:
        """Ranges of a seam's tensor; None where no token reaches its readers.

        Args:
            seam: The seam.
            half: Of every second piece only, where a token of those reaches them.
        """
        known = {**self.ranges, **self.half} if half else self.ranges
        whole = [d for d in seam.readers if not d.is_routed and d in known]
        found: Ranges | None = None
        for dense in whole[:1] or [d for d in seam.readers if d in known]:
            found = known[dense] if found is None else found.joined(known[dense])
        return found

    def search(self) -> list[SeamChange]:
        """The changes, and a row for every seam."""
        searches: dict[Seam, SeamSearch] = {}
        finalists: dict[Seam, list[Candidate]] = {}
        seconds = dict.fromkeys(self.seams, 0.0)
        for seam in self.seams:
            start = time.perf_counter()
            ranges, consumer = self.range_of(seam), self.consumers[seam]
            if ranges is None or not any(d in v.inputs for d in consumer.readers for v in self.sample):
                continue
            consumer.prove(self.sample[0], self.scheme, ranges)
            consumer.weigh(self.sample)
            half = self.range_of(seam, half=True) or ranges
            searches[seam] = SeamSearch(seam, consumer, self.scheme, ranges, half, self.sample, self.choices)
            finalists[seam] = searches[seam].run()
            seconds[seam] += time.perf_counter() - start
        losses = self._compare(finalists, searches, seconds)
        found: dict[Seam, tuple[Candidate, float]] = {}
        for seam, candidates in finalists.items():
            # The published search does not compare with doing nothing.
            last = 1 if self.choices.search == "every" else len(candidates)
            found[seam] = finish(candidates[:last], losses[seam])
        kept = {s: c.change for s, (c, _) in found.items() if not c.change.is_empty}
        left_out = self._check(kept) if self.choices.check else {}
        for seam in self.seams:
            if seam not in found:
                self.rows.append(
                    seam_row(seam, None, None, skipped="no calibration token reaches its readers")
                )
                continue
            candidate, loss = found[seam]
            skipped = left_out.get(seam)
            if candidate.change.is_empty and skipped is None:
                skipped = "no shift or scale lowers the loss of its readers"
            before = losses[seam][-1]
            self.rows.append(
                seam_row(
                    seam,
                    searches[seam].ranges,
                    candidate,
                    loss_before=before,
                    loss_after=before if skipped else loss,
                    candidates=len(searches[seam].tried),
                    seconds=seconds[seam],
                    skipped=skipped,
                )
            )
        return [c for s, c in kept.items() if s not in left_out]

    def _compare(
        self,
        finalists: dict[Seam, list[Candidate]],
        searches: dict[Seam, SeamSearch],
        seconds: dict[Seam, float],
    ) -> dict[Seam, list[float]]:
        """Losses of the finalists on all tokens, infinite for those given up on the way; the last of them changes nothing."""
        ready: dict[Seam, list[dict[Dense, Rounded]]] = {}
        for seam, candidates in finalists.items():
            changes = [c.change for c in candidates]
            ranges = searches[seam].grid_ranges
            ready[seam] = [self.consumers[seam].prepare(c, self.scheme, ranges) for c in changes]
        scores = {seam: _Scores(self.consumers[seam], options) for seam, options in ready.items()}
        tokens, whole = 0, sum(b.num_tokens for b in self.batches)
        for seen in self._all():
            tokens += seen.num_tokens
            for seam, score in scores.items():
                start = time.perf_counter()
                score.add(seen)
                if tokens >= whole * GIVE_UP_AFTER:
                    score.give_up()
                seconds[seam] += time.perf_counter() - start
        return {seam: score.losses() for seam, score in scores.items()}

    def _all(self) -> Iterator[View]:
        for number in range(len(self.batches)):
            if number in self.kept:
                yield self.kept[number]
            else:
                yield view(self.walk, self.batches, number, self.maps, self.modules)

    def rounded(self, changes: Sequence[SeamChange], *, half: bool = False) -> dict[Dense, Rounded]:
        """All maps of the block as they will be, with static grids of all pieces or of every second one."""
        known = {**self.ranges, **self.half} if half else self.ranges
        by_name = {c.seam: c for c in changes}
        readings: dict[Dense, Reading] = {}
        rows: dict[Dense, Tensor] = {}
        for seam in self.seams:
            change = by_name.get(seam.name)
            if change is None or change.is_empty:
                continue
            ranges = self.range_of(seam, half=half)
            assert ranges is not None
            read = reading_of(seam, change, self.scheme, ranges, computing_dtype(seam.readers[0]))
            readings.update(dict.fromkeys(seam.readers, read))
            if isinstance(seam.writer, RowsWriter) and change.scale is not None:
                dense = seam.writer.dense
                out = rows.setdefault(dense, torch.ones(len(dense.weight), dtype=torch.float64))
                out[seam.writer.rows] = change.scale
        found: dict[Dense, Rounded] = {}
        shared: dict[object, Reading] = {}
        for dense in self.maps:
            if is_router(dense) or dense not in known:
                continue
            reading: Reading | None = readings.get(dense)
            if reading is None:
                key = dense if dense.is_routed else (dense.reads, known[dense].span)
                reading = shared.setdefault(
                    key,
                    reading_of(None, None, self.scheme, known[dense], computing_dtype(dense)),
                )
            found[dense] = rounded(dense, self.scheme, reading, rows=rows.get(dense))
        return found

    def rounded_outputs(self, changes: Sequence[SeamChange]) -> list[Tensor]:
        """What the block gives for every piece once it is changed and rounded, in the coordinates of the model as it is."""
        return self.walk.run(rounded_block(self.walk.anatomy, self.rounded(changes)))

    def _error(self, changes: Sequence[SeamChange]) -> float:
        """Mean over tokens of |new - old|^2 / |old|^2 of the block's output."""
        total, tokens = 0.0, 0
        with rounded_block(self.walk.anatomy, self.rounded(changes, half=True)):
            for seen in self.sample:
                new, old = (
                    x.reshape(-1, x.shape[-1])[seen.counts].float()
                    for x in (self.walk.run_one(seen.number), self.outputs[seen.number])
                )
                total += float(((new - old).square().sum(-1) / old.square().sum(-1).clamp_min(1e-30)).sum())
                tokens += seen.num_tokens
        return total / tokens

    def _check(self, kept: dict[Seam, SeamChange]) -> dict[Seam, str]:
        """Changes without which the rounded block is nearer to what it gave; a change helps its readers and can harm its writer."""
        left: dict[Seam, str] = {}
        if not kept:
            return left
        error = self._error(list(kept.values()))
        while groups := list(dict.fromkeys(_family(s) for s in kept if s not in left)):
            trials = {
                g: self._error([c for s, c in kept.items() if s not in left and _family(s) != g])
                for g in groups
            }
            best = min(trials, key=lambda g: trials[g])
            if not trials[best] < error * BETTER:
                break
            for seam in kept:
                if _family(seam) == best:
                    left[seam] = (
                        f"with it the rounded block's output is off by {error:.2e} of its energy, without by {trials[best]:.2e}"
                    )
            error = trials[best]
        return left


class _Scores:
    """Finalists of one seam while the tokens go by; the last of them changes nothing, and is never given up."""

    def __init__(self, consumer: Consumer, options: list[dict[Dense, Rounded]]) -> None:
        self.consumer, self.options = consumer, options
        self.errors = torch.zeros(len(options), len(consumer.groups), dtype=torch.float64)
        self.energies = torch.zeros(len(consumer.groups), dtype=torch.float64)
        self.alive = [True] * len(options)

    def add(self, seen: View) -> None:
        self.energies += torch.tensor(self.consumer.energies(seen), dtype=torch.float64)
        for i, maps in enumerate(self.options):
            if self.alive[i]:
                self.errors[i] += torch.tensor(self.consumer.errors(seen, maps), dtype=torch.float64)

    def losses(self) -> list[float]:
        """Sum over the groups of error over energy; infinite for those given up."""
        shares = (self.errors / self.energies.clamp_min(1e-300)).sum(-1).tolist()
        return [
            x if alive and math.isfinite(x) else math.inf for x, alive in zip(shares, self.alive, strict=True)
        ]

    def give_up(self) -> None:
        now = self.losses()
        self.alive[:-1] = [x <= min(now) * BEHIND for x in now[:-1]]


def _on(maps: Sequence[Dense], seam: Seam) -> Seam:
    """The seam with these map objects, which are told apart by identity, in place of its own of the same names."""
    by_name = {d.name: d for d in maps}
    writer = seam.writer
    if isinstance(writer, RowsWriter):
        writer = replace(writer, dense=by_name.get(writer.dense.name, writer.dense))
    return replace(seam, readers=tuple(by_name.get(d.name, d) for d in seam.readers), writer=writer)


def _family(seam: Seam) -> str:
    """A seam's name without the number of an expert: the experts of a block stay or go together."""
    return seam.name.partition("[")[0]
