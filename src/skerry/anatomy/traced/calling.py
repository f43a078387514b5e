"""How to call a model that nobody declared: which arguments its forward demands beside the token ids."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from skerry.errors import BadTokens

# Names that forwards give to the few things that can be made from token ids alone.
_MAKERS = {
    "attention_mask": ("attention_mask", "mask", "attn_mask", "padding_mask"),
    "position_ids": ("position_ids", "positions", "position", "pos", "input_pos"),
    "token_type_ids": ("token_type_ids", "segment_ids", "segments"),
}
_KIND_OF = {name: kind for kind, names in _MAKERS.items() for name in names}


class Called(nn.Module):
    """A model with its forward's demands met: takes token ids and a mask, as every trunk does.

    Attributes:
        inner: The model.
        given: Argument name to what it holds (`attention_mask`, `position_ids`, `token_type_ids`).
        takes: Argument names that the forward accepts; None when it accepts any.
    """

    def __init__(self, inner: nn.Module, given: Mapping[str, str]) -> None:
        super().__init__()
        self.inner, self.given = inner, dict(given)
        parameters = inspect.signature(inner.forward).parameters
        self.takes = None if _takes_any(parameters) else set(parameters)
        self.mask_name = next(
            (name for name in parameters if _KIND_OF.get(name) == "attention_mask"), None
        ) or ("attention_mask" if self.takes is None else None)

    def forward(
        self, input_ids: Int[Tensor, "sample position"], attention_mask: Tensor | None = None, **more: Any
    ) -> Any:
        """Call the model with what it demands.

        Raises:
            BadTokens: Padding, and the model takes no mask.
        """
        kwargs = {name: _make(kind, input_ids, attention_mask) for name, kind in self.given.items()}
        if attention_mask is not None and self.mask_name is None:
            raise BadTokens(
                f"{type(self.inner).__name__}.forward takes no attention mask, so padding would be read as text; "
                "give samples of one length"
            )
        if attention_mask is not None and self.mask_name is not None:
            kwargs[self.mask_name] = attention_mask
        kwargs.update({k: v for k, v in more.items() if self.takes is None or k in self.takes})
        return self.inner(input_ids, **kwargs)


def _takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def _make(kind: str, input_ids: Tensor, mask: Tensor | None) -> Tensor:
    if kind == "attention_mask":
        return torch.ones_like(input_ids) if mask is None else mask
    if kind == "position_ids":
        return torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    return torch.zeros_like(input_ids)


def ways_to_call(model: nn.Module) -> list[nn.Module]:
    """Forms of the model to try in order: as it is, with what its forward demands, with all that can be made."""
    try:
        parameters = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return [model]
    names = list(parameters)[1:]
    known = {n: _KIND_OF[n] for n in names if n in _KIND_OF}
    demanded = {n: kind for n, kind in known.items() if parameters[n].default is inspect.Parameter.empty}
    plain: list[nn.Module] = []
    if not demanded:
        direct = _takes_any(parameters) or "attention_mask" in parameters
        plain = [model if direct else Called(model, {})]
    return [*plain, *(Called(model, given) for given in (demanded, known) if given)]


def missing_arguments(model: nn.Module) -> list[str]:
    """Arguments that the forward demands and that cannot be made from token ids."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())[1:]
    except (TypeError, ValueError):
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        p.name
        for p in parameters
        if p.default is inspect.Parameter.empty and p.kind in named and p.name not in _KIND_OF
    ]
