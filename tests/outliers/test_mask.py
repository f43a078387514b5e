"""The token mask: what is taken, what is marked, and its file."""

import json

import pytest
import torch

from skerry.errors import UsageError
from skerry.outliers.finding import Finding
from skerry.outliers.mask import TokenMask


def _finding(kind, type_, **more):
    return Finding(kind=kind, type=type_, site="resid.out", value=1.0, ratio=1.0, score=1.0, **more)


FINDINGS = [
    _finding("activation", "massive activation", layer=1, channel=3, position=0, token="<s>", token_id=1, recurrence=1.0),
    _finding("attention", "sink position", layer=2, head=1, position=0, token="<s>", token_id=1, recurrence=0.9),
    _finding("attention", "sink token", layer=2, token=".", token_id=7, recurrence=0.6),
    _finding("attention", "sink position", layer=2, head=1, position=4, recurrence=0.2),
    _finding("activation", "outlier channel", layer=3, channel=99, recurrence=0.8),
]  # fmt: skip


def test_sinks_and_massive_tokens_are_marked():
    mask = TokenMask.learn({}, FINDINGS)
    ids = torch.tensor([[5, 6, 7, 8, 9, 1], [1, 5, 5, 5, 5, 5]])
    assert mask.mask(ids).tolist() == [
        [True, False, True, False, False, True],
        [True, False, False, False, False, False],
    ]
    assert [(p.position, p.support, p.kinds) for p in mask.positions] == [
        (0, 1.0, ("massive activation", "sink position"))
    ]
    assert [(t.token_id, t.token) for t in mask.tokens] == [(1, "<s>"), (7, ".")]
    assert [(c.layer, c.channel) for c in mask.channels] == [(3, 99)]


def test_support_decides_what_is_taken():
    assert [p.position for p in TokenMask.learn({}, FINDINGS, support=0.1).positions] == [0, 4]
    assert [t.token_id for t in TokenMask.learn({}, FINDINGS, support=0.7).tokens] == [1]


def test_padding_counts_for_no_position_and_is_never_marked():
    mask = TokenMask.learn({}, FINDINGS)
    ids, keep = torch.tensor([[1, 1, 5, 6]]), torch.tensor([[False, False, True, True]])
    assert mask.mask(ids, keep).tolist() == [[False, False, True, False]]


def test_nothing_found_marks_nothing():
    assert not TokenMask.learn({}).mask(torch.zeros(2, 3, dtype=torch.long)).any()


def test_saved_mask_is_the_same_mask(tmp_path):
    mask = TokenMask.learn({}, FINDINGS)
    assert TokenMask.load(mask.save(tmp_path / "mask.json")) == mask
    document = json.loads((tmp_path / "mask.json").read_text())
    assert (
        list(document) == ["schema", "support", "positions", "tokens", "channels"] and document["schema"] == 1
    )


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 1, "what": 2}', '{"positions": []}'])
def test_file_that_is_no_mask_is_refused_by_name(tmp_path, text):
    path = tmp_path / "mask.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"mask\.json is no token mask"):
        TokenMask.load(path)


def test_mask_of_another_version_is_refused(tmp_path):
    path = tmp_path / "mask.json"
    path.write_text('{"schema": 9}')
    with pytest.raises(UsageError, match="version 9; this version reads 1"):
        TokenMask.load(path)
