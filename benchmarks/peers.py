"""The peer of the scan: plain forward hooks that compute the same statistics one torch call after another.

This is what a person writes in an afternoon: correct, and it reads every tensor about twenty times.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


@torch.inference_mode()
def statistics(x: Tensor, batch: int) -> dict[str, Tensor]:
    """Per channel, per token and pooled statistics of [token, channel], in double precision where sums need it."""
    x = x.float()
    size = x.abs()
    mean = x.mean(0, dtype=torch.float64)
    centred = x - mean.float()
    square = centred * centred
    m2 = square.mean(0, dtype=torch.float64)
    per_sample = size.unflatten(0, (batch, -1)).amax(1)
    rms = x.pow(2).mean(1, keepdim=True).sqrt()
    return {
        "min": x.amin(0),
        "max": x.amax(0),
        "abs_max": size.amax(0),
        "mean": mean,
        "variance": m2,
        "skewness": (square * centred).mean(0, dtype=torch.float64) / m2.pow(1.5),
        "kurtosis": (square * square).mean(0, dtype=torch.float64) / m2.pow(2),
        "near_zero": (size < 0.1 * rms).float().mean(0),
        "zero": (x == 0).float().mean(0),
        "finite": torch.isfinite(x).all(),
        "norm": x.norm(dim=1),
        "token_max": size.amax(1),
        "sample_max": per_sample,
        "sample_median": per_sample.median(1).values,
        "median": size.flatten()[:: max(1, size.numel() // 65536)].median(),
        "top": size.flatten().topk(32).values,
    }


@contextmanager
def hooks(places: list[tuple[nn.Module, str]], batch: int):
    """Hook every (module, side); keep only the statistics of the last forward."""
    kept: list[dict[str, Tensor]] = []

    def see(x: object) -> None:
        x = x[0] if isinstance(x, tuple) else x
        kept.append(statistics(x.flatten(0, -2), batch))

    with ExitStack() as stack:
        for module, side in places:
            if side == "input":
                handle = module.register_forward_pre_hook(
                    lambda _m, args, kwargs: see(args[0] if args else kwargs["hidden_states"]),
                    with_kwargs=True,
                )
            else:
                handle = module.register_forward_hook(lambda _m, _a, out: see(out))
            stack.callback(handle.remove)
        yield kept


@torch.inference_mode()
def attention_statistics(probs: Tensor, logits: Tensor) -> dict[str, Tensor]:
    """The attention statistics from whole probabilities, as `output_attentions` users compute them."""
    entropy = -(probs * probs.clamp_min(1e-30).log()).sum(-1)
    return {
        "received": probs.sum(2),
        "entropy": entropy.mean((0, 2)),
        "max_prob": probs.amax(-1).mean((0, 2)),
        "logit_max": logits.amax((0, 2, 3)),
    }
