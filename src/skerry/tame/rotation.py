"""Rotations that leave the model's function alone: of the residual stream (R1) and of each value head (R2).

    stream x' = x Q:   tables E Q;  writers Q^T W, b Q;  readers W diag(g) Q, with the gain g of the norm before them, which becomes 1
    head   v' = v R:   rows of v R^T W_v, b_v R;  columns of o W_o R, for every query head of the group

Rows are tokens, weights are [out in], so a writer's output x = W y turns as (W y)^T Q = (Q^T W y)^T. An RMSNorm without gain commutes with
any orthogonal Q (QuaRot, Ashkboos et al. 2024, arXiv 2404.00456, section 4; SliceGPT, arXiv 2401.15024, section 3).

LayerNorm. It takes the mean over channels away, before and after the rotation, for the checkpoint remains one of the same architecture. So
Q keeps the all-ones vector (`keeping_ones`), and then LN(x Q) = LN(x) Q exactly. Nobody sees the stream's mean then, and the writers are
centred so that they do not write it. Nothing is centred on an RMSNorm stream: there the mean is a part of the function.
A LayerNorm's bias b goes into the biases of its readers (+ W b), or stays in the norm as (b / g) Q where a reader has no bias: then no
parameter is new and the checkpoint keeps its format.

A norm on the token embedding, r = LN(E[t]), is folded into the table although it cannot be taken out: with one gain c for all channels,
LN(a r) = c a r / sqrt(a^2 var(r) + eps) = r for a^2 = eps / (c^2 - var(r)), any c^2 above the largest variance. So the table holds a r Q.

A norm between a half of a block and the stream has a gain that cannot be folded: refused, unless all its channels have one gain.
All products are in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skerry.anatomy.exact import run_float64
from skerry.anatomy.family import Matrix
from skerry.anatomy.model import Anatomy, BoundMatrix, text_config
from skerry.anatomy.sites import Site
from skerry.anatomy.watch import trial_ids
from skerry.errors import NotEquivalent, NotPossible, UnknownOption
from skerry.tame.hadamard import rotation
from skerry.tame.heads import Heads, find_heads
from skerry.tame.parts import Part, parts_of_heads, parts_of_stream
from skerry.tame.residual import Stream, find_stream
from skerry.tame.transform import FLOAT64_BOUND, relative_error

ORTHOGONAL = 1e-6
_ROWS = 8192


@dataclass(frozen=True)
class Plan:
    """What can be rotated and why not the rest; made before anything is changed.

    Attributes:
        family: Name of the declaration.
        stream: What touches the residual stream; None where it cannot be rotated.
        why_not: The reason then.
        heads: Layer to the value heads that can be rotated.
        heads_why_not: Layer to the reason where they cannot.
        needs: Settings that the configuration of a checkpoint must have after a rotation of the stream.
        new_biases: Maps that get a bias; a plain checkpoint of the architecture may have no place for it.
    """

    family: str
    stream: Stream | None
    why_not: str | None
    heads: Mapping[int, Heads]
    heads_why_not: Mapping[int, str]
    needs: Mapping[str, Any] = field(default_factory=dict)
    new_biases: tuple[str, ...] = ()

    @property
    def keeps_ones(self) -> bool:
        """Whether a rotation of the stream must keep the all-ones vector."""
        return self.stream is not None and self.stream.keeps_ones

    @property
    def width(self) -> int | None:
        """Channels of the stream; None where it cannot be rotated."""
        return None if self.stream is None else self.stream.width

    def rows(self) -> list[tuple[str, bool, str]]:
        """One row per seam: its name, whether it can be rotated, and how or why not."""
        how = "any rotation"
        if self.keeps_ones:
            how = "rotations that keep the all-ones vector (LayerNorm)"
        if self.needs:
            how += "; the head gets a weight of its own"
        found = [("residual", self.stream is not None, self.why_not or how)]
        found += [
            (f"{layer}.v-o", True, f"{h.num_kv_heads} value heads of {h.width}")
            for layer, h in self.heads.items()
        ]
        found += [(f"{layer}.v-o", False, why) for layer, why in self.heads_why_not.items()]
        return found

    def __repr__(self) -> str:
        stream = "residual" if self.stream is not None else "not the residual"
        return f"<Plan of {self.family}: {stream}, value heads of {len(self.heads)} layers; .rows() says why>"


def plan_rotation(anatomy: Anatomy) -> Plan:
    """Find out by two forwards on a few ids what can be rotated; the model is not changed."""
    heads, heads_why_not = find_heads(anatomy)
    try:
        stream = find_stream(anatomy)
        parts = parts_of_stream(anatomy, stream)
    except NotPossible as error:
        return Plan(anatomy.family, None, str(error), heads, heads_why_not)
    needs = {"tie_word_embeddings": False} if stream.is_tied else {}
    return Plan(anatomy.family, stream, None, heads, heads_why_not, needs, parts.new_biases)


@dataclass(frozen=True, eq=False)
class Rotation:
    """Rotations of one model.

    Attributes:
        residual: Q of the stream, [channel channel]; None leaves it.
        heads: Layer to R of its value heads.
        why: How they were made.
    """

    residual: Float[Tensor, "channel channel"] | None = None
    heads: Mapping[int, Tensor] = field(default_factory=dict)
    why: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        return self.residual is None and not self.heads

    def fold(self, anatomy: Anatomy, plan: Plan | None = None) -> None:
        """Write it into the weights, for good; raises what `rotate` raises."""
        rotate(anatomy, residual=self.residual, heads=self.heads, plan=plan)

    def prove(self, anatomy: Anatomy, plan: Plan | None = None, *, ids: Tensor | None = None) -> float:
        """Relative error in float64 of the rotated model against the model as it is, which stays as it is.

        All weights are in float64 meanwhile. The outputs are logits, or last hidden states where the stream is not rotated.

        Raises:
            NotEquivalent: The error is above 1e-10.
        """
        plan = plan or plan_rotation(anatomy)
        ids = trial_ids(anatomy.config, 32) if ids is None else ids
        logits = self.residual is not None
        before = run_float64(anatomy, ids, logits=logits)
        tie: list[Callable[[], None]] = []

        def change(layer: int | None) -> None:
            if layer is None:
                if logits and plan.stream is not None:
                    tie.append(untie_head(anatomy, plan.stream))
                self.fold(anatomy, plan)

        try:
            after = run_float64(anatomy, ids, change=change, whole=True, logits=logits)
        finally:
            for undo in tie:
                undo()
        error = relative_error(after, before)
        if not error <= FLOAT64_BOUND:
            raise NotEquivalent(
                f"the rotation changes the model: float64 outputs differ by {error:.1e} of their size ({FLOAT64_BOUND:.0e} is allowed). "
                "Nothing was folded; leave the rotation out"
            )
        return error

    def state(self) -> dict[str, Tensor]:
        """As tensors, `residual` and `heads|layer`."""
        out = {} if self.residual is None else {"residual": self.residual.double()}
        return out | {f"heads|{layer}": r.double() for layer, r in self.heads.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], why: str = "") -> Rotation:
        """The rotation that `state` came from."""
        heads = {int(k.partition("|")[2]): r for k, r in state.items() if k.startswith("heads|")}
        return cls(state.get("residual"), heads, why)


def hadamard_rotation(plan: Plan, *, residual: bool = True, heads: bool = True, seed: int = 0) -> Rotation:
    """Randomised Hadamard matrices wherever the plan allows one (QuaRot); random orthogonal ones where no Hadamard matrix is known.

    Args:
        plan: What can be rotated.
        residual: Rotate the stream, where it can be.
        heads: Rotate the value heads, where they can be. All heads of a layer get one matrix.
        seed: Of the signs.
    """
    whys: list[str] = []
    q: Tensor | None = None
    if residual and plan.stream is not None:
        found = rotation(plan.stream.width, seed=seed, keep_ones=plan.keeps_ones)
        q = found.value
        whys.append(f"residual: {found.why}")
    rs: dict[int, Tensor] = {}
    for layer, h in plan.heads.items() if heads else ():
        found = rotation(h.width, seed=seed + 1 + layer)
        rs[layer] = found.value
        if len(rs) == 1:
            whys.append(f"heads: {found.why} and on")
    return Rotation(q, rs, "; ".join(whys))


@torch.no_grad()
def rotate(
    anatomy: Anatomy,
    *,
    residual: Float[Tensor, "channel channel"] | None = None,
    heads: Mapping[int, Tensor] | None = None,
    plan: Plan | None = None,
) -> None:
    """Rotate a model in place; it computes the same up to rounding in its own dtype.

    Args:
        anatomy: The model with its places. A head that is tied to the embedding gets a weight of its own.
        residual: Q of the stream; None leaves stream and norms as they are. The unit matrix folds the norms only.
        heads: Layer to R, [channel channel] for all value heads or [kv_head channel channel].
        plan: What `plan_rotation` found; found here by default.

    Raises:
        NotPossible: The stream or a layer's heads cannot be rotated; the message says why.
        UnknownOption: A matrix of the wrong shape, one that is not orthogonal to 1e-6, or one that does not keep the all-ones vector
            where there are LayerNorms.
    """
    plan = plan or plan_rotation(anatomy)
    _check(plan, residual, heads or {})
    if residual is not None and plan.stream is not None and plan.stream.is_tied:
        untie_head(anatomy, plan.stream)
    turned = {layer: r.double() for layer, r in (heads or {}).items()}
    if residual is None and not turned:
        return
    for part in parts_of(anatomy, plan, with_stream=residual is not None, layers=list(turned)):
        write(part, residual, turned)


def parts_of(anatomy: Anatomy, plan: Plan, *, with_stream: bool, layers: list[int]) -> list[Part]:
    """What changes, in an order in which it can be changed: biases that need a weight as it was come before that weight."""
    seams = {layer: plan.heads[layer] for layer in layers}
    if not with_stream:
        return parts_of_heads(anatomy, seams)
    assert plan.stream is not None
    return parts_of_stream(anatomy, plan.stream, seams, add=True).parts


def write(part: Part, residual: Tensor | None, heads: Mapping[int, Tensor]) -> None:
    """Fold and turn one parameter where it is stored."""
    with torch.inference_mode(part.parameter.is_inference()), torch.no_grad():
        view = part.view(part.parameter.detach())
        q = None if residual is None else residual.double().to(view.device)
        # A table or a reader turns row by row, so that a vocabulary is never held in float64 as a whole.
        for rows in _chunks(view, part.by_rows):
            old = view[rows].double()
            view[rows] = part.turn(part.fold(old), q, {k: r.to(view.device) for k, r in heads.items()}).to(
                view.dtype
            )


def _chunks(view: Tensor, by_rows: bool) -> Iterator[slice]:
    if not by_rows:
        yield slice(None)
        return
    for start in range(0, len(view), _ROWS):
        yield slice(start, start + _ROWS)


def untie_head(anatomy: Anatomy, stream: Stream) -> Callable[[], None]:
    """Give the head a copy of the embedding: after a rotation it reads W diag(g) Q where the embedding holds E Q.

    Returns:
        Ties it again, with the weight that the embedding has then.
    """
    head = stream.head
    if not stream.is_tied or head is None:
        return lambda: None
    table, model, site = head.parameter, anatomy.model, Site(None, "w.head")
    own = nn.Parameter(table.detach().clone(), requires_grad=table.requires_grad)
    head.module.register_parameter(head.key, own)
    stream.is_tied = False
    configs = list({id(c): c for c in (anatomy.config, text_config(anatomy.config))}.values())
    before = [getattr(c, "tie_word_embeddings", True) for c in configs]
    for config in configs:
        config.tie_word_embeddings = False
    ties: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}  # type: ignore[assignment]
    tie = ties.pop(f"{head.name}.{head.key}", None)
    anatomy.matrices[site] = BoundMatrix(own, Matrix(f"//{head.name}.{head.key}"))

    def undo() -> None:
        head.module.register_parameter(head.key, table)  # type: ignore[arg-type]
        stream.is_tied = True
        for config, flag in zip(configs, before, strict=True):
            config.tie_word_embeddings = flag
        if tie is not None:
            ties[f"{head.name}.{head.key}"] = tie
        del anatomy.matrices[site]

    return undo


def _check(plan: Plan, residual: Tensor | None, heads: Mapping[int, Tensor]) -> None:
    if residual is not None:
        if plan.stream is None:
            raise NotPossible(plan.why_not)
        _check_orthogonal("the residual rotation", residual, (plan.stream.width,))
        ones = torch.ones(plan.stream.width, dtype=torch.float64)
        if plan.keeps_ones and float((residual.double().cpu() @ ones - ones).abs().max()) > ORTHOGONAL:
            raise UnknownOption(
                f"{plan.family} has LayerNorms, which take the mean over channels away: the residual rotation must keep the all-ones "
                "vector; make it with rotation(width, keep_ones=True) or keeping_ones(matrix)"
            )
    for layer, r in heads.items():
        if layer not in plan.heads:
            why = plan.heads_why_not.get(
                layer, f"the model has layers 0 to {len(plan.heads) + len(plan.heads_why_not) - 1}"
            )
            raise NotPossible(f"the value heads of layer {layer} cannot be rotated: {why}")
        found = plan.heads[layer]
        _check_orthogonal(f"the rotation of layer {layer}'s heads", r, (found.width, found.num_kv_heads))


def _check_orthogonal(what: str, matrix: Tensor, sizes: tuple[int, ...]) -> None:
    width = sizes[0]
    if matrix.shape not in {(width, width), (*sizes[1:], width, width)}:
        raise UnknownOption(f"{what} has shape {list(matrix.shape)}; [{width}, {width}] is needed")
    m = matrix.double()
    error = float((m @ m.transpose(-1, -2) - torch.eye(width, dtype=m.dtype, device=m.device)).abs().max())
    if not error <= ORTHOGONAL:
        raise UnknownOption(
            f"{what} is not orthogonal: Q Q^T differs from 1 by {error:.1e}; at most {ORTHOGONAL:.0e} is taken"
        )
