"""A permanent, provably equivalent change: shifts and scales on seams, proved in float64 before they are folded into the weights.

prove   the same model in float64 with and without the changes, norms included: relative error <= 1e-10, else nothing is folded
fold    into the stored weights, computed in float64 and rounded once
verify  logits before and after in the model's own dtype: <= 2e-6 relative in float32
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from skerry.anatomy.exact import run_float64
from skerry.anatomy.find_seams import changed_error
from skerry.anatomy.model import Anatomy
from skerry.anatomy.quiet import quiet
from skerry.anatomy.seams import Seam, Seams
from skerry.anatomy.watch import trial_ids
from skerry.errors import NotEquivalent

FLOAT64_BOUND = 1e-10
FLOAT32_BOUND = 2e-6
# A fold rounds every weight once: the bound in other dtypes grows with their spacing.
BOUNDS = {
    torch.float64: FLOAT64_BOUND,
    torch.float32: FLOAT32_BOUND,
    torch.float16: 2e-2,
    torch.bfloat16: 2e-1,
}


@dataclass(frozen=True, eq=False)
class SeamChange:
    """What is done on one seam: x' = (x - shift) / scale.

    Attributes:
        seam: Name of the seam.
        shift: One number per independent channel; None for no shift.
        scale: Likewise, positive.
    """

    seam: str
    shift: Float[Tensor, "free"] | None = None
    scale: Float[Tensor, "free"] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        return self.shift is None and self.scale is None


class Equivalence(NamedTuple):
    """How near the changed model is to the original.

    Attributes:
        float64: Relative error of the float64 outputs, norms in float64; None where it was not asked.
        stored: Relative error of the outputs in the stored dtype; None before folding.
        bound: What `stored` may be in this dtype.
        dtype: The stored dtype.
        num_tokens: Tokens compared.
    """

    float64: float | None
    stored: float | None
    bound: float
    dtype: str
    num_tokens: int


@dataclass(eq=False)
class Transform:
    """Changes on the seams of one model, in order; at most one per seam.

    Attributes:
        changes: The changes.
        handles: After `fold`: take the hooks of compensated shortcuts away again.
    """

    changes: list[SeamChange] = field(default_factory=list)
    handles: list[Callable[[], None]] = field(default_factory=list)

    def prove(
        self, anatomy: Anatomy, seams: Seams, *, ids: Int[Tensor, "sample position"] | None = None
    ) -> float:
        """Relative error in float64 of the model with the changes against the model as it is; the model is left as it is.

        Raises:
            NotEquivalent: The error is above 1e-10; the seam that causes it is named.
        """
        ids = trial_ids(anatomy.config, 32) if ids is None else ids
        before = run_float64(anatomy, ids)
        error = self._error(anatomy, seams, ids, before, self.changes)
        if error <= FLOAT64_BOUND:
            return error
        worst = max(self.changes, key=lambda c: self._error(anatomy, seams, ids, before, [c]))
        raise NotEquivalent(
            f"the transform changes the model: float64 outputs differ by {error:.1e} of their size (1e-10 is allowed), most by seam "
            f"{worst.seam}. Nothing was folded; leave that seam out"
        )

    def _error(
        self, anatomy: Anatomy, seams: Seams, ids: Tensor, before: Tensor, changes: Sequence[SeamChange]
    ) -> float:
        by_name = {c.seam: c for c in changes if not c.is_empty}
        chosen = [seams.named(name) for name in by_name]

        def of(seam: Seam) -> dict[str, Any]:
            return {"shift": by_name[seam.name].shift, "scale": by_name[seam.name].scale}

        return changed_error(anatomy, ids, before, chosen, of)

    def fold(self, anatomy: Anatomy, seams: Seams) -> None:
        """Write the changes into the weights, for good."""
        for change in self.changes:
            if not change.is_empty:
                self.handles.append(seams.named(change.seam).apply(shift=change.shift, scale=change.scale))

    def state(self) -> dict[str, Tensor]:
        """As tensors, `name|shift` and `name|scale`."""
        out: dict[str, Tensor] = {}
        for c in self.changes:
            if c.shift is not None:
                out[f"{c.seam}|shift"] = c.shift.double()
            if c.scale is not None:
                out[f"{c.seam}|scale"] = c.scale.double()
        return out

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Transform:
        """The transform that `state` came from."""
        names = dict.fromkeys(key.rpartition("|")[0] for key in state)
        return cls([SeamChange(n, state.get(f"{n}|shift"), state.get(f"{n}|scale")) for n in names])


@contextmanager
def folded(anatomy: Anatomy, seams: Seams, changes: Sequence[SeamChange]) -> Any:
    """The changes in the weights while open; afterwards the weights are as before, bit for bit."""
    chosen = [(seams.named(c.seam), c) for c in changes if not c.is_empty]
    modules = {id(m): m for s, _ in chosen for m in _modules_of(s)}
    saved = [
        (m, dict(m._parameters), {k: p.detach().clone() for k, p in m._parameters.items() if p is not None})
        for m in modules.values()
    ]
    undo: list[Callable[[], None]] = []
    try:
        undo.extend(seam.apply(shift=c.shift, scale=c.scale) for seam, c in chosen)
        yield
    finally:
        for take_away in undo:
            take_away()
        for module, parameters, values in saved:
            module._parameters.clear()
            module._parameters.update(parameters)
            for key, value in values.items():
                old = parameters[key]
                with torch.inference_mode(old.is_inference()), torch.no_grad():  # type: ignore[union-attr]
                    old.copy_(value)  # type: ignore[union-attr]


def _modules_of(seam: Seam) -> list[Any]:
    writer = getattr(seam.writer, "module", None) or seam.writer.dense.module  # type: ignore[union-attr]
    return [writer, *(d.module for d in seam.readers)]


@torch.no_grad()
def outputs(
    anatomy: Anatomy, ids: Int[Tensor, "sample position"]
) -> Float[Tensor, "sample position channel"]:
    """The model's logits, or its last hidden states where it has no head, in its own dtype, as float64."""
    kwargs = {"use_cache": False} if hasattr(anatomy.config, "use_cache") else {}
    with quiet(anatomy.model):
        out = anatomy.model(ids.to(next(anatomy.model.parameters()).device), **kwargs)
    found = getattr(out, "logits", None)
    found = found if found is not None else out if isinstance(out, Tensor) else out[0]
    return found.double()


def relative_error(new: Tensor, old: Tensor) -> float:
    """|new - old| / |old|, Euclidean norms over everything; infinite where it is no number."""
    error = float((new - old).norm() / old.norm().clamp_min(1e-300))
    return error if error == error else float("inf")


def verify(
    anatomy: Anatomy, before: Tensor, ids: Int[Tensor, "sample position"], *, float64: float | None = None
) -> Equivalence:
    """Compare a folded model with what it gave before.

    Args:
        anatomy: The folded model.
        before: `outputs(anatomy, ids)` of the model before.
        ids: Token ids.
        float64: Error of the proof, carried along.

    Raises:
        NotEquivalent: The error is above what one rounding of the weights can give in this dtype.
    """
    dtype = next(anatomy.model.parameters()).dtype
    bound = BOUNDS.get(dtype, FLOAT32_BOUND)
    error = relative_error(outputs(anatomy, ids), before)
    if not error <= bound:
        raise NotEquivalent(
            f"the folded model differs from the original by {error:.1e} of the outputs' size; rounding in {str(dtype).removeprefix('torch.')} "
            f"allows {bound:.0e}"
        )
    return Equivalence(float64, error, bound, str(dtype).removeprefix("torch."), ids.numel())
