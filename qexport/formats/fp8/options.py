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
DYNAMIC = "FP8_DYNAMIC"
SCHEMES = ("FP8_BLOCK", DYNAMIC)
"""llm-compressor's names."""


@dataclass(frozen=True)
class Fp8Options:
    """Options of :func:`qexport.formats.fp8.plan.plan_fp8`.

    Attributes:
        layout: ``native`` (``quant_method: fp8``, ``weight_scale_inv``) or ``compressed-tensors``
            (``weight_scale``, roundings of llm-compressor); by itself that of the scheme, or native.
        scheme: of compressed-tensors: ``FP8_BLOCK`` (by itself) or ``FP8_DYNAMIC``, a scale for each row.
        mtp_bf16: keep the MTP layer in the source's dtype; compressed-tensors always does.
        max_shard: bytes of tensor data in one file.
        types_from: which type each tensor gets (``qexport.assign``): in a file, or in memory.

    Raises:
        UsageProblem: no such layout or scheme, or a scheme for native tiles.
    """

    layout: str | None = None
    scheme: str | None = None
    mtp_bf16: bool = False
    max_shard: int = SHARD_BYTES
    types_from: Path | Assignment | None = None

    def __post_init__(self) -> None:
        for word, given, known in (("layout", self.layout, LAYOUTS), ("scheme", self.scheme, SCHEMES)):
            if given is not None and given not in known:
                raise UsageProblem(f"there is no FP8 {word} {given!r}", hint=f"One of {', '.join(known)}.")
        if self.layout == "native" and self.scheme is not None:
            raise UsageProblem(
                f"{self.scheme} is a scheme of compressed-tensors; the native layout has none",
                hint="Leave out --layout or --scheme.",
            )

    @property
    def native(self) -> bool:
        return self.scheme is None and self.layout != "compressed-tensors"

    @property
    def label(self) -> str:
        """What weights are called that are stored so."""
        return "FP8" if self.native else self.scheme or SCHEMES[0]

    @property
    def dynamic(self) -> bool:
        """Whether a row has a scale, and not a tile."""
        return self.scheme == DYNAMIC

    @property
    def keeps_mtp(self) -> bool:
        """Whether the MTP layer stays as it is.

        For compressed-tensors no list of its modules works everywhere: SGLang before 0.5.23 does not find the
        parts of its fused matrices, vLLM insists on ``mtp.fc``. One regex for the whole head does.
        """
        return self.mtp_bf16 or not self.native
