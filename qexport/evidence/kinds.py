"""What a file given as ``--imatrix`` is, told by its first bytes and not by its name.

An importance matrix is GGUF or the older ``.dat``, whose first two numbers are small and so leave zero bytes
that no text has. Everything else is a corpus, unless its first bytes say that it is something known which
cannot be one: weights, an archive, a table in a binary form.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Literal

from qexport.checkpoint.paths import open_regular
from qexport.errors import InputError

CORPUS_HINT = "A corpus is a text file (UTF-8), or JSON lines with messages, text or input_ids."
_HEAD = 256
# The longest tensor name that ggml knows (GGML_MAX_NAME), and more matrices than any model has.
_MAX_NAME = 64
_MAX_ENTRIES = 1 << 24

_MAGICS = (
    (b"PK\x03\x04", "a zip archive (PyTorch weights or NumPy arrays have this form)", "a text in it"),
    (b"\x1f\x8b", "compressed with gzip", "the uncompressed file"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "the uncompressed file"),
    (b"BZh", "compressed with bzip2", "the uncompressed file"),
    (b"\xfd7zXZ", "compressed with xz", "the uncompressed file"),
    (b"PAR1", "a Parquet table", "the same as JSON lines: datasets.Dataset.to_json(...)"),
    (b"ARROW1", "an Arrow table", "the same as JSON lines: datasets.Dataset.to_json(...)"),
    (b"\x93NUMPY", "a NumPy array", "JSON lines with input_ids"),
    (b"%PDF", "a PDF", "its text"),
    (b"\xff\xfe", "UTF-16", "the same text as UTF-8"),
    (b"\xfe\xff", "UTF-16", "the same text as UTF-8"),
)


def kind_of(path: Path) -> Literal["imatrix", "corpus"]:
    """Whether the file is an importance matrix or something to make one from.

    Raises:
        InputError: it cannot be read.
    """
    head = read_head(path)
    return "imatrix" if head.startswith(b"GGUF") or _is_legacy(head) else "corpus"


def read_head(path: Path) -> bytes:
    """The first bytes of a file. Raises InputError where it cannot be read."""
    if path.is_dir():
        raise InputError(f"{path.name} is a folder, not a corpus", hint=CORPUS_HINT)
    try:
        with os.fdopen(open_regular(path, path.name), "rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", hint=CORPUS_HINT) from None


def refuse_binary(label: str, head: bytes) -> None:
    """Raise InputError where the first bytes belong to something that is no corpus."""
    if head.startswith(b"GGUF") or _is_legacy(head):
        raise InputError(
            f"{label} is a GGUF file or an importance matrix, not a corpus",
            hint="An importance matrix goes to qexport gguf --imatrix. " + CORPUS_HINT,
        )
    # 8 bytes of header length, then JSON: https://github.com/huggingface/safetensors#format
    if head[8:9] == b"{" and 2 <= struct.unpack_from("<Q", head.ljust(8, b"\0"))[0] < 1 << 32:
        raise InputError(f"{label} holds safetensors weights, not a corpus", hint=CORPUS_HINT)
    for magic, what, instead in _MAGICS:
        if head.startswith(magic):
            raise InputError(f"{label} is {what}, not a corpus", hint=f"Give {instead}.")


def _is_legacy(head: bytes) -> bool:
    """Number of entries, length of the first name, the name: as llama.cpp wrote until 2025."""
    if len(head) < 9:
        return False
    entries, length = struct.unpack_from("<ii", head)
    if not (0 < entries < _MAX_ENTRIES and 0 < length < _MAX_NAME):
        return False
    return all(0x20 < byte < 0x7F for byte in head[8 : 8 + length])
