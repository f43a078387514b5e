"""The Python face: the same verbs, options and numbers as the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.answers import Audit, Claims, Impact, Scan, Tame, Trace, Watch
from skerry.outliers.options import DEFAULT_FOLDER, Options
from skerry.run import POINTER, Progress, Run
from skerry.run.repeat import asked_key, find_repeat
from skerry.written import write_report

if TYPE_CHECKING:
    from torch import nn

    from skerry.anatomy.seams import Seam
    from skerry.causes.trace import TraceOptions
    from skerry.impact.impact import ImpactOptions


def scan(
    model: str | Path | nn.Module | None = None,
    data: str | Path | Iterable[Any] | None = None,
    *,
    samples: int | None = None,
    tokens: int | None = None,
    sites: Iterable[str] | None = None,
    preset: str = "skerry",
    dtype: Any = None,
    device: Any = None,
    seed: int = 0,
    out: str | Path | None = None,
    batch_size: int | None = None,
    bos: str = "auto",
    threads: int | None = None,
    trust_remote_code: bool = False,
    attention: bool = True,
    weights: bool = True,
    tokenizer: Any = None,
    progress: Progress | None = None,
) -> Scan:
    """Find the systematic outliers of a model.

    Args:
        model: Folder, hub id, `.gguf` file, or a built `nn.Module`; None for the embedded default.
        data: Text, a path to text, token tensors `[sample position]` or mappings with `input_ids` and `attention_mask`; None for the
            built-in corpus.
        samples: Independent inputs; chosen when None.
        tokens: Tokens per input; chosen when None.
        sites: Parts to measure, e.g. `["resid", "mlp.down.in"]`; all when None.
        preset: Whose rule decides what is listed; `skerry presets` explains them.
        dtype: dtype of the forward, e.g. "bf16"; as stored when None.
        device: Device of the forward; chosen when None.
        seed: Chooses the inputs.
        out: Run directory; under ./skerry-runs when None.
        batch_size: Inputs per forward; chosen when None.
        bos: `auto`, `with` or `without` a beginning-of-sequence token.
        threads: CPU threads; chosen when None.
        trust_remote_code: Run code that the checkpoint ships.
        attention: Measure attention.
        weights: Measure weights.
        tokenizer: Tokenizer of a model that brings none.
        progress: Told how far it is.

    Returns:
        The scan; a scan of the same model, text and options is read from its run directory instead of measured again.

    Raises:
        SkerryError: What was wrong, what was expected, what to do.
    """
    options = Options(
        samples=samples,
        tokens=tokens,
        sites=None if sites is None else (sites,) if isinstance(sites, str) else tuple(sites),
        preset=preset,
        dtype=dtype,
        device=device,
        seed=seed,
        out=out,
        batch_size=batch_size,
        bos=bos,
        threads=threads,
        trust_remote_code=trust_remote_code,
        attention=attention,
        weights=weights,
        tokenizer=tokenizer,
    )
    options.check()
    key = _key(model, data, options.plain())
    if (run := _repeat(key, out, "findings")) is not None:
        return Scan(run)
    from skerry.outliers.scan import scan as measure

    return Scan(measure(model, data, options, progress, asked=key))


def _key(model: Any, data: Any, plain: dict[str, Any]) -> str | None:
    if model is not None and not isinstance(model, (str, Path)):
        return None
    return asked_key(default_place() if model is None else model, data, plain)


def _repeat(key: str | None, out: str | Path | None, stage: str) -> Run | None:
    return find_repeat(key, [Path(out)] if out else sorted(DEFAULT_FOLDER.glob("*")), stage)


def _options(options: dict[str, Any]) -> Options:
    """The options of `scan` as one object.

    Raises:
        UnknownOption: A word that `scan` does not take, or a value it cannot mean.
    """
    known = Options.__dataclass_fields__
    if unknown := [name for name in options if name not in known]:
        from skerry.errors import UnknownOption, near_matches

        near = near_matches(unknown[0], list(known))
        raise UnknownOption(f"there is no option {unknown[0]!r}{f'; did you mean {near}?' if near else ''}")
    sites = options.get("sites")
    if sites is not None:
        options = {**options, "sites": (sites,) if isinstance(sites, str) else tuple(sites)}
    made = Options(**options)
    made.check()
    return made


def trace(
    model: str | Path | nn.Module | None = None,
    data: str | Path | Iterable[Any] | None = None,
    *,
    effects: bool = True,
    roles: bool = True,
    progress: Progress | None = None,
    **options: Any,
) -> Trace:
    """Follow the outliers of a model: birth, spread, end; what follows from changing them; what sinks are for.

    Args:
        model: As for `scan`.
        data: As for `scan`.
        effects: Intervene along the chain, with controls.
        roles: Ask of every head with a sink what the sink is for.
        progress: Told how far it is.
        options: Those of `scan`.

    Raises:
        SkerryError: What was wrong, what was expected, what to do.
    """
    from skerry.causes.trace import TraceOptions

    return Trace(_traced(model, data, _options(options), TraceOptions(effects, roles), progress))


def _traced(model: Any, data: Any, options: Options, wanted: TraceOptions, progress: Progress | None) -> Run:
    keys = [_key(model, data, {**options.plain(), **more}) for more in ({}, wanted.plain())]
    if (run := _repeat(keys[1], options.out, "trace")) is not None:
        return run
    from skerry.causes.trace import trace as measure

    return measure(model, data, options, wanted, progress, asked=keys[0], asked_trace=keys[1])


def impact(
    model: str | Path | nn.Module | None = None,
    data: str | Path | Iterable[Any] | None = None,
    *,
    schemes: Iterable[str] | None = None,
    site_schemes: Iterable[str] | None = None,
    grid: bool = True,
    per_site: bool = True,
    clipping: bool = True,
    pruning: bool = True,
    progress: Progress | None = None,
    **options: Any,
) -> Impact:
    """Price what outliers cost: quantization of the whole model and of every place alone, clipping, pruning.

    Args:
        model: As for `scan`; a module is left as it was.
        data: As for `scan`.
        schemes: Of the whole model, e.g. `["w8a8", "w4a16-g128"]`; the usual ones when None. `skerry.impact.scheme` tells the language.
        site_schemes: Under which every place is priced; `w8a8-tensor` and `w4a4` when None.
        grid: Price the whole model.
        per_site: Price every place alone.
        clipping: Clip at quantiles, beside a control.
        pruning: Prune by magnitude, Wanda, OWL and SparseGPT, beside a control.
        progress: Told how far it is.
        options: Those of `scan`.

    Raises:
        SkerryError: What was wrong, what was expected, what to do.
    """
    from skerry.impact.impact import ImpactOptions

    wanted = ImpactOptions(_words(schemes), _words(site_schemes), grid, per_site, clipping, pruning)
    return Impact(_priced(model, data, _options(options), wanted, progress))


def _words(words: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if words is None else (words,) if isinstance(words, str) else tuple(words)


def _priced(model: Any, data: Any, options: Options, wanted: ImpactOptions, progress: Progress | None) -> Run:
    wanted.check()
    keys = [_key(model, data, {**options.plain(), **more}) for more in ({}, wanted.plain())]
    if (run := _repeat(keys[1], options.out, "impact")) is not None:
        return run
    from skerry.impact.impact import impact as measure

    return measure(model, data, options, wanted, progress, asked=keys[0], asked_impact=keys[1])


def audit(
    model: str | Path | nn.Module | None = None,
    data: str | Path | Iterable[Any] | None = None,
    *,
    trace: bool = True,
    effects: bool = False,
    roles: bool = False,
    impact: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Audit:
    """Scan a model, follow its outliers, and write the report.

    Args:
        model: As for `scan`; None also puts the embedded default beside its twins, which differ in their attention only.
        data: As for `scan`.
        trace: Follow the outliers from birth to end.
        effects: Intervene along the chain too: that takes minutes.
        roles: Ask what sinks are for too: that takes minutes.
        impact: Price quantization, clipping and pruning too: that takes minutes.
        progress: Told how far it is.
        options: Those of `scan`.

    Raises:
        SkerryError: What was wrong, what was expected, what to do.
    """
    if not (trace or effects or roles):
        run = scan(model, data, progress=progress, **options).run
    else:
        from skerry.causes.trace import TraceOptions

        run = _traced(model, data, _options(options), TraceOptions(effects, roles), progress)
    if impact:
        from skerry.impact.impact import ImpactOptions

        run = _priced(model, data, _options(options), ImpactOptions(), progress)
    if model is None:
        from skerry.twins import with_twins

        run = with_twins(run, data, _options(options), progress)
    return Audit(write_report(run))


def claims(
    model: str | Path | nn.Module | None = None,
    data: str | Path | Iterable[Any] | None = None,
    *,
    only: Iterable[str] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Claims:
    """Test what the literature says on a model, and write the report.

    Args:
        model: As for `scan`; or the directory of a run, of which what it holds is judged.
        data: As for `scan`.
        only: Ids or patterns of ids, e.g. `["3.*"]`; all by default. Only what they need is measured.
        progress: Told how far it is.
        options: Those of `scan`.

    Raises:
        UsageError: A pattern that no claim has.
        SkerryError: What was wrong, what was expected, what to do.
    """
    from skerry.claims import judge_run, stages_of

    only = [only] if isinstance(only, str) else None if only is None else list(only)
    stages = stages_of(only)
    if isinstance(model, (str, Path)) and (Path(model) / POINTER).is_file():
        run = Run.open(model)
    elif not stages:
        run = scan(model, data, progress=progress, **options).run
    else:
        run = _measured(model, data, _options(options), frozenset(stages), progress)
    results = judge_run(run, only)
    return Claims(write_report(run) if run.has("summary.json") else run, results)


def _measured(
    model: Any, data: Any, options: Options, stages: frozenset[str], progress: Progress | None
) -> Run:
    """The run of a scan with the stages that claims need."""
    from skerry.claims.measure import measure_stages
    from skerry.outliers.scan import scan as measure
    from skerry.run import Silent

    key = _key(model, data, options.plain())
    run = _repeat(key, options.out, "findings")
    if run is not None and stages <= set(run.record.stages):
        return run
    return measure(
        model,
        data,
        options,
        progress,
        asked=key,
        then=lambda run, plan: measure_stages(run, plan, stages, progress or Silent()),
    )


def tame(
    model: str | Path | nn.Module | None = None,
    data: str | Path | Iterable[Any] | None = None,
    *,
    method: str = "os+",
    bits: str = "w8a8",
    out: str | Path | None = None,
    form: str = "auto",
    calibration: int = 64,
    samples: int = 64,
    target: float = 0.01,
    evaluate: bool = True,
    parts: bool = False,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    seams: Sequence[Seam] = (),
    run: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Tame:
    """Take away what outliers cost a quantized model, without changing the model.

    Args:
        model: As for `scan`; a module is changed in place.
        data: As for `scan`; calibration and judging use different inputs of it.
        method: A method, several joined by commas (`os+,gptq`), or `auto`: the cheapest that reaches `target`.
        bits: The scheme: `w8a8`, `w4a16-g128`, `w6a6-tensor`, ...; `skerry.impact.scheme` tells the language.
        out: Folder of the exported checkpoint; None exports nothing.
        form: Of the export: `auto` (compressed-tensors), `float`, `gguf-f16`, `gguf-q8_0`, `gguf-q4_0`, `onnx`.
        calibration: Inputs that the methods see.
        samples: Held-out inputs that judge.
        target: For `auto`: relative rise of the loss that is allowed.
        evaluate: Judge on held-out inputs.
        parts: Measure what each part of `os+` brings, too: ten searches more.
        settings: Method to its options, e.g. `{"smoothquant": {"alpha": 0.7}}`.
        seams: Seams of your own, see `skerry.anatomy.find_seams.declare_norm_seam`; a wrong one is an error that names it.
        run: Run directory; under ./skerry-runs when None.
        progress: Told how far it is.
        options: Those of `scan`: tokens, seed, dtype, device, batch_size, bos, threads, trust_remote_code, tokenizer.

    Raises:
        NotEquivalent: A transform changed the model; nothing was folded.
        NotPossible: The model or the target cannot carry what was asked for; the message says why.
        SkerryError: What was wrong, what was expected, what to do.
    """
    from skerry.redesign.retrofit_method import register
    from skerry.tame.tame import STAGE, tame_repeat
    from skerry.tame.tame import tame as measure
    from skerry.tame.wanted import TameOptions

    register()
    wanted = TameOptions(
        method, bits, out, form, calibration, samples, target, evaluate, parts, settings or {}
    )
    plain = _options({**options, "out": run})
    asked = (
        None if seams else _key(model, data, {**plain.plain(), **wanted.plain(), "verb": STAGE, "to": out})
    )
    if (found := tame_repeat(_repeat(asked, run, STAGE), out)) is not None:
        return Tame(write_report(found))
    done = measure(model, data, plain, wanted, progress, seams=seams, asked=asked)
    return Tame(write_report(done.run), done.tamed)


def default_place() -> Path:
    """Folder of the embedded default model.

    Raises:
        UnknownModel: It is not installed.
    """
    from skerry.anatomy.builtins import default_model

    return default_model()


def open_run(path: str | Path) -> Scan | Tame | Watch:
    """Open a finished run for reading.

    Raises:
        NotARun: There is no run at the path.
        BrokenRun: The run is damaged, or not finished.
    """
    run = Run.open(path)
    if run.has("tame.json") or run.has("births.json"):
        return Tame(run) if run.has("tame.json") else Watch(run)
    return Audit(run) if run.has("report.html") else Scan(run)
