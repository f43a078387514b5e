"""The residual stream of a recorded block and the roles of its norms, by what each norm reads and who reads it."""

from __future__ import annotations

from skerry.anatomy.traced.block import Block, Norm
from skerry.anatomy.traced.flow import TOKENWISE


def place_residual(block: Block) -> None:
    """Name the norms and the middle of the stream; attention and feed-forward must have been placed."""
    norms = block.placed.norms
    taken = {norm.call.index for found in norms.values() for norm in found}
    for norm in block.norms:
        if norm.call.index not in taken and (part := _role(block, norm)) is not None and part not in norms:
            norms[part] = [norm]
            if part.endswith(".add"):
                block.put(part.removeprefix("norm."), norm.out)
    mlp_in = block.root("mlp.in")
    if mlp_in is not None:
        _place_middle(block, mlp_in)


def _role(block: Block, norm: Norm) -> str | None:
    attn_out, mlp_out = block.root("attn.out"), block.root("mlp.out")
    if block.is_stream(norm.out):
        for end, name in ((attn_out, "attn"), (mlp_out, "mlp")):
            if end == norm.inp:  # only this branch: the norm lies before the sum
                return f"norm.{name}.add"
        for end, name in ((mlp_out, "mlp"), (attn_out, "attn")):
            if end is not None and block.is_made_from(norm.inp, end):
                return f"norm.{name}.resid"
        return None
    if norm.out == block.root("attn.in"):
        return "norm.attn"
    return "norm.mlp" if norm.out == block.root("mlp.in") else None


def _place_middle(block: Block, mlp_in: int) -> None:
    """The stream that the feed-forward's norm reads (or the feed-forward itself), if something was added to it in this block."""
    norm = next((n for n in block.norms if n.out == mlp_in), None)
    middle = mlp_in if norm is None or block.is_stream(mlp_in) else norm.inp
    made = block.behind(middle)
    if middle >= block.since and block.is_stream(middle) and (made.linears or not made.ops <= TOKENWISE):
        block.put("resid.mid", middle)
