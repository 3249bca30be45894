"""FP8 as a format: a folder for vLLM, SGLang and transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.formats import tolerance
from qexport.formats.format import Format, Proof, Words
from qexport.formats.fp8.options import Fp8Options

if TYPE_CHECKING:
    from qexport.artifacts.layout import ArtifactLayout
    from qexport.doctor.diagnose import Diagnosis
    from qexport.formats.plan import ArtifactPlan


def _plan(diagnosis: Diagnosis, options: Fp8Options) -> tuple[ArtifactPlan, ...]:
    from qexport.formats.fp8.plan import plan_fp8

    return (plan_fp8(diagnosis.repaired, options),)


def _folder(options: Fp8Options) -> str:
    return "{name}-FP8" if options.native else "{name}-FP8-dynamic" if options.dynamic else "{name}-FP8-CT"


def _layouts() -> tuple[ArtifactLayout, ...]:
    from qexport.formats.compressed import COMPRESSED
    from qexport.formats.fp8.reading import NATIVE_FP8

    return (NATIVE_FP8, COMPRESSED)


FP8 = Format(
    word="fp8",
    options=Fp8Options,
    plan=_plan,
    folder=_folder,
    bits=lambda _, __: 9.2,
    guess="F8_E4M3",
    proof=Proof("transformers", "reference"),
    layouts=_layouts,
    layout_word=lambda options: "fp8" if options.native else "compressed-tensors",
    tolerances={"FP8.*": tolerance.FP8},
    words=Words(
        name="FP8",
        readers="FP8, for vLLM, SGLang and transformers",
        library="transformers",
        tags=("fp8", "vllm", "sglang"),
        program="served",
        sees=True,
        mark="M0,-5.8L5.6,4.4H-5.6Z",
        colours=("#007d5c", "#3fc79d"),
    ),
    rates={"F8_E4M3": (2370, 2370)},
    sizes=("max_shard",),
    shown={"FP8 block 128": Fp8Options()},
)
