from skerry.corpus import from_text, sentences
from skerry.corpus.corpus import Corpus


def test_sentences_end_at_marks_before_a_capital_and_not_at_abbreviated_numbers():
    text = 'It costs 3.5 dollars per token read. "Is that too much for you?" Nobody of us could say so. Too short.'
    assert sentences(from_text(text)).documents == (
        "It costs 3.5 dollars per token read.",
        '"Is that too much for you?',
        "Nobody of us could say so.",
    )


def test_a_repeated_sentence_is_one_input_and_text_without_sentences_stays_whole():
    corpus = Corpus("c", ("One two three four five. One two three four five.", "One two three four five."))
    assert sentences(corpus).documents == ("One two three four five.",)
    short = Corpus("c", ("a b",))
    assert sentences(short) is short
