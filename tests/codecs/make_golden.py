"""Regenerates tests/codecs/golden.json: hashes of what a llama.cpp build's own encoders write.

    QEXPORT_LLAMA_BIN=/path/to/llama.cpp/build/bin python tests/codecs/make_golden.py

They come from libggml-base of a source build, not from the wheel that qexport uses.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from pathlib import Path

import numpy as np
from codec_strategies import golden_rows

from qexport.codecs.ggml import ABORTS_WITHOUT_IMPORTANCE
from qexport.codecs.ggml_types import GGML_TYPES


def main() -> None:
    library = ctypes.CDLL(str(Path(os.environ["QEXPORT_LLAMA_BIN"]) / "libggml-base.so"))
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    rows, importance = golden_rows()
    golden = {}
    for kind in (each for each in GGML_TYPES.values() if each.name != "NVFP4"):  # see test_encoders.py
        for label, weights in (("plain", None), ("importance", importance.ctypes.data)):
            if weights is None and kind.name in ABORTS_WITHOUT_IMPORTANCE:
                continue
            out = np.empty((len(rows), kind.row_bytes(rows.shape[1])), np.uint8)
            library.ggml_quantize_chunk(
                kind.id, rows.ctypes.data, out.ctypes.data, 0, len(rows), rows.shape[1], weights
            )
            golden[f"{kind.name} {label}"] = hashlib.sha256(out.tobytes()).hexdigest()
    (Path(__file__).parent / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
