"""docs/runs.md, docs/json.md and the JSON Schema are what the program does."""

import runpy
from pathlib import Path

import pytest

from skerry.outliers.page import json_page, runs_page
from skerry.run.tables import TABLES

DOCS = Path(__file__).parents[2] / "docs"
PAGES = runpy.run_path(str(DOCS / "build.py"))["PAGES"]


@pytest.mark.parametrize("name", PAGES)
def test_the_generated_pages_are_up_to_date(name):
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "run `./dev docs`"


def test_every_column_and_every_field_has_a_meaning():
    for name, columns in TABLES.items():
        assert all(c.meaning for c in columns.values()), name
        assert f"### {name}\n" in runs_page()
    assert "| `` |" not in json_page() and "|  |" not in json_page()
