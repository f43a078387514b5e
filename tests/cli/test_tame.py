"""skerry tame as a user runs it, and what is left when it is stopped."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import zoo

import skerry as library
from skerry.errors import NotPossible, RunExists
from skerry.run import Run
from skerry.run.tame_tables import TAME_TABLES

FEW = ("--calibration", 4, "--samples", 4, "--tokens", 16, "--quiet")


def one_line(err):
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    return lines[0]


def test_the_document_tells_what_was_tried_proved_and_left_alone(inside, checkpoint, text):
    words = ("tame", checkpoint, "--text", text, "--bits", "w8a8-tensor", *FEW, "--json")
    code, out, err = inside(*words)
    assert code == 0 and err == ""
    document = json.loads(out)
    assert document["schema"] == 1 and document["chosen"] == "os+" and document["export"] is None
    assert [(r["method"], r["scheme"]) for r in document["methods"]] == [
        ("none", "float"),
        ("none", "w8a8-tensor"),
        ("os+", "float"),
        ("os+", "w8a8-tensor"),
    ]
    assert [r["chosen"] for r in document["methods"]] == [False, False, False, True]
    assert {e["check"] for e in document["equivalence"]} <= {"float64", "stored"}
    assert all(e["error"] <= e["bound"] for e in document["equivalence"])
    assert any("no bias" in note for note in document["notes"])
    run = Run.open(document["run"])
    for name in ("methods", "seam_changes", "channel_ranges", "equivalence"):
        assert run.table(name).schema.names == list(TAME_TABLES[name])
    assert run.table("seam_changes").num_rows >= 6
    assert inside(*words)[1] == out  # a repeat is the same answer


def test_the_parts_of_os_plus_are_a_table(inside, checkpoint, text):
    code, out, err = inside(
        "tame", checkpoint, "--text", text, "--bits", "w6a6-tensor", *FEW, "--parts", "--json"
    )
    assert code == 0, err
    document = json.loads(out)
    parts = document["parts"]
    assert [r["step"] for r in parts] == list(range(10)) and parts[0]["part"] == "as published"
    assert parts[0]["change"] is None and all(r["ci_low"] <= r["change"] <= r["ci_high"] for r in parts[1:])
    for before, after in itertools.pairwise(parts):
        assert after["change"] == pytest.approx(after["loss"] - before["loss"])
    assert Run.open(document["run"]).table("parts").num_rows == 10


def test_the_terminal_shows_methods_and_proof(inside, checkpoint, text):
    code, out, err = inside("tame", checkpoint, "--text", text, "--method", "smoothquant", *FEW)
    assert code == 0, err
    assert "smoothquant" in out and "w8a8" in out
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--bits", "w9a8"), "9"),
        (("--bits", "w8b8"), "w8b8"),
        (("--bits", "w4a16-g7"), "7"),
        (("--method", "os?x"), "os"),
        (("--method", "smothquant"), "did you mean 'smoothquant'"),
        (("--form", "onxx"), "onxx"),
        (("--target", "0"), "target"),
        (("--calibration", "0"), "--calibration is 0"),
        (("--samples", "-3"), "--samples is -3"),
        (("--set", "alpha=1"), "METHOD.OPTION=VALUE"),
        (("--set", "smoothquant.alpa=1", "--method", "smoothquant"), "did you mean 'alpha'"),
        (("--seed", "x"), "seed"),
        (("--mthod", "os+"), "mthod"),
    ],
)
def test_a_typo_is_one_line_and_exit_code_two(inside, checkpoint, text, words, said, tmp_path):
    out = ("--out", tmp_path / "x") if "--form" in words else ()
    few = [w for w in FEW if words[0] not in ("--calibration", "--samples") or w == "--quiet"]
    code, _, err = inside("tame", checkpoint, "--text", text, *few, *words, *out)
    assert code == 2
    assert said in one_line(err)
    assert not (tmp_path / "x").exists()


def test_an_output_folder_in_use_is_refused_before_the_model_is_loaded(inside, checkpoint, text, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").write_text("years of work")
    code, _, err = inside("tame", checkpoint, "--text", text, *FEW, "--out", tmp_path / "used")
    assert code == 2 and "thesis.tex" in one_line(err)
    assert (tmp_path / "used" / "thesis.tex").read_text() == "years of work"


def test_an_encoder_cannot_have_a_prefix_and_it_is_said(tmp_path):
    model = zoo.tiny("bert")
    ids = torch.randint(4, 90, (8, 12), generator=torch.Generator().manual_seed(0))
    with pytest.raises(NotPossible, match=r"prefix"):
        library.tame(model, ids, method="prefix", calibration=4, samples=4, run=tmp_path / "r")


def test_a_quantized_model_is_refused(tmp_path):
    model = zoo.tiny("llama")
    model.config.quantization_config = {"quant_method": "compressed-tensors"}
    ids = torch.randint(4, 90, (8, 12), generator=torch.Generator().manual_seed(0))
    with pytest.raises(NotPossible, match="quantized already"):
        library.tame(model, ids, calibration=4, samples=4, run=tmp_path / "r")


def test_nan_in_calibration_names_input_and_layer(tmp_path):
    model = zoo.tiny("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = torch.nan
    ids = torch.randint(4, 90, (8, 12), generator=torch.Generator().manual_seed(0))
    for method in ("os+", "smoothquant", "gptq"):
        with pytest.raises(library.errors.SkerryError, match=r"(?i)nan.*\b1\b|\b1\b.*nan"):
            library.tame(
                model, ids, method=method, calibration=4, samples=4, evaluate=False, run=tmp_path / method
            )


def test_a_group_that_does_not_divide_is_refused_with_the_sizes_that_do(inside, checkpoint, text):
    code, _, err = inside("tame", checkpoint, "--text", text, *FEW, "--bits", "w4a16-g24", "--method", "rtn")
    assert code == 2 and "24" in err and "8" in one_line(err)


@pytest.mark.parametrize(
    ("bits", "form", "method"),
    [("w8a8", "compressed-tensors", "os+"), ("w4a16-g8", "auto", "gptq"), ("w8a8", "float", "os+")],
)
def test_an_export_is_read_back_and_loads_without_us(skerry, checkpoint, text, tmp_path, bits, form, method):
    out = tmp_path / "out"
    words = ("--bits", bits, "--form", form, "--method", method, "--out", out)
    done = skerry("tame", checkpoint, "--text", text, *FEW, *words, "--json")
    assert done.returncode == 0, done.stderr
    export = json.loads(done.stdout)["export"]
    assert export["readback_error"] <= export["readback_bound"] <= 2e-6
    card = (out / "README.md").read_text()
    assert f"skerry tame small-llama --method {method} --bits {bits}" in card
    assert str(tmp_path) not in card
    code = (
        "import sys, torch, transformers; m = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval();"
        "print(m(torch.arange(4, 20)[None]).logits.shape[-1], 'skerry' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["96", "False"]
    # The same command again: the answer of the run, the folder as it is.
    again = skerry("tame", checkpoint, "--text", text, *FEW, *words, "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["export"] == export


def test_python_gives_the_changed_model_and_its_simulation(tmp_path):
    model = zoo.tiny("opt")
    ids = torch.randint(4, 90, (8, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(ids).logits
    done = library.tame(
        model, ids, method="os+", bits="w8a8-tensor", calibration=4, samples=4, run=tmp_path / "r"
    )
    assert done.model is model
    with torch.no_grad():
        assert float((model(ids).logits - before).norm() / before.norm()) < 2e-6
        with done.simulation.open(done.anatomy):
            quantized = model(ids).logits
    assert 1e-4 < float((quantized - before).norm() / before.norm()) < 0.5
    assert "os+ at w8a8-tensor" in repr(done) and done.notes is not None


def test_another_request_does_not_overwrite_a_run(tmp_path):
    ids = torch.randint(4, 90, (8, 12), generator=torch.Generator().manual_seed(0))
    library.tame(zoo.tiny("opt"), ids, method="rtn", calibration=4, samples=4, run=tmp_path / "r")
    with pytest.raises(RunExists, match="method is 'rtn' there"):
        library.tame(zoo.tiny("opt"), ids, method="os+", calibration=4, samples=4, run=tmp_path / "r")


BLOCKS = """
import os, signal, sys
from pathlib import Path
from skerry.tame.blocks import Blocks
from skerry.cli.main import run
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored in the background
keep, number, at = Blocks.remember, 0, int(sys.argv[1])
def remember(self, method, layer, state):
    global number
    keep(self, method, layer, state)
    number += 1
    if number == at:
        os.kill(os.getpid(), int(sys.argv[2]))
Blocks.remember = remember
run(sys.argv[3:])
"""


@pytest.mark.parametrize("method", ["os+", "gptq"])
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_tame_goes_on_behind_the_block_it_had_finished(
    skerry, checkpoint, text, tmp_path, method, signal_number
):
    words = ["tame", checkpoint, "--text", text, "--method", method, "--bits", "w4a8", *FEW, "--json"]
    whole = json.loads(skerry(*words, "--run", tmp_path / "whole").stdout)
    command = [
        sys.executable,
        "-c",
        BLOCKS,
        "1",
        str(int(signal_number)),
        *map(str, words),
        "--run",
        str(tmp_path / "cut"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    cut = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert cut.returncode == (-9 if signal_number == signal.SIGKILL else 130), cut.stderr
    run = Run.open(tmp_path / "cut")
    assert len(run.partial_stages("block-")) == 1 and "tame" not in run.record.stages
    shown = skerry(*[w for w in words if w not in ("--json", "--quiet")], "--run", tmp_path / "cut")
    assert shown.returncode == 0, shown.stderr
    assert "going on after 1 finished block" in shown.stderr
    document = json.loads(Run.open(tmp_path / "cut").text("tame.json"))
    for a, b in zip(document["methods"], whole["methods"], strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {
            k: v for k, v in b.items() if k != "seconds"
        }
    assert Run.open(tmp_path / "cut").partial_stages("block-") == []


def test_an_export_that_is_killed_leaves_no_folder_that_looks_finished(checkpoint, text, tmp_path):
    out = tmp_path / "out"
    words = [
        "tame",
        checkpoint,
        "--text",
        text,
        *FEW,
        "--method",
        "rtn",
        "--bits",
        "w8a8",
        "--out",
        out,
        "--json",
    ]
    command = [sys.executable, "-m", "skerry", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    limit = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < limit:
        if any(p.name.startswith(".out.") for p in tmp_path.iterdir()):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    process.communicate()
    assert process.returncode == -9
    assert not out.exists()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (out / "config.json").exists() and not [
        p for p in tmp_path.iterdir() if p.name.startswith(".out.")
    ]


def test_the_methods_are_explained(inside):
    code, out, _ = inside("tame", "--list", "--json")
    methods = {m["name"]: m for m in json.loads(out)["methods"]}
    assert code == 0 and {"os+", "smoothquant", "gptq", "awq", "rotation"} <= set(methods)
    assert all(m["source"] for m in methods.values())
