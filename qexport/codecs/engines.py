"""Who makes the bytes of a stored type: engines, and how many rows each takes at a time.

The plan names the type, the run chooses the engine: the first of those it is given that knows the type. All
engines write the same bytes; what they differ in is speed and what has to be installed. Ours is numba (floats
go through torch), and knows all types but ggml's below IQ4; ggml's encoders make those, and are the oracle of
the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from qexport.codecs.contract import (
    Blocks,
    Float,
    Fp8Matrix,
    Fp8Rows,
    Fp8Tiles,
    Known,
    Matrices,
    MlxAffine,
    MlxFloat,
    Moved,
    Nvfp4,
    Nvfp4Blocks,
    Packed,
    StoredType,
)
from qexport.codecs.native import KERNELS
from qexport.errors import InputError, UsageProblem

if TYPE_CHECKING:
    import numpy as np
    import torch


Encode = Callable[[Any, "torch.Tensor", Known], Packed]


@dataclass(frozen=True)
class Engine:
    """An engine.

    Attributes:
        name: for messages and benchmarks.
        encoder: the function that makes a type's bytes, as the contract has it; ``None`` where it has none.
        run_values: values of one run of rows: 4 MB of bfloat16 fill a core's caches and no more.
    """

    name: str
    encoder: Callable[[StoredType], Encode | None]
    run_values: int = 1 << 21


# Modules bring numba or torch with them, so each is imported when a type is first asked for.
_OURS: Mapping[type[StoredType], str] = {
    Float: "floats.encode",
    Blocks: "native.encode",
    Moved: "floats.move",
    MlxAffine: "mlx_encoders.encode_affine",
    MlxFloat: "mlx_encoders.encode_float",
    Fp8Tiles: "fp8_block.encode",
    Fp8Rows: "fp8_block.encode_rows",
    Fp8Matrix: "fp8_tensor.encode",
    Nvfp4: "nvfp4.encode",
    Nvfp4Blocks: "nvfp4_blocks.encode",
}
_WITH_FEEDBACK: Mapping[type[StoredType], str] = {
    Blocks: "feedback_k.encode",
    MlxAffine: "feedback_mlx.encode",
    Nvfp4: "feedback_nvfp4.encode",
    Nvfp4Blocks: "nvfp4_blocks.encode",
}


def _ours(stored: StoredType) -> Encode | None:
    if type(stored) not in _OURS or (isinstance(stored, Blocks) and stored.name not in KERNELS):
        return None
    return _encode if type(stored) in _WITH_FEEDBACK else _at(_OURS[type(stored)])


def _encode(stored: StoredType, rows: torch.Tensor, known: Known) -> Packed:
    table = _OURS if known.feedback is None else _WITH_FEEDBACK
    return _at(table[type(stored)])(stored, rows, known)


def _ggmls(stored: StoredType) -> Encode | None:
    return _at("ggml.encode") if isinstance(stored, Blocks) else None


def _at(place: str) -> Encode:
    module, function = place.split(".")
    found: Encode = getattr(import_module(f"qexport.codecs.{module}"), function)
    return found


NUMBA = Engine("numba", _ours)
GGML = Engine("ggml", _ggmls)
ENGINES = (NUMBA, GGML)


def engine_of(stored: StoredType, engines: Sequence[Engine] = ENGINES) -> tuple[Engine, Encode]:
    """The first of ``engines`` that knows the type, and its function. Raises UsageProblem: none does."""
    for engine in engines:
        encode = engine.encoder(stored)
        if encode is not None:
            return engine, encode
    raise UsageProblem(f"none of {', '.join(engine.name for engine in engines)} can encode {stored.name}")


def encode_rows(
    stored: StoredType,
    rows: torch.Tensor,
    first_row: int = 0,
    known: Matrices | None = None,
    engines: Sequence[Engine] = ENGINES,
) -> list[tuple[np.ndarray, ...]]:
    """The streams of ``rows``, one tuple for each matrix that has some of them.

    Args:
        rows: ``(n, columns)`` in bfloat16, float16 or float32.
        first_row: the index of its first row in the tensor.
        known: of the tensor; nothing by default.

    Raises:
        InputError: there are values that the type cannot store.
    """
    _, encode = engine_of(stored, engines)
    made = [
        encode(stored, rows[start:stop], part)
        for part, start, stop in (known or Matrices()).parts(first_row, len(rows))
    ]
    if any(packed.bad for packed in made):
        raise InputError(
            f"rows {first_row} to {first_row + len(rows) - 1} hold values that {stored.name} cannot store: "
            f"{stored.unstorable}",
            hint="check the checkpoint for damaged weights, or store this tensor as BF16",
        )
    return [packed.streams for packed in made]
