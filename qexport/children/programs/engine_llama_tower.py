"""A vision tower in llama.cpp, for the embeddings that it makes of pictures: xllamacpp's own library, by its
C functions (``libmtmd``: https://github.com/ggml-org/llama.cpp/blob/master/tools/mtmd/mtmd.h).

The wheel has no Python for them. Two structures are passed by value, whose fields change between versions:
both stay as the library fills them, in a block larger than either, but for the warm-up, which costs a picture
of several thousand patches. It is switched off where its neighbours are what they should be.
"""

from __future__ import annotations

import base64
import ctypes
import struct
from typing import Any

import xllamacpp.xllamacpp

EXPLAINS = True
_IMAGE = 1  # MTMD_INPUT_CHUNK_TYPE_IMAGE


class _Block(ctypes.Structure):
    _fields_ = [("raw", ctypes.c_ubyte * 512)]


class Loaded:
    """The file ``request["projector"]`` beside the model that it is for."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.version = str(xllamacpp.__version__)
        self._lib = lib = _library()
        lib.llama_backend_init()
        model = lib.llama_model_load_from_file(request["model"].encode(), lib.llama_model_default_params())
        if not model:
            raise ValueError("llama.cpp does not load the model")
        params = _without_warm_up(lib.mtmd_context_params_default(), lib.mtmd_default_marker())
        self._context = lib.mtmd_init_from_file(request["projector"].encode(), model, params)
        if not self._context:
            raise ValueError("llama.cpp does not take the vision tower's file for this model")
        self._width = lib.llama_model_n_embd_inp(model)
        self.facts = {"sees": True}

    def embed(self, picture: dict[str, Any]) -> dict[str, Any]:
        """A row for each token, float32."""
        lib, pixels = self._lib, base64.b64decode(picture["rgb"])
        bitmap = ctypes.c_void_p(lib.mtmd_bitmap_init(picture["width"], picture["height"], pixels))
        chunks = ctypes.c_void_p(lib.mtmd_input_chunks_init())
        marker = lib.mtmd_default_marker()
        text = _Block.from_buffer_copy(struct.pack("<QBB", marker, 0, 1).ljust(512, b"\0"))
        try:
            if lib.mtmd_tokenize(self._context, chunks, ctypes.byref(text), ctypes.byref(bitmap), 1):
                raise ValueError("llama.cpp does not take the picture")
            each = [lib.mtmd_input_chunks_get(chunks, at) for at in range(lib.mtmd_input_chunks_size(chunks))]
            (seen,) = (chunk for chunk in each if lib.mtmd_input_chunk_get_type(chunk) == _IMAGE)
            if lib.mtmd_encode_chunk(self._context, seen):
                raise ValueError("llama.cpp does not encode the picture")
            tokens = lib.mtmd_input_chunk_get_n_tokens(seen)
            rows = ctypes.string_at(lib.mtmd_get_output_embd(self._context), 4 * tokens * self._width)
        finally:
            lib.mtmd_input_chunks_free(chunks)
            lib.mtmd_bitmap_free(bitmap)
        return {"tokens": tokens, "rows": base64.b64encode(rows).decode()}


def _library() -> Any:
    """The functions with their types; ImportError where a build keeps them to itself."""
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    types: dict[str, tuple[Any, list[Any]]] = {
        "llama_backend_init": (None, []),
        "llama_model_default_params": (_Block, []),
        "llama_model_load_from_file": (pointer, [ctypes.c_char_p, _Block]),
        "llama_model_n_embd_inp": (ctypes.c_int32, [pointer]),
        "mtmd_default_marker": (pointer, []),
        "mtmd_context_params_default": (_Block, []),
        "mtmd_init_from_file": (pointer, [ctypes.c_char_p, pointer, _Block]),
        "mtmd_bitmap_init": (pointer, [ctypes.c_uint32, ctypes.c_uint32, ctypes.c_char_p]),
        "mtmd_bitmap_free": (None, [pointer]),
        "mtmd_input_chunks_init": (pointer, []),
        "mtmd_input_chunks_size": (size, [pointer]),
        "mtmd_input_chunks_get": (pointer, [pointer, size]),
        "mtmd_input_chunks_free": (None, [pointer]),
        "mtmd_input_chunk_get_type": (ctypes.c_int, [pointer]),
        "mtmd_input_chunk_get_n_tokens": (size, [pointer]),
        "mtmd_tokenize": (ctypes.c_int32, [pointer, pointer, pointer, pointer, size]),
        "mtmd_encode_chunk": (ctypes.c_int32, [pointer, pointer]),
        "mtmd_get_output_embd": (pointer, [pointer]),
    }
    lib = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    for name, (returns, takes) in types.items():
        try:
            function = getattr(lib, name)
        except AttributeError as error:
            raise ImportError(f"this build of xllamacpp does not export {name}") from error
        function.restype, function.argtypes = returns, takes
    return lib


def _without_warm_up(params: _Block, marker: int) -> _Block:
    """After the marker: flash_attn_type (-1), warmup (true), image_min_tokens, image_max_tokens (-1 both)."""
    raw = bytearray(params.raw)
    at = raw.find(struct.pack("<Q", marker))
    if at > 0 and struct.unpack_from("<iBxxxii", raw, at + 8) == (-1, 1, -1, -1):
        raw[at + 12] = 0
    return _Block.from_buffer_copy(raw)
