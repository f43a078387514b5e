"""What a checkpoint cannot say is refused, with the reason and what to do instead, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping

from skerry.errors import NotPossible, UnknownOption, near_matches
from skerry.impact.simulate import Simulation

# What a model may need beside its weights while it runs -> why a checkpoint cannot carry it.
RUNTIME = {
    "online rotation": (
        "a rotation that is applied while the model runs has no place in a checkpoint: transformers 5.23 ignores `transform_config` and "
        "would compute another model without a warning. Use the rotations that are folded into weights only"
    ),
    "columns in full precision": (
        "input channels that stay in full precision (LLM.int8) have no place in compressed-tensors: a map has one number format"
    ),
    "rows in full precision": "tokens that stay in full precision have no place in compressed-tensors: a map has one number format",
    "entries in full precision": (
        "single weights that stay in full precision have no place in compressed-tensors: a map has one number format"
    ),
    "compensated shortcut": (
        "the shortcut past a sublayer is scaled and shifted back while the model runs, an operation that no checkpoint of a post-norm encoder "
        "has. Leave the post-norm seams out: with an output folder they are"
    ),
    "prefix tokens": "keys and values of a prefix are not part of a checkpoint: no loader would put them before the text",
    "clipping of inputs": (
        "no format states that the input of a map is clipped before it is rounded; with static inputs, give the clipped range as the "
        "static grid instead"
    ),
    "another model": (
        "a model of skerry's own decoder is loaded by skerry only, and no exchange format has its attention; `skerry retrofit` writes it"
    ),
    "permuted groups": "groups over permuted columns (act-order) were removed from compressed-tensors in 2026-08",
}
# Of these, what changes the float model too.
_ALSO_FLOAT = ("online rotation", "compensated shortcut", "another model")


def needs_of(simulation: Simulation) -> dict[str, str]:
    """What a simulated model needs that no checkpoint can state: kind of `RUNTIME` to where."""
    maps = {
        "columns in full precision": simulation.keep_columns,
        "rows in full precision": simulation.keep_above,
        "entries in full precision": simulation.keep_entries,
        "clipping of inputs": simulation.clip,
    }
    needs = {kind: _where(list(places)) for kind, places in maps.items() if places}
    if simulation.keep_positions:
        needs["prefix tokens"] = f"the first {simulation.keep_positions} positions"
    return needs


def _where(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def refuse_runtime(needs: Mapping[str, str], *, quantized: bool) -> None:
    """Refuse what only the running model has.

    Args:
        needs: Kind, one of `RUNTIME`, to where it is.
        quantized: Whether the quantized model is exported; a float checkpoint loses only online rotations.

    Raises:
        NotPossible: The target cannot express it.
        UnknownOption: A kind that nobody declared.
    """
    for kind, where in needs.items():
        if kind not in RUNTIME:
            near = near_matches(kind, list(RUNTIME))
            raise UnknownOption(
                f"{kind!r} is not a kind of run-time need{f'; did you mean {near}?' if near else ''}"
            )
        if quantized or kind in _ALSO_FLOAT:
            also = "" if kind in _ALSO_FLOAT else ". The float model can be exported: form 'float'"
            raise NotPossible(f"{kind} ({where}) cannot be exported: {RUNTIME[kind]}{also}")
