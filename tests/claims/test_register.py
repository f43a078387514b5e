"""The register: what is there, how it is chosen, and that one file adds a claim."""

import json
import subprocess
import sys

import pytest

from skerry.claims import Result, all_claims, document, list_claims, run_claims, stages_of
from skerry.claims.stages import STAGES
from skerry.errors import UsageError
from skerry.run.tables import TABLES

from .worlds import evidence

IDS = [
    "2.1a", "2.2a", "2.2b", "2.2c", "2.2d", "2.3a", "2.3b", "2.4a", "3.1a", "3.1b", "3.1c", "3.2a", "3.2b", "3.2c", "3.3a", "3.3b", "3.3c", "3.3d", "3.3e",
    "4.1a", "4.1b", "4.1c", "4.2a", "4.3a", "4.3a-q", "4.3b", "4.3b-q", "5.2a", "5.2b", "5.3a", "5.3b", "5.4", "7.2a", "7.2b",
]  # fmt: skip


def test_every_statement_has_a_claim_and_every_id_is_there_once():
    assert [c.id for c in all_claims()] == IDS


@pytest.mark.parametrize("claim", all_claims(), ids=lambda c: c.id)
def test_a_claim_says_what_it_says_where_it_is_from_and_how_it_is_decided(claim):
    assert claim.id.startswith(claim.section)
    assert "arXiv" in claim.source and claim.statement.endswith(".")
    assert {"upported", "efuted"} <= {word[1:] for word in claim.rule.replace(",", " ").split()}
    assert "nconclusive" in claim.rule
    for text in (claim.measured, claim.effect_name, claim.unit):
        assert text
    assert claim.needs and set(claim.needs) <= set(TABLES)


def test_the_list_is_plain_and_measures_nothing():
    rows = list_claims()
    assert [r["id"] for r in rows] == IDS and json.loads(json.dumps(rows)) == rows
    assert {r["id"]: r["stages"] for r in rows}["4.3a"] == ["effects"]
    code = "import sys; from skerry.claims import list_claims; list_claims(); print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_ids_and_patterns_choose():
    assert [r["id"] for r in list_claims(["2.2*"])] == ["2.2a", "2.2b", "2.2c", "2.2d"]
    assert [r["id"] for r in list_claims(["4.3A,2.1a", "3.1?"])] == ["2.1a", "3.1a", "3.1b", "3.1c", "4.3a"]
    assert [r["id"] for r in list_claims("3.3[a-c]")] == ["3.3a", "3.3b", "3.3c"]


@pytest.mark.parametrize("word", ["9.9z", "2.2e", "3,9.*"])
def test_a_pattern_without_a_claim_is_named_with_its_neighbours(word):
    with pytest.raises(UsageError, match=r"skerry claims --list. lists all 34"):
        list_claims([word])
    with pytest.raises(UsageError, match=r"no claim has the id '2.2e'; did you mean '2.2d'"):
        stages_of(["2.2e"])


def test_only_what_a_claim_needs_is_measured():
    assert stages_of(["2.*", "3.3d"]) == set()
    assert stages_of(["3.2c"]) == {"lifecycle"}
    assert stages_of(["3.3a"]) == {"lifecycle", "roles"}
    assert stages_of() == set(STAGES) - {"impact_clipping"}


NEW = '''
"""9.9z  Numbers are numbers."""
from skerry.claims.claim import Claim, Judged

CLAIM = Claim(id="9.9z", section="9.9", source="(arXiv 0000.00000)", statement="Numbers are numbers.", measured="m", rule="r", effect_name="e",
              unit="u", needs=("sites",), judge=lambda evidence: Judged("supported", "They are."))
'''


@pytest.fixture
def one_more(tmp_path, monkeypatch):
    (tmp_path / "c9_9z_numbers.py").write_text(NEW)
    (tmp_path / "counted.py").write_text("raise AssertionError('not a claim')")
    package = sys.modules["skerry.claims"]
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    yield
    sys.modules.pop("skerry.claims.c9_9z_numbers", None)


def test_one_file_adds_a_claim(one_more):
    assert [c.id for c in all_claims()] == [*IDS, "9.9z"]
    (found,) = run_claims(evidence({"sites": []}), ["9.*"])
    assert found.verdict == "supported" and found.statement == "Numbers are numbers."


def test_two_files_with_one_id_are_refused(one_more, tmp_path):
    (tmp_path / "c9_9z_again.py").write_text(NEW)
    with pytest.raises(ValueError, match="two claims have the id '9.9z'"):
        all_claims()
    sys.modules.pop("skerry.claims.c9_9z_again", None)


def test_an_empty_run_is_judged_without_a_crash_and_without_a_number():
    results = run_claims(evidence({name: [] for name in TABLES}))
    assert {r.verdict for r in results} == {"not applicable"}
    assert all(r.effect is None and r.why for r in results)


def test_the_document_is_plain_json_and_reads_back():
    told = document(run_claims(evidence({name: [] for name in TABLES})))
    assert told["schema"] == 1 and told["verdicts"]["not applicable"] == len(IDS)
    again = json.loads(json.dumps(told, allow_nan=False))
    assert [Result.model_validate(row).id for row in again["claims"]] == IDS


def test_a_mistake_inside_a_claim_is_not_hidden(one_more, tmp_path):
    text = NEW.replace('Judged("supported", "They are.")', "1 / 0").replace("9.9z", "9.9y")
    (tmp_path / "c9_9y_wrong.py").write_text(text)
    with pytest.raises(ZeroDivisionError):
        run_claims(evidence({"sites": []}), ["9.9y"])
    sys.modules.pop("skerry.claims.c9_9y_wrong", None)


def test_the_example_of_the_page_is_a_claim(tmp_path, monkeypatch):
    from skerry.claims.page import claims_page

    code = claims_page().rpartition("```python\n")[2].partition("```")[0]
    (tmp_path / "c9_1a_medians.py").write_text(code)
    package = sys.modules["skerry.claims"]
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    rows = [{"layer": n, "site": "mlp.in", "median": 3.0 + n / 10} for n in range(5)]
    (found,) = run_claims(evidence({"sites": rows}), ["9.1a"])
    assert found.verdict == "supported" and found.why == "The median of |x| is 3.2 [3, 3.4]."
    sys.modules.pop("skerry.claims.c9_1a_medians", None)
