import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from skerry.measure.foremost import Foremost

rows = st.lists(
    st.tuples(st.integers(-3, 3), st.integers(0, 5), st.integers(0, 5)),
    max_size=30,
    unique_by=lambda r: r[1:],
)


def filled(some, limit):
    list_ = Foremost(limit, ("value", "sample", "position"))
    columns = np.array(some, float).reshape(-1, 3).T
    list_.add(value=columns[0], sample=columns[1].astype(int), position=columns[2].astype(int))
    return list_


@given(rows, st.integers(1, 8), st.randoms())
def test_any_split_and_order_keeps_the_same_rows(some, limit, random):
    truth = sorted(some, key=lambda r: (-abs(r[0]), *r[1:]))[:limit]
    random.shuffle(some)
    merged = Foremost(limit, ("value", "sample", "position"))
    for i in range(0, len(some), 4):
        merged.merge(filled(some[i : i + 4], limit))
    found = zip(*(merged.columns[n] for n in ("value", "sample", "position")), strict=True)
    assert [tuple(r) for r in found] == truth


def test_bar_opens_only_when_full():
    list_ = filled([(3, 0, 0)], 2)
    assert list_.bar() == 0 and not list_.is_full
    list_.merge(filled([(-2, 0, 1)], 2))
    assert list_.bar() == 2 and list_.is_full


def test_state_round_trip():
    list_ = filled([(3, 0, 0), (1, 2, 3)], 5)
    again = Foremost(5, ("value", "sample", "position"))
    again.load(list_.state())
    assert all((again.columns[n] == list_.columns[n]).all() for n in list_.columns)
