"""Models with a planted chain, built once each: block that makes an outlier, blocks that give attention to it, block that takes it away."""

from __future__ import annotations

from functools import cache

import pytest

from .planted_chain import plant_chain


@pytest.fixture(scope="session")
def planted():
    """`planted(model_type, seed, **options)`: see `plant_chain`; built once, so do not change it."""
    return cache(plant_chain)
