"""What compressed-tensors, or its reader in transformers, cannot express: schemes, and maps by the way they are stored or read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from skerry.anatomy.dense import Dense, dense_maps
from skerry.anatomy.hush import hushed
from skerry.anatomy.model import Anatomy
from skerry.errors import NotPossible
from skerry.impact.scheme import Scheme, TensorSpec, check_group

_FLOAT_INSTEAD = "; the float model can be exported: form 'float'"


def refuse_scheme(scheme: Scheme) -> TensorSpec:
    """The spec of the weights.

    Raises:
        NotPossible: The format, or its reader in transformers, cannot express the scheme.
    """

    def refuse(why: str) -> NotPossible:
        return NotPossible(f"scheme {scheme} cannot be exported to compressed-tensors: {why}{_FLOAT_INSTEAD}")

    if scheme.kv is not None:
        raise refuse("transformers ignores a quantized cache of keys and values; leave kv out of the scheme")
    if scheme.attention is not None:
        raise refuse("the products of attention have no place in the format")
    w, x = scheme.weights, scheme.inputs
    if w is None:
        raise refuse("the weights must be quantized")
    for what, spec in (("weights", w), *((("inputs", x),) if x is not None else ())):
        if spec.format.block:
            raise refuse(
                f"{spec.number} {what} load on CUDA only: transformers computes in bfloat16 there and fails on other types"
            )
        if spec.format.is_integer and spec.format.bits not in (4, 8):
            raise refuse(
                f"{what} of {spec.format.bits} bits have no reader: kernels of the format exist for 4 and 8"
            )
        if not spec.format.is_integer and spec.number != "fp8_e4m3":
            raise refuse(f"{spec.number} {what} have no type in the format: its 8-bit float is fp8_e4m3")
    if not w.symmetric:
        raise refuse(
            "transformers 5.23 fails on zero points of weights (size mismatch of weight_zero_point); use symmetric weights"
        )
    if x is None:
        if w.format.is_integer and w.granularity == "tensor":
            raise refuse("packed weights have one scale per channel or group, not per tensor")
        return w
    if x.format.is_integer != w.format.is_integer:
        raise refuse("weights and inputs must both be integers or both floats")
    if x.granularity not in ("token", "tensor"):
        raise refuse(f"inputs with one grid per {x.granularity} have no reader; use token or tensor")
    if x.dynamic and x.observer != "minmax":
        raise refuse(
            f"the range of dynamic inputs is their minimum and maximum when the model runs, not {x.observer}"
        )
    if x.format.bits < w.format.bits:
        raise refuse(f"inputs of {x.format.bits} bits with weights of {w.format.bits} have no reader")
    if x.format.is_integer and x.format.bits != 8:
        raise refuse("int4 inputs have no reader; use int8 inputs")
    return w


def refuse_flat_inputs(model: nn.Module, scheme: Scheme, shapes: Mapping[str, int]) -> None:
    """Refuse maps whose input has no axis of samples, where one grid per token is asked for.

    compressed-tensors takes the first two axes for sample and token; of [row channel] it makes one grid for all tokens.

    Args:
        model: For the message.
        scheme: The scheme.
        shapes: Map to the number of axes of its input.

    Raises:
        NotPossible: There is such a map.
    """
    x = scheme.inputs
    flat = [name for name, axes in shapes.items() if axes < 3]
    if x is not None and x.dynamic and x.granularity == "token" and flat:
        raise NotPossible(
            f"{type(model).__name__}: {len(flat)} maps read [token channel] ({flat[0]}, ...), and the reader in transformers then takes one "
            "grid for all tokens instead of one per token; leave these maps out (`only`), use static inputs, or export the float model"
        )


def refuse_float_experts(anatomy: Anatomy, target: Any, scheme: Scheme) -> None:
    """Refuse experts that stay float beside integer maps, where the checkpoint holds each expert by itself.

    transformers 5.23 joins such experts from `weight_packed` only as soon as there is an integer scheme, and drops float ones.

    Raises:
        NotPossible: There are such experts.
    """
    from transformers.core_model_loading import revert_weight_conversion

    assert scheme.weights is not None
    if not anatomy.experts or not scheme.weights.format.is_integer:
        return
    joined = [d for d in dense_maps(anatomy) if d.is_routed]
    with hushed():
        stored = revert_weight_conversion(
            target, {k: torch.empty_like(t, device="meta") for k, t in target.state_dict().items()}
        )
    if lost := [d.name for d in joined if d.name.rpartition("[")[0] not in stored]:
        raise NotPossible(
            f"{lost[0]} stays float beside integer maps, and transformers 5.23 then loses the experts that a checkpoint holds one by one; "
            f"fp8 weights are read (wfp8afp8){_FLOAT_INSTEAD}"
        )


def refuse_maps(
    maps: list[Dense],
    wanted: frozenset[str] | None,
    weights: Mapping[str, Any],
    spec: TensorSpec,
    *,
    packed: bool,
) -> None:
    """Refuse maps whose storage the format's reader does not know.

    Args:
        maps: The maps to be quantized.
        wanted: The names that were asked for; None for all.
        weights: Names of weights found elsewhere.
        spec: Of the weights.
        packed: Whether levels are packed into words.

    Raises:
        NotPossible: Such a map, or a name that no map has.
        UnknownOption: A group size that does not divide a width.
    """
    known = {d.name for d in maps}
    if strange := sorted((set(wanted or ()) | set(weights)) - known):
        raise NotPossible(
            f"{strange[0]} is no linear map of the model's blocks{f' ({len(strange) - 1} more)' if len(strange) > 1 else ''}"
        )
    for dense in maps:
        kind = type(dense.module).__name__
        if dense.is_routed:
            raise NotPossible(
                f"{dense.name} is an expert inside one 3-D tensor ({kind}); the format's reader in transformers quantizes Linear modules "
                f"only. With fp8 weights the other maps can be named with `only`{_FLOAT_INSTEAD}"
            )
        if type(dense.module) is not nn.Linear and packed and isinstance(dense.module, nn.Linear):
            raise NotPossible(
                f"{dense.name} is a {kind}, whose code in transformers reads `weight`, and a packed map has none; quantize the inputs too "
                f"(w8a8, w4a8), which is stored unpacked{_FLOAT_INSTEAD}"
            )
        if not isinstance(dense.module, nn.Linear) or dense.transposed:
            raise NotPossible(
                f"{dense.name} is a {kind}, and the format knows Linear modules: a loader would leave it unquantized without a word"
                f"{_FLOAT_INSTEAD}"
            )
        check_group(dense.weight.shape[1], spec, dense.name)
    if not maps:
        raise NotPossible("no linear map is left to be quantized")
