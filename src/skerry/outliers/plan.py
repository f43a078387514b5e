"""What a scan will do, decided and checked before the long work: model, text, batches, threads, run directory."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

import skerry
from skerry.choices import Choice
from skerry.corpus import Feed, batches, from_tensors, random_tokens, read, sentences
from skerry.corpus.special import wrapping
from skerry.measure.kernels import prepare
from skerry.outliers.options import DEFAULT_FOLDER, Options, slug

if TYPE_CHECKING:
    from skerry.anatomy import Anatomy
    from skerry.anatomy.load import Loaded

# What a batch holds: enough tokens to fill two cores, few enough that one block's tensors stay small.
TOKENS_PER_BATCH = 4096
WIDTH_OF_BATCH = 1024
# Channels of all sites of a block, in widths of the residual stream; decides only whether compiling the kernels is worth it.
WIDTHS_PER_BLOCK = 16


@dataclass
class Plan:
    """Everything that the stages need.

    Attributes:
        loaded: The model with its tokenizer.
        anatomy: Its places.
        feed: The batches.
        options: What was asked for.
        request: What decides the result; the run directory belongs to it.
        choices: What was decided for the user, and why.
        path: The run directory.
        seconds: Time that loading and planning took.
    """

    loaded: Loaded
    anatomy: Anatomy
    feed: Feed
    options: Options
    request: dict[str, Any]
    choices: dict[str, Choice[Any]]
    path: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def key(self, stage: str, **more: Any) -> str:
        """Key of what decides the result of a stage."""
        return digest({"stage": stage, "version": skerry.__version__, **self.request, **more})


def digest(content: Mapping[str, Any]) -> str:
    """A key of plain values: the first 16 hexadecimal digits of the SHA-256 of their JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def make_plan(model: str | Path | nn.Module | None, data: Any, options: Options) -> Plan:
    """Load and check everything; nothing is written yet.

    Raises:
        SkerryError: Whatever is wrong with model, text or options.
    """
    import torch

    from skerry.anatomy import resolve
    from skerry.anatomy.load import default_model, load
    from skerry.anatomy.threads import choose_threads

    options.check()
    start = time.perf_counter()
    loaded = load(
        default_model() if model is None else model,
        dtype=options.dtype,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
        tokenizer=options.tokenizer,
    )
    threads = choose_threads(loaded.num_parameters, requested=options.threads)
    torch.set_num_threads(threads.value)
    anatomy = resolve(loaded.model)
    seconds = {"load": time.perf_counter() - start}
    start = time.perf_counter()
    choices: dict[str, Choice[Any]] = {**loaded.choices, "threads": threads}
    feed = make_feed(loaded, anatomy, data, options, choices)
    seconds["text"] = time.perf_counter() - start
    kernels = prepare(feed.card.num_tokens * anatomy.dims.num_layers * anatomy.dims.hidden * WIDTHS_PER_BLOCK)
    choices["kernel"] = Choice(kernels.path, kernels.why)
    seconds["compile"] = kernels.seconds
    request = {
        "model": loaded.name,
        "model_key": loaded.content_key,
        "dtype": str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
        "device": next(loaded.model.parameters()).device.type,
        "ids": feed.card.ids_sha256,
        "samples": feed.card.num_samples,
        "tokens": feed.card.tokens_per_sample,
        "seed": options.seed,
        "sites": options.parts(),
        "attention": options.attention,
        "weights": options.weights,
    }
    path = (
        Path(options.out) if options.out else DEFAULT_FOLDER / f"{slug(loaded.name)}-{digest(request)[:12]}"
    )
    return Plan(loaded, anatomy, feed, options, request, choices, path, seconds)


def make_feed(
    loaded: Loaded, anatomy: Anatomy, data: Any, options: Options, choices: dict[str, Choice[Any]]
) -> Feed:
    """The batches, from text, files or token ids; sizes that were not asked for are chosen here."""
    vocab_size = loaded.vocab_size
    limit = max_positions(loaded)
    if data is not None and not isinstance(data, (str, Path)):
        size = options.batch_size
        return from_tensors(
            data, vocab_size=vocab_size, max_positions=limit, batch_size=size, samples=options.samples
        )
    tokenizer = loaded.tokenizer
    whole = tokenizer is not None and bool(wrapping(tokenizer, "auto").suffix)
    samples, tokens = sizes(options, whole=whole, limit=limit, choices=choices)
    batch_size = batch_size_for(options, anatomy.dims.hidden, tokens, choices)
    if tokenizer is None:
        if data is not None:
            from skerry.errors import UsageError

            raise UsageError(
                f"{loaded.name} has no tokenizer, so text cannot be read; give token ids, or a tokenizer with tokenizer=..."
            )
        special = [
            i
            for n in ("bos", "eos", "pad")
            if isinstance(i := getattr(anatomy.config, f"{n}_token_id", None), int)
        ]
        return random_tokens(
            int(vocab_size or 100),
            samples=samples,
            tokens=tokens,
            batch_size=batch_size,
            seed=options.seed,
            exclude=special,
            max_positions=limit,
        )
    corpus = read(data)
    return batches(
        sentences(corpus) if whole else corpus,
        tokenizer,
        samples=samples,
        tokens=tokens,
        batch_size=batch_size,
        seed=options.seed,
        bos=options.bos,
        packing=not whole,
        max_positions=limit,
        vocab_size=vocab_size,
    )


def sizes(
    options: Options, *, whole: bool, limit: int | None, choices: dict[str, Choice[Any]]
) -> tuple[int, int]:
    """Samples and tokens per sample: what was asked for, else enough for recurrence to be tested."""
    samples, tokens = options.samples, options.tokens
    if samples is None:
        samples = 256 if whole else 64
        why = "short inputs, so many of them" if whole else "enough independent inputs to test recurrence"
        choices["samples"] = Choice(samples, why)
    if tokens is None:
        tokens = 128 if whole else 256
        why = (
            "the longest; this model reads whole passages: one sentence per input"
            if whole
            else "sinks and spikes show within it"
        )
        if limit is not None and tokens > limit:
            tokens, why = limit, "all positions that the model has"
        choices["tokens"] = Choice(tokens, why)
    return samples, tokens


def batch_size_for(options: Options, hidden: int, tokens: int, choices: dict[str, Choice[Any]]) -> int:
    """Inputs per forward."""
    if options.batch_size is not None:
        return options.batch_size
    budget = TOKENS_PER_BATCH * WIDTH_OF_BATCH // max(hidden, WIDTH_OF_BATCH)
    size = max(1, budget // tokens)
    choices["batch_size"] = Choice(
        size, f"about {min(budget, size * tokens)} tokens per forward at width {hidden}"
    )
    return size


def max_positions(loaded: Loaded) -> int | None:
    """Longest sequence that the model can read; None where nothing limits it."""
    limits = [loaded.max_positions, getattr(loaded.tokenizer, "model_max_length", None)]
    known = [int(n) for n in limits if isinstance(n, int) and 0 < n < 10**9]
    return min(known, default=None)


def facts(plan: Plan) -> dict[str, Any]:
    """What is recorded beside the request: versions, machine, choices, command."""
    import torch
    import transformers

    return {
        "command": sys.argv,
        "versions": {
            "skerry": skerry.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "platform": platform.platform(),
        "choices": {name: {"value": str(c.value), "why": c.why} for name, c in plan.choices.items()},
        "corpus": plan.feed.card.as_dict(),
        "preset": plan.options.preset,
        "warnings": list(plan.loaded.warnings),
    }
