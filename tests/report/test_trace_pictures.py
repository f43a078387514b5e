"""The lifecycle diagram and the layer plot: XML that holds the measured numbers, whatever is missing."""

import re
import xml.etree.ElementTree as ET

import pytest
import trace_synthetic as made

from skerry.errors import UnknownOption
from skerry.report import trace_figures, write_figures
from skerry.report.layerplot import panels, points
from skerry.report.lifecycle import diagram
from skerry.report.lifecycle_cards import story
from skerry.report.spec_chart import figure
from skerry.report.trace_data import from_tables

NAMES = [n for n in made.ALL if n != "empty"]


@pytest.fixture(scope="session")
def traces():
    return {name: from_tables(made.tables(make()), model=f"org/{name}") for name, make in made.ALL.items()}


def texts(svg):
    return ["".join(e.itertext()) for e in ET.fromstring(svg).iter() if e.tag.endswith("text")]


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_diagram_is_xml_with_a_name_and_a_description(traces, name, narrow):
    root = ET.fromstring(diagram(traces[name], 0, narrow=narrow))
    title, description = (next(e.text for e in root if e.tag.endswith(t)) for t in ("title", "desc"))
    assert title and description and root.get("role") == "img"


@pytest.mark.parametrize("narrow", [False, True])
def test_the_diagram_holds_the_measured_numbers_along_the_chain(traces, narrow):
    found = texts(diagram(traces["llama"], 0, narrow=narrow))
    for number in (
        "61.2",
        "36.4",
        "39.9",
        "1,452",
        "× 1.61",
        "97 %",
        "98 %",
        "2,308",
        "2,391",
        "87 %",
        "0.062",
        "239",
    ):
        assert number in found, number
    joined = " ".join(found)
    for words in ("[2533, 7890]", "also channel 1415: −1,372", "takes back 90 % of it", "neurons 3721 (66 %), 7006 (28 %)", "0.71, others 0.021"):  # fmt: skip
        assert words in joined, words


def test_a_bar_is_longer_where_the_value_is_larger(traces):
    svg = diagram(traces["llama"], 0)
    bars = [float(w) for w in re.findall(r'class="o" x="[\d.]+" y="[\d.]+" width="([\d.]+)"', svg)]
    assert all(w > 0 for w in bars) and bars[2] < bars[4]  # gate 36 against product 1452, on one scale


def test_a_plain_feed_forward_has_no_gate_and_lists_the_entries_that_share_the_growth(traces):
    told = story(traces["minilm"], 0)
    titles = [[c.title for c in column] for column in told.birth]
    assert titles == [["mlp.in"], ["up"], ["mlp.down.in"], ["w.down"], ["0.resid.out"]]
    assert "first 4 entries together 91 %" in told.birth[3][0].notes
    assert [c.title for c in told.after] == ["3.resid.out", "keys: attention", "values: norm"]  # no exit


@pytest.mark.parametrize(
    ("name", "birth", "after"),
    [
        ("embedding", [["embedding"]], ["1.resid.out"]),
        ("attention", [["attn.out"], ["2.resid.out"]], ["3.resid.out", "5.resid.out"]),
        ("bare", [["3.resid.out"]], []),
    ],
)
def test_what_was_not_measured_is_left_out_of_the_diagram(traces, name, birth, after):
    told = story(traces[name], 0)
    assert [[c.title for c in column] for column in told.birth] == birth
    assert [c.title for c in told.after] == after


def test_a_card_without_any_number_says_so(traces):
    assert "no value was measured here" in texts(diagram(traces["bare"], 0))
    assert not {t for t in texts(diagram(traces["bare"], 0)) if t in ("0", "NaN", "None", "–")}


def test_the_spread_of_massive_activations_is_not_told_of_an_outlier_channel():
    rows = made.llama()
    rows["carriers"][1]["kind"] = "outlier channel"
    told = story(from_tables(made.tables(rows)), 1)
    assert not [c for c in told.after if c.title.startswith(("keys", "values"))]


def test_negative_and_null_shares_are_drawn_as_what_they_are(traces):
    shares = dict(story(traces["minilm"], 0).birth[-1][0].shares)
    assert shares["the norm's bias"] == -0.055
    assert 'class="neg"' in diagram(traces["minilm"], 0)


def test_no_text_of_a_diagram_leaves_the_drawing(traces):
    for name in NAMES:
        for narrow, width in ((False, 1080), (True, 360)):
            root = ET.fromstring(diagram(traces[name], 0, narrow=narrow))
            for e in root.iter():
                if e.tag.endswith("text") and e.get("class") != "ph":
                    x, length = float(e.get("x")), 5.3 * len("".join(e.itertext()))
                    end = x + {"start": length, "middle": length / 2, "end": 0}[e.get("text-anchor")]
                    assert end <= width + 12, (name, narrow, "".join(e.itertext()))


def test_hostile_tokens_and_parts_stay_text(traces):
    for svg in (diagram(traces["hostile"], 0), *panels(traces["hostile"])):
        ET.fromstring(svg)
        assert "<script" not in svg and "\u202e" not in svg and "\x1b" not in svg


def test_the_layer_plot_has_a_panel_per_carrier_with_marks_at_birth_peak_and_exit(traces):
    drawn = panels(traces["llama"])
    assert len(drawn) == 2
    for svg in drawn:
        found = texts(svg)
        assert svg.count('class="event"') == 3
        assert {"birth 1", "exit 30"} <= set(found)
    assert "Channel 2533" in texts(drawn[0]) and "peak 14" in texts(drawn[0]) and "peak 12" in texts(drawn[1])
    assert "birth: embedding" in texts(panels(traces["embedding"])[0])
    assert panels(traces["bare"]) == [] and panels(traces["empty"]) == []


def test_the_course_counts_the_input_of_a_block_once(traces):
    at = [x for x, _ in points(traces["minilm"], 0)]
    assert at == sorted(set(at)) and at[0] == -1 and at[-1] == 5 and len(at) == 13


def test_null_and_nan_in_a_course_are_gaps_not_zeros():
    rows = made.minilm()
    rows["lifecycle"][4].update(value=float("nan"))
    rows["lifecycle"][7].update(low=None, other=None)
    trace = from_tables(made.tables(rows))
    assert len(points(trace, 0)) == 12
    assert "nan" not in panels(trace)[0].lower()


@pytest.mark.parametrize("dark", [False, True])
def test_pictures_as_files_are_svg_and_png_with_their_own_colours(traces, tmp_path, dark):
    written = write_figures(traces["llama"], tmp_path / "new", dark=dark)
    assert {p.name for p in written} == {
        f"{n}.{e}" for n in ("lifecycle-2533", "layers") for e in ("svg", "png")
    }
    for path in written:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        else:
            text = path.read_text("utf-8")
            ET.fromstring(text)
            assert "var(--" not in text and "org/llama" in text


def test_pictures_of_nothing_are_no_files_and_an_unknown_format_is_told(traces, tmp_path):
    assert write_figures(traces["empty"], tmp_path) == []
    assert set(trace_figures(traces["bare"])) == {"lifecycle-5"}
    with pytest.raises(UnknownOption, match="'pdf'; choose of svg, png"):
        write_figures(traces["llama"], tmp_path, ["pdf"])


def test_claim_figures_of_every_kind_are_drawn_and_lost_points_are_counted():
    drawn = [figure(c["figure"]) for c in made.claims()]
    assert [bool(d) for d in drawn] == [True, True, True, False]
    assert {"mlp.down.in", "96.2"} <= set(texts(drawn[0]))
    assert {"outlier", "other"} <= set(texts(drawn[1])) and drawn[1].count("<polyline") == 2
    assert "1 point without a number left out" in texts(drawn[2])


def test_a_claim_figure_survives_whatever_it_is_given():
    for spec in (
        None,
        {},
        {"kind": "bars", "x": [], "y": []},
        {"kind": "lines", "x": [1], "y": [float("nan")]},
        {"kind": "points", "x": [3, 3], "y": [0, 0], "title": "a & <b>"},
        {"kind": "new", "x": ["<script>"] * 40, "y": list(range(40)), "low": None, "series": ["\u202e"] * 40},
        {"kind": "intervals", "x": ["a", "b"], "y": [1.0, None], "low": [0.5, None], "high": [None, None]},
    ):
        svg = figure(spec)
        if svg:
            ET.fromstring(svg)
            assert "<script>" not in svg


def test_a_feed_forward_that_no_neuron_leads_is_told_as_a_crowd():
    rows = made.minilm()
    for r in rows["growth"]:
        if r["level"] == "neuron":
            r["share"] *= 0.1
    told = story(from_tables(made.tables(rows)), 0)
    assert [[c.title for c in column] for column in told.birth] == [["mlp.out"], ["0.resid.out"]]
    assert "spread over many neurons" in told.birth[0][0].notes and told.labels == ["94 %"]


def test_a_part_that_hardly_took_part_has_no_picture():
    rows = made.minilm()
    rows["growth"] = [
        made.grown(0, "birth", 0, "block", "norm bias", None, -9.0, 0.97),
        made.grown(0, "birth", 0, "block", "mlp.out", None, -0.2, 0.03),
    ]
    told = story(from_tables(made.tables(rows)), 0)
    assert [[c.title for c in column] for column in told.birth] == [["0.resid.out"]]
    assert told.birth_title == "Birth: block 0, the norm's bias"


def test_without_massive_activations_the_spread_belongs_to_channels_on_few_tokens():
    rows = made.minilm()
    rows["carriers"] = [
        made.carrier(n, n, 0, 3, None, -9.0, kind="outlier channel", num_tokens=t)
        for n, t in enumerate((100, 400, 50))
    ]
    assert from_tables(made.tables(rows), num_tokens=1000).spreading == {0}
    assert from_tables(made.tables(rows), num_tokens=4000).spreading == {0, 1, 2}
    assert from_tables(made.tables(rows)).spreading == {0}


def test_a_value_of_rounding_does_not_stretch_the_scale():
    rows = made.attention()
    for r in rows["lifecycle"]:
        if (r["layer"], r["site"]) == (5, "resid.out"):
            r["value"] = 1e-33
    assert "logarithmic, 1e-5 to" in diagram(from_tables(made.tables(rows)), 0)
