"""A forward in float64, norms included, with one block's weights in float64 at a time.

Models cast to float32 inside: norms, rotary tables, router softmax. A model that was turned to float64 therefore still has errors of 1e-7.
`exact()` gives float64 wherever a model asks for fewer bits, so that two forms of one function agree to 1e-12 and not to 1e-7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float64, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skerry.anatomy.blocks import blocks_of, instead
from skerry.anatomy.experts import observe_experts
from skerry.anatomy.model import Anatomy, run
from skerry.anatomy.pages import give_back, letting_go
from skerry.anatomy.quiet import quiet

_FEWER = (torch.float32, torch.float16, torch.bfloat16)
# Numbers of a tensor below which fresh memory costs nothing.
_SMALL = 1 << 16
_CASTS = {"float": Tensor.double, "half": Tensor.double, "bfloat16": Tensor.double}


class _Float64(TorchFunctionMode):
    """Where fewer bits are asked for, float64 is given."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if kwargs.get("dtype") in _FEWER:
            kwargs = {**kwargs, "dtype": torch.float64}
        if name in ("to", "type"):
            args = tuple(torch.float64 if _is_fewer(a) else a for a in args)
        elif name in _CASTS and len(args) == 1 and func is not torch.finfo:
            func = _CASTS[name]
        return func(*args, **kwargs)


def _is_fewer(value: Any) -> bool:
    return isinstance(value, torch.dtype) and value in _FEWER


@contextmanager
def exact() -> Iterator[None]:
    """While open, a forward over float64 tensors stays in float64."""
    with _Float64():
        yield


# What a run does to the weights of a block (None: everything outside the blocks) once they are float64 and before they are used.
Change = Callable[[int | None], None]


@torch.no_grad()
def run_float64(
    anatomy: Anatomy,
    input_ids: Int[Tensor, "sample position"],
    keep: Tensor | None = None,
    *,
    change: Change | None = None,
    whole: bool = False,
    logits: bool = False,
) -> Float64[Tensor, "sample position channel"]:
    """The model's output in float64; the model is afterwards as before.

    Args:
        anatomy: The model with its places.
        input_ids: Token ids.
        keep: False at padding.
        change: Called with each block's number when the block's weights are in float64, and with None for everything else when `whole`;
            what it does to them lasts for this run.
        whole: All weights are in float64 from the start, for changes across blocks. Otherwise one block's at a time.
        logits: Run the head too, where the model has one.

    Returns:
        The last hidden states, or the logits.
    """
    blocks = blocks_of(anatomy)
    # Parameters that were made in inference mode can be given other values only there.
    made_there = any(p.is_inference() for p in anatomy.model.parameters())
    with quiet(anatomy.model), letting_go(anatomy.model), ExitStack() as stack:
        stack.callback(give_back)
        stack.enter_context(torch.inference_mode(made_there))
        stack.enter_context(torch.no_grad())  # leaving inference mode alone would turn gradients on
        if whole or not blocks:
            stack.enter_context(_doubled(list(anatomy.model.modules())))
            if change is not None:
                for layer in (None, *range(anatomy.dims.num_layers)):
                    change(layer)
        else:
            inside = {id(m) for block in blocks for m in block.modules()}
            room = _Room()
            for layer, block in enumerate(blocks):
                stack.enter_context(_while_running(block, layer, change, room))
            for module in anatomy.model.modules():
                if id(module) not in inside and (module._parameters or module._buffers):
                    stack.enter_context(_leaf(module))
        # transformers' grouped product of experts has no float64; our dispatch runs them one by one.
        stack.enter_context(observe_experts(anatomy.model, anatomy.experts, lambda *_: None))
        stack.enter_context(exact())
        if logits and anatomy.model is not anatomy.trunk:
            return _logits(anatomy, input_ids, keep)
        out = run(anatomy, input_ids, keep)
    return out if isinstance(out, Tensor) else cast(Any, out)[0]


def _logits(anatomy: Anatomy, input_ids: Tensor, keep: Tensor | None) -> Tensor:
    kwargs: dict[str, Any] = {} if keep is None or bool(keep.all()) else {"attention_mask": keep.long()}
    if hasattr(anatomy.config, "use_cache"):
        kwargs["use_cache"] = False
    out = anatomy.model(input_ids, **kwargs)
    return out.logits if hasattr(out, "logits") else out[0]


class _Room:
    """Memory of one block's large weights in float64, used again by the next: fresh memory costs as much time as the numbers in it."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, torch.device], list[Tensor]] = {}

    def double(self, x: Tensor) -> Tensor:
        """The values of x in float64."""
        if x.numel() < _SMALL or not x.is_contiguous():
            return x.double()
        free = self._free.get((x.numel(), x.device))
        flat = free.pop() if free else torch.empty(x.numel(), dtype=torch.float64, device=x.device)
        return flat.view(x.shape).copy_(x)

    def take_back(self, x: Tensor) -> None:
        """Tensors that `double` gave may be written over from now on."""
        if x.numel() >= _SMALL and x.is_contiguous():
            self._free.setdefault((x.numel(), x.device), []).append(x.view(-1))


@contextmanager
def _doubled(parts: Sequence[nn.Module], room: _Room | None = None) -> Iterator[None]:
    """These modules' own parameters and buffers in float64 while open; parameters that are added meanwhile go again."""
    tensors = [t for p in parts for t in (*p._parameters.values(), *p._buffers.values()) if t is not None]
    old = [(t, t.data) for t in {id(t): t for t in tensors if t.dtype in _FEWER}.values()]
    held = [(p, dict(p._parameters)) for p in parts]
    try:
        for t, data in old:
            t.data = data.double() if room is None else room.double(data)
        yield
    finally:
        for part, parameters in held:
            if any(part._parameters.get(k) is not v for k, v in parameters.items()) or len(
                part._parameters
            ) != len(parameters):
                part._parameters.clear()
                part._parameters.update(parameters)
        for t, data in old:
            if room is not None and t.dtype == torch.float64:
                room.take_back(t.data)
            t.data = data


def _while_running(
    block: nn.Module, layer: int, change: Change | None, room: _Room
) -> AbstractContextManager[None]:
    before = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with _doubled(list(block.modules()), room):
            if change is not None:
                with torch._C.DisableTorchFunction():
                    change(layer)
            return before(*args, **kwargs)

    return instead(block, forward)


def _leaf(module: nn.Module) -> AbstractContextManager[None]:
    """A module outside the blocks: in float64 while it runs. A table is looked up first and turned then."""
    before = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        # A subclass may scale what it looked up, so only the plain table is left as it is.
        if type(module) is nn.Embedding:
            return before(*args, **kwargs).double()
        with _doubled([module]):
            return before(*args, **kwargs)

    return instead(module, forward)
