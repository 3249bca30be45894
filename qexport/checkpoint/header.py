"""The header of a safetensors file: from untrusted bytes to checked tensors.

A file is an 8-byte little-endian length ``n``, ``n`` bytes of JSON, then the tensors' bytes. The JSON maps
each name to ``{"dtype", "shape", "data_offsets"}``, offsets counted from the end of the header, and may hold
string metadata under ``__metadata__``. The data must be covered exactly: no gap, no overlap, no byte left.
https://huggingface.co/docs/safetensors/index#format

The JSON is read as the official reader's serde_json reads it, into sizes of type usize: no number is negative
(``-0`` included), fractional or beyond 64 bits, no NaN, no half of a surrogate pair.

The official reader is the judge: whatever it refuses is refused here, each with a sentence of its own
(https://github.com/huggingface/safetensors/blob/main/safetensors/src/tensor.rs, ``read_metadata`` and
``validate``). Stricter in three points where it guesses: a name given twice (it keeps the last), a field it
does not know, and a tensor written as a JSON list.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from qexport.checkpoint.config import LFS_HINT, LFS_POINTER, is_text
from qexport.checkpoint.paths import open_regular, reading
from qexport.checkpoint.tensors import DTYPE_BYTES, StoredTensor
from qexport.errors import InputError

# The official reader's bound; it keeps a corrupt length from becoming an allocation.
MAX_HEADER_BYTES = 100_000_000
_FIELDS = {"dtype", "shape", "data_offsets"}
_MAX_SIZE = 2**64 - 1
_AGAIN = "Get the file again: the download or the copy is incomplete or damaged."


def header_length(data: bytes, *, file: str, file_size: int) -> int:
    """Bytes of length field and JSON together, from the first 8 (23 tell an LFS pointer) bytes of a file.

    Raises InputError where the file is too short, a Git LFS pointer, or its length field cannot be right.
    """
    if data.startswith(LFS_POINTER):
        raise InputError(f"{file} is a Git LFS pointer, not the weights.", hint=LFS_HINT)
    if file_size < 8 or len(data) < 8:
        raise InputError(f"{file} has {file_size} bytes: too short for a safetensors file.", hint=_AGAIN)
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        message = f"{file} is not a safetensors file: its header would take {length} bytes."
        raise InputError(message, hint=_AGAIN)
    if 8 + length > file_size:
        raise InputError(
            f"{file} is cut short inside its header: it has {file_size} bytes, the header alone ends at "
            f"{8 + length} ({8 + length - file_size} missing).",
            hint=_AGAIN,
        )
    return 8 + length


def parse_header(data: bytes, *, file: str, file_size: int) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of one file in order of their offsets, and the file's metadata.

    Args:
        data: the beginning of the file: at least the length field and the JSON after it.
        file: the file's name inside its checkpoint; it becomes ``StoredTensor.file``.
        file_size: size of the whole file in bytes, against which every byte range is checked.

    Returns:
        Tensors by name, with ``start`` and ``stop`` counted from the beginning of the file, and metadata.

    Raises:
        InputError: the file is cut short, is too long, or its header is not a valid safetensors header.
    """
    begin = header_length(data, file=file, file_size=file_size)
    if len(data) < begin:
        raise ValueError(f"{file}: {len(data)} bytes given, the header takes {begin}")
    try:
        header = _load_object(data[8:begin])
    except ValueError as error:
        raise _bad(file, str(error)) from error
    metadata = _metadata(header.pop("__metadata__", None), file)
    tensors = [_tensor(name, entry, file, begin) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop, tensor.name))
    at = begin
    for tensor in tensors:
        if tensor.start != at:
            what = "leaves a gap" if tensor.start > at else "overlaps the tensor before it"
            raise _bad(file, f"tensor {tensor.name!r} starts at byte {tensor.start} and {what} ({at})")
        at = tensor.stop
    if at > file_size:
        message = (
            f"{file} is cut short: it has {file_size} bytes of the {at} that its header announces "
            f"({at - file_size} missing)."
        )
        raise InputError(message, hint=_AGAIN)
    if at < file_size:
        raise _bad(file, f"{file_size - at} bytes after the last tensor belong to none")
    return {tensor.name: tensor for tensor in tensors}, metadata


def read_header(path: Path, *, file: str | None = None) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """:func:`parse_header` of a file on disk, which is called ``file``; only the header is read."""
    name = file or path.name
    with reading(name), os.fdopen(open_regular(path, name), "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        head = stream.read(64)
        rest = header_length(head, file=name, file_size=size) - len(head)
        if rest > 0:
            head += stream.read(rest)
    return parse_header(head, file=name, file_size=size)


def _metadata(value: object, file: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _bad(file, "its __metadata__ is not an object")
    for key, text in value.items():
        if not isinstance(text, str) or not is_text(text):
            raise _bad(file, f"its __metadata__ holds something other than text under {key!r}")
    return value


def _tensor(name: str, entry: object, file: str, begin: int) -> StoredTensor:
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise _bad(file, f"tensor {name!r} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        hint = f"Known dtypes: {', '.join(DTYPE_BYTES)}. Export from the bf16 source of this checkpoint."
        raise InputError(f"{file}: tensor {name!r} has the unknown dtype {dtype!a:.40}.", hint=hint)
    if not _naturals(shape):
        raise _bad(file, f"tensor {name!r} has a shape that is not a list of sizes")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _bad(file, f"tensor {name!r} has data_offsets that are not [begin, end]")
    numel = 1
    for size in shape:  # as the official reader multiplies: an overflow on the way counts
        numel *= size
        if numel > _MAX_SIZE:
            raise _bad(file, f"tensor {name!r} has a shape whose size overflows 64 bits")
    start, stop = offsets
    nbytes = numel * DTYPE_BYTES[dtype]
    if stop - start != nbytes:
        what = f"takes {nbytes} bytes as {dtype} but has {stop - start}"
        raise _bad(file, f"tensor {name!r} of shape {shape!s:.80} {what}")
    return StoredTensor(name, dtype, tuple(shape), file, begin + start, begin + stop)


def _naturals(value: object) -> bool:
    # bool is an int in Python; type() keeps `true` out.
    return isinstance(value, list) and all(type(item) is int for item in value)


def _bad(file: str, what: str) -> InputError:
    return InputError(f"{file} is not a valid safetensors file: {what}.", hint=_AGAIN)


def _load_object(text: bytes) -> dict[str, Any]:
    """The JSON object in ``text``, in which every number is an ``int`` from 0 to 2**64 - 1.

    Raises:
        ValueError: anything else, as a clause that continues a sentence about the file.
    """
    try:
        loaded = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_natural,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except UnicodeDecodeError as error:
        raise ValueError("its header is not UTF-8") from error
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"its header is not JSON ({error.msg} at character {error.pos})") from error
    if not isinstance(loaded, dict):
        raise ValueError("its header is not a JSON object")
    return loaded


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if not is_text(key):
            raise ValueError(f"its header has a name that is not valid text: {key!a}")
        if key in result:
            raise ValueError(f"its header has {key!r} twice")
        result[key] = value
    return result


def _natural(text: str) -> int:
    # Length first: Python takes quadratic time for long numbers. "-0" is a float to the official reader.
    if text.startswith("-") or len(text) > 20 or int(text) > _MAX_SIZE:
        raise ValueError(f"its header has a size that is negative or beyond 64 bits: {text[:24]}")
    return int(text)


def _refuse_number(text: str) -> int:
    raise ValueError(f"its header has a size that is not a whole number: {text[:24]}")
