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

from skerry.anatomy.dense import dense_maps
from skerry.anatomy.model import Anatomy
from skerry.anatomy.resolve import resolve
from skerry.anatomy.watch import first_tensor
from skerry.errors import MissingExtra, NotPossible
from skerry.impact.quantize import Grid, observe, to_levels
from skerry.impact.scheme import Scheme, TensorSpec
from skerry.impact.simulate import Simulation
from skerry.tame.export_compressed_refuse import (
    refuse_flat_inputs,
    refuse_float_experts,
    refuse_maps,
    refuse_scheme,
)
from skerry.tame.export_float import make_shell, write_float
from skerry.tame.export_form import Export, Prepared, dtype_of, in_dtype, write_tokenizer
from skerry.tame.readback import BOUNDS, Readback, fixed_ids, outputs_of, read_back


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
    refuse_maps(maps, wanted, weights, spec, packed=packed)
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
    refuse_float_experts(anatomy, shell.model, scheme)
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
    unsigned = levels.cpu().to(torch.int64) + (1 << (bits - 1))
    stream = (unsigned[..., None] >> torch.arange(bits)) & 1
    stream = stream.reshape(rows, columns * bits)
    stream = nn.functional.pad(stream, (0, -stream.shape[1] % 32)).reshape(rows, -1, 32)
    words = (stream << torch.arange(32)).sum(-1)
    # A word with its last bit set is negative as int32.
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


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
