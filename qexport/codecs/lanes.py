"""Lanes: 32 numbers side by side in one variable, so that 32 sub-blocks are searched at once.

ggml's searches are sums in a fixed order, and a different order is different bytes, so one search cannot
be spread over a processor's vector. Thirty-two searches can: lane ``k`` of every variable belongs to row
``k``, each lane does ggml's operations in ggml's order, and a kernel reads like the scalar code it stands
for::

    low = select(value < low, value, low)

Inside a compiled kernel a variable is an LLVM vector ``<32 x float>``, ``<32 x i32>`` or ``<32 x i1>``
(the result of a comparison, for :func:`select`, ``&``, ``|`` and :func:`any_lane`). LLVM cuts it into the
registers that the processor has: two with AVX-512, four with AVX2, eight with SSE2 or NEON. Nothing here
asks which processor that is, so nothing changes bytes, and nothing has to be set for the process. Two
registers rather than one because a sum waits for its last addition: the second sum fills the wait.

A number beside lanes counts for all of them; Python's floats are rounded to float32 first. Arithmetic is
IEEE, no operation is fused or reordered. Outside a kernel none of these functions can be called.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typeconv import Conversion
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import (
    intrinsic,
    lower_builtin,
    lower_cast,
    models,
    register_model,
)

LANES = 32

Lanes = Any
"""32 float32, 32 int32 or 32 truth values: what the functions below take and return."""

_I32, _F32, _I1 = ir.IntType(32), ir.FloatType(), ir.IntType(1)
_ELEMENTS = {"float32": _F32, "int32": _I32, "bool": _I1}


class LanesType(types.Type):  # type: ignore[misc]
    """numba's type of such a variable; ``element`` is a key of ``_ELEMENTS``."""

    def __init__(self, element: str) -> None:
        self.element = element
        super().__init__(f"Lanes({element})")

    def can_convert_from(self, typingctx: Any, other: Any) -> Any:
        if isinstance(other, types.Integer) or (isinstance(other, types.Float) and self.element == "float32"):
            return Conversion.safe
        return None


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: LanesType) -> None:
        super().__init__(manager, kind, ir.VectorType(_ELEMENTS[kind.element], LANES))


FLOATS, INTS, TRUTHS = LanesType("float32"), LanesType("int32"), LanesType("bool")


def _broadcast(builder: Any, value: Any) -> Any:
    one = ir.VectorType(value.type, LANES)
    first = builder.insert_element(ir.Constant(one, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(
        first, ir.Constant(one, ir.Undefined), ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
    )


@lower_cast(types.Number, LanesType)  # type: ignore[untyped-decorator]
def _number_to_lanes(context: Any, builder: Any, source: Any, target: LanesType, value: Any) -> Any:
    scalar = types.float32 if target.element == "float32" else types.int32
    return _broadcast(builder, context.cast(builder, value, source, scalar))


# Operators: what lanes of one kind, or lanes and a number, give.

Emit = Callable[[Any, Any, Any], Any]
"""builder, left, right -> value"""


def _by(method: str, *before: str) -> Emit:
    """The builder's method of that name, with ``before`` ahead of its operands."""
    return lambda builder, left, right: getattr(builder, method)(*before, left, right)


def _operator(symbol: Any, kind: LanesType, result: LanesType, emit: Emit) -> None:
    def generic(self: Any, arguments: Any, keywords: Any) -> Any:
        others = [a for a in arguments if a is not kind]
        if len(arguments) != 2 or len(others) == 2 or (others and not kind.can_convert_from(None, others[0])):
            return None
        return signature(result, kind, kind)

    name = f"{symbol.__name__}_{kind.element}"
    infer_global(symbol)(type(name, (AbstractTemplate,), {"key": symbol, "generic": generic}))
    lower_builtin(symbol, kind, kind)(lambda _context, builder, _signature, pair: emit(builder, *pair))


_operator(operator.add, FLOATS, FLOATS, _by("fadd"))
_operator(operator.sub, FLOATS, FLOATS, _by("fsub"))
_operator(operator.mul, FLOATS, FLOATS, _by("fmul"))
_operator(operator.truediv, FLOATS, FLOATS, _by("fdiv"))
_operator(operator.add, INTS, INTS, _by("add"))
_operator(operator.sub, INTS, INTS, _by("sub"))
_operator(operator.mul, INTS, INTS, _by("mul"))
_operator(operator.lshift, INTS, INTS, _by("shl"))
_operator(operator.rshift, INTS, INTS, _by("lshr"))  # of bits, not of numbers: zeros come in from above
for _kind in (INTS, TRUTHS):
    _operator(operator.and_, _kind, _kind, _by("and_"))
    _operator(operator.or_, _kind, _kind, _by("or_"))
    _operator(operator.xor, _kind, _kind, _by("xor"))
for _symbol, _sign in (
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.ge, ">="),
    (operator.eq, "=="),
    (operator.ne, "!="),
):
    # As in C: of a NaN only != is true.
    _on_floats = "fcmp_unordered" if _sign == "!=" else "fcmp_ordered"
    _operator(_symbol, FLOATS, TRUTHS, _by(_on_floats, _sign))
    _operator(_symbol, INTS, TRUTHS, _by("icmp_signed", _sign))


@infer_global(operator.neg)
class _Negated(AbstractTemplate):  # type: ignore[misc]
    def generic(self, arguments: Any, keywords: Any) -> Any:
        return signature(FLOATS, FLOATS) if arguments == (FLOATS,) else None


@lower_builtin(operator.neg, FLOATS)  # type: ignore[untyped-decorator]
def _negate(context: Any, builder: Any, kind: Any, arguments: Any) -> Any:
    return builder.fneg(arguments[0])


# Functions of lanes.


@intrinsic  # type: ignore[untyped-decorator]
def select(context: Any, truth: Any, yes: Any, no: Any) -> Any:
    """``yes`` in the lanes where ``truth`` holds, ``no`` in the others."""
    kind = yes if isinstance(yes, LanesType) else no
    return kind(TRUTHS, kind, kind), lambda _c, builder, _s, values: builder.select(*values)


@intrinsic  # type: ignore[untyped-decorator]
def any_lane(context: Any, truth: Any) -> Any:
    """Whether ``truth`` holds in any lane."""

    def emit(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        word = builder.bitcast(values[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", word, ir.Constant(word.type, 0))

    return types.boolean(TRUTHS), emit


@intrinsic  # type: ignore[untyped-decorator]
def all_lanes(context: Any, truth: Any) -> Any:
    """Whether ``truth`` holds in every lane."""

    def emit(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        word = builder.bitcast(values[0], ir.IntType(LANES))
        return builder.icmp_unsigned("==", word, ir.Constant(word.type, 2**LANES - 1))

    return types.boolean(TRUTHS), emit


@intrinsic  # type: ignore[untyped-decorator]
def splat(context: Any, value: Any) -> Any:
    """A number in all lanes, as float32."""
    return FLOATS(FLOATS), lambda _c, _b, _s, values: values[0]


@intrinsic  # type: ignore[untyped-decorator]
def splat_int(context: Any, value: Any) -> Any:
    """A whole number in all lanes, as int32."""
    return INTS(INTS), lambda _c, _b, _s, values: values[0]


def _reinterpreted(source: LanesType, target: LanesType) -> Any:
    def emit(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        return builder.bitcast(values[0], context.get_value_type(target))

    return target(source), emit


@intrinsic  # type: ignore[untyped-decorator]
def raw_bits(context: Any, value: Any) -> Any:
    """The bits of float32 lanes, as int32."""
    return _reinterpreted(FLOATS, INTS)


@intrinsic  # type: ignore[untyped-decorator]
def float_lanes(context: Any, bits: Any) -> Any:
    """The float32 lanes that have these bits."""
    return _reinterpreted(INTS, FLOATS)


def _converted(target: LanesType, source: LanesType, method: str) -> Any:
    def emit(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        return getattr(builder, method)(values[0], context.get_value_type(target))

    return target(source), emit


@intrinsic  # type: ignore[untyped-decorator]
def to_float(context: Any, value: Any) -> Any:
    """int32 lanes as numbers in float32."""
    return _converted(FLOATS, INTS, "sitofp")


@intrinsic  # type: ignore[untyped-decorator]
def to_int(context: Any, value: Any) -> Any:
    """float32 lanes cut to int32; what does not fit gives different results on different processors."""
    return _converted(INTS, FLOATS, "fptosi")


@intrinsic  # type: ignore[untyped-decorator]
def int_lanes(context: Any, truth: Any) -> Any:
    """1 where ``truth`` holds, 0 elsewhere."""
    return _converted(INTS, TRUTHS, "zext")


def _llvm_function(name: str) -> Any:
    def emit(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        kind = values[0].type
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind]), f"{name}.v{LANES}f32"
        )
        return builder.call(function, values)

    return FLOATS(FLOATS), emit


@intrinsic  # type: ignore[untyped-decorator]
def root(context: Any, value: Any) -> Any:
    """The square root, correctly rounded."""
    return _llvm_function("llvm.sqrt")


@intrinsic  # type: ignore[untyped-decorator]
def fused(context: Any, left: Any, right: Any, addend: Any) -> Any:
    """``left * right + addend``, rounded once: the same on every processor, fast where it can do that."""

    def emit(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        kind = values[0].type
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fma.v{LANES}f32"
        )
        return builder.call(function, values)

    return FLOATS(FLOATS, FLOATS, FLOATS), emit


@intrinsic  # type: ignore[untyped-decorator]
def absolute(context: Any, value: Any) -> Any:
    """The magnitude: the sign bit cleared."""
    return _llvm_function("llvm.fabs")


# Memory: arrays ``(n, LANES)``, C-contiguous, of float32 or int32.


def _row_pointer(context: Any, builder: Any, kind: Any, array: Any, row: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    start = builder.gep(data, [builder.mul(row, ir.Constant(row.type, LANES))])
    return builder.bitcast(start, ir.VectorType(data.type.pointee, LANES).as_pointer())


def _kind_of(array: Any) -> LanesType:
    return FLOATS if array.dtype == types.float32 else INTS


@intrinsic  # type: ignore[untyped-decorator]
def load(context: Any, array: Any, row: Any) -> Any:
    """``array[row]`` as lanes."""

    def emit(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        return builder.load(_row_pointer(context, builder, sig.args[0], *values), align=4)

    return _kind_of(array)(array, types.intp), emit


@intrinsic  # type: ignore[untyped-decorator]
def store(context: Any, array: Any, row: Any, value: Any) -> Any:
    """``array[row] = value``."""

    def emit(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        builder.store(values[2], _row_pointer(context, builder, sig.args[0], *values[:2]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, _kind_of(array)), emit


# Squares: 16 rows of 16 numbers turned into 16 times 16 lanes, and back. 16 words are one cache line.

SQUARE = 16
_WORDS = ir.VectorType(_I32, SQUARE)


def _turned(builder: Any, lines: list[Any]) -> list[Any]:
    """The transpose of 16 vectors of 16: four rounds that swap halves of pairs, 8 apart, 4, 2 and 1."""
    for step in (8, 4, 2, 1):
        firsts = [k if not k & step else SQUARE + k - step for k in range(SQUARE)]
        seconds = [k + step if not k & step else SQUARE + k for k in range(SQUARE)]
        swapped = list(lines)
        for k in range(SQUARE):
            if not k & step:
                for place, order in ((k, firsts), (k + step, seconds)):
                    mask = ir.Constant(_WORDS, order)
                    swapped[place] = builder.shuffle_vector(lines[k], lines[k + step], mask)
        lines = swapped
    return lines


def _line_pointer(context: Any, builder: Any, kind: Any, array: Any, row: Any, column: Any, to: Any) -> Any:
    view = context.make_array(kind)(context, builder, array)
    width = cgutils.unpack_tuple(builder, view.shape)[1]
    start = builder.gep(view.data, [builder.add(builder.mul(row, width), column)])
    return builder.bitcast(start, to.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def read_square(
    context: Any, source: Any, row: Any, column: Any, last: Any, tile: Any, place: Any, lane: Any
) -> Any:
    """``tile[place + i, lane + k] = source[min(row + k, last), column + i]`` for ``i``, ``k`` below 16.

    ``source`` holds the bits of bfloat16 (uint16) or float32 (uint32), ``tile`` float32.
    """

    def emit(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        source, row, column, last, tile, place, lane = values
        bits = ir.IntType(sig.args[0].dtype.bitwidth)
        lines = []
        for k in range(SQUARE):
            wanted = builder.add(row, row.type(k))
            there = builder.select(builder.icmp_signed("<", wanted, last), wanted, last)
            vector = ir.VectorType(bits, SQUARE)
            pointer = _line_pointer(context, builder, sig.args[0], source, there, column, vector)
            line = builder.load(pointer, align=bits.width // 8)
            if bits.width == 16:
                line = builder.shl(builder.zext(line, _WORDS), ir.Constant(_WORDS, [16] * SQUARE))
            lines.append(line)
        for i, line in enumerate(_turned(builder, lines)):
            to = builder.add(place, place.type(i))
            builder.store(line, _line_pointer(context, builder, sig.args[4], tile, to, lane, _WORDS), align=4)
        return context.get_dummy_value()

    index = types.intp
    return types.void(source, index, index, index, tile, index, index), emit


@intrinsic  # type: ignore[untyped-decorator]
def write_square(
    context: Any, words: Any, place: Any, lane: Any, out: Any, row: Any, offset: Any, last: Any
) -> Any:
    """For ``k`` below 16: ``words[place : place + 16, lane + k]`` as 64 bytes at ``out[row + k, offset]``.

    ``words`` is int32 ``(n, LANES)``, ``out`` uint8 of any alignment. Rows above ``last`` are not written.
    """

    def emit(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        words, place, lane, out, row, offset, last = values
        lines = []
        for i in range(SQUARE):
            at = builder.add(place, place.type(i))
            pointer = _line_pointer(context, builder, sig.args[0], words, at, lane, _WORDS)
            lines.append(builder.load(pointer, align=4))
        for k, line in enumerate(_turned(builder, lines)):
            there = builder.add(row, row.type(k))
            with builder.if_then(builder.icmp_signed("<=", there, last), likely=True):
                pointer = _line_pointer(context, builder, sig.args[3], out, there, offset, _WORDS)
                builder.store(line, pointer, align=1)
        return context.get_dummy_value()

    index = types.intp
    return types.void(words, index, index, out, index, index, index), emit
