"""Changes of a model that last as long as a `with` block: clip, zero, mean, resample, scale, replace, ablate.

    with skerry.zero(model, "3.resid.out", channels=[99]):
        model(**inputs)

Each function returns an `Intervention`, which can be opened again and again and nested in any order. Leaving restores the model bit
for bit, also after an exception. They work under every attention implementation and under `torch.inference_mode`.

`channels` are one number, several or a bool mask; `tokens` are flat token numbers (input * positions + position) or a bool mask
[sample position]; None is all of them. What cannot be meant (no such site, channel, head, token) is refused before the model runs
where the model's weights tell, else when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from skerry.anatomy import resolve
from skerry.anatomy.asked import check_activation, numbers, width_of
from skerry.anatomy.change import Edit, change
from skerry.anatomy.model import Anatomy
from skerry.anatomy.sites import Site
from skerry.causes.resample import Donors
from skerry.errors import UnknownOption, UnknownSite

Model = nn.Module | Anatomy
Channels = int | Sequence[int] | Tensor | None
Tokens = int | Sequence[int] | Tensor | None
# Chosen values [row channel], the flat token of each row and its place in `tokens`, to new values that broadcast to them.
Compute = Callable[[Tensor, Tensor, Tensor], Tensor]


class Intervention(AbstractContextManager["Intervention"]):
    """A change of a model that lasts while it is open.

    Attributes:
        first_layer: First block that computes something else; what comes before may be reused.
        what: What it does, in words.
        changes_head: Whether it changes what the model does after its last hidden states.
    """

    def __init__(
        self,
        open_it: Callable[[], AbstractContextManager[object]],
        *,
        first_layer: int,
        what: str,
        changes_head: bool = False,
    ) -> None:
        self._open, self.first_layer, self.what = open_it, first_layer, what
        self.changes_head = changes_head
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
    """A site, parsed when it is written as text.

    Raises:
        UnknownSite: Not a word of the vocabulary.
    """
    if isinstance(site, Site):
        return site
    try:
        return Site.parse(site)
    except ValueError as error:
        raise UnknownSite(
            f"there is no site {site!r}; sites are written 3.mlp.out or 3.mlp.out[5] for an expert"
        ) from error


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
    check_activation(anatomy, place)
    return Intervention(
        lambda: change(anatomy, {place: edit}),
        first_layer=first_layer_of(anatomy, place),
        what=what or f"change of {place}",
    )


def selected(
    anatomy: Anatomy, site: Site, compute: Compute, channels: Channels = None, tokens: Tokens = None
) -> Edit:
    """An edit of some channels at some tokens of a site.

    Args:
        anatomy: The model with its places.
        site: Where.
        compute: Chosen values [row channel], the flat token of each row and its place in `tokens`, to new values that broadcast to them.
        channels: None for all.
        tokens: None for all.

    Raises:
        UnknownOption: A channel or token that the site does not have; when the model runs, where only that tells.
    """
    width = width_of(anatomy, site)
    columns = None if channels is None else numbers(channels, width, what="channel", where=site)
    flat = None if tokens is None else numbers(tokens, None, what="token", where="the batch")
    mask_size = tokens.numel() if isinstance(tokens, Tensor) and tokens.dtype == torch.bool else None

    def edit(x: Tensor, rows: Tensor | None) -> Tensor:
        c = None if columns is None else columns.to(x.device)
        if c is not None and width is None:
            numbers(c, x.shape[1], what="channel", where=site)
        if flat is not None and rows is None:
            _check_tokens(flat, mask_size, len(x))
        at = torch.arange(len(x), device=x.device) if rows is None else rows
        chosen, place = _chosen(at, flat, every=rows is None)
        some = x if chosen is None else x[chosen]
        some = some if c is None else some[:, c]
        new = compute(some, at if chosen is None else at[chosen], place)
        return _put(x, chosen, c, _fitting(new, some, site))

    return edit


def _check_tokens(flat: Tensor, mask_size: int | None, num_tokens: int) -> None:
    if mask_size is not None and mask_size != num_tokens:
        raise UnknownOption(f"a mask of {mask_size} tokens was given; this forward has {num_tokens}")
    if len(flat) and int(flat.max()) >= num_tokens:
        raise UnknownOption(
            f"token {int(flat.max())} was asked for; this forward has {num_tokens} (0 to {num_tokens - 1})"
        )


def _chosen(at: Tensor, flat: Tensor | None, *, every: bool) -> tuple[Tensor | None, Tensor]:
    """Rows of the chosen tokens (None: all rows) and the place of each in `tokens`; some tokens have no row in an expert."""
    if flat is None:
        return None, at
    flat = flat.to(at.device)
    if every:
        return flat, torch.arange(len(flat), device=at.device)
    rows, place = (at[:, None] == flat[None, :]).nonzero(as_tuple=True)
    return rows, place


def _put(x: Tensor, rows: Tensor | None, columns: Tensor | None, new: Tensor) -> Tensor:
    if rows is None:
        return new if columns is None else x.index_copy(1, columns, new)
    if columns is None:
        return x.index_copy(0, rows, new)
    return x.index_put((rows[:, None], columns[None, :]), new)


def _fitting(new: Tensor, some: Tensor, site: Site) -> Tensor:
    try:
        return new.to(some).expand(some.shape)
    except RuntimeError as error:
        raise UnknownOption(
            f"values of shape {list(new.shape)} at {site} do not fit {some.shape[0]} tokens and {some.shape[1]} channels; "
            "give one number, one per channel, or [token channel]"
        ) from error


def _values(given: Any, what: str, site: Site, tokens: Tokens) -> Callable[[Tensor, Tensor], Tensor]:
    """The given values for some rows: one number, one per channel, or one row per token, by its place in `tokens`."""
    try:
        # A number of Python is a float64.
        values = (
            given if isinstance(given, Tensor) else torch.as_tensor(given, dtype=torch.float64)
        ).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UnknownOption(f"{what} {given!r} at {site}: numbers are needed") from error
    if values.dim() > 2:
        raise UnknownOption(
            f"{what} of shape {list(values.shape)} at {site}: give one number, one per channel, or [token channel]"
        )
    per_token = values.dim() == 2 and len(values) > 1
    if per_token and tokens is not None:
        num_tokens = len(numbers(tokens, None, what="token", where="the batch"))
        if num_tokens != len(values):
            raise UnknownOption(
                f"{what} at {site} for {len(values)} tokens were given; {num_tokens} are chosen"
            )

    def of(x: Tensor, place: Tensor) -> Tensor:
        here = values.to(x)
        if not per_token or (tokens is None and site.expert is None):
            return here
        # In an expert only some of the tokens have a row.
        numbers(place, len(here), what="token", where=f"{what} at {site}")
        return here[place]

    return of


def clip(
    model: Model,
    site: Site | str,
    limit: float | Sequence[float] | Tensor,
    channels: Channels = None,
    tokens: Tokens = None,
) -> Intervention:
    """Clip values to [-limit, limit]; `limit` is a number or one per chosen channel.

    Raises:
        UnknownSite: The model has no such activation.
        UnknownOption: A limit below 0, or a channel that the site does not have.
    """
    place = site_of(site)
    limits = _values(limit, "limits", place, tokens)
    bound = torch.as_tensor(limit)
    if not bool((bound >= 0).all()):
        raise UnknownOption(f"clipping at {place} needs limits from 0 up, not {_shortly(bound)}")

    def clipped(x: Tensor, _token: Tensor, at: Tensor) -> Tensor:
        by = _fitting(limits(x, at), x, place)
        return x.clamp(-by, by)

    return _edited(model, place, clipped, channels, tokens, what=f"clipping of {place}")


def zero(model: Model, site: Site | str, channels: Channels = None, tokens: Tokens = None) -> Intervention:
    """Set values to zero.

    Raises:
        UnknownSite: The model has no such activation.
        UnknownOption: A channel or token that the site does not have.
    """
    return _edited(model, site, zeros, channels, tokens, what=f"zeroing of {site}")


def zeros(x: Tensor, _token: Tensor, _place: Tensor) -> Tensor:
    """Nothing, in the place of these values."""
    return torch.zeros_like(x)


def replace(
    model: Model,
    site: Site | str,
    values: float | Sequence[float] | Tensor,
    channels: Channels = None,
    tokens: Tokens = None,
) -> Intervention:
    """Put other values; they broadcast to [chosen token, chosen channel].

    Raises:
        UnknownSite: The model has no such activation.
        UnknownOption: A channel or token that the site does not have, or values of a shape that does not fit.
    """
    place = site_of(site)
    new = _values(values, "values", place, tokens)
    return _edited(
        model, place, lambda x, _t, at: new(x, at), channels, tokens, what=f"replacement at {place}"
    )


def set_mean(
    model: Model,
    site: Site | str,
    mean: float | Sequence[float] | Tensor,
    channels: Channels = None,
    tokens: Tokens = None,
) -> Intervention:
    """Set values to their mean over a data set, one number per chosen channel; refuses what `replace` refuses."""
    return replace(model, site, mean, channels, tokens)


def scale(
    model: Model,
    site: Site | str,
    factor: float | Sequence[float] | Tensor,
    channels: Channels = None,
    tokens: Tokens = None,
) -> Intervention:
    """Multiply values; the factor broadcasts to [chosen token, chosen channel]. It refuses what `replace` refuses."""
    place = site_of(site)
    by = _values(factor, "factor", place, tokens)

    def scaled(x: Tensor, _token: Tensor, at: Tensor) -> Tensor:
        return x * _fitting(by(x, at), x, place)

    return _edited(model, place, scaled, channels, tokens, what=f"scaling of {place}")


def _edited(
    model: Model, site: Site | str, compute: Compute, channels: Channels, tokens: Tokens, *, what: str
) -> Intervention:
    anatomy, place = anatomy_of(model), site_of(site)
    check_activation(anatomy, place)
    return edit_site(anatomy, place, selected(anatomy, place, compute, channels, tokens), what=what)


def _shortly(x: Tensor) -> str:
    return str(x.item()) if x.numel() == 1 else f"{float(x.min())}"


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
        keep: False where the position is padding [sample position]; padding gives nothing. By default what the attention mask of
            the forward says.

    Raises:
        UnknownSite: The model has no such activation.
        UnknownOption: A site inside an expert, a channel or token that is not there; when it runs, a batch of one input or a `keep`
            of another shape.
    """
    anatomy, place = anatomy_of(model), site_of(site)
    if place.expert is not None:
        raise UnknownOption(f"{place} holds only the tokens routed there; resample mlp.in or mlp.out instead")
    check_activation(anatomy, place)
    donors = Donors(anatomy, seed, keep)
    columns = (
        None if channels is None else numbers(channels, width_of(anatomy, place), what="channel", where=place)
    )
    seen: list[Tensor] = []

    def given(_x: Tensor, token: Tensor, _place: Tensor) -> Tensor:
        theirs = seen[0][donors.flat.to(token.device)[token]]
        return theirs if columns is None else theirs[:, columns.to(theirs.device)]

    take = selected(anatomy, place, given, columns, tokens)

    def edit(x: Tensor, rows: Tensor | None) -> Tensor:
        donors.check(len(x), place)
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
