"""Squares of 16 rows by 16 words, turned between memory and lanes; and bytes copied.

What :mod:`qexport.codecs.tiles` is made of. A square is sixteen loads, sixteen stores, and between them four
rounds that each swap halves of pairs of vectors: 8 words apart, 4, 2 and 1. bfloat16 is turned in pairs, as the
words that two neighbours make, and taken apart afterwards, so it needs half as many rounds for a value.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["SQUARE", "copy_bytes", "turn_rows"]

SQUARE = 16

_I16, _I32, _F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()
_WORDS = ir.VectorType(_I32, SQUARE)


def turned(builder: Any, lines: list[Any]) -> list[Any]:
    """Sixteen vectors of sixteen, rows for columns."""
    for step in (8, 4, 2, 1):
        low = [k if not k & step else SQUARE + k - step for k in range(SQUARE)]
        high = [k + step if not k & step else SQUARE + k for k in range(SQUARE)]
        swapped = list(lines)
        for k in range(SQUARE):
            if not k & step:
                for place, order in ((k, low), (k + step, high)):
                    mask = ir.Constant(_WORDS, order)
                    swapped[place] = builder.shuffle_vector(lines[k], lines[k + step], mask)
        lines = swapped
    return lines


def _pointer(builder: Any, view: Any, row: Any, column: Any, vector: Any) -> Any:
    """Where ``vector`` begins in a C-contiguous two-dimensional array."""
    width = cgutils.unpack_tuple(builder, view.shape)[1]
    offset = builder.add(builder.mul(row, width), column)
    return builder.bitcast(builder.gep(view.data, [offset]), vector.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def turn_rows(
    context: Any, source: Any, row: Any, column: Any, target: Any, to_row: Any, to_column: Any
) -> Any:
    """Values of 16 rows of ``source``, from ``column`` on, as float32 into 16 lanes of ``target``.

    ``target[to_row + i, to_column + k] = source[row + k, column + i]`` for ``k < 16``, and ``i < 16`` of uint32 or
    ``i < 32`` of uint16, which are the bits of float32 and of bfloat16. Rows behind the last are taken from the
    last. Returns the largest magnitude's bits, those of float32.
    """
    narrow = source.dtype == types.uint16

    def emit(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        source, row, column, target, to_row, to_column = values
        view = context.make_array(sig.args[0])(context, builder, source)
        last = builder.sub(cgutils.unpack_tuple(builder, view.shape)[0], row.type(1))
        stored = ir.VectorType(_I16, 2 * SQUARE) if narrow else _WORDS
        magnitude = ir.Constant(stored, [0x7FFF if narrow else 0x7FFFFFFF] * stored.count)
        lines, highest = [], None
        for k in range(SQUARE):
            here = builder.add(row, row.type(k))
            here = builder.select(builder.icmp_signed("<", here, last), here, last)
            line = builder.load(
                _pointer(builder, view, here, column, stored), align=2 if narrow else 4
            )
            size = builder.and_(line, magnitude)
            larger = highest is None or builder.icmp_unsigned(">", size, highest)
            highest = size if highest is None else builder.select(larger, size, highest)
            lines.append(builder.bitcast(line, _WORDS))
        columns = turned(builder, lines)
        if narrow:
            sixteen, upper = ir.Constant(_WORDS, [16] * SQUARE), ir.Constant(_WORDS, [0xFFFF0000] * SQUARE)
            pairs = columns
            columns = []
            for pair in pairs:
                columns += [builder.shl(pair, sixteen), builder.and_(pair, upper)]
        floats = ir.VectorType(_F32, SQUARE)
        view = context.make_array(sig.args[3])(context, builder, target)
        for i, line in enumerate(columns):
            pointer = _pointer(builder, view, builder.add(to_row, row.type(i)), to_column, floats)
            builder.store(builder.bitcast(line, floats), pointer, align=4)
        name = f"llvm.vector.reduce.umax.v{stored.count}i{stored.element.width}"
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(stored.element, [stored]), name
        )
        bits = builder.call(function, [highest])
        return builder.shl(builder.zext(bits, _I32), _I32(16)) if narrow else bits

    index = types.intp
    return types.uint32(source, index, index, target, index, index), emit


@intrinsic  # type: ignore[untyped-decorator]
def copy_bytes(
    context: Any, source: Any, row: Any, target: Any, to_row: Any, to_column: Any, count: Any
) -> Any:
    """``target[to_row, to_column : to_column + count]`` from the first bytes of ``source[row]``."""

    def emit(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        source, row, target, to_row, to_column, count = values
        byte = ir.VectorType(ir.IntType(8), 1)
        start = context.make_array(sig.args[0])(context, builder, source)
        end = context.make_array(sig.args[2])(context, builder, target)
        cgutils.raw_memcpy(
            builder,
            builder.bitcast(_pointer(builder, end, to_row, to_column, byte), cgutils.voidptr_t),
            builder.bitcast(_pointer(builder, start, row, row.type(0), byte), cgutils.voidptr_t),
            count,
            1,
        )
        return context.get_dummy_value()

    index = types.intp
    return types.void(source, index, target, index, index, index), emit
