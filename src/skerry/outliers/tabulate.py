"""From accumulators to the tables of a run: only names and token texts are added, nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from skerry.anatomy import Site
from skerry.measure import WeightResult
from skerry.measure.meter import Meter
from skerry.run.tables import schema

TokenText = Callable[[Sequence[int]], list[str | None]]


def no_text(ids: Sequence[int]) -> list[str | None]:
    """Token texts of a model without a tokenizer."""
    return [None] * len(ids)


class Collector:
    """Rows of one table, gathered site by site."""

    def __init__(self, name: str, text: TokenText = no_text) -> None:
        """Start an empty table of the run's schema `name`."""
        self.name, self.text = name, text
        self.parts: list[pa.Table] = []

    def add(self, fixed: Mapping[str, Any], columns: Mapping[str, Any]) -> None:
        """Add rows: `fixed` values are the same in all of them, scalars in `columns` make one row."""
        columns = {k: np.atleast_1d(np.asarray(v)) for k, v in columns.items()}
        num_rows = max((len(v) for v in columns.values()), default=0)
        if num_rows == 0:
            return
        arrays: dict[str, Any] = {}
        for field in schema(self.name):
            if field.name in columns:
                arrays[field.name] = _arrow(columns[field.name], field.type)
            elif field.name == "token" and "token_id" in columns:
                arrays["token"] = pa.array(self.text(columns["token_id"].tolist()), pa.string())
            else:
                value = fixed.get(field.name)
                arrays[field.name] = pa.array([value] * num_rows, field.type)
        self.parts.append(pa.table(arrays, schema=schema(self.name)))

    def table(self) -> pa.Table:
        """All rows so far."""
        return (
            pa.concat_tables(self.parts).combine_chunks() if self.parts else schema(self.name).empty_table()
        )


def _arrow(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """NaN stays NaN: it says that a statistic has no value, null that the column does not apply."""
    if pa.types.is_floating(kind):
        return pa.array(values.astype(np.float64), kind)
    if pa.types.is_integer(kind):
        return pa.array(values.astype(np.int64), pa.int64()).cast(kind)
    return pa.array(values.tolist(), kind)


def _place(site: Site) -> dict[str, Any]:
    return {"layer": site.layer, "site": site.part, "expert": site.expert}


def activation_tables(meter: Meter, text: TokenText = no_text) -> dict[str, pa.Table]:
    """Tables of everything that forwards showed."""
    names = ("sites", "channels", "values", "nonfinite", "positions", "tokens", "heads", "keys", "key_tokens")
    tables = {name: Collector(name, text) for name in names}
    for site in sorted(meter.activations):
        result = meter.activations[site].result()
        for name in ("channels", "values", "nonfinite", "positions", "tokens"):
            columns = getattr(result, name)
            if columns is not None:
                tables[name].add(_place(site), columns)
        tables["sites"].add(_place(site), result.site)
    for site, other in sorted(meter.anatomy.same_as.items()):
        if other in meter.activations and (meter.parts is None or site.part in meter.parts):
            tables["sites"].add(
                {**_place(site), "same_as": str(other)},
                {"num_channels": meter.activations[other].num_channels},
            )
    for layer in sorted(meter.attentions):
        attention = meter.attentions[layer].result()
        for name in ("heads", "keys", "key_tokens"):
            tables[name].add({"layer": layer}, getattr(attention, name))
    return {name: collector.table() for name, collector in tables.items()}


def weight_tables(results: Iterable[tuple[Site, WeightResult]]) -> dict[str, pa.Table]:
    """Tables of the parameters."""
    names = ("matrices", "lines", "entries", "nonfinite_weights")
    tables = {name: Collector(name) for name in names}
    for site, result in results:
        tables["matrices"].add(_place(site), result.matrix)
        tables["lines"].add(_place(site), result.lines)
        tables["entries"].add(_place(site), result.entries)
        tables["nonfinite_weights"].add(_place(site), result.nonfinite)
    return {name: collector.table() for name, collector in tables.items()}


def token_texts(tokenizer: Any) -> TokenText:
    """Token ids to the text a reader recognises, remembered by id."""
    if tokenizer is None:
        return no_text
    known: dict[int, str | None] = {}

    def text(ids: Sequence[int]) -> list[str | None]:
        missing = sorted({i for i in ids if i not in known})
        for token_id, token in zip(missing, tokenizer.convert_ids_to_tokens(missing), strict=True):
            known[token_id] = None if token is None else readable(str(token))
        return [known[i] for i in ids]

    return text


# Byte-level vocabularies write bytes as printable characters; these are the ones that readers meet.
_BYTE_LEVEL = {"Ġ": " ", "Ċ": "\n", "ĉ": "\t", "▁": " "}


def readable(token: str) -> str:
    """A vocabulary entry as text: markers of spaces and line ends become what they stand for."""
    for marker, character in _BYTE_LEVEL.items():
        token = token.replace(marker, character)
    return token
