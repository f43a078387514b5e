"""Tokenizers whose ids tell exactly which words a sample holds."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = 6000


def word_tokenizer(*, prefix=(), suffix=(), **named):
    """One id per word `w0 w1 ...`, after the special tokens; so ids tell exactly which words a sample holds."""
    specials = ["<unk>", "<pad>", "<s>", "</s>"]
    vocab = {token: i for i, token in enumerate([*specials, *(f"w{i}" for i in range(WORDS))])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(specials)
    if prefix or suffix:
        core.post_processor = processors.TemplateProcessing(
            single=[*prefix, "$A", *suffix], special_tokens=[(t, vocab[t]) for t in {*prefix, *suffix}]
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", **named)


def words(start, stop):
    return " ".join(f"w{i}" for i in range(start, stop))
