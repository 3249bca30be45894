"""NVFP4 as a format: a folder for vLLM and SGLang, in ModelOpt's layout or that of compressed-tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.assign.aim import has_aim
from qexport.formats import tolerance
from qexport.formats.format import Format, Proof, Sizing, Words
from qexport.formats.nvfp4.options import NVIDIA, Nvfp4Options

if TYPE_CHECKING:
    from qexport.artifacts.layout import ArtifactLayout
    from qexport.doctor.diagnose import Diagnosis
    from qexport.formats.format import Candidates
    from qexport.formats.plan import ArtifactPlan


def _plan(diagnosis: Diagnosis, options: Nvfp4Options) -> tuple[ArtifactPlan, ...]:
    from qexport.formats.nvfp4.plan import plan_nvfp4
    from qexport.formats.nvfp4.sized import plan_sized

    if options.aim is not None:
        return plan_sized(diagnosis.repaired, options)
    return (plan_nvfp4(diagnosis.repaired, options),)


def _candidates(diagnosis: Diagnosis, options: Nvfp4Options) -> Candidates:
    from qexport.formats.nvfp4.sized import candidates

    return candidates(diagnosis.repaired, options)


def _plain(options: Nvfp4Options, like: str) -> Nvfp4Options:
    from qexport.formats.nvfp4.sized import plain

    return plain(options, like)


def _best(options: Nvfp4Options) -> tuple[Nvfp4Options, ...]:
    from qexport.formats.nvfp4.sized import best

    return best(options)


def _folder(options: Nvfp4Options) -> str:
    """Under the name of the layout's own, and what the types were chosen for."""
    usual = "{name}-NVFP4" if options.form == "modelopt" else f"{{name}}-{options.scheme_word}"
    if options.input_scales:
        usual = "{name}-NVFP4-W4A4"  # NVFP4 alone is the other layout's
    return usual if options.aim is None else f"{usual}-{options.aim.label}"


def _bits(options: Nvfp4Options, _: str) -> float:
    if options.bpw is not None:
        return options.bpw
    return 6.6 if NVIDIA in (options.scope, options.like) else 9.0


def _layouts() -> tuple[ArtifactLayout, ...]:
    from qexport.formats.compressed import COMPRESSED
    from qexport.formats.nvfp4.reading import MODELOPT

    return (MODELOPT, COMPRESSED)


NVFP4 = Format(
    word="nvfp4",
    options=Nvfp4Options,
    plan=_plan,
    folder=_folder,
    bits=_bits,
    guess="NVFP4",
    proof=Proof("transformers", "reference"),
    layouts=_layouts,
    layout_word=lambda options: str(options.form),
    tolerances={
        "W4A4.*": tolerance.ALL_FOUR_BITS,  # its activations, too
        ".*NVFP4.*|MIXED_PRECISION|W4A16.*": tolerance.FOUR_BITS,
        "W8A(8|16).*": tolerance.EIGHT_BITS,
    },
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
    weighted=lambda given: has_aim(given) or given.get("scale_search") == "importance",
    sizes=("max_shard", "size"),
    check=lambda options: options.like is None or _plain(options, options.like),
    sizing=Sizing(_candidates, _plain, lambda _, options, __: f"NVFP4-{options.aim.label}", _best),
    shown={"NVFP4 W4A16 (MLP)": Nvfp4Options()},
)
