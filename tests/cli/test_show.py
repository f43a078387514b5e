"""skerry show and report on every kind of run."""

from __future__ import annotations

import json

import pytest

from skerry.cli.main import run as skerry
from skerry.errors import NotPossible
from skerry.run import Run
from skerry.written import write_report


def made(path, name, document):
    with Run.begin(path, {"verb": name}, {}) as run:
        run.finish("stage", "key", texts={name: json.dumps(document)})
    return run


@pytest.mark.parametrize("name", ["births.json", "optimize.json"])
def test_a_run_without_a_report_says_what_shows_it(tmp_path, name):
    run = made(tmp_path / "run", name, {"schema": 1})
    with pytest.raises(NotPossible, match="skerry show"):
        write_report(run)


@pytest.mark.parametrize("name", ["births.json", "optimize.json", "study.json", "tame.json"])
def test_show_prints_the_document_of_a_run_that_is_not_of_one_model(tmp_path, capsys, name):
    made(tmp_path / "run", name, {"schema": 1, "word": "rock"})
    with pytest.raises(SystemExit) as end:
        skerry(["show", str(tmp_path / "run"), "--json"])
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out)["word"] == "rock"


def test_show_on_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        skerry(["show", str(tmp_path)])
    assert end.value.code == 2 and "run" in capsys.readouterr().err
