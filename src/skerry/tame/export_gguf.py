"""One GGUF file for llama.cpp, in f16, q8_0 or q4_0, written with the `gguf` package and read back by transformers.

    q8_0    32 values share a float16 scale d = max|x| / 127;  x' = d * q,  q in [-127, 127]
    q4_0    32 values share d = (value of largest |x|) / -8;   x' = d * (q - 8),  q in [0, 15]

Vectors are stored as float32, matrices whose rows are no multiple of 32 as f16.  Which architectures the file can state, which settings its
header holds and whether queries and keys are stored with their rotary halves interleaved is read from transformers' own tables, so that
writer and reader cannot disagree.  Only gated blocks with separate q, k and v are written: of others llama.cpp expects tensors that
transformers' tables do not describe.

The file holds no vocabulary: which pre-tokenizer llama.cpp must use is in its own converter only.
"""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from skerry.anatomy.hush import hushed
from skerry.errors import MissingExtra, NotPossible
from skerry.tame.export_float import Shell, make_shell
from skerry.tame.export_form import Export, Prepared, write_tokenizer
from skerry.tame.readback import BOUNDS, Readback, fixed_ids, outputs_of, read_back

_TYPES = {"gguf-f16": "F16", "gguf-q8_0": "Q8_0", "gguf-q4_0": "Q4_0"}
_KNOWN = re.compile(
    r"(token_embd|output|output_norm|blk\.\d+\.(attn_(q|k|v|output|norm|q_norm|k_norm)|ffn_(gate|up|down|norm)))\.(weight|bias)"
)
_ROPE = "rope_theta"


class _Layout(NamedTuple):
    """How an architecture is written: its name in the file, header keys to settings, and whether q and k are interleaved."""

    name: str
    header: dict[str, str]
    interleaved: bool


def prepare_gguf(export: Export, form: str) -> Prepared:
    """Everything that must be known before a GGUF file is written; the scheme of the export is left out.

    Args:
        export: What is written.
        form: `gguf-f16`, `gguf-q8_0` or `gguf-q4_0`.

    Raises:
        MissingExtra: gguf, or accelerate, with which transformers reads it, is not installed.
        NotPossible: The file cannot state this architecture, or one of its settings or tensors.
    """
    lacking = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if lacking:
        raise MissingExtra(
            f'a GGUF file cannot be written and read back without {" and ".join(lacking)}: pip install "skerry[gguf]"'
        )
    shell, layout = _shell(export)
    config = shell.model.config
    header = {key: _setting(config, setting) for key, setting in layout.header.items()}
    named = _named_tensors(shell, layout)
    notes: list[str] = []
    tensors = {name: _encode(name, t, _TYPES[form], notes) for name, t in named.items()}
    ids = fixed_ids(export.model)
    with_rounded = _rounded(export.model, shell, layout, tensors)
    expected = outputs_of(with_rounded, ids)
    file_name = f"model-{_TYPES[form].lower()}.gguf"

    def write(folder: Path) -> list[str]:
        _write(folder / file_name, layout.name, header, tensors, export.card.name, _TYPES[form])
        write_tokenizer(export.tokenizer, folder)
        return [
            *notes,
            "the file holds weights and settings but no vocabulary; for text, give llama.cpp's convert_hf_to_gguf.py the float export",
        ]

    def read(folder: Path) -> Readback:
        return read_back(
            folder,
            with_rounded,
            expected,
            ids=ids,
            bound=BOUNDS[torch.float32],
            architecture=type(shell.model).__name__,
            options={"gguf_file": file_name, "dtype": "float32"},
        )

    return Prepared(sum(data.nbytes for data, _ in tensors.values()), write, read, shell.changes)


def _shell(export: Export) -> tuple[Shell, _Layout]:
    """The model as a class that the file can state.

    Raises:
        NotPossible: There is none.
    """
    from gguf import MODEL_ARCH_NAMES
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, LlamaTensorProcessor
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config: Any = export.model.config
    known: dict[str, dict[str, Any]] = GGUF_CONFIG_MAPPING  # type: ignore[assignment]
    own = export.becomes or getattr(config, "model_type", "")
    named = set(MODEL_ARCH_NAMES.values())
    plain = [
        name
        for name in GGUF_CONFIG_MAPPING
        if name in named
        and name in CONFIG_MAPPING
        and TENSOR_PROCESSORS.get(name) in (None, LlamaTensorProcessor)
    ]
    # A type with a header of its own but no name in the file is stored under another that has its tensors and settings.
    known_elsewhere = own in GGUF_CONFIG_MAPPING and own not in named
    candidates = [own] if own in plain else plain if known_elsewhere else []
    why = f"GGUF has no plain layout for {own!r} (there are {', '.join(plain)})"
    for name in candidates:
        try:
            shell = make_shell(export.model, config_changes=export.config_changes, becomes=name)
        except NotPossible as error:
            if name in (own, candidates[0]):
                why = str(error)
            continue
        header = {key: setting for key, setting in known[name].items() if setting not in (None, -1)}
        return shell, _Layout(name, header, TENSOR_PROCESSORS.get(name) is LlamaTensorProcessor)
    raise NotPossible(f"{type(export.model).__name__} cannot be exported to GGUF: {why}")


def _setting(config: Any, name: str) -> Any:
    if name == _ROPE:
        rope = getattr(config, "rope_parameters", None) or {}
        if rope.get("rope_type", "default") != "default":
            raise NotPossible(
                f"rotary embeddings of type {rope['rope_type']!r} have no place in a GGUF header that transformers reads back"
            )
        return float(rope.get(_ROPE, 10000.0))
    value = getattr(config, name, None)
    if value is None and name == "head_dim":
        value = config.hidden_size // config.num_attention_heads
    return value


def _named_tensors(shell: Shell, layout: _Layout) -> dict[str, Tensor]:
    """GGUF name to tensor, as llama.cpp wants them.

    Raises:
        NotPossible: A tensor has no name there, or the header cannot state it.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    model, config = shell.model, shell.model.config
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == layout.name)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    kind = type(model).__name__
    heads = _heads(config) if layout.interleaved else {}
    found: dict[str, Tensor] = {}
    for name, t in model.state_dict().items():
        if getattr(config, "tie_word_embeddings", False) and name == "lm_head.weight":
            continue
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new is None or not _KNOWN.fullmatch(new):
            raise NotPossible(
                f"{kind} cannot be exported to GGUF: {name} ({new or 'no name there'}) is not part of a gated block with separate q, k and v"
            )
        part = new.split(".")[-2]
        found[new] = _interleave(t, heads[part]) if part in heads else t
    if not any("ffn_gate" in name for name in found):
        raise NotPossible(f"{kind} cannot be exported to GGUF: its blocks have no gate")
    _check_header(model, layout)
    return found


def _check_header(model: Any, layout: _Layout) -> None:
    """Refuse what a reader would not expect from the header alone: it would drop a bias, or fail on a shape.

    Raises:
        NotPossible: There is such a tensor.
    """
    kind, config = type(model), model.config
    settings = {s: getattr(config, s, None) for s in layout.header.values() if s != _ROPE}
    with torch.device("meta"), hushed():
        # The vocabulary may be smaller than the class's own special tokens.
        bare = type(config)(**settings, pad_token_id=None, bos_token_id=None, eos_token_id=None)
        foreseen = {key: t.shape for key, t in kind(bare).state_dict().items()}
    for name, t in model.state_dict().items():
        if name not in foreseen:
            raise NotPossible(
                f"{kind.__name__} cannot be exported to GGUF: the header cannot state that {name} is there, so a reader would drop it; "
                "leave out the methods that make this bias"
            )
        if foreseen[name] != t.shape:
            raise NotPossible(
                f"{kind.__name__} cannot be exported to GGUF: {name} is {list(t.shape)}, and from the header that transformers knows a "
                f"reader expects {list(foreseen[name])}"
            )


def _heads(config: Any) -> dict[str, int]:
    """GGUF part to its number of heads, of what is rotated."""
    return {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}


def _interleave(t: Tensor, heads: int) -> Tensor:
    """Rows of a head from (first halves, second halves) to pairs: transformers rotates halves, ggml rotates neighbours."""
    rest = t.shape[1:]
    return t.reshape(heads, 2, -1, *rest).transpose(1, 2).reshape(-1, *rest)


def _uninterleave(t: Tensor, heads: int) -> Tensor:
    rest = t.shape[1:]
    return t.reshape(heads, -1, 2, *rest).transpose(1, 2).reshape(-1, *rest)


def _encode(name: str, t: Tensor, wanted: str, notes: list[str]) -> tuple[np.ndarray, Any]:
    """The stored numbers and their type."""
    from gguf import GGMLQuantizationType, quants

    x = t.detach().float().cpu().contiguous().numpy()
    if x.ndim < 2:
        return x, GGMLQuantizationType.F32
    if wanted != "F16" and x.shape[1] % 32:
        notes.append(f"{name} is stored as f16: its rows of {x.shape[1]} values are no multiple of 32")
        wanted = "F16"
    if wanted == "F16" and np.abs(x).max(initial=0.0) > np.finfo(np.float16).max:
        notes.append(f"{name} is stored as f32: it has values that float16 cannot hold")
        wanted = "F32"
    kind = GGMLQuantizationType[wanted]
    return quants.quantize(x, kind), kind


def _rounded(
    model: nn.Module, shell: Shell, layout: _Layout, tensors: Mapping[str, tuple[np.ndarray, Any]]
) -> nn.Module:
    """A float32 copy of our model with the values that the file holds."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map, quants

    config = shell.model.config
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == layout.name)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    heads = _heads(config) if layout.interleaved else {}
    rounded = copy.deepcopy(model).float()
    state = rounded.state_dict()
    with torch.no_grad():
        for name, place in state.items():
            new = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if new is None or new not in tensors:  # a tied head follows its embedding
                continue
            data, kind = tensors[new]
            values = torch.from_numpy(np.array(quants.dequantize(data, kind), dtype=np.float32))
            part = new.split(".")[-2]
            if part in heads:
                values = _uninterleave(values, heads[part])
            place.copy_(values.reshape(place.shape))
    return rounded


def _write(
    path: Path,
    arch: str,
    header: Mapping[str, Any],
    tensors: Mapping[str, tuple[np.ndarray, Any]],
    name: str,
    kind: str,
) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, arch)
    try:
        writer.add_name(name)
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_tokenizer_model("no_vocab")
        for key, value in header.items():
            if value is None:
                continue
            add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(f"{arch}.{key}", value)
        for tensor, (data, raw) in tensors.items():
            writer.add_tensor(tensor, data, raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
