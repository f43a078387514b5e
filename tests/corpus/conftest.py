import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from corpus_words import word_tokenizer


@pytest.fixture(scope="session")
def silent():
    """Like GPT-2's: has a beginning-of-sequence token and does not add it."""
    return word_tokenizer(bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def decoder():
    """Like LLaMA's: begins every sequence."""
    return word_tokenizer(prefix=["<s>"], bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def encoder():
    """Like BERT's: wraps every sequence."""
    return word_tokenizer(prefix=["<s>"], suffix=["</s>"], cls_token="<s>", sep_token="</s>")


@pytest.fixture(scope="session")
def plain():
    """No beginning-of-sequence token at all."""
    return word_tokenizer()
