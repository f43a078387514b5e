"""Continues prompts, greedily or at temperature 1, with the model's own cache where it gives one.

Sampling inverts the cumulative probabilities at numbers that are drawn beforehand: the token is the first whose cumulative probability
exceeds u. Two models get the same u at the same step of the same prompt, so where their predictions agree their texts do, on every device.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from skerry.redesign.battery.subject import Subject, whole


@torch.no_grad()
def generate(
    subject: Subject,
    prompts: Int[Tensor, "sample position"],
    num_new: int,
    *,
    uniform: Float[Tensor, "sample step"] | None = None,
    use_cache: bool = True,
) -> Int[Tensor, "sample step"]:
    """The tokens that the model puts behind each prompt.

    Args:
        subject: The model.
        prompts: Of equal length.
        num_new: Tokens to add.
        uniform: Numbers in [0, 1) to sample with; the most likely token where None.
        use_cache: Read each token once, where the model offers a cache; False reads the whole text again at each step.
    """
    length = prompts.shape[1] + num_new
    step = subject.rows_at_once(length, prompts.shape[1] if use_cache else length)
    parts = []
    for start in range(0, len(prompts), step):
        rows = slice(start, start + step)
        parts.append(
            _continue(
                subject,
                prompts[rows],
                num_new,
                None if uniform is None else uniform[rows],
                use_cache=use_cache,
            )
        )
    return torch.cat(parts)


def _continue(
    subject: Subject, ids: Tensor, num_new: int, uniform: Tensor | None, *, use_cache: bool
) -> Int[Tensor, "sample step"]:
    start, cache = ids.shape[1], None
    for i in range(num_new):
        if cache is None:
            out = subject.forward(ids, use_cache=use_cache)
        else:
            out = subject.forward(ids[:, -1:], use_cache=True, past_key_values=cache)
        cache = getattr(out, "past_key_values", None) if use_cache else None
        last = whole(out.logits[:, -1]).cpu()
        chosen = last.argmax(-1) if uniform is None else sample(last, uniform[:, i])
        ids = torch.cat([ids, chosen[:, None]], dim=1)
    return ids[:, start:]


def sample(logits: Float[Tensor, "sample token"], uniform: Float[Tensor, "sample"]) -> Int[Tensor, "sample"]:
    """The first token whose cumulative probability exceeds u."""
    cumulative = logits.double().softmax(-1).cumsum(-1)
    # The sum of all is 1 but for rounding; u is measured against it, so that the last token is never passed.
    place = uniform.double()[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, place, right=True)[:, 0].clamp_max(logits.shape[-1] - 1)
