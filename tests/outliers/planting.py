"""Outliers planted into a model without changing what it computes: known answers for the detectors.

    gain    norm gain and bias of channel c times f, column c of every matrix that reads the norm divided by f
    shift   norm bias of channel c plus s, and b - s W[:, c] in every reader (LayerNorm models)
    neuron  row j of up (and its bias) times f, column j of down divided by f; exact behind ReLU and in gated feed-forwards
    value   row r of v (and its bias) times f, the columns of o that the head's copies of r meet divided by f; exact in every family

BERT is post-norm: its norms feed the shortcut too, so only `value` leaves it alone. GELU is not homogeneous, so `neuron` is for llama and
opt. `planted` checks that the logits stay the same in float64.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .naive import _BLOCKS, family_of

KINDS = {
    "llama": ("gain", "neuron", "value"),
    "gpt2": ("gain", "shift", "value"),
    "opt": ("gain", "shift", "neuron", "value"),
    "bert": ("value",),
    "gpt_neox": ("gain", "shift", "value"),
}


@dataclass(frozen=True)
class Planting:
    """What was planted.

    Attributes:
        kind: `gain`, `shift`, `neuron` or `value`.
        layer: Block.
        norm: `attn` or `mlp`, for norms.
        channel: Channel of the norm, neuron, or row of v.
        factor: How many times the site's typical channel the planted one reaches; negative shifts are negative.
    """

    kind: str
    layer: int
    channel: int
    factor: float
    norm: str = "attn"

    def sites(self, model: Any) -> set[tuple[int, str, int]]:
        """Where a scan must find it: layer, site, channel."""
        n, c = self.layer, self.channel
        if self.kind in ("gain", "shift"):
            return {(n, f"{self.norm}.in", c)}
        if self.kind == "neuron":
            return {(n, "mlp.up", c), (n, "mlp.down.in", c)}
        return {(n, "attn.v", c)} | {(n, "attn.mix", m) for m in _copies(model, c)}

    def weights(self, model: Any) -> set[tuple[int, str, str, int]]:
        """Which rows and columns grew: layer, site, axis, index."""
        n, c = self.layer, self.channel
        if self.kind == "gain":
            places = {(n, f"norm.{self.norm}", "column", c)}
            has_bias = family_of(model) != "llama"
            return places | ({(n, f"norm.{self.norm}.bias", "column", c)} if has_bias else set())
        if self.kind == "shift":
            return {(n, f"norm.{self.norm}.bias", "column", c)}
        return {(n, "w.up" if self.kind == "neuron" else "w.v", "row", c)}


def _copies(model: Any, row: int) -> list[int]:
    """Columns of the output projection that row `row` of v meets: one per query head of its group."""
    heads = model.config.num_attention_heads
    kv_heads = getattr(model.config, "num_key_value_heads", None) or heads
    size = getattr(model.config, "head_dim", None) or model.config.hidden_size // heads
    head, place = divmod(row, size)
    group = heads // kv_heads
    return [h * size + place for h in range(head * group, (head + 1) * group)]


class Rows:
    """A linear layer, or some of its outputs, as [output, input] whatever its storage."""

    def __init__(self, weight: Tensor, bias: Tensor | None, outputs: Tensor | slice = slice(None)) -> None:
        self.weight, self.bias, self.outputs = weight, bias, outputs

    def scale_column(self, column: int, factor: float) -> None:
        self.weight[:, column] *= factor

    def shift_column(self, column: int, amount: float) -> None:
        self.bias -= amount * self.weight[:, column]

    def row(self, index: int) -> int:
        return index if isinstance(self.outputs, slice) else int(self.outputs[index])

    def scale_row(self, index: int, factor: float) -> None:
        self.weight[self.row(index)] *= factor
        if self.bias is not None:
            self.bias[self.row(index)] *= factor


def _linear(module: nn.Module, outputs: Tensor | slice = slice(None)) -> Rows:
    """nn.Linear holds [output, input], Conv1D [input, output]; a view either way."""
    weight = module.weight if isinstance(module, nn.Linear) else module.weight.T
    return Rows(weight, module.bias, outputs)


def _make_bias(module: nn.Module) -> nn.Module:
    if module.bias is None:
        module.bias = nn.Parameter(torch.zeros(module.out_features, dtype=module.weight.dtype))
    return module


def _parts(model: Any, layer: int) -> dict[str, Any]:
    """The modules of a block: norms with their readers, v, o, up, down."""
    family = family_of(model)
    block = model.get_submodule(_BLOCKS[family])[layer]
    width, heads = model.config.hidden_size, model.config.num_attention_heads
    if family == "llama":
        a, m = block.self_attn, block.mlp
        return {"attn": (block.input_layernorm, [a.q_proj, a.k_proj, a.v_proj]), "mlp": (block.post_attention_layernorm, [m.gate_proj, m.up_proj]),
                "v": _linear(a.v_proj), "o": a.o_proj, "up": _linear(m.up_proj), "down": m.down_proj}  # fmt: skip
    if family == "gpt2":
        a, m = block.attn, block.mlp
        return {"attn": (block.ln_1, [a.c_attn]), "mlp": (block.ln_2, [m.c_fc]), "v": _linear(a.c_attn, torch.arange(2 * width, 3 * width)), "o": a.c_proj}  # fmt: skip
    if family == "opt":
        a = block.self_attn
        return {"attn": (block.self_attn_layer_norm, [a.q_proj, a.k_proj, a.v_proj]), "mlp": (block.final_layer_norm, [block.fc1]),
                "v": _linear(a.v_proj), "o": a.out_proj, "up": _linear(block.fc1), "down": block.fc2}  # fmt: skip
    if family == "gpt_neox":
        a = block.attention
        v = torch.arange(3 * width).reshape(heads, 3, -1)[:, 2].flatten()
        return {"attn": (block.input_layernorm, [a.query_key_value]), "mlp": (block.post_attention_layernorm, [block.mlp.dense_h_to_4h]),
                "v": _linear(a.query_key_value, v), "o": a.dense}  # fmt: skip
    return {"v": _linear(block.attention.self.value), "o": block.attention.output.dense}


@torch.no_grad()
def plant(model: Any, planting: Planting, typical: float, own: float) -> Any:
    """A copy of the model with one outlier that changes nothing it computes.

    Args:
        model: A model of one of the families.
        planting: What and where.
        typical: Largest |x| of the site's median channel.
        own: Largest |x| of the channel as it is.
    """
    model = copy.deepcopy(model)
    parts, c = _parts(model, planting.layer), planting.channel
    factor = planting.factor * typical / own
    if planting.kind in ("gain", "shift"):
        norm, readers = parts[planting.norm]
        if planting.kind == "gain":
            norm.weight[c] *= factor
            if getattr(norm, "bias", None) is not None:
                norm.bias[c] *= factor
            for reader in readers:
                _linear(reader).scale_column(c, 1 / factor)
        else:
            norm.bias[c] += planting.factor * typical
            for reader in readers:
                _linear(_make_bias(reader)).shift_column(c, planting.factor * typical)
    elif planting.kind == "neuron":
        parts["up"].scale_row(c, factor)
        _linear(parts["down"]).scale_column(c, 1 / factor)
    else:
        parts["v"].scale_row(c, factor)
        for copy_of in _copies(model, c):
            _linear(parts["o"]).scale_column(copy_of, 1 / factor)
    return model


def same_function(before: Any, after: Any, input_ids: Tensor) -> float:
    """Largest difference of the logits, relative to the largest logit."""
    with torch.no_grad():
        a, b = before(input_ids=input_ids).logits, after(input_ids=input_ids).logits
    return float((a - b).abs().max() / a.abs().max())
