"""The made-up runs, one each a session."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import synthetic


@pytest.fixture(scope="session")
def worlds():
    return {name: make() for name, make in synthetic.ALL.items()}


@pytest.fixture(scope="session")
def pages(worlds):
    from skerry.report import html

    return {name: html(*world) for name, world in worlds.items()}
