"""Cheaper forms of a folded token, fitted to calibration text in closed loops: no gradient goes through the model.

    exact        p = sigmoid(q . k' scale - lse), value v0                         kv-bias, what the fold gives
    sink-value   p^ = sigmoid(s - lse), value v0                                   one number per head instead of a key
    sink-logit   p^ = sigmoid(s - lse), no value                                   what gpt-oss has
    gate         p^ = 1 - sigmoid(x W + b), no value                               `scaled-1`: no sink in the softmax at all

Every head's s, or its column of W and b, makes the squared error of the head's own output least, summed over the calibration tokens and
with exact inputs:

    |(1 - p) y + p v0 - (1 - p^) y - p^ v^|^2 = (p^ - p)^2 |y - v0|^2                          with value, v^ = v0
                                              = (p^ - p)^2 |y|^2 + 2 (p^ - p) p y.v0 + p^2 |v0|^2     without

s is searched on a grid that is refined; W and b by L-BFGS, with a small ridge.
Limit: where q . k' is the same for all queries, `sink-value` is exact; where v0 = 0 as well, so is `sink-logit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from skerry.anatomy.resolve import resolve
from skerry.corpus.batch import Batch
from skerry.errors import UnknownOption, near_matches
from skerry.redesign.decoder import DecoderForCausalLM
from skerry.redesign.retrofit_fold import EXACT, config_of, with_attention
from skerry.redesign.retrofit_read import Heads, read_heads, variant_of
from skerry.run import Progress

EXACT_FORM = "exact"
# Form -> attention variant of the decoder.
FORMS = {EXACT_FORM: EXACT, "sink-value": "sink-value", "sink-logit": "sink-logit", "gate": "scaled-1"}
GRID, ROUNDS = 33, 6
RIDGE = 1e-4
GATE_ITERATIONS = 60
MOST_TOKENS = 16384


def check_form(form: str) -> None:
    """Refuse an unknown form.

    Raises:
        UnknownOption: With the near matches.
    """
    if form not in FORMS:
        near = near_matches(form, list(FORMS))
        raise UnknownOption(
            f"there is no form {form!r} of a folded token{f'; did you mean {near}?' if near else '.'} There are {', '.join(FORMS)}"
        )


def has_value(form: str) -> bool:
    """Whether the form keeps v0."""
    return form in (EXACT_FORM, "sink-value")


@dataclass
class Sums:
    """What the fits need of one layer, token by token.

    Attributes:
        p: Share of the folded token.
        lse: Log of the sum over the other keys.
        e: Logit of the folded token.
        yy: |y|^2.
        yv: y . v0.
        vv: |v0|^2, [head].
        x: What the projections read.
    """

    p: Float[Tensor, "token head"]
    lse: Float[Tensor, "token head"]
    e: Float[Tensor, "token head"]
    yy: Float[Tensor, "token head"]
    yv: Float[Tensor, "token head"]
    vv: Float[Tensor, "head"]
    x: Float[Tensor, "token channel"]

    def error(self, other: Float[Tensor, "token head"], *, valued: bool) -> Float[Tensor, "token head"]:
        """Squared error of the head's output with another share p^."""
        d = other - self.p
        if valued:
            return d.square() * (self.yy - 2 * self.yv + self.vv).clamp_min(0.0)
        return d.square() * self.yy + 2 * d * self.p * self.yv + self.p.square() * self.vv


@dataclass
class Fitter:
    """Gathers the calibration of a folded decoder and gives the cheaper forms.

    Attributes:
        folded: The exact decoder; it is left as it is.
        sums: Per layer.
    """

    folded: DecoderForCausalLM
    sums: dict[int, Sums] = field(default_factory=dict)

    def read(self, batches: Sequence[Batch], progress: Progress | None = None) -> Fitter:
        """Read calibration inputs, without their first token."""
        found: dict[int, list[Sums]] = {}

        def show(h: Heads) -> None:
            v = variant_of(self.folded, h.layer).value_bias.detach().to(h.y)
            have = sum(len(s.p) for s in found.get(h.layer, []))
            n = max(0, MOST_TOKENS - have)
            yv = torch.einsum("thc,hc->th", h.y, v)
            s = Sums(h.p, h.lse, h.e, h.y.square().sum(-1), yv, v.square().sum(-1), h.x)
            found.setdefault(h.layer, []).append(
                Sums(s.p[:n], s.lse[:n], s.e[:n], s.yy[:n], s.yv[:n], s.vv, s.x[:n])
            )

        read_heads(resolve(self.folded), batches, show, progress=progress, stage="fitting: calibration")
        for layer, parts in found.items():
            whole = {
                name: torch.cat([getattr(s, name) for s in parts])
                for name in ("p", "lse", "e", "yy", "yv", "x")
            }
            self.sums[layer] = Sums(**whole, vv=parts[0].vv)
        return self

    @torch.no_grad()
    def make(self, form: str) -> DecoderForCausalLM:
        """A decoder of that form.

        Args:
            form: One of `FORMS`.

        Raises:
            UnknownOption: There is no such form.
        """
        check_form(form)
        if form == EXACT_FORM:
            return with_attention_kept(self.folded)
        out = with_attention(self.folded, FORMS[form])
        for layer, sums in self.sums.items():
            variant = variant_of(out, layer)
            if form == "gate":
                weight, bias = fit_gate(sums)
                variant.gate.weight.copy_(weight)
                variant.gate.bias.copy_(bias)
                continue
            variant.sinks.copy_(fit_logit(sums, valued=has_value(form)))
            if has_value(form):
                variant.value_bias.copy_(variant_of(self.folded, layer).value_bias)
        return out


def with_attention_kept(decoder: DecoderForCausalLM) -> DecoderForCausalLM:
    """A copy with all its parameters."""
    out = with_attention(decoder, config_of(decoder).attention)
    out.load_state_dict(decoder.state_dict())
    return out


def fit_logit(sums: Sums, *, valued: bool) -> Float[Tensor, "head"]:
    """The constant logit of every head with the least squared error, from a grid that narrows around its best point."""
    low = torch.minimum(sums.e.amin(0), sums.lse.amin(0)) - 2
    high = sums.e.amax(0) + 2
    for _ in range(ROUNDS):
        steps = torch.linspace(0, 1, GRID, dtype=low.dtype, device=low.device)[:, None]
        points = low + steps * (high - low)
        errors = torch.stack([sums.error(torch.sigmoid(s - sums.lse), valued=valued).sum(0) for s in points])
        best = errors.argmin(0)
        wide = (high - low) / (GRID - 1)
        middle = points.gather(0, best[None])[0]
        low, high = middle - wide, middle + wide
    return (low + high) / 2


def fit_gate(sums: Sums) -> tuple[Float[Tensor, "head channel"], Float[Tensor, "head"]]:
    """W and b of a gate sigmoid(x W + b) near 1 - p, by L-BFGS on the squared error of the outputs."""
    with torch.enable_grad():
        x = sums.x
        size = x.square().mean().sqrt().clamp_min(1e-12)
        heads = sums.p.shape[1]
        kept = (1 - sums.p.mean(0)).clamp(1e-3, 1 - 1e-3)
        weight = torch.zeros(heads, x.shape[1], dtype=x.dtype, device=x.device, requires_grad=True)
        bias = torch.logit(kept).detach().clone().requires_grad_(True)
        # Every head counts the same, whatever the length of its outputs.
        scale = sums.error(torch.zeros_like(sums.p), valued=False).mean(0).clamp_min(1e-12)
        solver = torch.optim.LBFGS(
            [weight, bias], max_iter=GATE_ITERATIONS, line_search_fn="strong_wolfe", history_size=10
        )

        def loss() -> Tensor:
            solver.zero_grad()
            share = 1 - torch.sigmoid(x / size @ weight.T + bias)
            value = (sums.error(share, valued=False).mean(0) / scale).sum() + RIDGE * weight.square().sum()
            value.backward()
            return value

        solver.step(loss)  # type: ignore[no-untyped-call]
    return (weight / size).detach(), bias.detach()
