"""How do we read it? Mergeable one-pass statistics of activations, attention and weights, and their fused kernels."""

from skerry.measure.accumulator import HIGH_RATIOS, MASSIVE_RATIOS, Accumulator
from skerry.measure.activation import ActivationResult, ActivationStats
from skerry.measure.attention import AttentionResult, AttentionStats
from skerry.measure.kernels import Prepared, prepare
from skerry.measure.meter import Meter
from skerry.measure.weight import ROW_TILE, WeightResult, WeightStats, weight_stats

__all__ = [
    "HIGH_RATIOS",
    "MASSIVE_RATIOS",
    "ROW_TILE",
    "Accumulator",
    "ActivationResult",
    "ActivationStats",
    "AttentionResult",
    "AttentionStats",
    "Meter",
    "Prepared",
    "WeightResult",
    "WeightStats",
    "prepare",
    "weight_stats",
]
