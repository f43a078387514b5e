"""Which parameters are matrices, tables or vectors: weight decay, orthogonal updates and preconditioning belong to some of them only.

Matrices are the `weight`s with two axes or more that a block multiplies by, tables the embeddings and the head, vectors everything else:
norms, biases, and what an attention variant keeps per head (sink logits, keys and values), whatever its shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from skerry.errors import NotPossible
from skerry.redesign.optimisers.kind import Group


@dataclass
class Parameters:
    """The trainable parameters of a model, each once (tied ones too).

    Attributes:
        matrices: Weights [row column] of the blocks.
        head: Weights [token channel] of an output map that is no embedding.
        embeddings: Tables [token channel] of tokens and positions, tied heads among them.
        vectors: Everything else.
    """

    matrices: list[nn.Parameter] = field(default_factory=list)
    head: list[nn.Parameter] = field(default_factory=list)
    embeddings: list[nn.Parameter] = field(default_factory=list)
    vectors: list[nn.Parameter] = field(default_factory=list)

    def groups(self, *, lr: float, weight_decay: float, decay_embeddings: bool = False) -> list[Group]:
        """Parameter groups with `role`, `lr` and `weight_decay`; empty ones are left out.

        Args:
            lr: Of every group: a schedule sets one rate in all of them.
            weight_decay: Of matrices and of the head.
            decay_embeddings: Whether embeddings decay as well.
        """
        table_decay = weight_decay if decay_embeddings else 0.0
        found = [
            ("matrices", self.matrices, weight_decay),
            ("head", self.head, weight_decay),
            ("embeddings", self.embeddings, table_decay),
            ("vectors", self.vectors, 0.0),
        ]
        return [
            {"params": list(params), "role": role, "lr": lr, "weight_decay": decay}
            for role, params, decay in found
            if params
        ]


def split_parameters(model: nn.Module) -> Parameters:
    """Sort the trainable parameters of a model by what they are, in the order of the model.

    Raises:
        NotPossible: Nothing in the model can be trained.
    """
    tables = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    output = getattr(model, "get_output_embeddings", lambda: None)()
    heads = {output.weight} - tables if output is not None else set()
    found = Parameters()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter in tables:
            found.embeddings.append(parameter)
        elif parameter in heads:
            found.head.append(parameter)
        elif parameter.ndim >= 2 and name.rpartition(".")[2] == "weight":
            found.matrices.append(parameter)
        else:
            found.vectors.append(parameter)
    if not (found.matrices or found.head or found.embeddings or found.vectors):
        raise NotPossible("the model has no parameter that requires a gradient; there is nothing to train")
    return found
