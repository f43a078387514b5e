"""Changes of a model that last as long as a `with` block: clip, zero, mean, resample, scale, replace, ablate.

    with skerry.zero(model, "3.resid.out", channels=[99]):
        model(**inputs)

Each function returns an `Intervention`, which can be opened again and again and nested in any order. Leaving restores the model bit
for bit, also after an exception. They work under every attention implementation and under `torch.inference_mode`.

`tokens` are flat token numbers (input * positions + position) or a bool mask [sample position]; None is all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType

import torch
from torch import Tensor, nn

from skerry.anatomy import resolve
from skerry.anatomy.change import Edit, change, check_changeable
from skerry.anatomy.model import Anatomy
from skerry.anatomy.sites import Site
from skerry.causes.resample import Donors
from skerry.errors import UnknownOption

Model = nn.Module | Anatomy
Channels = Sequence[int] | Tensor | None
Tokens = Sequence[int] | Tensor | None


class Intervention(AbstractContextManager["Intervention"]):
    """A change of a model that lasts while it is open.

    Attributes:
        first_layer: First block that computes something else; what comes before may be reused.
        what: What it does, in words.
    """

    def __init__(
        self, open_it: Callable[[], AbstractContextManager[object]], *, first_layer: int, what: str
    ) -> None:
        self._open, self.first_layer, self.what = open_it, first_layer, what
        self._stacks: list[ExitStack] = []

    def __enter__(self) -> Intervention:
        with ExitStack() as stack:
            stack.enter_context(self._open())
            self._stacks.append(stack.pop_all())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stacks.pop().__exit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"<{self.what}; open it with `with`>"


def anatomy_of(model: Model) -> Anatomy:
    """The places of a model, resolved when a bare module is given."""
    return model if isinstance(model, Anatomy) else resolve(model)


def site_of(site: Site | str) -> Site:
    """A site, parsed when it is written as text."""
    return site if isinstance(site, Site) else Site.parse(site)


def first_layer_of(anatomy: Anatomy, site: Site) -> int:
    """First block that computes something else when this activation changes: the block itself, the next one for its output."""
    if site.layer is None:
        return anatomy.dims.num_layers
    return site.layer + 1 if site.part == "resid.out" else site.layer


def edit_site(model: Model, site: Site | str, edit: Edit, *, what: str = "") -> Intervention:
    """Any change of one activation.

    Args:
        model: A model or its anatomy.
        site: Where, e.g. "3.mlp.down.in".
        edit: Values [row channel] and the flat token of each row (None: row r is token r) to new values of the same shape.
        what: What it does, in words.

    Raises:
        UnknownSite: The model has no such activation.
    """
    anatomy, place = anatomy_of(model), site_of(site)
    check_changeable(anatomy, place)
    return Intervention(
        lambda: change(anatomy, {place: edit}),
        first_layer=first_layer_of(anatomy, place),
        what=what or f"change of {place}",
    )


def selected(
    compute: Callable[[Tensor, Tensor], Tensor], channels: Channels = None, tokens: Tokens = None
) -> Edit:
    """An edit of some channels at some tokens.

    Args:
        compute: Chosen values [row channel] and the flat token of each row to new ones that broadcast to them.
        channels: None for all.
        tokens: None for all.
    """
    flat = None if tokens is None else _flat(tokens)
    columns = None if channels is None else torch.as_tensor(channels, dtype=torch.int64).reshape(-1)

    def edit(x: Tensor, rows: Tensor | None) -> Tensor:
        at = torch.arange(len(x), device=x.device) if rows is None else rows
        chosen = torch.arange(len(x), device=x.device)
        if flat is not None:
            wanted = flat.to(x.device)
            chosen = wanted if rows is None else torch.isin(at, wanted).nonzero()[:, 0]
            if rows is None and len(wanted) and int(wanted.max()) >= len(x):
                raise UnknownOption(
                    f"token {int(wanted.max())} was asked for; this forward has {len(x)} tokens"
                )
        c = torch.arange(x.shape[1], device=x.device) if columns is None else columns.to(x.device)
        place = (chosen[:, None], c[None, :])
        new = compute(x[place], at[chosen])
        return x.index_put(place, new.to(x).expand(len(chosen), len(c)))

    return edit


def _flat(tokens: Sequence[int] | Tensor) -> Tensor:
    t = torch.as_tensor(tokens)
    return t.reshape(-1).nonzero()[:, 0] if t.dtype == torch.bool else t.to(torch.int64).reshape(-1)


def clip(model: Model, site: Site | str, limit: float | Tensor, channels: Channels = None) -> Intervention:
    """Clip values to [-limit, limit]; `limit` is a number or one per channel."""
    bound = torch.as_tensor(limit)
    return edit_site(
        model,
        site,
        selected(lambda x, _t: x.clamp(-bound.to(x), bound.to(x)), channels),
        what=f"clipping of {site}",
    )


def zero(model: Model, site: Site | str, channels: Channels = None, tokens: Tokens = None) -> Intervention:
    """Set values to zero."""
    return edit_site(
        model, site, selected(lambda x, _t: torch.zeros_like(x), channels, tokens), what=f"zeroing of {site}"
    )


def replace(
    model: Model, site: Site | str, values: float | Tensor, channels: Channels = None, tokens: Tokens = None
) -> Intervention:
    """Put other values; they broadcast to [chosen token, chosen channel]."""
    new = torch.as_tensor(values)
    return edit_site(
        model, site, selected(lambda x, _t: new.to(x), channels, tokens), what=f"replacement at {site}"
    )


def set_mean(
    model: Model, site: Site | str, mean: float | Tensor, channels: Channels = None, tokens: Tokens = None
) -> Intervention:
    """Set values to their mean over a data set, one number per chosen channel."""
    return replace(model, site, mean, channels, tokens)


def scale(
    model: Model, site: Site | str, factor: float | Tensor, channels: Channels = None, tokens: Tokens = None
) -> Intervention:
    """Multiply values."""
    by = torch.as_tensor(factor)
    return edit_site(
        model, site, selected(lambda x, _t: x * by.to(x), channels, tokens), what=f"scaling of {site}"
    )


def resample(
    model: Model,
    site: Site | str,
    seed: int = 0,
    channels: Channels = None,
    tokens: Tokens = None,
    *,
    keep: Tensor | None = None,
) -> Intervention:
    """Give each token the value that another input of the batch has at the same position.

    Args:
        model: A model or its anatomy.
        site: Where; not inside routed experts, where another input's token may have no value.
        seed: Chooses the other inputs.
        channels: None for all.
        tokens: None for all.
        keep: False where the position is padding [sample position]; padding gives nothing.

    Raises:
        UnknownOption: A site inside an expert, or a batch of one input when it runs.
    """
    anatomy, place = anatomy_of(model), site_of(site)
    if place.expert is not None:
        raise UnknownOption(f"{place} holds only the tokens routed there; resample mlp.in or mlp.out instead")
    check_changeable(anatomy, place)
    donors = Donors(anatomy, seed, keep)

    def given(_x: Tensor, token: Tensor) -> Tensor:
        theirs = seen[0][donors.flat.to(token.device)[token]]
        return theirs if channels is None else _columns(theirs, channels)

    seen: list[Tensor] = []
    take = selected(given, channels, tokens)

    def edit(x: Tensor, rows: Tensor | None) -> Tensor:
        seen[:] = [x]
        try:
            return take(x, rows)
        finally:
            seen.clear()

    @contextmanager
    def opened() -> Iterator[None]:
        with donors.watching(), change(anatomy, {place: edit}):
            yield

    return Intervention(opened, first_layer=first_layer_of(anatomy, place), what=f"resampling of {place}")


def _columns(x: Tensor, channels: Sequence[int] | Tensor) -> Tensor:
    return x[:, torch.as_tensor(channels, dtype=torch.int64, device=x.device).reshape(-1)]
