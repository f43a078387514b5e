import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.report import formatting as f
from skerry.report import heat


@pytest.mark.parametrize(
    ("x", "said"),
    [(None, "–"), (0, "0"), (1234.5, "1,234"), (45.23, "45.2"), (-0.01234, "−0.0123"), (2.5e-9, "2.5e-9"), (1e9, "1e9"), (12.0, "12"), (100.0, "100"), (math.inf, "∞"),
     (-math.inf, "−∞"), (math.nan, "NaN"), (999.6, "1,000"), (0.1, "0.1")],
)  # fmt: skip
def test_numbers_have_three_digits(x, said):
    assert f.number(x) == said


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (0.52, "52 %"),
        (0.0412, "4.1 %"),
        (0.0004, "< 0.1 %"),
        (1.0, "100 %"),
        (0, "0 %"),
        (0.997, "> 99 %"),
        (0.05, "5 %"),
        (None, "–"),
        (0.0996, "10 %"),
    ],
)
def test_shares_read_as_per_cent(x, said):
    assert f.percent(x) == said


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (7.42, "7.4"),
        (45, "45"),
        (980, "980"),
        (999.7, "1k"),
        (1234, "1.2k"),
        (15_300, "15k"),
        (2e6, "2M"),
        (6.7e9, "6.7B"),
        (None, "–"),
        (math.inf, "∞"),
    ],
)
def test_short_numbers_fit_a_cell(x, said):
    assert f.short(x) == said
    assert len(said) <= 4


def test_lists_and_ranges():
    assert f.listing([]) == ""
    assert f.listing("a") == "a"
    assert f.listing("abc") == "a, b and c"
    assert f.listing("abcdef", limit=2) == "a, b and 4 more"
    assert f.ranges([4, 1, 2, 3, 6, 7, 9]) == "1 to 4, 6 and 7 and 9"
    assert f.compact_ranges([0, 2, 4, 6, 8, 9]) == "0, 2, 4, 6, …"
    assert f.layers([0, 1], 2) == "both layers"
    assert f.layers([0], 1) == "layer 0"
    assert f.seconds(0.43) == "0.4 s"
    assert f.seconds(42.4) == "42 s"
    assert f.seconds(185) == "3 min 5 s"
    assert f.seconds(180) == "3 min"
    assert f.p_value(None) == "–"
    assert f.p_value(1e-30) == "< 1e−12"
    assert f.token_name("", 3) == "(empty)"
    assert f.token_name(None, None) is None


@given(st.text())
def test_no_token_can_steer_a_terminal_or_turn_the_line(token):
    shown = f.visible(token)
    assert len(shown) <= f.TOKEN_LENGTH
    assert all(c.isprintable() for c in shown)
    assert not any(
        0xD800 <= ord(c) <= 0xDFFF or 0x202A <= ord(c) <= 0x202E or 0x2066 <= ord(c) <= 0x2069 for c in shown
    )
    shown.encode("utf-8")


def test_a_tower_of_marks_is_one_mark_high():
    assert f.visible("e" + "\u0301" * 50) == "e\u0301"


def test_steps_are_monotone_and_inks_are_readable():
    assert [heat.ratio_step(x) for x in (None, math.nan, 9.9, 10, 45, 3999, 4000, math.inf)] == [
        0,
        0,
        0,
        1,
        5,
        10,
        11,
        11,
    ]
    assert heat.share_step(0.95) == 11

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for dark, ramp in ((False, heat.LIGHT), (True, heat.DARK)):
        tones = [luminance(c) for c in ramp]
        assert tones == sorted(tones, reverse=not dark)
        for i, tone in enumerate(tones):
            other = luminance(heat.ink(i, dark=dark))
            contrast = (max(tone, other) + 0.05) / (min(tone, other) + 0.05)
            assert contrast >= 4.5, (dark, i, contrast)
