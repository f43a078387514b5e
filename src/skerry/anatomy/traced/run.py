"""Runs a stranger's model once on the record: which ids, which arguments, which part of it."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from skerry.anatomy.attention import observe_attention
from skerry.anatomy.model import Anatomy, find_trunk, run, text_config
from skerry.anatomy.splits import Dims
from skerry.anatomy.traced.calling import missing_arguments, ways_to_call
from skerry.anatomy.traced.flow import Flow
from skerry.anatomy.traced.record import record
from skerry.errors import SkerryError, UnresolvedArchitecture

# Two samples, so that [position, sample, channel] cannot pass for [sample, position, channel].
NUM_SAMPLES, NUM_POSITIONS = 2, 8
NUM_TOKENS = NUM_SAMPLES * NUM_POSITIONS


class Recorded(NamedTuple):
    """One forward: its graph, the form of the model that could be called, the ids, and what to say about the choice."""

    flow: Flow
    trunk: nn.Module
    ids: Int[Tensor, "sample position"]
    notes: tuple[str, ...]


def record_forward(model: nn.Module) -> Recorded:
    """Run 2 x 8 tokens through the model without its head.

    Raises:
        UnresolvedArchitecture: The model cannot be called with token ids.
    """
    trunk, notes = _trunk(model)
    problems: list[Exception] = []
    for form in ways_to_call(trunk):
        for vocabulary in _vocabularies(model):
            ids = some_ids(vocabulary)
            stub = Anatomy(model, form, "traced", Dims(0, 0, 0, 0, 0), {}, {}, {}, {})
            try:
                # Under our attention implementation, as in a watch: flash and flex kernels would hide queries and keys.
                with observe_attention(model, {}, lambda view: None):
                    trace = record(model, partial(run, stub, ids))
                flow = Flow(trace, num_samples=NUM_SAMPLES, num_positions=NUM_POSITIONS)
                return Recorded(flow, form, ids, notes)
            except SkerryError:
                raise
            except Exception as problem:  # a stranger's forward may raise anything
                problems.append(problem)
    raise _refusal(trunk, problems[0]) from problems[0]


def _refusal(trunk: nn.Module, problem: Exception) -> UnresolvedArchitecture:
    name, missing = type(trunk).__name__, missing_arguments(trunk)
    if missing:
        return UnresolvedArchitecture(
            f"the forward of {name} demands {', '.join(missing)}, which cannot be made from token ids; "
            "give the part of the model that takes token ids"
        )
    return UnresolvedArchitecture(
        f"{name} could not run on {NUM_SAMPLES} x {NUM_POSITIONS} token ids: {type(problem).__name__}: {problem}; "
        "skerry measures models whose forward takes token ids"
    )


def _trunk(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return find_trunk(model), ()
    get_encoder = getattr(model, "get_encoder", None)
    encoder = None if get_encoder is None else get_encoder()
    if not isinstance(encoder, nn.Module) or encoder is model:
        raise UnresolvedArchitecture(
            f"{type(model).__name__} has an encoder and a decoder, and the encoder could not be found; give one of the two"
        )
    return encoder, ("the decoder is not measured: of a model with encoder and decoder, the encoder is read",)


def some_ids(vocabulary: int) -> Int[Tensor, "sample position"]:
    """Token ids for a look at a model: spread over the vocabulary, distinct where it is large enough, away from its begin."""
    step = max(1, (vocabulary - 4) // NUM_TOKENS)
    ids = torch.arange(NUM_TOKENS) * step + min(4, vocabulary - 1)
    return ids.remainder(vocabulary).reshape(NUM_SAMPLES, NUM_POSITIONS)


def _vocabularies(model: nn.Module) -> list[int]:
    """Sizes to try, the likely one first: the config's, the first embedding's, the smallest embedding's."""
    config = text_config(getattr(model, "config", None))
    tables = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    named = [getattr(config, "vocab_size", None), *tables[:1], min(tables, default=None)]
    sizes = [n for n in dict.fromkeys(named) if isinstance(n, int) and n > 0]
    return sizes or [NUM_TOKENS]
