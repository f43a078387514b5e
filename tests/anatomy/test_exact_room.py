"""Memory of a block's float64 weights is used again by the next block, whatever the block is."""

import pytest
import torch
import zoo

from skerry.anatomy import exact, resolve


@pytest.mark.parametrize("name", zoo.NAMES)
def test_memory_used_again_gives_what_fresh_memory_gives(name, monkeypatch):
    # Models this small would otherwise use fresh memory throughout.
    monkeypatch.setattr(exact, "_SMALL", 1)
    model = zoo.tiny(name)
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    again = exact.run_float64(anatomy, ids)
    torch.testing.assert_close(again, exact.run_float64(anatomy, ids, whole=True), rtol=1e-12, atol=1e-12)
    assert all(v.dtype == torch.float32 and v.equal(before[k]) for k, v in model.state_dict().items())


def test_a_change_of_one_block_does_not_reach_the_next(monkeypatch):
    monkeypatch.setattr(exact, "_SMALL", 1)
    model = zoo.tiny("llama")
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)

    def first_only(layer):
        if layer == 0:
            model.model.layers[0].mlp.down_proj.weight.data.zero_()

    changed = exact.run_float64(anatomy, ids, change=first_only)
    whole = exact.run_float64(anatomy, ids, change=first_only, whole=True)
    torch.testing.assert_close(changed, whole, rtol=1e-12, atol=1e-12)
    assert float((changed - exact.run_float64(anatomy, ids)).abs().max()) > 1e-6
