"""MLX as a format: a folder for mlx-lm, and the MTP head as a drafter in a folder beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.assign.aim import has_aim
from qexport.formats import tolerance
from qexport.formats.format import Format, Proof, Sizing, Words
from qexport.formats.mlx.options import MlxOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.artifacts.layout import ArtifactLayout
    from qexport.doctor.diagnose import Diagnosis
    from qexport.formats.format import Candidates
    from qexport.formats.plan import ArtifactPlan

# docs/measurements.md (2026-11-24, benchmarks/encoders.py).
_RATES: dict[str, tuple[float, float]] = {
    "2-bit": (380, 255), "3-bit": (360, 145), "4-bit": (340, 119), "5-bit": (290, 130), "6-bit": (327, 105),
    "8-bit": (300, 178), "mxfp4": (450, 450), "mxfp8": (1570, 1570), "nvfp4": (136, 136),
}  # fmt: skip


def _plan(diagnosis: Diagnosis, options: MlxOptions) -> Sequence[ArtifactPlan]:
    from qexport.formats.mlx.plan import plan_mlx
    from qexport.formats.mlx.sized import plan_sized

    return (plan_mlx if options.aim is None else plan_sized)(diagnosis.repaired, options)


def _candidates(diagnosis: Diagnosis, options: MlxOptions) -> Candidates:
    from qexport.formats.mlx.sized import candidates

    return candidates(diagnosis.repaired)


def _plain(options: MlxOptions, like: str) -> MlxOptions:
    from qexport.formats.mlx.sized import plain

    return plain(options, like)


def _best(options: MlxOptions) -> tuple[MlxOptions, ...]:
    from qexport.formats.mlx.sized import best

    return best(options)


def _bits(options: MlxOptions, _: str) -> float:
    if options.bpw is not None:
        return options.bpw
    options = options if options.like is None else _plain(options, options.like)
    scale = 32 if options.mode == "affine" else 8  # bits beside each group: scale and bias, or a scale
    high = {"mixed_2_6": 4.0, "mixed_3_4": 3.6, "mixed_3_6": 4.2, "mixed_4_6": 5.0}.get(options.recipe or "")
    return (high or options.scheme.bits) + scale / options.scheme.group_size + 0.2


def _layouts() -> tuple[ArtifactLayout, ...]:
    from qexport.formats.mlx.reading import MLX_FOLDER

    return (MLX_FOLDER,)


MLX = Format(
    word="mlx",
    options=MlxOptions,
    plan=_plan,
    folder=lambda options: f"{{name}}-MLX-{options.label}",
    bits=_bits,
    guess="4-bit",
    proof=Proof("mlx_lm", "mlx"),
    layouts=_layouts,
    layout_word=lambda _: "mlx",
    tolerances={
        "MLX-mxfp8": tolerance.FP8,
        "MLX-8bit": tolerance.EIGHT_BITS,
        "MLX-6bit": tolerance.SIX_BITS,
        "MLX-5bit": tolerance.FIVE_BITS,
        "MLX-4bit|MLX-nvfp4": tolerance.ALL_FOUR_BITS,
    },
    words=Words(
        name="MLX",
        readers="MLX, for Apple silicon",
        library="mlx",
        tags=("mlx",),
        program="mlx_lm",
        prefix="MLX",
        mark="M-4.6,-4.6H4.6V4.6H-4.6Z",
        colours=("#b56a00", "#eda63b"),
    ),
    rates=_RATES,
    matrix="importance",
    weighted=has_aim,
    sizes=("max_shard_size", "size"),
    check=lambda options: options.like is None or _plain(options, options.like),
    sizing=Sizing(_candidates, _plain, lambda _, options, __: options.label, _best),
    shown={"MLX 6-bit": MlxOptions(bits=6)},
    beside={"mlx-drafter": "-MTP"},
    inside=frozenset(("embedded", "mtplx", "vllm-mlx")),
)
