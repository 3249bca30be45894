"""Figures as people read them: few digits, no exponents, nothing where nothing was measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.receipt.measures import Estimate


_LEAST = 1e-5


def nats(value: float | None) -> str:
    """Three digits that count, as a plain decimal.

    >>> nats(0.012345), nats(2.5), nats(0.0), nats(3e-9), nats(None)
    ('0.0123', '2.50', '0', '< 0.00001', '')
    """
    if value is None:
        return ""
    if abs(value) < _LEAST:
        return "0" if value == 0 else f"< {_LEAST:.5f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}"


def listed(words: Sequence[str]) -> str:
    """In a sentence.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def percent(value: float | None) -> str:
    """``0.9512 -> '95.1 %'``; what is not all is never rounded to 100."""
    if value is None:
        return ""
    shown = f"{100 * value:.1f}"
    return f"{'99.9' if shown == '100.0' and value < 1 else shown} %"


def speed(value: float | None) -> str:
    """Tokens a second, without the unit."""
    return "" if value is None else f"{value:.0f}" if value >= 1000 else f"{value:.1f}"


def times(value: float | None) -> str:
    """``1.4 -> '1.40 x'``."""
    return "" if value is None else f"{value:.2f} ×"


def ratio(found: Estimate | None) -> str:
    """Of perplexities: ``1.00234 -> '1.0023'``, with its standard error."""
    if found is None:
        return ""
    return f"{found.value:.4f}" if found.error is None else f"{found.value:.4f} ± {found.error:.4f}"


def bits(value: float | None) -> str:
    """Per weight."""
    return f"{value:.2f}" if value else ""


def with_error(found: Estimate | None, *, share: bool = False) -> str:
    """A mean and its standard error, in nats or (``share``) per cent.

    >>> from qexport.receipt.measures import Estimate
    >>> with_error(Estimate(0.0123456, 0.00081)), with_error(Estimate(0.9512, 0.0071), share=True)
    ('0.0123 ± 0.00081', '95.1 ± 0.7 %')
    >>> with_error(Estimate(0.000098, 0.0000041))
    '0.000098 ± 0.0000041'
    """
    if found is None:
        return ""
    if share:
        words = percent(found.value)
        return words if found.error is None else words.replace(" %", f" ± {100 * found.error:.1f} %")
    if found.error is None:
        return nats(found.value)
    digits = max(0, 1 - math.floor(math.log10(found.error))) if found.error else 5
    return f"{nats(found.value)} ± {found.error:.{min(digits, 7)}f}"
