"""One small checkpoint with a tokenizer on disk, and the command line run as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import zoo

TEXT = "The quick brown fox jumps over the lazy dog. " * 400


def save_checkpoint(folder: Path, model) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    size = model.config.vocab_size
    trainer = trainers.BpeTrainer(
        vocab_size=min(size, 90), special_tokens=["<pad>", "<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folder of a small random llama with a tokenizer that puts <s> in front."""
    return save_checkpoint(tmp_path_factory.mktemp("models") / "small-llama", zoo.tiny("llama"))


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "fox.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def skerry(tmp_path):
    """`skerry("scan", ...)` in a process of its own, in an empty folder."""

    def call(*words, timeout=120, **environment):
        return subprocess.run(
            [sys.executable, "-m", "skerry", *map(str, words)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )

    return call


@pytest.fixture
def inside(tmp_path, monkeypatch, capfd):
    """`inside("scan", ...)` in this process: (exit code, stdout, stderr)."""
    from skerry.cli.main import run

    monkeypatch.chdir(tmp_path)

    def call(*words):
        with pytest.raises(SystemExit) as end:
            run([str(w) for w in words])
        out, err = capfd.readouterr()
        return end.value.code, out, err

    return call
