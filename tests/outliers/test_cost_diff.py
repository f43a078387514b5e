"""Two runs compared in what they cost and how they were tamed."""

import json
from io import StringIO

import pytest
from rich.console import Console

from skerry.errors import BrokenRun
from skerry.outliers.diff import compare_runs
from skerry.report.difference import difference
from skerry.run import Run
from skerry.run.tables import from_rows


def scheme(name, change, half=0.01, **more):
    return {"scheme": name, "outcome": "loss", "change": change, "ci_low": change - half, "ci_high": change + half, **more}  # fmt: skip


def method(name, change, half=0.01, **more):
    return scheme("w8a8", change, half, method=name, seed=0, chosen=False, **more)


def seam(number, after, skipped=None):
    return {
        "method": "os+",
        "seam": f"{number}.norm.attn",
        "layer": number,
        "range_after": after,
        "skipped": skipped,
    }


@pytest.fixture
def write(tmp_path):
    def make(name, model="org/tiny", **tables):
        with Run.begin(tmp_path / name, {"model": model}, {}) as run:
            run.finish("tame", "key", tables={t: from_rows(t, rows) for t, rows in tables.items()})
        return Run.open(tmp_path / name)

    return make


def shown(diff):
    console = Console(width=80, record=True, force_terminal=True, file=StringIO())
    console.print(difference(diff))
    return " ".join(console.export_text().split())


def test_a_loss_has_moved_when_its_intervals_do_not_overlap(write):
    before = write(
        "a",
        quantization_grid=[
            scheme("w8a8", 0.10),
            scheme("w4a4", 2.0),
            scheme("w6a6", 0.3),
            scheme("kv8", 0.0),
        ],
    )
    after = write(
        "b",
        quantization_grid=[
            scheme("w8a8", 0.115),
            scheme("w4a4", 1.0),
            scheme("w4a8", 0.3),
            scheme("kv8", 0.5),
        ],
    )
    costs = compare_runs(before, after).costs
    assert [(m.kind, m.name, m.before, m.after) for m in costs.moved] == [
        ("scheme", "w4a4", 2.0, 1.0),
        ("scheme", "kv8", 0.0, 0.5),
    ]
    assert (
        [n.name for n in costs.came] == ["w4a8"]
        and [n.name for n in costs.went] == ["w6a6"]
        and costs.same == 1
    )
    words = shown(compare_runs(before, after))
    assert "costs: 2 moved beyond their intervals, 1 came, 1 went, 1 are the same" in words
    assert "w4a4 2 [1.99, 2.01] 1 [0.99, 1.01]" in words and "+ scheme w4a8" in words


def test_methods_and_seams_are_compared_and_a_skipped_seam_went(write):
    before = write(
        "a",
        methods=[method("os+", 0.01), method("rtn", 1.0)],
        seam_changes=[seam(0, 5.0), seam(1, 5.0), seam(2, 8.0)],
    )
    after = write(
        "b",
        methods=[{**method("os+", 0.2), "chosen": True}, method("rtn", 1.0)],
        seam_changes=[seam(0, 5.5), seam(1, 9.0), seam(2, None, "no bias")],
    )
    costs = compare_runs(before, after).costs
    assert {(m.kind, m.name) for m in costs.moved} == {
        ("method", "os+ under w8a8"),
        ("seam", "1.norm.attn by os+"),
    }
    assert [(n.kind, n.name) for n in costs.went] == [("seam", "2.norm.attn by os+")]
    assert costs.chosen == (None, "os+") and "chosen: nothing before, os+ now" in shown(
        compare_runs(before, after)
    )


def test_controls_and_other_outcomes_are_not_compared(write):
    rows = [{"site": "inputs", "quantile": 0.9, "control": True, "outcome": "loss", "change": 1.0}]
    prune = [{"method": "wanda", "sparsity": 0.5, "outcome": "kl", "change": 1.0}]
    a = write("a", clipping=rows, pruning=prune)
    b = write("b", clipping=[{**rows[0], "change": 9.0}], pruning=[{**prune[0], "change": 9.0}])
    costs = compare_runs(a, b).costs
    assert costs.moved == () and costs.same == 0


def test_without_intervals_a_quarter_counts(write):
    a, b, c = (
        write(
            n,
            clipping=[
                {"site": "inputs", "quantile": 0.999, "control": False, "outcome": "loss", "change": v}
            ],
        )
        for n, v in (("a", 1.0), ("b", 1.2), ("c", 1.5))
    )
    assert compare_runs(a, b).costs.moved == ()
    assert [m.name for m in compare_runs(a, c).costs.moved] == ["inputs at quantile 0.999"]


def test_the_document_is_plain_json(write):
    a = write("a", quantization_grid=[scheme("w8a8", 0.1)])
    b = write("b", "org/other", quantization_grid=[scheme("w8a8", 0.9)])
    told = json.loads(json.dumps(compare_runs(a, b).document(), allow_nan=False))
    assert told["schema"] == 1 and told["costs"]["moved"][0]["after_low"] == pytest.approx(0.89)
    assert any("model differs: org/tiny before, org/other after" in w for w in told["warnings"])


def test_runs_that_share_nothing_cannot_be_compared(write):
    a, b = write("a", quantization_grid=[scheme("w8a8", 0.1)]), write("b", methods=[method("rtn", 0.1)])
    with pytest.raises(BrokenRun, match="nothing to compare"):
        compare_runs(a, b)


def test_sites_are_told_apart_by_expert_and_scheme(write):
    def rows(change):
        place = {"layer": 1, "site": "mlp.down.in", "expert": 3}
        return [{**place, **scheme("w8a8-tensor", change)}, {**place, **scheme("w4a4", 1.0)}]

    costs = compare_runs(
        write("a", quantization_sites=rows(0.1)), write("b", quantization_sites=rows(0.5))
    ).costs
    assert [m.name for m in costs.moved] == ["1.mlp.down.in[3] under w8a8-tensor"] and costs.same == 1
