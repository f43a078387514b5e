"""skerry study as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from skerry.run import Run
from skerry.run.study_tables import STUDY_TABLES

FEW = ("--preset", "smoke", "--variants", "scaled", "--steps", "4", "--quiet", "--json")


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "fox.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 400)
    return path


def test_a_study_is_a_run_with_tables_a_report_and_trained_decoders(inside, text_file, tmp_path):
    words = ("study", "attention", "--text", text_file, "--out", tmp_path / "study", *FEW)
    code, out, err = inside(*words)
    assert code == 0 and err == "", err
    document = json.loads(out)
    assert document["schema"] == 1 and document["labels"] == ["softmax", "scaled"]
    run = Run.open(tmp_path / "study")
    for name, columns in STUDY_TABLES.items():
        assert run.table(name).schema.names == list(columns)
    arms = run.table("study_arms").to_pylist()
    assert [a["label"] for a in arms] == ["softmax", "scaled"] and all(a["loss"] > 0 for a in arms)
    assert all((run.path / a["folder"] / "training" / "model").is_dir() for a in arms)
    extra = next(r for r in document["quantities"] if (r["label"], r["quantity"]) == ("scaled", "parameters"))
    assert extra["versus"] == 66  # one row of 32 and a bias for each of two heads
    page = run.text("report.html")
    assert "scaled" in page and "http://" not in page.replace("http://www.w3.org", "")
    began = time.perf_counter()
    assert inside(*words)[1] == out and time.perf_counter() - began < 20  # read, not trained
    # Another variant in the same folder trains only that one.
    before = {a["folder"]: (run.path / a["folder"] / "result.json").stat().st_mtime_ns for a in arms}
    code, out, err = inside(*words[:6], *FEW[:2], "--variants", "scaled", "off-by-one", *FEW[4:])
    assert code == 0, err
    assert json.loads(out)["labels"] == ["softmax", "scaled", "off-by-one"]
    for folder, at in before.items():
        assert (run.path / folder / "result.json").stat().st_mtime_ns == at
    code, _, err = inside(*words[:6], *FEW[:4], "--steps", "5", "--quiet")
    assert code == 2 and "another run" in err and "recipe" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("study",), "name a study; there are attention"),
        (("study", "atention"), "did you mean 'attention'"),
        (("study", "attention", "--variants", "scalled"), "did you mean 'scaled'"),
        (("study", "attention", "--preset", "lab"), "there is no preset"),
        (("study", "attention", "--processes", "0"), "--processes is 0"),
        (("study", "attention", "--text", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_a_mistake_is_told_in_one_line(inside, words, told):
    code, out, err = inside(*words)
    assert code == 2 and out == "" and len(err.strip().splitlines()) == 1 and told in err


def test_what_can_be_studied_is_listed(inside):
    code, out, err = inside("study", "--list")
    assert code == 0 and err == ""
    for word in ("attention", "laptop", "full", "softmax", "sink-logit", "125m"):
        assert word in out
    document = json.loads(inside("study", "--list", "--json")[1])
    assert set(document) == {"schema", "studies", "presets", "sizes", "variants"}


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(text_file, tmp_path):
    words = [sys.executable, "-m", "skerry", "study", "attention", "--text", str(text_file), "--out", "s"]
    words += ["--preset", "smoke", "--processes", "1", "--steps", "300", "--no-speed"]

    def start():
        return subprocess.Popen(
            words,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    process = start()
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        # The first is finished and the second has begun to train.
        if (
            list(tmp_path.glob("s/arms/*/result.json"))
            and len(list(tmp_path.glob("s/arms/*/training/losses.jsonl")))
            and len(list(tmp_path.glob("s/arms/*/training"))) >= 2
        ):
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "goes on where it stopped" in err
    finished = {p: p.stat().st_mtime_ns for p in tmp_path.glob("s/arms/*/result.json")}
    assert finished
    process = start()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert len(list(tmp_path.glob("s/arms/*/result.json"))) == 3
    assert all(p.stat().st_mtime_ns == at for p, at in finished.items())
