"""The other faces: terminal, figures, notebook."""

import io
import re
import xml.etree.ElementTree as ET

import pytest
import synthetic as made
from rich.console import Console

from skerry.report import figures, notebook, png, terminal
from skerry.report.groups import group
from skerry.report.terminal import strip


def printed(summary, *, width=80, report="runs/x/report.html", **console):
    out = io.StringIO()
    terminal(summary, Console(file=out, width=width, **console), report=report)
    return out.getvalue()


@pytest.mark.parametrize("name", list(made.ALL))
def test_the_terminal_fits_80_columns_and_reads_without_colour(worlds, name):
    text = printed(worlds[name].summary)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "\x1b" not in text
    assert "Largest value / median by site and layer" in text
    assert "runs/x/report.html" in text


def test_the_terminal_tells_the_strongest_once(worlds):
    text = printed(worlds["encoder"].summary)
    assert len(re.findall(r"channel 99\b", text)) == 1
    assert "30 to 45" in text
    assert "5 rows for 142 findings; the report lists them all." in text


def test_the_terminal_says_how_many_more_and_how_to_see_them(worlds):
    summary = worlds["encoder"].summary
    x = next(f for f in summary.findings if f.type == "outlier channel")
    many = summary.model_copy(
        update={"findings": tuple(x.model_copy(update={"channel": n}) for n in range(25))}
    )
    assert "10 rows for 25 findings, 15 more not shown; `--json` prints them all." in printed(
        many, report=None
    )
    one = summary.model_copy(update={"findings": (x,)})
    assert "1 row for 1 finding; the report lists them all." in printed(one)


def test_colour_only_adds_to_the_text(worlds):
    coloured = printed(worlds["decoder"].summary, force_terminal=True, color_system="truecolor")
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == printed(worlds["decoder"].summary)


def test_no_color_is_respected(worlds, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert "48;2" not in printed(worlds["decoder"].summary, force_terminal=True, color_system="truecolor")


def test_deep_models_share_cells_and_keep_their_peaks():
    world = made.decoder(40, 16, 32, 2, parts=("resid.out",))
    out = io.StringIO()
    Console(file=out, width=80).print(strip(world.summary.profiles.sites, width=80))
    text = out.getvalue()
    assert "from:  · 0  1 10" in text
    assert max(len(line) for line in text.splitlines()) <= 80
    out = io.StringIO()
    Console(file=out, width=40).print(strip(world.summary.profiles.sites, width=40))
    assert "(2 layers a column)" in out.getvalue()
    row = next(line for line in out.getvalue().splitlines() if line.startswith("resid.out"))
    assert "A" in row  # the largest of a shared cell is shown


def test_warnings_are_printed_before_the_findings(worlds):
    text = printed(worlds["bare"].summary)
    assert text.index("Warning: w.down") < text.index("5 outlier channels")


def test_hostile_names_cannot_speak_to_the_terminal(worlds):
    text = printed(worlds["hostile"].summary, force_terminal=False)
    assert "\x07" not in text
    assert "\u202e" not in text
    assert "[bold]" in text  # not read as markup


def test_groups_keep_every_finding_once(worlds):
    for world in worlds.values():
        groups = group(world.summary.findings)
        assert sum(len(g.findings) for g in groups) == len(world.summary.findings)


def test_experts_and_neurons_are_their_own_groups(worlds):
    names = [(g.site_text, g.what) for g in group(worlds["moe"].summary.findings)]
    assert ("mlp.down.in[5]", "channel 333 at position 0 (<s>)") in names


@pytest.mark.parametrize("name", list(made.ALL))
def test_figures_are_valid_svg_of_the_right_kind(worlds, name):
    drawn = figures(*worlds[name])
    assert {"map", "channels", "depth", "overview"} <= set(drawn)
    assert ("sinks" in drawn) == (worlds[name].summary.model.num_heads is not None)
    for svg in drawn.values():
        root = ET.fromstring(svg)
        assert root.tag.endswith("svg")
        assert not any(e.tag.endswith(("script", "image", "foreignObject")) for e in root.iter())
        for e in root.iter():
            assert not any(
                re.search(r"\bnan\b|\binf\b", v)
                for k, v in e.attrib.items()
                if k in ("d", "points", "transform", "x", "y", "cx", "cy")
            )


def test_figures_can_be_dark_and_png(worlds):
    svg = figures(*worlds["encoder"], dark=True)["map"]
    assert "#11171a" in svg
    image = png(svg, scale=1)
    assert image.startswith(b"\x89PNG")


def test_the_named_channels_are_in_the_figure(worlds):
    svg = figures(*worlds["encoder"])["channels"]
    assert all(f">{c}</text>" in svg for c in (99, 63, 157))


def test_the_notebook_shows_the_same_and_is_safe(worlds):
    body = notebook(worlds["encoder"].summary)
    assert "channel 99" in body
    assert "30 to 45" in body
    nasty = notebook(worlds["hostile"].summary)
    assert "<script" not in nasty
    assert "<img" not in nasty
    assert "7 more; see" in nasty
    assert "<table" not in notebook(worlds["empty"].summary)
    ET.fromstring(nasty.replace(" class=n", ' class="n"'))
