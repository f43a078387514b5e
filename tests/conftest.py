"""Shape annotations are checked at run time in the tests, where they cost nothing to users."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

_hook = install_import_hook("skerry", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent / "anatomy"))
import zoo  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's caches of runs and corpora, and none sees the user's settings."""
    for name in ("SKERRY_KERNEL", "SKERRY_DEBUG", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def tiny_model():
    """`tiny_model(name, **config)`: a fresh small random model of a family; `zoo.NAMES` lists them."""
    return zoo.tiny
