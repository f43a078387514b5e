"""Tokenizer and windows of a training."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.redesign.text import tokenize, train_tokenizer, window_batch

DOCUMENTS = ["The quick brown fox jumps over the lazy dog. " * 20, "Pack my box with five dozen jugs! " * 20]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCUMENTS, vocabulary=300, context=32)


def test_the_tokenizer_gives_the_text_back_also_for_characters_that_it_never_saw(tokenizer):
    for text in ("The lazy box", "naïve — 東京 🦊\t\n"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_every_input_begins_with_token_0_and_the_vocabulary_is_as_large_as_asked(tokenizer):
    assert tokenizer("fox")["input_ids"][0] == tokenizer.bos_token_id == 0
    assert len(tokenizer) <= 300 and tokenizer.model_max_length == 32


def test_documents_are_joined_by_an_empty_line(tokenizer):
    assert tokenizer.decode(tokenize(DOCUMENTS, tokenizer)) == "\n\n".join(DOCUMENTS)


@settings(max_examples=50, deadline=None)
@given(
    length=st.integers(8, 200),
    context=st.integers(2, 8),
    seed=st.integers(0, 2**63 - 1),
    step=st.integers(0, 2**40),
    bos=st.booleans(),
)
def test_windows_are_pieces_of_the_text_and_follow_from_seed_and_step_alone(length, context, seed, step, bos):
    ids = np.arange(length, dtype=np.uint16)
    ask = {"count": 5, "context": context, "bos": 999 if bos else None, "seed": seed, "step": step}
    rows = window_batch(ids, **ask)
    assert rows.shape == (5, context) and rows.dtype == torch.int64
    body = rows[:, 1:] if bos else rows
    assert not bos or (rows[:, 0] == 999).all()
    assert (body.diff() == 1).all() and body.min() >= 0 and body.max() < length
    assert torch.equal(rows, window_batch(ids, **ask))


def test_other_steps_and_other_seeds_give_other_windows():
    ids = np.arange(10_000, dtype=np.uint16)
    ask = {"count": 8, "context": 16, "bos": 0}
    first = window_batch(ids, seed=0, step=0, **ask)
    assert not torch.equal(first, window_batch(ids, seed=0, step=1, **ask))
    assert not torch.equal(first, window_batch(ids, seed=1, step=0, **ask))


def test_the_last_token_can_be_reached():
    rows = [window_batch(np.arange(4), count=8, context=4, bos=None, seed=0, step=s) for s in range(3)]
    assert all(torch.equal(r, torch.arange(4).expand(8, 4)) for r in rows)
