"""LLaMA 1 to 3 and what copies its names exactly."""

from skerry.anatomy.families._common import LLAMA_LIKE

FAMILY = LLAMA_LIKE
