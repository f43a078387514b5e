"""Numbers, lists and tokens as a reader sees them. Nothing here measures anything; tokens are hostile input.

A token may hold control characters, escape sequences, right-to-left overrides or ten thousand letters: `visible` makes it a short, inert
piece of text, and every face shows tokens through it.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence

TOKEN_LENGTH = 28
# How byte-level and sentence-piece vocabularies spell a space, and how we show one.
_SPACES = {"Ġ": "␣", "▁": "␣", " ": "␣", "Ċ": "⏎", "ĉ": "⇥", "\n": "⏎", "\r": "␍", "\t": "⇥"}


def number(x: float | int | None, *, digits: int = 3) -> str:
    """`x` with about `digits` significant digits: 0.0123, 45.2, 1,234; a dash for None, words for what is not finite."""
    if x is None:
        return "–"
    if math.isnan(x):
        return "NaN"
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    if x == 0:
        return "0"
    size = abs(x)
    if size >= 1e7 or size < 1e-4:
        mantissa, exponent = f"{x:.{digits - 1}e}".split("e")
        return _minus(f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}")
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    text = f"{x:,.{decimals}f}"
    return _minus(text.rstrip("0").rstrip(".") if "." in text else text)


def _minus(text: str) -> str:
    return text.replace("-", "−") if text.startswith("-") else text


def ratio(x: float | int | None) -> str:
    """A ratio with two significant digits below 100 and three above: 7.4, 45, 1,230."""
    if x is None or not math.isfinite(x):
        return number(x)
    return number(x, digits=2 if abs(x) < 100 else 3)


def short(x: float | int | None) -> str:
    """A number in at most four letters: 7.4, 45, 980, 1.2k, 15k, 2M, 6.7B."""
    if x is None or not math.isfinite(x):
        return number(x)
    power = next((p for p in (0, 1, 2) if abs(x) < 999.5 * 1000**p), 3)
    scaled = x / 1000**power
    text = f"{scaled:.1f}".removesuffix(".0") if abs(scaled) < 9.95 else f"{scaled:.0f}"
    return _minus(text) + ("", "k", "M", "B")[power]


def short_value(x: float | int) -> str:
    """A tick of an axis: 0.01, 5, 200, 1.2k."""
    return number(x) if abs(x) < 1000 else short(x)


def percent(share: float | int | None) -> str:
    """A share as per cent with a sensible number of digits: 52 %, 4.1 %, < 0.1 %."""
    if share is None or not math.isfinite(share):
        return number(share)
    value = 100 * share
    if 0 < value < 0.1:
        return "< 0.1 %"
    if value < 9.95 and value != round(value):
        return f"{value:.1f} %".replace(".0 ", " ")
    return "> 99 %" if 99.5 <= value < 100 else f"{value:.0f} %"


def span(low: float | int, high: float | int) -> str:
    """Two ratios as `24 to 45`, or one when they read the same."""
    a, b = ratio(low), ratio(high)
    return a if a == b else f"{a} to {b}"


def p_value(p: float | int | None) -> str:
    """A probability: three digits, or an upper bound when it is too small to be read."""
    if p is None:
        return "–"
    return "< 1e−12" if p < 1e-12 else number(p, digits=2)


def seconds(s: float | int) -> str:
    """A duration: 0.4 s, 12 s, 3 min 5 s."""
    if s < 60:
        return f"{s:.1f} s" if s < 10 else f"{s:.0f} s"
    minutes, rest = divmod(round(s), 60)
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


def count(n: int, noun: str, plural: str | None = None) -> str:
    """`1 channel`, `2 channels`, `1,000 channels`."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def listing(words: Iterable[str], *, limit: int | None = None) -> str:
    """`a`, `a and b`, `a, b and c`; beyond `limit` the rest is counted: `a, b and 5 more`."""
    items = list(words)
    if limit is not None and len(items) > limit:
        items = [*items[:limit], f"{len(items) - limit:,} more"]
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Whole numbers as first and last of each unbroken run, ascending."""
    out: list[tuple[int, int]] = []
    for n in sorted(set(numbers)):
        if out and n == out[-1][1] + 1:
            out[-1] = (out[-1][0], n)
        else:
            out.append((n, n))
    return out


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers in words: `1 to 4 and 6`."""
    return listing(
        [str(a) if a == b else f"{a} and {b}" if b == a + 1 else f"{a} to {b}" for a, b in runs(numbers)]
    )


def compact_ranges(numbers: Iterable[int], *, limit: int = 4) -> str:
    """Whole numbers for a table cell: `1–4, 6`; beyond `limit` runs an ellipsis."""
    parts = [str(a) if a == b else f"{a}–{b}" for a, b in runs(numbers)]
    return ", ".join(parts[:limit] + (["…"] if len(parts) > limit else []))


def layers(numbers: Sequence[int], num_layers: int) -> str:
    """Layers in words: `all 6 layers`, `layers 1 to 4`, `layer 3`."""
    unique = sorted(set(numbers))
    if len(unique) == num_layers and num_layers > 1:
        return f"all {num_layers} layers" if num_layers > 2 else "both layers"
    return f"{'layer' if len(unique) == 1 else 'layers'} {ranges(unique)}"


def visible(token: str, *, limit: int = TOKEN_LENGTH) -> str:
    """A token as short inert text: spaces marked, controls, overrides and lone surrogates spelled out, at most `limit` letters."""
    out: list[str] = []
    for letter in token[: 4 * limit]:
        if letter in _SPACES:
            out.append(_SPACES[letter])
        elif unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}:
            out.append(f"\\u{ord(letter):04x}")
        elif unicodedata.category(letter) == "Zs":
            out.append("␣")
        elif unicodedata.combining(letter) and (not out or unicodedata.combining(out[-1][-1])):
            continue  # one mark per letter is writing, a tower of them is an attack on the line above
        else:
            out.append(letter)
    text = "".join(out)
    return text if len(text) <= limit and len(token) <= 4 * limit else text[: limit - 1] + "…"


def token_name(token: str | None, token_id: int | None) -> str | None:
    """How a token is called: its text, or its id where there is no tokenizer; None when neither is known."""
    if token is not None:
        return visible(token) or "(empty)"
    return f"id {token_id}" if token_id is not None else None


def tidy(text: str) -> str:
    """Free text of a run (names, warnings) on one line and without control characters."""
    return "".join(
        f"\\u{ord(c):04x}" if unicodedata.category(c) in {"Cf", "Cs"} else c
        for c in " ".join(text.split())
        if unicodedata.category(c) != "Cc"
    )
