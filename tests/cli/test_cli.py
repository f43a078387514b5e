import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jsonschema
import pytest

from skerry.outliers.page import json_schema

FEW = ("--samples", 8, "--tokens", 24, "--quiet")


def one_line(err: str) -> str:
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    return lines[0]


def test_help_and_version_are_quick_and_load_no_torch(skerry):
    code = "import sys\nfrom skerry.cli.main import run\ntry:\n run(['--help'])\nexcept SystemExit: pass\nprint(sorted({'torch','transformers','numpy','pyarrow'} & set(sys.modules)), file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.strip() == "[]"
    for verb in ("audit", "scan", "runs", "show", "report", "diff", "sites", "presets"):
        assert verb in result.stdout
    assert skerry("--version").stdout.strip() == __import__("skerry").__version__


@pytest.mark.parametrize("verb", ["audit", "scan", "runs", "show", "report", "diff", "sites", "presets"])
def test_every_verb_has_help(inside, verb):
    code, out, _ = inside(verb, "--help")
    assert code == 0 and f"skerry {verb}" in out


def test_scan_writes_one_document_and_nothing_else(skerry, checkpoint, text):
    result = skerry("scan", checkpoint, "--text", text, "--samples", 8, "--tokens", 24, "--json")
    assert result.returncode == 0 and result.stderr == ""
    document = json.loads(result.stdout)
    jsonschema.validate(document, json_schema())
    assert list(document)[:2] == ["schema", "run"] and document["schema"] == 1
    assert document["model"]["num_samples"] == 8 and document["model"]["tokens_per_sample"] == 24


def test_audit_shows_findings_and_writes_the_report_and_a_repeat_is_the_same(
    inside, checkpoint, text, tmp_path
):
    first = inside("audit", checkpoint, "--text", text, *FEW)
    assert first[0] == 0, first[2]
    assert "skerry-runs/small-llama-" in first[1]
    (report,) = tmp_path.glob("skerry-runs/*/report-*.html")
    assert report.read_text().startswith("<!doctype html>")
    assert inside("audit", checkpoint, "--text", text, *FEW)[1] == first[1]
    assert len(list(tmp_path.glob("skerry-runs/*"))) == 1
    (folder,) = tmp_path.glob("skerry-runs/*")
    code, out, _ = inside("runs")
    assert code == 0 and "report written" in " ".join(out.split())
    assert inside("show", folder)[1].splitlines()[0] == first[1].splitlines()[0]
    assert json.loads(inside("show", folder, "--json")[1])["run"] == str(folder.relative_to(tmp_path))
    assert inside("report", folder, "--out", "copy.html")[1].strip() == "copy.html"
    assert (tmp_path / "copy.html").read_bytes() == report.read_bytes()
    code, out, _ = inside("diff", folder, folder)
    assert code == 0 and "0 came, 0 went, 0 changed" in out
    assert json.loads(inside("diff", folder, folder, "--json")[1])["came"] == []


def test_another_preset_reads_the_same_numbers_again(inside, checkpoint, text, tmp_path):
    inside("scan", checkpoint, "--text", text, *FEW)
    (tables,) = tmp_path.glob("skerry-runs/*/tables")
    before = {p.name: p.stat().st_mtime_ns for p in tables.iterdir()}
    assert inside("scan", checkpoint, "--text", text, *FEW, "--preset", "massive")[0] == 0
    assert {p.name: p.stat().st_mtime_ns for p in tables.iterdir()} == before


def test_sites_are_listed_for_the_vocabulary_and_for_a_model(inside, checkpoint):
    rows = json.loads(inside("sites", "--json")[1])["sites"]
    assert {"resid.out", "mlp.down.in", "w.down"} <= {r["site"] for r in rows}
    document = json.loads(inside("sites", checkpoint, "--json")[1])
    assert document["family"] == "llama" and {"0.w.q", "head.in"} <= {r["site"] for r in document["sites"]}
    assert "mlp.down.in" in inside("sites")[1] and "the same tensor as 0.resid.out" in " ".join(
        inside("sites", checkpoint)[1].split()
    )
    assert {"skerry", "massive", "llm-int8"} <= {
        p["name"] for p in json.loads(inside("presets", "--json")[1])["presets"]
    }


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["audti"], 2, 'Unknown command "audti". Did you mean "audit"?'),
        (["scan", "x", "--sampels", "3"], 2, "Unknown option: --sampels. Did you mean --samples?"),
        (
            ["scan", "x", "--samples", "many"],
            2,
            'Invalid value for --samples: unable to convert "many" into int.',
        ),
        (["scan", "x", "--samples", "0"], 2, "--samples is 0; it must be at least 1"),
        (["scan", "x", "--batch-size", "-1"], 2, "--batch-size is -1; it must be at least 1"),
        (["scan", "{model}", "--sites", "mlp.dwon"], 2, "there is no site 'mlp.dwon'; did you mean"),
        (
            ["scan", "{model}", "--preset", "masive"],
            2,
            "there is no preset 'masive'; did you mean 'massive'?",
        ),
        (["scan", "{model}", "--bos", "wiht"], 2, "bos is 'wiht'; it must be auto, with or without"),
        (["scan", "{model}", "--dtype", "fp17"], 2, "no dtype 'fp17'"),
        (["scan", "{model}", "--device", "cud"], 2, "no device 'cud'"),
        (["scan", "{model}x"], 2, "did you mean"),
        (["scan", "{model}", "--text", "nosuch.txt"], 2, "nosuch.txt"),
        (["scan", "{model}", "--text", "{text}", "--tokens", "99999"], 2, "the model has"),
        (["scan", "{model}", "--export-mask", "no/such/folder/m.json"], 2, "there is no folder"),
        (["scan", "{model}", "--out", "{text}"], 2, "is a file; --out must name a folder"),
        (["show", "nowhere"], 2, "nowhere holds no run"),
        (["runs", "nowhere"], 2, "there is no folder nowhere"),
        (["diff", "nowhere", "nowhere"], 2, "nowhere holds no run"),
    ],
)
def test_a_mistake_is_one_line_with_its_exit_code_and_no_run_is_begun(
    inside, checkpoint, text, tmp_path, words, code, said
):
    words = [w.format(model=checkpoint, text=text) for w in words]
    got, out, err = inside(*words)
    assert (got, out) == (code, "")
    assert said in one_line(err) and one_line(err).startswith("skerry: ")
    assert not (tmp_path / "skerry-runs").exists()


def test_a_mistake_with_json_leaves_stdout_empty(inside):
    code, out, err = inside("scan", "no-such-model", "--json")
    assert (code, out) == (2, "") and "no-such-model" in one_line(err)


def test_weights_with_nan_are_measured_and_located(inside, checkpoint, text, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    name = next(n for n in tensors if n.endswith("layers.1.mlp.down_proj.weight"))
    tensors[name][3, 5] = torch.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    code, out, _ = inside("scan", broken, "--text", text, *FEW, "--json")
    document = json.loads(out)
    assert code == 0
    assert any(
        "w.down" in w and "NaN" in w and "row 3" in w and "column 5" in w for w in document["warnings"]
    ), document["warnings"]
    assert "NaN" in inside("scan", broken, "--text", text, *FEW)[1]


def test_a_model_of_nothing_but_nan_is_told_and_not_a_crash(inside, checkpoint, text, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    name = next(n for n in tensors if "embed_tokens" in n)
    tensors[name][:] = torch.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    code, out, err = inside("audit", broken, "--text", text, *FEW, "--json")
    assert code == 0, err
    document = json.loads(out)
    jsonschema.validate(document, json_schema())
    assert document["findings"] == [] and document["warnings"]


def test_a_damaged_table_is_named(inside, checkpoint, text, tmp_path):
    inside("scan", checkpoint, "--text", text, *FEW)
    table = next(tmp_path.glob("skerry-runs/*/tables/channels-*.parquet"))
    table.write_bytes(table.read_bytes()[:-10])
    code, out, err = inside("scan", checkpoint, "--text", text, *FEW)
    assert code == 1 and table.name in one_line(err) and "damaged" in err


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_scan_goes_on_to_the_same_numbers(skerry, checkpoint, text, tmp_path, kill):
    words = ("scan", checkpoint, "--text", text, "--samples", 150, "--tokens", 24, "--batch-size", 1)
    whole = skerry(*words, "--json", "--out", "whole")
    slow = "import time\nfrom skerry.outliers import stages\nstages.SAVE_EVERY_SECONDS = 0\nread = stages.Meter.read\ndef wait(self, batch):\n    time.sleep(0.02)\n    read(self, batch)\nstages.Meter.read = wait\nfrom skerry.cli.main import run\nrun()"
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *map(str, words), "--out", "parts"],
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    end = time.time() + 60
    pointer = tmp_path / "parts" / "run.json"
    while not (pointer.exists() and json.loads(pointer.read_text())["partials"]) and time.time() < end:
        time.sleep(0.02)
    process.send_signal(kill)
    err = process.communicate()[1]
    assert process.returncode == (130 if kill == signal.SIGINT else -9)
    if kill == signal.SIGINT:
        assert err.strip().splitlines()[-1] == "skerry: stopped; the same command goes on where it stopped"
    again = skerry(*words, "--out", "parts")
    assert again.returncode == 0 and "going on after" in again.stderr
    tables = {p.name for p in tmp_path.glob("whole/tables/*")}
    assert {p.name for p in tmp_path.glob("parts/tables/*")} == tables  # the names hold the content keys
    assert whole.returncode == 0 and not list(tmp_path.glob("parts/partial/*"))


def test_the_mask_is_exported(inside, checkpoint, text, tmp_path):
    code, _, err = inside("scan", checkpoint, "--text", text, *FEW, "--export-mask", "mask.json")
    assert code == 0, err
    assert json.loads((tmp_path / "mask.json").read_text())


def test_a_closed_pipe_is_no_error(checkpoint, tmp_path):
    command = f"{sys.executable} -m skerry sites | head -1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
