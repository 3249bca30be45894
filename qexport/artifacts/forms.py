"""The forms in which folders store a matrix, told by what is stored: names, dtypes and shapes of its parts.

=====================  ================================  =================================================
form                   parts beside the codes            a value is
=====================  ================================  =================================================
as it is               none                              itself (BF16, F16, F32)
fp8, native            ``weight_scale_inv``              code * scale of its 128 x 128 tile
fp8, others            ``weight_scale``                  code * scale of its tile, its row, or the matrix
nvfp4, ModelOpt        ``weight_scale``, ``_scale_2``    level * scale of 16 * global scale
nvfp4, c.-tensors      ``weight_scale``, ``_global_..``  level * scale of 16 / global scale
integers, c.-tensors   ``weight_scale``, ``_shape``      (code - zero point) * scale of its group, its row
integers, a byte each  ``weight_scale``                  (code - zero point) * scale of its group, its row
integers, ModelOpt     ``weight_scale``                  code * scale of its group; two rows share a byte
integers, AWQ, GPTQ    ``qweight``: see ``qweight.py``   (code - zero point) * scale of its group
MLX affine             ``scales``, ``biases``            code * scale + bias of its group
MLX mxfp4, mxfp8       ``scales`` (E8M0)                 code * scale of 32
MLX nvfp4              ``scales`` (E4M3)                 level * scale of 16 (* ``global_scale``)
=====================  ================================  =================================================

ModelOpt's AWQ multiplies inputs by ``pre_quant_scale``, which is to multiply the columns.

A config is not asked: what a loader would make of it is a question of its own
(``verification/stored_form.py``). Stacks of experts are one matrix after the other; MLX and fused experts
store them so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.artifacts.qweight import QWeight, misfit, packing_of
from qexport.checkpoint.tensors import FLOAT_DTYPES, matrix_shape
from qexport.codecs.contract import FP8_TILE
from qexport.codecs.decoded import e4m3, microscaled, tiled
from qexport.errors import InputError

if TYPE_CHECKING:
    import torch

    from qexport.artifacts.rows import Decoded, StoredPart


@dataclass(frozen=True)
class Form:
    """How a matrix is stored.

    Attributes:
        kind: ``float``, ``fp8``, ``nvfp4``, ``int``, ``affine``, ``mxfp4`` or ``mxfp8``.
        bits: of one code.
        group: columns that share a scale; 0 where a scale is a row's, a tile's or the matrix's.
        per: what a scale is for: ``value``, ``tile``, ``row``, ``matrix`` or ``group``.
    """

    kind: str
    bits: int
    group: int = 0
    per: str = "group"

    def __str__(self) -> str:
        if self.kind == "float":
            return f"{self.bits}-bit floats"
        what = f"{self.kind} of {self.bits} bits" if self.kind in ("affine", "int") else self.kind
        return (
            f"{what} in groups of {self.group}" if self.per == "group" else f"{what}, a scale per {self.per}"
        )


def decoded(name: str, parts: Mapping[str, StoredPart], columns: int | None = None) -> Decoded:
    """The matrix that these parts are.

    Args:
        name: what to call it in messages.
        parts: by the names of the table above, ``weight`` (or ``weight_packed``) the codes.
        columns: of the matrix, where the caller knows; MLX's packed codes do not tell alone.

    Raises:
        InputError: parts are missing, or their dtypes and shapes do not fit together.
    """
    if "pre_quant_scale" in parts:
        inner = {word: part for word, part in parts.items() if word != "pre_quant_scale"}
        return Smoothed(name, decoded(name, inner, columns), parts["pre_quant_scale"])
    if "qweight" in parts:
        return QWeight(name, parts)
    form, codes = form_of(name, parts, columns), codes_of(name, parts)
    rows, packed = matrix_shape(codes.shape)
    if form.kind == "float":
        return Plain(codes)
    if form.kind == "fp8":
        return Fp8(codes, parts.get("scale_inv") or parts["weight_scale"], form)
    if form.kind == "int":
        if codes.dtype == "I8":
            return Bytes(codes, parts, form)
        return (Integers if "weight_shape" in parts else PairedRows)(codes, parts, form)
    width = packed * (32 if codes.dtype == "U32" else 8) // form.bits
    shape = (*codes.shape[:-1], width)
    if form.kind == "affine":
        return Affine(codes, parts["scales"], parts["biases"], form, shape)
    scales = parts.get("scales") or parts["weight_scale"]
    if matrix_shape(scales.shape) != (rows, width // form.group):
        raise misfit(name, scales, f"({rows}, {width // form.group})")
    shared = parts.get("weight_global_scale") or parts.get("weight_scale_2") or parts.get("global_scale")
    return Microscaled(codes, scales, shared, form, shape, inverse="weight_global_scale" in parts)


def form_of(name: str, parts: Mapping[str, StoredPart], columns: int | None = None) -> Form:
    """The form alone. Arguments and errors as :func:`decoded`."""
    if "qweight" in parts:
        packing = packing_of(name, parts)
        if packing.groups == 1:
            return Form("int", packing.bits, per="row")
        return Form("int", packing.bits, packing.inputs // packing.groups)
    codes = codes_of(name, parts)
    if "scales" in parts:
        return _mlx_form(name, codes, parts, columns)
    scale = parts.get("scale_inv") or parts.get("weight_scale")
    if codes.dtype in FLOAT_DTYPES:
        if scale is not None:
            raise InputError(f"{name} is {codes.dtype}, not packed, but there is {scale.name}")
        return Form("float", {"F32": 32}.get(codes.dtype, 16), per="value")
    if scale is None:
        raise InputError(f"{name} is {codes.dtype} and has no scale")
    if codes.dtype == "F8_E4M3":
        return Form("fp8", 8, per=_fp8_per(name, codes, scale))
    if codes.dtype == "I32" and "weight_shape" in parts:
        return _int_form(name, codes, scale, parts["weight_shape"])
    if codes.dtype == "U8" and scale.dtype == "F8_E4M3":
        if "weight_global_scale" not in parts and "weight_scale_2" not in parts:
            raise InputError(f"{name} is packed in 4 bits and has no global scale")
        return Form("nvfp4", 4, 16)
    if codes.dtype == "I8" and scale.dtype in FLOAT_DTYPES and len(codes.shape) == 2:
        return _byte_form(name, codes, scale)
    if codes.dtype == "U8" and scale.dtype in FLOAT_DTYPES and len(codes.shape) == 2:
        return _paired_form(name, codes, scale)
    raise InputError(f"{name}: {codes.dtype} with scales of {scale.dtype} is no form that qexport knows")


def codes_of(name: str, parts: Mapping[str, StoredPart]) -> StoredPart:
    """The codes, or the floats. Raises InputError: there are none."""
    found = parts.get("weight_packed") or parts.get("weight") or parts.get("qweight")
    if found is None:
        raise InputError(f"{name}: there are {', '.join(sorted(parts))} and no weight")
    return found


def _fp8_per(name: str, codes: StoredPart, scale: StoredPart) -> str:
    rows, columns = codes.shape[-2:] if len(codes.shape) > 1 else (1, codes.shape[-1])
    tiles = (*codes.shape[:-2], -(-rows // FP8_TILE), -(-columns // FP8_TILE))
    if scale.dtype not in FLOAT_DTYPES:
        raise InputError(f"{scale.name}: scales of {scale.dtype} are no numbers")
    # ModelOpt keeps the axes that it has reduced: [tiles, 1, tiles, 1].
    if scale.shape in (tiles, (tiles[-2], 1, tiles[-1], 1)):
        return "tile"
    if scale.shape in ((), (1,), (1, 1)):
        return "matrix"
    if scale.shape in (codes.shape[:-1], (*codes.shape[:-1], 1)):
        return "row"
    raise misfit(name, scale, f"{tiles}")


def _int_form(name: str, codes: StoredPart, scale: StoredPart, shape: StoredPart) -> Form:
    """Of ``pack-quantized``: as many codes in a word of 32 bits as fit."""
    rows, columns = map(int, shape.whole().view(-1).tolist())
    words, groups = codes.shape[-1], scale.shape[-1]
    bits = next((bits for bits in (4, 8) if columns and words == -(-columns * bits // 32)), 0)
    if codes.shape[0] != rows or not bits:
        raise misfit(name, codes, f"words of 4 or 8 bits for ({rows}, {columns})")
    if scale.shape[0] != rows or not groups or columns % groups or scale.dtype not in FLOAT_DTYPES:
        raise misfit(name, scale, f"({rows}, groups)")
    return Form("int", bits, per="row") if groups == 1 else Form("int", bits, columns // groups)


def _byte_form(name: str, codes: StoredPart, scale: StoredPart) -> Form:
    """Of ``int-quantized``."""
    rows, columns = codes.shape
    groups = scale.shape[-1] if len(scale.shape) == 2 else 1
    if scale.shape not in ((rows,), (rows, groups)) or not groups or columns % groups:
        raise misfit(name, scale, f"({rows}, groups)")
    return Form("int", 8, per="row") if groups == 1 else Form("int", 8, columns // groups)


def _paired_form(name: str, codes: StoredPart, scale: StoredPart) -> Form:
    """Of ModelOpt's ``W4A16_AWQ``."""
    rows, columns = 2 * codes.shape[0], codes.shape[1]
    groups = scale.shape[-1] if scale.shape else 0
    if scale.shape != (rows, groups) or not groups or columns % groups:
        raise misfit(name, scale, f"({rows}, groups)")
    return Form("int", 4, columns // groups)


def _mlx_form(name: str, codes: StoredPart, parts: Mapping[str, StoredPart], columns: int | None) -> Form:
    rows, words = matrix_shape(codes.shape)
    scales = parts["scales"]
    scale_rows, groups = matrix_shape(scales.shape)
    if codes.dtype != "U32" or scale_rows != rows or not groups:
        raise misfit(name, scales, f"({rows}, groups) beside weights of U32, not {codes.dtype}")
    affine = "biases" in parts
    if columns is None:  # 4 bits in their usual groups; the family's own matrices are known better
        columns = words * 8
    bits, group = words * 32 // columns, columns // groups
    if words * 32 != columns * bits or groups * group != columns:
        raise misfit(name, codes, f"{columns} values a row in {groups} groups")
    if affine:
        biases = parts["biases"]
        if biases.shape != scales.shape or biases.dtype != scales.dtype or scales.dtype not in FLOAT_DTYPES:
            raise misfit(name, biases, f"{scales.shape} of {scales.dtype}")
        return Form("affine", bits, group)
    kind = {(4, 32): "mxfp4", (8, 32): "mxfp8", (4, 16): "nvfp4"}.get((bits, group))
    if kind is None or scales.dtype != "U8":
        raise InputError(f"{name}: {bits} bits in groups of {group}, scales of {scales.dtype}, no biases")
    return Form(kind, bits, group)


class _Coded:
    """Codes whose rows are the matrix's rows."""

    dtype = "F32"

    def __init__(self, codes: StoredPart, shape: tuple[int, ...]) -> None:
        self.codes = codes
        self.shape = shape


class Plain(_Coded):
    """Floats as they are."""

    def __init__(self, codes: StoredPart) -> None:
        super().__init__(codes, codes.shape)
        self.dtype = codes.dtype

    def read(self, start: int, stop: int) -> torch.Tensor:
        return self.codes.rows(start, stop)


class Fp8(_Coded):
    """E4M3 codes with a scale per tile, row or matrix."""

    def __init__(self, codes: StoredPart, scale: StoredPart, form: Form) -> None:
        super().__init__(codes, codes.shape)
        self._scale = scale
        self._per = form.per

    def read(self, start: int, stop: int) -> torch.Tensor:
        import torch

        codes = self.codes.rows(start, stop)
        scale = self._scale.whole().float()
        if self._per == "matrix":
            return e4m3(codes).mul_(scale.view(()))
        if self._per == "row":
            return e4m3(codes).mul_(scale.view(-1)[start:stop, None])
        scale = scale.view(-1, -(-self.shape[-1] // FP8_TILE))
        # Of a stack, every matrix begins a tile of its own.
        height = self.shape[-2]
        rows = torch.arange(start, stop)
        return tiled(codes, scale[rows // height * -(-height // FP8_TILE) + rows % height // FP8_TILE])


class Affine(_Coded):
    """MLX's integers with scale and bias."""

    def __init__(
        self, codes: StoredPart, scales: StoredPart, biases: StoredPart, form: Form, shape: tuple[int, ...]
    ) -> None:
        super().__init__(codes, shape)
        self._scales, self._biases, self._bits = scales, biases, form.bits

    def read(self, start: int, stop: int) -> torch.Tensor:
        import torch

        from qexport.codecs.mlx_affine import dequantize

        packed = self.codes.rows(start, stop).view(torch.uint8).numpy()
        scales, biases = (part.rows(start, stop).float() for part in (self._scales, self._biases))
        return dequantize(packed, scales, biases, self._bits)


class Integers(_Coded):
    """compressed-tensors' ``pack-quantized``: codes above zero in words, with a scale for a group or a row.

    Zero points, where there are some, are packed down the rows; ``weight_g_idx`` says whose group a column
    is in, where columns were quantized in another order.
    """

    def __init__(self, codes: StoredPart, parts: Mapping[str, StoredPart], form: Form) -> None:
        super().__init__(codes, (codes.shape[0], int(parts["weight_shape"].whole().view(-1)[-1])))
        self._parts, self._bits = parts, form.bits

    def read(self, start: int, stop: int) -> torch.Tensor:
        import torch

        scale = self._parts["weight_scale"].rows(start, stop).float()
        groups, columns = scale.shape[-1], self.shape[-1]
        place = torch.arange(columns) // (columns // groups)
        if "weight_g_idx" in self._parts:
            place = self._parts["weight_g_idx"].whole().view(-1).long()
        values = self._unpacked(self.codes.rows(start, stop))[:, :columns].float()
        if "weight_zero_point" in self._parts:
            points = self._unpacked(self._parts["weight_zero_point"].whole().T.contiguous()).T[start:stop]
            values -= points.float()[:, place]
        return values.mul_(scale[:, place])

    def _unpacked(self, words: torch.Tensor) -> torch.Tensor:
        """int32 ``(n, words)`` as signed codes, the lowest bits first."""
        import torch

        shifts = torch.arange(0, 32, self._bits, dtype=torch.int32)
        codes = (words[..., None] >> shifts) & ((1 << self._bits) - 1)
        return codes.flatten(-2) - (1 << self._bits - 1)


class Bytes(_Coded):
    """compressed-tensors' ``int-quantized``: signed bytes."""

    def __init__(self, codes: StoredPart, parts: Mapping[str, StoredPart], form: Form) -> None:
        super().__init__(codes, codes.shape)
        self._scale, self._points = parts["weight_scale"], parts.get("weight_zero_point")
        self._group = form.group or codes.shape[1]

    def read(self, start: int, stop: int) -> torch.Tensor:
        values = self.codes.rows(start, stop).float()
        if self._points is not None:
            values -= self._wide(self._points, start, stop)
        return values.mul_(self._wide(self._scale, start, stop))

    def _wide(self, part: StoredPart, start: int, stop: int) -> torch.Tensor:
        of_rows = part.whole().float().view(self.shape[0], -1)[start:stop]
        return of_rows.repeat_interleave(self._group, 1)


class PairedRows(_Coded):
    """ModelOpt's integers of 4 bits: a byte is one column of two rows, the lower bits the first one's.

    ``pack_int4_in_uint8`` of modelopt/torch/export/quant_utils.py.
    """

    def __init__(self, codes: StoredPart, parts: Mapping[str, StoredPart], form: Form) -> None:
        super().__init__(codes, (2 * codes.shape[0], codes.shape[1]))
        self._scale, self._group = parts["weight_scale"], form.group

    def read(self, start: int, stop: int) -> torch.Tensor:
        import torch

        pairs = self.codes.rows(start // 2, -(-stop // 2)).view(torch.int8)
        both = torch.stack((pairs << 4 >> 4, pairs >> 4), 1).flatten(0, 1)  # with their signs
        values = both[start % 2 : start % 2 + stop - start].float()
        scale = self._scale.rows(start, stop).float()
        return values.mul_(scale.repeat_interleave(self._group, 1))


class Smoothed:
    """A matrix whose inputs are multiplied by numbers that its other form does not have.

    Raises:
        InputError: there is not one for each column.
    """

    dtype = "F32"

    def __init__(self, name: str, inner: Decoded, factors: StoredPart) -> None:
        self.shape = inner.shape
        if factors.shape != inner.shape[-1:] or factors.dtype not in FLOAT_DTYPES:
            raise misfit(name, factors, f"{inner.shape[-1:]}")
        self._inner, self._factors = inner, factors

    def read(self, start: int, stop: int) -> torch.Tensor:
        return self._inner.read(start, stop).float() * self._factors.whole().float()


class Microscaled(_Coded):
    """E2M1 or E4M3 codes, a scale for each 16 or 32 of them, for NVFP4 a scale of these scales."""

    def __init__(
        self,
        codes: StoredPart,
        scales: StoredPart,
        shared: StoredPart | None,
        form: Form,
        shape: tuple[int, ...],
        *,
        inverse: bool,
    ) -> None:
        super().__init__(codes, shape)
        self._scales, self._shared, self._form, self._inverse = scales, shared, form, inverse

    def read(self, start: int, stop: int) -> torch.Tensor:
        import torch

        shared = None if self._shared is None else self._shared.whole().float().view(-1)
        if shared is not None and len(shared) > 1:  # one for each matrix of a stack
            shared = shared[torch.arange(start, stop) // self.shape[-2]][:, None]
        return microscaled(
            self.codes.rows(start, stop).view(torch.uint8),
            self._scales.rows(start, stop),
            self._form.bits,
            powers_of_two=self._form.kind != "nvfp4",
            shared=shared,
            divides=self._inverse,
        )
