"""What is a model made of? Canonical sites, families, loading."""

from skerry.anatomy.attention import AttentionView
from skerry.anatomy.model import Anatomy, run
from skerry.anatomy.resolve import resolve
from skerry.anatomy.sites import ACTIVATION_PARTS, WEIGHT_PARTS, Site, parse_parts
from skerry.anatomy.watch import capture, watch

__all__ = [
    "ACTIVATION_PARTS",
    "WEIGHT_PARTS",
    "Anatomy",
    "AttentionView",
    "Site",
    "capture",
    "parse_parts",
    "resolve",
    "run",
    "watch",
]
