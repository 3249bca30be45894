"""Sizes as people write and read them: powers of 1000, as the Hub and --split-max-size have them. Times."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT]?)B?", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_size(text: str) -> int | None:
    """Bytes, or ``None`` where the text is no size.

    >>> parse_size("2G"), parse_size("1.5 MB"), parse_size("0"), parse_size("2 GiB")
    (2000000000, 1500000, None, None)
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return None
    return int(float(match[1]) * _UNITS[match[2].upper()]) or None


def size_text(count: float) -> str:
    """Three digits that count.

    >>> size_text(300), size_text(2729792), size_text(152_000_000_000), size_text(999_999)
    ('300 B', '2.73 MB', '152 GB', '1 MB')
    """
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.3g} {unit}"


def count_text(number: int) -> str:
    """A number of weights.

    >>> count_text(27_800_000_000), count_text(135_000_000), count_text(12)
    ('27.80B', '135.00M', '12')
    """
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.2f}{unit}"
    return str(number)


def counted(number: int, one: str, more: str = "") -> str:
    """So many of them, ``more`` where an ``s`` is not enough.

    >>> counted(1, "recipe"), counted(40, "recipe"), counted(0, "matrix has", "matrices have")
    ('1 recipe', '40 recipes', '0 matrices have')
    """
    return f"{number} {one if number == 1 else more or f'{one}s'}"


def human_time(seconds: float) -> str:
    """An estimate, which deserves no more digits.

    >>> human_time(0.2), human_time(95), human_time(9000)
    ('1 s', '2 min', '2.5 h')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
