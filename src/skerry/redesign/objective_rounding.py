"""Quantization noise: the forward computes with values of a grid, the gradient passes as if nothing had been rounded.

    forward   y = Q_a(x) Q_w(W)^T + b        backward   dQ(x) / dx = 1

The straight-through estimator (Bengio et al. 2013, arXiv 1308.3432; Jacob et al. 2018, arXiv 1712.05877). The grids are those of
`skerry.impact.quantize`, with the range of the tensor at hand, so nothing is clipped and the estimator needs no cut-off. Each linear map is
rounded with a probability, drawn anew for every forward: at 1 the forward is the one that `skerry impact` prices, bit for bit; below it most
gradients are exact, as in Quant-Noise (Fan et al. 2020, arXiv 2004.07320). The head and the embedding stay as they are.
Limits: probability 0, or a scheme of 16 bits, is the plain forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from skerry.anatomy.dense import Dense, dense_maps
from skerry.anatomy.model import Anatomy
from skerry.anatomy.watch import first_tensor
from skerry.errors import NotPossible
from skerry.impact.quantize import fake_quantize
from skerry.impact.scheme import Scheme, TensorSpec, check_group


class _Round(torch.autograd.Function):
    """Rows to the nearest values of their grid; the gradient goes through."""

    @staticmethod
    def forward(x: Tensor, spec: TensorSpec) -> Tensor:
        return fake_quantize(x, spec)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]  # noqa: ARG004
        return grad, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, spec: TensorSpec) -> tuple[Tensor, int]:  # noqa: ARG004
        # One sample after the other: a range over rows must not reach over samples.
        return torch.stack([_Round.apply(one, spec) for one in x.unbind(in_dims[0])]), 0


def round_straight(x: Float[Tensor, "row column"], spec: TensorSpec) -> Float[Tensor, "row column"]:
    """The nearest value of the grid to every value, with the gradient of x itself."""
    return _Round.apply(x, spec)


class Rounding:
    """Linear maps of a model that compute with rounded weights and inputs while it is open.

    Args:
        anatomy: The model with its places.
        scheme: What is rounded; ranges are those of the tensor at hand.
        probability: Of each map, in each forward.
        seed: Of the draws.

    Raises:
        NotPossible: The scheme needs calibration, attention or a cache, or a map is an expert inside a shared parameter.
        UnknownOption: A group size that does not divide a width.
    """

    def __init__(self, anatomy: Anatomy, scheme: Scheme, *, probability: float = 1.0, seed: int = 0) -> None:
        """Find the maps."""
        check_trainable(scheme)
        self.scheme, self.probability, self.seed = scheme, probability, seed
        self.maps = dense_maps(anatomy)
        for dense in self.maps:
            if dense.is_routed:
                raise NotPossible(
                    f"{dense.name} is an expert inside a shared parameter; quantization noise is for maps of their own"
                )
            for spec in (scheme.weights, scheme.inputs):
                check_group(dense.weight.shape[1], spec, dense.name)
        self._on: dict[int, bool] = {}
        self._last: tuple[Tensor, Tensor] | None = None
        self.draw(0)

    def draw(self, step: int) -> None:
        """Choose the maps that are rounded in the forwards that follow; a function of seed and step alone."""
        chance = np.random.Generator(np.random.Philox(key=[self.seed, step])).random(len(self.maps))
        self._on = {id(d.module): bool(u < self.probability) for d, u in zip(self.maps, chance, strict=True)}
        self._last = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Round in every forward while open; no module keeps anything afterwards."""
        with ExitStack() as stack:
            for dense in self.maps:
                if self.scheme.inputs is not None:
                    stack.callback(
                        dense.module.register_forward_pre_hook(self._read(), with_kwargs=True).remove
                    )
                if self.scheme.weights is not None:
                    before, after = self._weigh(dense)
                    stack.callback(dense.module.register_forward_pre_hook(before).remove)
                    stack.callback(dense.module.register_forward_hook(after, always_call=True).remove)
            try:
                yield
            finally:
                self._last = None
                for dense in self.maps:
                    dense.module.__dict__.pop(dense.key, None)

    def forget(self) -> None:
        """Let go of the last rounded input."""
        self._last = None

    def _read(self) -> Callable[..., Any]:
        spec = self.scheme.inputs
        assert spec is not None

        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            x = first_tensor(args, kwargs)
            if x is None or not self._on[id(module)]:
                return None
            # Query, key and value projections read one tensor: it is rounded once.
            if self._last is None or self._last[0] is not x:
                self._last = (x, round_straight(x.reshape(-1, x.shape[-1]), spec).reshape(x.shape))
            return (self._last[1], *args[1:]), kwargs

        return hook

    def _weigh(self, dense: Dense) -> tuple[Callable[..., None], Callable[..., None]]:
        spec, key = self.scheme.weights, dense.key
        assert spec is not None

        def before(module: nn.Module, _args: Any) -> None:
            if self._on[id(module)]:
                own = module._parameters[key]
                assert own is not None
                w = round_straight(own.T, spec).T if dense.transposed else round_straight(own, spec)
                # An attribute of the module's own hides the parameter from its forward, and from nothing else.
                module.__dict__[key] = w

        def after(module: nn.Module, _args: Any, _out: Any) -> None:
            module.__dict__.pop(key, None)

        return before, after


def check_trainable(scheme: Scheme) -> None:
    """Refuse what cannot be noise in a training.

    Raises:
        NotPossible: Attention, a cache, or a static range.
    """
    for kind in ("attention", "kv"):
        if getattr(scheme, kind) is not None:
            raise NotPossible(
                f"quantization noise is for weights and inputs of linear maps; {scheme} also has {kind}: leave it out"
            )
    if scheme.inputs is not None and not scheme.inputs.dynamic:
        raise NotPossible(
            f"{scheme} takes the range of inputs from calibration, and a model that is trained has none yet; add -dynamic"
        )
