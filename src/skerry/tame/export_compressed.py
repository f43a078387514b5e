"""Quantized checkpoints in the compressed-tensors format, written with safetensors and JSON.

    format            maps with               tensors of a map L [out in]
    int-quantized     int weights and inputs  L.weight int8 [out in], L.weight_scale [out 1], [1] or [out groups];
                                              static inputs: L.input_scale [1], asymmetric ones L.input_zero_point int8 [1]
    pack-quantized    int weights only        L.weight_packed int32 [out ceil(in bits / 32)], L.weight_scale, L.weight_shape int64 [2]
    float-quantized   fp8 weights             L.weight float8_e4m3fn, L.weight_scale [out 1] or [1]

A packed row is one stream of bits, least significant first: level + 2^(bits - 1) of column k lies at bit k * bits.  A weight is level * scale,
multiplied in the type of the scale, which is the type of the model.  `ignore` names every other linear layer, so that no loader has to guess.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from skerry.anatomy.dense import Dense, dense_maps
from skerry.anatomy.model import Anatomy
from skerry.anatomy.resolve import resolve
from skerry.anatomy.watch import first_tensor
from skerry.errors import MissingExtra, NotPossible
from skerry.impact.quantize import Grid, observe, to_levels
from skerry.impact.scheme import Scheme, TensorSpec, check_group
from skerry.impact.simulate import Simulation
from skerry.tame.export_float import make_shell, write_float
from skerry.tame.export_form import Export, Prepared, dtype_of, in_dtype, write_tokenizer
from skerry.tame.readback import BOUNDS, Readback, fixed_ids, outputs_of, read_back

_FLOAT_INSTEAD = "; the float model can be exported: form 'float'"


class Stored(NamedTuple):
    """One map as the checkpoint holds it.

    Attributes:
        tensors: Name below the module to tensor.
        weight: What a loader computes from them, [out in], in the type of the model.
        inputs: The static grid of what it reads, as a loader has it.
    """

    tensors: dict[str, Tensor]
    weight: Tensor
    inputs: Grid | None


class Plan(NamedTuple):
    """What a quantized checkpoint will hold.

    Attributes:
        maps: Name of the module to what is stored of it.
        config: The `quantization_config` of config.json.
    """

    maps: dict[str, Stored]
    config: dict[str, Any]

    def simulation(self, scheme: Scheme) -> Simulation:
        """Our own quantized model, with the weights and grids that a loader computes."""
        grids = {name: s.inputs for name, s in self.maps.items() if s.inputs is not None}
        weights = {name: s.weight for name, s in self.maps.items()}
        return Simulation(scheme, grids=grids, weights=weights, only=frozenset(self.maps))

    def num_bytes(self, floats: int) -> int:
        """Size of all tensors, from the size of the float ones."""
        sizes = (
            sum(t.numel() * t.element_size() for t in s.tensors.values())
            - s.weight.numel() * s.weight.element_size()
            for s in self.maps.values()
        )
        return floats + sum(sizes)

    def state(self, floats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the whole checkpoint, from the float ones."""
        state = dict(floats)
        for name, stored in self.maps.items():
            del state[f"{name}.weight"]
            state.update({f"{name}.{key}": t for key, t in stored.tensors.items()})
        return state


def make_plan(
    anatomy: Anatomy,
    scheme: Scheme,
    *,
    weights: Mapping[str, tuple[Tensor, Grid]],
    input_grids: Mapping[str, Grid],
    only: Iterable[str] | None = None,
) -> Plan:
    """Turn fake-quantized weights into what is stored.

    Args:
        anatomy: The model.
        scheme: Weights, and perhaps inputs.
        weights: Map to fake-quantized weight [out in] and its grid; maps that are not named are rounded to nearest.
        input_grids: Map to the static grid of its input.
        only: Names of the maps that are quantized; all by default.

    Raises:
        NotPossible: The scheme, or a map's storage, is something that the format or transformers' reader cannot express.
    """
    spec = refuse_scheme(scheme)
    wanted = None if only is None else frozenset(only)
    maps = [d for d in dense_maps(anatomy) if wanted is None or d.name in wanted]
    packed = scheme.inputs is None and spec.format.is_integer
    _refuse_maps(maps, wanted, weights, spec, packed=packed)
    stored = {}
    for dense in maps:
        dtype = dense.parameter.dtype
        given, grid = weights.get(dense.name) or (dense.weight, observe(dense.weight, spec))
        tensors, weight = _store(given, grid, spec, dtype, packed=packed)
        # What was found elsewhere may differ from what is stored by the rounding of its scale to the model's type, and by nothing else.
        rounding = 4 * torch.finfo(dtype).eps
        if dense.name in weights and not torch.allclose(
            weight.double(), given.double(), rtol=rounding, atol=0.0
        ):
            raise NotPossible(
                f"the quantized weight of {dense.name} does not lie on its grid, so no level stands for it"
            )
        inputs = None
        if scheme.inputs is not None and not scheme.inputs.dynamic:
            inputs = _static_inputs(dense.name, input_grids, dtype)
            tensors["input_scale"] = inputs.scale.reshape(1)
            if not scheme.inputs.symmetric:
                tensors["input_zero_point"] = inputs.zero_point.to(torch.int8).reshape(1)
        stored[dense.name] = Stored(tensors, weight, inputs)
    return Plan(stored, _config(anatomy, scheme, set(stored)))


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


def prepare_compressed(export: Export, _form: str) -> Prepared:
    """Everything that must be known before a quantized checkpoint is written.

    Args:
        export: What is written; it has a scheme.

    Raises:
        NotPossible: The format, its reader, or a class of transformers cannot hold it.
        MissingExtra: compressed-tensors, which transformers needs to read it back, is not installed.
    """
    scheme = export.scheme
    assert scheme is not None
    refuse_scheme(scheme)
    if importlib.util.find_spec("compressed_tensors") is None:
        raise MissingExtra(
            'transformers cannot read a quantized export back without compressed-tensors: pip install "skerry[compressed]"'
        )
    model = in_dtype(export.model, export.dtype)
    shell = make_shell(model, config_changes=export.config_changes, becomes=export.becomes)
    anatomy = resolve(model)
    plan = make_plan(
        anatomy, scheme, weights=export.weights, input_grids=export.input_grids, only=export.only
    )
    ids = fixed_ids(model)
    with _axes_read(anatomy, plan.maps) as axes, plan.simulation(scheme).open(anatomy):
        expected = outputs_of(model, ids)
    refuse_flat_inputs(model, scheme, axes)

    def write(folder: Path) -> list[str]:
        shell.model.config.quantization_config = plan.config
        notes = write_float(shell, folder, state=plan.state(shell.model.state_dict()))
        write_tokenizer(export.tokenizer, folder)
        return notes

    def read(folder: Path) -> Readback:
        bound = BOUNDS.get(dtype_of(model), BOUNDS[torch.float32])
        return read_back(folder, model, expected, ids=ids, bound=bound, tokenizer=export.tokenizer)

    return Prepared(plan.num_bytes(shell.num_bytes), write, read, shell.changes)


@contextmanager
def _axes_read(anatomy: Anatomy, names: Iterable[str]) -> Iterator[dict[str, int]]:
    """The number of axes of what maps read, while open."""
    axes: dict[str, int] = {}
    wanted = set(names)

    def noting(name: str) -> Any:
        def note(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            if (x := first_tensor(args, kwargs)) is not None:
                axes[name] = x.dim()

        return note

    with ExitStack() as stack:
        for dense in dense_maps(anatomy):
            if dense.name in wanted:
                handle = dense.module.register_forward_pre_hook(noting(dense.name), with_kwargs=True)
                stack.callback(handle.remove)
        yield axes


def pack(levels: Int[Tensor, "row column"], bits: int) -> Int[Tensor, "row word"]:
    """Signed levels of b bits as one stream of 32-bit words per row, least significant bits first, zeros behind the end."""
    rows, columns = levels.shape
    unsigned = levels.to(torch.int64) + (1 << (bits - 1))
    stream = (unsigned[..., None] >> torch.arange(bits)) & 1
    stream = stream.reshape(rows, columns * bits)
    stream = nn.functional.pad(stream, (0, -stream.shape[1] % 32)).reshape(rows, -1, 32)
    words = (stream << torch.arange(32)).sum(-1)
    # A word with its last bit set is negative as int32.
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def _refuse_maps(
    maps: list[Dense],
    wanted: frozenset[str] | None,
    weights: Mapping[str, Any],
    spec: TensorSpec,
    *,
    packed: bool,
) -> None:
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
                f"only: name the other maps with `only`{_FLOAT_INSTEAD}"
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


def _store(
    given: Tensor, grid: Grid, spec: TensorSpec, dtype: torch.dtype, *, packed: bool
) -> tuple[dict[str, Tensor], Tensor]:
    rows, columns = given.shape
    levels = to_levels(given, spec, grid).reshape(rows, columns)
    scale = grid.scale.detach().to(dtype)
    if spec.granularity == "group":
        scale = scale.reshape(rows, -1)
        per_entry = scale.repeat_interleave(columns // scale.shape[1], 1)
    else:
        scale = scale.reshape(rows, 1) if spec.granularity == "channel" else scale.reshape(1)
        per_entry = scale
    weight = levels.to(dtype) * per_entry
    tensors = {"weight_scale": scale.contiguous()}
    if packed:
        tensors["weight_packed"] = pack(levels, spec.format.bits)
        tensors["weight_shape"] = torch.tensor([rows, columns])
    else:
        kind = torch.int8 if spec.format.is_integer else torch.float8_e4m3fn
        tensors["weight"] = levels.to(kind).contiguous()
    return tensors, weight


def _static_inputs(name: str, grids: Mapping[str, Grid], dtype: torch.dtype) -> Grid:
    """The grid as a loader will have it: one scale, in the type of the model."""
    if name not in grids:
        raise NotPossible(f"inputs are static and {name} has no grid: calibrate before the export")
    return Grid(*(t.detach().to(dtype).reshape(1, 1) for t in grids[name]))


def _config(anatomy: Anatomy, scheme: Scheme, quantized: set[str]) -> dict[str, Any]:
    w, x = scheme.weights, scheme.inputs
    assert w is not None
    layout = (
        "float-quantized" if not w.format.is_integer else "pack-quantized" if x is None else "int-quantized"
    )
    ignore = [
        name
        for name, m in anatomy.model.named_modules()
        if isinstance(m, nn.Linear) and name not in quantized
    ]
    # Experts become Linear modules on disk, so that a class name would mean them too.
    targets = sorted(quantized) if anatomy.experts else ["Linear"]
    group = {
        "targets": targets,
        "weights": _arguments(w, dynamic=False),
        "input_activations": None if x is None else _arguments(x, dynamic=x.dynamic),
        "output_activations": None,
        "format": layout,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ignore,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _arguments(spec: TensorSpec, *, dynamic: bool) -> dict[str, Any]:
    return {
        "num_bits": spec.format.bits,
        "type": "int" if spec.format.is_integer else "float",
        "symmetric": spec.symmetric,
        "strategy": spec.granularity,
        "group_size": spec.group_size,
        "dynamic": dynamic,
    }
