"""The Python face of trainings: their checkpoints, read one after another."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from skerry.answers import Watch
from skerry.api import _options
from skerry.run import Progress


def births(
    checkpoints: str | Path | Iterable[str | Path],
    data: str | Path | Iterable[Any] | None = None,
    *,
    revisions: Iterable[str] = (),
    progress: Progress | None = None,
    **options: Any,
) -> Watch:
    """See outliers being born in a series of checkpoints.

    Args:
        checkpoints: The folder of a training (or several, e.g. seeds), checkpoints of one training, or a hub id with revisions.
        data: As for `scan`; every checkpoint reads the same.
        revisions: Of the hub id, e.g. `["step0", "step512", "step1000"]`.
        progress: Told how far it is.
        options: Those of `scan`: samples, tokens, seed, out, dtype, device, batch_size, bos, threads, tokenizer, trust_remote_code.

    Raises:
        SkerryError: What was wrong, what was expected, what to do.
    """
    from skerry.redesign.watch_series import watch_series

    places = [checkpoints] if isinstance(checkpoints, (str, Path)) else list(checkpoints)
    named = [revisions] if isinstance(revisions, str) else list(revisions)
    return Watch(watch_series(places, data, _options(options), progress, revisions=named))
