"""Numbers about a head with a sink that need no change of the model; p, s, r, b as in `roles_parts`, over queries that count.

sink mass, sink mass std    mean and standard deviation of p over queries
variance share              x = s r + b after the head's part of the output projection. x - mean x is the sum of
                              scale        (s - mean s) mean r
                              bias         b - mean b
                              rest         mean s (r - mean r)
                              interaction  (s - mean s)(r - mean r) less its mean
                            and the share of a term is  E<term, x - mean x> / E|x - mean x|^2: its covariance with the whole, which
                            is the Shapley value of the variance of a sum. Shares add up to 1; a negative one works against the rest.
value norm ratio            mean |v| of sink keys / mean |v| of other keys (value drain: below 1); a learned sink is a key with |v| = 0
update correlation          Pearson correlation over queries of s with |W_o r|, the size of the update before it is scaled (with the
                            scaled update it would be positive by itself): does the head open when it has much to write?
dormant share               share of inputs whose mean p is above 0.9 (Guo et al. 2024, arXiv 2410.13835: dormant)
active share                share of inputs whose mean p is below 0.5. A head with both shares above 0.05 switches with the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from skerry.anatomy.model import Anatomy
from skerry.anatomy.sites import Site
from skerry.causes.roles_parts import Means, Terms
from skerry.causes.roles_verdict import resampled

DORMANT, ACTIVE = 0.9, 0.5
MEASURES = (
    "sink mass",
    "sink mass std",
    "variance share of scale",
    "variance share of bias",
    "variance share of rest",
    "variance share of interaction",
    "value norm ratio",
    "update correlation",
    "dormant share",
    "active share",
)


def output_gram(anatomy: Anatomy, layer: int, num_heads: int) -> Float[Tensor, "head channel channel"]:
    """W_o^T W_o of each head: inner products of what the heads write, from what the output projection reads."""
    w = anatomy.weight(Site(layer, "w.o")).float()
    per_head = w.reshape(w.shape[0], num_heads, -1).permute(1, 2, 0)
    return per_head @ per_head.transpose(1, 2)


@torch.no_grad()
def head_sums(terms: Terms, means: Means, gram: Tensor, head: int) -> Float[Tensor, "sample number"]:
    """What each input adds to the sums that the measures of one head are made of, float64."""
    counts = terms.queries.double()
    s, p = terms.scale[:, head].double(), terms.mass[:, head].double()
    rest, bias = terms.rest[:, head], terms.bias[:, head]
    whole = s[..., None].float() * rest + bias - means.output[head]
    scale_term = (terms.scale[:, head] - means.scale[head])[..., None] * means.rest[head]
    bias_term = bias - means.bias[head]
    rest_term = means.scale[head] * (rest - means.rest[head])
    seen = (whole @ gram[head]).double()
    parts = [(seen * term).sum(-1) for term in (scale_term, bias_term, rest_term, whole)]
    update = ((rest @ gram[head]) * rest).sum(-1).clamp_min(0.0).sqrt().double()
    per_query = [torch.ones_like(s), p, p * p, *parts, s, s * s, update, update * update, s * update]
    sums = [(x * counts).sum(-1) for x in per_query]
    mean_mass = sums[1] / sums[0]
    norm = terms.value_norm[:, head].double()
    sinks = terms.sink.double()
    per_input = [
        (norm * sinks).sum(-1),
        sinks.sum(-1) + float(terms.learned),
        (norm * counts).sum(-1),
        torch.ones_like(mean_mass),
        (mean_mass > DORMANT).double(),
        (mean_mass < ACTIVE).double(),
    ]
    return torch.stack([*sums, *per_input], dim=-1).cpu()


def measure(sums: np.ndarray) -> np.ndarray:
    """Sums [..., number] of `head_sums` to [..., measure of `MEASURES`]; NaN where it has no meaning."""
    n, p, pp, scale, bias, rest, whole, s, ss, u, uu, su, vs, ns, vo, inputs, dormant, active = np.moveaxis(
        sums, -1, 0
    )
    mass = p / n
    spread = np.sqrt(np.maximum(pp / n - mass**2, 0.0))
    total = np.where(whole > 0, whole, np.nan)
    shares = [scale / total, bias / total, rest / total, (whole - scale - bias - rest) / total]
    var_s, var_u = ss / n - (s / n) ** 2, uu / n - (u / n) ** 2
    # A head that gives every query the same has no correlation; rounding must not make one.
    varies = (var_s > 1e-12) & (var_u > 1e-10 * uu / n)
    correlation = np.where(
        varies, (su / n - s * u / n**2) / np.sqrt(np.where(varies, var_s * var_u, 1.0)), np.nan
    )
    return np.stack(
        [mass, spread, *shares, (vs / ns) / (vo / n), correlation, dormant / inputs, active / inputs], axis=-1
    )


def measure_rows(layer: int, head: int, sums: Sequence[Tensor], *, seed: int) -> list[dict[str, Any]]:
    """Rows of `role_measures` of one head; inputs without a query that counts are left out."""
    table = torch.cat(list(sums)).numpy()
    table = table[table[:, 0] > 0]
    if not len(table):
        return []
    found = resampled(table, measure, seed=seed)
    return [
        {
            "layer": layer,
            "head": head,
            "measure": name,
            "value": x.value,
            "low": x.low,
            "high": x.high,
            "num_samples": len(table),
        }
        for name, x in zip(MEASURES, found, strict=True)
        if np.isfinite(x.value)
    ]
