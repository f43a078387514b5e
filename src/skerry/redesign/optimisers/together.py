"""Several optimisers over disjoint parameters as one: one list of groups, one state, one state_dict.

The parts hold the very groups and the very state of the whole, so what a schedule sets or a checkpoint restores in the whole is theirs at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


class Together(Optimizer):
    """Optimisers that step together.

    Args:
        parts: Optimisers that have not stepped yet, over disjoint parameters.
    """

    def __init__(self, parts: list[Optimizer]) -> None:
        self.parts = parts
        self._num_groups = [len(part.param_groups) for part in parts]
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        start = 0
        for part, count in zip(self.parts, self._num_groups, strict=True):
            part.param_groups = self.param_groups[start : start + count]
            part.state = self.state
            start += count

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore all parts."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of every part.

        Args:
            closure: Computes the loss and its gradients; optional.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss
