"""How far each stored type may be from its source before something other than rounding must be the cause.

Measured on a trained 10 M-parameter hybrid (192 greedy tokens, three prompts, against float32 transformers):
share of tokens that the source would have chosen too, mean |difference of log-probability|:

    BF16 1.000 0.001   Q8_0 1.000 0.006   Q6_K 0.958 0.015   Q5_K_M 0.979 0.018   Q4_K_M 0.984 0.030
    IQ4_XS 0.969 0.036   Q4_0 0.964 0.053   Q3_K_M 0.927 0.046   Q2_K 0.922 0.098

Defects planted into one layer of its BF16 file, same two numbers (96 tokens, short prompts):

    a norm without its +1 0.927 0.257          a query norm without it 0.885 0.159
    rope base 10 000 for 10 000 000 0.938 0.379    decays in reverse order 1.000 0.006

So text and agreement hardly show a single defect; the mean difference does, in a strict type. The limits
leave other models a factor of four to ten. From Q4 down they cannot tell one wrong layer from rounding, which
is why an export's BF16 or Q8_0 file is the one that proves its mapping.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Tolerance", "tolerance"]


@dataclass(frozen=True)
class Tolerance:
    """Limits for one class of stored types.

    Attributes:
        agreement: least share of generated tokens that the source would have chosen, near-ties included.
        near_tie: nats by which the source may prefer another token and still be said to agree.
        mean_delta: most mean |log-probability of the runtime - of the source| over generated tokens.
        reason: why these numbers.
    """

    agreement: float
    near_tie: float
    mean_delta: float
    reason: str


# Pattern of the file type's name -> limits; the first match counts.
_TABLE: tuple[tuple[str, Tolerance], ...] = (
    (
        r"F32|F16|BF16",
        Tolerance(0.97, 0.10, 0.02, "the same weights: only the order of sums differs"),
    ),
    (r"Q8_0", Tolerance(0.96, 0.10, 0.04, "8.5 bits: rounding noise well below what decides a token")),
    (r"Q6_K", Tolerance(0.94, 0.15, 0.08, "6.6 bits: flips near-ties and nothing else")),
    (
        r"Q5_.*",
        Tolerance(0.92, 0.20, 0.12, "5.5 bits: flips near-ties, sometimes wider ones in small models"),
    ),
    (
        r"(I?Q4_|MXFP4|NVFP4).*",
        Tolerance(0.85, 0.35, 0.30, "4 to 5 bits: small models visibly move, most tokens stay"),
    ),
    (r"I?Q3_.*", Tolerance(0.75, 0.50, 0.50, "3 to 4 bits: wording changes, meaning should not")),
    (
        r".*",
        Tolerance(
            0.55, 0.80, 1.00, "below 3 bits, or unknown: only what still follows the source at all passes"
        ),
    ),
)


def tolerance(file_type: str) -> Tolerance:
    """The limits for a file type such as ``Q4_K_M``.

    >>> tolerance("Q8_0").near_tie
    0.1
    >>> tolerance("IQ4_XS") == tolerance("Q4_K_M")
    True
    """
    return next(limits for pattern, limits in _TABLE if re.fullmatch(pattern, file_type))
