"""Pictures as files: the formats that every `--figures` writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from skerry.errors import UnknownOption

from .figures import png

FORMATS = ("svg", "png")


def write_pictures(
    draw: Callable[[], Mapping[str, str]], folder: str | Path, formats: Sequence[str] = FORMATS
) -> list[Path]:
    """Write each picture in each format, `NAME.svg` and `NAME.png`; the formats are checked before anything is drawn.

    Args:
        draw: Gives the pictures as standalone SVG by name.
        folder: Where to; it is made.
        formats: Of `svg` and `png`.

    Raises:
        UnknownOption: A format is none of these.
    """
    if unknown := [x for x in formats if x not in FORMATS]:
        raise UnknownOption(
            f"no figure format {', '.join(map(repr, unknown))}; choose of {', '.join(FORMATS)}"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, svg in draw().items():
        for form in formats:
            path = folder / f"{name}.{form}"
            path.write_bytes(png(svg) if form == "png" else svg.encode())
            written.append(path)
    return written
