"""Packed matrices a few rows at a time: what is stored of them, and the numbers that qexport reads there.

Whoever wants to know whether another library reads the same numbers gets both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qexport.artifacts.forms import decoded
from qexport.artifacts.qweight import LESS_ONE, packing_of, zeros_of
from qexport.artifacts.weights import StoredWeight
from qexport.checkpoint.tensors import matrix_shape
from qexport.codecs.contract import FP8_TILE
from qexport.errors import InputError

if TYPE_CHECKING:
    import torch

    from qexport.artifacts.artifact import Opened
    from qexport.artifacts.forms import Form
    from qexport.artifacts.rows import StoredPart


@dataclass(frozen=True)
class PackedRows:
    """Some rows, as they lie there.

    Attributes:
        form: of the matrix; a block type of ggml has its name as ``kind``, and ``block`` as ``per``.
        codes: ``(rows, bytes or words)``, scales and all where they are in blocks.
        scales: of these rows: of their groups, tiles, or one for all.
        biases: MLX's.
        shared: the scale of scales; of ggml's blocks one for each row.
        points: zero points of packed integers, themselves packed down the rows.
        columns: of packed integers whose groups are in their order.
        divides: whether that one is divided by.
        mlx: whether they are MLX's, which packs codes into words of 32 bits.
        turned: ``awq`` or ``gptq``, whose codes, scales and zero points have a row for each input.
        places: of GPTQ, the group that an input is in.
        less_one: its zero points are stored less one.
    """

    form: Form
    codes: torch.Tensor
    scales: torch.Tensor | None = None
    biases: torch.Tensor | None = None
    shared: torch.Tensor | None = None
    points: torch.Tensor | None = None
    columns: int | None = None
    divides: bool = False
    mlx: bool = False
    turned: str = ""
    places: torch.Tensor | None = None
    less_one: bool = False


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix, or a stack of them.

    Attributes:
        height: rows of one of them.
        decode: the numbers of rows ``[start, stop)`` as qexport has them.
        stored: the same rows as they lie there. They are of one matrix, and ``start`` begins a tile.
    """

    name: str
    form: Form
    rows: int
    height: int
    decode: Callable[[int, int], torch.Tensor] = field(repr=False)
    stored: Callable[[int, int], PackedRows] = field(repr=False)


def folder_matrices(artifact: Opened) -> Iterator[PackedMatrix]:
    """The packed ones of a folder; what makes no sense is left out, and said where forms are judged."""
    for weight in artifact.weights.values():
        assert isinstance(weight, StoredWeight)
        try:
            # Of the codes alone: other libraries know nothing of what inputs are multiplied by.
            parts = {word: part for word, part in weight.parts.items() if word != "pre_quant_scale"}
            form, numbers = weight.form, decoded(weight.name, parts, weight.columns)
        except InputError:
            continue
        if form.kind != "float":
            rows, _ = matrix_shape(numbers.shape)
            yield PackedMatrix(
                weight.name, form, rows, numbers.shape[-2], numbers.read, _stored(weight, form, numbers.shape)
            )


def _stored(weight: StoredWeight, form: Form, shape: tuple[int, ...]) -> Callable[[int, int], PackedRows]:
    parts = weight.parts
    if "qweight" in parts:
        return _stored_turned(weight.name, form, parts)
    height = shape[-2]
    codes = parts.get("weight_packed") or parts["weight"]
    scales = parts.get("scales") or parts.get("scale_inv") or parts.get("weight_scale")
    shared = parts.get("weight_global_scale") or parts.get("weight_scale_2") or parts.get("global_scale")
    points = parts["weight_zero_point"].whole() if "weight_zero_point" in parts else None
    assert scales is not None
    in_pairs = form.kind == "int" and codes.dtype == "U8"

    def read(start: int, stop: int) -> PackedRows:
        if form.per == "group":
            of_rows = scales.rows(start, stop)
        elif form.per == "tile":
            first = start // height * -(-height // FP8_TILE) + start % height // FP8_TILE
            tiles = scales.whole().view(-1, -(-shape[-1] // FP8_TILE))
            of_rows = tiles[first : first + -(-(stop - start) // FP8_TILE)]
        else:
            whole = scales.whole().view(-1)
            of_rows = whole[start:stop, None] if form.per == "row" else whole
        one = None if shared is None else shared.whole().view(-1)
        return PackedRows(
            form,
            codes.rows(start // 2, -(-stop // 2)) if in_pairs else codes.rows(start, stop),
            of_rows,
            parts["biases"].rows(start, stop) if "biases" in parts else None,
            one if one is None or len(one) == 1 else one[start // height].view(1),
            points if points is None else points[start * form.bits // 32 : -(-stop * form.bits // 32)],
            shape[-1] if "weight_shape" in parts and "weight_g_idx" not in parts else None,
            divides="weight_global_scale" in parts,
            mlx="scales" in parts,
        )

    return read


def _stored_turned(
    name: str, form: Form, parts: Mapping[str, StoredPart]
) -> Callable[[int, int], PackedRows]:
    packing, zeros = packing_of(name, parts), zeros_of(parts)
    assert zeros is not None
    each = 32 // packing.bits

    def read(start: int, stop: int) -> PackedRows:
        words = slice(start // each, -(-stop // each))
        return PackedRows(
            form,
            parts["qweight"].whole()[:, words if packing.awq else slice(start, stop)],
            parts["scales"].whole()[:, start:stop],
            points=zeros.whole()[:, words],
            columns=packing.inputs,
            turned="awq" if packing.awq else "gptq",
            places=parts["g_idx"].whole().view(-1) if "g_idx" in parts else None,
            less_one=LESS_ONE in parts,
        )

    return read
