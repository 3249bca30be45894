"""AutoAWQ's and GPTQ's matrices, which lie turned: a stored row is an input, not an output.

=======  ==========================  ====================================================================
part     shape, in 4 bits            is
=======  ==========================  ====================================================================
qweight  GPTQ (inputs / 8, outputs)  int32 of 8 inputs each, the lowest bits first
qweight  AWQ (inputs, outputs / 8)   int32 of 8 outputs each, in the order 0 2 4 6 1 3 5 7
qzeros   (groups, outputs / 8)       zero points: int32 of 8 outputs each, AWQ's in the order above
scales   (groups, outputs)           floats
g_idx    (inputs)                    int32, GPTQ's alone: the group that an input is in
=======  ==========================  ====================================================================

A value is (code - zero point) * scale. GPTQ's first format stores zero points less one: its readers add it
and keep as many bits as a code has. Which format it is, the config alone says.

https://github.com/casper-hansen/AutoAWQ (awq/modules/linear/gemm.py) and
https://github.com/ModelCloud/GPTQModel (gptqmodel/nn_modules/qlinear/).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from qexport.checkpoint.tensors import FLOAT_DTYPES
from qexport.errors import InputError

if TYPE_CHECKING:
    import torch

    from qexport.artifacts.rows import StoredPart

LESS_ONE = "qzeros_less_one"
"""The name of the part where zero points are stored so."""
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where in AWQ's words the outputs are, in their order


@dataclass(frozen=True)
class Packing:
    """What the shapes of the parts say: the matrix is ``(outputs, inputs)``."""

    outputs: int
    inputs: int
    bits: int
    groups: int
    awq: bool


def packing_of(name: str, parts: Mapping[str, StoredPart]) -> Packing:
    """Raises InputError: parts are missing, or their dtypes and shapes do not fit together."""
    codes, scales, zeros = parts["qweight"], parts.get("scales"), zeros_of(parts)
    if scales is None or zeros is None:
        raise InputError(f"{name} is packed in qweight, and there are no {'qzeros' if scales else 'scales'}")
    for part, dtypes in ((codes, ("I32",)), (scales, FLOAT_DTYPES), (zeros, ("I32",))):
        if len(part.shape) != 2 or not all(part.shape) or part.dtype not in dtypes:
            raise misfit(name, part, f"a matrix of {' or '.join(dtypes)}")
    groups, outputs = scales.shape
    awq = codes.shape[1] != outputs
    bits = 32 * zeros.shape[1] // outputs
    if bits not in ((4,) if awq else (4, 8)) or zeros.shape != (groups, outputs * bits // 32):
        expected = "4 bits" if awq else "4 or 8 bits"
        raise misfit(name, zeros, f"({groups}, outputs) zero points of {expected} for {outputs} outputs")
    inputs = codes.shape[0] * (1 if awq else 32 // bits)
    if codes.shape != ((inputs, outputs * bits // 32) if awq else (inputs * bits // 32, outputs)):
        raise misfit(name, codes, f"codes of {bits} bits for {outputs} outputs")
    if inputs % groups or outputs * bits % 32:
        raise misfit(name, scales, f"(groups, {outputs}) for {inputs} inputs")
    if "g_idx" in parts and (parts["g_idx"].shape != (inputs,) or awq):
        raise misfit(name, parts["g_idx"], f"the groups of {inputs} inputs, and of GPTQ")
    return Packing(outputs, inputs, bits, groups, awq)


def zeros_of(parts: Mapping[str, StoredPart]) -> StoredPart | None:
    """Zero points, stored in either way."""
    return parts.get("qzeros") or parts.get(LESS_ONE)


def misfit(name: str, part: StoredPart, expected: str) -> InputError:
    """A part that does not belong to the others."""
    return InputError(f"{name}: {part.name} is {part.dtype} {part.shape}, expected {expected}")


class QWeight:
    """Such a matrix as numbers.

    Args:
        name: what to call it in messages.
        parts: by the names above.

    Raises:
        InputError: see :func:`packing_of`.
    """

    dtype = "F32"

    def __init__(self, name: str, parts: Mapping[str, StoredPart]) -> None:
        self._packing = packing_of(name, parts)
        self._parts = parts
        self.shape = (self._packing.outputs, self._packing.inputs)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Rows ``[start, stop)``, float32."""
        import torch

        packing = self._packing
        codes = _turned(self._parts["qweight"])
        if packing.awq:
            codes = self._outputs(codes, start, stop)
        else:
            shifts = torch.arange(0, 32, packing.bits, dtype=torch.int32)
            codes = ((codes[start:stop, :, None] >> shifts) & self._mask).flatten(1)
        places = self.places().long()
        zeros = self.zeros(start, stop)[:, places]
        scales = _turned(self._parts["scales"])[start:stop].float()
        return (codes - zeros).float().mul_(scales[:, places])

    def zeros(self, start: int, stop: int) -> torch.Tensor:
        """Zero points of these rows: int32 ``(stop - start, groups)``."""
        part = zeros_of(self._parts)
        assert part is not None
        found = self._outputs(_turned(part), start, stop)
        return (found + 1) & self._mask if LESS_ONE in self._parts else found

    def places(self) -> torch.Tensor:
        """The group of each input: int32 ``(inputs,)``. Raises InputError: there is no such group."""
        if "g_idx" not in self._parts:
            return self._in_order()
        part, groups = self._parts["g_idx"], self._packing.groups
        found = part.whole().view(-1)
        if int(found.min()) < 0 or int(found.max()) >= groups:
            raise InputError(f"{part.name} names groups that are not there: there are {groups}")
        return found

    @property
    def ordered(self) -> bool:
        """Whether inputs were not taken in another order."""
        return self.places().equal(self._in_order())

    def off_middle(self) -> str:
        """How many zero points are not the middle of the codes, in words; empty where all are."""
        zeros, middle = self.zeros(0, self.shape[0]), 1 << self._packing.bits - 1
        wrong = int((zeros != middle).sum())
        return f"{wrong} of {zeros.numel()} are not {middle}" if wrong else ""

    def _in_order(self) -> torch.Tensor:
        import torch

        inputs, groups = self._packing.inputs, self._packing.groups
        return torch.arange(inputs, dtype=torch.int32) // (inputs // groups)

    @property
    def _mask(self) -> int:
        return (1 << self._packing.bits) - 1

    def _outputs(self, words: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Rows of int32 ``(words, n)`` that hold several rows each."""
        import torch

        bits = self._packing.bits
        each = 32 // bits
        first = start // each
        shifts = torch.arange(0, 32, bits, dtype=torch.int32)
        if self._packing.awq:
            shifts = shifts[torch.tensor(_PLACES)]
        rows = words[first : -(-stop // each), None] >> shifts[:, None]
        return (rows & self._mask).flatten(0, 1)[start - first * each : stop - first * each]


# Rows are asked for a few megabytes at a time, and each has a word in every stored row: the three parts of
# the matrices that are being read are kept, so that each is read once.
@lru_cache(maxsize=8)
def _turned(part: StoredPart) -> torch.Tensor:
    """All of it, outputs down: ``(outputs or words of them, inputs or groups)``."""
    return part.whole().T.contiguous()
