"""How to verify: what is asked, of which runtime, and how much may differ."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qexport.formats.tolerance import Tolerance
from qexport.verification.judge import MTP_TIE

MEASURED_TOKENS = 2048
"""Held-out tokens on which an artifact is compared with its source. Enough to tell a broken head (4 standard
errors of an acceptance of one half are 6 points), and a matter of minutes for a 27B on a processor."""


@dataclass(frozen=True)
class VerifyOptions:
    """How to verify.

    Attributes:
        prompts: asked instead of the default ones; through the artifact's chat template where it has one.
        n_predict: tokens generated for each prompt.
        n_probs: alternatives asked for at each token.
        mtp: also run with the MTP head, where the artifact has one and the runtime can.
        draft_max: tokens the head drafts at a time (llama.cpp's own default).
        mtp_tie: nats between two tokens below which MTP may choose the other.
        limits: instead of the table's limits for the artifact's type.
        reference: compare with the bf16 source, where a view is given and fits into memory.
        context: tokens of context, at least; more where the prompts may need it and the model has it.
        threads: threads of the runtime; 0 lets it choose.
        time_limit: seconds for each of the two runs.
        llama_server: the user's own llama-server instead of xllamacpp.
        runtime: for folders: ``mlx-lm``, ``mlx-vlm``, ``transformers``, ``vllm``, ``sglang``, or ``twin``: as
            a GGUF with the same numbers, head and tower included; empty: by the format.
        runtime_python: the Python that has it; ours if not given.
        twin: run a folder for which there is no runtime here as a GGUF with the same numbers.
    """

    prompts: tuple[str, ...] = ()
    n_predict: int = 48
    n_probs: int = 8
    mtp: bool = True
    draft_max: int = 3
    mtp_tie: float = MTP_TIE
    limits: Tolerance | None = None
    reference: bool = True
    context: int = 2048
    threads: int = 0
    time_limit: float = 900.0
    llama_server: Path | None = None
    runtime: str = ""
    runtime_python: Path | None = None
    twin: bool = True
