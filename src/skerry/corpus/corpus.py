"""Text with a name: what a scan reads before a tokenizer has seen it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Corpus:
    """Documents of text, in a fixed order.

    Attributes:
        name: What the report calls it: a path, a data set's name, or the built-in corpus with its version.
        documents: The texts. Samples of a packed corpus may span two documents, joined by an empty line.
        notes: What was left out while reading, in words.
    """

    name: str
    documents: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def num_characters(self) -> int:
        """Length of all documents."""
        return sum(len(document) for document in self.documents)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the documents in UTF-8, separated by NUL: two corpora with the same text are the same text."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(document.encode("utf-8", "surrogatepass"))
            digest.update(b"\0")
        return digest.hexdigest()

    def __repr__(self) -> str:
        return (
            f"<Corpus {self.name}: {len(self.documents):,} documents, {self.num_characters:,} characters, "
            f"sha256 {self.sha256[:12]}; batches(corpus, tokenizer, ...) cuts it>"
        )
