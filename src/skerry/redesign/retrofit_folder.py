"""The folder that a retrofit writes: weights, configuration, a tokenizer that puts nothing in front, a card, and what was measured.

It appears whole or not at all, after the decoder in it has been read back and gave the same outputs. `skerry` and, with skerry imported,
the Auto classes of transformers load it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from skerry.anatomy.hush import hushed
from skerry.anatomy.watch import trial_ids
from skerry.redesign.decoder import DecoderForCausalLM
from skerry.redesign.retrofit_source import TRIAL_TOKENS
from skerry.run.space import check_space
from skerry.tame.export_folder import written_whole
from skerry.tame.readback import BOUNDS, ReadBackFailed, relative_error

DOCUMENT = "retrofit.json"
_TEXT = "A skerry is a small rock: 17 of them, in the sea."
_SPARE_BYTES = 32 << 20


def write_folder(
    model: DecoderForCausalLM, tokenizer: Any, document: Mapping[str, Any], out: str | Path
) -> Path:
    """Write a retrofitted decoder; returns the folder.

    Args:
        model: The decoder.
        tokenizer: As `without_first` gives it; None writes none.
        document: What was done and measured.
        out: The folder; it must not exist, or be empty.

    Raises:
        RunExists: The folder is in use.
        NoSpace: The disk is too small.
        ReadBackFailed: What was written gives other outputs; nothing is kept.
    """
    out = Path(out).resolve()
    check_space(out, sum(p.numel() * p.element_size() for p in model.parameters()) + _SPARE_BYTES)
    with written_whole(out) as folder:
        with hushed():
            model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        error = _read_back(model, folder)
        document = {**document, "out": {"path": str(out), "readback_error": error}}
        (folder / DOCUMENT).write_text(json.dumps(document, allow_nan=False, indent=1), encoding="utf-8")
        (folder / "README.md").write_text(card(document), encoding="utf-8")
    return out


def _read_back(model: DecoderForCausalLM, folder: Path) -> float:
    first = next(model.parameters())
    ids = trial_ids(model.config, TRIAL_TOKENS).to(first.device)
    with hushed():
        other = DecoderForCausalLM.from_pretrained(folder, local_files_only=True, dtype=first.dtype)
    with torch.no_grad():
        ours = model.eval()(ids, use_cache=False).logits
        theirs = other.to(first.device).eval()(ids, use_cache=False).logits  # type: ignore[arg-type]
    error = relative_error(theirs, ours)
    if error > (bound := BOUNDS.get(first.dtype, BOUNDS[torch.float32])):
        raise ReadBackFailed(
            f"the folder holds another function: relative error {error:.2g} of the outputs, {bound:.2g} is allowed; nothing was kept"
        )
    return error


def without_first(tokenizer: Any, token: int) -> tuple[Any, str | None]:
    """A copy of a tokenizer that does not begin texts with the token, and what must be said where that failed.

    Args:
        tokenizer: Of the original model; None is let through.
        token: The folded token.
    """
    if tokenizer is None:
        return None, None
    new = copy.deepcopy(tokenizer)
    longest = getattr(new, "model_max_length", None)
    if isinstance(longest, int) and 1 < longest < 10**9:
        new.model_max_length = longest - 1
    for attempt in (_say_no, _cut_template):
        if not _begins(new, token):
            break
        attempt(new)
    if _begins(new, token):
        return new, (
            f"the tokenizer still begins texts with token {token}: encode with add_special_tokens=False, the decoder must not see it"
        )
    return new, None


def _begins(tokenizer: Any, token: int) -> bool:
    return list(tokenizer(_TEXT)["input_ids"])[:1] == [token]


def _say_no(tokenizer: Any) -> None:
    """Tokenizers with a switch; some rebuild their template when it is set."""
    if hasattr(tokenizer, "add_bos_token"):
        tokenizer.add_bos_token = False
        if hasattr(tokenizer, "update_post_processor"):
            tokenizer.update_post_processor()


def _cut_template(tokenizer: Any) -> None:
    """Fast tokenizers: text as it is."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        from tokenizers import processors

        backend.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])


def card(document: Mapping[str, Any]) -> str:
    """The model card."""
    first, last = document["stages"][0], document["stages"][-1]
    lines = [
        f"# {document['model']}, retrofitted by skerry",
        "",
        f"Token {document['token']} ({document['token_text']!r}), with which every input of the original begins, is folded into attention "
        f"(form `{document['form']}`). Inputs begin with the text: **do not put that token in front.**",
        "",
        "```python",
        "import skerry  # registers the decoder",
        "from transformers import AutoModelForCausalLM",
        f"model = AutoModelForCausalLM.from_pretrained({Path(document['out']['path']).name!r})",
        "```",
        "",
        "| stage | loss (nats per token) | largest / median of the stream | attention to the first token |",
        "|---|---|---|---|",
    ]
    for row in (first, last):
        sink = row.get("sink_share")
        lines.append(
            f"| {row['stage']} | {row['loss']:.4f} | {row['max_to_median']:.0f} | {'' if sink is None else f'{sink:.3f}'} |"
        )
    lines += ["", f"Everything that was measured is in `{DOCUMENT}`.", ""]
    lines += [f"- {note}" for note in document["notes"]]
    return "\n".join(lines) + "\n"
