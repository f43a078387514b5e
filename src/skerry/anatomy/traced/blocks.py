"""Finds the blocks of a model in a recorded forward: the longest run of modules that hand [sample, position, width] to each other."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import NamedTuple

from torch import nn

from skerry.anatomy.traced.flow import Flow
from skerry.anatomy.traced.record import Call


class Pass(NamedTuple):
    """One run of one block: its call, and the nodes of the residual stream before and after it (roots)."""

    call: Call
    inp: int
    out: int


def find_blocks(flow: Flow, model: nn.Module, *, num_tokens: int) -> list[Pass]:
    """The runs of the blocks in the order of time; empty when nothing in the model looks like a list of blocks.

    Candidates are the children of one module. Of those that hold at least half as many parameters as the largest, the one with the
    most runs wins: a whole encoder is one step, its layers are many.
    """
    children: dict[str, list[Call]] = defaultdict(list)
    for call in flow.calls:
        if call.path:
            children[call.path.rpartition(".")[0]].append(call)
    modules = dict(model.named_modules())
    chains = [
        chain for path, calls in children.items() for chain in _chains(flow, modules[path], calls, num_tokens)
    ]
    sizes = {id(chain): _num_parameters(chain) for chain in chains}
    enough = max(sizes.values(), default=0) / 2
    large = [chain for chain in chains if sizes[id(chain)] >= enough]
    return max(large, key=lambda chain: (len(chain), sizes[id(chain)]), default=[])


def _num_parameters(chain: list[Pass]) -> int:
    blocks = {id(p.call.module): p.call.module for p in chain}
    return sum(p.numel() for block in blocks.values() for p in block.parameters())


def _chains(flow: Flow, owner: nn.Module, calls: list[Call], num_tokens: int) -> list[list[Pass]]:
    is_list = isinstance(owner, (nn.ModuleList, nn.Sequential, nn.ModuleDict))
    chains: list[list[Pass]] = [[]]
    for call in calls:
        step = _as_pass(flow, call, num_tokens)
        before = chains[-1][-1] if chains[-1] else None
        linked = (
            step is not None
            and before is not None
            and flow.nodes[before.out].shape[-1] == flow.nodes[step.inp].shape[-1]
            and (is_list or type(before.call.module) is type(call.module))
            and (
                before.out == step.inp
                or before.out in {flow.roots[i] for i in flow.ancestors(step.inp, since=before.out)}
            )
        )
        if step is not None and linked:
            chains[-1].append(step)
        elif step is not None:
            chains.append([step])
        else:
            chains.append([])
    return [chain for chain in chains if len(chain) > 1 or (chain and is_list)]


def _as_pass(flow: Flow, call: Call, num_tokens: int) -> Pass | None:
    """The call as a block: it has parts, and one tensor of its output is one that it got with something added to it."""
    if not any(True for _ in call.module.children()):
        return None
    shapes = flow.nodes
    first = [call.inp] if call.inp is not None else []
    last = [call.out] if call.out is not None else []
    for i in [*first, *call.inside]:
        for o in [*last, *call.outside]:
            shape = shapes[i].shape
            if (
                shape == shapes[o].shape
                and len(shape) >= 2
                and math.prod(shape[:-1]) == num_tokens
                and i != o
                and flow.reaches(flow.roots[i], flow.roots[o])
            ):
                return Pass(call, flow.roots[i], flow.roots[o])
    return None
