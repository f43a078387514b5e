"""What stands out? Scan, detectors, findings, profiles."""

from __future__ import annotations

from skerry.outliers.finding import Finding, Profiles, Summary
from skerry.outliers.options import Options

__all__ = ["Finding", "Options", "Profiles", "Summary"]
