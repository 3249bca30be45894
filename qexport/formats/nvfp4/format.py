"""NVFP4 as a format: a folder for vLLM and SGLang, in ModelOpt's layout or that of compressed-tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.formats import tolerance
from qexport.formats.format import Format, Proof, Words
from qexport.formats.nvfp4.options import NVIDIA, Nvfp4Options

if TYPE_CHECKING:
    from qexport.artifacts.layout import ArtifactLayout
    from qexport.doctor.diagnose import Diagnosis
    from qexport.formats.plan import ArtifactPlan


def _plan(diagnosis: Diagnosis, options: Nvfp4Options) -> tuple[ArtifactPlan, ...]:
    from qexport.formats.nvfp4.plan import plan_nvfp4

    return (plan_nvfp4(diagnosis.repaired, options),)


def _layouts() -> tuple[ArtifactLayout, ...]:
    from qexport.formats.compressed import COMPRESSED
    from qexport.formats.nvfp4.reading import MODELOPT

    return (MODELOPT, COMPRESSED)


NVFP4 = Format(
    word="nvfp4",
    options=Nvfp4Options,
    plan=_plan,
    folder=lambda options: "{name}-NVFP4" if options.layout == "modelopt" else "{name}-NVFP4A16",
    bits=lambda options, _: 6.6 if options.scope == NVIDIA else 9.0,
    guess="NVFP4",
    proof=Proof("transformers", "reference"),
    layouts=_layouts,
    layout_word=lambda options: str(options.layout),
    tolerances={".*NVFP4.*|MIXED_PRECISION": tolerance.FOUR_BITS},
    words=Words(
        name="NVFP4",
        readers="NVFP4, for vLLM and SGLang",
        library="vllm",
        tags=("nvfp4", "vllm", "sglang"),
        program="served",
        note="A mixture of experts on Blackwell also needs `--moe-runner-backend marlin`.",
        sees=True,
        mark="M0,-6.4L6.4,0L0,6.4L-6.4,0Z",
        colours=("#b3386f", "#e98bb5"),
    ),
    rates={"NVFP4": (650, 26)},
    matrix="importance",
    weighted=lambda given: given.get("scale_search") == "importance",
    sizes=("max_shard",),
    shown={"NVFP4 W4A16 (MLP)": Nvfp4Options()},
)
