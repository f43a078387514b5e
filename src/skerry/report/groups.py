"""Findings that are one thing seen in many layers, sites or heads, told once: the unit of the short views.

A residual channel that stands out in six layers and five sites of each is thirty findings and one sentence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from skerry.outliers.finding import Finding

from . import formatting as f

# Parts whose channels are the channels of the residual stream.
RESIDUAL_WIDTH = {
    "resid.in", "resid.mid", "resid.out", "attn.in", "attn.out", "attn.add", "mlp.in", "mlp.out", "mlp.add", "head.in",
}  # fmt: skip


@dataclass
class Group:
    """One outlier over all places where it was found."""

    key: tuple[object, ...]
    findings: list[Finding] = field(default_factory=list)

    @property
    def first(self) -> Finding:
        """The strongest of the group (findings come strongest first)."""
        return self.findings[0]

    @property
    def layers(self) -> list[int]:
        """Layers in which it was found, ascending."""
        return sorted({x.layer for x in self.findings if x.layer is not None})

    @property
    def sites(self) -> list[str]:
        """Parts in which it was found, strongest first."""
        return list(dict.fromkeys(x.site for x in self.findings))

    @property
    def heads(self) -> int:
        """Number of heads (layer and head) in which it was found."""
        return len({(x.layer, x.head) for x in self.findings if x.head is not None})

    @property
    def ratios(self) -> tuple[float, float]:
        """Smallest and largest ratio."""
        values = [x.ratio for x in self.findings]
        return min(values), max(values)

    @property
    def recurrence(self) -> float | None:
        """Largest recurrence, 0 to 1."""
        return max((x.recurrence for x in self.findings if x.recurrence is not None), default=None)

    @property
    def what(self) -> str:
        """Its coordinate in a few words: `channel 99`, `row 3, column 7`, `position 0`."""
        return place(self.first)

    @property
    def site_text(self) -> str:
        """The strongest site, and how many others."""
        first = self.first.site if self.first.expert is None else f"{self.first.site}[{self.first.expert}]"
        return first if len(self.sites) == 1 else f"{first} +{len(self.sites) - 1}"

    @property
    def layer_text(self) -> str:
        """Layers for a table cell."""
        return f.compact_ranges(self.layers, limit=3) or "–"


def key(x: Finding) -> tuple[object, ...]:
    """What makes two findings the same outlier."""
    space = "residual" if x.kind == "activation" and x.site in RESIDUAL_WIDTH else x.site
    if x.kind == "activation" and space != "residual":
        return (
            x.kind,
            x.type,
            space,
            x.layer,
            x.expert,
            x.channel,
            x.position,
            x.token,
        )  # neurons of two layers have nothing in common
    if x.kind == "attention":
        return x.kind, x.type, x.position, None if x.type == "small sink value" else x.token
    if x.kind == "weight":
        rows = x.row if x.type != "outlier column" else None
        return x.kind, x.type, space, x.layer if x.type == "super weight" else None, x.expert, rows, x.column
    bound = (x.position, x.token) if x.type == "massive activation" else ()
    return x.kind, x.type, space, x.expert, x.channel, *bound


def group(findings: Iterable[Finding]) -> list[Group]:
    """Findings, strongest first, gathered into groups; a group stands where its strongest finding stood."""
    groups: dict[tuple[object, ...], Group] = {}
    for x in findings:
        groups.setdefault(key(x), Group(key(x))).findings.append(x)
    return list(groups.values())


def place(x: Finding) -> str:
    """The coordinates of a finding within its site: `channel 99 at position 0 ([CLS])`, `row 5, column 7`."""
    parts = [
        f"{name} {value}"
        for name, value in (("channel", x.channel), ("row", x.row), ("column", x.column))
        if value is not None
    ]
    text = ", ".join(parts)
    token = f.token_name(x.token, x.token_id)
    if x.position is not None:
        text += f"{' at ' if text else ''}position {x.position}"
    if token is not None and x.type != "outlier channel":
        text += f" ({token})" if x.position is not None else f"{' on ' if text else ''}token {token}"
    return text or (f"head {x.head}" if x.head is not None else "whole site")
