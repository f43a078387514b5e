"""Token ids that are already there: given by the caller, or drawn at random for a model without a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from skerry.corpus.batches import check_lengths
from skerry.corpus.feed import Block, CorpusCard, Feed, ids_digest
from skerry.errors import BadTokens, TooLong


def from_tensors(
    items: Any,
    *,
    vocab_size: int | None = None,
    max_positions: int | None = None,
    batch_size: int | None = None,
    samples: int | None = None,
    name: str = "token ids given by the caller",
) -> Feed:
    """Batches from token ids: everything is checked before the first forward.

    Args:
        items: Integer tensors `[sample, position]`, or mappings with `input_ids` and perhaps `attention_mask`; one or many.
        vocab_size: Number of token ids that the model knows.
        max_positions: Longest sequence that the model can read.
        batch_size: Items with more samples are divided.
        samples: Stop after so many, which makes an endless iterable finite.
        name: What the report calls them.

    Raises:
        BadTokens: Wrong type or shape, ids outside the vocabulary, a mask that is not one stretch per sample, no samples.
        TooLong: More positions than the model has.
    """
    blocks: list[Block] = []
    moved = count = 0
    for index, item in enumerate(_items(items)):
        ids, keep = _read(item, f"item {index}")
        if samples is not None:
            ids, keep = ids[: samples - count], keep[: samples - count]
        moved += int((~keep[:, 0]).sum())
        ids, keep = _to_the_left(ids, keep, f"item {index}")
        _check(ids, keep, f"item {index}", vocab_size=vocab_size, max_positions=max_positions)
        ids = (
            ids.masked_fill(~keep, 0) if vocab_size is None else ids.where(keep | _known(ids, vocab_size), 0)
        )
        step = batch_size or len(ids)
        for start in range(0, len(ids), step):
            part = keep[start : start + step]
            blocks.append(Block(ids[start : start + step].int(), None if bool(part.all()) else part))
        count += len(ids)
        if count == samples:
            break
    if not blocks:
        raise BadTokens("no token ids: the data yielded nothing (a generator can be read only once)")
    notes = (f"{moved:,} samples padded on the left were moved to the left edge",) if moved else ()
    return _feed(
        blocks,
        name,
        bos="as the caller has put it",
        packing="as the caller has put it",
        seed=None,
        notes=notes,
    )


def random_tokens(
    vocab_size: int,
    *,
    samples: int,
    tokens: int,
    batch_size: int,
    seed: int = 0,
    exclude: Iterable[int] = (),
    max_positions: int | None = None,
) -> Feed:
    """Uniformly random token ids, for a model without a tokenizer; the card says that this is no text.

    Args:
        vocab_size: Ids are drawn from 0 to `vocab_size - 1`.
        samples: Independent inputs.
        tokens: Length of each.
        batch_size: Samples per batch.
        seed: Draws the ids.
        exclude: Ids that are not drawn: the model's special tokens.
        max_positions: Longest sequence that the model can read.

    Raises:
        UnknownOption: A number below one.
        TooLong: `tokens` is more than `max_positions`.
        BadTokens: No id is left to draw.
    """
    check_lengths(samples=samples, tokens=tokens, batch_size=batch_size, max_positions=max_positions)
    special = sorted({int(i) for i in exclude if 0 <= int(i) < vocab_size})
    allowed = np.setdiff1d(np.arange(vocab_size, dtype=np.int32), np.asarray(special, np.int32))
    if not len(allowed):
        raise BadTokens(
            f"a vocabulary of {vocab_size} ids without {len(special)} special ones leaves nothing to draw"
        )
    rng = np.random.default_rng(seed)
    drawn = torch.from_numpy(allowed[rng.integers(len(allowed), size=(samples, tokens))])
    blocks = [Block(drawn[start : start + batch_size], None) for start in range(0, samples, batch_size)]
    note = (
        "random token ids, because the model has no tokenizer: values that depend on real text, such as delimiter sinks, "
        "will not appear as they do on text; name a tokenizer or give token ids"
    )
    return _feed(
        blocks,
        "random token ids (no tokenizer, no text)",
        bos="no token begins a sample: ids are random",
        packing=f"uniform over {len(allowed):,} ids"
        + (f", without {len(special)} special ones" if special else ""),
        seed=seed,
        notes=(note,),
    )


def _feed(
    blocks: list[Block], name: str, *, bos: str, packing: str, seed: int | None, notes: tuple[str, ...]
) -> Feed:
    card = CorpusCard(
        name=name,
        num_samples=sum(len(block.ids) for block in blocks),
        tokens_per_sample=max(block.ids.shape[1] for block in blocks),
        num_tokens=sum(b.ids.numel() if b.keep is None else int(b.keep.sum()) for b in blocks),
        bos=bos,
        packing=packing,
        seed=seed,
        num_documents=None,
        num_characters=None,
        text_sha256=None,
        ids_sha256=ids_digest(blocks),
        notes=notes,
    )
    return Feed(blocks, card)


def _items(items: Any) -> Iterator[Any]:
    """The items one by one; a single tensor or mapping is one item."""
    if isinstance(items, (Tensor, np.ndarray, Mapping)):
        yield items
    elif isinstance(items, Iterable) and not isinstance(items, (str, bytes)):
        yield from items
    else:
        raise BadTokens(
            f"data of type {type(items).__name__}: expected an iterable of integer tensors [sample, position] "
            "or of dicts with input_ids and attention_mask"
        )


def _read(item: Any, place: str) -> tuple[Int[Tensor, "sample position"], Bool[Tensor, "sample position"]]:
    mask = None
    if isinstance(item, Mapping):
        if "input_ids" not in item:
            raise BadTokens(f"{place} has no 'input_ids'; it has {', '.join(map(repr, item)) or 'nothing'}")
        mask, item = item.get("attention_mask"), item["input_ids"]
    ids = _integers(item, f"{place}: token ids")
    if mask is None:
        return ids, torch.ones_like(ids, dtype=torch.bool)
    keep = _integers(mask, f"{place}: attention_mask")
    if keep.shape != ids.shape:
        raise BadTokens(f"{place}: attention_mask has shape {list(keep.shape)}, input_ids {list(ids.shape)}")
    if not bool(((keep == 0) | (keep == 1)).all()):
        raise BadTokens(
            f"{place}: attention_mask holds {int(keep[(keep != 0) & (keep != 1)][0])}; it may hold only 0 and 1"
        )
    return ids, keep.bool()


def _integers(value: Any, what: str) -> Int[Tensor, "sample position"]:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadTokens(
            f"{what}: {type(value).__name__} is no tensor; expected integers [sample, position]"
        ) from error
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
        raise BadTokens(
            f"{what} are {str(tensor.dtype).removeprefix('torch.')}; expected integers [sample, position]"
        )
    if tensor.dim() != 2:
        hint = "; one sample is ids[None]" if tensor.dim() == 1 else ""
        raise BadTokens(f"{what} have shape {list(tensor.shape)}; expected [sample, position]{hint}")
    if not tensor.numel():
        raise BadTokens(f"{what} have shape {list(tensor.shape)}: nothing to measure")
    return tensor.detach().cpu().long()


def _to_the_left(ids: Tensor, keep: Tensor, place: str) -> tuple[Tensor, Tensor]:
    """Move every sample to the left edge, so that position 0 is its first token whatever side was padded."""
    lengths = keep.sum(1)
    if bool((lengths == 0).any()):
        raise BadTokens(
            f"{place}, sample {int((lengths == 0).nonzero()[0, 0])}: attention_mask keeps no token"
        )
    first = keep.int().argmax(1)
    last = keep.shape[1] - 1 - keep.flip(1).int().argmax(1)
    broken = last - first + 1 != lengths
    if bool(broken.any()):
        raise BadTokens(
            f"{place}, sample {int(broken.nonzero()[0, 0])}: attention_mask has a gap between kept tokens; "
            "only padding at one end, or at both, can be left out"
        )
    width = int(lengths.max())
    columns = (torch.arange(width)[None, :] + first[:, None]) % keep.shape[1]
    return ids.gather(1, columns), torch.arange(width)[None, :] < lengths[:, None]


def _known(ids: Tensor, vocab_size: int) -> Tensor:
    return (ids >= 0) & (ids < vocab_size)


def _check(
    ids: Tensor, keep: Tensor, place: str, *, vocab_size: int | None, max_positions: int | None
) -> None:
    if max_positions is not None and ids.shape[1] > max_positions:
        raise TooLong(
            f"{place} has {ids.shape[1]:,} positions; the model has {max_positions:,}: cut the samples"
        )
    bound = vocab_size if vocab_size is not None else 2**31
    wrong = keep & ~_known(ids, bound)
    if bool(wrong.any()):
        sample, position = (int(i) for i in wrong.nonzero()[0])
        raise BadTokens(
            f"{place}: token id {int(ids[sample, position])} (sample {sample}, position {position}) is outside the model's vocabulary "
            f"of {bound:,} ids (0 to {bound - 1:,})"
        )
