"""What a traced anatomy does not cover, in sentences, and how much it does cover."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from skerry.anatomy.model import Anatomy
from skerry.anatomy.traced.block import Block
from skerry.anatomy.traced.flow import Flow, Linear


def unplaced(
    flow: Flow, blocks: Sequence[Block], anatomy: Anatomy, lost: Mapping[str, Sequence[int]]
) -> list[str]:
    """One sentence for each kind of place without a name, with the blocks that have it."""
    found: dict[str, list[int]] = defaultdict(list)
    covered = {id(bound.parameter) for bound in anatomy.matrices.values()}
    for layer, block in enumerate(blocks):
        for sentence in _in_block(block, covered):
            found[sentence].append(layer)
    for sentence, layers in lost.items():
        found[sentence] += [layer for layer in layers if layer not in found[sentence]]
    sentences = [f"{numbers(layers)}: {s}" for s, layers in found.items() if layers]
    return [*sentences, *_outside(flow, blocks, anatomy)]


def _in_block(block: Block, covered: set[int]) -> list[str]:
    named, path = _named(block), block.step.call.path + "."
    about: list[tuple[str, str]] = []
    for lin in block.linears:
        size = f"(linear {lin.num_in} -> {lin.num_out})"
        if id(lin) not in named:
            text = f"{size} has no role; its input and output are not measured"
        elif lin.param is None:
            text = f"{size} keeps its weights packed; they are not measured"
        else:
            continue
        about.append((lin.name.removeprefix(path), text))
    mentioned = {lin.param for lin in block.linears}
    for name, p in block.step.call.module.named_parameters():
        if name.endswith("bias") or sum(n > 1 for n in p.shape) < 2:
            continue
        if id(p) not in covered and path + name not in mentioned:
            about.append(
                (name, f"(parameter {' x '.join(map(str, p.shape))}) has no role; it is not measured")
            )
    # experts.3.w1 and experts.4.w1 are one kind; a number that tells two sublayers apart stays.
    kinds: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, text in dict.fromkeys(about):
        kinds[re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name), text].append(name)
    return [f"{names[0] if len(names) == 1 else general} {text}" for (general, text), names in kinds.items()]


def _outside(flow: Flow, blocks: Sequence[Block], anatomy: Anatomy) -> list[str]:
    modules = {id(block.step.call.module) for block in blocks}
    known = {bound.matrix.path for bound in anatomy.matrices.values()}
    sentences = [
        f"outside the blocks: {lin.name} (linear {lin.num_in} -> {lin.num_out}) has no role; it is not measured"
        for lin in flow.linears
        if not _runs_in(flow, lin, modules) and (lin.param is None or lin.param not in known)
    ]
    return list(dict.fromkeys(sentences))


def _runs_in(flow: Flow, lin: Linear, blocks: set[int]) -> bool:
    frame = flow.nodes[lin.out].frame
    while frame >= 0:
        if id(flow.calls[frame].module) in blocks:
            return True
        frame = flow.calls[frame].parent
    return False


def _named(block: Block) -> set[int]:
    """Linear layers with a role; a second run of the same weights counts with the first."""
    placed = [*block.placed.pieces.values(), *block.placed.chained.values(), *block.placed.shared[1].values()]
    pieces = [piece.linear for piece in placed]
    params = {lin.param for lin in pieces if lin.param is not None}
    return {id(lin) for lin in [*pieces, *block.linears] if lin in pieces or lin.param in params}


def numbers(layers: Sequence[int]) -> str:
    """Block numbers in words: block 3; blocks 0 to 23; blocks 0, 2 and 4."""
    layers = sorted(set(layers))
    if len(layers) == 1:
        return f"block {layers[0]}"
    if layers == list(range(layers[0], layers[-1] + 1)):
        return f"blocks {layers[0]} to {layers[-1]}"
    return f"blocks {', '.join(map(str, layers[:-1]))} and {layers[-1]}"


def confidence(blocks: Sequence[Block], anatomy: Anatomy) -> str:
    """How much of the blocks was named, in one line."""
    total = sum(len(block.linears) for block in blocks)
    named = sum(sum(id(lin) in _named(block) for lin in block.linears) for block in blocks)
    num, fed = len(blocks), sum("mlp.out" in block.placed.nodes for block in blocks)
    attended = sum(block.placed.attention is not None for block in blocks)
    return (
        f"traced from one forward: {named} of {total} linear layers in {num} block{'' if num == 1 else 's'} placed, "
        f"attention seen in {attended} of {num}, feed-forward in {fed} of {num}"
    )
