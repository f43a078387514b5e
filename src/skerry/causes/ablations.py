"""Takes a part of the model out while open: a residual channel, weights, heads, attention sinks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from skerry.anatomy.asked import missing, numbers, width_of
from skerry.anatomy.attention import AttentionView
from skerry.anatomy.change import Edit, change, change_entries, find_entries
from skerry.anatomy.model import Anatomy
from skerry.anatomy.sites import Site
from skerry.anatomy.watch import watch
from skerry.causes.interventions import Intervention, Model, Tokens, anatomy_of, selected, site_of, zeros
from skerry.causes.sinks import SinkPart, Sinks, sink_part
from skerry.corpus.batch import Batch
from skerry.errors import UnknownOption, UnknownSite

# Below this share of attention on other keys float32 holds no rest to give the sink's share to.
SMALLEST_REST = 1e-6
# Model -> layers and sinks of the ablations that are open: nested ones take the sinks of all of them out.
_open: dict[int, list[tuple[Sequence[int], MaskOf]]] = {}
# (layer, what o reads [sample head query channel], what the sinks do to it, which keys are sinks) to new values
MixEdit = Callable[[int, Tensor, SinkPart, Tensor], Tensor]
# layer and its attention to the keys that are sinks, bool [sample key]
MaskOf = Callable[[int, AttentionView], Tensor]


def ablate_channel(
    model: Model,
    channel: int | Sequence[int] | Tensor,
    first_layer: int = 0,
    last_layer: int | None = None,
    tokens: Tokens = None,
) -> Intervention:
    """Keep channels of the residual stream at zero from the input of one block to the output of another.

    Args:
        model: A model or its anatomy.
        channel: One or several.
        first_layer: Block from whose input on they are zero.
        last_layer: Last block whose output is zero there; the last of the model by default.
        tokens: None for all.

    Raises:
        UnknownOption: No such channel, block or token.
    """
    anatomy = anatomy_of(model)
    last = anatomy.dims.num_layers - 1 if last_layer is None else last_layer
    check_block(anatomy, first_layer)
    check_block(anatomy, last)
    if last < first_layer:
        raise UnknownOption(f"blocks {first_layer} to {last}: the first comes after the last")
    sites = [
        site
        for layer in range(first_layer, last + 1)
        for part in ("resid.in", "resid.mid", "resid.out")
        if (site := Site(layer, part)) in anatomy.taps and (part != "resid.in" or layer == first_layer)
    ]
    if not sites:
        raise missing(anatomy, Site(first_layer, "resid.in"), anatomy.taps)
    edits: Mapping[Site, Edit] = {s: selected(anatomy, s, zeros, channel, tokens) for s in sites}
    return Intervention(
        lambda: change(anatomy, edits),
        first_layer=first_layer,
        what=f"ablation of residual channels {torch.as_tensor(channel).reshape(-1).tolist()}",
    )


def check_block(anatomy: Anatomy, layer: int) -> None:
    """Refuse a block that the model does not have.

    Raises:
        UnknownOption: With the blocks that there are.
    """
    if not 0 <= layer < anatomy.dims.num_layers:
        raise UnknownOption(
            f"{type(anatomy.model).__name__} has no block {layer}; its blocks are 0 to {anatomy.dims.num_layers - 1}"
        )


def ablate_weight(
    model: Model,
    site: Site | str,
    rows: int | Sequence[int] | Tensor | None,
    columns: int | Sequence[int] | Tensor,
    factor: float = 0.0,
) -> Intervention:
    """Multiply single weights (0: take them out). `rows` is None for a norm's gain.

    Raises:
        UnknownSite: The model has no such weight.
        UnknownOption: No such row or column.
    """
    anatomy, place = anatomy_of(model), site_of(site)
    entries = find_entries(anatomy, place, rows, columns)
    in_trunk, in_head = _owners(anatomy, entries.parameter)
    last = anatomy.dims.num_layers if place.part.startswith("norm.final") or not in_trunk else 0
    return Intervention(
        lambda: change_entries(entries, lambda w: w * factor),
        first_layer=last if place.layer is None else place.layer,
        what=f"ablation of weights of {place}",
        changes_head=in_head,
    )


def _owners(anatomy: Anatomy, parameter: Tensor) -> tuple[bool, bool]:
    """Whether the model without its head has this parameter, and whether the head has it: a tied embedding is in both."""
    inside = set(map(id, anatomy.trunk.modules()))
    owners = {
        id(m) in inside
        for m in anatomy.model.modules()
        for p in m.parameters(recurse=False)
        if p is parameter
    }
    return True in owners, False in owners


def ablate_head(model: Model, layer: int, heads: int | Sequence[int] | Tensor) -> Intervention:
    """Set the output of heads to zero before the output projection reads it.

    Raises:
        UnknownSite: The block has no attention.
        UnknownOption: No such block or head.
    """
    anatomy = anatomy_of(model)
    check_block(anatomy, layer)
    site, num_heads = Site(layer, "attn.mix"), anatomy.dims.num_heads
    if site not in anatomy.taps or not num_heads:
        raise UnknownSite(f"{type(anatomy.model).__name__} has no heads in block {layer}: it has no {site}")
    chosen = numbers(heads, num_heads, what="head", where=f"block {layer}")
    # Values may be narrower than queries.
    width = (width_of(anatomy, site) or num_heads * anatomy.dims.head_dim) // num_heads
    channels = (chosen[:, None] * width + torch.arange(width)).reshape(-1)
    edit = selected(anatomy, site, zeros, channels)
    return Intervention(
        lambda: change(anatomy, {site: edit}),
        first_layer=layer,
        what=f"ablation of heads {chosen.tolist()} of block {layer}",
    )


def ablate_sink(
    model: Model,
    sinks: Sinks | Sequence[int],
    batch: Batch | None = None,
    layers: Sequence[int] | None = None,
) -> Intervention:
    """Take sinks out of attention: no query that is not a sink itself gives them anything, the rest is normalised to 1.

    A query that sees nothing but sinks gets 0. Learned sinks (gpt-oss) go with the others. Nested ablations take all their sinks out.

    Args:
        model: A model or its anatomy.
        sinks: What a trace found, or positions that are sinks in every layer.
        batch: The batch that will run; needed for sinks that are tokens, and to tell padding.
        layers: None for all layers with sinks.

    Raises:
        UnknownSite: No attention, or a layer without one whose output could be changed.
        UnknownOption: No such layer or position; sinks that are tokens without the batch; in a forward, another batch.
    """
    anatomy = anatomy_of(model)
    found = sinks if isinstance(sinks, Sinks) else _everywhere(anatomy, sinks)
    for layer in layers or ():
        check_block(anatomy, layer)
    chosen = [layer for layer in found.layers if layers is None or layer in layers]
    if batch is None and any(found.token_ids.get(layer) for layer in chosen):
        raise UnknownOption(
            "some of these sinks are tokens wherever they stand; give the batch that will run"
        )

    def mask(layer: int, view: AttentionView) -> Tensor:
        return found.mask(layer, batch) if batch is not None else _at_positions(found, layer, view)

    @contextmanager
    def opened() -> Iterator[None]:
        entry = (chosen, mask)
        together = _open.setdefault(id(anatomy.model), [])
        together.append(entry)
        try:
            with inner:
                yield
        finally:
            together.remove(entry)
            if not together:
                _open.pop(id(anatomy.model), None)

    def of_all(layer: int, view: AttentionView) -> Tensor:
        masks = [m(layer, view) for its, m in _open[id(anatomy.model)] if layer in its]
        return torch.stack(masks).any(0)

    inner = edit_mix(anatomy, chosen, of_all, lambda _layer, mix, part, _sink: without_sinks(mix, part))
    return Intervention(opened, first_layer=inner.first_layer, what="ablation of sinks")


def _everywhere(anatomy: Anatomy, positions: Sequence[int]) -> Sinks:
    if not anatomy.attention:
        raise UnknownSite(f"{type(anatomy.model).__name__} shows no attention, so it has no sinks")
    at = numbers(positions, None, what="position", where="an input").tolist()
    return Sinks({layer: frozenset(at) for layer in anatomy.attention})


def _at_positions(sinks: Sinks, layer: int, view: AttentionView) -> Bool[Tensor, "sample key"]:
    sink = torch.zeros(_shape(view), dtype=torch.bool)
    for position in sinks.positions.get(layer, ()):
        sink[:, position : position + 1] = True
    return sink


def _shape(view: AttentionView) -> tuple[int, int]:
    """Number of samples and keys."""
    shown = view.key if view.logits is None else view.logits
    assert shown is not None
    return shown.shape[0], shown.shape[-1 if view.logits is not None else -2]


def _check_mask(sink: Tensor, view: AttentionView) -> None:
    if sink.shape != _shape(view):
        raise UnknownOption(
            f"the sinks are given for a batch of [sample position] = {list(sink.shape)}; this forward has {list(_shape(view))}"
        )


def without_sinks(
    mix: Float[Tensor, "sample head query channel"], part: SinkPart
) -> Float[Tensor, "sample head query channel"]:
    """The normalised rest: what the head would give if it could not see sinks; 0 where it sees nothing else."""
    if part.rest is not None:
        return part.rest()
    rest = (1.0 - part.mass)[..., None]
    return torch.where(rest > SMALLEST_REST, (mix - part.bias) / rest.clamp_min(SMALLEST_REST), 0.0)


def edit_mix(
    anatomy: Anatomy,
    layers: Sequence[int],
    mask: MaskOf,
    edit: MixEdit,
    *,
    what: str = "change of what heads give",
) -> Intervention:
    """Change what the output projection reads, knowing what the sinks of the same forward do to it.

    Queries that are sinks themselves keep their values. It stands for what attention itself computes, so it comes before every change
    of `attn.mix` that is open already.

    Args:
        anatomy: The model with its places.
        layers: Where.
        mask: Layer and its attention to the keys that are sinks, bool [sample key].
        edit: See `MixEdit`; float32 or the model's type, if that is finer.
        what: In words.

    Raises:
        UnknownSite: A layer has no `attn.mix`, or its attention does not show itself.
        UnknownOption: In a forward: the mask is of another batch.
    """
    for layer in layers:
        if Site(layer, "attn.mix") not in anatomy.taps or layer not in anatomy.attention:
            raise UnknownSite(
                f"{type(anatomy.model).__name__} has no {layer}.attn.mix, so its heads cannot be changed"
            )

    @contextmanager
    def opened() -> Iterator[None]:
        seen: dict[int, tuple[SinkPart, Tensor]] = {}

        def look(view: AttentionView) -> None:
            if view.layer in layers:
                sink = mask(view.layer, view)
                _check_mask(sink, view)
                seen[view.layer] = sink_part(view, sink), sink

        def edit_layer(layer: int) -> Edit:
            def change_it(x: Tensor, _rows: Tensor | None) -> Tensor:
                part, sink = seen.pop(layer)
                num_heads, num_queries = part.mass.shape[1:]
                mix = (
                    x.to(torch.promote_types(x.dtype, torch.float32))
                    .reshape(-1, num_queries, num_heads, x.shape[-1] // num_heads)
                    .transpose(1, 2)
                )
                new = edit(layer, mix, part, sink)
                keeps = sink[:, None, :, None].to(x.device) if sink.shape[1] == num_queries else False
                new = torch.where(torch.as_tensor(keeps, device=x.device), mix, new)
                return new.transpose(1, 2).reshape(x.shape)

            return change_it

        edits = {Site(layer, "attn.mix"): edit_layer(layer) for layer in layers}
        with watch(anatomy, (), on_attention=look), change(anatomy, edits, first=True):
            yield

    return Intervention(opened, first_layer=min(layers, default=anatomy.dims.num_layers), what=what)
