"""Opens a model to observers: while a watch is open, every forward shows its tensors, and closing it leaves no trace."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from skerry.anatomy.attention import (
    AttentionView,
    Observer,
    naive_logits,
    naive_probs,
    observe_attention,
    uses_interface,
)
from skerry.anatomy.experts import observe_experts
from skerry.anatomy.family import Tap
from skerry.anatomy.model import Anatomy, run, text_config
from skerry.anatomy.sites import Site
from skerry.anatomy.unseen import is_unseen

OnActivation = Callable[[Site, Tensor, Tensor | None], None]


def first_tensor(args: Any, kwargs: dict[str, Any] | None = None) -> Tensor | None:
    """The tensor that a module reads or writes: bare, first of a tuple, or the keyword hidden_states."""
    if isinstance(args, Tensor):
        return args
    if isinstance(args, (tuple, list)) and args and isinstance(args[0], Tensor):
        return args[0]
    return kwargs.get("hidden_states") if kwargs else None


def rows_of(x: Tensor) -> Tensor:
    """[sample, position, channel] or [token, channel] as [row, channel], channels next to each other in memory."""
    x = x.detach()
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


@contextmanager
def watch(
    anatomy: Anatomy,
    parts: Iterable[str] | None = None,
    *,
    on_activation: OnActivation | None = None,
    on_attention: Observer | None = None,
) -> Iterator[None]:
    """Show the tensors of every forward to the observers while open.

    Args:
        anatomy: The model with its places.
        parts: Parts to show; all by default. A site that is the same tensor as an earlier one is shown once, under the earlier name.
        on_activation: Called with the site, its values [row, channel] and the flat token of each row (None: row r is token r).
        on_attention: Called with each layer's attention.
    """
    wanted = None if parts is None else set(parts)
    with ExitStack() as stack:
        if on_activation is not None:
            chosen = _chosen(anatomy, wanted)
            for module, side, sites in _by_module(anatomy, chosen):
                stack.enter_context(_hook(anatomy, module, side, sites, on_activation))
            stack.enter_context(_watch_experts(anatomy, wanted, on_activation))
        if on_attention is not None and anatomy.attention:
            stack.enter_context(_watch_attention(anatomy, on_attention))
        yield


def _chosen(anatomy: Anatomy, wanted: set[str] | None) -> list[Site]:
    """Sites to hook: when a wanted site is the same tensor as another, that other is hooked in its place."""
    sites = [s for s in anatomy.taps if wanted is None or s.part in wanted]
    return sorted({anatomy.same_as.get(s, s) for s in sites})


def _by_module(
    anatomy: Anatomy, sites: Iterable[Site]
) -> list[tuple[nn.Module, str, list[tuple[Site, Tap]]]]:
    grouped: dict[tuple[int, str], list[tuple[Site, Tap]]] = defaultdict(list)
    modules: dict[int, nn.Module] = {}
    for site in sites:
        bound = anatomy.taps[site]
        modules[id(bound.module)] = bound.module
        grouped[id(bound.module), bound.tap.side].append((site, bound.tap))
    return [(modules[i], side, found) for (i, side), found in grouped.items()]


@contextmanager
def _hook(
    anatomy: Anatomy, module: nn.Module, side: str, sites: list[tuple[Site, Tap]], show: OnActivation
) -> Iterator[None]:
    if side == "input":
        handle = module.register_forward_pre_hook(
            lambda _m, args, kwargs: _deliver(anatomy, sites, show, first_tensor(args, kwargs)),
            with_kwargs=True,
        )
    else:
        handle = module.register_forward_hook(
            lambda _m, _a, out: _deliver(anatomy, sites, show, first_tensor(out))
        )
    try:
        yield
    finally:
        handle.remove()


def _deliver(anatomy: Anatomy, sites: list[tuple[Site, Tap]], show: OnActivation, x: Tensor | None) -> None:
    if x is None or is_unseen():
        return
    for site, tap in sites:
        piece = x if tap.split is None else tap.split(x, anatomy.dims)
        show(site, rows_of(piece), None)


@contextmanager
def _watch_experts(anatomy: Anatomy, wanted: set[str] | None, show: OnActivation) -> Iterator[None]:
    def deliver(layer: int, part: str, expert: int, x: Tensor, rows: Int[Tensor, "row"]) -> None:
        # What an expert reads are rows of the block's own mlp.in: no site of its own.
        if part != "mlp.in" and (wanted is None or part in wanted):
            show(Site(layer, part, expert), rows_of(x), rows)

    needed = wanted is None or wanted & {"mlp.gate", "mlp.up", "mlp.down.in", "mlp.out"}
    with observe_experts(anatomy.model, anatomy.experts if needed else {}, deliver):
        yield


@contextmanager
def _watch_attention(anatomy: Anatomy, show: Observer) -> Iterator[None]:
    """Adds the values, from attn.v, where the architecture shows only logits; takes back an expansion of grouped keys."""
    values: dict[int, Tensor] = {}
    dims = anatomy.dims

    def keep(layer: int, tap: Tap) -> Callable[..., None]:
        def hook(_m: nn.Module, _a: Any, out: Any) -> None:
            x = first_tensor(out)
            if x is not None and x.dim() == 3:
                piece = (x if tap.split is None else tap.split(x, dims)).detach()
                values[layer] = piece.unflatten(-1, (-1, dims.head_dim)).transpose(1, 2)

        return hook

    def deliver(view: AttentionView) -> None:
        value = values.pop(view.layer, None)
        if view.value is None:
            show(view if value is None else replace(view, value=value))
        else:
            show(replace(view, key=grouped(view.key), value=grouped(view.value)))

    def grouped(x: Tensor | None) -> Tensor | None:
        expanded = x is not None and x.shape[1] == dims.num_heads > dims.num_kv_heads > 0
        return x[:, :: dims.num_heads // dims.num_kv_heads] if expanded and x is not None else x

    with ExitStack() as stack:
        if not uses_interface(anatomy.model):
            for layer in anatomy.attention:
                bound = anatomy.taps.get(Site(layer, "attn.v"))
                if bound is not None:
                    handle = bound.module.register_forward_hook(keep(layer, bound.tap))
                    stack.callback(handle.remove)
        stack.enter_context(
            observe_attention(anatomy.model, anatomy.attention, deliver, num_heads=dims.num_heads)
        )
        try:
            yield
        finally:
            values.clear()


def capture(
    anatomy: Anatomy,
    input_ids: Int[Tensor, "sample position"],
    parts: Iterable[str] | None = None,
    keep: Tensor | None = None,
) -> dict[Site, Tensor]:
    """Whole activations of one small batch, copied: [row, channel] per site, attention as [sample, head, query, key].

    For looking and for tests; a scan never keeps a tensor. Expert sites hold only the tokens routed to them.
    """
    found: dict[Site, Tensor] = {}
    wanted = None if parts is None else set(parts)

    def attention(view: AttentionView) -> None:
        found[Site(view.layer, "attn.logits")] = naive_logits(view).clone()
        found[Site(view.layer, "attn.probs")] = naive_probs(view)

    wants_attention = wanted is None or wanted & {"attn.logits", "attn.probs"}
    with watch(
        anatomy,
        wanted,
        on_activation=lambda site, x, _rows: found.__setitem__(site, x.clone()),
        on_attention=attention if wants_attention else None,
    ):
        run(anatomy, input_ids, keep)
    for site, other in anatomy.same_as.items():
        if other in found and (wanted is None or site.part in wanted):
            found[site] = found[other]
    return {s: x for s, x in sorted(found.items()) if wanted is None or s.part in wanted}


def probe(anatomy: Anatomy, *, num_tokens: int = 8) -> None:
    """Run a few tokens to see which places fire and which are the very same tensor; fills `same_as` and `unplaced`.

    Tensors are kept alive during the probe, so that equal addresses mean equal tensors and not reused memory.
    """
    seen: dict[tuple[Any, ...], Site] = {}
    alive: list[Tensor] = []
    fired: set[Site] = set()
    same: dict[Site, Site] = {}

    def look(site: Site, x: Tensor, rows: Tensor | None) -> None:
        fired.add(site)
        if rows is not None:
            return
        alive.append(x)
        # The version tells a tensor from what an in-place operation made of it later.
        version = None if x.is_inference() else x._version
        key = (x.data_ptr(), tuple(x.shape), tuple(x.stride()), version)
        first = seen.setdefault(key, site)
        if first != site:
            same[site] = first

    # Tensors of inference mode have no version.
    with torch.inference_mode(False), watch(anatomy, on_activation=look):
        run(anatomy, trial_ids(anatomy.config, num_tokens))
    silent = [s for s in anatomy.taps if s not in fired]
    for site in silent:
        del anatomy.taps[site]
    anatomy.same_as = same
    if silent:
        anatomy.unplaced = (
            *anatomy.unplaced,
            *(f"{site} did not fire in a trial forward" for site in silent),
        )


def trial_ids(config: Any, num_tokens: int) -> Int[Tensor, "sample position"]:
    """Some ids of the vocabulary without the padding's, which models skip or warn of."""
    text = text_config(config)
    vocab = int(getattr(text, "vocab_size", 0) or 100)
    ids = [i for i in range(min(vocab, num_tokens + 1)) if i != getattr(text, "pad_token_id", None)]
    return torch.tensor([ids[i % len(ids)] for i in range(num_tokens)]).reshape(1, -1)
