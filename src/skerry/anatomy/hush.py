"""Keeps transformers quiet while it loads: progress bars and load reports are not printed, warnings are collected."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


class _Collector(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(record.getMessage())


@contextlib.contextmanager
def hushed() -> Iterator[list[str]]:
    """Gives the list that fills with what would have been printed; everything is as before afterwards."""
    from huggingface_hub.utils import are_progress_bars_disabled  # type: ignore[attr-defined]
    from huggingface_hub.utils import disable_progress_bars as hub_off  # type: ignore[attr-defined]
    from huggingface_hub.utils import enable_progress_bars as hub_on  # type: ignore[attr-defined]
    from transformers.utils import logging as talk

    said: list[str] = []
    collector = _Collector(said)
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    before = [(logger, list(logger.handlers), logger.propagate) for logger in loggers]
    bars, hub_bars = talk.is_progress_bar_enabled(), not are_progress_bars_disabled()
    talk.disable_progress_bar()
    hub_off()
    for logger in loggers:
        logger.handlers, logger.propagate = [collector], False
    try:
        # Some bars are plain ones that no setting reaches; they write to wherever stderr is when they begin.
        with (
            warnings.catch_warnings(record=True) as caught,
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("always")
            yield said
        said += [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
        if bars:
            talk.enable_progress_bar()
        if hub_bars:
            hub_on()


def one_line(text: object) -> str:
    """The first line that says something, without colours and box characters."""
    import re

    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(text))
    lines = [" ".join(line.split()) for line in plain.splitlines()]
    return next((line for line in lines if re.search(r"\w", line)), type(text).__name__)
