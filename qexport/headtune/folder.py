"""The folder of a tuned head: its tensors, a config that says whose head it is, and what was done to it.

It is a checkpoint with nothing in it but a head, and goes wherever ``--mtp-from`` goes. It appears under its
name when it is complete.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport import __version__
from qexport.errors import EnvironmentProblem, UsageProblem
from qexport.headtune.figures import OWN, WAYS, figures
from qexport.onepass.files import temporary_name
from qexport.receipt.measures import Estimate
from qexport.receipt.types import TunedHead

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qexport.families.view import ModelView
    from qexport.headtune.options import TuneOptions
    from qexport.headtune.tune import Tuned


RECEIPT = "mtp-head.json"
"""What was done, beside the head."""
_SCHEMA = 1
_WEIGHTS = "model.safetensors"
_BESIDE = ("tokenizer.json",)
"""Small files that say whose vocabulary it is, so that a graft can be checked."""


def check_out(out: Path, *, overwrite: bool) -> None:
    """Refuse to replace what is no head of ours, or any without ``overwrite``."""
    if not os.path.lexists(out):
        return
    if out.is_symlink() or not out.is_dir() or (any(out.iterdir()) and not (out / RECEIPT).is_file()):
        raise UsageProblem(f"{out} is there, and is no tuned head", hint="Choose another --out.")
    if any(out.iterdir()) and not overwrite:
        raise UsageProblem(f"{out} is already there", hint="Add --overwrite, or choose another --out.")


def write_head(
    out: Path, view: ModelView, tuned: Tuned, options: TuneOptions, base: str, made_of: str | None = None
) -> dict[str, Any]:
    """Write the folder; returns the receipt.

    Args:
        base: whose head it was.
        made_of: a hash of all that it follows from, for who looks whether to make it again.

    Raises:
        EnvironmentProblem: it cannot be written.
    """
    from safetensors.torch import save_file

    document = receipt_of(view, tuned, options, base, made_of)
    part = out.with_name(temporary_name(out.name))
    try:
        if part.exists():
            shutil.rmtree(part)
        part.mkdir(parents=True)
        tensors = {name: values.to(tuned.dtypes[name]).contiguous() for name, values in tuned.weights.items()}
        save_file(tensors | _outside(view), part / _WEIGHTS, metadata={"format": "pt"})
        _put(part / "config.json", view.config)
        for name in _BESIDE:
            if name in view.files:
                (part / name).write_bytes(view.files[name])
        _put(part / RECEIPT, document)
        for file in part.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        if out.exists():
            shutil.rmtree(out)
        part.replace(out)
    except OSError as error:
        raise EnvironmentProblem(
            f"{out.name} cannot be written: {error.strerror or error}", hint="Choose another --out."
        ) from error
    return document


def receipt_of(
    view: ModelView, tuned: Tuned, options: TuneOptions, base: str, made_of: str | None = None
) -> dict[str, Any]:
    """What was done, what from, and what came of it."""
    from dataclasses import asdict

    from qexport.headtune.train import head_sha256_of

    trained = tuned.trained
    depth = options.train.depth
    return {
        "schema": _SCHEMA,
        "qexport": __version__,
        "result": tuned.result,
        "reason": tuned.reason,
        "model": view.label,
        "base": base,
        "made_of": made_of,
        "mode": options.train.mode,
        "options": asdict(options),
        "seed": options.train.seed,
        "text": tuned.prepared.to_json(),
        "base_head_sha256": tuned.base_sha256,
        "states_sha256": tuned.states_sha256,
        "head_sha256": head_sha256_of(tuned.weights),
        "training": None
        if trained is None
        else {
            "learning_rate": trained.rate,
            "probes": {rate: _number(value) for rate, value in trained.probes.items()},
            "steps": trained.steps,
            "best_step": trained.best,
            "curve": [
                {key: _number(value) for key, value in asdict(point).items()} for point in trained.curve
            ],
        },
        "before": _finite(figures(tuned.before, depth=depth, own=tuned.prepared.own)),
        "after": None
        if tuned.after is None
        else _finite(figures(tuned.after, depth=depth, own=tuned.prepared.own)),
        "verdict": None if tuned.verdict is None else _finite(tuned.verdict.to_json()),
    }


def tuned_in(data: bytes) -> TunedHead | None:
    """What a head's receipt comes to; ``None`` where the old head was kept, or it is no receipt of ours."""
    try:
        found = json.loads(data)
        if found["schema"] != _SCHEMA or found["result"] != "tuned":
            return None
        way = WAYS[found["mode"]][0]
        one, other = (found[when][OWN]["tokens_per_verification"] for when in ("before", "after"))
        return TunedHead(
            str(found["base"]),
            found["mode"],
            int(one["n_max"]),
            Estimate(float(one[way]["value"]), one[way]["error"]),
            Estimate(float(other[way]["value"]), other[way]["error"]),
        )
    except (ValueError, KeyError, TypeError):
        return None


def _outside(view: ModelView) -> dict[str, Any]:
    """Matrices that a head of this family may have beside its layer, as they are."""
    from qexport.checkpoint.tensors import torch_dtype
    from qexport.evidence.modules import OUTSIDE_HEAD
    from qexport.evidence.output import output_rows

    return {
        tensor.name: output_rows(tensor, 0, tensor.shape[0], dtype=torch_dtype(tensor.data.dtype))
        for tensor in view
        if tensor.role in OUTSIDE_HEAD
    }


def _put(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return _number(value)


def _number(value: Any) -> Any:
    """JSON has no NaN: what is not known is null."""
    import math

    return None if isinstance(value, float) and not math.isfinite(value) else value
