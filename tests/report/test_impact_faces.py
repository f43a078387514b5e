"""Costs and taming in the report and on the terminal: the same numbers, nothing invented, nothing executable."""

import json
import math
import re
from html.parser import HTMLParser
from io import StringIO

import impact_synthetic as made
import pytest
import synthetic
from rich.console import Console

from skerry.report import html, tame_charts, tame_html, tame_terminal
from skerry.report import impact_charts as charts
from skerry.report.cost_axes import symlog
from skerry.report.figures import png, standalone
from skerry.report.impact_data import Costs, bits, costs_from_run, costs_from_tables
from skerry.report.impact_figures import impact_figures
from skerry.report.impact_sections import costs_view, impact_section, impact_words
from skerry.report.tame_sections import headline, tame_section, tame_view
from skerry.run import Run

NAMES = list(made.ALL)
VOID = {"meta", "link", "br", "hr", "img", "input"}


@pytest.fixture(scope="session")
def costs():
    return {
        name: costs_from_tables(made.tables(make()), model=f"org/{name}") for name, make in made.ALL.items()
    }


class Page(HTMLParser):
    """Text, ids, links and whether every element is closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.open, self.ids, self.links, self.scripts = [], [], set(), [], 0
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        self.ids.add(told.get("id"))
        self.scripts += tag == "script"
        if told.get("href", "").startswith("#"):
            self.links.append(told["href"][1:])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.ids.add(dict(attrs).get("id"))

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def printed(told, width=80, **options):
    console = Console(width=width, record=True, force_terminal=True, file=StringIO())
    tame_terminal(told, console, **options)
    return console.export_text()


@pytest.mark.parametrize("name", NAMES)
def test_every_run_has_balanced_sections_that_say_no_none_and_no_nan(costs, name):
    page = Page(str(impact_section(costs[name])) + str(tame_section(costs[name])))
    assert {"costs", "tamed"} <= page.ids
    assert not re.search(r"\b(None|nan|NaN|inf)\b", page.text)


def test_the_report_of_a_scan_holds_both_sections_and_links_to_them():
    scan = synthetic.ALL["decoder"]()
    page = html(
        scan.summary,
        {**scan.tables, **made.tables(made.decoder())},
        cost_notes=["calibration read 16 inputs"],
    )
    told = Page(page)
    assert {"costs", "tamed"} <= set(told.links) <= told.ids
    assert "calibration read 16 inputs" in told.text
    without = Page(html(scan.summary, {n: t for n, t in scan.tables.items() if n not in made.NAMES}))
    assert not {"costs", "tamed"} & (set(without.links) | without.ids)


def test_costs_are_told_with_their_intervals(costs):
    told = " ".join(impact_words(costs["decoder"]))
    assert "w8a8-tensor +1.4 [1.35, 1.45]" in told
    assert (
        "1.mlp.down.in under w8a8-tensor: +0.9 [0.88, 0.92]; 97 % of it is gone with the outlier channels"
        in told
    )
    assert "Clipping inputs of linear maps at their 0.999 quantile costs +1.07" in told
    assert "the controls 0.00951 to 0.0152" in told
    assert "Pruning 50 % of the weights costs: sparsegpt +0.0625" in told
    page = Page(str(impact_section(costs["decoder"]))).text
    assert "kv4: the cache is not quantized in blocks 0 to 11" in page
    assert "1.mlp.down.in: the central 99 % use 2 % of the levels" not in page  # it is a tip, not text
    assert "the central 99 % use 2 % of the levels" in str(impact_section(costs["decoder"]))


def test_what_was_not_found_says_so_and_what_was_not_asked_is_absent(costs):
    assert "No scheme could be measured" in " ".join(impact_words(costs["empty"]))
    assert impact_section(Costs({})) == "" and tame_section(Costs({})) == ""
    assert impact_words(Costs({})) == []


def test_columns_without_a_number_are_left_out(costs):
    assert "Perplexity" in costs_view(costs["decoder"])["grid_head"]
    head = costs_view(costs["encoder"])["grid_head"]
    assert "Perplexity" not in head and "Cosine" in head


def test_controls_are_a_band_beside_the_curve(costs):
    drawn = charts.clipping_panel(costs["decoder"], "inputs")
    assert drawn.count('class="controlband"') == 2 and drawn.count('class="m q0"') == 6
    assert charts.clipping_panel(costs["bare"], "inputs") == ""


def test_a_site_is_shown_with_and_without_its_outliers(costs):
    drawn = charts.sites_chart(costs["decoder"])
    first = {i: float(re.findall(rf'class="m q{i}"[^>]*translate\(([\d.]+),', drawn)[1]) for i in range(3)}
    assert first[1] < first[2] < first[0]  # 97 % is gone without channels, 93 % without tokens
    assert "outlier channels 97 %, outlier tokens 93 %" in drawn
    assert "outlier tokens spared" not in charts.sites_chart(costs["bare"])


def test_before_and_after_are_one_picture_of_three(costs):
    view = tame_view(costs["decoder"])
    assert len(view["figures"]) == 3 and view["shown_method"] == "os+"
    ranges, strip, by_bits = map(str, view["figures"])
    assert "Range of each channel at 11.norm.attn" in ranges
    assert ranges.count('class="before"') == ranges.count('class="after"') == 49
    assert "11.norm.attn: range 140 before" in strip and "11.norm.attn: range 7.2 after" in strip
    assert by_bits.index("w8a8-tensor") < by_bits.index("w6a6-tensor") < by_bits.index("w4a4-tensor")
    assert "os+ (chosen)" not in by_bits  # nobody chose: the best one is shown, not called chosen
    lone = tame_view(costs["bare"])
    assert len(lone["figures"]) == 1


def test_the_widest_range_is_darkest_and_the_scale_is_logarithmic():
    assert [tame_charts.heat_step(v, 1.0, 100.0) for v in (1.0, 10.0, 100.0)] == [0, 5, 11]
    assert tame_charts.heat_step(0.0, 1.0, 100.0) == 0 == tame_charts.heat_step(5.0, 5.0, 5.0)


def test_an_error_above_its_bound_is_told_as_that():
    rows = made.decoder()
    rows["equivalence"][0]["error"] = 1e-3
    told = costs_from_tables(made.tables(rows))
    assert 'class="bad"' in str(tame_section(told))
    assert "ABOVE the bound" in Page(str(tame_section(told))).text
    assert "NOT THE SAME" in printed(told)
    good = costs_from_tables(made.tables(made.decoder()))
    assert "ABOVE" not in printed(good) and 'class="bad"' not in str(tame_section(good))


def test_what_was_left_alone_is_told_once_a_reason_with_its_seams(costs):
    lines = tame_view(costs["decoder"])["skipped"]
    assert lines == [
        "os+: 0.up-down, 1.up-down, 2.up-down, 3.up-down, 4.up-down, 5.up-down and 6 more: the activation between is no ReLU, and no gate multiplies it"
    ]
    assert tame_view(costs["decoder"])["refused"] == [
        ("rotation", "w8a8-tensor", "the head is tied to the embedding")
    ]


def test_words_of_a_run_are_never_markup(costs):
    for text in (str(impact_section(costs["hostile"])), str(tame_section(costs["hostile"]))):
        assert Page(text).scripts == 0
        assert "\u202e" not in text and "\x1b" not in text
    assert "\x1b[31m" not in printed(costs["hostile"])


def test_the_axis_holds_small_and_large_and_keeps_their_order():
    values = [-0.001, 0.0, 0.0005, 0.02, 4.0, None, math.nan]
    axis = symlog(values, 0, 300)
    places = [axis.at(v) for v in (-0.001, 0.0, 0.0005, 0.02, 4.0)]
    assert places == sorted(places) and places[0] >= 0 and places[-1] <= 300 and not axis.is_linear
    assert 0.0 in axis.ticks and len(axis.ticks) <= 10
    assert symlog([2.0, 3.0], 0, 100).is_linear and symlog([], 0, 100).at(0) >= 0
    gaps = [abs(axis.at(a) - axis.at(b)) for a, b in zip(axis.ticks, axis.ticks[1:], strict=False)]
    assert min(gaps) > 300 / 10


def test_schemes_stand_in_the_order_of_their_bits(costs):
    assert costs["decoder"].schemes == ["float", "w8a8-tensor", "w6a6-tensor", "w4a4-tensor"]
    assert bits("w4a16") == 10 and bits("original") == 32 and bits("what?") == 16


def test_the_terminal_fits_and_tells_methods_proof_export_and_run():
    told = printed(made.document(), export="ignored")
    assert max(map(len, told.splitlines())) <= 80
    words = " ".join(told.split())
    for part in ("skerry tame org/tiny", "os+ (chosen)", "+0.006 [0.004, 0.008]", "no method", "same function os+: proof before folding in float64",
                 "Left alone", "compressed-tensors in out/tiny-w8a8", "read back by transformers", "skerry-runs/tame-tiny", "Chosen: os+ is the only method",
                 "rotation could not be run"):  # fmt: skip
        assert part in words, part
    assert "ignored" not in words
    assert "somewhere" in printed({**made.document(), "export": None}, export="somewhere")
    assert "tamed nothing" in printed({"schema": 1, "model": {"name": "x"}})


@pytest.mark.parametrize("name", NAMES)
def test_the_terminal_shows_any_run(costs, name):
    assert not re.search(r"\b(None|nan|NaN)\b", printed(costs[name]))


@pytest.fixture
def run(tmp_path):
    """A run of `skerry tame`: no scan in it."""
    made_tables = made.tables({k: v for k, v in made.taming().items() if k not in ("parts", "overhead")})
    with Run.begin(
        tmp_path / "run", {"model": "org/tiny"}, {"command": ["skerry", "tame", "org/tiny"]}
    ) as run:
        run.finish("tame", "key", tables=made_tables, texts={"tame.json": json.dumps(made.document())})
    return Run.open(tmp_path / "run")


def test_a_run_without_a_scan_has_a_page_of_its_own(run):
    page = tame_html(run)
    told = Page(page)
    assert told.text.count("org/tiny") >= 2 and "skerry tame org/tiny" in told.text
    assert set(told.links) <= told.ids and "built-in corpus 1" in told.text
    assert "default-src 'none'" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert headline(costs_from_run(run)).startswith(
        "Change of the loss (nats per token) beside the untouched model"
    )
    assert "os+ (chosen)" in told.text and "rotation under w8a8-tensor" in told.text


def test_a_document_and_its_run_give_the_same_table(run):
    assert printed(made.document()) == printed(run)


@pytest.mark.parametrize("dark", [False, True])
def test_every_picture_is_a_file_too(costs, dark):
    drawn = impact_figures(costs["decoder"], dark=dark)
    assert {
        "costs-schemes",
        "costs-sites",
        "costs-clipping-inputs",
        "costs-pruning",
        "tame-before-after",
    } <= set(drawn)
    for svg in drawn.values():
        assert "var(--" not in svg and png(svg)[:4] == b"\x89PNG"
    assert impact_figures(Costs({})) == {}
    assert standalone(charts.grid_chart(costs["decoder"]), dark=dark).startswith("<svg")
