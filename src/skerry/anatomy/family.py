"""What one architecture calls its places: a declaration, no code that runs a model.

Paths are relative to a block; a path that begins with "/" is relative to the model without its head, one that begins with "//" to the
whole model. A part may name several candidates:
the first one that the block has is used (dense and expert layers of one model, optional norms).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from skerry.anatomy.splits import Dims, Split


@dataclass(frozen=True)
class Tap:
    """How to read an activation: the input or the output of a module, whole or in part."""

    module: str
    side: Literal["input", "output"]
    split: Split | None = None


def Input(module: str, split: Split | None = None) -> Tap:
    """What the module reads."""
    return Tap(module, "input", split)


def Output(module: str, split: Split | None = None) -> Tap:
    """What the module writes."""
    return Tap(module, "output", split)


@dataclass(frozen=True)
class Matrix:
    """How to read a parameter.

    Attributes:
        path: Parameter, e.g. `self_attn.q_proj.weight`. A `*` stands for all modules of a list, one behind the other.
        split: Piece of a fused projection, along its outputs.
        transposed: Stored [in, out] (Conv1D and some experts) instead of [out, in].
        experts: The parameter has a leading axis of experts.
        plus: Added to the values: a norm that multiplies by (1 + weight) has gain weight + 1.
    """

    path: str
    split: Split | None = None
    transposed: bool = False
    experts: bool = False
    plus: float = 0.0


Taps = Mapping[str, Tap | Sequence[Tap]]
Matrices = Mapping[str, Matrix | Sequence[Matrix]]


class BiasFormat(NamedTuple):
    """How a checkpoint of an architecture gets biases on its value and output projections.

    Attributes:
        settings: Changes of the configuration.
        becomes: Model type that has them, with the same parameter names, where the own one does not.
    """

    settings: Mapping[str, Any]
    becomes: str | None = None


@dataclass(frozen=True)
class Family:
    """Sites of one architecture.

    Attributes:
        name: Name of the family.
        model_types: `config.model_type` values that it covers.
        blocks: Path of the list of blocks from the base model.
        activations: Part to tap.
        weights: Part to matrix, inside a block.
        outer: Part to matrix, outside the blocks.
        head_in: Path from the base model of the module whose output the head reads (final norm); None when the blocks end the model.
        attention: Path of the module that computes scores and softmax; None without attention.
        experts: Path of the module that holds routed experts, if any block has one.
        shared_expert: Path of an expert that every token passes; it counts behind the routed experts.
        biases: How its checkpoint gets biases on v and o; None where it always has them or cannot have them.
        shortcuts: Post-norm blocks: of the sublayers `attn` and `mlp` the module that adds the shortcut, and the position of that argument.
        cannot: Seam (`norm.attn`, `v-o`, ..) to the changes that it cannot carry, `scale` or `shift`, with the reason; beside what its
            places say themselves.
        dims: Corrects the widths for a config, where they cannot be read under the usual names.
        adapt: Changes the declaration for a config (post-norm variants, fused variants).
    """

    name: str
    model_types: frozenset[str]
    blocks: str
    activations: Taps
    weights: Matrices
    outer: Matrices
    head_in: str | None = None
    attention: str | None = None
    experts: str | None = None
    shared_expert: str | None = None
    biases: BiasFormat | None = None
    shortcuts: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    cannot: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    dims: Callable[[Dims, Any], Dims] | None = field(default=None, compare=False)
    adapt: Callable[[Family, Any], Family] | None = field(default=None, compare=False)

    def for_config(self, config: Any) -> Family:
        """The declaration as it holds for this config."""
        return self if self.adapt is None else self.adapt(self, config)

    def but(self, **changes: Any) -> Family:
        """A copy with other fields; mappings are merged, a None value removes a part."""
        for name in ("activations", "weights", "outer"):
            if name in changes:
                merged = {**getattr(self, name), **changes[name]}
                changes[name] = {part: place for part, place in merged.items() if place is not None}
        return replace(self, **changes)
