"""Text cut into sentences: what an encoder of passages is given in use, one at a time."""

from __future__ import annotations

import re

from skerry.corpus.corpus import Corpus

# A full stop, question or exclamation mark, perhaps a closing bracket or quote, then white space and a capital, a digit or a quote.
_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])")
FEWEST_WORDS = 5


def sentences(corpus: Corpus) -> Corpus:
    """The corpus with a document per sentence; shorter ones than five words and repeated ones are left out."""
    found: dict[str, None] = {}
    for document in corpus.documents:
        for sentence in _END.split(document):
            words = sentence.split()
            if len(words) >= FEWEST_WORDS:
                found.setdefault(" ".join(words))
    return Corpus(f"{corpus.name}, by sentence", tuple(found), corpus.notes) if found else corpus
