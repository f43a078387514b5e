"""Products with half the digits: only where asked for, only where they are faster, and gone afterwards."""

import pytest
import torch
import zoo

from skerry.anatomy import resolve
from skerry.anatomy.coarse import can_be_coarse, coarse

HAS_BF16 = can_be_coarse(resolve(zoo.tiny("llama")))


@pytest.mark.skipif(not HAS_BF16, reason="products of float32 cannot be made coarse on this processor")
def test_products_are_those_of_rounded_factors_while_open_and_exact_again_afterwards():
    anatomy = resolve(zoo.tiny("llama"))
    torch.manual_seed(0)
    x, w = torch.randn(64, 64), torch.randn(48, 64)
    before = torch.nn.functional.linear(x, w)
    with coarse(anatomy) as is_coarse:
        found = torch.nn.functional.linear(x, w)
    assert is_coarse
    rounded = x.bfloat16().double() @ w.bfloat16().double().T
    assert float((found - rounded).norm() / rounded.norm()) < 1e-6
    # Two factors, each right to 2^-9 at worst and uniformly so: together below 2^-8 of the product.
    assert 1e-4 < float((found - before).norm() / before.norm()) < 2**-8
    assert torch.nn.functional.linear(x, w).equal(before)


def test_other_dtypes_are_left_alone():
    anatomy = resolve(zoo.tiny("llama", dtype=torch.float64))
    assert not can_be_coarse(anatomy)
    before = torch.backends.mkldnn.matmul.fp32_precision
    with coarse(anatomy) as is_coarse:
        assert torch.backends.mkldnn.matmul.fp32_precision == before
    assert not is_coarse


def test_an_error_inside_leaves_no_trace():
    anatomy = resolve(zoo.tiny("llama"))
    before = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(KeyError), coarse(anatomy):
        raise KeyError
    assert torch.backends.mkldnn.matmul.fp32_precision == before
