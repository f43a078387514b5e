"""Every statistic is tested on both paths: the plain one in torch and the compiled kernels."""

import numpy as np
import pytest
import torch

from skerry.corpus.batch import Batch
from skerry.measure.kernels import build


@pytest.fixture(params=["torch", "c"])
def path(request, monkeypatch):
    """Who reads: the plain path or the kernels."""
    if request.param == "c" and build._compiler() is None:
        pytest.skip("no C compiler here")
    monkeypatch.setenv("SKERRY_KERNEL", request.param)
    return request.param


@pytest.fixture(scope="session")
def make_batch():
    """`make_batch(num, length, ...)`: random tokens; `lengths` pads on the right, `left` on the left."""

    def make(num, length, *, lengths=None, left=None, first=0, vocabulary=50, seed=0):
        generator = torch.Generator().manual_seed(seed)
        keep = torch.ones(num, length, dtype=torch.bool)
        for row, size in enumerate(lengths or []):
            keep[row, size:] = False
        for row, size in enumerate(left or []):
            keep[row, :size] = False
        ids = torch.randint(0, vocabulary, (num, length), generator=generator)
        return Batch(ids, keep, torch.arange(num) + first)

    return make


@pytest.fixture(scope="session")
def assert_same():
    """`assert_same(a, b, rtol=...)`: results, columns, arrays and numbers are equal; counts exactly."""

    def check(a, b, *, rtol=1e-9, atol=1e-12, where=""):
        if a is None or b is None:
            assert a is b, where
        elif hasattr(a, "_asdict"):
            check(a._asdict(), b._asdict(), rtol=rtol, atol=atol, where=where)
        elif isinstance(a, dict):
            assert a.keys() == b.keys(), where
            for key in a:
                check(a[key], b[key], rtol=rtol, atol=atol, where=f"{where}.{key}")
        else:
            a, b = np.asarray(a), np.asarray(b)
            if a.dtype.kind == "f":
                np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=where)
            else:
                np.testing.assert_array_equal(a, b, err_msg=where)

    return check
