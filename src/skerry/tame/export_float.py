"""The tamed model as an ordinary checkpoint: a class of transformers, its configuration, and our tensors under its names.

The target class is built from the changed configuration on the meta device, so that its names and shapes are known before anything is
written.  A bias that it has and we have not is filled with zeros; a tensor that we have and it has not is a refusal.  Where our model has
biases that its configuration does not declare, flags of the configuration (`attention_bias`, `mlp_bias`, ...) are tried one by one.
Weight names on disk are transformers' own business: `save_pretrained` of the target class turns fused experts back into what it reads.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from skerry.anatomy.hush import hushed
from skerry.errors import NotPossible, UnknownOption, near_matches
from skerry.tame.export_form import Export, Prepared, dtype_of, in_dtype, write_tokenizer
from skerry.tame.readback import BOUNDS, Readback, fixed_ids, outputs_of, read_back, relative_error

# Settings that another class may lack without computing anything else, with the values for which that is so.
_INERT: dict[str, tuple[Any, ...]] = {"max_window_layers": (), "layer_types": (), "pretraining_tp": (1,)}
_NAMES = {"model_type", "architectures", "transformers_version", "_name_or_path", "dtype", "torch_dtype"}


class Shell(NamedTuple):
    """A model of the target class that holds our tensors; what is not saved is on the meta device.

    Attributes:
        model: To be saved, not run.
        changes: Settings of the configuration that differ from the model's own.
        filled: Biases of zeros that the target class has and our model has not.
    """

    model: Any
    changes: dict[str, Any]
    filled: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Size of all tensors; shared ones count once."""
        tensors = {t.data_ptr(): t for t in self.model.state_dict().values()}
        return sum(t.numel() * t.element_size() for t in tensors.values())


def make_shell(
    model: nn.Module,
    *,
    config_changes: Mapping[str, Any] | None = None,
    becomes: str | None = None,
) -> Shell:
    """The model as a class of transformers will read it; nothing is copied.

    Args:
        model: The tamed model; it is left as it is.
        config_changes: Settings that the taming changed.
        becomes: Model type to export as, where the own class has no place for a bias; None keeps the class.

    Raises:
        NotPossible: It is no model of transformers, or has tensors that the target class has no place for.
        UnknownOption: No such model type.
    """
    _check_kind(model)
    config: Any = copy.deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)
    config._name_or_path = ""
    changes = dict(config_changes or {})
    if _has_untied_head(model) and getattr(config, "tie_word_embeddings", False):
        changes.setdefault("tie_word_embeddings", False)
    kind: Any = type(model)
    if becomes is not None and becomes != config.model_type:
        kind, config, dropped = _become(model, config, becomes)
        changes.update(dropped)
    for key, value in changes.items():
        setattr(config, key, value)
    ours = {name: t.detach() for name, t in model.state_dict().items()}
    target, flags = _fit(kind, config, ours)
    changes.update(flags)
    filled = tuple(sorted(set(target.state_dict()) - set(ours)))
    for name in filled:
        ours[name] = torch.zeros(target.state_dict()[name].shape, dtype=dtype_of(model))
    if not getattr(target.config, "tie_word_embeddings", False):
        _untie(ours)
    target.load_state_dict(ours, assign=True)
    target.tie_weights()
    if getattr(model, "generation_config", None) is not None and target.can_generate():
        target.generation_config = copy.deepcopy(model.generation_config)
    return Shell(target.eval(), changes, filled)


def prepare_float(export: Export, _form: str) -> Prepared:
    """Everything that must be known before an ordinary checkpoint is written.

    Args:
        export: What is written; its scheme is left out.

    Raises:
        NotPossible: No class of transformers can hold the model.
    """
    model = in_dtype(export.model, export.dtype)
    shell = make_shell(model, config_changes=export.config_changes, becomes=export.becomes)
    ids = fixed_ids(model)
    expected = outputs_of(model, ids)
    error = 0.0 if model is export.model else relative_error(expected, outputs_of(export.model, ids))

    def write(folder: Path) -> list[str]:
        notes = write_float(shell, folder)
        write_tokenizer(export.tokenizer, folder)
        return notes

    def read(folder: Path) -> Readback:
        bound = BOUNDS.get(dtype_of(model), BOUNDS[torch.float32])
        return read_back(folder, model, expected, ids=ids, bound=bound, tokenizer=export.tokenizer)

    return Prepared(shell.num_bytes, write, read, shell.changes, error)


def write_float(shell: Shell, folder: Path, *, state: Mapping[str, Tensor] | None = None) -> list[str]:
    """Write configuration and weights.

    Args:
        shell: See `make_shell`.
        folder: Exists.
        state: Other tensors than the shell's own, under the names of the model.

    Returns:
        What a reader should know, one line each.
    """
    notes: list[str] = []
    settings = getattr(shell.model, "generation_config", None)
    if settings is not None:
        try:
            settings.validate(strict=True)
        except ValueError as error:
            notes.append(
                f"the generation settings of the source are invalid and were left out: {str(error).splitlines()[0]}"
            )
            shell.model.generation_config = type(settings)()
    with hushed():
        shell.model.save_pretrained(
            folder, max_shard_size="5GB", **({} if state is None else {"state_dict": dict(state)})
        )
    return notes


def _check_kind(model: nn.Module) -> None:
    import transformers

    name = type(model).__name__
    if not isinstance(model, transformers.PreTrainedModel):
        raise NotPossible(
            f"{name} is not a model of transformers: there is no class that could load its checkpoint; save its state_dict with "
            "safetensors instead"
        )
    if not type(model).__module__.startswith("transformers."):
        raise NotPossible(
            f"{name} is defined in {type(model).__module__}: plain transformers cannot load it; export the class of transformers that it "
            "stands for"
        )
    if getattr(model, "hf_quantizer", None) is not None or any(
        not p.is_floating_point() for p in model.parameters()
    ):
        raise NotPossible(
            f"{name} was loaded quantized: its weights are packed; load the float checkpoint and tame that"
        )


def _has_untied_head(model: Any) -> bool:
    try:
        embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return False
    return embed is not None and head is not None and embed.weight.data_ptr() != head.weight.data_ptr()


def _untie(ours: dict[str, Tensor]) -> None:
    """Give every name numbers of its own; a file cannot hold one tensor under two names."""
    seen: set[tuple[int, int]] = set()
    for name, t in ours.items():
        key = (t.data_ptr(), t.numel())
        if t.numel() and not t.is_meta and key in seen:
            ours[name] = t.clone()
        seen.add(key)


def _become(model: Any, config: Any, model_type: str) -> tuple[Any, Any, dict[str, Any]]:
    """Class and configuration of another model type with the same settings.

    Raises:
        UnknownOption: No such type.
        NotPossible: It has no class for this task, or no word for a setting that matters.
    """
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        near = near_matches(model_type, list(CONFIG_MAPPING.keys()))
        raise UnknownOption(
            f"{model_type!r} is not a model type of transformers{f'; did you mean {near}?' if near else ''}"
        )
    config_class = CONFIG_MAPPING[model_type]
    kind = next(
        (
            auto._model_mapping[config_class]
            for name in ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModel")
            if (auto := getattr(transformers, name))._model_mapping.get(type(config), None) is type(model)
            and config_class in auto._model_mapping
        ),
        None,
    )
    if kind is None:
        raise NotPossible(
            f"{type(model).__name__} cannot be exported as {model_type}: it has no class of the same task"
        )
    with hushed():  # the defaults of some classes contradict each other
        old, known = config.to_dict(), config_class().to_dict()
    for key in sorted(set(old) - set(known) - _NAMES):
        if not _is_inert(key, old[key]):
            raise NotPossible(
                f"{type(model).__name__} cannot be exported as {kind.__name__}: that class has no word for {key}={old[key]!r}"
            )
    new = config_class(**{key: value for key, value in old.items() if key in known and key not in _NAMES})
    new._attn_implementation = config._attn_implementation
    return kind, new, {"model_type": model_type}


def _is_inert(key: str, value: Any) -> bool:
    if value is None or value is False:
        return True
    if "dropout" in key:  # no part of evaluation
        return True
    if key == "layer_types":
        return set(value) <= {"full_attention"}
    return key in _INERT and (not _INERT[key] or value in _INERT[key])


def _build(kind: Any, config: Any) -> Any:
    with torch.device("meta"), hushed():
        return kind(copy.deepcopy(config))


def _fit(kind: Any, config: Any, ours: Mapping[str, Tensor]) -> tuple[Any, dict[str, Any]]:
    """The target class with places for all our tensors, and the flags that it took.

    Raises:
        NotPossible: There is no such place, or a weight that we have not.
    """
    flags: dict[str, Any] = {}
    target = _build(kind, config)
    homeless = _homeless(target, ours)
    if homeless and all(name.endswith("bias") for name in homeless):
        for flag in _bias_flags(config):
            trial = copy.deepcopy(config)
            setattr(trial, flag, True)
            candidate = _build(kind, trial)
            if len(_homeless(candidate, ours)) < len(homeless) and not _lacking(candidate, ours):
                config, target, homeless = trial, candidate, _homeless(candidate, ours)
                flags[flag] = True
    name = kind.__name__
    if homeless:
        raise NotPossible(
            f"{name} has no place for {_some(homeless)}; taming made what the class cannot hold. Export as a class that can "
            "(`becomes`), or leave the methods out that shift these maps"
        )
    if lacking := _lacking(target, ours):
        raise NotPossible(f"{name} needs {_some(lacking)}, and the model has none")
    shapes = {key: t.shape for key, t in target.state_dict().items()}
    if wrong := [key for key, t in ours.items() if shapes[key] != t.shape]:
        raise NotPossible(
            f"{name}: {wrong[0]} is {list(ours[wrong[0]].shape)} and the configuration says {list(shapes[wrong[0]])}"
        )
    return target, flags


def _homeless(target: Any, ours: Mapping[str, Tensor]) -> list[str]:
    there = set(target.state_dict())
    return [name for name in ours if name not in there]


def _lacking(target: Any, ours: Mapping[str, Tensor]) -> list[str]:
    """Tensors of the target that we have not and that are not biases, which zeros stand for."""
    return [name for name in target.state_dict() if name not in ours and not name.endswith("bias")]


def _bias_flags(config: Any) -> list[str]:
    return [key for key, value in config.to_dict().items() if "bias" in key and not value]


def _some(names: list[str]) -> str:
    return f"{names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
