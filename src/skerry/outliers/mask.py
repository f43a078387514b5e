"""Which tokens to leave out: those that are attention sinks or carry massive activations, learned from one scan.

People who train sparse autoencoders, steer with activation vectors or fit linear probes drop these tokens, because a handful of values
a thousand times the median would own every loss and every mean. The file is small JSON:

    {"schema": 1, "support": 0.5,
     "positions": [{"position": 0, "support": 1.0, "kinds": ["massive activation", "sink position"]}],
     "tokens":    [{"token_id": 101, "token": "[CLS]", "support": 1.0, "kinds": ["massive activation"]}],
     "channels":  [{"site": "resid.out", "layer": 3, "expert": null, "channel": 99, "support": 1.0}]}

`support` is the share of independent inputs in which it recurs. Positions count from 0 at the first token that is not padding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from skerry.errors import UsageError
from skerry.outliers.finding import Finding, Record
from skerry.outliers.frames import Tables

SCHEMA = 1
SUPPORT = 0.5
_TOKEN_TYPES = ("massive activation", "sink position", "sink token")


class MaskedPosition(Record):
    """A position to leave out."""

    position: int
    """From 0 at the first token that is not padding."""
    support: float
    """Largest recurrence of its findings, 0 to 1."""
    kinds: tuple[str, ...]
    """Types of its findings."""


class MaskedToken(Record):
    """A token id to leave out."""

    token_id: int
    """Id in the vocabulary of the scanned model."""
    token: str | None
    """Its text; None without a tokenizer."""
    support: float
    """Largest recurrence of its findings, 0 to 1."""
    kinds: tuple[str, ...]
    """Types of its findings."""


class MaskedChannel(Record):
    """An outlier channel, for those who clip or scale channels instead of dropping tokens."""

    site: str
    """Part of the vocabulary."""
    layer: int | None
    """Block number from 0."""
    expert: int | None
    """Number of the expert."""
    channel: int
    """Channel."""
    support: float
    """Its recurrence, 0 to 1."""


class TokenMask(Record):
    """Positions, token ids and channels that are outliers; `.mask(input_ids)` marks tokens, `.save(path)` keeps it."""

    support: float = SUPPORT
    """Least recurrence of what was taken."""
    positions: tuple[MaskedPosition, ...] = ()
    """Ascending."""
    tokens: tuple[MaskedToken, ...] = ()
    """Ascending by id."""
    channels: tuple[MaskedChannel, ...] = ()
    """In the order of the findings."""

    @classmethod
    def learn(
        cls, tables: Tables, findings: Sequence[Finding] | None = None, *, support: float = SUPPORT
    ) -> TokenMask:
        """What a scan says should be left out.

        A token that stands at one position in every input, such as `[CLS]`, is taken by position and by id: the scan cannot tell which
        of the two makes it a sink.

        Args:
            tables: The run's tables; read only when `findings` are not given.
            findings: The run's findings; None to find them with our own rule.
            support: Least recurrence, 0 to 1.
        """
        if findings is None:
            from skerry.outliers.find import find

            findings = find(tables).findings
        taken = [f for f in findings if f.recurrence is not None and f.recurrence >= support]
        marked = [f for f in taken if f.type in _TOKEN_TYPES]
        at = {f.position for f in marked if f.position is not None}
        ids = {f.token_id for f in marked if f.token_id is not None}
        return cls(
            support=support,
            positions=tuple(
                MaskedPosition(position=p, **_merged([f for f in marked if f.position == p]))
                for p in sorted(at)
            ),
            tokens=tuple(
                MaskedToken(
                    token_id=i,
                    token=next(f.token for f in marked if f.token_id == i),
                    **_merged([f for f in marked if f.token_id == i]),
                )
                for i in sorted(ids)
            ),
            channels=tuple(
                MaskedChannel(
                    site=f.site,
                    layer=f.layer,
                    expert=f.expert,
                    channel=f.channel,
                    support=f.recurrence or 0.0,
                )
                for f in taken
                if f.type == "outlier channel" and f.channel is not None
            ),
        )

    def mask(
        self, input_ids: Int[Tensor, "sample position"], keep: Bool[Tensor, "sample position"] | None = None
    ) -> Bool[Tensor, "sample position"]:
        """True at tokens to leave out.

        Args:
            input_ids: Token ids of the scanned model's vocabulary.
            keep: False at padding, which counts for no position and is never marked; None when there is none.
        """
        keep = torch.ones_like(input_ids, dtype=torch.bool) if keep is None else keep
        place = torch.cumsum(keep, dim=1) - 1
        ids = torch.tensor([t.token_id for t in self.tokens], dtype=input_ids.dtype, device=input_ids.device)
        at = torch.tensor([p.position for p in self.positions], dtype=place.dtype, device=place.device)
        return (torch.isin(input_ids, ids) | torch.isin(place, at)) & keep

    def save(self, path: str | Path) -> Path:
        """Write the mask as JSON."""
        path = Path(path)
        document: dict[str, Any] = {"schema": SCHEMA, **self.model_dump(mode="json")}
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> TokenMask:
        """Read what `save` wrote.

        Raises:
            UsageError: The file is no such JSON, or of another version.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            version = document.pop("schema")
            if version == SCHEMA:
                return cls.model_validate(document)
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise UsageError(
                f"{path} is no token mask: {type(error).__name__}; `skerry scan --export-mask` writes one"
            ) from error
        raise UsageError(f"{path} is a token mask of version {version}; this version reads {SCHEMA}")

    def __repr__(self) -> str:
        return (
            f"<TokenMask: {len(self.positions)} positions, {len(self.tokens)} tokens, {len(self.channels)} channels; "
            ".mask(input_ids), .save(path)>"
        )


def _merged(findings: Sequence[Finding]) -> dict[str, Any]:
    return {
        "support": max(f.recurrence or 0.0 for f in findings),
        "kinds": tuple(sorted({f.type for f in findings})),
    }
