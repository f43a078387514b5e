"""How the kernels are built, kept and chosen; and that they agree with the plain path."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from skerry.errors import KernelUnavailable, UnknownOption
from skerry.measure import ActivationStats, AttentionStats, weight_stats
from skerry.measure.kernels import build, library, prepare

needs_compiler = pytest.mark.skipif(build._compiler() is None, reason="no C compiler here")


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A process that knows nothing of kernels and an empty cache."""
    monkeypatch.setattr(build, "_status", build._Status())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    # Compiling is what is tested here, not what comes out of it.
    monkeypatch.setattr(build, "_FLAGS", (("-O0", "-fopenmp"), ("-O0",)))
    return tmp_path / "skerry" / "kernels"


@needs_compiler
def test_a_small_scan_never_waits_for_a_compiler(fresh, make_batch):
    stats = ActivationStats(8)
    for _ in range(3):
        stats.update(torch.ones(6, 8), None, make_batch(2, 3))
    assert not fresh.exists() and library(1) is None
    assert prepare(1000) == build.Prepared(
        "torch", 0.0, False, "the work is too small to wait for a compiler"
    )


@needs_compiler
def test_large_work_is_worth_compiling_and_the_result_is_kept(fresh):
    made = prepare()
    assert made.path == "c" and made.seconds > 0 and not made.was_cached
    assert [p.suffix for p in fresh.iterdir()] == [".so"]  # nothing half-written is left
    assert library(1) is not None and prepare() == made
    build._status = build._Status()
    again = prepare(1)  # another process, little work: what is there is used
    assert (again.path, again.seconds, again.was_cached) == ("c", 0.0, True)


@needs_compiler
def test_enough_small_work_adds_up_to_large_work(fresh, monkeypatch):
    monkeypatch.setattr(build, "COMPILE_AFTER", 10)
    assert library(6) is None
    assert library(6) is not None


@needs_compiler
def test_a_damaged_library_is_built_again(fresh):
    fresh.mkdir(parents=True)
    (fresh / build._name(build._compiler(), build._FLAGS[0])).write_bytes(b"no library")
    assert prepare().was_cached is False and library(1) is not None


@needs_compiler
def test_a_read_only_home_is_no_obstacle(fresh, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert prepare().path == "c"


def test_without_a_compiler_the_plain_path_reads(fresh, monkeypatch, make_batch):
    monkeypatch.setenv("PATH", str(fresh))
    assert prepare().why == "there is no C compiler (cc, gcc or clang) on the PATH"
    stats = ActivationStats(8)
    stats.update(torch.ones(6, 8), None, make_batch(2, 3))
    assert stats.result().site["max"] == 1
    monkeypatch.setenv("SKERRY_KERNEL", "c")
    with pytest.raises(KernelUnavailable, match="demands the compiled kernels, but there is no C compiler"):
        library(1)


def test_a_compiler_that_fails_is_reported_once(fresh, monkeypatch, tmp_path):
    broken = tmp_path / "bin" / "cc"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho 'cc: cannot work today' >&2\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{broken.parent}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("CC", str(broken))
    made = prepare()
    assert made.path == "torch" and "cc: cannot work today" in made.why
    assert library(10**9) is None and list(fresh.iterdir()) == []


@needs_compiler
def test_without_shared_threads_the_library_runs_on_one(fresh, monkeypatch):
    def no_threads():
        raise OSError("torch has loaded no libgomp whose threads could be shared")

    monkeypatch.setattr(build, "_share_openmp", no_threads)
    assert prepare().path == "c"
    assert library(1).threads(10**9) == 1


def test_an_unknown_choice_is_refused(monkeypatch):
    monkeypatch.setenv("SKERRY_KERNEL", "cuda")
    with pytest.raises(UnknownOption, match="SKERRY_KERNEL='cuda' is not known; it takes auto, c or torch"):
        library(1)


def test_torch_means_torch(monkeypatch):
    monkeypatch.setenv("SKERRY_KERNEL", "torch")
    assert library(10**12) is None and prepare().why == "SKERRY_KERNEL=torch"


@needs_compiler
def test_two_may_build_at_once(fresh):
    compiler = build._compiler()
    with ThreadPoolExecutor(2) as pool:
        paths = set(pool.map(lambda _: build._build(compiler, build._FLAGS[0]), range(2)))
    assert set(fresh.iterdir()) == paths and len(paths) == 1
    assert build._load(paths.pop(), build._FLAGS[0]).is_parallel


@pytest.fixture
def compiled(monkeypatch):
    if build._compiler() is None:
        pytest.skip("no C compiler here")
    monkeypatch.setenv("SKERRY_KERNEL", "c")


@pytest.fixture
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_number_of_threads_changes_no_bit(compiled, restore_threads, make_batch, assert_same):
    x, batch = torch.randn(600, 200), make_batch(4, 150, lengths=[150, 20, 149, 150])
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        stats = ActivationStats(200, tokens=True)
        stats.update(x, None, batch)
        found.append((stats.result(), weight_stats(x).result()))
    for a, b in zip(*found, strict=True):
        assert_same(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(6))
def test_kernel_and_plain_path_agree(seed, monkeypatch, make_batch, assert_same):
    if build._compiler() is None:
        pytest.skip("no C compiler here")
    rng = np.random.default_rng(seed)
    num, length, width = int(rng.integers(1, 5)), int(rng.integers(1, 300)), int(rng.integers(1, 700))
    x = torch.from_numpy(rng.standard_t(3, size=(num * length, width)) * rng.lognormal(0, 2, width)).float()
    x = x.to([torch.float32, torch.bfloat16, torch.float16][seed % 3])
    x[rng.integers(0, len(x)), rng.integers(0, width)] = [torch.nan, torch.inf][seed % 2]
    batch = make_batch(num, length, lengths=rng.integers(1, length + 1, num).tolist(), seed=seed)
    found = []
    for path in ("c", "torch"):
        monkeypatch.setenv("SKERRY_KERNEL", path)
        stats = ActivationStats(width, tokens=True)
        stats.update(x, None, batch)
        result = stats.result()._asdict()
        # Medians of single tokens are to 1 %; a value within rounding of a limit may be counted on either side.
        mmr = result["site"].pop("max_to_median_token")
        near = [result[t].pop("near_zero") for t in ("site", "channels")]
        found.append((result, mmr, np.concatenate([np.atleast_1d(n) for n in near])))
    (a, mmr_a, near_a), (b, mmr_b, near_b) = found
    assert_same(a, b, rtol=5e-5, atol=1e-5)
    assert mmr_a == pytest.approx(mmr_b, rel=0.01, nan_ok=True)
    np.testing.assert_allclose(near_a, near_b, atol=1.5 / max(1, int(batch.keep.sum())))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_is_read_by_the_plain_path(make_batch, assert_same):
    x, batch = torch.randn(60, 20), make_batch(3, 20)
    a, b = ActivationStats(20, tokens=True), ActivationStats(20, tokens=True)
    a.update(x.cuda(), None, batch)
    b.update(x, None, batch)
    assert_same(a.result(), b.result(), rtol=1e-4, atol=1e-5)


def test_accumulators_follow_the_protocol():
    for kind in (ActivationStats, AttentionStats):
        assert all(
            callable(getattr(kind, name)) for name in ("update", "merge", "result", "state", "from_state")
        )
