"""What is a model made of that no family declares? One small forward is recorded, and its data flow names the places."""

from skerry.anatomy.traced.bind import trace_anatomy
from skerry.anatomy.traced.leftover import numbers
from skerry.anatomy.traced.run import some_ids

__all__ = ["numbers", "some_ids", "trace_anatomy"]
