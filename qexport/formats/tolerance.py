"""How far each stored type may be from its source before something other than rounding must be the cause.

Measured on a trained 10 M-parameter hybrid (192 greedy tokens, three prompts, against float32 transformers):
share of tokens that the source would have chosen too, mean |difference of log-probability|:

    BF16 1.000 0.001   Q8_0 1.000 0.006   Q6_K 0.958 0.015   Q5_K_M 0.979 0.018   Q4_K_M 0.984 0.030
    IQ4_XS 0.969 0.036   Q4_0 0.964 0.053   Q3_K_M 0.927 0.046   Q2_K 0.922 0.098

Defects planted into one layer of its BF16 file, same two numbers (96 tokens, short prompts):

    a norm without its +1 0.927 0.257          a query norm without it 0.885 0.159
    rope base 10 000 for 10 000 000 0.938 0.379    decays in reverse order 1.000 0.006

The same with an importance matrix of its text (96 tokens), whose types below 4 bits have one always:

    Q3_K_M 0.958 0.070   Q2_K 0.917 0.178   IQ3_M 0.958 0.115   IQ3_S 0.990 0.085   IQ3_XS 0.948 0.075
    IQ3_XXS 0.917 0.109   IQ2_M 0.885 0.134   IQ2_S 0.917 0.131   IQ2_XS 0.896 0.171   IQ2_XXS 0.833 0.233
    IQ1_M 0.896 0.228   IQ1_S 0.948 0.185

SmolLM2-135M (96 tokens, wheel of 2026-10, two cores), whose narrow rows suffer more:

    BF16 1.000 0.005   F16 1.000 0.001   Q8_0 0.958 0.045   Q6_K 0.979 0.059   Q5_K_M 0.885 0.185
    Q4_K_M 0.958 0.169

A mixture of experts of random weights, whose router is always near a tie: BF16 0.990 0.050, Q8_0 0.857 0.147.

Folders, in mlx-lm 0.32 and transformers 5.17 on a CPU: the first model (96 tokens), then SmolLM2 (about 30):

    FP8_BLOCK 1.000 0.013   NVFP4 of all linear layers 0.958 0.049, of the MLP alone 0.990 0.038
    MLX bf16 1.000 0.002 and 1.000 0.000   8 bits 1.000 0.005 and 0.935 0.042   6 0.990 0.020 and 0.935 0.132
    5 0.948 0.033 and 0.935 0.213   4 0.927 0.051 and 0.594 0.590   3 0.927 0.148 and 0.188 3.480
    2 0.719 0.341
    mxfp8 1.000 0.023 and 0.938 0.126   mxfp4 0.927 0.106 and 0.531 1.102   nvfp4 0.917 0.083 and 0.667 0.602

MLX stores the embedding in as few bits as the rest: a small model with tied embeddings pays for that.

So text and agreement hardly show a single defect; the mean difference does, in a strict type. From Q6 down
the limits cannot tell one wrong layer from rounding, which is why an export's BF16 file (with less certainty
Q8_0) is the one that proves its mapping.
"""

from __future__ import annotations

from dataclasses import dataclass


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


# The classes that formats put their stored types into.
SAME = Tolerance(0.96, 0.10, 0.06, "the same weights: only the order of sums differs, and routers at a tie")
FP8 = Tolerance(0.85, 0.15, 0.25, "three bits of mantissa; on GPUs of activations, too")
EIGHT_BITS = Tolerance(0.85, 0.10, 0.15, "8.5 bits, and activations rounded to 8 bits as well")
SIX_BITS = Tolerance(0.88, 0.15, 0.20, "6.6 bits: flips near-ties and little else")
FIVE_BITS = Tolerance(0.80, 0.25, 0.40, "5.5 bits: flips near-ties, wider ones in small models")
FOUR_BITS = Tolerance(0.72, 0.35, 0.60, "4 to 5 bits: small models visibly move, most tokens stay")
ALL_FOUR_BITS = Tolerance(0.55, 0.50, 1.00, "4 bits for all, the embedding too")
THREE_BITS = Tolerance(0.62, 0.50, 1.00, "3 to 4 bits: wording changes, meaning should not")
TWO_BITS = Tolerance(0.55, 0.80, 1.50, "2 to 3 bits: wording changes everywhere, the subject should not")
LEAST = Tolerance(
    0.45, 0.80, 2.00, "below 2 bits, or unknown: only what still follows the source at all passes"
)
