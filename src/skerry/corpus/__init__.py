"""What do we feed it? Text and token ids to batches, deterministic by seed."""

from skerry.corpus.batch import Batch
from skerry.corpus.batches import batches
from skerry.corpus.builtin import builtin
from skerry.corpus.corpus import Corpus
from skerry.corpus.feed import CorpusCard, Feed
from skerry.corpus.read import from_text, read
from skerry.corpus.sentences import sentences
from skerry.corpus.tensors import from_tensors, random_tokens

__all__ = [
    "Batch",
    "Corpus",
    "CorpusCard",
    "Feed",
    "batches",
    "builtin",
    "from_tensors",
    "from_text",
    "random_tokens",
    "read",
    "sentences",
]
