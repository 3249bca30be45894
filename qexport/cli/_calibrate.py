"""From ``--calib-tokens`` and the like to a calibration job, and running one under a progress bar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qexport.evidence.options import StreamOptions
from qexport.pipeline.calibrate import CalibrationJob, Collected, Prepared, collect, stream_of
from qexport.sizes import size_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from qexport.cli._output import Output
    from qexport.families.view import ModelView


def calibration_job(given: dict[str, Any], corpus: Path | None, merge: Sequence[Path] = ()) -> CalibrationJob:
    """The job that the options of ``calibration_options`` describe."""
    stream = StreamOptions(
        device=given["device"],
        precision=given["precision"],
        threads=given["threads"],
        activation_memory=given["activation_memory"],
    )
    return CalibrationJob(
        corpus=corpus,
        tokens=given["calib_tokens"],
        chunk=given["calib_chunk"],
        seed=given["calib_seed"],
        merge=merge,
        stream=stream,
    )


def run_calibration(output: Output, prepared: Prepared, view: ModelView) -> Collected:
    """Collect, saying what is read and how fast it went."""
    stream = stream_of(prepared, view)
    chunks, options = prepared.chunks, prepared.job.stream
    states = chunks.tokens * int(view.text["hidden_size"]) * 4
    output.say(
        f"importance matrix: {chunks.dataset}, {len(chunks.ids)} chunks of {chunks.size}, "
        f"{stream.precision} on {options.device}, {size_text(states)} of hidden states"
        f"{' in a temporary file' if states > stream.state_limit else ''}"
    )
    if chunks.fallback_reason:
        counts = ", ".join(f"{count} {how}" for how, count in chunks.chats.items() if count)
        output.say(f"  conversations: {counts}; the first that was not as it is: {chunks.fallback_reason}")
    with output.progress(stream.units(chunks.ids), "collecting", steps=True) as progress:
        collected = collect(prepared, stream, progress)
    facts = collected.facts
    output.say(f"  collected in {facts['seconds']} s, {facts['tokens_per_second']} tokens/s")
    return collected
