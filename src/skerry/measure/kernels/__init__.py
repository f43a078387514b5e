"""The fused kernels: C sources, compiled once per machine with the system's compiler and loaded with ctypes."""

from skerry.measure.kernels.build import Prepared, library, prepare

__all__ = ["Prepared", "library", "prepare"]
