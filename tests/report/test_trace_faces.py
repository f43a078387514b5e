"""A trace in words, in the report's sections and on the terminal: the same numbers, nothing invented, nothing executable."""

import re
from html.parser import HTMLParser
from io import StringIO

import pytest
import synthetic
import trace_synthetic as made
from rich.console import Console

from skerry.report import (
    claims_list,
    claims_section,
    claims_terminal,
    html,
    trace_sections,
    trace_terminal,
    trace_words,
)
from skerry.report.trace_data import Trace, from_tables
from skerry.report.trace_words import carrier_words, claim_words, effect_words, origin_words, role_words
from skerry.run.cause_tables import CAUSE_TABLES

NAMES = list(made.ALL)


@pytest.fixture(scope="session")
def traces():
    return {name: from_tables(made.tables(make()), model=f"org/{name}") for name, make in made.ALL.items()}


@pytest.fixture(scope="session")
def world():
    """A scan that was not traced."""
    scanned = synthetic.ALL["encoder"]()
    return scanned._replace(tables={n: t for n, t in scanned.tables.items() if n not in CAUSE_TABLES})


def plain_text(markup):
    texts = []
    parser = HTMLParser()
    parser.handle_data = texts.append
    parser.feed(str(markup))
    return " ".join(" ".join(texts).split())


def printed(show, *arguments, width=80, **options):
    console = Console(width=width, record=True, force_terminal=True, file=StringIO())
    show(*arguments, console, **options)
    return console.export_text()


def test_the_birth_is_told_from_block_to_weight(traces):
    told = carrier_words(traces["llama"], 0)
    assert told.startswith(
        "Channel 2533 is born in block 1: 98 % of its growth is written by the feed-forward; neuron 7890 alone writes 97 % through "
        "w.down[2533, 7890] = 1.61. It reaches 2,391 behind block 14, 11,955 times the median."
    )
    assert (
        "Block 30 takes it away: it writes 90 % of what it received with the opposite sign, 98 % of that by the feed-forward, neurons 3721 and 7006 first."
        in told
    )
    assert told.endswith("The same neuron also writes channel 1415 (−1,421).")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("minilm", "4 entries of w.down carry 91 % of it, neurons 856, 607, 1004 and 358 first"),
        (
            "embedding",
            "the embedding already has it (the position embedding 66 % and the token embedding 36 %).",
        ),
        (
            "attention",
            "93 % of its growth is written by attention (feed-forward 7 %); head 3 alone writes 88 %",
        ),
        ("bare", "Channel 5 is born in block 3; what wrote it was not measured."),
        (
            "empty",
            "No outlier of the residual stream was found, so there is no birth, plateau or end to follow.",
        ),
    ],
)
def test_other_births_are_told_as_what_they_are(traces, name, words):
    assert words in origin_words(traces[name])


def test_effects_are_told_with_intervals_and_controls(traces):
    told = effect_words(traces["llama"])
    assert "“set to zero” +4.21 [3.91, 4.51] nats per token" in told
    assert "8 matched controls changed it by at most 0.008" in told
    assert "the sink mass of block 15 goes from 62 % to 4 %" in told
    assert "“only keys” −0.57 [−0.59, −0.55]" in told
    assert "the model has no head that gives a loss" in effect_words(traces["minilm"])


def test_roles_are_told_with_strength_and_counted_by_verdict(traces):
    told = role_words(traces["minilm"])
    assert "the verdict is implicit scaling (strength 0.68 [0.55, 0.79])" in told
    assert "Of 72 heads with a sink that were asked: 12 implicit scaling" in told


def test_what_was_not_asked_has_no_words_and_what_was_not_found_says_so(traces):
    assert trace_words(Trace({})) == []
    assert len(trace_words(traces["empty"])) == 3
    assert not re.search(r"\b(None|nan|NaN)\b", " ".join(w for t in traces.values() for w in trace_words(t)))


def test_claims_are_counted_and_the_refuted_named():
    assert claim_words(made.claims()) == (
        "Of 4 published statements: 1 refuted, 1 supported, 1 inconclusive and 1 not applicable. On this model the data speak against 3.2a."
    )
    assert claim_words([]) == "" and claim_words(None) == ""


@pytest.mark.parametrize("name", NAMES)
def test_the_report_of_a_trace_has_balanced_tags_and_every_link_leads_somewhere(traces, world, name):
    page = html(world.summary, {**world.tables, **made.tables(made.ALL[name]())}, claims=made.claims())
    stack, ids = [], set()

    class Check(HTMLParser):
        def handle_starttag(self, tag, attributes):
            ids.update(v for k, v in attributes if k == "id")
            if tag not in {"meta", "link", "br", "input", "img", "hr"}:
                stack.append(tag)

        def handle_endtag(self, tag):
            assert stack.pop() == tag

    Check(convert_charrefs=True).feed(page)
    assert stack == []
    assert {"origin", "effects", "roles", "claims"} <= ids
    assert set(re.findall(r'<a href="#(\w+)"', page)) <= ids


def test_sections_are_there_only_with_their_tables(world):
    bare = html(world.summary, world.tables)
    assert not any(f'id="{n}"' in bare for n in ("origin", "effects", "roles", "claims"))
    tables = made.tables(made.llama())
    only = {
        n: t for n, t in tables.items() if n not in ("effects", "roles", "role_verdicts", "role_measures")
    }
    page = html(world.summary, {**world.tables, **only})
    assert 'id="origin"' in page
    assert not any(f'id="{n}"' in page for n in ("effects", "roles", "claims"))


def test_sections_show_the_numbers_and_the_notes(traces):
    trace = from_tables(made.tables(made.llama()), notes=["One <b>input</b> only."])
    text = plain_text(trace_sections(trace))
    for words in (
        "One <b>input</b> only.", "w.down[2533, 7890]", "4.21 [3.91, 4.51]", "−0.006 to 0.008", "11,955", "matched controls",
        "factor on the outlier", "0.68 [0.55, 0.79]", "implicit scaling", "variance share of scale", "neither",
    ):  # fmt: skip
        assert words in text, words
    assert "layer 0, head 1: fixed bias, strength 0.3" in str(trace_sections(trace))


def test_an_empty_trace_says_plainly_that_there_is_nothing(traces):
    text = plain_text(trace_sections(traces["empty"]))
    assert "No outlier of the residual stream was found" in text
    assert "No intervention could be made" in text
    assert "No head with a sink was there to ask" in text
    assert "<table" not in str(trace_sections(traces["empty"])) and "<svg" not in str(
        trace_sections(traces["empty"])
    )


def test_hostile_text_stays_text_in_the_report_and_on_the_terminal(traces, world):
    attack = "</td><script>alert(1)</script>\x1b[31m\u202e[red]"
    claims = [made.claim(attack, "refuted", 1.0, None, None, statement=attack, why=attack, source=attack)]
    page = html(world.summary, {**world.tables, **made.tables(made.hostile())}, claims=claims, notes=[attack])
    assert "<script>alert" not in page and "\u202e" not in page and "\x1b" not in page
    shown = printed(claims_terminal, claims) + printed(trace_terminal, traces["hostile"])
    assert "\x1b[31m" not in shown and "\u202e" not in shown
    assert "[red]" in re.sub(r"\s", "", printed(claims_terminal, claims, width=200))


def test_every_verdict_has_its_word_and_its_mark_and_refuted_stands_as_large_as_supported():
    section = str(claims_section(made.claims()))
    for verdict, mark in (
        ("supported", "✓"),
        ("refuted", "✗"),
        ("inconclusive", "?"),
        ("not applicable", "–"),
    ):
        assert f'<p class="verdict"><span aria-hidden="true">{mark}</span> {verdict}</p>' in section
    text = plain_text(section)
    assert "share of layers −0.31 (share) 95 % interval [−0.42, −0.2]" in text
    assert "ablating them changes the outlier by 2 %" in text
    assert "No effect was measured." in text  # of the one that is not applicable
    assert section.count("<svg") == 3
    assert claims_section([]) == "" and claims_section(None) == ""


@pytest.mark.parametrize("width", [60, 80, 160])
@pytest.mark.parametrize("name", NAMES)
def test_a_trace_fits_the_terminal(traces, name, width):
    shown = printed(trace_terminal, traces[name], width=width)
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= width
    assert f"org/{name}" in shown


def test_the_terminal_tells_chain_effects_and_roles(traces):
    shown = " ".join(printed(trace_terminal, traces["llama"], report="/r/report.html", width=110).split())
    for words in (
        "neuron 7890 alone writes 97 %",
        "4.21 [3.91, 4.51]",
        "−0.006 to 0.008",
        "the verdict is implicit scaling",
        "4.21 at 0",
        "/r/report.html",
    ):
        assert words in shown, words
    assert "were not traced" in printed(trace_terminal, Trace({}))


def test_verdicts_on_the_terminal_are_words():
    shown = printed(claims_terminal, made.claims(), report="/r/report.html")
    for words in ("✓ supported", "✗ refuted", "? inconclusive", "– not applicable", "0.94 [0.86, 0.98]"):
        assert words in shown, words
    assert "No claim was judged." in printed(claims_terminal, [])


def test_the_list_of_claims_names_their_source():
    shown = printed(lambda rows, console: console.print(claims_list(rows)), made.claims(), width=120)
    assert "arXiv 2502.06415" in shown


def test_terms_that_work_against_the_growth_are_told_as_such():
    rows = made.minilm()
    shares = {"norm bias": 1.17, "mlp.out": 0.97, "norm gain": -1.55, "attn.out": 0.41}
    rows["growth"] = [
        made.grown(0, "birth", 0, "block", part, None, -9.0 * s, s) for part, s in shares.items()
    ]
    rows["growth_weights"] = rows["units"] = []
    told = origin_words(from_tables(made.tables(rows)))
    assert (
        "117 % of its growth is written by the norm's bias (feed-forward 97 % and attention 41 %), against −155 % by the norm's gain."
        in told
    )


def test_tokens_and_positions_are_told_apart(traces):
    assert traces["minilm"].tokens(0) == ["“[CLS]” 84 %", "“[SEP]” 16 %", "at the first position 84 %"]


def test_outliers_without_one_neuron_are_births_of_their_own():
    rows = made.embedding()
    rows["carriers"].append({**rows["carriers"][0], "carrier": 1, "channel": 8})
    trace = from_tables(made.tables(rows))
    assert trace.families() == [0, 1] and trace.siblings(0) == []
