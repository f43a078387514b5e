"""Softmax attention, the default: y_i = sum_j softmax_j(q_i . k_j / sqrt d) v_j, over the keys j <= i.

Vaswani et al. 2017; variant (a) of An et al. 2025 (arXiv 2502.06415). The weights of a query sum to one, whatever it looks for: mass that it
does not need must go somewhere.  Limit: equal logits give the mean of the values so far.
"""

from __future__ import annotations

from skerry.redesign.variant import Variant


class Softmax(Variant):
    """Plain softmax attention."""

    name = "softmax"
    source = "Vaswani et al. 2017; (a) of An et al. 2025"


VARIANTS = (Softmax,)
