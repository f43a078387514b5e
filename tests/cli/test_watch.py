"""skerry watch on planted series of checkpoints, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import zoo

import skerry as library
from skerry.errors import BadTokens, UnknownModel, UnknownOption, UsageError
from skerry.redesign import watch_series as room
from skerry.redesign.births import Births
from skerry.redesign.births_checkpoints import check_vocabularies, find_series, step_of
from skerry.run import Run
from skerry.run.training_tables import TRAINING_TABLES

FEW = ("--samples", 4, "--tokens", 16, "--quiet")
STEPS = (0, 10, 20, 30, 40)


def planted(step, *, activation=20, weight=30, seed=0):
    """A model whose channel 7 is large from one step on, and whose down projection has a large entry from another on."""
    torch.manual_seed(seed)
    model = zoo.tiny("llama")
    with torch.no_grad():
        if step >= activation:
            model.model.embed_tokens.weight[:, 7] = 40.0
        if step >= weight:
            model.model.layers[1].mlp.down_proj.weight[2, 5] = 30.0
    return model


@pytest.fixture(scope="module")
def save(checkpoint):
    """`save(folder, model)`: a checkpoint with a tokenizer."""

    def call(folder, model):
        model.save_pretrained(folder)
        for file in checkpoint.glob("*token*"):
            shutil.copy(file, folder)

    return call


@pytest.fixture(scope="module")
def save_series(save):
    def call(folder, *, steps=STEPS, name="checkpoint-{}", **onsets):
        for step in steps:
            save(folder / name.format(step), planted(step, **onsets))
        return folder

    return call


@pytest.fixture(scope="module")
def series(tmp_path_factory, save_series):
    return save_series(tmp_path_factory.mktemp("training") / "small")


@pytest.fixture(scope="module")
def ids():
    return torch.randint(4, 90, (4, 16), generator=torch.Generator().manual_seed(0))


def one_line(err):
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    return lines[0]


def test_the_planted_births_are_told_in_their_order_with_figures(inside, series, text, tmp_path):
    code, out, err = inside("watch", series, "--text", text, *FEW, "--figures", tmp_path / "figures")
    assert code == 0, err
    assert "First activation outliers at step 20, then weight outliers at step 30." in " ".join(out.split())
    assert "Attention outliers were not born: their level did not grow by half." in " ".join(out.split())
    assert "5 checkpoints, step 0 to 40; each read 4 inputs of 16 tokens" in out
    assert "step 20 (after 10)" in out and "not born" in out and "▁▁█" in out
    channel = next(line for line in out.splitlines() if line.split()[:1] == ["7"])
    assert channel.split()[-2:] == ["20", "0–1"]
    assert max(map(len, out.splitlines())) <= 100
    drawn = sorted(p.name for p in (tmp_path / "figures").iterdir())
    assert drawn == [f"{n}.{e}" for n in ("channels", "levels", "metrics") for e in ("png", "svg")]
    assert (tmp_path / "figures/levels.png").read_bytes().startswith(b"\x89PNG")
    assert "Activations" in (tmp_path / "figures/levels.svg").read_text()
    (folder,) = tmp_path.glob("skerry-runs/*")
    assert inside("show", folder.relative_to(tmp_path))[1] == out
    assert "finished" in inside("runs")[1]


def test_the_document_is_strict_json_and_the_tables_have_their_columns(inside, series, text):
    code, out, err = inside("watch", series, "--text", text, *FEW, "--json")
    assert code == 0 and err == ""
    document = json.loads(out)
    assert document["schema"] == 1 and document["notes"] == []
    (one,) = document["series"]
    assert one["name"] == "small" and one["steps"] == list(STEPS)
    onsets = {o["kind"]: (o["before"], o["onset"]) for o in one["onsets"]}
    assert onsets == {"activation": (10, 20), "weight": (20, 30), "attention": (None, None)}
    assert {(c["site"], c["measure"]) for c in one["curves"]} >= {
        ("attn.probs", "value_drain"),
        ("mlp.down.in", "abs_max"),
        ("resid.out", "kurtosis_osp"),
    }
    run = Run.open(document["run"])
    for name in ("births", "birth_onsets", "birth_order", "birth_channels"):
        assert run.table(name).schema.names == list(TRAINING_TABLES[name])
    assert run.table("births").num_rows == 5 * 2 * (2 + 1 + 1)


def test_a_checkpoint_reads_as_a_monitor_would_have_read_the_model(series, ids, tmp_path):
    watched = library.births(series, ids, out=tmp_path / "run")
    rows = [r for r in watched.table("births").to_pylist() if r["step"] == 20]
    expected = Births(planted(20), rows=4).measure(20, ids)
    for row, wanted in zip(rows, expected, strict=True):
        for key, value in wanted.items():
            assert row[key] == (pytest.approx(value, rel=1e-6) if isinstance(value, float | list) else value)
    assert repr(watched).startswith("<Watch of small: 5 checkpoints")
    assert [o["kind"] for o in watched.onsets] == ["activation", "attention", "weight"]
    assert watched.order[0]["verdict"] == "undecided" and watched.notes == []
    assert library.open_run(watched.run.path).document == watched.document


def test_only_what_is_missing_is_measured(tmp_path, ids, monkeypatch, save, save_series):
    folder = save_series(tmp_path / "a", steps=(0, 10, 20))
    read = []

    def counted(watch, checkpoint, progress):
        read.append(checkpoint.step)
        if len(read) == 3 and stop:
            raise KeyboardInterrupt
        return whole(watch, checkpoint, progress)

    whole = room._read
    monkeypatch.setattr(room, "_read", counted)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        library.births(folder, ids, out=tmp_path / "run")
    assert read == [0, 10, 20]
    stop = False
    library.births(folder, ids, out=tmp_path / "run")
    assert read == [0, 10, 20, 20]
    save(folder / "checkpoint-30", planted(30))
    grown = library.births(folder, ids, out=tmp_path / "run")
    assert read == [0, 10, 20, 20, 30]
    assert grown.document["series"][0]["steps"] == [0, 10, 20, 30]
    # A checkpoint that was written anew is another one.
    save(folder / "checkpoint-10", planted(40, seed=1))
    library.births(folder, ids, out=tmp_path / "run")
    assert read == [0, 10, 20, 20, 30, 10]


def test_a_repeat_reads_no_model(series, text, tmp_path, monkeypatch):
    first = library.births(series, str(text), samples=4, tokens=16, out=tmp_path / "run")
    monkeypatch.setattr(room, "_plan", None)
    again = library.births(series, str(text), samples=4, tokens=16, out=tmp_path / "run")
    assert again.document == first.document


def test_several_trainings_give_an_order_with_intervals(inside, tmp_path, text, save_series):
    folders = [
        save_series(tmp_path / f"seed-{seed}", activation=10, weight=20 + 10 * (seed > 0), seed=seed)
        for seed in range(3)
    ]
    code, out, err = inside("watch", *folders, "--text", text, *FEW, "--figures", tmp_path / "f")
    assert code == 0, err
    assert "Over 3 trainings, with 95 % intervals over trainings" in out
    assert "activation 16.7 steps before weight [10, 20]: first in 3 of 3" in out
    assert "undecided" not in out
    assert {"channels-0.svg", "channels-2.png", "levels.svg"} <= {p.name for p in (tmp_path / "f").iterdir()}


def test_revisions_of_a_hub_repository_are_a_series(series, text, tmp_path):
    """In a process of its own: the hub's client reads where its cache is when it is imported."""
    home = tmp_path / "cache" / "models--org--tiny"
    (home / "refs").mkdir(parents=True)
    for number, step in enumerate((0, 10, 20)):
        commit = str(number) * 40
        shutil.copytree(series / f"checkpoint-{step}", home / "snapshots" / commit)
        (home / "refs" / f"step{step}").write_text(commit)
    env = {
        **os.environ,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    words = ["watch", "org/tiny", "--text", str(text), *map(str, FEW), "--json"]

    def call(revisions):
        command = [sys.executable, "-m", "skerry", *words, "--revisions", revisions]
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)

    done = call("step0,step10,step20")
    assert done.returncode == 0, done.stderr
    (one,) = json.loads(done.stdout)["series"]
    assert one["name"] == "org/tiny" and one["steps"] == [0, 10, 20]
    assert {o["kind"]: o["onset"] for o in one["onsets"]}["activation"] == 20
    refused = call("step0,step99")
    assert refused.returncode == 2
    assert "no model 'org/tiny' at revision 'step99'" in one_line(refused.stderr)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-500", 500),
        ("step_1000", 1000),
        ("step1000-tokens4B", 1000),
        ("stage1-step150-tokens1B", 150),
        ("global_step7", 7),
        ("epoch=3-step=1200", 1200),
        ("step20k", 20000),
        ("iter_0000300", 300),
        ("00042", 42),
        ("final", None),
        ("step-final", None),
    ],
)
def test_a_name_tells_its_step(name, step):
    assert step_of(name) == step


def test_series_are_found_in_folders_of_folders_and_by_hand(tmp_path):
    for name in (
        "a/checkpoints/step-1",
        "a/checkpoints/step-2/model",
        "a/optimizer-1",
        "b/x/step_3",
        "b/x/step_10",
    ):
        (tmp_path / name).mkdir(parents=True)
        if "optimizer" not in name:
            (tmp_path / name / "config.json").write_text("{}")
    (found,) = find_series([tmp_path / "a"])
    assert [c.step for c in found.checkpoints] == [1, 2] and found.name == "a"
    (found,) = find_series([tmp_path / "b/x/step_10", tmp_path / "b/x/step_3"])
    assert [c.step for c in found.checkpoints] == [3, 10] and found.name == "x"


def test_what_is_no_series_is_refused_before_anything_is_loaded(series, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnknownModel, match="empty holds no checkpoint: expected folders like checkpoint-500"):
        find_series([tmp_path / "empty"])
    shutil.copytree(series / "checkpoint-0", tmp_path / "final")
    with pytest.raises(UnknownModel, match="final is one model and tells no step"):
        find_series([tmp_path / "final"])
    with pytest.raises(UnknownModel, match="there is no folder org/name; for a hub id give --revisions"):
        find_series(["org/name"])
    with pytest.raises(UsageError, match="no checkpoints are named"):
        find_series([])
    with pytest.raises(UsageError, match="has one checkpoint, checkpoint-10: a series needs at least two"):
        find_series([series / "checkpoint-10"])
    with pytest.raises(UsageError, match="is a checkpoint and .* is not"):
        find_series([series / "checkpoint-10", series])
    with pytest.raises(UsageError, match="a training is named twice"):
        find_series([series, series])
    with pytest.raises(UsageError, match="revisions belong to one repository of the hub"):
        find_series([series], ["step0", "step1"])
    with pytest.raises(UsageError, match="revision 'main' tells no step"):
        find_series(["org/name"], ["step0", "main"])
    twice = tmp_path / "twice"
    for name in ("step-10", "checkpoint-10", "step-20"):
        shutil.copytree(series / "checkpoint-10", twice / name)
    with pytest.raises(
        UsageError, match="two checkpoints of twice are of step 10: .*checkpoint-10 and .*step-10"
    ):
        find_series([twice])


def test_another_vocabulary_is_refused(series, save, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(series / "checkpoint-0", folder / "checkpoint-0")
    save(folder / "checkpoint-1", zoo.tiny("llama", vocab_size=110))
    with pytest.raises(
        BadTokens, match="checkpoint-1 of mixed has a vocabulary of 110 and checkpoint-0 one of 96"
    ):
        check_vocabularies(find_series([folder]))


def test_the_tokenizer_of_the_folder_above_is_taken(series, text, tmp_path):
    folder = tmp_path / "bare"
    for step in (0, 20):
        shutil.copytree(series / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        for file in (folder / f"checkpoint-{step}").glob("*token*"):
            shutil.move(file, folder / file.name)
    done = library.births(folder, str(text), samples=4, tokens=16, out=tmp_path / "run")
    assert done.document["corpus"]["text_sha256"] is not None and done.notes == []


def test_mistakes_of_the_command_line_are_one_line(inside, tmp_path):
    code, out, err = inside("watch", tmp_path, "--samples", 0)
    assert (code, out) == (2, "") and one_line(err).startswith("skerry: --samples is 0")
    (tmp_path / "file").write_text("")
    code, out, err = inside("watch", tmp_path, "--figures", tmp_path / "file")
    assert code == 2 and "is a file; name a folder" in one_line(err)
    code, out, err = inside("watch")
    assert code == 2 and "no checkpoints are named" in one_line(err)


def test_an_unknown_format_of_figures_is_refused(series, ids, tmp_path):
    done = library.births(series, ids, out=tmp_path / "run")
    with pytest.raises(UnknownOption, match="no figure format 'gif'; choose of svg, png"):
        done.figures(tmp_path, ["gif"])
