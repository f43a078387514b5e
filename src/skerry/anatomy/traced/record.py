"""Records one small forward as a graph: which tensor was made from which, in which module, with which parameter.

Two modes look at once. Below the dispatcher every primitive operation is seen, whatever code called it, and becomes a node; at the
level of torch functions the calls are seen that `attention.py` can watch later. Hooks add where modules begin and end. No activation
is kept: a tensor is known by a weak reference while it lives, and an operation in place makes a new node for the same tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from skerry.anatomy.watch import first_tensor

# Integer tensors up to this size are kept, so that an indexing operation can be replayed on column numbers.
SMALL = 1 << 16


class Ref(int):
    """Stands for a tensor among the recorded arguments of an operation: the number of its node."""


@dataclass(slots=True)
class Node:
    """One tensor at one moment.

    Attributes:
        op: Name of the operation without its trailing underscore; `source` for what was there before.
        parents: Nodes that it was made from.
        shape: Its shape.
        dtype: Its type.
        frame: Number of the innermost module call.
        replay: Function, arguments and keywords with a Ref for each tensor, and which of several results this is.
        param: Name of the parameter, for a source.
        value: A small integer tensor's value.
    """

    op: str
    parents: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    frame: int
    replay: tuple[Callable[..., Any], Any, Any, int] | None = None
    param: str | None = None
    value: Tensor | None = None


@dataclass(slots=True)
class Call:
    """One run of one module.

    Attributes:
        index: Number of the call.
        module: The module.
        path: Its name from the traced module.
        parent: Number of the call around it; -1 at the top.
        start: Nodes that existed when it began.
        end: Nodes that existed when it ended.
        inp: Node of the tensor that a hook on its input sees.
        out: Node of the tensor that a hook on its output sees.
        inside: Nodes of every float tensor that went in, nested ones included.
        outside: Nodes of every float tensor that came out, nested ones included.
        plus: What must be added to its weight to give the gain of a norm; None when it is no norm.
    """

    index: int
    module: nn.Module
    path: str
    parent: int
    start: int
    end: int = -1
    inp: int | None = None
    out: int | None = None
    inside: tuple[int, ...] = ()
    outside: tuple[int, ...] = ()
    plus: float | None = None


@dataclass(slots=True)
class Attention:
    """One softmax over scores, or one fused attention.

    Attributes:
        frame: Innermost module call.
        query: Node of the queries (fused attention only), and so on.
        key: Node of the keys.
        value: Node of the values.
        logits: Node of the scores, where the model computes them itself.
        out: Node of the probabilities (own softmax) or of the mixed values (fused).
        visible: Whether `attention.py` sees this call.
    """

    frame: int
    query: int | None
    key: int | None
    value: int | None
    logits: int | None
    out: int
    visible: bool


@dataclass
class Trace:
    """What ran: nodes in the order of time, calls of modules, attention."""

    nodes: list[Node] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    attention: list[Attention] = field(default_factory=list)


def tensors_of(x: Any) -> list[Tensor]:
    """Every tensor in nested lists, tuples, dictionaries and model outputs."""
    if isinstance(x, Tensor):
        return [x]
    if isinstance(x, dict):
        x = list(x.values())
    return [t for item in x for t in tensors_of(item)] if isinstance(x, (list, tuple)) else []


class _Recorder(TorchDispatchMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.trace = Trace()
        self.known = WeakTensorKeyDictionary()
        self.params = {id(p): name for name, p in model.named_parameters(remove_duplicate=False)}
        self.stack: list[int] = []
        self.fused = 0  # inside scaled_dot_product_attention: its own softmax is no second attention
        self.quiet = False  # while our own arithmetic runs
        self.shown: Tensor | None = None  # logits of the torch-level softmax that is running

    def node(self, t: Tensor) -> int:
        """The node of a tensor; one that nobody made is a source."""
        if (found := self.known.get(t)) is not None:
            return int(found)
        node = Node("source", (), tuple(t.shape), t.dtype, self._frame(), param=self.params.get(id(t)))
        return self._add(t, node)

    def _frame(self) -> int:
        return self.stack[-1] if self.stack else -1

    def _add(self, t: Tensor, node: Node) -> int:
        if not t.is_floating_point() and t.numel() <= SMALL and t.layout == torch.strided:
            node.value = t.detach()
        self.trace.nodes.append(node)
        self.known[t] = len(self.trace.nodes) - 1
        return len(self.trace.nodes) - 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.quiet:
            return func(*args, **kwargs)
        given = tensors_of((args, kwargs))
        parents = tuple(dict.fromkeys(self.node(t) for t in given))
        replay = (func, self._refs(args), self._refs(kwargs))
        result = func(*args, **kwargs)
        schema = getattr(func, "_schema", None)
        name = (schema.name.split("::")[-1] if schema is not None else str(func)).rstrip("_")
        written = {id(t) for t in given} if schema is not None and schema.is_mutable else set()
        for place, t in enumerate(tensors_of(result)):
            if id(t) in written:
                self._write(t, name, parents)
            elif self.known.get(t) is None:
                self._add(t, Node(name, parents, tuple(t.shape), t.dtype, self._frame(), (*replay, place)))
        if name in ("_softmax", "_safe_softmax", "softmax") and not self.fused:
            self._softmax(args[0], result)
        if name.startswith("_scaled_dot_product") and not self.fused:
            q, k, v = (self.node(t) for t in args[:3])
            out = self.node(tensors_of(result)[0])
            self.trace.attention.append(Attention(self._frame(), q, k, v, None, out, False))
        return result

    def _write(self, t: Tensor, name: str, parents: tuple[int, ...]) -> None:
        """An operation in place: `t` and every living tensor on the same memory get a new node."""
        before = self.known.get(t)
        name_of = self.params.get(
            id(t)
        )  # a model that rescales its own weights (RWKV) still has the same weights
        writer = self._add(t, Node(name, parents, tuple(t.shape), t.dtype, self._frame(), param=name_of))
        storage = _storage(t)
        if storage is None:
            return
        for other in list(self.known.keys()):
            if other is not t and _storage(other) == storage and self.params.get(id(other)) is None:
                was = self.known[other]
                if was < writer and was != before:
                    self._add(
                        other, Node("write", (was, writer), tuple(other.shape), other.dtype, self._frame())
                    )

    def _refs(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return Ref(self.node(x))
        if isinstance(x, (list, tuple)):
            return type(x)([self._refs(item) for item in x]) if type(x) in (list, tuple) else x
        return {k: self._refs(v) for k, v in x.items()} if type(x) is dict else x

    def _softmax(self, logits: Tensor, probs: Tensor) -> None:
        if logits.dim() >= 3 and logits.is_floating_point():
            here, shown = self.node(logits), self.shown
            visible = shown is not None and shown.shape == logits.shape
            self.trace.attention.append(
                Attention(self._frame(), None, None, None, here, self.node(probs), visible)
            )


def _storage(t: Tensor) -> int | None:
    try:
        return t.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse and wrapper tensors have no memory of their own
        return None


class _Functions(TorchFunctionMode):
    """Sees what `attention.py` would see: fused attention and softmax as torch functions."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, recorder = kwargs or {}, self.recorder
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            recorder.fused += 1
            try:
                out = func(*args, **kwargs)
            finally:
                recorder.fused -= 1
            given = [*args, *(kwargs[n] for n in ("query", "key", "value") if n in kwargs)]
            q, k, v = (recorder.node(t) for t in given[:3])
            seen = Attention(recorder._frame(), q, k, v, None, recorder.node(out), True)
            recorder.trace.attention.append(seen)
            return out
        if name in ("softmax", "_softmax"):
            recorder.shown = args[0] if args else kwargs.get("input")
            try:
                return func(*args, **kwargs)
            finally:
                recorder.shown = None
        return func(*args, **kwargs)


@contextmanager
def _boundaries(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    names = {id(m): name for name, m in model.named_modules()}
    calls = recorder.trace.calls

    def nodes(x: Any) -> tuple[int, ...]:
        return tuple(recorder.node(t) for t in tensors_of(x) if t.is_floating_point())

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        call = Call(len(calls), module, names[id(module)], recorder._frame(), len(recorder.trace.nodes))
        seen = first_tensor(args, kwargs)
        call.inp = None if seen is None else recorder.node(seen)
        call.inside = nodes((args, kwargs))
        calls.append(call)
        recorder.stack.append(call.index)

    def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        call = calls[recorder.stack.pop()]
        seen, before = first_tensor(out), first_tensor(args, kwargs)
        call.out = None if seen is None else recorder.node(seen)
        call.outside = nodes(out)
        call.end = len(recorder.trace.nodes)
        made = [n for n in call.outside if n >= call.start]
        for n in made:  # a kernel that the dispatcher does not see: what came out was made from what went in
            if (node := recorder.trace.nodes[n]).op == "source" and node.param is None:
                node.op, node.parents = "opaque", call.inside
        if before is not None and seen is not None:
            recorder.quiet = True
            call.plus = _gain_offset(module, before, seen)
            recorder.quiet = False

    handles: list[Any] = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _gain_offset(module: nn.Module, x: Tensor, y: Tensor) -> float | None:
    """What a norm adds to its weight to get its gain (0 or 1), measured from one input and output; None for other modules.

    A norm divides each row by one number (after taking the mean off, or not), so y / that is its gain up to a factor near 1.
    A norm without parameters has gain 1.
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, Tensor):
        if next(module.parameters(), None) is not None or next(module.children(), None) is not None:
            return None
        weight = x.new_ones(x.shape[-1:])
    axes = weight.dim()
    if axes not in (1, 2) or x.shape != y.shape or x.shape[-axes:] != weight.shape:
        return None
    if not (x.is_floating_point() and y.is_floating_point() and weight.is_floating_point()):
        return None
    w, x, y = weight.detach().float(), x.detach().float(), y.detach().float()
    y = y - bias.detach().float() if isinstance(bias, Tensor) and bias.shape == w.shape else y
    best: tuple[float, float] | None = None
    for centred in (x, x - x.mean(-1, keepdim=True)):
        unit = centred / centred.pow(2).mean(-1, keepdim=True).clamp_min(1e-30).sqrt()
        for plus in (0.0, 1.0):
            told = unit * (w + plus)
            factor = (told * y).sum(-1) / (told * told).sum(-1).clamp_min(1e-30)
            error = float((y - factor[..., None] * told).norm() / y.norm().clamp_min(1e-30))
            # With a constant weight both offsets fit; the factor, which is at most 1 and near it, decides.
            score = error + 0.1 * float((factor - 1).abs().mean())
            if error < 0.05 and (best is None or score < best[0]):
                best = (score, plus)
    return None if best is None else best[1]


def record(model: nn.Module, forward: Callable[[], Any]) -> Trace:
    """Run `forward` once and write down what happens inside `model`."""
    recorder = _Recorder(model)
    with torch.no_grad(), _boundaries(model, recorder), _Functions(recorder), recorder:
        forward()
    return recorder.trace
