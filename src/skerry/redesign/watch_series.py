"""Reads a series of checkpoints as a monitor would have read the training: `skerry watch`.

Each checkpoint is a stage of the run, so a stopped series goes on where it stopped, and a training that has gone on has only its new
checkpoints read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import skerry
from skerry.choices import Choice
from skerry.outliers.options import DEFAULT_FOLDER, Options, slug
from skerry.outliers.plan import Plan, digest, facts, make_feed
from skerry.redesign.birth_order import order_rows
from skerry.redesign.births_channels import channel_rows
from skerry.redesign.births_checkpoints import (
    Checkpoint,
    Series,
    check_vocabularies,
    find_series,
    tokenizer_place,
)
from skerry.redesign.births_document import SCHEMA, STAGE, series_document
from skerry.redesign.births_onset import onset_rows
from skerry.redesign.births_rows import Row, rows_of
from skerry.run import Progress, Run, Silent
from skerry.run.interrupt import deferred_interrupt
from skerry.run.repeat import asked_key, find_repeat
from skerry.run.space import check_space
from skerry.run.tables import from_rows

if TYPE_CHECKING:
    from skerry.anatomy import Anatomy
    from skerry.anatomy.load import Loaded
    from skerry.corpus import Feed

VERSION = 2
SAMPLES = Choice(32, "enough for medians and sink rates; every checkpoint is read")


@dataclass
class _Watch:
    """One training with what its checkpoints read."""

    series: Series
    feed: Feed
    tokenizer: Any
    options: Options

    def key(self, checkpoint: Checkpoint) -> str:
        """Of what decides the rows of a checkpoint."""
        return digest(
            {
                "version": (VERSION, skerry.__version__),
                "place": checkpoint,
                "files": _fingerprint(checkpoint),
                "ids": self.feed.card.ids_sha256,
                "dtype": self.options.dtype,
            }
        )

    def stage(self, checkpoint: Checkpoint) -> str:
        """Name of the checkpoint's stage."""
        return f"{self.series.name} step {checkpoint.step}"

    def file(self, checkpoint: Checkpoint) -> str:
        """Name of the file of its rows."""
        name = f"{slug(self.series.name)}-{digest({'series': self.series.name})[:4]}"
        return f"births-{name}-{checkpoint.step}.json"


def watch_series(
    places: Sequence[str | Path],
    data: Any = None,
    options: Options | None = None,
    progress: Progress | None = None,
    *,
    revisions: Sequence[str] = (),
) -> Run:
    """Measure every checkpoint of one or several trainings.

    Args:
        places: Folders of trainings, checkpoints of one training, or one hub id with revisions.
        data: As for `scan`: what every checkpoint reads.
        options: As for `scan`; tokens, samples, seed, dtype, device, batch_size, bos, threads, out, tokenizer count.
        progress: Told how far it is.
        revisions: Of the hub id.

    Returns:
        The finished run: tables births, birth_onsets, birth_order, birth_channels, and births.json.

    Raises:
        SkerryError: Whatever is wrong with checkpoints, text, options or disk; what was measured so far is kept.
    """
    options, progress = options or Options(), progress or Silent()
    options.check()
    every = find_series(places, revisions)
    check_vocabularies(every)
    asked = _asked(every, data, options)
    folders = [Path(options.out)] if options.out else sorted(DEFAULT_FOLDER.glob("*"))
    if (done := find_repeat(asked, folders, STAGE)) is not None:
        return done
    choices: dict[str, Choice[Any]] = {}
    if options.samples is None:
        options, choices["samples"] = replace(options, samples=SAMPLES.value), SAMPLES
    progress.start("loading", len(every), "model")
    plan, watches = _plan(every, data, options, choices, progress)
    progress.done()
    check_space(plan.path, 8 * 2**20)
    with Run.begin(plan.path, plan.request, facts(plan)) as run:
        run.log(f"watch of {', '.join(f'{s.name} ({len(s.checkpoints)})' for s in every)}: {plan.feed.card}")
        _measure(run, watches, progress)
        _finish(run, watches, plan, asked)
    return run


def _plan(
    every: Sequence[Series],
    data: Any,
    options: Options,
    choices: dict[str, Choice[Any]],
    progress: Progress,
) -> tuple[Plan, list[_Watch]]:
    """Load the first checkpoint of each training, which brings the tokenizer, and cut the text."""
    watches = []
    for series in every:
        place = options.tokenizer or tokenizer_place(series)
        loaded, anatomy = _load(series.checkpoints[0], options, place, choices)
        choices.update(loaded.choices)
        feed = make_feed(loaded, anatomy, data, options, choices)
        watches.append(_Watch(series, feed, loaded.tokenizer, options))
        progress.advance()
    request = {
        "verb": "watch",
        "model": ", ".join(series.name for series in every),
        "places": [_home(series) for series in every],
        "ids": [w.feed.card.ids_sha256 for w in watches],
        "samples": watches[0].feed.card.num_samples,
        "tokens": watches[0].feed.card.tokens_per_sample,
        "dtype": str(options.dtype),
        "device": next(loaded.model.parameters()).device.type,
        "seed": options.seed,
    }
    name = slug(every[0].name) if len(every) == 1 else f"{slug(every[0].name)}-and-{len(every) - 1}-more"
    path = Path(options.out) if options.out else DEFAULT_FOLDER / f"watch-{name}-{digest(request)[:12]}"
    return Plan(loaded, anatomy, watches[0].feed, options, request, choices, path), watches


def _load(
    checkpoint: Checkpoint, options: Options, tokenizer: Any, choices: dict[str, Choice[Any]] | None = None
) -> tuple[Loaded, Anatomy]:
    import torch

    from skerry.anatomy import load, resolve
    from skerry.anatomy.threads import choose_threads

    loaded = load(
        checkpoint.place if checkpoint.revision else Path(checkpoint.place),
        dtype=options.dtype,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
        tokenizer=tokenizer,
        revision=checkpoint.revision,
    )
    if choices is not None:
        choices["threads"] = choose_threads(loaded.num_parameters, requested=options.threads)
        torch.set_num_threads(choices["threads"].value)
    return loaded, resolve(loaded.model)


def _measure(run: Run, watches: Sequence[_Watch], progress: Progress) -> None:
    """Read the checkpoints that were not read yet; Ctrl-C stops between two."""
    missing = [
        (w, c) for w in watches for c in w.series.checkpoints if not run.finished(w.stage(c), w.key(c))
    ]
    total = sum(len(w.series.checkpoints) for w in watches)
    if missing and len(missing) < total:
        progress.note(f"{total - len(missing)} of {total} checkpoints are measured already")
    progress.start("reading checkpoints", sum(len(w.feed) for w, _ in missing), "batch")
    with deferred_interrupt() as interrupt:
        for watch, checkpoint in missing:
            if interrupt.requested:
                raise KeyboardInterrupt
            start = time.perf_counter()
            rows, warnings = _read(watch, checkpoint, progress)
            text = json.dumps({"rows": rows, "warnings": warnings}, allow_nan=False)
            run.finish(
                watch.stage(checkpoint),
                watch.key(checkpoint),
                texts={watch.file(checkpoint): text},
                seconds=time.perf_counter() - start,
            )
    progress.done()


def _read(watch: _Watch, checkpoint: Checkpoint, progress: Progress) -> tuple[list[Row], list[str]]:
    from skerry.redesign.births_reading import BirthsReading

    loaded, anatomy = _load(checkpoint, watch.options, watch.tokenizer)
    reading = BirthsReading(anatomy)
    for batch in watch.feed:
        reading.read(batch)
        progress.advance()
    # A folder without a tokenizer was told of when the tokenizer was looked for.
    said = [w for w in (*loaded.warnings, *anatomy.unplaced) if "has no tokenizer" not in w]
    return rows_of(reading, checkpoint.step), said


def _finish(run: Run, watches: Sequence[_Watch], plan: Plan, asked: str | None) -> None:
    """Onsets, order and channels from the rows of all checkpoints."""
    key = digest({"version": VERSION, "keys": [w.key(c) for w in watches for c in w.series.checkpoints]})
    if run.finished(STAGE, key) and run.record.stages[STAGE].asked == asked:
        return
    start = time.perf_counter()
    notes = [note for w in watches for note in w.feed.card.notes]
    rows: dict[str, list[Row]] = {}
    for w in watches:
        name = w.series.name
        for found in (json.loads(run.text(w.file(c))) for c in w.series.checkpoints):
            rows.setdefault(name, []).extend(found["rows"])
            notes += found["warnings"]
    onsets = [row for name, found in rows.items() for row in onset_rows(found, name)]
    channels = [row for name, found in rows.items() for row in channel_rows(found, name)]
    order = order_rows(onsets, seed=plan.options.seed)
    tables = {"birth_onsets": onsets, "birth_channels": channels}
    document = {
        "schema": SCHEMA,
        "model": plan.request["model"],
        "series": [series_document(name, found, tables) for name, found in rows.items()],
        "order": order,
        "corpus": plan.feed.card.as_dict(),
        "notes": list(dict.fromkeys(notes)),
        "choices": {name: str(choice) for name, choice in plan.choices.items()},
    }
    births = [{"series": name, **row} for name, found in rows.items() for row in found]
    every = {"births": births, **tables, "birth_order": order}
    run.finish(
        STAGE,
        key,
        tables={name: from_rows(name, found) for name, found in every.items()},
        texts={"births.json": json.dumps(document, allow_nan=False)},
        seconds=time.perf_counter() - start,
        asked=asked,
    )


def _asked(every: Sequence[Series], data: Any, options: Options) -> str | None:
    """Key of the whole request; None for revisions, which may move, and for tensors."""
    keys = [
        asked_key(None if c.revision else c.place, data, {**options.plain(), "verb": "watch", "step": c.step})
        for series in every
        for c in series.checkpoints
    ]
    return None if None in keys else digest({"keys": keys, "names": [s.name for s in every]})


def _home(series: Series) -> str:
    first = series.checkpoints[0]
    return first.place if first.revision else str(Path(first.place).resolve().parent)


def _fingerprint(checkpoint: Checkpoint) -> list[list[Any]]:
    """Names, sizes and times of the files of a folder: a checkpoint that was written anew is read anew."""
    return [] if checkpoint.revision else sorted(_files(Path(checkpoint.place)))


def _files(folder: Path) -> Iterator[list[Any]]:
    for file in folder.iterdir():
        if file.is_file():
            yield [file.name, (stat := file.stat()).st_size, stat.st_mtime_ns]
