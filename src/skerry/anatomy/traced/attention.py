"""Attention in a recorded block: what feeds the softmax is q and k, what its result multiplies is v, what reads that is o."""

from __future__ import annotations

from collections.abc import Sequence

from skerry.anatomy.traced.block import Block, Piece
from skerry.anatomy.traced.flow import Flow
from skerry.anatomy.traced.operations import PRODUCTS
from skerry.anatomy.traced.record import Attention, Ref


def place_attention(block: Block) -> None:
    """Name the parts of the block's attention; a block without a softmax over positions is left as it is."""
    seen = [
        a
        for a in block.flow.trace.attention
        if block.since <= a.out < block.end and _scores_positions(block, a)
    ]
    for attention in seen:
        if (found := _operands(block, attention)) is not None:
            _place(block, attention, *found)
            break
    if seen and block.placed.attention is None:
        block.placed.attention = seen[0]
        _count_heads(block, seen[0], None)
        block.placed.doubts.append("what the queries and keys of attention are made from could not be told")
    if len(seen) > 1:
        block.placed.doubts.append(
            f"{len(seen)} softmaxes over scores run in one block; only the first is placed"
        )


def _scores_positions(block: Block, attention: Attention) -> bool:
    """Whether a softmax is over positions (and not over experts, kernel taps or classes); a learned sink adds one."""
    if attention.logits is None:
        return True
    shape = block.flow.nodes[attention.logits].shape
    return len(shape) in (3, 4) and block.num_positions <= shape[-1] <= block.num_positions + 1


def _place(block: Block, attention: Attention, query: int, key: int, value: int | None, mixed: int) -> None:
    block.placed.attention = attention
    _count_heads(block, attention, query)
    for name, node in (("q", query), ("k", key), ("v", value)):
        if node is not None:
            _place_operand(block, name, node)
    _place_output(block, mixed)
    _place_sink(block, attention)
    _place_input(block, [n for n in (query, key, value) if n is not None])


# From the softmax to its neighbours


def _operands(block: Block, attention: Attention) -> tuple[int, int, int | None, int] | None:
    """Nodes of queries, keys, values and of the mixed values."""
    if attention.query is not None and attention.key is not None:
        return attention.query, attention.key, attention.value, attention.out
    assert attention.logits is not None
    product, mixing = _scores(block, attention.logits), _mixing(block, attention.out)
    if product is None or mixing is None:
        return None
    query, key = _factors(block.flow, product)
    others = [n for n in _factors(block.flow, mixing) if not block.is_made_from(n, attention.out)]
    return query, key, others[0] if others else None, mixing


def _scores(block: Block, logits: int) -> int | None:
    """The product of queries and keys: of the products nearest behind the scores the first both of whose sides come from tokens."""
    flow, found, todo, seen = block.flow, [], [logits], {logits}
    while todo:
        i = todo.pop()
        if flow.nodes[i].op in PRODUCTS and flow.roots[i] not in flow.by_out:
            sides = [block.linears_behind(n) for n in _factors(flow, i)]
            found += [i] if len(sides) == 2 and all(sides) else []
            continue
        fresh = [p for p in flow.nodes[i].parents if p >= block.since and p not in seen]
        seen.update(fresh)
        todo += fresh
    return min(found, default=None)


def _mixing(block: Block, probs: int) -> int | None:
    """The product of probabilities and values."""
    todo, seen = [probs], {probs}
    while todo:
        i = todo.pop(0)
        for child in block.flow.children.get(i, ()):
            if block.flow.nodes[child].op in PRODUCTS:
                return child
            if child not in seen and child < block.end:
                seen.add(child)
                todo.append(child)
    return None


def _factors(flow: Flow, product: int) -> tuple[int, ...]:
    """The two factors of a product of data, without an added term."""
    replay = flow.nodes[product].replay
    return () if replay is None else tuple(int(a) for a in replay[1] if isinstance(a, Ref))[-2:]


# Parts


def _count_heads(block: Block, attention: Attention, query: int | None) -> None:
    node = attention.query if attention.logits is None else attention.logits
    assert node is not None
    shape = block.flow.nodes[node].shape
    heads = shape[1] if len(shape) == 4 else max(1, shape[0] // block.num_samples)
    block.placed.heads = (heads, heads, 0 if query is None else block.flow.nodes[query].shape[-1])


def _place_operand(block: Block, name: str, node: int) -> None:
    chosen = block.source(node)
    if chosen is None:
        behind = sorted(block.own_name(lin.name) for lin in block.linears_behind(node))
        if behind:
            block.placed.doubts.append(f"attn.{name} is not measured: it is made from {' and '.join(behind)}")
        return
    lin = chosen.linear
    block.put(f"attn.{name}", lin.out, chosen.columns)
    block.placed.pieces[f"w.{name}"] = chosen
    if name == "k":
        heads, _, head_dim = block.placed.heads
        block.placed.heads = (heads, max(1, chosen.width // max(head_dim, 1)), head_dim)
    if name != "v":
        nodes = block.behind(node).nodes
        between = [n for n in block.norms if n.call.out in nodes and n.inp >= lin.out]
        between = [n for n in between if lin in block.behind(n.inp).linears]
        if between:
            block.placed.norms[f"norm.{name}"] = between


def _place_output(block: Block, mixed: int) -> None:
    flow, todo, seen = block.flow, [mixed], {mixed}
    taken = {id(piece.linear) for piece in block.placed.pieces.values()}
    readers = {lin.inp: lin for lin in reversed(block.whole) if id(lin) not in taken}
    output = None
    while todo and output is None:
        i = todo.pop(0)
        output = readers.get(flow.roots[i])
        for child in flow.children.get(i, ()):
            if child not in seen and child < block.end and flow.nodes[child].op not in PRODUCTS:
                seen.add(child)
                todo.append(child)
    if output is not None:
        block.put("attn.mix", output.inp, width=output.num_in)
        block.put("attn.out", output.out)
        block.placed.pieces["w.o"] = Piece(output)
        block.doubt_addition(
            output, [lin for lin in block.whole if lin.inp == output.inp and lin is not output]
        )


def _place_sink(block: Block, attention: Attention) -> None:
    """One parameter per head that is joined to the scores."""
    if attention.logits is None:
        return
    behind = [block.flow.nodes[i] for i in block.behind(attention.logits).nodes]
    sinks = [n.param for n in behind if n.param is not None and n.shape == (block.placed.heads[0],)]
    if block.flow.nodes[attention.logits].shape[-1] == block.num_positions + 1 and len(sinks) == 1:
        block.placed.sink = sinks[0]


def _place_input(block: Block, operands: Sequence[int]) -> None:
    """What q, k and v read, if that is one tensor; low-rank chains are followed to their first layer."""
    behind = [block.linears_behind(node) for node in operands]
    todo, found = [lin for linears in behind for lin in linears], {}
    while todo:
        lin = todo.pop()
        before = block.linears_behind(lin.inp)
        if before and not block.carries_stream(lin.inp):
            todo += before
        else:
            found[lin.inp] = lin.num_in
    if all(behind) and len(found) == 1:
        for node, width in found.items():
            block.put("attn.in", node, width=width)
        _set_chained_apart(block)


def _set_chained_apart(block: Block) -> None:
    """A weight site reads attn.in; the last layer of a low-rank chain does not, so its weight gets no name."""
    placed = block.placed
    for part in ("w.q", "w.k", "w.v"):
        if part in placed.pieces and placed.pieces[part].linear.inp != block.root("attn.in"):
            piece = placed.chained[part] = placed.pieces.pop(part)
            name = block.own_name(piece.linear.name)
            placed.doubts.append(
                f"{part} is not measured: {name} ends a chain of layers and does not read attn.in"
            )
