"""The repaired checkpoint as a format: from the same read as the formats made of it.

It is the source's own weights, but its config, names and head are repaired: that transformers loads it and
says what the source says is worth seeing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.formats import tolerance
from qexport.formats.format import Format, Proof, Words

if TYPE_CHECKING:
    from qexport.artifacts.layout import ArtifactLayout
    from qexport.doctor.diagnose import Diagnosis
    from qexport.formats.plan import ArtifactPlan


@dataclass(frozen=True)
class MergedOptions:
    """There is nothing to choose."""


def _plan(diagnosis: Diagnosis, options: MergedOptions) -> tuple[ArtifactPlan, ...]:
    from qexport.formats.merged.plan import plan_merged

    return (plan_merged(diagnosis.repaired, findings=diagnosis.findings),)


def _layouts() -> tuple[ArtifactLayout, ...]:
    from qexport.formats.merged.reading import PLAIN

    return (PLAIN,)


MERGED = Format(
    word="merged",
    options=MergedOptions,
    plan=_plan,
    folder=lambda _: "{name}-BF16",
    bits=lambda _, __: 16.0,
    proof=Proof("transformers", "reference"),
    layouts=_layouts,
    layout_word=lambda _: "safetensors",
    tolerances={"F32|F16|BF16": tolerance.SAME},
    words=Words(
        name="merged",
        readers="the weights unquantized, with their configuration repaired",
        library="transformers",
        program="served",
        sees=True,
        prefix="merged",
        mark="M-5.8,-2H-2V-5.8H2V-2H5.8V2H2V5.8H-2V2H-5.8Z",
        colours=("#5b6570", "#a3adb8"),
    ),
    shown={"safetensors, repaired": MergedOptions()},
)
