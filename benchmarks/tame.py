#!/usr/bin/env python3
"""Speed, memory and loss of taming against what there is: ratios, measured in turn in one run.

    python benchmarks/tame.py [--only search,peer,layernorm,never,memory] [--all] [--rounds 2] [--threads N] [--wait SECONDS] [--json]
                              [--cache FOLDER] [--peer-python PATH | --install-peer]

search     the OS+ search against the published procedure (`tame_published.py`), on one batch of 4,096 tokens
peer       SmoothQuant and W8A8 of a 125-million-parameter Llama against llm-compressor (`tame_peer.py`): time, peak memory, loss
layernorm  shift and scale against that peer on a LayerNorm model with channels near 25, -40 and 30
never      every transform against rounding to nearest, on some architectures; on all 21 with --all
memory     peak of an OS+ run beyond the model, for 4 and 12 blocks and for n and 2 n batches

Sides alternate, the best of the rounds counts. Processor seconds are shown beside those of the clock: on a busy machine they say more. Without the peer its
part is left out and said so; `--install-peer` makes an environment for it in the cache folder (1.5 GB).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tame_models as models
import tame_ours as ours
import tame_peer as peer

PARTS = ("search", "peer", "layernorm", "never", "memory")
# Architectures of `never` without --all: RMSNorm, LayerNorm with and without biases of the format, four norms, experts.
FEW = ("LlamaForCausalLM", "OPTForCausalLM", "StableLmForCausalLM", "Gemma2ForCausalLM", "MixtralForCausalLM")
MAX_PEAK_MIB = 768.0


class Row(NamedTuple):
    """One figure. `bar` is what it may be at most (or, `at_least`, at least); None where nothing was promised."""

    part: str
    what: str
    value: float
    bar: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def holds(self) -> bool | None:
        if self.bar is None:
            return None
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def line(self) -> str:
        bar = "" if self.bar is None else f"{'>=' if self.at_least else '<='} {self.bar:g}"
        short = abs(self.value / self.bar - 1) if self.bar else 0.0
        said = {None: "", True: "pass", False: f"short by {short:.0%}"}[self.holds]
        return f"  {self.what:58} {self.value:10.4g}  {bar:9} {said:14} {self.note}".rstrip()


def search(options: argparse.Namespace, _folder: Path) -> list[Row]:
    """The published procedure and ours, on the same norms and the same batch; losses by the published code."""
    import tame_published as published
    import torch

    from skerry.anatomy import resolve
    from skerry.anatomy.find_seams import check_seams
    from skerry.impact.scheme import Scheme
    from skerry.tame.method import Job
    from skerry.tame.methods.os_plus import search as find
    from skerry.tame.os_plus_choices import OsPlusChoices

    torch.set_num_threads(options.threads)
    rows = []
    for family in ("OPTForCausalLM", "LlamaForCausalLM"):
        model = models.plain_search_model(family)
        ids = models.random_ids(512, 16, 256, seed=1)
        consumers, plain = published.run(model, ids)
        anatomy = resolve(model)
        job = Job(anatomy, check_seams(anatomy), ours.batches_of(ids), Scheme.parse("w8a8"))
        # The float model's activations go into every block on both sides, so that losses are of the same tensors.
        choices = OsPlusChoices(kinds=("norm",), batches="first", upstream="float")
        seconds, found = best_of(options.rounds, lambda job=job, choices=choices: find(job, choices))
        by_name = {c.seam: c for c in found.changes}
        shares, summed = [], {"none": 0.0, "published": 0.0, "ours": 0.0}
        for c in consumers:
            ones = torch.ones(c.norm.weight.shape[0])
            change = by_name.get(c.name)
            given = (None, ones) if change is None else (as_float(change.shift), as_float(change.scale, ones))
            energy = float(c.wanted.pow(2).sum(-1).mean())
            losses = {
                "none": published.loss(c, None, ones),
                "published": published.loss(c, *c.found),
                "ours": published.loss(c, *given),
            }
            for name, value in losses.items():
                summed[name] += value / energy
            shares.append(losses["ours"] / losses["published"])
        short = family.removesuffix("ForCausalLM")
        tried = sum(c.tried for c in consumers)
        note = f"{plain:.1f} s for {tried} thresholds / {seconds:.2f} s"
        rows += [
            Row("search", f"{short}: published time / ours", plain / seconds, 10.0, True, note),
            Row("search", f"{short}: our loss / published", summed["ours"] / summed["published"], 1.0),
            Row("search", f"{short}: the same, worst of {len(shares)} consumers", max(shares), None),
            Row("search", f"{short}: published loss / none", summed["published"] / summed["none"]),
        ]
    return rows


def as_float(x: Any, otherwise: Any = None) -> Any:
    return otherwise if x is None else x.float()


def best_of(rounds: int, action: Callable[[], Any]) -> tuple[float, Any]:
    """Smallest seconds of some runs, and what the last one gave."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        found = action()
        seconds.append(time.perf_counter() - start)
    return min(seconds), found


def against_peer(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Time, peak memory and loss of one SmoothQuant + W8A8, each side in fresh processes, in turn; other calibration ids in every round."""
    python = peer.find(options.peer_python, options.cache)
    if python is None:
        print(
            "the peer is not installed: --install-peer makes an environment for it; ours is measured alone",
            file=sys.stderr,
        )
    runs: dict[str, list[dict[str, Any]]] = {"peer": [], "pieces": [], "without guard": [], "verb": []}
    errors: list[dict[str, float]] = []
    for number in range(options.rounds):
        base = peer_request(options, "llama-125m", number)
        wait_for_quiet(options.wait)
        if python is not None:
            runs["peer"].append(ask_peer(python, base | {"out": str(folder / "peer")}, folder))
        wait_for_quiet(options.wait)
        runs["pieces"].append(ours.run("pieces", base, folder))
        wait_for_quiet(options.wait)
        runs["without guard"].append(ours.run("pieces", base | {"settings": {"guard": False}}, folder))
        wait_for_quiet(options.wait)
        runs["verb"].append(ours.run("verb", base, folder))
        if python is not None:
            errors.append(judged(base, {"peer": folder / "peer"}, folder))
    floor = ours.run("floor", base, folder)
    best = {k: min((r["seconds"] for r in v), key=lambda s: s["core"]) for k, v in runs.items() if v}
    work = {k: min(r["seconds"]["processor"] for r in v) for k, v in runs.items() if v}
    whole = {k: min(r["process"] for r in v) for k, v in runs.items() if v}
    peaks = {k: min(r["peak_mib"] for r in v) for k, v in runs.items() if v}
    steps = ("resolve", "check seams", "search", "prove", "fold", "verify")
    split = ", ".join(f"{s} {best['pieces'][s]:.2f}" for s in steps)
    rows = []
    if python is not None:
        core = {k: s["core"] / best["peer"]["core"] for k, s in best.items()}
        saved = min(r["saved_mib"] for r in runs["peer"])
        rows = [
            Row("peer", "our time / peer", core["pieces"], 0.5, note=f"peer {best['peer']['core']:.2f} s"),
            Row("peer", "our time / peer, without the comparison with s = 1", core["without guard"]),
            Row(
                "peer",
                "our processor time / peer",
                work["pieces"] / work["peer"],
                0.5,
                note=f"peer {work['peer']:.2f} s",
            ),
            Row("peer", "skerry.tame with loading / peer without", core["verb"]),
            Row(
                "peer",
                "whole process with imports and loading / peer",
                whole["verb"] / whole["peer"],
                note=f"peer {whole['peer']:.1f} s",
            ),
            *loss_rows("llama-125m", errors),
        ]
        if options.all:
            rows += loss_rows("llama-125m-centred", centred_errors(options, python, folder))
        rows.append(Row("peer", "peer's peak MiB", peaks["peer"], note=f"{saved:.0f} once it has saved"))
    rows += [
        Row("peer", "our peak MiB, pieces", peaks["pieces"], MAX_PEAK_MIB),
        Row("peer", "our peak MiB, skerry.tame", peaks["verb"], MAX_PEAK_MIB),
        Row(
            "peer",
            "MiB of a process that only loads and reads every weight",
            floor["floor_mib"],
            note=f"{floor['mapped_mib']:.0f} before it reads them, {floor['imports_mib']:.0f} before it loads",
        ),
        Row(
            "peer",
            "our seconds",
            best["pieces"]["core"],
            note=f"{work['pieces']:.2f} of a processor; {split}",
        ),
        Row(
            "peer",
            "our seconds without the comparison with s = 1",
            best["without guard"]["core"],
            note=f"{work['without guard']:.2f} of a processor",
        ),
        Row(
            "peer",
            "our seconds, skerry.tame",
            best["verb"]["core"],
            note=f"{work['verb']:.2f} of a processor",
        ),
    ]
    return rows


def wait_for_quiet(seconds: float) -> None:
    """Wait until the processors are nine tenths idle, at most so long; two threads that share a core with another process spin."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        before = processor_ticks()
        time.sleep(4)
        after = processor_ticks()
        if before is None or after is None or after.idle - before.idle > 0.9 * (after.all - before.all):
            return


class Ticks(NamedTuple):
    """What all processors have done since the system started."""

    idle: int
    all: int


def processor_ticks() -> Ticks | None:
    """Idle and all ticks; None where the system does not tell."""
    try:
        fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    except OSError:
        return None
    return Ticks(fields[3] + fields[4], sum(fields))


def peer_request(options: argparse.Namespace, name: str, number: int) -> dict[str, Any]:
    """What both sides are asked in a round."""
    ids = models.random_ids(models.LLAMA_125M["vocab_size"], 16, 256, seed=100 + number)
    return {
        "model": str(models.saved(options.cache, name)),
        "ids": ids.tolist(),
        "threads": options.threads,
        "method": "smoothquant",
        "bits": "w8a8",
    }


def ask_peer(python: Path, request: dict[str, Any], folder: Path) -> dict[str, Any]:
    shutil.rmtree(request["out"], ignore_errors=True)
    said = peer.run(python, request, folder)
    if "error" in said:
        raise SystemExit(f"the peer failed: {said['error']}")
    return said


def judged(base: dict[str, Any], places: dict[str, Path], folder: Path) -> dict[str, float]:
    """Logit errors of checkpoints and of our own, which is exported for it, by the same code on the same held-out ids."""
    places = {**places, "ours": folder / "ours"}
    shutil.rmtree(places["ours"], ignore_errors=True)
    ours.run("verb", base | {"out": str(places["ours"])}, folder)
    held_out = models.random_ids(models.LLAMA_125M["vocab_size"], 8, 256, seed=2).tolist()
    request = base | {"ids": held_out, "checkpoints": {k: str(v) for k, v in places.items()}}
    found = ours.run("score", request, folder)
    for place in places.values():
        shutil.rmtree(place, ignore_errors=True)
    return {k: found[k]["error"] for k in places}


def centred_errors(options: argparse.Namespace, python: Path, folder: Path) -> list[dict[str, float]]:
    """The same on a model whose outlier channels lie about zero, where both formulas say the same."""
    found = []
    for number in range(options.rounds):
        base = peer_request(options, "llama-125m-centred", number)
        ask_peer(python, base | {"out": str(folder / "peer")}, folder)
        found.append(judged(base, {"peer": folder / "peer"}, folder))
    return found


def loss_rows(name: str, errors: list[dict[str, float]]) -> list[Row]:
    mean = {k: sum(e[k] for e in errors) / len(errors) for k in ("ours", "peer")}
    shares = ", ".join(f"{e['ours'] / e['peer']:.3f}" for e in errors)
    note = f"{mean['ours']:.5f} / {mean['peer']:.5f}; by calibration text {shares}"
    return [Row("peer", f"{name}: our logit error / peer", mean["ours"] / mean["peer"], 1.0, note=note)]


def layernorm(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Logit error of W8A8 with dynamic ranges on a LayerNorm model with channels far to one side."""
    import torch

    torch.set_num_threads(options.threads)
    place = models.saved(options.cache, "layernorm")
    model = models.make("layernorm")
    calibration, held_out = (models.random_ids(512, 16, 128, seed=s) for s in (1, 2))
    wanted = ours.logits_of(model, held_out)
    free = {"beyond_format": True}
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("round to nearest", "rtn", {}),
        ("smoothquant", "smoothquant", {}),
        ("os+, scale only", "os+", {"shift": False}),
        ("os+, shift only", "os+", {"steps": 3, **free}),
        ("os+, as an export can hold it", "os+", {}),
        ("os+, shift + scale", "os+", free),
        ("os+, shift + scale, norms only", "os+", {"kinds": "norm", **free}),
    ]
    errors: dict[str, float] = {}
    for label, method, settings in asked:
        if label == "os+, shift only":
            errors[label] = shift_only_error(model, calibration, held_out, wanted)
        else:
            errors[label] = tamed_error(model, calibration, held_out, wanted, method, settings)
    rows = [Row("layernorm", f"logit error, {k}", v) for k, v in errors.items()]
    python = peer.find(options.peer_python, options.cache)
    if python is None:
        return rows
    base = {"model": str(place), "ids": calibration.tolist(), "threads": options.threads}
    found: dict[str, float] = {}
    for method in ("rtn", "smoothquant"):
        out = folder / f"layernorm-{method}"
        said = peer.run(python, base | {"method": method, "out": str(out)}, folder)
        if "error" in said:
            print(f"the peer failed on the LayerNorm model: {said['error']}", file=sys.stderr)
            return rows
        request = base | {"ids": held_out.tolist(), "checkpoints": {"it": str(out)}}
        found[method] = ours.run("score", request, folder)["it"]["error"]
    best = errors["os+, shift + scale"]
    return [
        Row("layernorm", "shift + scale: logit error / peer's SmoothQuant", best / found["smoothquant"], 0.5),
        Row(
            "layernorm",
            "as an export can hold it / peer's SmoothQuant",
            errors["os+, as an export can hold it"] / found["smoothquant"],
            0.5,
        ),
        *rows,
        Row("layernorm", "logit error, peer's round to nearest", found["rtn"]),
        Row("layernorm", "logit error, peer's SmoothQuant", found["smoothquant"]),
    ]


def tamed_error(
    model: Any, calibration: Any, held_out: Any, wanted: Any, method: str, settings: dict[str, Any]
) -> float:
    """Relative logit error of a copy of a model, tamed and quantized to W8A8."""
    from skerry.anatomy import resolve
    from skerry.impact.scheme import Scheme
    from skerry.tame.pipeline import Setting, run_pipeline
    from skerry.tame.register import parse_pipeline

    methods = parse_pipeline(method)
    setting = Setting(
        resolve(copy.deepcopy(model)),
        ours.batches_of(calibration),
        Scheme.parse("w8a8"),
        options={methods[0].name: settings},
    )
    tamed = run_pipeline(setting, methods)
    with tamed.simulation.open(tamed.anatomy):
        return ours.relative(ours.logits_of(tamed.anatomy.model, held_out), wanted)


def shift_only_error(model: Any, calibration: Any, held_out: Any, wanted: Any) -> float:
    """The centre of every channel behind a norm moved to zero, and nothing else."""
    from skerry.anatomy import resolve
    from skerry.anatomy.find_seams import check_seams
    from skerry.impact.scheme import Scheme
    from skerry.impact.simulate import Simulation
    from skerry.tame.reading import read_inputs, seam_range
    from skerry.tame.transform import SeamChange, Transform

    anatomy = resolve(copy.deepcopy(model))
    seams = check_seams(anatomy)
    chosen = seams.of("norm", carry="shift")
    readings = read_inputs(anatomy, [d for s in chosen for d in s.readers], ours.batches_of(calibration))
    ranges = [(s, seam_range(s, readings)) for s in chosen]
    changes = [SeamChange(s.name, shift=(r.low + r.high).double() / 2) for s, r in ranges if r is not None]
    Transform(changes).fold(anatomy, seams)
    with Simulation(Scheme.parse("w8a8")).open(anatomy):
        return ours.relative(ours.logits_of(anatomy.model, held_out), wanted)


def never_worse(options: argparse.Namespace, _folder: Path) -> list[Row]:
    """Logit error of every transform / that of rounding to nearest, W8A8, held-out ids."""
    import torch

    from skerry.errors import SkerryError
    from skerry.tame.register import METHODS

    torch.set_num_threads(options.threads)
    methods = [m.name for m in METHODS.values() if m.kind == "transform"]
    if not options.all:
        # Learning a rotation takes as long as all others together.
        methods.remove("spinquant")
    calibration, held_out = (models.random_ids(512, 16, 64, seed=s) for s in (1, 2))
    rows = []
    for family in models.FAMILIES if options.all else FEW:
        model = models.make(family)
        wanted = ours.logits_of(model, held_out)
        plain = tamed_error(model, calibration, held_out, wanted, "rtn", {})
        shares, refused = {}, {}
        for method in methods:
            try:
                shares[method] = tamed_error(model, calibration, held_out, wanted, method, {}) / plain
            except SkerryError as error:
                refused[method] = str(error)
        worst = max(shares, key=shares.__getitem__)
        note = ", ".join(f"{k} {v:.2f}" for k, v in shares.items())
        note += "".join(f"; {k} refused: {why[:60]}" for k, why in refused.items())
        short = family.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
        row = Row("never", f"{short}: worst error / rounding ({worst})", shares[worst], 1.0, note=note)
        print(row.line(), file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def memory(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Peak of an OS+ run beyond the model: it may grow with the batches' hidden states, not with the blocks."""
    width, inner, samples, tokens = 512, 1376, 32, 256
    base = {"width": width, "inner": inner, "tokens": tokens, "samples_per_batch": 8}
    base |= {"threads": options.threads, "method": "os+"}

    def measured(blocks: int, count: int) -> float:
        asked = base | {"blocks": blocks, "samples": samples * count}
        return ours.run("growth", asked, folder)["beyond_mib"]

    few, many, twice = measured(4, 1), measured(12, 1), measured(4, 2)
    # What all maps of a block read: attention's input and mix, the feed-forward's input and inner product.
    block = samples * tokens * (3 * width + inner) * 4 / 2**20
    hidden = samples * tokens * width * 4 / 2**20
    note = f"a block's activations are {block:.0f} MiB, all 12 blocks' {12 * block:.0f}"
    return [
        Row("memory", "MiB beyond the model, 4 blocks", few, note=note),
        Row("memory", "MiB beyond the model, 12 blocks", many),
        Row("memory", "12 blocks / 4 blocks (3 would be proportional)", many / few, 1.25),
        Row(
            "memory",
            "MiB beyond the model, 4 blocks, twice the batches",
            twice,
            note=f"a hidden state of all tokens is {hidden:.0f} MiB",
        ),
        Row(
            "memory", "growth from 4 to 12 blocks / activations of 8 blocks", (many - few) / (8 * block), 0.25
        ),
    ]


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--only", default=",".join(PARTS))
    ask.add_argument("--all", action="store_true", help="all 21 architectures and all transforms in `never`")
    ask.add_argument("--rounds", type=int, default=2)
    ask.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    ask.add_argument(
        "--wait", type=float, default=0.0, help="seconds to wait for an idle machine before a timed process"
    )
    ask.add_argument("--cache")
    ask.add_argument("--peer-python")
    ask.add_argument("--install-peer", action="store_true")
    ask.add_argument("--json", action="store_true")
    options = ask.parse_args()
    wanted = options.only.split(",")
    if unknown := [p for p in wanted if p not in PARTS]:
        ask.error(f"unknown part {unknown[0]}; known: {', '.join(PARTS)}")
    options.cache = models.cache_folder(options.cache)
    if options.install_peer:
        peer.install(options.cache)
    work = {
        "search": search,
        "peer": against_peer,
        "layernorm": layernorm,
        "never": never_worse,
        "memory": memory,
    }
    rows: list[Row] = []
    loads: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for part in wanted:
            before = os.getloadavg()[0]
            rows += work[part](options, Path(name))
            loads[part] = (before, os.getloadavg()[0])
    if options.json:
        found = [{**row._asdict(), "holds": row.holds} for row in rows]
        print(json.dumps({"threads": options.threads, "load": loads, "rows": found}, indent=2))
        return
    for part in wanted:
        print(
            f"\n{part}: load average {loads[part][0]:.1f} before, {loads[part][1]:.1f} after, {options.threads} threads"
        )
        for row in rows:
            if row.part == part:
                print(row.line())


if __name__ == "__main__":
    main()
