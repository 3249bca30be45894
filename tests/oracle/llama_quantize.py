"""llama-quantize without its program: ``llama_model_quantize`` of a prebuilt libllama, called as it calls it.

    python llama_quantize.py LIBRARY [--imatrix FILE] [--tensor-type NAME=TYPE ...] IN OUT TYPE [THREADS]

The words are llama-quantize's own, of which the tests need these. What that program does beside the call is
done here: means of an importance matrix, and the keys that say which one it was
(https://github.com/ggml-org/llama.cpp/blob/master/tools/quantize/quantize.cpp).
"""

from __future__ import annotations

import argparse
import ctypes
import struct
from pathlib import Path

import gguf
import numpy as np

STRING, INTEGER = 3, 0  # of llama_model_kv_override_type
COPIED = {"F32": "ALL_F32"}


class Value(ctypes.Union):
    _fields_ = (("integer", ctypes.c_int64), ("text", ctypes.c_char * 128))


class Override(ctypes.Structure):
    """A key of the metadata."""

    _fields_ = (("tag", ctypes.c_int), ("key", ctypes.c_char * 128), ("value", Value))


class TensorType(ctypes.Structure):
    _fields_ = (("pattern", ctypes.c_char_p), ("type", ctypes.c_int))


class Importance(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


FLAGS = ["allow_requantize", "quantize_output_tensor", "only_copy", "pure", "keep_split", "dry_run"]


class Parameters(ctypes.Structure):
    """llama_model_quantize_params of include/llama.h."""

    _fields_ = (
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int),
        ("output_tensor_type", ctypes.c_int),
        ("token_embedding_type", ctypes.c_int),
        *((flag, ctypes.c_bool) for flag in FLAGS),
        ("imatrix", ctypes.POINTER(Importance)),
        ("kv_overrides", ctypes.POINTER(Override)),
        ("tt_overrides", ctypes.POINTER(TensorType)),
        ("prune_layers", ctypes.c_void_p),
        ("max_buf_size", ctypes.c_size_t),
        ("_beyond", ctypes.c_byte * 256),  # should a later one have more
    )


def means(path: Path) -> tuple[dict[str, np.ndarray], list[str], int]:
    """Means by tensor, data sets and chunks: of either form, read with gguf-py."""
    data = path.read_bytes()
    if data[:4] != b"GGUF":
        return legacy(data)
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: np.asarray(tensor.data, np.float32) for tensor in reader.tensors}
    found: dict[str, np.ndarray] = {}
    for name, sums in tensors.items():
        if name.endswith(".in_sum2"):
            stem = name.removesuffix(".in_sum2")
            counts = tensors[f"{stem}.counts"].reshape(-1, 1)
            rows = sums.reshape(len(counts), -1)
            ones = np.ones_like(rows)
            found[stem] = np.divide(rows, counts, out=ones, where=counts > 0).reshape(-1)
    fields = reader.fields
    return found, fields["imatrix.datasets"].contents(), fields["imatrix.chunk_count"].contents()


def legacy(data: bytes) -> tuple[dict[str, np.ndarray], list[str], int]:
    """The .dat form."""
    found: dict[str, np.ndarray] = {}
    at = 4
    for _ in range(struct.unpack_from("<i", data)[0]):
        (length,) = struct.unpack_from("<i", data, at)
        name = data[at + 4 : at + 4 + length].decode()
        calls, size = struct.unpack_from("<ii", data, at + 4 + length)
        at += 12 + length
        found[name] = np.frombuffer(data, "<f4", size, at) / np.float32(max(1, calls))
        at += 4 * size
    chunks, length = struct.unpack_from("<ii", data, at)
    return found, [data[at + 8 : at + 8 + length].decode()], chunks


def override(key: str, value: str | int) -> Override:
    if isinstance(value, int):
        return Override(INTEGER, key.encode(), Value(integer=value))
    return Override(STRING, key.encode(), Value(text=value.encode()[:127]))


def file_type(word: str) -> int:
    return int(gguf.LlamaFileType[COPIED.get(word, f"MOSTLY_{word}")])


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("library", type=Path)
    words.add_argument("--imatrix", type=Path)
    words.add_argument("--tensor-type", action="append", default=[])
    words.add_argument("source")
    words.add_argument("out")
    words.add_argument("kind")
    words.add_argument("threads", type=int, nargs="?", default=0)
    said = words.parse_args()
    llama = ctypes.CDLL(str(said.library))
    llama.llama_model_quantize_default_params.restype = Parameters
    llama.llama_model_quantize.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Parameters))
    llama.llama_model_quantize.restype = ctypes.c_uint32
    asked = llama.llama_model_quantize_default_params()
    usual = [getattr(asked, flag) for flag in FLAGS]
    assert usual == [False, True, False, False, False, False], f"another llama_model_quantize_params: {usual}"
    assert asked.ftype == file_type("Q8_0")
    assert asked.output_tensor_type == asked.token_embedding_type
    asked.nthread, asked.ftype = said.threads, file_type(said.kind)
    if said.imatrix is not None:
        found, datasets, chunks = means(said.imatrix)
        print(f"loaded {len(found)} importance matrix entries")
        rows = [
            Importance(name.encode(), values.ctypes.data_as(ctypes.c_void_p), values.size)
            for name, values in found.items()
        ]
        asked.imatrix = (Importance * (len(rows) + 1))(*rows)
        keys = [override("quantize.imatrix.file", str(said.imatrix))]
        keys += [override("quantize.imatrix.dataset", datasets[0])] if datasets else []
        keys.append(override("quantize.imatrix.entries_count", len(found)))
        keys += [override("quantize.imatrix.chunks_count", chunks)] if chunks > 0 else []
        asked.kv_overrides = (Override * (len(keys) + 1))(*keys)
    if said.tensor_type:
        pairs = [word.rsplit("=", 1) for word in said.tensor_type]
        types = [TensorType(n.lower().encode(), int(gguf.GGMLQuantizationType[t.upper()])) for n, t in pairs]
        none = TensorType(None, asked.output_tensor_type)
        asked.tt_overrides = (TensorType * (len(types) + 1))(*types, none)
    llama.llama_backend_init()
    if llama.llama_model_quantize(said.source.encode(), said.out.encode(), ctypes.byref(asked)):
        raise SystemExit(f"llama_model_quantize refuses {said.source}")


if __name__ == "__main__":
    main()
