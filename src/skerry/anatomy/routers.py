"""Changes the logits of a router that also chooses the experts: what it returned would come too late.

transformers' routers compute logits, weights and chosen experts in one forward. While a change is open the product with the router's
weight gives the changed logits, so that everything behind it is the router's own code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skerry.anatomy.sites import Site
from skerry.errors import UnknownSite

LogitEdit = Callable[[Tensor | None], Tensor]
# Router -> the changes of its logits in the order in which they were opened.
_edits: dict[int, list[LogitEdit]] = {}


def is_router(module: nn.Module, site: Site) -> bool:
    """Whether the module hands on more than the logits; a plain linear router is changed like any other layer."""
    return site.part == "mlp.router" and not isinstance(module, nn.Linear) and hasattr(module, "weight")


class _Logits(TorchFunctionMode):
    """Changes what a linear map with this weight gives."""

    def __init__(self, weight: Tensor, edits: list[LogitEdit]) -> None:
        super().__init__()
        self.weight, self.edits, self.num_seen = weight, edits, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is not F.linear or len(args) < 2 or args[1] is not self.weight:
            return out
        self.num_seen += 1
        return functools.reduce(lambda x, edit: edit(x), self.edits, out)


@contextmanager
def change_router(router: Any, edit: LogitEdit) -> Iterator[None]:
    """Give a router other logits while open.

    Raises:
        UnknownSite: In a forward: the router does not compute its logits as a linear map of its weight.
    """
    edits = _edits.setdefault(id(router), [])
    edits.append(edit)
    if len(edits) == 1:
        _take_over(router, edits)
    try:
        yield
    finally:
        edits.remove(edit)
        if not edits:
            del _edits[id(router)]
            _give_back(router)


def _take_over(router: Any, edits: list[LogitEdit]) -> None:
    before = router.forward

    @functools.wraps(before)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with _Logits(router.weight, edits) as mode:
            out = before(*args, **kwargs)
        if not mode.num_seen:
            raise UnknownSite(
                f"{type(router).__name__} computes its logits in a way that cannot be changed; change mlp.in or mlp.out instead"
            )
        return out

    forward.skerry_before = vars(router).get("forward")  # type: ignore[attr-defined]
    router.forward = forward


def _give_back(router: Any) -> None:
    before = router.forward.skerry_before
    if before is None:
        del router.forward
    else:
        router.forward = before
