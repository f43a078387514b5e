"""One forward with every module's input and output kept: which module made the tensor that another one reads.

Two modules share a tensor when the output of one and the input of the other begin at the same place in memory and are of the same size: a
view in another shape is the same tensor. Everything is kept alive until the forward ends, so that no memory is used twice.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from skerry.anatomy.model import Anatomy
from skerry.anatomy.quiet import quiet
from skerry.anatomy.watch import first_tensor, trial_ids
from skerry.errors import NotPossible

NUM_TOKENS = 12
Key = tuple[int, int]


class Call:
    """One call of a module.

    Attributes:
        module: The module.
        x: What it read, as it was then: models write into their tensors.
        y: What it wrote.
        x_key: Memory of what it read.
        y_key: Memory of what it wrote.
    """

    def __init__(self, module: nn.Module, x: Tensor, x_key: Key) -> None:
        self.module, self.x, self.x_key = module, x, x_key
        self.y = x
        self.y_key = x_key


class Trace:
    """The calls of one forward.

    Attributes:
        all: In the order in which they ended.
        made: Memory of a tensor to the calls of modules without parts that wrote it, in order.
        owners: Parameter to the module that holds it and its name there.
        tolerance: Relative error below which two tensors are the same: rounding in the model's dtype.
    """

    def __init__(self, model: nn.Module) -> None:
        self.all: list[Call] = []
        self.made: dict[Key, list[Call]] = defaultdict(list)
        self.owners: dict[int, tuple[nn.Module, str]] = {}
        for module in model.modules():
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    self.owners.setdefault(id(parameter), (module, key))
        eps = max(torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point())
        # Models compute norms in float32 whatever their dtype is.
        self.tolerance = max(16 * eps, 1e-5)

    def calls(self, module: nn.Module) -> list[Call]:
        """All calls of a module."""
        return [c for c in self.all if c.module is module]

    def one(self, module: nn.Module) -> Call:
        """The only call of a module.

        Raises:
            NotPossible: It was called never or more often.
        """
        found = self.calls(module)
        if len(found) != 1:
            raise NotPossible(
                f"the residual stream cannot be rotated: {type(module).__name__} ran {len(found)} times in one forward; once is needed"
            )
        return found[0]


@torch.no_grad()
def record(anatomy: Anatomy) -> Trace:
    """Run the whole model, head included, on a few ids, and keep what each module read and wrote.

    One input only: what has no axis of inputs (position embeddings) then has the shape of what has one.

    Raises:
        NotPossible: A module gives NaN or an infinity, so that nothing can be compared.
    """
    trace = Trace(anatomy.model)
    held: list[Any] = []
    open_calls: dict[int, list[Call]] = defaultdict(list)
    strange: list[str] = []

    def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        x = first_tensor(args, kwargs)
        x = x if x is not None else torch.empty(0)
        held.append(x)
        open_calls[id(module)].append(Call(module, x.clone(), (x.data_ptr(), x.numel())))

    def after(module: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        call = open_calls[id(module)].pop()
        y = first_tensor(out)
        if y is None:
            return
        held.append(y)
        call.y, call.y_key = y.clone(), (y.data_ptr(), y.numel())
        if y.is_floating_point() and not bool(torch.isfinite(y).all()):
            strange.append(type(module).__name__)
        trace.all.append(call)
        if not list(module.children()):
            trace.made[call.y_key].append(call)

    handles = []
    try:
        for module in anatomy.model.modules():
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after, with_kwargs=True))
        device = next(anatomy.model.parameters()).device
        kwargs = {"use_cache": False} if hasattr(anatomy.config, "use_cache") else {}
        with quiet(anatomy.model), torch.inference_mode(False), torch.no_grad():
            anatomy.model(trial_ids(anatomy.config, NUM_TOKENS).to(device), **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    if strange:
        raise NotPossible(
            f"the residual stream cannot be rotated: on a few ids {strange[0]} gives values that are no numbers"
        )
    return trace
