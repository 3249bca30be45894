"""How long a run will take, guessed from what was measured on one machine.

Million weights per second and core, with and without importance, on virtual cores of an AMD EPYC (Zen 5);
GGUF types from docs/measurements.md (2026-11-24, ``benchmarks/encoders.py``), the others measured in the same
way while the machine was busy. Another machine differs by a factor of two or three, a laptop's fanless CPU by
more: this tells minutes from hours, and nothing finer. Downloads, verification and compiling encoders are not
in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.evidence.store import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qexport.formats.plan import ArtifactPlan


_RATES: Mapping[str, tuple[float, float]] = {
    "Q8_0": (2900, 2900), "Q6_K": (660, 670), "Q5_K": (430, 210), "Q4_K": (350, 213), "Q3_K": (620, 607),
    "Q2_K": (380, 180), "Q4_0": (3300, 690), "Q4_1": (3300, 200), "Q5_0": (2900, 700), "Q5_1": (3200, 200),
    "IQ4_NL": (22, 11), "IQ4_XS": (22, 11),  # ggml's own
    "2-bit": (380, 255), "3-bit": (360, 145), "4-bit": (340, 119), "5-bit": (290, 130), "6-bit": (327, 105),
    "8-bit": (300, 178), "mxfp4": (450, 450), "mxfp8": (1570, 1570), "nvfp4": (136, 136),
    "F8_E4M3": (2370, 2370), "NVFP4": (650, 26), "F16": (350, 350),
}  # fmt: skip
_COPIED = 8000.0  # bf16 as it is
# Bytes written, hashed and synced in a second: BF16 and Q8_0 of 1.26 B values, 3.9 GB, took 4 s.
_WRITTEN = 1.0e9
# Weights times tokens in a second and core, in the layer-streamed pass: 1.26 B values at 165 tokens/s on two
# cores, 135 M at 1200, both with AVX-512's bf16 products.
_PRODUCTS = 0.9e11


def core_seconds(plans: Sequence[ArtifactPlan]) -> float:
    """Seconds that one core would encode."""
    return sum(
        tensor.source.numel / _rate(tensor.stored.name, tensor.need(Kind.INPUT_SQUARES) is not None)
        for plan in plans
        for tensor in plan.tensors
    )


def guessed_core_seconds(parameters: float, type_name: str, weighted: bool) -> float:
    """The same for a type of which there is no plan, such as ``Q4_K_M`` or ``6bit``."""
    return parameters / _rate(type_name, weighted)


def pass_seconds(encoding: float, nbytes: int, cores: int) -> float:
    """One pass: encoding on all cores, then bytes as the disk takes them."""
    return encoding / max(1, cores) + nbytes / _WRITTEN


def calibration_seconds(active: float, tokens: int, cores: int) -> float:
    """Collecting importance: ``active`` weights of the language model for each token."""
    return active * tokens / (_PRODUCTS * max(1, cores))


def _rate(name: str, weighted: bool) -> float:
    known = max((key for key in _RATES if name.startswith(key)), key=len, default=None)
    return 1e6 * (_COPIED if known is None else _RATES[known][weighted])
