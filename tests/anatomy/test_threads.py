"""Threads by size and load, and the sentence that says why."""

import pytest

from skerry.anatomy import threads
from skerry.anatomy.threads import choose_threads, own_load, usable_cores
from skerry.errors import UnknownOption


@pytest.fixture
def machine(monkeypatch):
    def set_up(*, cores, busy):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(threads, "usable_cores", lambda: cores)
        monkeypatch.setattr(threads, "busy_cores", lambda: busy)

    return set_up


@pytest.mark.parametrize(
    ("cores", "busy", "parameters", "expected", "why"),
    [
        (2, 0.1, 22_700_000, 2, "23 M parameters and 0.1 of 2 cores busy: every core helps"),
        (
            2,
            1.9,
            22_700_000,
            1,
            "23 M parameters and 1.9 of 2 cores busy: a second thread costs more than it brings",
        ),
        (
            2,
            1.0,
            7_000_000_000,
            1,
            "7.0 G parameters and 1.0 of 2 cores busy: a second thread costs more than it brings",
        ),
        (
            2,
            0.0,
            30_000,
            1,
            "0.0 M parameters and 0.0 of 2 cores busy: a second thread costs more than it brings",
        ),
        (
            16,
            0.2,
            1_500_000,
            3,
            "1.5 M parameters and 0.2 of 16 cores busy: more threads cost more than they bring",
        ),
        (
            16,
            4.0,
            7_000_000_000,
            12,
            "7.0 G parameters and 4.0 of 16 cores busy: more threads cost more than they bring",
        ),
        (
            4,
            60.0,
            7_000_000_000,
            1,
            "7.0 G parameters and 4.0 of 4 cores busy: a second thread costs more than it brings",
        ),
        (1, 0.0, 7_000_000_000, 1, "one core is usable"),
    ],
)
def test_size_and_load_decide(machine, cores, busy, parameters, expected, why):
    machine(cores=cores, busy=busy)
    choice = choose_threads(parameters)
    assert (choice.value, choice.why) == (expected, why)


def test_what_is_asked_for_is_taken(machine):
    machine(cores=2, busy=2.0)
    assert str(choose_threads(10, requested=8)) == "8 (asked for; 2 cores are usable)"
    with pytest.raises(UnknownOption, match="threads=0: at least 1 is needed"):
        choose_threads(10, requested=0)


@pytest.mark.parametrize(("value", "expected"), [("3", 3), ("4,2", 4), ("", 2), ("many", 2), ("0", 2)])
def test_the_environment_is_obeyed_where_it_says_a_number(machine, monkeypatch, value, expected):
    machine(cores=2, busy=0.0)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    choice = choose_threads(10**9)
    assert choice.value == expected
    assert (choice.why == "OMP_NUM_THREADS says so") == (value in ("3", "4,2"))


def test_our_own_load_is_not_held_against_us():
    """Closed form of the kernel's damped average: u cores for t seconds from rest give u (1 - exp(-t / 60))."""
    assert own_load(600.0, 600.0) == pytest.approx(1.0, abs=1e-4)
    assert own_load(60.0, 30.0) == pytest.approx(2 * (1 - 2.718281828459045**-0.5))
    assert own_load(30.0, None) == 0.5 and own_load(1e6, None) == 1.0
    assert own_load(0.0, 0.0) == 0.0


def test_the_load_of_others_is_never_negative(monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (0.5, 0, 0))
    monkeypatch.setattr(threads, "own_load", lambda used, age: 3.0)
    assert threads.busy_cores() == 0.0

    def unknown():
        raise OSError

    monkeypatch.setattr("os.getloadavg", unknown)
    assert threads.busy_cores() == 0.0


def test_the_age_of_this_process_is_known_where_the_system_says_it():
    age = threads._age()
    assert age is None or 0 < age < 100 * 86400


def test_a_quota_counts_as_cores(tmp_path, monkeypatch):
    for content, expected in {
        "150000 100000\n": 2,
        "50000 100000": 1,
        "max 100000": 1 << 16,
        "": 1 << 16,
    }.items():
        path = tmp_path / "cpu.max"
        path.write_text(content)
        assert threads._quota(path) == expected
    assert threads._quota(tmp_path / "none") == 1 << 16
    monkeypatch.setattr(threads, "_quota", lambda: 1)
    assert usable_cores() == 1
