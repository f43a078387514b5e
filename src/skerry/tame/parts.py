"""What a rotation does to each stored parameter: `fold` takes gains, biases and means into it once, `turn` multiplies it by Q and R.

`fold` is done in float64 and is not linear in Q; `turn` is linear in Q and in R and can be differentiated. Both see the parameter as
`view` shows it: linear maps as [... out in], whatever way they are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from skerry.anatomy.dense import Dense
from skerry.anatomy.model import Anatomy
from skerry.errors import NotPossible
from skerry.tame.heads import Heads, turn_heads
from skerry.tame.residual import Norm, Stream, Table, one_per_parameter

Fold = Callable[[Tensor], Tensor]
Turn = Callable[[Tensor, Tensor | None, Mapping[int, Tensor]], Tensor]
# (b / g) of a norm's bias that stays in the norm: above this multiple of a normalized channel's size it would hide the others in rounding.
LARGEST_BIAS = 100.0


@dataclass(frozen=True)
class Part:
    """One parameter that a rotation changes.

    Attributes:
        name: Path in the model.
        parameter: The parameter.
        fold: Values in float64 to values with gains, biases and means folded in.
        turn: Folded values, Q and the layers' R to the new values.
        by_rows: Rows are changed one by one.
        transposed: Stored [in, out].
    """

    name: str
    parameter: Tensor
    fold: Fold
    turn: Turn
    by_rows: bool = False
    transposed: bool = False

    def view(self, x: Tensor) -> Tensor:
        """The parameter, or a tensor like it, as [... out in]."""
        return x.transpose(-1, -2) if self.transposed else x


class StreamParts(NamedTuple):
    """All parameters that a rotation of the stream changes.

    Attributes:
        parts: In an order in which they can be changed one after the other.
        new_biases: Maps that get a bias, or would get one.
    """

    parts: list[Part]
    new_biases: tuple[str, ...]


def parts_of_heads(anatomy: Anatomy, heads: Mapping[int, Heads]) -> list[Part]:
    """All parameters that a rotation of value heads changes."""
    return _Builder(anatomy, None, heads).build()


def parts_of_stream(
    anatomy: Anatomy, stream: Stream, heads: Mapping[int, Heads] | None = None, *, add: bool = False
) -> StreamParts:
    """All parameters that a rotation of the stream, and of these heads, changes.

    Args:
        anatomy: The model with its places.
        stream: What touches the stream.
        heads: Layer to its value heads.
        add: Make the new biases; a look at the plan leaves the model as it is.

    Raises:
        NotPossible: A norm that cannot be folded.
    """
    builder = _Builder(anatomy, stream, heads or {}, add)
    parts = builder.build()
    return StreamParts(parts, tuple(builder.new_biases))


class _Builder:
    def __init__(
        self, anatomy: Anatomy, stream: Stream | None, heads: Mapping[int, Heads], add: bool = False
    ) -> None:
        self.anatomy, self.stream, self.heads, self.add = anatomy, stream, heads, add
        self.names = {id(p): name for name, p in anatomy.model.named_parameters()}
        self.new_biases: list[str] = []
        self.centre = stream is not None and stream.can_centre
        self.vectors: list[Part] = []
        self.weights: list[Part] = []
        self.values = {id(h.values.parameter): h for h in heads.values()}
        self.outputs = {id(h.output.parameter): h for h in heads.values()}

    def build(self) -> list[Part]:
        stream = self.stream
        maps: list[Dense] = [d for h in self.heads.values() for d in (h.values, h.output)]
        readers: dict[int, Norm | None] = {}
        writers: set[int] = set()
        if stream is not None:
            maps += [*stream.writers, *stream.bare, *(d for n in stream.norms for d in n.readers)]
            readers = {id(d.parameter): n for n in stream.norms for d in n.readers}
            readers |= {id(d.parameter): None for d in stream.bare}
            writers = {id(d.parameter) for d in stream.writers}
            shifts = {id(norm): self._norm(norm) for norm in stream.norms}
            self._tables(stream)
            for added in stream.commuting:
                if added.bias is not None:
                    self._vector(added.bias, self._centred if self.centre else _same, _turn_row)
        for dense in one_per_parameter(maps):
            key = id(dense.parameter)
            norm = readers.get(key)
            shift = None if norm is None else shifts[id(norm)]
            self._map(dense, norm, shift, reads=key in readers, writes=key in writers)
        return self.vectors + self.weights

    def _centred(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True)

    def _vector(self, parameter: Tensor, fold: Fold, turn: Turn) -> None:
        self.vectors.append(Part(self.names[id(parameter)], parameter, fold, turn))

    def _norm(self, norm: Norm) -> Tensor | None:
        """Fold a norm's gain and bias; the bias that its readers take, in float64."""
        gain, bias = norm.gain, norm.bias
        shift = None
        if bias is not None and bool((bias != 0).any()):
            b = bias.detach().double()
            g = torch.ones_like(b) if gain is None else gain.detach().double() + norm.plus
            if self._goes_to_readers(norm, b, g):
                shift = b.clone()
                self._vector(bias, torch.zeros_like, _same_turn)
            else:
                self._vector(bias, lambda x: torch.where(x == 0, x, x / g), _turn_row)
        if gain is not None:
            self._vector(gain, lambda x: torch.full_like(x, 1 - norm.plus), _same_turn)
        return shift

    def _goes_to_readers(self, norm: Norm, b: Tensor, g: Tensor) -> bool:
        have = [_bias(d) is not None for d in norm.readers]
        if all(have):
            return True
        ratio = torch.where(b == 0, b, b / g).abs().max()
        if ratio <= LARGEST_BIAS:
            return False
        if all(h or d.can_take_bias for h, d in zip(have, norm.readers, strict=True)):
            lacking = [d for h, d in zip(have, norm.readers, strict=True) if not h]
            self.new_biases += [d.name for d in lacking]
            for dense in lacking if self.add else ():
                dense.add_bias()
                self.names[id(_bias(dense))] = f"{dense.name}.bias"
            return True
        if bool(ratio.isfinite()):
            return False
        raise NotPossible(
            f"{self.anatomy.family}: the residual stream cannot be rotated: {norm.name} has a bias where its gain is 0, and "
            f"{next(d.name for d in norm.readers if _bias(d) is None)} can take no bias"
        )

    def _tables(self, stream: Stream) -> None:
        norm = stream.embed_norm
        fold: Fold = self._centred if self.centre else _same
        if norm is not None:
            if norm.kind == "layer" and not self.centre:
                raise NotPossible(
                    f"{self.anatomy.family}: the residual stream cannot be rotated: {norm.name} on the embedding cannot be folded, since "
                    "not all that reads the stream does so through a LayerNorm"
                )
            fold = self._embed_norm(norm, stream.tables[0])
        for table in stream.tables:
            name = f"{table.name}.{table.key}"
            self.weights.append(Part(name, table.parameter, fold, _turn_row, by_rows=True))

    def _embed_norm(self, norm: Norm, table: Table) -> Fold:
        """Folds r = norm(E[t]) into the table as a r, a^2 = eps / (c^2 - mean(r^2)), and makes all gains c (see rotation.py)."""
        gain, eps = norm.gain, norm.eps
        assert gain is not None and eps is not None
        g = gain.detach().double() + norm.plus
        b = None if norm.bias is None else norm.bias.detach().double().clone()

        def normed(x: Tensor) -> Tensor:
            x = x if norm.kind == "rms" else self._centred(x)
            r = g * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
            r = r if b is None else r + b
            return r if norm.kind == "rms" else self._centred(r)

        rows = table.parameter.detach().split(8192)
        largest = max(float(normed(part.double()).square().mean(-1).max()) for part in rows)
        # The stored gain is rounded, so the factor of each row is found with what it rounds to.
        stored = torch.tensor((2 * largest) ** 0.5 - norm.plus).to(gain.dtype)
        c = float(stored) + norm.plus

        def fold(x: Tensor) -> Tensor:
            r = normed(x)
            return r * (eps / (c**2 - r.square().mean(-1, keepdim=True))).sqrt()

        self._vector(gain, lambda x: torch.full_like(x, float(stored)), _same_turn)
        if norm.bias is not None:
            self._vector(norm.bias, torch.zeros_like, _same_turn)
        return fold

    def _map(
        self, dense: Dense, norm: Norm | None, shift: Tensor | None, *, reads: bool, writes: bool
    ) -> None:
        values, output = self.values.get(id(dense.parameter)), self.outputs.get(id(dense.parameter))
        gain = None if norm is None or norm.gain is None else norm.gain.detach().double() + norm.plus
        centre = writes and self.centre

        def fold(w: Tensor) -> Tensor:
            w = w if gain is None else w * gain
            return w - w.mean(-2, keepdim=True) if centre else w

        def turn(w: Tensor, q: Tensor | None, rs: Mapping[int, Tensor]) -> Tensor:
            if q is not None:
                w = w @ q.to(w.dtype) if reads else w
                w = q.to(w.dtype).T @ w if writes else w
            if values is not None:
                w = _turn_rows(w.transpose(-1, -2), values, rs[values.layer]).transpose(-1, -2)
            return w if output is None else turn_heads(w, rs[output.layer].to(w.dtype), output.num_heads)

        rows_only = not writes and values is None and output is None and dense.expert is None
        name = self.names[id(dense.parameter)]
        self.weights.append(Part(name, dense.parameter, fold, turn, rows_only, dense.transposed))
        bias = _bias(dense)
        if bias is None:
            return

        def fold_bias(x: Tensor) -> Tensor:
            if shift is not None:  # the weight as it is before its own part is changed
                w = dense.parameter.detach()
                w = w.transpose(-1, -2) if dense.transposed else w
                x = x + w.double() @ shift
            return self._centred(x) if centre else x

        def turn_bias(x: Tensor, q: Tensor | None, rs: Mapping[int, Tensor]) -> Tensor:
            x = x @ q.to(x.dtype) if writes and q is not None else x
            return x if values is None else _turn_rows(x, values, rs[values.layer])

        if shift is not None or writes or values is not None:
            self._vector(bias, fold_bias, turn_bias)


def _bias(dense: Dense) -> Tensor | None:
    """The stored bias, of all experts together."""
    bias = getattr(dense.module, dense.bias_key, None)
    return bias if isinstance(bias, Tensor) else None


def _turn_rows(x: Tensor, heads: Heads, r: Tensor) -> Tensor:
    """The value channels, among the last axis of a fused projection's outputs, times R."""
    rows = heads.values.rows("w.v").to(x.device)
    new = turn_heads(x.index_select(-1, rows), r.to(x.dtype), heads.num_kv_heads)
    return x.index_copy(-1, rows, new)


def _same(x: Tensor) -> Tensor:
    return x


def _same_turn(x: Tensor, q: Tensor | None, rs: Mapping[int, Tensor]) -> Tensor:
    return x


def _turn_row(x: Tensor, q: Tensor | None, rs: Mapping[int, Tensor]) -> Tensor:
    return x if q is None else x @ q.to(x.dtype)
