"""Sizes as people write them: ``500M``, ``60G``; powers of 1000, as llama.cpp's --split-max-size has them."""

from __future__ import annotations

import re

__all__ = ["parse_size"]

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
