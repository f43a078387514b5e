"""The stages of a scan: read the text once, read the weights once, look for what stands out.

Each stage writes its tables into the run and is skipped when they are there already, so that a killed scan goes on where it stopped
and a repeated one is instant.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from skerry.anatomy import Anatomy
from skerry.corpus.batch import Batch
from skerry.measure import Meter, weight_stats
from skerry.outliers.tabulate import TokenText, activation_tables, weight_tables
from skerry.run import Progress, Run
from skerry.run.interrupt import deferred_interrupt

SAVE_EVERY_SECONDS = 20.0


def read_activations(
    run: Run,
    key: str,
    anatomy: Anatomy,
    batches: Iterable[Batch],
    *,
    num_batches: int,
    parts: Sequence[str] | None,
    attention: bool,
    text: TokenText,
    progress: Progress,
) -> None:
    """Stage `activations`: one forward per batch; what it has so far is kept every 20 seconds and when interrupted."""
    if run.finished("activations", key):
        return
    start = time.perf_counter()
    meter, done = Meter(anatomy, parts, attention=attention), 0
    if (partial := run.load_partial("activations", key)) is not None:
        state, done = partial
        meter = Meter.from_state(anatomy, state, parts, attention=attention)
        progress.note(f"going on after {done} of {num_batches} batches")
    progress.start("reading text", num_batches, "batch")
    progress.advance(done)
    saved = time.perf_counter()
    with deferred_interrupt() as interrupt:
        for number, batch in enumerate(batches):
            if number < done:
                continue
            meter.read(batch)
            done = number + 1
            progress.advance()
            late = time.perf_counter() - saved > SAVE_EVERY_SECONDS
            if done < num_batches and (late or interrupt.requested):
                run.save_partial("activations", key, meter.state(), done=done)
                saved = time.perf_counter()
            if interrupt.requested:
                raise KeyboardInterrupt
    progress.done()
    tables = activation_tables(meter, text)
    run.finish("activations", key, tables=tables, seconds=time.perf_counter() - start)


def read_weights(
    run: Run, key: str, anatomy: Anatomy, *, parts: Sequence[str] | None, progress: Progress
) -> None:
    """Stage `weights`: every parameter once."""
    if run.finished("weights", key):
        return
    start = time.perf_counter()
    sites = [
        s
        for s in anatomy.weight_sites
        if parts is None or s.part in parts or s.part.removesuffix(".bias") in parts
    ]
    progress.start("reading weights", len(sites), "matrix")
    results = []
    for site in sites:
        results.append((site, weight_stats(anatomy.weight(site)).result()))
        progress.advance()
    progress.done()
    run.finish("weights", key, tables=weight_tables(results), seconds=time.perf_counter() - start)
