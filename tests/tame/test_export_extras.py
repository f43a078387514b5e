"""Exports for llama.cpp and onnxruntime: each is read back by somebody else's code, or refused by name."""

import importlib.util

import numpy as np
import pytest
import torch
import zoo

from skerry.anatomy.dense import dense_maps
from skerry.anatomy.resolve import resolve
from skerry.errors import MissingExtra, NotPossible
from skerry.tame.export import CardFacts, Export, ReadBackFailed, export
from skerry.tame.export_gguf import _interleave, _uninterleave
from skerry.tame.readback import outputs_of, relative_error

FACTS = CardFacts("tiny-tamed", "someone/tiny")
FULL = {
    "llama": {"intermediate_size": 64},
    "mistral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False, "layer_types": None},
}


def asked(model, **more):
    return Export(model, None, FACTS, **more)


gguf_there = pytest.mark.skipif(
    any(importlib.util.find_spec(n) is None for n in ("gguf", "accelerate")),
    reason="the extra `gguf` is not installed",
)
onnx_there = pytest.mark.skipif(
    any(importlib.util.find_spec(n) is None for n in ("onnx", "onnxscript", "onnxruntime")),
    reason="the extra `onnx` is not installed",
)


@gguf_there
@pytest.mark.parametrize(
    ("name", "form", "error"),
    [("llama", "gguf-q4_0", 0.5), ("mistral", "gguf-f16", 2e-3), ("qwen2", "gguf-q8_0", 0.03)],
)
def test_transformers_reads_the_values_that_a_gguf_file_should_hold(name, form, error, tmp_path):
    """Bit for bit what the file holds, and as near to the float model as the type allows."""
    import transformers

    model = zoo.tiny(name, **FULL[name])
    done = export(asked(model), tmp_path / "out", form=form)
    assert done.readback.max_relative_error <= 2e-6
    file = f"model-{form.removeprefix('gguf-')}.gguf"
    assert set(done.files) == {"README.md", file}
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", gguf_file=file, dtype="float32"
    )
    ids, _ = zoo.tokens(model)
    difference = relative_error(outputs_of(again, ids), outputs_of(model, ids))
    assert 0 < difference < error
    if name == "mistral":
        assert done.readback.loaded_as == "LlamaForCausalLM"


@gguf_there
def test_a_gguf_file_holds_what_the_package_makes_of_our_weights(tmp_path):
    from gguf import GGMLQuantizationType, GGUFReader, quants

    model = zoo.tiny("llama", **FULL["llama"])
    export(asked(model), tmp_path / "out", form="gguf-q8_0")
    tensors = {t.name: t for t in GGUFReader(tmp_path / "out" / "model-q8_0.gguf").tensors}
    down = model.model.layers[1].mlp.down_proj.weight.detach().numpy()
    stored = tensors["blk.1.ffn_down.weight"]
    assert stored.tensor_type == GGMLQuantizationType.Q8_0
    assert np.array_equal(stored.data, quants.quantize(down, GGMLQuantizationType.Q8_0))
    assert tensors["output_norm.weight"].tensor_type == GGMLQuantizationType.F32
    # ggml rotates neighbours: row 1 of a head is the first row of its second half (heads of 8 rows).
    query = quants.dequantize(tensors["blk.0.attn_q.weight"].data, GGMLQuantizationType.Q8_0)
    want = model.model.layers[0].self_attn.q_proj.weight.detach().numpy()
    assert np.abs(query[1] - want[4]).max() < 0.02 < np.abs(query[1] - want[1]).max()


@pytest.mark.parametrize("shape", [(32, 5), (32,)])
def test_interleaving_and_back_changes_nothing(shape):
    x = torch.randn(shape)
    assert torch.equal(_uninterleave(_interleave(x, 4), 4), x)
    assert not torch.equal(_interleave(x, 4), x)


@gguf_there
def test_rows_that_blocks_do_not_divide_stay_f16_and_the_card_says_so(tmp_path):
    done = export(asked(zoo.tiny("llama")), tmp_path / "out", form="gguf-q8_0")
    assert any("blk.0.ffn_down.weight is stored as f16: its rows of 48 values" in n for n in done.notes)
    assert "blk.0.ffn_down.weight is stored as f16" in (tmp_path / "out" / "README.md").read_text()
    assert any("no vocabulary" in n for n in done.notes)


@gguf_there
def test_a_value_that_float16_cannot_hold_is_stored_as_float32(tmp_path):
    model = zoo.tiny("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[3, 5] = 1e5
    done = export(asked(model), tmp_path / "out", form="gguf-f16")
    assert any("blk.0.ffn_down.weight is stored as f32" in n for n in done.notes)
    assert done.readback.max_relative_error <= 2e-6


REFUSED = {
    "gpt2": "GGUF has no plain layout for 'gpt2'",
    "mixtral": "GGUF has no plain layout for 'mixtral'",
    "mistral": "no word for sliding_window=4",
    "starcoder2": "its blocks have no gate",
    "phi3": "is not part of a gated block with separate q, k and v",
    "qwen3": r"q_proj\.weight is \[64, 32\].*a reader expects",
}


@gguf_there
@pytest.mark.parametrize("name", REFUSED)
def test_architectures_that_gguf_cannot_state_are_refused_by_name(name, tmp_path):
    with pytest.raises(NotPossible, match=REFUSED[name]) as caught:
        export(asked(zoo.tiny(name)), tmp_path / "out", form="gguf-f16")
    assert "cannot be exported to GGUF" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@gguf_there
def test_a_bias_that_no_header_declares_is_refused(tmp_path):
    model = zoo.tiny("llama")
    for dense in dense_maps(resolve(model)):
        if dense.name.endswith("o_proj"):
            dense.add_bias().normal_()
    with pytest.raises(
        NotPossible, match="the header cannot state that .*bias is there, so a reader would drop it"
    ):
        export(asked(model), tmp_path / "out", form="gguf-f16")


@gguf_there
def test_scaled_rotary_embeddings_are_refused(tmp_path):
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(NotPossible, match="rotary embeddings of type 'linear' have no place"):
        export(asked(zoo.tiny("llama", rope_parameters=rope)), tmp_path / "out", form="gguf-f16")


@onnx_there
@pytest.mark.parametrize("name", ["llama", "bert", pytest.param("mixtral", marks=pytest.mark.slow)])
def test_onnxruntime_computes_the_model_for_any_length(name, tmp_path):
    import onnxruntime

    model = zoo.tiny(name)
    done = export(asked(model), tmp_path / "out", form="onnx")
    assert (
        0 <= done.readback.max_relative_error <= 1e-5
    )  # measured 3e-7 to 8e-7; 1e-4 is what an export may have
    assert done.readback.loaded_as == "onnxruntime"
    session = onnxruntime.InferenceSession(
        str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    ids, _ = zoo.tokens(model, num_samples=3, length=9)
    (values,) = session.run(None, {"input_ids": ids.numpy()})
    assert relative_error(torch.from_numpy(values), outputs_of(model, ids)) <= 1e-5


@onnx_there
def test_a_graph_of_another_function_is_not_kept(tmp_path, monkeypatch):
    from skerry.tame import export_onnx

    other = zoo.tiny("bert", seed=1)
    real = export_onnx._write
    monkeypatch.setattr(export_onnx, "_write", lambda _model, ids, path: real(other, ids, path))
    with pytest.raises(ReadBackFailed, match="computes another function"):
        export(asked(zoo.tiny("bert")), tmp_path / "out", form="onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("form", "extra"), [("gguf-f16", "gguf"), ("onnx", "onnx")])
def test_a_form_whose_library_is_missing_says_what_to_install(form, extra, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=rf'pip install "skerry\[{extra}\]"'):
        export(asked(zoo.tiny("llama")), tmp_path / "out", form=form)
    assert list(tmp_path.iterdir()) == []
