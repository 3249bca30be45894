"""How long a run will take, guessed from what was measured on one machine.

Million weights per second and core, with and without importance, on virtual cores of an AMD EPYC (Zen 5);
GGUF types from docs/measurements.md (2026-11-24, ``benchmarks/encoders.py``), the others measured in the same
way while the machine was busy. Another machine differs by a factor of two or three, a laptop's fanless CPU by
more: this tells minutes from hours, and nothing finer. Downloads, verification and compiling encoders are not
in it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from qexport.codecs.ggml import ONLY_GGML
from qexport.evidence.store import Kind
from qexport.formats.registry import FORMATS
from qexport.onepass.assay import sampled_values
from qexport.onepass.execute import default_threads
from qexport.sizes import counted, human_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.formats.plan import ArtifactPlan


_COPIED = 8000.0  # bf16 as it is
# Bytes written, hashed and synced in a second: BF16 and Q8_0 of 1.26 B values, 3.9 GB, took 4 s.
_WRITTEN = 1.0e9
# Weights times tokens in a second and core, in the layer-streamed pass: 1.26 B values at 165 tokens/s on two
# cores, 135 M at 1200, both with AVX-512's bf16 products.
_PRODUCTS = 0.9e11
# Weights in a second and core whose weighted energy is added up, for types for a size.
_WEIGHED = 5e8
_WORTH_SAYING = 60.0  # seconds


def core_seconds(plans: Sequence[ArtifactPlan]) -> float:
    """Seconds that one core would encode."""
    return sum(_by_type(plans).values())


def slowly(plans: Sequence[ArtifactPlan], threads: int | None) -> str | None:
    """What ggml's own encoders will take, in words, where that is minutes: a hundred times ours."""
    slow = {key: each for key, each in _by_type(plans).items() if key[0] in ONLY_GGML}
    threads = threads or default_threads()
    seconds = sum(slow.values()) / threads
    if seconds < _WORTH_SAYING:
        return None
    names = ", ".join(sorted({name for name, _ in slow}))
    return f"ggml itself encodes {names}, slowly: about {human_time(seconds)} on {counted(threads, 'thread')}"


def _by_type(plans: Sequence[ArtifactPlan]) -> dict[tuple[str, bool], float]:
    """Seconds that one core would encode, by stored type, with importance or without."""
    weights: Counter[tuple[str, bool]] = Counter()
    for tensor in (tensor for plan in plans for tensor in plan.tensors):
        weights[tensor.stored.name, tensor.need(Kind.INPUT_SQUARES) is not None] += tensor.source.numel
    return {key: count / _rate(*key) for key, count in weights.items()}


def assay_core_seconds(values: Sequence[int], types: Sequence[str]) -> float:
    """Seconds in which one core would find what tensors of so many values lose in each of these types."""
    sampled = sum(sampled_values(each) for each in values)
    return sum(values) / _WEIGHED + sum(sampled / _rate(name, weighted=True) for name in types)


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
    rates = {key: rate for each in FORMATS.values() for key, rate in each.rates.items()}
    known = max((key for key in rates if name.startswith(key)), key=len, default=None)
    return 1e6 * (_COPIED if known is None else rates[known][weighted])
