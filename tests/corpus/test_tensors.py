"""Token ids given by the caller, and random ones: what is accepted, what is refused and in which words."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.corpus import from_tensors, random_tokens
from skerry.errors import BadTokens, TooLong, UnknownOption


def ids(*shape, high=50, seed=0):
    return torch.randint(1, high, shape, generator=torch.Generator().manual_seed(seed))


def kept(feed):
    return [
        row[keep].tolist() for batch in feed for row, keep in zip(batch.input_ids, batch.keep, strict=True)
    ]


def test_tensors_become_batches_as_they_are():
    items = [ids(3, 5), ids(2, 7, seed=1)]
    feed = from_tensors(items, vocab_size=50, max_positions=8)
    assert [torch.equal(b.input_ids, item) for b, item in zip(feed, items, strict=True)] == [True, True]
    assert all(bool(b.keep.all()) for b in feed)
    assert feed[1].sample.tolist() == [3, 4]
    assert (feed.card.num_samples, feed.card.num_tokens, feed.card.tokens_per_sample) == (5, 29, 7)
    assert (feed.card.bos, feed.card.seed, feed.card.text_sha256) == ("as the caller has put it", None, None)
    assert str(feed.card) == "token ids given by the caller: 5 samples of 7 tokens; as the caller has put it"


@pytest.mark.parametrize(
    "item", [ids(2, 4), ids(2, 4).numpy(), {"input_ids": ids(2, 4)}, [ids(2, 4).tolist()], ids(2, 4).int()]
)
def test_one_tensor_array_mapping_or_nested_list_is_enough(item):
    assert kept(from_tensors(item)) == ids(2, 4).tolist()


def test_masks_say_what_is_kept():
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    feed = from_tensors([{"input_ids": ids(2, 4), "attention_mask": mask, "labels": None}], vocab_size=50)
    assert torch.equal(feed[0].keep, mask[:, :3].bool())
    assert feed.card.num_tokens == 4 and feed[0].input_ids.shape == (2, 3)


def test_padding_on_the_left_is_moved_and_mentioned():
    mask = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    feed = from_tensors({"input_ids": torch.tensor([[9, 9, 1, 2], [9, 3, 4, 5]]), "attention_mask": mask})
    assert kept(feed) == [[1, 2], [3, 4, 5]]
    assert feed[0].keep.tolist() == [[True, True, False], [True, True, True]]
    assert feed.card.notes == ("2 samples padded on the left were moved to the left edge",)


@settings(max_examples=50, deadline=None)
@given(
    spans=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), min_size=1, max_size=6),
    width=st.integers(12, 14),
    step=st.integers(1, 4),
)
def test_padding_is_never_kept_and_nothing_else_is_lost(spans, width, step):
    tensor = torch.full((len(spans), width), 49)
    mask = torch.zeros_like(tensor)
    expected = []
    for row, (start, length) in enumerate(spans):
        values = torch.arange(1, length + 1)
        tensor[row, start : start + length], mask[row, start : start + length] = values, 1
        expected.append(values.tolist())
    feed = from_tensors([{"input_ids": tensor, "attention_mask": mask}], vocab_size=49, batch_size=step)
    assert kept(feed) == expected
    assert all(int(batch.input_ids.max()) < 49 for batch in feed)  # also what is not kept must be embeddable
    assert feed.card.num_tokens == sum(map(len, expected))


def test_a_digest_does_not_see_padding_or_batches():
    one = from_tensors(
        {
            "input_ids": torch.tensor([[1, 2, 7], [3, 4, 5]]),
            "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
        }
    )
    two = from_tensors([torch.tensor([[1, 2]]), torch.tensor([[3, 4, 5]])])
    other = from_tensors([torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5]])])
    assert one.card.ids_sha256 == two.card.ids_sha256 != other.card.ids_sha256


def test_an_endless_iterable_stops_at_the_samples_wanted():
    def endless():
        while True:
            yield ids(4, 3)

    assert from_tensors(endless(), samples=10).card.num_samples == 10


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (
            [torch.tensor([[1, 60, 2]])],
            r"item 0: token id 60 \(sample 0, position 1\) is outside the model's vocabulary of 50 ids \(0 to 49\)",
        ),
        ([ids(1, 3), torch.tensor([[1, -1]])], r"item 1: token id -1 \(sample 0, position 1\) is outside"),
        (
            [ids(4)],
            r"item 0: token ids have shape \[4\]; expected \[sample, position\]; one sample is ids\[None\]",
        ),
        ([ids(1, 2, 3)], r"have shape \[1, 2, 3\]; expected \[sample, position\]$"),
        ([torch.zeros(2, 0, dtype=torch.long)], r"have shape \[2, 0\]: nothing to measure"),
        ([torch.rand(2, 3)], r"item 0: token ids are float32; expected integers"),
        ([{"ids": ids(1, 2)}], r"item 0 has no 'input_ids'; it has 'ids'"),
        ([{}], r"item 0 has no 'input_ids'; it has nothing"),
        (
            [{"input_ids": ids(2, 3), "attention_mask": torch.ones(2, 4, dtype=torch.long)}],
            r"attention_mask has shape \[2, 4\], input_ids \[2, 3\]",
        ),
        (
            [{"input_ids": ids(1, 3), "attention_mask": torch.tensor([[1, 2, 0]])}],
            r"attention_mask holds 2; it may hold only 0 and 1",
        ),
        (
            [{"input_ids": ids(1, 3), "attention_mask": torch.ones(1, 3)}],
            r"item 0: attention_mask are float32",
        ),
        (
            [{"input_ids": ids(2, 3), "attention_mask": torch.tensor([[1, 1, 0], [0, 0, 0]])}],
            r"item 0, sample 1: attention_mask keeps no token",
        ),
        (
            [{"input_ids": ids(1, 3), "attention_mask": torch.tensor([[1, 0, 1]])}],
            r"item 0, sample 0: attention_mask has a gap between kept tokens",
        ),
        ([object()], r"item 0: token ids: object is no tensor; expected integers"),
        ([[[1, 2], [3]]], r"item 0: token ids: list is no tensor"),
        ("text", r"data of type str: expected an iterable of integer tensors"),
        (7, r"data of type int: expected an iterable"),
        ([], r"no token ids: the data yielded nothing \(a generator can be read only once\)"),
    ],
)
def test_what_cannot_be_tokens_is_refused_with_its_place(item, words):
    with pytest.raises(BadTokens, match=words):
        from_tensors(item, vocab_size=50)


def test_ids_without_a_known_vocabulary_are_still_bounded():
    with pytest.raises(BadTokens, match=r"token id 4294967296"):
        from_tensors(torch.tensor([[1 << 32]]))


def test_more_positions_than_the_model_has_are_refused():
    with pytest.raises(TooLong, match=r"item 1 has 9 positions; the model has 8: cut the samples"):
        from_tensors([ids(1, 8), ids(1, 9)], max_positions=8)
    padded = {"input_ids": ids(1, 9), "attention_mask": torch.tensor([[1] * 8 + [0]])}
    assert from_tensors(padded, max_positions=8)[0].input_ids.shape == (1, 8)


def test_random_tokens_are_uniform_over_what_is_allowed_and_decided_by_the_seed():
    feed = random_tokens(10, samples=200, tokens=50, batch_size=64, seed=1, exclude=[0, 3, 99, -1])
    flat = torch.cat([b.input_ids.flatten() for b in feed]).numpy()
    counts = np.bincount(flat, minlength=10)
    assert counts[[0, 3]].tolist() == [0, 0] and len(flat) == 10_000
    expected = 10_000 / 8
    assert np.abs(counts[counts > 0] - expected).max() < 5 * np.sqrt(
        expected
    )  # five standard deviations of a Poisson count
    same, other = (
        random_tokens(10, samples=200, tokens=50, batch_size=7, seed=s, exclude=[0, 3]) for s in (1, 2)
    )
    assert same.card.ids_sha256 == feed.card.ids_sha256 != other.card.ids_sha256


def test_the_card_of_random_tokens_says_that_there_is_no_text():
    card = random_tokens(10, samples=2, tokens=5, batch_size=2, exclude=[0]).card
    assert card.name == "random token ids (no tokenizer, no text)"
    assert card.bos == "no token begins a sample: ids are random"
    assert card.packing == "uniform over 9 ids, without 1 special ones"
    assert card.notes[0].startswith("random token ids, because the model has no tokenizer")
    assert card.text_sha256 is None and card.num_documents is None


def test_random_tokens_refuse_what_cannot_be_meant():
    with pytest.raises(
        BadTokens, match="a vocabulary of 2 ids without 2 special ones leaves nothing to draw"
    ):
        random_tokens(2, samples=1, tokens=1, batch_size=1, exclude=[0, 1])
    with pytest.raises(TooLong, match="samples of 9 tokens: the model has 8 positions"):
        random_tokens(20, samples=1, tokens=9, batch_size=1, max_positions=8)
    with pytest.raises(UnknownOption, match="samples=0"):
        random_tokens(20, samples=0, tokens=9, batch_size=1)
