"""What taming is asked for, with its defaults; the command line and the Python API fill the same object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skerry.errors import NotPossible, UnknownOption
from skerry.impact.scheme import Scheme
from skerry.tame.choose import TARGET, check_target

AUTO = "auto"


@dataclass(frozen=True)
class TameOptions:
    """Options of taming.

    Attributes:
        method: A method, several joined by commas, or `auto`.
        bits: The scheme, e.g. `w8a8` or `w4a16-g128`.
        out: Folder of the export; None exports nothing.
        form: Of the export; see `skerry.tame.export.FORMS`.
        calibration: Inputs that methods see.
        samples: Held-out inputs that judge.
        target: `auto`: relative rise of the loss that is allowed.
        evaluate: Judge on held-out inputs; without, nothing but the proof is computed.
        parts: Measure what each part of `os+` brings, too.
        settings: Method, by any of its names, to its options.
    """

    method: str = "os+"
    bits: str = "w8a8"
    out: str | Path | None = None
    form: str = AUTO
    calibration: int = 64
    samples: int = 64
    target: float = TARGET
    evaluate: bool = True
    parts: bool = False
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def scheme(self) -> Scheme:
        """The scheme.

        Raises:
            UnknownOption: The string is no scheme.
        """
        return Scheme.parse(self.bits)

    def method_settings(self) -> dict[str, dict[str, Any]]:
        """The settings by the methods' own names."""
        from skerry.tame.register import find_method

        return {find_method(m).name: dict(o) for m, o in self.settings.items()}

    def plain(self) -> dict[str, Any]:
        """What decides the result, as plain values; where the export goes decides nothing."""
        return {
            "method": self.method,
            "bits": str(self.scheme),
            "calibration": self.calibration,
            "held_out": self.samples,
            "target": self.target if self.method == AUTO else None,
            "evaluate": self.evaluate,
            "parts": self.parts,
            "exported": None if self.out is None else self.form,
            "settings": self.method_settings(),
        }

    def check(self) -> None:
        """Refuse what cannot be meant, before anything is loaded.

        Raises:
            UsageError: An unknown method, scheme, form or option, a number below one, an output folder in use.
        """
        from skerry.tame.register import check_needs, find_method, parse_pipeline

        scheme = self.scheme
        check_target(self.target)
        if self.method != AUTO:
            check_needs(parse_pipeline(self.method), scheme)
        elif not self.evaluate:
            raise UnknownOption(
                "auto chooses by held-out loss, so it cannot go without evaluation; name a method"
            )
        if self.parts and not self.evaluate:
            raise UnknownOption("parts are judged by held-out loss, so they cannot go without evaluation")
        for name in ("calibration", "samples"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UnknownOption(f"{name} is {value!r}; it must be a whole number, at least 1")
        for method in self.settings:
            find_method(method)
        if self.out is not None:
            self._check_export()
            from skerry.tame.export import FORMS
            from skerry.tame.export_folder import check_unused

            if self.form not in FORMS:
                raise UnknownOption(f"form is {self.form!r}; it is one of {', '.join(FORMS)}")
            check_unused(Path(self.out).resolve())

    def _check_export(self) -> None:
        """Refuse to export what no exchange format has a class for.

        Raises:
            NotPossible: With what writes it instead.
        """
        from skerry.tame.register import parse_pipeline

        for method in [] if self.method == AUTO else parse_pipeline(self.method):
            if method.replaces is not None:
                raise NotPossible(
                    f"{method.name} gives a model that no form of export has a class for (float, compressed-tensors, gguf, onnx): "
                    f"{method.replaces} Without --out it is measured"
                )


def parse_settings(words: tuple[str, ...] | list[str]) -> dict[str, dict[str, Any]]:
    """Method options as on the command line: `os+.shift=false`, `smoothquant.alpha=0.7`.

    Raises:
        UnknownOption: A word of another form.
    """
    found: dict[str, dict[str, Any]] = {}
    for word in words:
        place, equals, value = word.partition("=")
        method, dot, name = place.rpartition(".")
        if not (equals and dot and method and name and value):
            raise UnknownOption(
                f"--set {word!r} is not of the form METHOD.OPTION=VALUE, e.g. smoothquant.alpha=0.7"
            )
        found.setdefault(method, {})[name] = _value(value)
    return found


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    if "," in text:
        return tuple(_value(part) for part in text.split(","))
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
