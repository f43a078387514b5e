"""Everything that skerry refuses or cannot do, one class per kind of mistake.

SkerryError                     exit code 1: the job failed
+-- UsageError                  exit code 2: what was asked for cannot be meant
|   +-- UnknownModel            no folder, no file, no hub id of that name
|   +-- UnknownSite             a site that the vocabulary or the model does not have
|   +-- UnknownPreset           a preset that does not exist
|   +-- UnknownOption           an option value that does not exist (dtype, device, corpus, ...)
|   +-- RunExists               the output folder holds another run
|   +-- NotARun                 the folder holds no run
|   +-- RemoteCodeRefused       the model ships code and the user did not allow it
|   +-- BadText                 empty, too short, binary or not UTF-8
|   +-- BadTokens               token ids that do not fit the model
|   +-- TooLong                 sequences longer than the model's positions
|   +-- WrongSeam               a declared seam that is none: a change of it reaches the output
|   +-- NotPossible             a method, format or change that this model or target cannot carry
|   +-- MissingExtra            an optional library is needed and not installed
+-- BrokenModel                 a checkpoint that cannot be read (no config, no weights, truncated)
+-- UnresolvedArchitecture      no list of blocks could be found in the model
+-- NotEquivalent               a transform that should change nothing changes the model
+-- BrokenRun                   a file of a run is damaged
+-- NoSpace                     the disk is full
+-- Diverged                    a training whose loss or gradient is no longer finite
+-- StudyIncomplete             arms of a study that could not be finished
+-- EmptyBatch                  nothing to measure in a batch
+-- MergeMismatch               two accumulators that do not measure the same thing
+-- KernelUnavailable           the compiled kernels were demanded and cannot be built
"""

from __future__ import annotations


class SkerryError(Exception):
    """Base of all errors that a user can meet. The message says what was wrong, what was expected, what to do."""

    exit_code = 1


class UsageError(SkerryError):
    """What was asked for cannot be meant: a typo, a wrong path, options that exclude each other."""

    exit_code = 2


class UnknownModel(UsageError):
    """No folder, file or hub id of that name."""


class UnknownSite(UsageError):
    """A site that the vocabulary or this model does not have."""


class UnknownPreset(UsageError):
    """A detection preset that does not exist."""


class UnknownOption(UsageError):
    """A value that an option does not take."""


class RunExists(UsageError):
    """The output folder holds another run, or files that are not ours."""


class NotARun(UsageError):
    """The folder does not hold a run."""


class RemoteCodeRefused(UsageError):
    """The checkpoint wants to run code of its own and the user did not allow it."""


class BadText(UsageError):
    """Text that cannot be measured: empty, too short, binary or not UTF-8."""


class BadTokens(UsageError):
    """Token ids outside the model's vocabulary, or tensors of the wrong shape."""


class TooLong(UsageError):
    """A sequence longer than the model has positions for."""


class MissingExtra(UsageError):
    """An optional library is needed and not installed."""


class WrongSeam(UsageError):
    """A declared seam does not hold: a change of it reaches the model's output."""


class NotPossible(UsageError):
    """What was asked for cannot be done on this model, or not be held by this checkpoint format; the message says why."""


class BrokenModel(SkerryError):
    """A checkpoint that cannot be read."""


class UnresolvedArchitecture(SkerryError):
    """No list of blocks could be found in the model."""


class NotEquivalent(SkerryError):
    """A transform that should leave the model's function alone does not."""


class BrokenRun(SkerryError):
    """A file of a run is missing or damaged."""


class NoSpace(SkerryError):
    """The disk is full."""


class Diverged(SkerryError):
    """The loss or the gradient of a training is no longer finite."""


class StudyIncomplete(SkerryError):
    """Some arms of a study could not be finished; the others are kept."""


class EmptyBatch(SkerryError):
    """A batch without a single token to measure."""


class MergeMismatch(SkerryError):
    """Two partial results that do not measure the same thing."""


class KernelUnavailable(SkerryError):
    """The compiled kernels were demanded and cannot be built here."""


def near_matches(word: str, known: list[str] | tuple[str, ...], *, limit: int = 3) -> str:
    """The known words nearest to `word`, as a phrase for an error message; empty when none is near."""
    import difflib

    near = difflib.get_close_matches(word, known, n=limit, cutoff=0.5)
    return " or ".join(repr(w) for w in near)
