"""Pages of weights that lie in a file are given back, and nothing else is."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from skerry.anatomy.load import load
from skerry.anatomy.pages import give_back, let_go, letting_go

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are Linux's")
MIB = 1 << 20


@pytest.fixture
def mapped(tmp_path):
    """16 MiB of numbers in a file, and the same numbers in memory."""
    wanted = torch.randn(4096, 1024, generator=torch.Generator().manual_seed(0))
    save_file({"weight": wanted}, tmp_path / "weights.safetensors")
    return load_file(tmp_path / "weights.safetensors")["weight"], wanted


def resident_file_bytes():
    return (
        int(next(x for x in Path("/proc/self/status").read_text().splitlines() if "RssFile" in x).split()[1])
        << 10
    )


def test_read_pages_are_given_back_and_read_again(mapped):
    weight, wanted = mapped
    assert weight.equal(wanted)
    before = resident_file_bytes()
    given = let_go([weight])
    assert given > 15 * MIB
    assert before - resident_file_bytes() > 14 * MIB
    assert weight.equal(wanted)
    let_go([weight])
    assert let_go([weight]) == 0


def test_what_was_written_stays(mapped):
    weight, wanted = mapped
    for rows in (slice(0, 1), slice(100, 200), slice(4095, 4096)):
        weight[rows] += 1
        wanted[rows] += 1
    assert 0 < let_go([weight]) < 16 * MIB
    assert weight.equal(wanted)
    # Every page is the process's own by now.
    weight.mul_(2)
    assert let_go([weight]) == 0
    assert weight.equal(wanted * 2)


def test_a_tensor_in_memory_gives_nothing_back():
    x = torch.randn(1024, 1024)
    copy = x.clone()
    assert let_go([x, x.T, x[3:7], torch.zeros(3), torch.empty(0)]) == 0
    assert x.equal(copy)


def test_a_forward_that_lets_go_gives_what_any_forward_gives_and_keeps_no_page_and_no_hook(tmp_path):
    sizes = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 512, "num_hidden_layers": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(num_attention_heads=4, **sizes)).save_pretrained(tmp_path)
    read = load(tmp_path).model
    weights = [p.detach() for p in read.parameters()]
    ids = torch.randint(3, 500, (2, 16))
    with torch.no_grad():
        wanted = read(ids).logits
        assert let_go(weights) > MIB
        with letting_go(read):
            assert read(ids).logits.equal(wanted)
        assert let_go(weights) == 0
        assert read(ids).logits.equal(wanted)
    assert let_go(weights) > MIB
    assert not any(m._forward_hooks for m in read.modules())


def test_free_memory_can_be_asked_back_at_any_time():
    blocks = [torch.ones(100_000) for _ in range(50)]
    del blocks
    give_back()
