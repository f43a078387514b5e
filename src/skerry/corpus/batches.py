"""Text to batches: samples of equal length, cut from the text without overlap and drawn by a seed.

Packed (the default): a sample is a window of consecutive text, wrapped in the special tokens that the tokenizer adds.  When
the text is much longer than what is asked for, it is divided into stretches that hold one window each, the seed draws
stretches, and only those are tokenized; otherwise all of it is tokenized, cut, and the seed draws windows.  Either way windows
are drawn without replacement and share no token of the text: samples are independent inputs.

Unpacked: one sample per document, or per passage (as many whole paragraphs as fit) of a document that is longer than a sample;
per paragraph where that gives too few.  Padded on the right; padding is never kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Int32
from transformers import PreTrainedTokenizerBase

from skerry.corpus.corpus import Corpus
from skerry.corpus.feed import Block, CorpusCard, Feed, ids_digest
from skerry.corpus.special import Wrapping, wrapping
from skerry.errors import BadText, BadTokens, TooLong, UnknownOption

JOIN = "\n\n"
_PIECE = 100_000  # characters tokenized at once: tokenizers slow down on very long strings
_GROUP = 32  # stretches tokenized at once
_SLACK = 1.25  # a stretch holds this many windows, so that one fits where text is dense in tokens
_AMPLE = 2.5  # text this many times longer than needed is drawn in stretches

Ids = Int32[np.ndarray, "_"]  # tokens; rows of one list differ in length


def batches(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    *,
    samples: int,
    tokens: int,
    batch_size: int,
    seed: int = 0,
    bos: str = "auto",
    packing: bool = True,
    max_positions: int | None = None,
    vocab_size: int | None = None,
) -> Feed:
    """Cut a corpus into batches.

    Args:
        corpus: The text.
        tokenizer: The model's tokenizer.
        samples: Independent inputs wanted; a shorter text gives fewer, and the card says so.
        tokens: Length of a sample, special tokens included (unpacked: the longest that a sample may be).
        batch_size: Samples per batch.
        seed: Chooses the samples.
        bos: `auto`, `with` or `without`: see `special.wrapping`.
        packing: False for one sample per document or passage.
        max_positions: Longest sequence that the model can read.
        vocab_size: Number of token ids that the model knows.

    Raises:
        BadText: Less text than one sample.
        BadTokens: The tokenizer gives ids that the model does not know.
        TooLong: `tokens` is more than `max_positions`.
        UnknownOption: A number below one, a sample with no room for text, an unknown policy.
    """
    check_lengths(samples=samples, tokens=tokens, batch_size=batch_size, max_positions=max_positions)
    wrap = wrapping(tokenizer, bos)
    body = tokens - len(wrap.prefix) - len(wrap.suffix)
    if body < 1:
        raise UnknownOption(
            f"tokens={tokens} leaves no room for text: {tokens - body} special tokens wrap every sample; ask for {tokens - body + 1} or more"
        )
    rng = np.random.default_rng(seed)
    cut = _windows if packing else _pieces
    rows = [_wrapped(row, wrap) for row in cut(corpus, tokenizer, samples=samples, body=body, rng=rng)]
    _check_vocabulary(rows, tokenizer, vocab_size)
    blocks = _blocks(rows, batch_size, pad=_pad_id(tokenizer, vocab_size))
    notes = list(corpus.notes)
    if len(rows) < samples:
        unit = f"samples of {tokens:,} tokens" if packing else "samples"
        notes.append(f"the text gives {len(rows):,} of the {samples:,} {unit} asked for")
    card = CorpusCard(
        name=corpus.name,
        num_samples=len(rows),
        tokens_per_sample=max(len(row) for row in rows),
        num_tokens=sum(len(row) for row in rows),
        bos=wrap.words,
        packing=_packing_words(packing=packing),
        seed=seed,
        num_documents=len(corpus.documents),
        num_characters=corpus.num_characters,
        text_sha256=corpus.sha256,
        ids_sha256=ids_digest(blocks),
        notes=tuple(notes),
    )
    return Feed(blocks, card)


def check_lengths(*, samples: int, tokens: int, batch_size: int, max_positions: int | None) -> None:
    """Refuse numbers that cannot be meant.

    Raises:
        UnknownOption: A number below one.
        TooLong: `tokens` is more than `max_positions`.
    """
    for name, value in {"samples": samples, "tokens": tokens, "batch_size": batch_size}.items():
        if value < 1:
            raise UnknownOption(f"{name}={value}: at least 1 is needed")
    if max_positions is not None and tokens > max_positions:
        raise TooLong(
            f"samples of {tokens:,} tokens: the model has {max_positions:,} positions; ask for at most that many tokens"
        )


def _packing_words(*, packing: bool) -> str:
    if packing:
        return "packed: windows of consecutive text without overlap, documents joined by an empty line"
    return (
        "one sample per document or passage (whole paragraphs), padded on the right; padding is not measured"
    )


def _windows(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, *, samples: int, body: int, rng: np.random.Generator
) -> list[Ids]:
    """Windows of `body` tokens, drawn without replacement."""
    characters_per_token = _characters_per_token(corpus, tokenizer)
    need = samples * body * characters_per_token
    if corpus.num_characters > _AMPLE * need:
        length = int(_SLACK * body * characters_per_token) + 16
        drawn = _draw_stretches(corpus, tokenizer, samples=samples, body=body, length=length, rng=rng)
        if drawn is not None:
            return drawn
    ids = _all_ids(corpus, tokenizer)
    count = len(ids) // body
    if count == 0:
        raise BadText(
            f"{corpus.name} is too short: it has {len(ids):,} tokens and one sample needs {body:,} (plus special tokens); "
            "give more text or ask for fewer tokens per sample"
        )
    return [ids[i * body : (i + 1) * body] for i in rng.permutation(count)[:samples]]


def _draw_stretches(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    *,
    samples: int,
    body: int,
    length: int,
    rng: np.random.Generator,
) -> list[Ids] | None:
    """The first window of stretches drawn by the seed; None when too few stretches hold one."""
    stretches = list(_stretches(corpus.documents, length))
    order = rng.permutation(len(stretches))
    windows: list[Ids] = []
    for start in range(0, len(order), _GROUP):
        texts = [_text(corpus.documents, stretches[i]) for i in order[start : start + _GROUP]]
        windows += [ids[:body] for ids in _tokenize(tokenizer, texts) if len(ids) >= body]
        if len(windows) >= samples:
            return windows[:samples]
    return None


Span = tuple[int, int, int]  # document, first character, behind the last character


def _stretches(documents: Sequence[str], length: int) -> Iterator[list[Span]]:
    """Divide the documents, joined, into stretches of about `length` characters that begin and end between words."""
    stretch: list[Span] = []
    room = length
    for number, document in enumerate(documents):
        start = 0
        while len(document) - start >= room:
            end = _between_words(document, start, start + room)
            yield [*stretch, (number, start, end)]
            stretch, room, start = [], length, end
        if start < len(document):
            stretch.append((number, start, len(document)))
            room -= len(document) - start
    if stretch:
        yield stretch


def _between_words(text: str, start: int, end: int) -> int:
    """The last place at or before `end`, in the last eighth, where a word begins; `end` in text without spaces."""
    if end >= len(text):
        return len(text)
    for mark in ("\n", " "):
        place = text.rfind(mark, end - max(40, (end - start) // 8), end)
        if place > start:
            return place + 1
    return end


def _text(documents: Sequence[str], stretch: list[Span]) -> str:
    return JOIN.join(documents[number][start:end].strip() for number, start, end in stretch)


def _characters_per_token(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> float:
    """Measured on sixteen excerpts spread over the text."""
    long = [d for d in corpus.documents if d]
    excerpts = [long[i * len(long) // 16] for i in range(16)] if long else []
    excerpts = [
        d[(p := (len(d) - 400) * i // 16 if len(d) > 400 else 0) : p + 400] for i, d in enumerate(excerpts)
    ]
    num_tokens = sum(len(ids) for ids in _tokenize(tokenizer, excerpts))
    return max(0.25, sum(map(len, excerpts)) / max(1, num_tokens))


def _all_ids(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> Ids:
    text = JOIN.join(corpus.documents)
    pieces = []
    start = 0
    while start < len(text):
        end = _between_words(text, start, start + _PIECE)
        pieces.append(text[start:end])
        start = end
    return np.concatenate([np.zeros(0, np.int32), *_tokenize(tokenizer, pieces)])


def _pieces(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, *, samples: int, body: int, rng: np.random.Generator
) -> list[Ids]:
    """One row per document or passage, cut at `body` tokens; empty ones are passed over."""
    room = int(0.9 * body * _characters_per_token(corpus, tokenizer))
    texts = [text for document in corpus.documents for text in _passages(document, room)]
    if len(texts) < samples:  # a short text: smaller pieces rather than fewer
        texts = [text for document in corpus.documents for text in _passages(document, 1)]
    order = rng.permutation(len(texts))
    rows: list[Ids] = []
    for start in range(0, len(order), _GROUP):
        # No token is longer than a few dozen characters of running text: what lies far behind the cut is not tokenized.
        group = [texts[i][: 64 * body] for i in order[start : start + _GROUP]]
        rows += [ids[:body] for ids in _tokenize(tokenizer, group) if len(ids)]
        if len(rows) >= samples:
            break
    if not rows:
        raise BadText(
            f"{corpus.name} is too short: it has 0 tokens and a sample needs at least 1; give more text"
        )
    return rows[:samples]


def _passages(document: str, room: int) -> Iterator[str]:
    """A document that fits in `room` characters, else as many of its paragraphs at a time as fit; a longer one stands alone."""
    if len(document) <= room:
        if document.strip():
            yield document.strip()
        return
    passage: list[str] = []
    size = 0
    for paragraph in re.split(r"\n\s*\n", document):
        if not paragraph.strip():
            continue
        if passage and size + len(paragraph) > room:
            yield JOIN.join(passage)
            passage, size = [], 0
        passage.append(paragraph.strip())
        size += len(paragraph) + len(JOIN)
    if passage:
        yield JOIN.join(passage)


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Ids]:
    if not texts:
        return []
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        verbose=False,
    )
    return [np.asarray(ids, dtype=np.int32) for ids in encoded["input_ids"]]


def _wrapped(row: Ids, wrap: Wrapping) -> Ids:
    return np.concatenate([np.asarray(wrap.prefix, np.int32), row, np.asarray(wrap.suffix, np.int32)])


def _check_vocabulary(
    rows: Iterable[Ids], tokenizer: PreTrainedTokenizerBase, vocab_size: int | None
) -> None:
    if vocab_size is None:
        return
    for sample, row in enumerate(rows):
        if row.max() >= vocab_size:
            position = int(np.argmax(row >= vocab_size))
            token = tokenizer.convert_ids_to_tokens(int(row[position]))
            raise BadTokens(
                f"the tokenizer does not fit the model: token {token!r} (sample {sample}, position {position}) has id "
                f"{row[position]}, and the model knows ids below {vocab_size}; name the tokenizer that the model was trained with"
            )


def _pad_id(tokenizer: PreTrainedTokenizerBase, vocab_size: int | None) -> int:
    """What fills a batch; some tokenizers have a padding token that their model has no embedding for."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token, int) and (vocab_size is None or token < vocab_size):
            return token
    return 0


def _blocks(rows: Sequence[Ids], batch_size: int, *, pad: int) -> list[Block]:
    blocks = []
    for start in range(0, len(rows), batch_size):
        group = rows[start : start + batch_size]
        lengths = np.array([len(row) for row in group])
        ids = np.full((len(group), lengths.max()), pad, dtype=np.int32)
        for place, row in zip(ids, group, strict=True):
            place[: len(row)] = row
        keep = np.arange(ids.shape[1])[None, :] < lengths[:, None]
        blocks.append(Block(torch.from_numpy(ids), None if keep.all() else torch.from_numpy(keep)))
    return blocks
