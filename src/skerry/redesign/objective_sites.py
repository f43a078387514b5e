"""Reads the activations that a penalty is on, with their gradients: what `watch` shows is cut off from the graph, this is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from skerry.anatomy.model import Anatomy
from skerry.anatomy.sites import ACTIVATION_PARTS, STREAMED, Site
from skerry.anatomy.watch import first_tensor
from skerry.errors import UnknownOption, UnknownSite, near_matches

PARTS = tuple(part for part in ACTIVATION_PARTS if part not in STREAMED)


def check_parts(parts: Iterable[str]) -> None:
    """Refuse words that no penalty can be on.

    Raises:
        UnknownSite: With the near matches.
    """
    for part in parts:
        if part not in PARTS:
            near = near_matches(part, list(PARTS))
            why = " (attention weights are never stored)" if part in STREAMED else ""
            raise UnknownSite(
                f"a penalty cannot be on {part!r}{why}{f'; did you mean {near}?' if near else '.'} It can be on {', '.join(PARTS)}"
            )


def find_sites(anatomy: Anatomy, parts: Sequence[str], layers: Sequence[int] | None) -> list[Site]:
    """The sites of these parts, in the layers given or in all.

    Raises:
        UnknownOption: The model has no such layer.
        UnknownSite: The model has no such place.
    """
    count = anatomy.dims.num_layers
    for layer in layers or ():
        if not 0 <= layer < count:
            raise UnknownOption(
                f"a penalty is asked for in layer {layer}; the model has layers 0 to {count - 1}"
            )
    found: list[Site] = []
    for part in parts:
        here = [
            s
            for s in anatomy.taps
            if s.part == part
            and s.expert is None
            and (layers is None or s.layer is None or s.layer in layers)
        ]
        if not here:
            raise UnknownSite(
                f"this model has no {part!r} that a penalty could be on; it has "
                f"{', '.join(sorted({s.part for s in anatomy.taps}))}"
            )
        found += here
    return sorted(set(found))


class SiteReader:
    """The tensors of some sites in the forward at hand, [sample position channel] each."""

    def __init__(self, anatomy: Anatomy, sites: Iterable[Site]) -> None:
        """Nothing is hooked before `open`."""
        self.anatomy, self.sites = anatomy, list(sites)
        self._seen: dict[Site, Tensor] = {}

    @contextmanager
    def open(self) -> Iterator[None]:
        """Read every forward while open."""
        with ExitStack() as stack:
            for site in self.sites:
                bound = self.anatomy.taps[site]
                hook = self._hook(site, bound.tap.side)
                register: Any = (
                    bound.module.register_forward_pre_hook
                    if bound.tap.side == "input"
                    else bound.module.register_forward_hook
                )
                stack.callback(register(hook, with_kwargs=True).remove)
            try:
                yield
            finally:
                self._seen.clear()

    def _hook(self, site: Site, side: str) -> Callable[..., None]:
        split, dims = self.anatomy.taps[site].tap.split, self.anatomy.dims

        def read(_module: nn.Module, args: Any, kwargs: Any, *out: Any) -> None:
            x = first_tensor(args, kwargs) if side == "input" else first_tensor(out[0])
            if x is not None:
                x = x if split is None else split(x, dims)
                self._seen[site] = x if x.dim() == 3 else x.reshape(1, -1, x.shape[-1])

        return read

    def take(self) -> dict[Site, Tensor]:
        """What the last forward held; it is forgotten here, so that no graph outlives its step.

        Raises:
            UnknownSite: A site held no tensor in that forward.
        """
        seen, self._seen = self._seen, {}
        for site in self.sites:
            if site not in seen:
                raise UnknownSite(f"{site} held no tensor in this forward, so nothing can be asked of it")
        return seen
