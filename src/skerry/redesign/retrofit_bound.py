"""How far a cheaper form can be from the exact fold, when nothing is trained: a bound per head and layer, beside what is measured.

With p the exact share of the folded token and p^ the form's, for the same inputs of the layer,

    error_h = (p^ - p) (y - v0)              with value,   |error_h| <= |p^ - p| (|y| + |v0|)
    error_h = (p^ - p) y + p v0              without,      |error_h| <= |p^ - p| |y| + p |v0|
    |layer's error| <= sum_h sigma_h |error_h|,  sigma_h the largest singular value of the output projection's columns of head h

These are bounds: triangle inequality and operator norm, true for every token. Before any text is read, only the logits are needed for a
wider one, whatever the other keys are:

    |p^ - p| = |sigmoid(s - lse) - sigmoid(e - lse)| <= tanh(|e - s| / 4)                  for a constant logit s

since a logistic step between two points is largest where they lie on both sides of its middle. A gate has no such bound: its p^ does not
know lse.

All of it is of one layer whose inputs are exact. Errors of earlier layers come on top of it in the whole model; no useful bound of that is
known (products of Lipschitz constants of all later blocks say nothing), so the whole model is measured: see `retrofit_measure`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from skerry.anatomy.resolve import resolve
from skerry.corpus.batch import Batch
from skerry.redesign.decoder import DecoderForCausalLM
from skerry.redesign.retrofit_fit import has_value
from skerry.redesign.retrofit_read import Heads, read_heads, variant_of
from skerry.run import Progress

Row = dict[str, Any]


class Bounds(NamedTuple):
    """Of one layer over some tokens.

    Attributes:
        error: Length of the layer's error, measured with exact inputs.
        bound: What it can be at most, from the shares at hand.
        wide: From the logits alone; None for a gate.
        output: Length of the layer's exact output.
    """

    error: Float[Tensor, "token"]
    bound: Float[Tensor, "token"]
    wide: Float[Tensor, "token"] | None
    output: Float[Tensor, "token"]


def shares(variant: Any, heads: Heads, form: str) -> Float[Tensor, "token head"]:
    """p^ of a form."""
    if form == "gate":
        return 1 - torch.sigmoid(heads.x @ variant.gate.weight.to(heads.x).T + variant.gate.bias.to(heads.x))
    return torch.sigmoid(variant.sinks.to(heads.lse) - heads.lse)


@torch.no_grad()
def bounds_of(
    heads: Heads,
    variant: Any,
    form: str,
    value: Float[Tensor, "head channel"],
    out: Float[Tensor, "row column"],
) -> Bounds:
    """Bound and error of one layer.

    Args:
        heads: What its attention does.
        variant: The layer's variant in the cheaper decoder.
        form: `sink-value`, `sink-logit` or `gate`.
        value: v0.
        out: The output projection, [channel, head * channel].
    """
    y, p, q = heads.y, heads.p[..., None], shares(variant, heads, form)[..., None]
    v, valued = value.to(y), has_value(form)
    wrong = (q - p) * (y - v) if valued else (q - p) * y + p * v
    weight = out.to(y).unflatten(1, y.shape[1:])  # [row head channel]
    error = torch.einsum("rhc,thc->tr", weight, wrong).norm(dim=-1)
    output = torch.einsum("rhc,thc->tr", weight, (1 - p) * y + p * v).norm(dim=-1)
    sigma = torch.linalg.matrix_norm(weight.transpose(0, 1), 2)
    length, constant = y.norm(dim=-1), v.norm(dim=-1)

    def most(step: Tensor) -> Tensor:
        each = step * (length + constant) if valued else step * length + heads.p * constant
        return each @ sigma

    wide = None
    if form != "gate":
        wide = most(torch.tanh((heads.e - variant.sinks.to(heads.e)).abs() / 4))
    return Bounds(error, most((q - p).abs()[..., 0]), wide, output)


def bound_rows(
    folded: DecoderForCausalLM,
    forms: Mapping[str, DecoderForCausalLM],
    batches: Sequence[Batch],
    progress: Progress | None = None,
) -> list[Row]:
    """One row per form and layer: root mean squares over tokens, as shares of the exact output's.

    Args:
        folded: The exact decoder.
        forms: Cheaper ones by form.
        batches: Inputs that nothing was fitted to, without their first token.
        progress: Told how far it is.
    """
    sums: dict[tuple[str, int], Tensor] = {}

    def show(h: Heads) -> None:
        block: Any = folded.model.layers[h.layer]
        value, out = block.self_attn.variant.value_bias, block.self_attn.o_proj.weight
        for form, decoder in forms.items():
            b = bounds_of(h, variant_of(decoder, h.layer), form, value, out)
            wide = b.wide if b.wide is not None else torch.full_like(b.bound, torch.nan)
            squares = torch.stack([x.double().square().sum() for x in (b.error, b.bound, wide, b.output)])
            over = (b.error > b.bound * (1 + 1e-4) + 1e-6 * b.output).sum()
            new = torch.cat([squares, over.double()[None], torch.tensor([float(len(b.error))]).to(squares)])
            sums[form, h.layer] = sums.get((form, h.layer), 0) + new

    read_heads(resolve(folded), batches, show, progress=progress, stage="bounds")
    rows = []
    for (form, layer), total in sorted(sums.items()):
        error, bound, wide, output, over, count = total.tolist()
        whole = max(output, 1e-300) ** 0.5
        rows.append(
            {
                "form": form,
                "layer": layer,
                "measured": error**0.5 / whole,
                "bound": bound**0.5 / whole,
                "bound_from_logits": None if wide != wide else wide**0.5 / whole,
                "tokens_over_bound": int(over),
                "num_tokens": int(count),
            }
        )
    return rows
