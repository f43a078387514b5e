"""Online rotations, simulated: of what down projections read (R4), and of queries and keys behind the rotary embedding (R3).

    R4   x' = x H before the down projection, which holds W H:   x H (W H)^T = x W^T
    R3   q' = q H, k' = k H:   q' k'^T = q k^T

Both are the identity in exact arithmetic and change what is rounded: R4 the inputs of down projections, R3 the cache of keys (QuaRot,
Ashkboos et al. 2024, arXiv 2404.00456, section 4). An activation function or the rotary embedding stands between the tensor and the weights
before it, so H can be folded into no checkpoint: it has to run. Open this before a simulated quantization, which then sees rotated tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from skerry.anatomy.attention_change import AttentionEdit, change_attention
from skerry.anatomy.dense import change_inputs, dense_maps, replace_weights
from skerry.anatomy.model import Anatomy
from skerry.choices import Choice
from skerry.tame.hadamard import rotation

NO_EXPORT = (
    "online rotations have to run in the model's forward, before down projections and behind the rotary embedding: no checkpoint of plain "
    "weights can hold them; rotate the residual stream and the value heads instead"
)


@contextmanager
def online_rotation(
    anatomy: Anatomy, *, down: bool = True, attention: bool = True, seed: int = 0
) -> Iterator[dict[int, Choice[Tensor]]]:
    """Rotate what down projections read, and queries and keys, while open; the weights come back bit for bit.

    Args:
        anatomy: The model with its places.
        down: R4.
        attention: R3.
        seed: Of the signs of the Hadamard matrices.

    Yields:
        Width to its rotation, with the reason for it.

    Raises:
        UnknownOption: `attention`, and the architecture computes its attention in code of its own.
    """
    made: dict[int, Choice[Tensor]] = {}

    def h(width: int) -> Tensor:
        if width not in made:
            made[width] = rotation(width, seed=seed)
        return made[width].value

    with ExitStack() as stack:
        if down:
            maps = [d for d in dense_maps(anatomy) if "w.down" in d.pieces]
            for dense in maps:
                turned = dense.weight.double() @ h(dense.weight.shape[1]).to(dense.weight.device)
                stack.enter_context(replace_weights({dense: turned.to(dense.weight.dtype)}))
            stack.enter_context(change_inputs(anatomy, {d: _times(h(d.weight.shape[1])) for d in maps}))
        if attention and anatomy.attention:

            def turn(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                r = h(q.shape[-1]).to(q)
                return q @ r, k @ r, v

            stack.enter_context(
                change_attention(anatomy.model, anatomy.attention, AttentionEdit(tensors=turn))
            )
        yield made


def _times(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    held: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def times(x: Tensor) -> Tensor:
        key = (x.dtype, x.device)
        if key not in held:
            held[key] = matrix.to(x)
        return x @ held[key]

    return times
