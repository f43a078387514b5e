"""One channel through one block, as a sum whose terms are measured and not assumed.

Every block of a transformer, whatever its norms, does to a token

    mid = R1(in + A(a)),    out = R2(mid + M(m))

with a = attn.out and m = mlp.out.  A and M are the identity, a constant factor (Granite) or a norm between the sublayer and the residual
(Gemma 2, OLMo 2); R1 and R2 are the identity (pre-norm blocks) or a norm on the residual (BERT).  Blocks without a middle put both
sublayers side by side: out = in + A(a) + M(m).  A norm of one token is linear once its statistics are known: y_c = s x_c + z + b, with
s = g_c / sigma, centre z = -g_c mu / sigma, bias b.  So for channel c, exactly,

    out - in = (s1 s2 - 1) in            norm gain
             + s1 s2 sA a                attn.out
             + s2 sM m                   mlp.out
             + s1 s2 bA + s2 (b1 + bM) + b2      norm bias
             + s1 s2 zA + s2 (z1 + zM) + z2      centre
             + unexplained

sigma of each token is the one that maps what went into the norm onto what was measured behind it, and the mean is subtracted where
that fits better: no epsilon, no norm type and no multiplier has to be known.  `unexplained` is what is left of the measured change:
rounding, or a block that does something else, and then a note says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from skerry.anatomy.model import Anatomy
from skerry.anatomy.sites import NORM_BIAS, Site

ATTENTION, FEED_FORWARD = "attn.out", "mlp.out"
UNEXPLAINED = "unexplained"
# Share of the change that may stay without a term before it is said: rounding of the residual stream, as a multiple of its precision.
_ROUNDING = 1000


class Affine(NamedTuple):
    """What a norm or a factor does to one channel of each token: y_c = scale x_c + centre + bias."""

    scale: Float[Tensor, "row"]
    centre: Float[Tensor, "row"]
    bias: Float[Tensor, "row"]


class Fit(NamedTuple):
    """A norm of known input and output: what it does to the channel, and |y - reconstruction| / |y|."""

    affine: Affine
    residue: float


@dataclass(frozen=True)
class Expansion:
    """The change of one channel in one block, token by token, float64.

    Attributes:
        change: What there is to explain.
        terms: Part to its contribution; with `unexplained` they sum to `change`.
        gains: Part (attn.out, mlp.out) to the factor from its own value to its contribution; missing where only the difference is known.
        notes: What did not fit.
    """

    change: Float[Tensor, "row"]
    terms: dict[str, Tensor]
    gains: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def part_shares(self) -> dict[str, float]:
        """Part to its share of the change."""
        total = float(self.change.sum())
        return {part: float(x.sum()) / total for part, x in self.terms.items()}


def precision(anatomy: Anatomy) -> float:
    """Relative spacing of the numbers that the model computes with; float32 at best, which norms use even in float64 models."""
    dtype = next(anatomy.model.parameters()).dtype
    single = torch.finfo(torch.float32).eps
    return max(single, float(torch.finfo(dtype).eps)) if dtype.is_floating_point else single


def identity(num_rows: int, factor: float = 1.0) -> Affine:
    """A factor on every token."""
    zero = torch.zeros(num_rows, dtype=torch.float64)
    return Affine(zero + factor, zero, zero)


def fit_norm(
    x: Float[Tensor, "row channel"],
    y: Float[Tensor, "row channel"],
    gain: Float[Tensor, "channel"],
    bias: Float[Tensor, "channel"] | None,
    channel: int,
) -> Fit:
    """The scale of each token, and whether its mean is subtracted, from what went in and what came out, by least squares."""
    bias = torch.zeros_like(gain) if bias is None else bias
    size = float((y - bias).norm()) or 1.0
    best: Fit | None = None
    for mean in (torch.zeros(len(x), 1, dtype=x.dtype), x.mean(1, keepdim=True)):
        z = (x - mean) * gain
        scale = (z * (y - bias)).sum(1) / (z * z).sum(1).clamp_min(torch.finfo(torch.float64).tiny)
        residue = float((z * scale[:, None] + bias - y).norm()) / size
        affine = Affine(
            gain[channel] * scale, -gain[channel] * scale * mean[:, 0], bias[channel].expand(len(x))
        )
        # A mean that is 0 anyway (a norm of normed values) is no sign of a LayerNorm.
        if best is None or residue < 0.5 * best.residue:
            best = Fit(affine, residue)
    assert best is not None
    return best


def expand(
    anatomy: Anatomy, layer: int, channel: int, rows: Mapping[Site, Float[Tensor, "row _"]]
) -> Expansion:
    """The terms of one channel's change in one block.

    Args:
        anatomy: The model.
        layer: Block.
        channel: Channel of the residual stream.
        rows: Activations of the block's sites; resid.in and resid.out must be there.
    """
    return _Block(anatomy, layer, channel, rows).expand()


class _Block:
    """The tensors of one block, float64, and the norms between them."""

    def __init__(
        self, anatomy: Anatomy, layer: int, channel: int, rows: Mapping[Site, Float[Tensor, "row _"]]
    ) -> None:
        self.anatomy, self.layer, self.channel = anatomy, layer, channel
        self.eps = precision(anatomy)
        wanted = ("resid.in", "resid.mid", "resid.out", "attn.out", "attn.add", "mlp.out", "mlp.add")
        self.at = {part: rows[site].double() for part in wanted if (site := Site(layer, part)) in rows}
        self.notes: list[str] = []

    def expand(self) -> Expansion:
        """The terms of the block."""
        h_in, h_out, mid = self.at["resid.in"], self.at["resid.out"], self.at.get("resid.mid")
        attn, mlp = self.added("attn"), self.added("mlp")
        one = identity(len(h_in))
        if mid is None:
            attn, mlp = self.beside(attn, mlp)
            r1, r2 = one, one
        else:
            r1, attn = self.onto("attn", h_in, attn, mid)
            r2, mlp = self.onto("mlp", mid, mlp, h_out)
        c = self.channel
        both = r1.scale * r2.scale
        terms = {
            ATTENTION: both * attn.contribution(c),
            FEED_FORWARD: r2.scale * mlp.contribution(c),
            "norm gain": (both - 1) * h_in[:, c],
            "norm bias": both * attn.affine.bias + r2.scale * (r1.bias + mlp.affine.bias) + r2.bias,
            "centre": both * attn.affine.centre + r2.scale * (r1.centre + mlp.affine.centre) + r2.centre,
        }
        terms = {part: x for part, x in terms.items() if bool(x.any())}
        change = h_out[:, c] - h_in[:, c]
        terms[UNEXPLAINED] = change - sum(terms.values(), torch.zeros_like(change))
        gains = {}
        if attn.values is not None:
            gains[ATTENTION] = both * attn.affine.scale
        if mlp.values is not None:
            gains[FEED_FORWARD] = r2.scale * mlp.affine.scale
        self.judge(change, terms[UNEXPLAINED], h_in[:, c])
        return Expansion(change, terms, gains, self.notes)

    def judge(self, change: Tensor, left: Tensor, before: Tensor) -> None:
        """Say how much no term explains, where it is more than rounding."""
        allowed = _ROUNDING * self.eps * (change.abs() + before.abs()).sum()
        if float(left.sum().abs()) > float(allowed):
            share = float(left.sum() / change.sum())
            self.notes.append(
                f"block {self.layer}: {share:.1%} of the change of channel {self.channel} is no sum of what attention, feed-forward "
                "and norms write; the row `unexplained` has it"
            )

    def norm(self, part: str) -> tuple[Tensor, Tensor | None] | None:
        """Gain and bias of a norm of this block; None without it."""
        site, offset = Site(self.layer, part), Site(self.layer, part + NORM_BIAS)
        known = self.anatomy.matrices
        if site not in known:
            return None
        return self.anatomy.weight(site).cpu().double(), (
            self.anatomy.weight(offset).cpu().double() if offset in known else None
        )

    def added(self, side: str) -> _Added:
        """What a sublayer adds, and how that comes from its own output."""
        out, add = self.at.get(f"{side}.out"), self.at.get(f"{side}.add")
        if out is None or add is None:
            return _Added(out, out if add is None else add, identity(len(self.at["resid.in"])))
        gain, bias = self.norm(f"norm.{side}.add") or (torch.ones(out.shape[1], dtype=out.dtype), None)
        return _Added(out, add, fit_norm(out, add, gain, bias, self.channel).affine)

    def onto(self, side: str, before: Tensor, added: _Added, after: Tensor) -> tuple[Affine, _Added]:
        """The norm on the residual behind a sublayer; without one, the factor that the sum takes the sublayer with."""
        norm = self.norm(f"norm.{side}.resid")
        if norm is not None:
            total = before if added.add is None else before + added.add
            return fit_norm(total, after, *norm, self.channel).affine, added
        part = after - before
        if added.add is None:
            return identity(len(before)), _Added(None, part, identity(len(before)))
        (factor,) = self.factors(part, [added.add], after)
        return identity(len(before)), added.times(factor)

    def beside(self, attn: _Added, mlp: _Added) -> tuple[_Added, _Added]:
        """The factors of two sublayers that stand side by side, or of the only one that can be seen."""
        adds = [x.add for x in (attn, mlp) if x.add is not None]
        if not adds:
            self.notes.append(
                f"block {self.layer}: neither attention nor a feed-forward has a known output there"
            )
            return attn, mlp
        h_out = self.at["resid.out"]
        factors = iter(self.factors(h_out - self.at["resid.in"], adds, h_out))
        first, second = (x if x.add is None else x.times(next(factors)) for x in (attn, mlp))
        return first, second

    def factors(self, change: Tensor, adds: list[Tensor], around: Tensor) -> list[float]:
        """Constants with change = sum of constant * add; all 1 where that fits, or nothing does."""
        allowed = (1e-3 + 8 * self.eps) * float(change.norm()) + 8 * self.eps * float(around.norm())

        def fits(factors: list[float]) -> bool:
            return float((change - weighted(factors, adds)).norm()) <= allowed

        ones = [1.0] * len(adds)
        if fits(ones):
            return ones
        flat = torch.stack([x.reshape(-1) for x in adds])
        solved = torch.linalg.lstsq(flat @ flat.T, (flat @ change.reshape(-1))[:, None]).solution[:, 0]
        factors = [float(f) for f in solved]
        return factors if fits(factors) else ones


def weighted(factors: list[float], values: list[Tensor]) -> Tensor:
    """Sum of factor * value."""
    return torch.stack([f * x for f, x in zip(factors, values, strict=True)]).sum(0)


@dataclass(frozen=True)
class _Added:
    """A sublayer: its output, what the residual is given, and what lies between them.

    Without an output that can be seen, `add` alone is known; without either, nothing is added.
    """

    values: Tensor | None
    add: Tensor | None
    affine: Affine

    def contribution(self, channel: int) -> Tensor:
        """What it adds to the channel without centre and bias, which are terms of their own."""
        source = self.add if self.values is None else self.values
        if source is None:
            return torch.zeros_like(self.affine.scale)
        return self.affine.scale * source[:, channel]

    def times(self, factor: float) -> _Added:
        """The same with a factor behind it."""
        add = None if self.add is None else factor * self.add
        return _Added(self.values, add, Affine(*(factor * x for x in self.affine)))
