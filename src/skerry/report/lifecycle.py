"""The lifecycle of a carrier as a picture: norm, gate and up, product, weight, residual stream; then keys, values and exit.

Every number in it was measured on this model (`lifecycle_cards`). Two layouts of the same cards: wide for pages, narrow for telephones. Marks
carry classes, never colours, so that the report's style sheet (or `picture_style` in a file) gives light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from . import charts
from . import formatting as f
from .lifecycle_cards import Bar, Card, Story, story
from .trace_data import Trace

WIDE, NARROW = 1080.0, 360.0
_PAD, _BAR, _LINE, _ROOM = 10.0, 12.0, 14.5, 62.0
_LETTER = 5.75  # mean width of a letter at 11 px, on the wide side


@dataclass(frozen=True)
class Box:
    """A card with its place in the drawing."""

    card: Card
    x: float | int
    y: float | int
    width: float | int
    height: float | int

    @property
    def middle(self) -> float | int:
        """Height of its centre."""
        return self.y + self.height / 2


def diagram(trace: Trace, number: int, *, narrow: bool = False) -> str:
    """The picture of one carrier as an SVG element (colours come from the style sheet)."""
    told = story(trace, number)
    axis = Axis.of(told)
    body, width, height = (_narrow if narrow else _wide)(told, axis)
    return picture(
        body, width=width, height=height, title=told.title, description=description(told), cls="life"
    )


def picture(
    body: Sequence[str], *, width: float | int, height: float | int, title: str, description: str, cls: str
) -> str:
    """An SVG element of a class of its own."""
    drawn = charts.svg(body, width=width, height=math.ceil(height), title=title, description=description)
    return drawn.replace('class="chart"', f'class="chart {cls}"', 1)


def description(told: Story) -> str:
    """The picture in words, for those who do not see it."""
    cards = [c for column in told.birth for c in column] + told.after
    return " ".join(_card_words(c) for c in cards)


def _card_words(card: Card) -> str:
    parts = [f"{b.text} at {'its tokens' if b.is_outlier else 'other tokens'}" for b in card.bars]
    parts += [card.big] if card.big else []
    parts += [f"{name} {f.percent(abs(s))}{' against it' if s < 0 else ''}" for name, s in card.shares]
    return f"{card.title}, {card.subtitle}: {'; '.join([*parts, *card.notes]) or 'not measured'}."


@dataclass(frozen=True)
class Axis:
    """The logarithmic scale that all bars of sizes share."""

    low: float | int
    high: float | int

    @classmethod
    def of(cls, told: Story) -> Axis:
        """The decades around all sizes of a picture."""
        cards = [c for column in told.birth for c in column] + told.after
        sizes = [abs(b.value) for c in cards for b in c.bars if b.scale == "size" and b.value]
        if not sizes:
            return cls(1.0, 10.0)
        # A value that is nothing but rounding would stretch the scale beyond use.
        low = 10.0 ** math.floor(math.log10(max(min(sizes), max(sizes) * 1e-6)) - 0.05)
        return cls(low, max(max(sizes), low * 10))

    def length(self, bar: Bar) -> float | int:
        """Share of the full length that a bar takes."""
        if bar.scale != "size":
            return min(1.0, max(0.0, abs(bar.value)))
        if abs(bar.value) <= self.low:
            return 0.0
        return (math.log10(abs(bar.value)) - math.log10(self.low)) / (
            math.log10(self.high) - math.log10(self.low)
        )


def lines(card: Card, width: float | int) -> list[str]:
    """The notes of a card, broken to its width."""
    return [line for note in card.notes for line in wrap(note, (width - 2 * _PAD) / _LETTER)]


def wrap(words: str, letters: float | int) -> list[str]:
    """Text broken into lines of at most so many letters; a longer word is cut."""
    most, out = max(6, int(letters)), [""]
    for word in words.split():
        word = word if len(word) <= most else word[: most - 1] + "…"
        if out[-1] and len(out[-1]) + 1 + len(word) > most:
            out.append(word)
        else:
            out[-1] = f"{out[-1]} {word}".strip()
    return out


def card_height(card: Card, width: float | int) -> float | int:
    """What a card needs."""
    height = (
        2 * _PAD + 13 + len(wrap(card.subtitle, (width - 2 * _PAD) / _LETTER)) * _LINE * bool(card.subtitle)
    )
    height += len(card.bars) * (_BAR + 5) + (6 if card.bars else 0) + (30 if card.big else 0)
    height += len(card.shares) * 21 + (6 if card.shares else 0)
    return height + len(lines(card, width)) * _LINE + (4 if card.notes else 0)


def draw_card(box: Box, axis: Axis) -> list[str]:
    """A card with everything in it."""
    card, left, y = box.card, box.x + _PAD, box.y + _PAD + 10
    inner = box.width - 2 * _PAD
    out = [
        f'<rect class="card" x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="6"/>'
    ]
    out.append(charts.text(left, y, wrap(card.title, inner / 6.6)[0], cls="ct"))
    if card.subtitle:
        for part in wrap(card.subtitle, inner / _LETTER):
            y += _LINE
            out.append(charts.text(left, y, part))
    if card.bars:
        y += 9
        for bar in card.bars:
            out += _draw_bar(bar, left, y, inner - _ROOM, axis)
            y += _BAR + 5
        y -= 3
    if card.big:
        y += 27
        out.append(charts.text(left, y, card.big, cls="big"))
        y += 3
    for name, share in card.shares:
        y += 21 if (name, share) != card.shares[0] else 18
        out += _draw_share(name, share, left, y, inner)
    y += 8 if card.shares else 0
    y += 2 if card.notes else 0
    for note in lines(card, box.width):
        y += _LINE
        out.append(charts.text(left, y, note))
    return out


def _draw_bar(bar: Bar, x: float | int, y: float | int, room: float | int, axis: Axis) -> list[str]:
    kind = "o" if bar.is_outlier else "u"
    length = max(1.5, axis.length(bar) * room)
    track = (
        f'<rect class="track" x="{x:.1f}" y="{y:.1f}" width="{room:.1f}" height="{_BAR:g}"/>'
        if bar.scale != "size"
        else ""
    )
    mark = f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{length:.1f}" height="{_BAR:g}"/>'
    return [track, mark, charts.text(x + room + _ROOM, y + _BAR - 2, bar.text, cls=f"v {kind}", anchor="end")]


def _draw_share(
    name: str, share: float | int, x: float | int, y: float | int, room: float | int
) -> list[str]:
    words = f"−{f.percent(-share)}" if share < 0 else f.percent(share)
    label = wrap(name, (room - 52) / _LETTER)[0]
    length = max(1.0, min(1.0, abs(share)) * room)
    start = x if share >= 0 else x + room - length
    return [
        charts.text(x, y, label),
        charts.text(x + room, y, words, cls="v", anchor="end"),
        f'<rect class="track" x="{x:.1f}" y="{y + 3:.1f}" width="{room:.1f}" height="3"/>',
        f'<rect class="{"w" if share >= 0 else "neg"}" x="{start:.1f}" y="{y + 3:.1f}" width="{length:.1f}" height="3"/>',
    ]


def arrow(
    points: Sequence[tuple[float | int, float | int]],
    label: str = "",
    *,
    at: tuple[float | int, float | int] | None = None,
) -> list[str]:
    """A line along points with a head at its end, and a label."""
    (x0, y0), (x1, y1) = points[-2], points[-1]
    turn = math.degrees(math.atan2(y1 - y0, x1 - x0))
    path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    out = [
        f'<path class="flow" d="{path}"/>',
        f'<path class="tip" d="M0,0l-8,-4.5v9z" transform="translate({x1:.1f},{y1:.1f}) rotate({turn:.0f})"/>',
    ]
    if label and at is not None:
        out.append(charts.text(at[0], at[1], label, cls="lab", anchor="middle"))
    return out


def _key(axis: Axis, x: float | int, y: float | int, width: float | int) -> tuple[list[str], float | int]:
    """What the bars mean, and the height that it took."""
    out = [
        f'<rect class="o" x="{x:g}" y="{y - 9:g}" width="18" height="10"/>',
        charts.text(x + 24, y, "upper bar: at the tokens that carry the outlier"),
    ]
    second = (x + 290, y) if width > 600 else (x, y + 17)
    out += [
        f'<rect class="u" x="{second[0]:g}" y="{second[1] - 9:g}" width="18" height="10"/>',
        charts.text(second[0] + 24, second[1], "lower bar: at other tokens (mean size)"),
    ]
    scale = f"bar length: |value|, logarithmic, {f.number(axis.low)} to {f.number(axis.high)}"
    third = (x + 560, y) if width > 600 else (x, second[1] + 17)
    out.append(charts.text(third[0], third[1], scale))
    fourth = (third[0], third[1] + 15)
    out.append(charts.text(fourth[0], fourth[1], "framed bars: linear, 0 to 1"))
    return out, fourth[1] - y


def _wide(told: Story, axis: Axis) -> tuple[list[str], float | int, float | int]:
    margin, gap = 14.0, 44.0
    columns = len(told.birth)
    width = min(230.0, (WIDE - 2 * margin - gap * (columns - 1)) / max(1, columns))
    used = columns * width + gap * (columns - 1)
    body, legend = _key(axis, 4, 14, WIDE)
    top = 14 + legend + 18
    body.append(charts.text(margin, top + 22, wrap(told.birth_title, 120)[0], cls="ph"))
    heights = [sum(card_height(c, width) for c in column) + 14 * (len(column) - 1) for column in told.birth]
    tall = max(heights)
    boxes: list[list[Box]] = []
    for i, column in enumerate(told.birth):
        x = margin + (WIDE - 2 * margin - used) / 2 * (columns > 2) + i * (width + gap)
        y = top + 36 + (tall - heights[i]) / 2
        placed = []
        for card in column:
            placed.append(Box(card, x, y, width, card_height(card, width)))
            y += placed[-1].height + 14
        boxes.append(placed)
    bottom = top + 36 + tall + margin
    panel = (
        f'<rect class="panelbox" x="0" y="{top:.1f}" width="{WIDE:g}" height="{bottom - top:.1f}" rx="10"/>'
    )
    drawn = [d for i in range(1, columns) for d in _between(boxes[i - 1], boxes[i], told.labels[i - 1], gap)]
    drawn += [d for column in boxes for box in column for d in draw_card(box, axis)]
    if not told.after:
        return [panel, *body, *drawn], WIDE, bottom + 2
    lower, end = _wide_after(told, axis, boxes[-1][-1], bottom)
    return [panel, *lower[:1], *body, *drawn, *lower[1:]], WIDE, end


def _between(left: list[Box], right: list[Box], label: str, gap: float | int) -> list[str]:
    """Arrows from every box of a column to every one of the next; the label stands once, beside the join."""
    out: list[str] = []
    for a in left:
        for b in right:
            x0, x1 = a.x + a.width, b.x
            middle = (x0 + x1) / 2
            bent = abs(a.middle - b.middle) > 1
            points = (
                [(x0, a.middle), (middle, a.middle), (middle, b.middle), (x1, b.middle)]
                if bent
                else [(x0, a.middle), (x1, b.middle)]
            )
            out += arrow(points)
    if label:
        # Behind a join of several the sign stands on the last piece, where only one line runs.
        x = (left[0].x + left[0].width + right[0].x) / 2 + (12 if len(left) > 1 else 0)
        out.append(charts.text(x, right[0].middle - 7, label, cls="lab", anchor="middle"))
    return out


def _wide_after(told: Story, axis: Axis, source: Box, bottom: float | int) -> tuple[list[str], float | int]:
    margin, gap, count = 14.0, 20.0, len(told.after)
    width = min(320.0, (WIDE - 2 * margin - gap * (count - 1)) / count)
    top = bottom + 30
    trunk = top + 42
    start = source.x + source.width / 2
    # The stream comes down from its card; the heading stands beside it.
    heading = margin if start > 300 else start + 14
    body = [charts.text(heading, top + 22, told.after_title, cls="ph")]
    heights = [card_height(c, width) for c in told.after]
    boxes = [
        Box(c, margin + i * (width + gap), trunk + 40, width, max(heights)) for i, c in enumerate(told.after)
    ]
    end = trunk + 40 + max(heights) + margin
    panel = f'<rect class="panelbox" x="0" y="{top:.1f}" width="{WIDE:g}" height="{end - top:.1f}" rx="10"/>'
    first, last = boxes[0].x + boxes[0].width / 2, boxes[-1].x + boxes[-1].width / 2
    body.append(
        f'<path class="flow stream" d="M{start:.1f},{source.y + source.height:.1f}V{trunk:.1f}M{min(first, start):.1f},{trunk:.1f}H{max(last, start):.1f}"/>'
    )
    for box, label in zip(boxes, told.after_labels, strict=True):
        x = box.x + box.width / 2
        body += arrow([(x, trunk), (x, box.y)])
        if label:
            body.append(charts.text(x + 8, trunk + 23, label, cls="lab"))
    body.append(
        charts.text(first + 8, trunk + 23, "residual stream", cls="lab") if not told.after_labels[0] else ""
    )
    return [panel, *body, *(d for box in boxes for d in draw_card(box, axis))], end + 2


def _narrow(told: Story, axis: Axis) -> tuple[list[str], float | int, float | int]:
    """All cards below one another; parallel ones side by side."""
    body, legend = _key(axis, 2, 12, NARROW)
    y = 12 + legend + 30
    y, last = _stack(told.birth, told.birth_title, ["", *told.labels], axis, y, None, body)
    if told.after:
        rows = [[c] for c in told.after]
        y, last = _stack(
            rows,
            told.after_title,
            [label or "residual stream" for label in told.after_labels],
            axis,
            y + 16,
            last,
            body,
            branch=True,
        )
    return body, NARROW, y - 14


def _stack(
    rows: Sequence[Sequence[Card]], heading: str, labels: Sequence[str], axis: Axis, y: float | int, above: list[Box] | None, body: list[str], *, branch: bool = False,
) -> tuple[float | int, list[Box] | None]:  # fmt: skip
    body.append(charts.text(0, y, wrap(heading, 44)[0], cls="ph"))
    y += 20 if branch else 12
    for i, row in enumerate(rows):
        gap = 10.0
        indent = 26.0 if branch else 0.0
        width = (NARROW - indent - gap * (len(row) - 1)) / len(row)
        height = max(card_height(c, width) for c in row)
        boxes = [Box(c, indent + k * (width + gap), y, width, height) for k, c in enumerate(row)]
        if branch:
            body.append(charts.text(indent + 2, y + 2, labels[i], cls="lab"))
            boxes = [Box(b.card, b.x, b.y + 9, b.width, b.height) for b in boxes]
            body += arrow([(8, y - 12), (8, boxes[0].middle), (indent, boxes[0].middle)])
            if i:
                body.append(
                    f'<path class="flow" d="M8,{above[0].middle if above else y:.1f}V{boxes[0].middle:.1f}"/>'
                )
            y += 9
        elif above and i:
            body += [d for a in above for b in boxes for d in _down(a, b)]
            if labels[i]:
                body.append(charts.text(NARROW / 2 + 14, y - 8, labels[i], cls="lab"))
        body += [d for b in boxes for d in draw_card(b, axis)]
        y, above = y + height + (30 if not branch else 18), boxes
    return y, above


def _down(a: Box, b: Box) -> list[str]:
    x0, x1 = a.x + a.width / 2, b.x + b.width / 2
    y0, y1 = a.y + a.height, b.y
    middle = (y0 + y1) / 2
    return arrow(
        [(x0, y0), (x1, y1)] if abs(x0 - x1) < 1 else [(x0, y0), (x0, middle), (x1, middle), (x1, y1)]
    )


def figure(trace: Trace, number: int) -> str:
    """Both layouts for a page: style shows the one that fits."""
    return f'<div class="wide">{diagram(trace, number)}</div><div class="narrow">{diagram(trace, number, narrow=True)}</div>'


def caption(trace: Trace, number: int) -> str:
    """What the picture shows, in one sentence of safe text."""
    tokens = f.listing(trace.tokens(number), limit=3)
    return escape(f"Its tokens: {tokens}." if tokens else "Which tokens carry it was not recorded.")
