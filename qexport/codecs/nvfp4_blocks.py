"""NVFP4 as ggml stores it: the codes and scales of :mod:`qexport.codecs.nvfp4`, in blocks of 64 values.

A block has the E4M3 scales of its four runs of 16 (their sign bit is never set), then 8 bytes for each run:
byte ``i`` holds code ``i`` in its low four bits and code ``i + 8`` above it. In a folder a byte holds two
neighbours. The scale of the whole matrix is a tensor beside the weight, ``blk.0.ffn_up.scale``, one number or
one for each expert, by which llama.cpp multiplies what the matrix gives. So nothing is rounded again.

https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h (block_nvfp4), conversion/base.py
(``_nvfp4_pack``). ggml's own quantizer knows no scale of the matrix; with one, scales use all of E4M3.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from qexport.codecs.contract import Known, Nvfp4Blocks, Packed

if TYPE_CHECKING:
    import torch


BLOCK, _RUN, _BYTES = 64, 16, 36


def encode(stored: Nvfp4Blocks, rows: torch.Tensor, known: Known) -> Packed:
    """Blocks, and with the first rows the global scale; with error feedback where that is known."""
    kernel = "nvfp4" if known.feedback is None else "feedback_nvfp4"
    made: Packed = import_module(f"qexport.codecs.{kernel}").encode(stored, rows, known)
    codes, scales, shared = made.streams
    return Packed((blocks_of(codes, scales), shared), made.bad)


def blocks_of(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """uint8 ``(n, columns / 2)`` codes and ``(n, columns / 16)`` scales as ``(n, columns / 64 * 36)``."""
    n, runs = scales.shape
    pairs = codes.reshape(n, runs, 8)
    even, odd = pairs & 15, pairs >> 4
    moved = np.empty((n, runs, 8), np.uint8)
    moved[..., 0::2] = even[..., :4] | even[..., 4:] << 4
    moved[..., 1::2] = odd[..., :4] | odd[..., 4:] << 4
    blocks = np.empty((n, runs * _RUN // BLOCK, _BYTES), np.uint8)
    blocks[..., :4] = scales.reshape(n, -1, 4) & 0x7F
    blocks[..., 4:] = moved.reshape(n, -1, 32)
    return blocks.reshape(n, -1)
