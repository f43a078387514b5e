"""The language of quantization: which tensors of a model get how many bits, on which grid.

    w8a8                    weights and inputs of linear maps int8; weights symmetric per output channel, inputs symmetric per token
    w4a16-g128              weights int4 in groups of 128 inputs; 16 bits means left alone
    w8a8-tensor             one grid per tensor; the inputs' range comes from calibration
    w6a6-static-p99.9       inputs per tensor, range from calibration: the central 99.9 % of the values
    kv8, w4a4kv4            the cache of keys and values, asymmetric, one grid per token and head
    wfp8afp8, wmxfp4amxfp4  8-bit floats; 4-bit floats in blocks of 32
    weights=int4:asym:group128,inputs=int8:sym:token,kv=int8:asym:token     the long form says each piece; what is left out is as above

Flags of the short form: -sym -asym -g64 -tensor -token -channel -static -dynamic -mse -p99.9 -tokenwise0.99 -attn. `-sym` and `-asym` are for
weights and inputs; `-g` and `-channel` for weights; `-token`, `-static` and `-dynamic` for inputs; `-tensor` for both, with static
inputs unless `-dynamic` or `-token` says otherwise. A cache or inputs alone in a scheme take them all. An observer is for static ranges
where there are any, otherwise for weights. `-attn` quantizes the two products of attention, per token, in the inputs' number; integers
asymmetric, since probabilities have no sign.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from skerry.errors import UnknownOption, near_matches
from skerry.impact.numbers import NUMBERS, Number

GRANULARITIES = ("tensor", "token", "channel", "column", "group")
OBSERVERS = ("minmax", "percentile", "mse", "tokenwise")
KINDS = ("weights", "inputs", "attention", "kv")
GROUP_SCALE_BITS = 16
"""Bits of the scale of an integer group, as checkpoints store it."""
_ALIASES = {"fp8": "fp8_e4m3", "fp8e4m3": "fp8_e4m3", "fp8e5m2": "fp8_e5m2"}


@dataclass(frozen=True)
class TensorSpec:
    """How one kind of tensor [row column] is quantized.

    Attributes:
        number: Name of the number format, see numbers.py.
        symmetric: The grid is symmetric about 0; always so for floats.
        granularity: What shares a grid: "tensor"; "token" or "channel", one row each (a token of an activation, an output channel of a
            weight); "column", one input channel; "group", `group_size` neighbours within a row. In the inputs of a scheme "channel"
            means "column".
        group_size: Values per group. Set by the format for mxfp4 (32) and nvfp4 (16).
        dynamic: The range is that of the tensor at hand; otherwise it comes from calibration. Weights are always at hand.
        observer: How a range is chosen: "minmax", "percentile:99.9" (the central 99.9 % of the values), "mse" (the shrunk range with
            the least squared error), "tokenwise:0.99" (the 0.99 quantile over tokens of each token's extremes).
    """

    number: str = "int8"
    symmetric: bool = True
    granularity: str = "tensor"
    group_size: int | None = None
    dynamic: bool = True
    observer: str = "minmax"

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "number", number_format(self.number).name)
        put(self, "observer", _observer(self.observer))
        if self.granularity not in GRANULARITIES:
            raise UnknownOption(unknown_word("granularity", self.granularity, GRANULARITIES))
        if block := self.format.block:
            # The format itself says what shares a scale; "tensor" is only the field's default.
            if self.granularity not in ("tensor", "group") or self.group_size not in (None, block):
                size = (
                    f"groups of {self.group_size}" if self.group_size else f"one grid per {self.granularity}"
                )
                raise UnknownOption(
                    f"{self.number} has one scale per {block} values, not {size}: leave the size out"
                )
            if self.observer != "minmax" or not self.dynamic:
                given = "a static range" if not self.dynamic else f"observer {self.observer!r}"
                raise UnknownOption(
                    f"{self.number} takes its scale from the block at hand, not from {given}: leave it out"
                )
            put(self, "granularity", "group")
            put(self, "group_size", block)
        if self.granularity == "group" and (self.group_size is None or self.group_size < 1):
            raise UnknownOption(
                f"a group needs a size of 1 or more, not {self.group_size}: e.g. group128, or -g128"
            )
        if self.granularity != "group" and self.group_size is not None:
            raise UnknownOption(
                f"group_size {self.group_size} is for granularity 'group', not {self.granularity!r}"
            )
        if not self.symmetric and not self.format.is_integer:
            raise UnknownOption(f"{self.number} is symmetric: a zero point exists for int2 to int8 only")
        if self.granularity == "token" and not self.dynamic:
            raise UnknownOption(
                "a range per token cannot come from calibration, the tokens are others then: "
                "'token' with 'dynamic', or 'static' with 'tensor'"
            )
        if self.observer.startswith("tokenwise") and self.granularity != "tensor":
            raise UnknownOption(
                f"observer {self.observer!r} is a quantile over tokens: it needs granularity 'tensor', "
                f"not {self.granularity!r}"
            )

    @property
    def format(self) -> Number:
        """The number format."""
        return NUMBERS[self.number]

    @property
    def bits(self) -> float:
        """Bits per value with the scales of groups and blocks: 4.25 for mxfp4, 4.125 for int4 in groups of 128."""
        number = self.format
        if number.block:
            return number.bits + number.scale_bits / number.block
        if self.group_size:
            zero_point = 0 if self.symmetric else number.bits
            return number.bits + (GROUP_SCALE_BITS + zero_point) / self.group_size
        return float(number.bits)

    @property
    def observer_kind(self) -> str:
        """The observer without its number."""
        return self.observer.partition(":")[0]

    @property
    def observer_value(self) -> float:
        """The number of the observer: percent of `percentile`, quantile of `tokenwise`."""
        return float(self.observer.partition(":")[2])

    @classmethod
    def parse(cls, text: str) -> TensorSpec:
        """The spec of a string such as "int4:asym:group128" or "int8:tensor:static:p99.9"; the number comes first.

        Args:
            text: Pieces with colons between them, in any case.

        Raises:
            UnknownOption: Naming the piece.
        """
        from skerry.impact.longhand import spec_fields

        return cls(**spec_fields(text))

    def __str__(self) -> str:
        words = [self.number]
        if self.format.is_integer:
            words.append("sym" if self.symmetric else "asym")
        if not self.format.block:
            words.append(f"group{self.group_size}" if self.group_size else self.granularity)
        if not self.dynamic:
            words.append("static")
        if self.observer != "minmax":
            words.append(observer_word(self.observer))
        return ":".join(words)

    def plain(self) -> dict[str, Any]:
        """The fields as plain values, with the bits per value."""
        return {
            "number": self.number,
            "symmetric": self.symmetric,
            "granularity": self.granularity,
            "group_size": self.group_size,
            "dynamic": self.dynamic,
            "observer": self.observer,
            "bits": self.bits,
        }


@dataclass(frozen=True)
class Scheme:
    """What of a model is quantized, and how; None is left alone.

    Attributes:
        weights: Weights of linear maps.
        inputs: Inputs of linear maps.
        attention: Query, key, probabilities and value of the two products of attention.
        kv: Keys (after rotation) and values as the cache holds them.
    """

    weights: TensorSpec | None = None
    inputs: TensorSpec | None = None
    attention: TensorSpec | None = None
    kv: TensorSpec | None = None

    def __post_init__(self) -> None:
        for kind in KINDS:
            if (spec := getattr(self, kind)) is not None:
                object.__setattr__(self, kind, _fit(kind, spec))

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """The scheme of a short string (`w4a16-g128`) or a long one (`weights=int4:sym:group128`), in any case.

        Raises:
            UnknownOption: Naming the piece that is wrong and what was expected.
        """
        words = text.strip().lower()
        if "=" in words:
            from skerry.impact.longhand import scheme_fields

            return cls(**scheme_fields(words))
        from skerry.impact.shorthand import expand

        return expand(words)

    @property
    def name(self) -> str:
        """The canonical string."""
        return str(self)

    def __str__(self) -> str:
        from skerry.impact.shorthand import shorten

        long = ",".join(f"{k}={s}" for k in KINDS if (s := getattr(self, k)) is not None)
        return shorten(self) or long

    def plain(self) -> dict[str, Any]:
        """The name and, by kind of tensor, the plain fields."""
        specs = {kind: getattr(self, kind) for kind in KINDS}
        return {"name": str(self), **{k: None if s is None else s.plain() for k, s in specs.items()}}


def check_group(width: int, spec: TensorSpec | None, where: str) -> None:
    """Refuse a group size that does not divide the input axis.

    Args:
        width: Length of the axis that is cut into groups.
        spec: None and specs without groups pass.
        where: Name of the map or tensor, for the message.

    Raises:
        UnknownOption: With the sizes that would do.
    """
    if spec is None or not spec.group_size or width % spec.group_size == 0:
        return
    if spec.format.block:
        advice = f"{spec.number} fixes it; leave this map in full precision or choose an int format"
    else:
        sizes = [d for d in range(1, width + 1) if width % d == 0]
        advice = f"sizes that do: {', '.join(map(str, sizes))}"
    raise UnknownOption(
        f"{where} reads {width} values, which groups of {spec.group_size} do not divide; {advice}"
    )


def unknown_word(what: str, word: str, known: tuple[str, ...] | list[str]) -> str:
    """What an error says of a word that does not exist: near matches, and all that do."""
    near = near_matches(word, tuple(known))
    hint = f"; did you mean {near}?" if near else "."
    return f"no {what} {word!r}{hint} There are {', '.join(known)}"


def number_format(word: str) -> Number:
    """The number format of a name, in any case.

    Raises:
        UnknownOption: There is none.
    """
    word = _ALIASES.get(word.lower(), word.lower())
    if found := NUMBERS.get(word):
        return found
    if m := re.fullmatch(r"int(\d+)", word):
        raise UnknownOption(
            f"no integers of {m[1]} bits: int2 to int8; 16 bits means left alone, so leave it out"
        )
    raise UnknownOption(unknown_word("number format", word, list(NUMBERS)))


def _observer(word: str) -> str:
    kind, _, value = word.lower().partition(":")
    if kind not in OBSERVERS:
        raise UnknownOption(unknown_word("observer", word, OBSERVERS))
    if kind in ("minmax", "mse"):
        if value:
            raise UnknownOption(f"observer {kind!r} takes no number, not {value!r}")
        return kind
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    low, high = (50.0, 100.0) if kind == "percentile" else (0.5, 1.0)
    if not low < number <= high:
        raise UnknownOption(
            f"observer {word!r}: {kind} takes a number above {low:g} and up to {high:g}, e.g. "
            f"{'percentile:99.9' if kind == 'percentile' else 'tokenwise:0.99'}"
        )
    return f"{kind}:{number!r}" if number != int(number) else f"{kind}:{int(number)}"


def observer_word(observer: str) -> str:
    """An observer as schemes write it: p99.9 for "percentile:99.9"."""
    kind, _, value = observer.partition(":")
    return f"{'p' if kind == 'percentile' else kind}{value}"


def observer_piece(piece: str) -> str | None:
    """The observer that a word such as p99.9, mse, tokenwise0.99 or percentile:99.9 stands for."""
    if piece in ("minmax", "mse"):
        return piece
    if m := re.fullmatch(r"(?:p|percentile:?)([\d.]+)", piece):
        return _observer(f"percentile:{m[1]}")
    if m := re.fullmatch(r"tokenwise:?([\d.]+)", piece):
        return _observer(f"tokenwise:{m[1]}")
    return None


def _fit(kind: str, spec: TensorSpec) -> TensorSpec:
    """The spec as this kind of tensor has it; refuses what it cannot have."""
    if kind == "weights":
        if spec.granularity in ("token", "column"):
            raise UnknownOption(
                f"weights have no grid per {spec.granularity}: 'channel' is one grid per output, 'group128' one per 128 inputs"
            )
        if spec.observer_kind == "tokenwise":
            raise UnknownOption(
                f"weights have no tokens: observer {spec.observer!r} is for inputs; try 'mse'"
            )
        return replace(spec, dynamic=True)
    if spec.granularity == "channel":
        spec = replace(spec, granularity="column")
    if kind == "attention" and spec.group_size:
        raise UnknownOption(
            f"attention={spec}: probabilities have as many columns as there are keys, which groups need not divide; "
            "take int2 to int8 or fp8 with 'token'"
        )
    if not spec.dynamic and spec.granularity == "group":
        raise UnknownOption(f"{kind}={spec}: a static range is per 'tensor' or 'channel', not per group")
    if not spec.dynamic and spec.granularity == "column" and spec.observer != "minmax":
        raise UnknownOption(
            f"{kind}={spec}: a static range per channel takes observer 'minmax'; {spec.observer_kind!r} needs 'tensor'"
        )
    return spec
