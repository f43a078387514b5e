"""skerry: finds, explains, prices, tames and prevents systematic outliers in large language models."""

__version__ = "0.1.0"
