"""What can be chosen about an FP8 export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.errors import UsageProblem
from qexport.formats.folder import SHARD_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from qexport.assign.assignment import Assignment


LAYOUTS = ("native", "compressed-tensors")


@dataclass(frozen=True)
class Fp8Options:
    """Options of :func:`qexport.formats.fp8.plan.plan_fp8`.

    Attributes:
        layout: ``native`` (``quant_method: fp8``, ``weight_scale_inv``) or ``compressed-tensors``
            (``weight_scale``, roundings of llm-compressor).
        mtp_bf16: keep the MTP layer in the source's dtype; compressed-tensors always does.
        max_shard: bytes of tensor data in one file.
        types_from: which type each tensor gets (``qexport.assign``): in a file, or in memory.

    Raises:
        UsageProblem: no such layout.
    """

    layout: str = "native"
    mtp_bf16: bool = False
    max_shard: int = SHARD_BYTES
    types_from: Path | Assignment | None = None

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise UsageProblem(
                f"there is no FP8 layout {self.layout!r}", hint=f"One of {', '.join(LAYOUTS)}."
            )

    @property
    def native(self) -> bool:
        return self.layout == "native"

    @property
    def keeps_mtp(self) -> bool:
        """Whether the MTP layer stays as it is.

        For compressed-tensors no list of its modules works everywhere: SGLang before 0.5.23 does not find the
        parts of its fused matrices, vLLM insists on ``mtp.fc``. One regex for the whole head does.
        """
        return self.mtp_bf16 or not self.native
