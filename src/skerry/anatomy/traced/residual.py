"""The residual stream of a recorded block and the roles of its norms, by what each norm reads and who reads it."""

from __future__ import annotations

from skerry.anatomy.traced.block import Block, Norm
from skerry.anatomy.traced.operations import TOKENWISE


def place_residual(block: Block) -> None:
    """Name the norms and the middle of the stream; attention and feed-forward must have been placed."""
    norms = block.placed.norms
    taken = {norm.call.index for found in norms.values() for norm in found}
    for norm in block.norms:
        if norm.call.index not in taken and (part := _role(block, norm)) is not None and part not in norms:
            norms[part] = [norm]
            if part.endswith(".add"):
                block.put(part.removeprefix("norm."), norm.out)
    _place_middle(block)


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


def _place_middle(block: Block) -> None:
    """The stream that the feed-forward's norm reads (or the feed-forward itself), if something was added to it in this block.

    Where no feed-forward was placed, it is the stream that a norm reads after attention was added to it.
    """
    mlp_in, attn_out = block.root("mlp.in"), block.root("attn.out")
    if mlp_in is not None:
        norm = next((n for n in block.norms if n.out == mlp_in), None)
        middles = [mlp_in if norm is None or block.is_stream(mlp_in) else norm.inp]
    else:
        middles = [n.inp for n in block.norms if attn_out is not None and block.is_made_from(n.inp, attn_out)]
    for middle in middles:
        made = block.behind(middle)
        is_new = middle >= block.since and bool(made.linears or not made.ops <= TOKENWISE)
        if is_new and block.carries_stream(middle) and block.is_stream(middle):
            block.put("resid.mid", middle)
            return
