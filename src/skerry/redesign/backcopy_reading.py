"""What a decoder does on Bigram-Backcopy: how far it is from the best loss, and what has become of <s>.

    excess risk = mean KL(true law of the next token || the model's), apart for queries on triggers (backcopy) and on others (bigram)
    Delta-logit = mean over queries i on other tokens of  l_i0 - mean_{0 < j <= i} l_ij        (Guo et al. 2024, section 2)

The excess risk has the mean of loss - `Backcopy.bayes_loss`, without the noise of drawing the next token. Whatever concerns attention is
measured on queries at least `FIRST_QUERY` tokens from <s>: a query with few keys attends to <s> for want of others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from skerry.anatomy import Site, resolve, watch
from skerry.anatomy.attention import AttentionView, naive_logits, naive_probs
from skerry.redesign.backcopy import Backcopy

FIRST_QUERY = 8


class Excess(NamedTuple):
    """Excess risks in nats per token.

    Attributes:
        backcopy: On triggers; in-context learning.
        bigram: On all others, <s> among them; what the weights know of the text.
    """

    backcopy: float
    bigram: float


class LayerReading(NamedTuple):
    """<s> in one layer, heads averaged.

    Attributes:
        layer: Counted from 0.
        weight_on_triggers: Attention weight of <s>, mean over queries on triggers.
        weight_on_others: The same over all other queries.
        share_on_triggers: Its share of the query's weights, which need not sum to one; 0 for a query that has none.
        share_on_others: The same over all other queries.
        delta_logit: Of queries on other tokens.
        value_ratio: Norm of the value of <s> over the mean norm of all others.
        residual_norm: Norm of <s> in the residual stream after the layer.
        residual_ratio: That over the mean norm of all others.
    """

    layer: int
    weight_on_triggers: float
    weight_on_others: float
    share_on_triggers: float
    share_on_others: float
    delta_logit: float
    value_ratio: float
    residual_norm: float
    residual_ratio: float


class Reading(NamedTuple):
    """All of it.

    Attributes:
        excess: Risks.
        layers: One reading per layer.
    """

    excess: Excess
    layers: tuple[LayerReading, ...]


def excess_risk(
    logits: Float[Tensor, "sample position token"], ids: Int[Tensor, "sample position"], task: Backcopy
) -> Excess:
    """Excess risks of predictions; the last place predicts nothing that the sequence holds, but has a law as well and counts."""
    law = task.law(ids).to(logits.device)
    told = logits.double().log_softmax(-1)[..., : task.vocab_size]
    missing = torch.where(law > 0, law * told, 0.0)  # 0 log 0 is 0
    divergence = (torch.special.xlogy(law, law) - missing).sum(-1)
    on_trigger = task.is_trigger(ids).to(logits.device)
    return Excess(float(divergence[on_trigger].mean()), float(divergence[~on_trigger].mean()))


@torch.no_grad()
def read_backcopy(model: nn.Module, ids: Int[Tensor, "sample position"], task: Backcopy) -> Reading:
    """Read a decoder on sequences of the task. The model is left as it is.

    Args:
        model: A decoder of transformers' kind or ours.
        ids: Sequences, e.g. `task.batch(...)` of a seed that training does not use; longer than `FIRST_QUERY`.
        task: What they are from.
    """
    anatomy = resolve(model)
    samples, length = ids.shape
    on_trigger = task.is_trigger(ids)[:, FIRST_QUERY:].to(next(model.parameters()).device)
    attention: dict[int, dict[str, float]] = {}
    stream: dict[int, dict[str, float]] = {}

    def see_attention(view: AttentionView) -> None:
        attention[view.layer] = _attention_of(view, on_trigger)

    def see_stream(site: Site, rows: Tensor, _tokens: Tensor | None) -> None:
        assert site.layer is not None
        norms = rows.float().norm(dim=-1).view(samples, length)
        first, rest = float(norms[:, 0].mean()), float(norms[:, 1:].mean())
        stream[site.layer] = {"residual_norm": first, "residual_ratio": first / rest}

    was_training = model.training
    model.eval()
    with watch(anatomy, ["resid.out"], on_activation=see_stream, on_attention=see_attention):
        logits: Any = model(ids.to(on_trigger.device), use_cache=False).logits
    model.train(was_training)
    layers = tuple(LayerReading(n, **attention[n], **stream[n]) for n in sorted(attention))
    return Reading(excess_risk(logits, ids, task), layers)


def _attention_of(view: AttentionView, on_trigger: Tensor) -> dict[str, float]:
    """The numbers of one layer; heads averaged."""
    assert view.value is not None
    logits, weights = naive_logits(view).float(), naive_probs(view).float()
    total = weights.sum(-1)
    on_start = weights[..., 0]
    share = torch.where(total > 0, on_start / total.clamp_min(torch.finfo(total.dtype).tiny), 0.0)
    seen = logits.isfinite()
    others = torch.where(seen, logits, 0.0)[..., 1:].sum(-1) / seen[..., 1:].sum(-1).clamp_min(1)
    found = {"weight": on_start, "share": share, "delta": logits[..., 0] - others}
    found = {name: x[:, :, FIRST_QUERY:].mean(1) for name, x in found.items()}
    norms = view.value.float().norm(dim=-1)
    return {
        "weight_on_triggers": float(found["weight"][on_trigger].mean()),
        "weight_on_others": float(found["weight"][~on_trigger].mean()),
        "share_on_triggers": float(found["share"][on_trigger].mean()),
        "share_on_others": float(found["share"][~on_trigger].mean()),
        "delta_logit": float(found["delta"][~on_trigger].mean()),
        "value_ratio": float(norms[..., 0].mean() / norms[..., 1:].mean()),
    }
