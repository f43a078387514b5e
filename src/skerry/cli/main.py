"""The command `skerry`: verbs, and how a mistake is told."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import cyclopts

import skerry
from skerry.errors import SkerryError

app = cyclopts.App(
    name="skerry",
    help="Finds, names and measures the systematic outliers of a language model.",
    version=skerry.__version__,
    help_format="plaintext",
    result_action="return_value",
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
)
# verb -> (module and function, imported when the verb is used; what it does)
VERBS = {
    "audit": (
        "skerry.cli.audit:audit",
        "From a model to a finished report; without a model, of a built-in decoder beside its twins.",
    ),
    "scan": ("skerry.cli.scan:scan", "From a model to its findings, without the report."),
    "trace": ("skerry.cli.trace:trace", "Where outliers come from, what they cause, what sinks are for."),
    "impact": (
        "skerry.cli.impact:impact",
        "What it costs to quantize, clip and prune this model, and what outliers cause of it.",
    ),
    "tame": (
        "skerry.cli.tame:tame",
        "Take away what outliers cost a quantized model, prove that it stayed the same, export it.",
    ),
    "train": (
        "skerry.cli.train:train",
        "Train a decoder with a choice of attention, norm, optimiser; goes on where it stopped.",
    ),
    "study": (
        "skerry.cli.study:study",
        "Which attention to train? Variants, seeds and sizes compared: loss, outliers, compression, speed.",
    ),
    "battery": (
        "skerry.cli.battery:battery",
        "Does a model without outliers lose something? Seven tasks for any decoder, several side by side.",
    ),
    "watch": (
        "skerry.cli.watch:watch",
        "See outliers being born in a series of checkpoints: when each kind grew, which came first.",
    ),
    "retrofit": (
        "skerry.cli.retrofit:retrofit",
        "Turn a trained softmax model into one without a sink token, after the fact.",
    ),
    "optimize": (
        "skerry.cli.optimize:optimize",
        "Search an objective and an architecture for several goals at once; draw the Pareto front.",
    ),
    "claims": ("skerry.cli.claims:claims", "Test what the literature says on this model."),
    "runs": ("skerry.cli.runs:runs", "List the runs in a folder."),
    "show": ("skerry.cli.runs:show", "Show a finished run again."),
    "report": ("skerry.cli.runs:report", "Write the report of a finished run."),
    "diff": ("skerry.cli.diff:diff", "Compare two runs: which findings came, went, moved."),
    "zoo": ("skerry.cli.zoo:zoo", "List the built-in models."),
    "sites": ("skerry.cli.sites:sites", "List the vocabulary of sites, or the sites of a model."),
    "presets": ("skerry.cli.presets:presets", "Explain the detection rules of the literature and our own."),
}
for _verb, (_place, _help) in VERBS.items():
    app.command(_place, name=_verb, help=_help)


def run(words: Sequence[str] | None = None) -> NoReturn:
    """Do what the words say and end the process with the right exit code: 0, 1 (the job failed), 2 (usage), 130 (Ctrl-C)."""
    try:
        app(list(sys.argv[1:] if words is None else words))
        sys.stdout.flush()
        code = 0
    except cyclopts.CycloptsError as error:
        code = complain(" ".join(str(error).split()), 2)
    except SkerryError as error:
        code = complain(str(error), error.exit_code)
    except KeyboardInterrupt:
        code = complain("stopped; the same command goes on where it stopped", 130)
    except BrokenPipeError:
        # The reader of our output is gone; nothing is left to say, and Python must not say it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except MemoryError:
        code = complain(
            "out of memory; try a smaller --batch-size or fewer --tokens; the run so far is kept", 1
        )
    except Exception as error:
        if os.environ.get("SKERRY_DEBUG"):
            raise
        text = (str(error).splitlines() or [""])[0]
        code = complain(f"{type(error).__name__}: {text} (unexpected; SKERRY_DEBUG=1 shows where)", 1)
    sys.exit(code)


def complain(text: str, code: int) -> int:
    """One line on stderr."""
    print(f"skerry: {text}", file=sys.stderr)
    return code
