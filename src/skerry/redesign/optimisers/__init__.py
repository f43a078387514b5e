"""Which optimiser trains it? Every one by name, with weight decay where it belongs."""

from skerry.redesign.optimisers.kind import Optimiser
from skerry.redesign.optimisers.parameters import Parameters, split_parameters
from skerry.redesign.optimisers.register import find_optimiser, optimiser, optimisers

__all__ = ["Optimiser", "Parameters", "find_optimiser", "optimiser", "optimisers", "split_parameters"]
