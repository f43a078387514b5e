"""Runs routed experts one after another so that each expert's tensors can be seen; no expert overwrites another.

transformers keeps all experts of a block in one tensor and dispatches their forward through an interface; while a watch is open
that dispatch is ours. The order of the tokens of an expert is ascending, the sum over experts is in the order of the experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMPLEMENTATION = "skerry"
# (layer, part, expert, values [row, channel], flat token of each row); what it returns, if anything, takes the values' place.
ExpertObserver = Callable[[int, str, int, Tensor, Tensor], Tensor | None]
# Experts module -> the observers of its layer (several when watches are nested); filled while a watch is open.
_observers: dict[int, list[tuple[int, ExpertObserver]]] = {}


def _linear(module: nn.Module, name: str, expert: int, x: Tensor) -> Tensor:
    weight = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias", None)
    bias = bias[expert] if bias is not None else None
    if module.is_transposed:
        y = x @ weight
        return y if bias is None else y + bias
    return F.linear(x, weight, bias)


def _gate_up(module: Any, both: Tensor) -> tuple[Tensor, Tensor]:
    if module.is_concatenated:
        gate, up = both.chunk(2, dim=-1)
        return gate, up
    return both[..., ::2], both[..., 1::2]


def _joined(module: Any, gate: Tensor, up: Tensor) -> Tensor:
    return torch.cat([gate, up], -1) if module.is_concatenated else torch.stack([gate, up], -1).flatten(-2)


def _experts_forward(
    module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    def show(part: str, expert: int, x: Tensor, rows: Tensor) -> Tensor:
        for layer, observer in _observers.get(id(module), ()):
            new = observer(layer, part, expert, x, rows)
            x = x if new is None else new
        return x

    total = torch.zeros_like(hidden_states)
    for expert in range(module.num_experts):
        rows, place = (top_k_index == expert).nonzero(as_tuple=True)
        if rows.numel() == 0:
            continue
        x = show("mlp.in", expert, hidden_states[rows], rows)
        if module.has_gate:
            both = _linear(module, "gate_up_proj", expert, x)
            gate, up = _gate_up(module, both)
            new_gate, new_up = show("mlp.gate", expert, gate, rows), show("mlp.up", expert, up, rows)
            if new_gate is not gate or new_up is not up:
                both = _joined(module, new_gate, new_up)
            mid = module._apply_gate(both)
        else:
            mid = module.act_fn(show("mlp.up", expert, _linear(module, "up_proj", expert, x), rows))
        mid = show("mlp.down.in", expert, mid, rows)
        out = show("mlp.out", expert, _linear(module, "down_proj", expert, mid), rows)
        if module.has_post_expert_norm:
            out = module.post_expert_norm(out)
        total.index_add_(0, rows, (out * top_k_weights[rows, place, None]).to(total.dtype))
    return total


@contextmanager
def observe_experts(
    model: nn.Module, places: Mapping[int, nn.Module], observer: ExpertObserver
) -> Iterator[None]:
    """Show every routed expert of the blocks in `places` (layer to experts module) to the observer while open."""
    if not places:
        yield
        return
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if IMPLEMENTATION not in ALL_EXPERTS_FUNCTIONS:
        ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _experts_forward)
    configs: dict[int, Any] = {id(m.config): m.config for m in places.values()}
    replaced = {
        i: c._experts_implementation_internal
        for i, c in configs.items()
        if c._experts_implementation_internal != IMPLEMENTATION
    }
    entries = {id(module): (layer, observer) for layer, module in places.items()}
    try:
        for i in replaced:
            configs[i]._experts_implementation_internal = IMPLEMENTATION
        for module, entry in entries.items():
            _observers.setdefault(module, []).append(entry)
        yield
    finally:
        for module, entry in entries.items():
            _observers[module].remove(entry)
            if not _observers[module]:
                del _observers[module]
        for i, implementation in replaced.items():
            configs[i]._experts_implementation_internal = implementation
