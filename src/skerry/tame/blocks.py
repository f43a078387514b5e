"""What a killed run had found of each block: one file per block and method in the run's directory."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from skerry.run import Run

PREFIX = "block-"


class Blocks:
    """Finished blocks of the methods of one pipeline.

    Args:
        run: The run.
        key: What decides the results; those of another key are not read.
        pipeline: Its name.
    """

    def __init__(self, run: Run, key: str, pipeline: str) -> None:
        self.run, self.key = run, key
        self.prefix = f"{PREFIX}{re.sub('[^a-z0-9]+', '_', pipeline.lower())}-"

    def recalled(self) -> dict[int, dict[int, dict[str, Tensor]]]:
        """Number of the method to block to what was remembered. A damaged file counts as not there."""
        found: dict[int, dict[int, dict[str, Tensor]]] = {}
        for stage in self.run.partial_stages(self.prefix):
            method, _, layer = stage.removeprefix(self.prefix).partition("-")
            state = self.run.load_partial(stage, self.key)
            if state is not None:
                found.setdefault(int(method), {})[int(layer)] = state[0]
        return found

    def remember(self, method: int, layer: int, state: Mapping[str, Tensor]) -> None:
        """Keep what is known of a block."""
        self.run.save_partial(f"{self.prefix}{method}-{layer}", self.key, state, done=layer + 1)

    def forget(self) -> None:
        """All of them: what they were for is finished."""
        self.run.drop_partials(PREFIX)
