import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from skerry.errors import BrokenRun, NoSpace, NotARun, RunExists
from skerry.run import Run, list_runs
from skerry.run import files as files_module
from skerry.run.space import check_space

TABLE = pa.table({"a": [1, 2, 3]})


def begin(path, **request):
    return Run.begin(path, {"model": "m", "seed": 0, **request}, {"versions": {}})


def finished(path):
    with begin(path) as run:
        run.finish("scan", "key", tables={"numbers": TABLE}, texts={"summary.json": '{"findings": []}'})
    return Run.open(path)


def test_a_finished_stage_is_read_back(tmp_path):
    run = finished(tmp_path / "r")
    assert run.table("numbers").equals(TABLE)
    assert run.sql("select sum(a) s from numbers").to_pylist() == [{"s": 6}]
    assert run.finished("scan", "key") and not run.finished("scan", "another key")
    assert "Run of m" in repr(run)


def test_names_hold_the_content_key_and_nothing_is_left_half_written(tmp_path):
    run = finished(tmp_path / "r")
    for record in run.record.stages["scan"].files.values():
        assert record.sha256[:16] in record.path
    assert not [p for p in run.path.rglob("*") if p.name.startswith(".writing")]
    assert not (run.path / "lock").exists()


def test_a_damaged_file_is_refused_by_name(tmp_path):
    run = finished(tmp_path / "r")
    file = run.file("numbers")
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    with pytest.raises(BrokenRun, match=rf"{file.name} is damaged: its content does not match"):
        run.table("numbers")
    with pytest.raises(BrokenRun, match=file.name):
        run.finished("scan", "key")
    file.unlink()
    with pytest.raises(BrokenRun, match=rf"{file.name} is missing from the run"):
        run.table("numbers")


def test_a_table_that_is_not_there_yet_is_named_with_what_is(tmp_path):
    with pytest.raises(BrokenRun, match=r"has no 'heads' yet; it has numbers, summary.json"):
        finished(tmp_path / "r").table("heads")


def test_partial_results_go_on_and_are_removed_when_the_stage_is_finished(tmp_path):
    with begin(tmp_path / "r") as run:
        assert run.load_partial("scan", "key") is None
        run.save_partial("scan", "key", {"x": torch.arange(3)}, done=1)
        run.save_partial("scan", "key", {"x": torch.arange(4)}, done=2)
        assert len(list((run.path / "partial").iterdir())) == 1
        state, done = run.load_partial("scan", "key")
        assert done == 2 and torch.equal(state["x"], torch.arange(4))
        assert run.load_partial("scan", "another key") is None
        run.finish("scan", "key", tables={"numbers": TABLE})
        assert not list((run.path / "partial").iterdir())


def test_a_damaged_partial_result_is_left_aside_and_logged(tmp_path):
    with begin(tmp_path / "r") as run:
        run.save_partial("scan", "key", {"x": torch.arange(3)}, done=1)
        path = next((run.path / "partial").iterdir())
        path.write_bytes(b"nonsense")
        assert run.load_partial("scan", "key") is None
        assert "left aside" in (run.path / "log.txt").read_text()


def test_another_request_may_not_use_the_folder_and_is_told_what_differs(tmp_path):
    finished(tmp_path / "r")
    with pytest.raises(
        RunExists, match=r"holds another run: seed is 0 there and 1 here. Choose another folder with --out"
    ):
        begin(tmp_path / "r", seed=1)


def test_a_folder_with_other_files_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunExists, match=r"is not empty and holds no run \(it has thesis.tex\)"):
        begin(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunExists, match="is a file; --out must name a folder"):
        begin(tmp_path / "thesis.tex")


def test_a_path_without_a_run_names_its_neighbours(tmp_path):
    finished(tmp_path / "model-123")
    with pytest.raises(NotARun, match=r"holds no run \(no run.json\); did you mean 'model-123'\?"):
        Run.open(tmp_path / "model-124")


def test_a_damaged_pointer_and_a_newer_schema_are_refused(tmp_path):
    path = finished(tmp_path / "r").path / "run.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "schema_version": 99}))
    with pytest.raises(BrokenRun, match="newer skerry"):
        Run.open(path.parent)
    path.write_text("{half")
    with pytest.raises(BrokenRun, match="run.json cannot be read"):
        Run.open(path.parent)


def test_only_one_living_process_writes(tmp_path):
    code = (
        "import sys, time\nfrom skerry.run import Run\n"
        f"run = Run.begin({str(tmp_path / 'r')!r}, {{'model': 'm', 'seed': 0}}, {{}})\nprint('in', flush=True)\ntime.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().strip() == "in"
        with pytest.raises(RunExists, match=f"is being written by process {process.pid}"):
            begin(tmp_path / "r")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    begin(tmp_path / "r").close()  # a killed process does not lock for ever


WRITER = """
import os, sys
import pyarrow as pa, torch
from skerry.run import Run
from skerry.run import files, directory
kill_at, count = int(sys.argv[2]), 0
def counted(function):
    def call(*args, **kwargs):
        global count
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), 9)
        result = function(*args, **kwargs)
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), 9)
        return result
    return call
for module, name in ((files, "_sync"), (files, "sync_folder"), (files, "hash_of")):
    setattr(module, name, counted(getattr(module, name)))
total = torch.zeros((), dtype=torch.int64)
with Run.begin(sys.argv[1], {"model": "m", "seed": 0}, {}) as run:
    if not run.finished("scan", "k"):
        done = 0
        if (partial := run.load_partial("scan", "k")) is not None:
            total, done = partial[0]["total"], partial[1]
        for i in range(done, 4):
            total = total + 10 ** i
            run.save_partial("scan", "k", {"total": total}, done=i + 1)
        run.finish("scan", "k", tables={"numbers": pa.table({"total": [int(total)]})})
print("whole")
"""


def test_a_process_killed_anywhere_leaves_a_run_that_goes_on_to_the_same_result(tmp_path):
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    wholes = 0
    for kill_at in range(1, 60, 3):
        path = tmp_path / f"r{kill_at}"
        first = subprocess.run([sys.executable, script, path, str(kill_at)], capture_output=True, text=True)
        wholes += "whole" in first.stdout
        assert first.returncode in (0, -9), first.stderr
        second = subprocess.run([sys.executable, script, path, "0"], capture_output=True, text=True)
        assert second.stdout.strip() == "whole", second.stderr
        assert Run.open(path).table("numbers").to_pylist() == [{"total": 1111}]
        if wholes:
            break
    assert wholes, "the last kill point must lie behind the end of the work"


def test_a_full_disk_is_one_sentence_and_the_run_so_far_stays(tmp_path, monkeypatch):
    path = finished(tmp_path / "r").path
    with begin(path) as run:

        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(files_module, "_sync", full)
        with pytest.raises(NoSpace, match=r"no space left on the disk of .*the run so far is kept"):
            run.finish("more", "k", tables={"numbers2": TABLE})
        monkeypatch.undo()
    assert Run.open(path).table("numbers").equals(TABLE)
    assert not list(path.rglob(".writing*"))


def test_a_real_file_size_limit_is_a_full_disk(tmp_path):
    code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import numpy as np, pyarrow as pa
from skerry.run import Run
from skerry.errors import NoSpace
with Run.begin({str(tmp_path / "r")!r}, {{"model": "m"}}, {{}}) as run:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
    try:
        run.finish("scan", "k", tables={{"numbers": pa.table({{"a": np.random.default_rng(0).random(100000)}})}})
    except NoSpace as error:
        print("NoSpace", error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.startswith("NoSpace no space left on the disk"), result.stderr
    assert Run.open(tmp_path / "r").record.stages == {}


def test_a_disk_that_is_too_small_is_refused_beforehand(tmp_path):
    check_space(tmp_path / "a" / "b", 1)
    with pytest.raises(NoSpace, match=r"the run needs about .* MB and the disk of"):
        check_space(tmp_path / "a" / "b", 10**18)


def test_a_reader_beside_a_writer_never_sees_half_a_file(tmp_path):
    path = finished(tmp_path / "r").path
    code = (
        "import sys, time, pyarrow as pa\nfrom skerry.run import Run\nend = time.time() + 2\ni = 0\n"
        f"with Run.begin({str(path)!r}, {{'model': 'm', 'seed': 0}}, {{}}) as run:\n"
        "    while time.time() < end:\n        i += 1\n        run.finish('more', str(i), tables={'growing': pa.table({'i': [i] * 1000})})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    reads = 0
    while process.poll() is None:
        run = Run.open(path)
        assert run.table("numbers").equals(TABLE)
        reads += 1
    assert process.wait() == 0 and reads > 10


def test_runs_are_listed_newest_first_with_damaged_ones_named(tmp_path):
    from skerry.run.listing import listing

    finished(tmp_path / "old")
    time.sleep(0.01)
    finished(tmp_path / "new")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{")
    names = [r.path.name if isinstance(r, Run) else "damaged" for r in list_runs(tmp_path)]
    assert names == ["damaged", "new", "old"]
    rows = listing(tmp_path)
    assert rows[0]["state"].startswith("damaged: ") and rows[1]["findings"] == 0
    with pytest.raises(NotARun, match="there is no folder"):
        listing(tmp_path / "nowhere")


@pytest.fixture
def _interruptible():
    """A process that a shell put into the background inherits that it ignores the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c_waits_for_the_unit_of_work_and_a_second_one_does_not():
    from skerry.run.interrupt import deferred_interrupt

    with deferred_interrupt() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_run_folder_of_a_relative_path_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begin(Path("a/b/c")).close()
    assert (tmp_path / "a/b/c/run.json").is_file()
