"""GGUF as a format: files of several types in one folder, for llama.cpp and what is built on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.errors import UsageProblem
from qexport.formats import tolerance
from qexport.formats.format import Format, Proof, Sizing, Words
from qexport.formats.gguf.file_types import file_type
from qexport.formats.gguf.mixture_terms import Overrides
from qexport.formats.gguf.mmproj import projector_types
from qexport.formats.gguf.options import GgufOptions, head_type

if TYPE_CHECKING:
    from qexport.artifacts.layout import ArtifactLayout
    from qexport.doctor.diagnose import Diagnosis
    from qexport.families.view import ModelView
    from qexport.formats.format import Candidates
    from qexport.formats.plan import ArtifactPlan

# Of 27B files that publishers ship, a little up: what is guessed must fit.
_BITS = {
    "F32": 32.0, "BF16": 16.05, "F16": 16.05, "Q8_0": 8.6, "Q6_K": 6.9,
    "Q5_K_M": 6.0, "Q5_K_S": 5.8, "Q5_1": 6.2, "Q5_0": 5.8,
    "Q4_1": 5.3, "Q4_0": 4.9, "Q4_K_M": 5.2, "Q4_K_S": 4.95, "IQ4_NL": 4.8, "IQ4_XS": 4.7,
    "MXFP4_MOE": 4.6, "NVFP4": 5.6, "Q3_K_L": 4.6, "Q3_K_M": 4.3, "Q3_K_S": 3.8, "Q2_K": 3.6, "Q2_K_S": 3.4,
    "IQ3_M": 4.0, "IQ3_S": 3.8, "IQ3_XS": 3.6, "IQ3_XXS": 3.4, "IQ2_M": 3.1, "IQ2_S": 2.9, "IQ2_XS": 2.8,
    "IQ2_XXS": 2.6, "IQ1_M": 2.3, "IQ1_S": 2.2,
}  # fmt: skip

# docs/measurements.md (2026-11-24, benchmarks/encoders.py; IQ4 2026-11-29, beside Q4_K; below it ggml's own).
_RATES: dict[str, tuple[float, float]] = {
    "Q8_0": (2900, 2900), "Q6_K": (660, 670), "Q5_K": (430, 210), "Q4_K": (350, 213), "Q3_K": (620, 607),
    "Q2_K": (380, 180), "Q4_0": (3300, 690), "Q4_1": (3300, 200), "Q5_0": (2900, 700), "Q5_1": (3200, 200),
    "IQ4_NL": (270, 250), "IQ4_XS": (270, 250), "F16": (350, 350),
    "MXFP4": (50, 50), "NVFP4": (600, 26),
    "IQ3": (2.5, 2.8), "IQ3_XXS": (1.5, 1.9), "IQ2": (2.6, 2.6), "IQ2_XS": (1.1, 1.1), "IQ1": (4.3, 4.3),
}  # fmt: skip


_SHOWN = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")


def _trunk(diagnosis: Diagnosis, options: GgufOptions) -> tuple[ModelView, GgufOptions]:
    """What the files of the model hold, and the options that are theirs."""
    from qexport.formats.gguf.head_file import options_of_trunk, trunk_of

    view = diagnosis.repaired.view()
    return trunk_of(view, options), options_of_trunk(view, options)


def _plan(diagnosis: Diagnosis, options: GgufOptions) -> tuple[ArtifactPlan, ...]:
    from qexport.formats.gguf.head_file import with_head
    from qexport.formats.gguf.plan import plan_gguf
    from qexport.formats.gguf.sized import plan_sized

    trunk, own = _trunk(diagnosis, options)
    plans = plan_gguf(trunk, own.types, own) if options.aim is None else plan_sized(trunk, own)
    return with_head(plans, diagnosis.repaired.view(), options)


def _alongside(diagnosis: Diagnosis, options: GgufOptions) -> tuple[ArtifactPlan, ...]:
    from qexport.formats.gguf.head_file import plan_head
    from qexport.formats.gguf.mmproj import plan_mmproj

    view = diagnosis.repaired.view()
    return (
        *plan_mmproj(view, options),
        *plan_head(view, options, dropped=diagnosis.repaired.mtp_origin == "dropped"),
    )


def _candidates(diagnosis: Diagnosis, options: GgufOptions) -> Candidates:
    from qexport.formats.gguf.sized import candidates

    return candidates(*_trunk(diagnosis, options))


def _plain(options: GgufOptions, like: str) -> GgufOptions:
    from qexport.formats.gguf.sized import plain

    return plain(options, like)


def _label(diagnosis: Diagnosis, options: GgufOptions, nbytes: int) -> str:
    from qexport.formats.gguf.sized import name_for

    trunk, own = _trunk(diagnosis, options)
    return name_for(trunk, own, nbytes)


def _best(options: GgufOptions) -> tuple[GgufOptions, ...]:
    from qexport.formats.gguf.sized import best

    return best(options)


def _bits(options: GgufOptions, type_name: str) -> float:
    """Of one of the types, or of the one file that has an aim."""
    if type_name or options.like:
        return _BITS[file_type(type_name or options.like or "").name]
    return options.bpw or _BITS["Q4_K_M"]


def _check(options: GgufOptions) -> None:
    Overrides(options.tensor_types, options.output_type, options.embedding_type)
    projector_types(options)
    head_type(options)
    if not options.types and options.aim is None:
        raise UsageProblem(
            "no type is named to write", hint="Give -q Q4_K_M, or one of --size, --bpw, --like, --max-kld."
        )
    if options.like is not None:
        _plain(options, options.like)


def _layouts() -> tuple[ArtifactLayout, ...]:
    from qexport.formats.gguf.reading import GGUF_FILE

    return (GGUF_FILE,)


GGUF = Format(
    word="gguf",
    options=GgufOptions,
    plan=_plan,
    alongside=_alongside,
    folder=lambda _: "{name}-GGUF",
    bits=_bits,
    proof=Proof("xllamacpp", "llama"),
    layouts=_layouts,
    layout_word=lambda _: "gguf",
    tolerances={
        "Q8_0": tolerance.EIGHT_BITS,
        "Q6_K": tolerance.SIX_BITS,
        "Q5_.*": tolerance.FIVE_BITS,
        "(I?Q4_|MXFP4|NVFP4).*": tolerance.FOUR_BITS,
        "I?Q3_.*": tolerance.THREE_BITS,
        "I?Q2_.*": tolerance.TWO_BITS,
    },
    words=Words(
        name="GGUF",
        readers="GGUF, for llama.cpp and the programs built on it",
        library="gguf",
        tags=("gguf", "llama.cpp"),
        program="llama_cpp",
        mark="M-5.0,0a5.0,5.0 0 1,0 10.0,0a5.0,5.0 0 1,0 -10.0,0Z",
        colours=("#0072b2", "#6cb8ec"),
    ),
    rates=_RATES,
    ladder=True,
    matrix="imatrix",
    weighted=lambda _: True,
    sizes=("size",),
    limits=("split_max_size",),
    shown={"GGUF": GgufOptions(types=_SHOWN)},
    check=_check,
    sizing=Sizing(_candidates, _plain, _label, _best),
)
