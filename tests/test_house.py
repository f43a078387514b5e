"""The house rules that a machine can check."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "skerry"
ROOMS = [
    "anatomy",
    "corpus",
    "measure",
    "run",
    "outliers",
    "causes",
    "impact",
    "tame",
    "redesign",
    "claims",
    "report",
    "app",
    "cli",
]
FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str | None:
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else None


def imported_rooms(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        for name in names:
            words = name.split(".")
            if words[0] == "skerry" and len(words) > 1 and words[1] in ROOMS:
                yield words[1], node.lineno


@pytest.mark.parametrize("path", [f for f in FILES if room_of(f)], ids=lambda f: str(f.relative_to(SOURCE)))
def test_imports_between_rooms_point_one_way(path):
    own = ROOMS.index(room_of(path))
    below = [(room, line) for room, line in imported_rooms(path) if ROOMS.index(room) > own]
    # measure reads batches (corpus) and sites (anatomy); nothing reads a room below itself.
    assert not below, f"{path}: imports from a lower room: {below}"


def test_nothing_outside_anatomy_names_an_architecture():
    pattern = re.compile(r"model_type\s*(==|in\b)|[\"'](llama|gpt2|opt|bloom|bert|mamba)[\"']")
    for path in FILES:
        if room_of(path) != "anatomy":
            assert not pattern.search(path.read_text()), path


def test_no_file_of_the_core_is_over_400_lines():
    long = {str(p.relative_to(SOURCE)): n for p in FILES if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_nothing_is_ever_unpickled():
    for path in FILES:
        text = path.read_text()
        assert not re.search(r"pickle\.loads?\(", text), path
        assert "torch.load(" not in text or "weights_only=True" in text, path


@pytest.mark.parametrize("module", ["skerry", "skerry.cli", "skerry.errors"])
def test_importing_loads_nothing_heavy(module):
    code = f"import sys, {module}; heavy = {{'torch', 'transformers', 'numpy', 'pyarrow', 'duckdb', 'scipy'}} & set(sys.modules); print(sorted(heavy))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
