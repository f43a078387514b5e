"""Where a per-channel change of a tensor can be undone by its neighbours: x' = (x - z) / s, with everything else computing the same.

Four kinds, x being what the readers read:

    norm        a norm before linear maps         gain / s, (bias - z) / s;  readers W * s (columns), b + W z
    value       v -> o                            rows of v / s, (b_v - z) / s;  o as a reader. Rows of attention sum to one, so a shift of
                                                  every value is a shift of every mix: exact, with grouped keys too
    up          up -> down of a gated (or ReLU) feed-forward: rows of up / s;  down as a reader; no shift, the gate multiplies it
    post-norm   a norm on the residual stream     as `norm`, and the shortcut past the next sublayer reads x' * s + z

A seam is a claim about data flow. `check_seams` tests each one with a random change before anyone uses it (Wei et al. 2023,
arXiv 2304.09145, section 4.1, gives the identities for the first and the last kind).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from skerry.anatomy.dense import Dense
from skerry.anatomy.sites import Site
from skerry.errors import UnknownOption

Kind = Literal["norm", "value", "up", "post-norm"]
CHANGES = ("scale", "shift")


@dataclass(frozen=True, eq=False)
class NormWriter:
    """A norm that writes the seam: its gain is stored as gain - plus; its bias may be absent."""

    module: nn.Module
    plus: float
    key: str = "weight"

    @property
    def has_bias(self) -> bool:
        """Whether the norm has a bias."""
        return isinstance(getattr(self.module, "bias", None), Tensor)

    def __call__(self, shift: Tensor | None, scale: Tensor | None) -> None:
        """Write (x - shift) / scale instead of x."""
        gain = getattr(self.module, self.key).detach()
        if scale is not None:
            gain.copy_((gain.double() + self.plus) / scale - self.plus)
        if self.has_bias:
            bias = self.module.bias.detach()  # type: ignore[union-attr,operator]
            new = bias.double() if shift is None else bias.double() - shift
            bias.copy_(new if scale is None else new / scale)


@dataclass(frozen=True, eq=False)
class RowsWriter:
    """Rows of a linear map that write the seam."""

    dense: Dense
    rows: Int[Tensor, "channel"]

    @property
    def has_bias(self) -> bool:
        """Whether the map has a bias."""
        return self.dense.bias is not None

    def __call__(self, shift: Tensor | None, scale: Tensor | None) -> None:
        """Write (x - shift) / scale instead of x."""
        rows = self.rows.to(self.dense.parameter.device)
        bias = self.dense.add_bias() if shift is not None else self.dense.bias
        if scale is not None:
            weight = self.dense.weight
            weight[rows] = (weight[rows].double() / scale[:, None]).to(weight.dtype)
        if bias is not None:
            new = bias[rows].double() if shift is None else bias[rows].double() - shift
            bias[rows] = (new if scale is None else new / scale).to(bias.dtype)


@dataclass(frozen=True, eq=False)
class Seam:
    """A place where a per-channel change can be undone.

    Attributes:
        name: `3.norm.attn`, `3.v-o`, `3.up-down`, of an expert `3.up-down[5]`.
        kind: See the module's text.
        layer: Block of the readers.
        site: The tensor that changes.
        writer: What writes it.
        readers: All linear maps that read it.
        spread: For every channel of the tensor the parameter of the change that it follows: grouped value heads are read by several
            query heads.
        carries: Changes that it can carry: `scale`, `shift`.
        cannot: Change to the reason why it cannot be carried.
        shortcut: post-norm only: the module whose second argument is the shortcut, and the position of that argument.
        format: Of a shift: the settings of the configuration under which a checkpoint has a place for its biases; None where the
            architecture's checkpoint has none, {} where it always has.
        becomes: Model type under which the format holds, where it is not the model's own.
    """

    name: str
    kind: Kind
    layer: int
    site: Site
    writer: NormWriter | RowsWriter
    readers: tuple[Dense, ...]
    spread: Int[Tensor, "channel"]
    carries: frozenset[str]
    cannot: Mapping[str, str] = field(default_factory=dict)
    shortcut: tuple[nn.Module, int] | None = None
    format: Mapping[str, Any] | None = field(default_factory=dict)
    becomes: str | None = None

    @property
    def width(self) -> int:
        """Channels of the tensor."""
        return len(self.spread)

    @property
    def free(self) -> int:
        """Independent channels: smaller than the width where several query heads read one value head."""
        return int(self.spread.max()) + 1

    def pool(
        self, x: Float[Tensor, "channel"], how: Literal["amax", "amin"] = "amax"
    ) -> Float[Tensor, "free"]:
        """A statistic of the channels as one of the independent channels: the largest or smallest of those that move together."""
        start = torch.full(
            (self.free,), -torch.inf if how == "amax" else torch.inf, dtype=x.dtype, device=x.device
        )
        return start.scatter_reduce(0, self.spread.to(x.device), x, reduce=how)

    @torch.no_grad()
    def apply(
        self, *, shift: Float[Tensor, "free"] | None = None, scale: Float[Tensor, "free"] | None = None
    ) -> Callable[[], None]:
        """Make the tensor (x - shift) / scale and the model compute the same; in float64, rounded once.

        Returns:
            Takes a hook on a shortcut away again (post-norm); does nothing for the others, whose weights have changed.

        Raises:
            UnknownOption: A change that the seam does not carry, or one of the wrong length.
        """
        shift, scale = (self._prepared(word, x) for word, x in (("shift", shift), ("scale", scale)))
        if shift is None and scale is None:
            return _nothing
        device = self.readers[0].parameter.device
        wide_shift, wide_scale = (
            None if x is None else x[self.spread.to(x.device)].to(device) for x in (shift, scale)
        )
        # Parameters that were made in inference mode can be written only there.
        with torch.inference_mode(self.readers[0].parameter.is_inference()), torch.no_grad():
            for dense in self.readers:
                _read(dense, wide_shift, wide_scale)
            self.writer(shift, scale)
        return _nothing if self.shortcut is None else _compensate(*self.shortcut, wide_shift, wide_scale)

    def _prepared(self, word: str, x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        if word not in self.carries:
            raise UnknownOption(
                f"seam {self.name} carries no {word}: {self.cannot.get(word, 'it is not declared')}"
            )
        if x.shape != (self.free,):
            raise UnknownOption(
                f"the {word} of seam {self.name} has shape {list(x.shape)}; it has {self.free} channels"
            )
        if word == "scale" and not bool((x > 0).all() & x.isfinite().all()):
            raise UnknownOption(f"the scale of seam {self.name} must be positive and finite in every channel")
        return x.double()

    def without(self, change: str, reason: str) -> Seam:
        """The same seam with one change less."""
        return replace(self, carries=self.carries - {change}, cannot={**self.cannot, change: reason})

    def __repr__(self) -> str:
        carried = " and ".join(sorted(self.carries)) or "nothing"
        return f"<Seam {self.name} -> {', '.join(d.name.rpartition('.')[2] for d in self.readers)}: carries {carried}>"


def _nothing() -> None:
    return


def _read(dense: Dense, shift: Tensor | None, scale: Tensor | None) -> None:
    weight = dense.weight
    if shift is not None:
        bias = dense.add_bias()
        # In float64 the products of a wide map take a while; the map is read row by row of a chunk, never copied whole.
        bias.copy_(bias.double() + _times(weight, shift))
    if scale is not None:
        for part in range(0, len(weight), 4096):
            rows = weight[part : part + 4096]
            rows.copy_(rows.double() * scale)


def _times(weight: Float[Tensor, "row column"], vector: Float[Tensor, "column"]) -> Float[Tensor, "row"]:
    parts = [weight[i : i + 4096].double() @ vector for i in range(0, len(weight), 4096)]
    return torch.cat(parts)


def _compensate(
    module: nn.Module, position: int, shift: Tensor | None, scale: Tensor | None
) -> Callable[[], None]:
    """Give a module x' * s + z in place of the shortcut x' that it adds (OS+, section 4.1: the shortcut of post-norm blocks)."""

    def before(_m: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[position]
        new = x if scale is None else x * scale.to(x)
        new = new if shift is None else new + shift.to(x)
        return (*args[:position], new, *args[position + 1 :])

    return module.register_forward_pre_hook(before).remove


class Seams(Sequence[Seam]):
    """The seams of a model, and what it lacks.

    Attributes:
        missing: Kind of seam to the reason why the model has none, or not everywhere.
    """

    def __init__(self, seams: Sequence[Seam], missing: Mapping[str, str] | None = None) -> None:
        self._seams = list(seams)
        self.missing = dict(missing or {})

    def __len__(self) -> int:
        return len(self._seams)

    def __getitem__(self, index: Any) -> Any:
        return self._seams[index]

    def __iter__(self) -> Iterator[Seam]:
        return iter(self._seams)

    def named(self, name: str) -> Seam:
        """The seam of this name.

        Raises:
            UnknownOption: There is none.
        """
        for seam in self._seams:
            if seam.name == name:
                return seam
        raise UnknownOption(
            f"there is no seam {name!r}; this model has {', '.join(s.name for s in self._seams)}"
        )

    def of(self, *kinds: str, carry: str | None = None) -> list[Seam]:
        """Seams of these kinds (all without) that carry a change."""
        return [
            s for s in self._seams if (not kinds or s.kind in kinds) and (carry is None or carry in s.carries)
        ]

    def __repr__(self) -> str:
        return f"<Seams: {len(self)}, {', '.join(sorted({s.kind for s in self}))}; .of(kind, carry=...)>"
