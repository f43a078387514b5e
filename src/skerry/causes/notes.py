"""Sentences of a trace that claims must know again; light, so that listing claims loads no model library."""

ALONE = "the outlier sits at the first token of a causal model, which attends to itself alone: no attention, query or key can change it there"
"""Said where the mask and not training decides what attention can do to the outlier."""
