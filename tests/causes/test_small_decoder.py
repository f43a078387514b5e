"""A real decoder, trained by the recipe: minutes, so it is run by name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import skerry

RECIPE = Path(__file__).parents[2] / "studies" / "small_decoder.py"


@pytest.mark.slow
def test_a_trained_decoder_grows_an_outlier_at_the_first_token_and_the_trace_follows_it(tmp_path):
    done = subprocess.run(
        [sys.executable, RECIPE, tmp_path / "model"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "model" / "recipe.json").read_text())
    assert facts["max_to_median"] > 20 and facts["value_norm_ratio"] < 0.5
    trace = skerry.trace(tmp_path / "model", out=tmp_path / "run")
    first = trace.carriers[0]
    assert {t["token"] for t in first["carrier_tokens"] if t["token"] and t["share"] > 0.5} == {"<s>"}
    block = {g["part"]: g["share"] for g in first["growth"] if (g["event"], g["level"]) == ("birth", "block")}
    assert block["mlp.out"] > 0.9
    rows = trace.table("effects").to_pylist()
    (gone,) = [
        r
        for r in rows
        if (r["group"], r["outcome"], r["outcome_layer"], r["control"])
        == ("super weight", "outlier", first["birth_layer"], False)
    ]
    assert gone["change"] < -0.5 * gone["clean"] and gone["p_value"] == pytest.approx(0.05)
