import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.errors import BadText, UnknownOption
from skerry.redesign.backcopy import START, Backcopy, batches, builtin_task, make_task

TEXT = "the cat sat on the mat and ate the hat that the rat had on; then a dog came in and sat. " * 3


@pytest.fixture(scope="module")
def task():
    return make_task(TEXT)


@pytest.fixture(scope="module")
def many(task):
    return task.batch(0, 0, samples=4000, length=24)


def test_tokens_are_characters_by_falling_frequency_and_triggers_the_first_three(task):
    counts = [n for _, n in Counter(TEXT).most_common()]
    assert [TEXT.count(c) for c in task.characters] == counts
    ids = torch.arange(task.vocab_size)
    assert ids[task.is_trigger(ids)].tolist() == [1, 2, 3]


def test_the_bigram_table_is_the_texts(task):
    pairs = Counter(pairwise(TEXT))
    for a, x in enumerate(task.characters, 1):
        total = sum(n for (first, _), n in pairs.items() if first == x)
        shares = [pairs[x, y] / total for y in task.characters]
        assert task.bigram[a, 1:].tolist() == pytest.approx(shares)
    torch.testing.assert_close(task.bigram.sum(1), torch.ones(task.vocab_size, dtype=torch.float64))
    start = torch.tensor([0.0] * 4 + [TEXT.count(c) for c in task.characters[3:]], dtype=torch.float64)
    torch.testing.assert_close(task.bigram[START], start / start.sum())


def test_rare_characters_are_left_out_with_their_pairs():
    task = make_task(
        "ab" * 30 + "aZbc" * 3 + "ca" * 9 + "cd" * 4 + "da" * 5 + "bd" + "e", num_characters=4, num_triggers=1
    )
    assert task.characters == ("a", "b", "c", "d")
    a, b = 1, 2
    assert task.bigram[a, 0] == 0 and task.bigram[a].sum() == pytest.approx(1)
    text = "ab" * 30 + "aZbc" * 3
    assert text.count("Zb") == 3 and task.bigram[b, a] < 1


def test_every_sequence_begins_with_start_and_holds_it_nowhere_else(many):
    assert (many[:, 0] == START).all() and (many[:, 1:] > START).all()


def test_after_a_trigger_always_comes_the_token_before_it(task, many):
    where = task.is_trigger(many[:, 1:-1])
    assert where.sum() > 1000
    assert torch.equal(many[:, 2:][where], many[:, :-2][where])
    # and that one is never a trigger nor <s>, because the first character is none
    assert not task.is_trigger(many[:, :-2][where]).any() and not (many[:, :-2][where] == START).any()


def test_elsewhere_transitions_are_those_of_the_text(task, many):
    current, following = many[:, :-1].flatten(), many[:, 1:].flatten()
    for token in range(task.vocab_size):
        if START < token <= task.num_triggers:
            continue
        drawn = torch.bincount(following[current == token], minlength=task.vocab_size).double()
        count = drawn.sum()
        if count < 50:
            continue
        deviation = (task.bigram[token] * (1 - task.bigram[token]) / count).sqrt()
        assert ((drawn / count - task.bigram[token]).abs() <= 5 * deviation + 1e-12).all(), token


def test_batches_follow_from_seed_and_step_alone(task):
    first = task.batch(3, 7, samples=5, length=9)
    assert torch.equal(first, task.batch(3, 7, samples=5, length=9))
    assert not torch.equal(first, task.batch(3, 8, samples=5, length=9))
    assert not torch.equal(first, task.batch(4, 7, samples=5, length=9))
    assert first.dtype == torch.long and first.is_contiguous()


def naive_bayes_loss(task, length):
    """All sequences, with their probabilities."""
    entropy = [-sum(p * math.log(p) for p in row if p > 0) for row in task.bigram.tolist()]
    paths = {(START,): 1.0}
    loss = count = 0.0
    for _ in range(length - 1):
        grown = {}
        for path, p in paths.items():
            if START < path[-1] <= task.num_triggers:
                grown[(*path, path[-2])] = p
                continue
            loss, count = loss + p * entropy[path[-1]], count + p
            for token, q in enumerate(task.bigram[path[-1]].tolist()):
                if q > 0:
                    grown[(*path, token)] = p * q
        paths = grown
    return loss / count, 1 - count / (length - 1)


@pytest.mark.parametrize("length", [3, 4, 7])
def test_the_best_loss_is_that_of_all_sequences_summed(length):
    task = make_task("abcabdcabbdacadbcb" * 2, num_triggers=1)
    found = task.bayes_loss(length)
    bigram, share = naive_bayes_loss(task, length)
    assert found.backcopy == 0.0
    assert found.bigram == pytest.approx(bigram, rel=1e-12)
    assert found.trigger_share == pytest.approx(share, abs=1e-12)
    assert found.mean == pytest.approx(bigram * (1 - share), rel=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.text("abcdefg", min_size=40, max_size=120), st.integers(1, 3), st.integers(3, 6))
def test_the_best_loss_is_that_of_all_sequences_whatever_the_text(text, num_triggers, length):
    # every character is followed by a common one
    task = make_task(text + "".join(c + "ga" for c in "abcdefg"), num_triggers=num_triggers)
    bigram, share = naive_bayes_loss(task, length)
    found = task.bayes_loss(length)
    assert found.bigram == pytest.approx(bigram, rel=1e-9)
    assert found.trigger_share == pytest.approx(share, abs=1e-9)


def test_the_loss_of_who_knows_the_law_is_the_best_loss(task, many):
    told = task.law(many)[:, :-1].gather(-1, many[:, 1:, None])[..., 0]
    losses = -told.log()
    on_trigger = task.is_trigger(many[:, :-1])
    assert losses[on_trigger].abs().max() == 0
    others = losses[~on_trigger]
    error = float(others.std() / math.sqrt(len(others)))
    # Neighbours in a sequence are not independent: three times the plain error.
    assert float(others.mean()) == pytest.approx(task.bayes_loss(24).bigram, abs=3 * 3 * error)
    assert float(on_trigger.double().mean()) == pytest.approx(task.bayes_loss(24).trigger_share, abs=0.01)


def test_the_builtin_corpus_has_a_vocabulary_of_65_and_batches_for_a_trainer():
    task = builtin_task()
    assert task.vocab_size == 65 and task.characters[:2] == (" ", "e")
    ids = batches(1, 0)
    assert ids.shape == (64, 128) and torch.equal(ids, task.batch(1, 0, samples=64, length=128))
    assert batches(1, 0, samples=2, length=9, task=make_task(TEXT)).shape == (2, 9)


def test_texts_and_sizes_that_cannot_be_meant_are_refused(task):
    with pytest.raises(BadText, match="2 different characters and the task 3 triggers"):
        make_task("abab")
    with pytest.raises(BadText, match="nothing follows the character 'z'"):
        make_task("abcdeabcdeabcdez", num_triggers=2)
    for wrong in ({"samples": 0}, {"length": 2}):
        with pytest.raises(UnknownOption, match="there must be a sequence"):
            task.batch(0, 0, **{"samples": 2, "length": 9, **wrong})
    with pytest.raises(UnknownOption, match="seed -1"):
        task.batch(-1, 0, samples=1, length=9)


def test_the_draw_is_the_inverse_of_the_cumulative_law():
    # Rows with zeros at both ends: nothing impossible is ever drawn.
    law = torch.tensor(
        [[0, 0, 0.5, 0.5, 0], [0, 0.2, 0.2, 0.2, 0.4], [0, 0, 0, 1, 0], [0, 0, 1, 0, 0], [0, 0, 1, 0, 0]]
    )
    ids = Backcopy(("a", "b", "c", "d"), law.double(), 1).batch(0, 0, samples=500, length=12)
    assert set(np.unique(ids[:, 1:])) == {2, 3}
