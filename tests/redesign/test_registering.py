"""A saved decoder of other choices is loaded by the Auto classes once skerry is imported, in whatever order."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from skerry.redesign.config import DecoderConfig
from skerry.redesign.decoder import DecoderForCausalLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention="kv-bias",
        norm="dyt",
        feed_forward="relu2",
        position="learned",
        bos_token_id=1,
    )
    model = DecoderForCausalLM(config)
    path = tmp_path_factory.mktemp("decoder")
    model.save_pretrained(path)
    return path, model.eval()


ORDERS = {
    "skerry first": "import skerry\nfrom transformers import AutoModelForCausalLM",
    "transformers first": "from transformers import AutoModelForCausalLM\nimport skerry",
    "only the tables first": "import transformers.models.auto.configuration_auto\nimport skerry\nfrom transformers import AutoModelForCausalLM",
    "a base class first": "import skerry\nfrom transformers import GenerationMixin\nfrom transformers import AutoModelForCausalLM",
    "our decoder first": "import skerry.redesign.decoder\nfrom transformers import AutoModelForCausalLM",
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_auto_class_loads_the_decoder_in_any_order_of_imports(folder, order):
    path, model = folder
    code = f"""
{ORDERS[order]}
import torch
model = AutoModelForCausalLM.from_pretrained({str(path)!r}).eval()
with torch.no_grad():
    print(type(model).__name__, repr(float(model(torch.arange(8)[None]).logits.double().sum())))
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    name, total = result.stdout.split()
    with torch.no_grad():
        expected = float(model(torch.arange(8)[None]).logits.double().sum())
    assert name == "DecoderForCausalLM" and abs(float(total) - expected) < 1e-5


def test_load_needs_nothing_registered_by_the_caller(folder):
    path, _ = folder
    code = f"from skerry.anatomy.load import load; print(type(load({str(path)!r}).model).__name__)"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "DecoderForCausalLM", result.stderr


def test_importing_skerry_leaves_transformers_and_torch_alone():
    code = "import sys, skerry; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
