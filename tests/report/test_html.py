"""The report as a file: it parses, loads nothing, shows the summary's numbers and gives hostile tokens no way in."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest
import synthetic as made

from skerry.report import formatting as f
from skerry.report import html
from skerry.report.data import FINDING_FIELDS, script_json
from skerry.report.strips import split, strip

VOID = {"meta", "link", "br", "input", "img", "hr"}
NAMES = list(made.ALL)


class Page(HTMLParser):
    """Tags in balance, ids once, attributes and texts collected."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.wrong, self.tags, self.ids, self.texts, self.raw = [], [], [], [], [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [v for k, v in attributes if k == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.raw.setdefault(self.open[-1], []).append(data)
        else:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="session")
def parsed(pages):
    return {name: Page(text) for name, text in pages.items()}


def embedded(page):
    return json.loads(next(s for s in page.raw["script"] if s.startswith("{")))


@pytest.mark.parametrize("name", NAMES)
def test_the_page_is_well_formed(parsed, name):
    page = parsed[name]
    assert not page.wrong
    assert not page.open
    assert len(page.ids) == len(set(page.ids))
    assert [t for t, _ in page.tags if t == "h1"] == ["h1"]


@pytest.mark.parametrize("name", NAMES)
def test_the_page_fetches_nothing(parsed, pages, name):
    for tag, attributes in parsed[name].tags:
        for key in ("src", "href", "action", "data", "poster", "srcset", "xlink:href"):
            value = attributes.get(key, "")
            assert value == "" or value.startswith(("#", "data:")), (tag, key, value)
    assert "default-src 'none'" in pages[name]
    style = "".join(parsed[name].raw["style"])
    assert "@import" not in style
    assert "url(" not in style
    script = parsed[name].raw["script"][-1]
    for word in (
        "fetch(",
        "XMLHttpRequest",
        "WebSocket",
        "importScripts",
        "innerHTML",
        "outerHTML",
        "document.write",
        "eval(",
        "insertAdjacentHTML",
    ):
        assert word not in script
    assert re.findall(r"https?://[^\s\"'<]+", pages[name]) == ["http://www.w3.org/2000/svg"] * pages[
        name
    ].count("http://www.w3.org/2000/svg")


@pytest.mark.parametrize("name", NAMES)
def test_only_the_hashed_script_may_run(pages, parsed, name):
    import base64
    import hashlib

    script = parsed[name].raw["script"][-1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in pages[name]
    assert not any(k.startswith("on") for _, attributes in parsed[name].tags for k in attributes)


def test_hostile_tokens_stay_text(parsed, pages):
    page, text = parsed["hostile"], pages["hostile"]
    assert len(page.raw["script"]) == 2
    assert not any(t in ("img", "b", "i", "u") for t, _ in page.tags)
    assert "<script>alert" not in text
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\u202a-\u202e\u2066-\u2069]", text)
    assert "\\u202egnp.exe" in page.text
    assert "{{7*7}}" in page.text  # not evaluated by the template
    assert "a" * 40 not in text
    json_text = next(s for s in page.raw["script"] if s.startswith("{"))
    assert "<" not in json_text
    assert "&" not in json_text
    text.encode("utf-8")


def test_json_for_a_script_cannot_close_it_and_refuses_nan():
    nasty = {"a": "</script><!--\u2028&", "b": "\ud800"}
    text = script_json(nasty)
    assert not re.search("[<>&\u2028]", text)
    assert text.isascii()
    assert json.loads(text) == nasty
    with pytest.raises(ValueError, match="JSON"):
        script_json({"x": float("nan")})


@pytest.mark.parametrize("name", NAMES)
def test_every_finding_is_there_with_the_summary_s_numbers(worlds, parsed, name):
    data = embedded(parsed[name])["findings"]
    assert tuple(data["fields"]) == FINDING_FIELDS
    assert len(data["rows"]) == len(worlds[name].summary.findings)
    for row, x in zip(data["rows"], worlds[name].summary.findings, strict=True):
        shown = dict(zip(FINDING_FIELDS, row, strict=True))
        for k in ("kind", "type", "site", "layer", "expert", "channel", "row", "column", "head", "position"):
            assert shown[k] == getattr(x, k)
        for k in ("value", "ratio", "score", "recurrence", "p_value", "q_value"):
            want = getattr(x, k)
            assert shown[k] == want if want is None else shown[k] == pytest.approx(want, rel=1e-6)
        assert (shown["low"], shown["high"]) == (
            pytest.approx(x.range, rel=1e-6) if x.range else (None, None)
        )


def test_the_map_and_the_tiles_show_the_profiles(worlds, parsed):
    s, page = worlds["encoder"].summary, parsed["encoder"]
    cells = {a["data-k"] for t, a in page.tags if t == "button" and "data-k" in a}
    assert cells >= {f"{p.layer}.{p.site}" for p in s.profiles.sites if p.same_as is None}
    worst = max(p.max_to_median for p in s.profiles.sites)
    assert f"{f.ratio(worst)} ×" in page.text
    assert f.percent(max(p.sink_mass for p in s.profiles.layers)) in page.text
    facts = embedded(page)["sites"]["5.resid.out"]["facts"]
    own = next(p for p in s.profiles.sites if (p.layer, p.site) == (5, "resid.out"))
    assert facts[:3] == pytest.approx([own.abs_max, own.median, own.max_to_median], rel=1e-5)


def test_outlier_channels_are_exact_in_their_site(worlds, parsed):
    top = {row[0]: row for row in embedded(parsed["encoder"])["sites"]["5.resid.out"]["top"]}
    assert {99, 63, 157} <= {c for c, row in top.items() if row[5]}
    found = next(
        x for x in worlds["encoder"].summary.findings if (x.layer, x.site, x.channel) == (5, "resid.out", 99)
    )
    assert top[99][1:3] == pytest.approx(list(found.range), rel=1e-4)


def test_strips_come_back_within_a_thousandth():
    rng = np.random.default_rng(0)
    high = np.abs(rng.standard_normal(1000))
    high[77] = 4000.0
    low = -high / 2
    packed = strip(low, high, unit=0.7, columns=300)
    assert packed["k"] == 4
    import base64

    def back(key):
        codes = np.frombuffer(base64.b64decode(packed[key]), dtype="<i2")
        return packed["m"] * np.sinh(codes * np.arcsinh(packed["M"] / packed["m"]) / 32767)

    assert back("hi") == pytest.approx(high.reshape(250, 4).max(1), rel=1e-3, abs=1e-3)
    assert back("lo") == pytest.approx(low.reshape(250, 4).min(1), rel=1e-3, abs=1e-3)
    assert back("hi").max() == pytest.approx(4000, rel=1e-4)


def test_strips_survive_what_is_not_finite_or_zero():
    packed = strip(None, np.array([np.nan, 0.0, 0.0]), unit=0.0, columns=10)
    assert packed["n"] == 3
    assert json.loads(script_json(strip(None, np.array([np.inf, 1.0]), unit=1.0, columns=10)))["M"] > 1e38


def test_split_keeps_nulls_apart(worlds):
    parts = split(worlds["encoder"].tables["matrices"], ("layer", "site", "expert"), ("num_rows",))
    assert parts[None, "w.embed", None]["num_rows"].tolist() == [3000]
    assert len(parts) == worlds["encoder"].tables["matrices"].num_rows


def test_sizes_stay_sane(pages):
    assert len(pages["encoder"].encode()) < 600_000
    assert len(pages["decoder"].encode()) < 1_000_000
    assert len(html(*made.big()).encode()) < 3_000_000


def test_warnings_come_first(parsed):
    text = parsed["bare"].text
    assert "Read this first" in text
    assert text.index("holds 1 NaN entry") < text.index(
        "5 outlier channels stand out of strange-net systematically"
    )
    assert "Read this first" not in parsed["encoder"].text


def test_non_finite_values_are_located(parsed):
    assert "Where values are not finite (1 listed in the run)" in parsed["bare"].text
    assert "1.w.down nan 0 3 7" in parsed["bare"].text
    assert "not finite" not in parsed["encoder"].text


def test_parts_outside_the_blocks_have_a_column_of_their_own(worlds):
    from skerry.report.page import site_map

    summary = worlds["encoder"].summary
    outside = summary.profiles.sites[0].model_copy(update={"layer": None, "site": "head.in"})
    profiles = summary.profiles.model_copy(update={"sites": (*summary.profiles.sites, outside)})
    grid = site_map(summary.model_copy(update={"profiles": profiles}), {"head.in": {}})
    assert grid.columns == ["0", "1", "2", "3", "4", "5", "out"]
    cells = {name: row for name, _, row in grid.rows}
    assert cells["head.in"][-1].target == "head.in"
    assert cells["resid.out"][-1] is None


def test_the_legend_explains_the_marks_that_are_there(parsed):
    assert "faded: the same tensor as another site" in parsed["encoder"].text
    assert "a dot: the largest of the experts" in parsed["moe"].text
    assert "a dot" not in parsed["encoder"].text
    assert "framed: holds NaN or infinity" in parsed["bare"].text


def test_absent_tables_count_as_empty(worlds):
    summary, tables = worlds["encoder"]
    text = Page(html(summary, {"channels": tables["channels"]})).text
    assert "Where a layer" not in text
    assert "Weights" not in text


def test_a_model_without_attention_says_so_and_has_no_grid(parsed):
    assert "The model has no attention." in parsed["bare"].text
    assert "sinks" not in parsed["bare"].ids


def test_nothing_found_still_shows_the_map(parsed):
    page = parsed["empty"]
    assert "No systematic outlier was found" in page.text
    assert "There are no findings to list." in page.text
    assert "sites-heat" in page.ids
    assert "table" not in page.ids


def test_the_command_and_the_record_are_shown(worlds):
    record = {
        "command": ["skerry", "audit", "my model", "--seed", "3"],
        "versions": {"torch": "2.13", "skerry": "0.1"},
        "options": {"sites": ["resid", "w"]},
    }
    text = Page(html(*worlds["empty"], record=record)).text
    assert "skerry audit 'my model' --seed 3" in text
    assert "versions.torch 2.13" in text
    assert "options.sites resid, w" in text
    assert "skerry audit x --y" in Page(html(*worlds["empty"], record={"command": "skerry audit x --y"})).text


def test_without_a_record_the_command_is_rebuilt_and_quoted(parsed):
    assert (
        "skerry audit random-gpt2 --samples 8 --tokens 32 --dtype float32 --device cpu"
        in parsed["empty"].text
    )
    assert "skerry audit '<b>evil</b> & co; rm -rf' --samples" in parsed["hostile"].text


def test_infinite_ratios_are_shown_as_such(worlds):
    world = worlds["encoder"]
    first = world.summary.findings[0].model_copy(
        update={"ratio": float("inf"), "score": float("nan"), "value": float("inf")}
    )
    sites = tuple(
        p.model_copy(update={"max_to_median": float("inf"), "kurtosis": float("nan"), "median": 0.0})
        if i == 3
        else p
        for i, p in enumerate(world.summary.profiles.sites)
    )
    profiles = world.summary.profiles.model_copy(update={"sites": sites})
    page = Page(
        html(world.summary.model_copy(update={"findings": (first,), "profiles": profiles}), world.tables)
    )
    assert "∞" in page.text
    assert embedded(page)["findings"]["rows"][0][FINDING_FIELDS.index("ratio")] == "Infinity"


def test_tables_have_captions_and_headers_with_scope(parsed):
    for name, page in parsed.items():
        heads = [a for t, a in page.tags if t == "th"]
        assert heads, name
        assert all(a.get("scope") in ("row", "col") for a in heads), name
        assert all(a.get("role") == "img" for t, a in page.tags if t == "svg" and a.get("class") == "chart")


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the report's script")
def test_the_script_writes_numbers_as_python_does():
    script = (files("skerry.report") / "assets" / "report.js").read_text()
    part = script[script.index("  const number =") : script.index("  const many =")]
    values = [0, 1, 45.23, -0.01234, 1234.5, 12.0, 100, 2.5e-9, 2e9, 101605, 0.1, 999.4, -13.5]
    shares = [0, 0.52, 0.0412, 0.0004, 1, 0.05, 0.97]
    code = f"{part}; console.log(JSON.stringify([{json.dumps(values)}.map((x) => number(x)), {json.dumps(shares)}.map(percent), [7.42, 45.4, 1234].map(ratio)]))"
    told = json.loads(
        subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True, timeout=60).stdout
    )
    assert told == [
        [f.number(x) for x in values],
        [f.percent(x) for x in shares],
        [f.ratio(x) for x in (7.42, 45.4, 1234)],
    ]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser")
@pytest.mark.parametrize("name", NAMES)
def test_the_page_runs_in_a_browser_without_an_error(pages, name, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(pages[name], encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
               "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0",
               "--virtual-time-budget=2000", "--dump-dom", f"{page.as_uri()}#dark&log&kind=activation&sort=6"]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert "CONSOLE" not in result.stderr
    assert 'class="on"' in result.stdout
    if name != "empty":
        assert 'aria-sort="descending"' in result.stdout
