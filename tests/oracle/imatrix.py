"""A made-up importance matrix in the form llama-imatrix writes, the same bytes on every machine.

It has the irregularities of real ones: the MTP block and one attention matrix have no entry, a few columns
were never active, and in mixtures of experts every expert has its own count, one of them zero. `full` gives
every matrix its entry, because the lowest types refuse to start without.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path

import gguf
import numpy as np

MISSING = "blk.0.attn_output.weight"
"""Left out where it exists (plain families); hybrids miss their MTP block instead."""
COLD = ("blk.1.ffn_", 1)
"""In expert tensors whose name starts so, the expert that saw no token."""
NEVER = ("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "ssm_conv1d.weight")

Entries = dict[str, tuple[np.ndarray, np.ndarray]]


def entries(
    tensors: Iterable[str], seed: int = 7, full: bool = False
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """name -> (in_sum2 [n_mat, row], counts [n_mat, 1]) for the weights among a golden's tensor lines."""
    lines = [line.split(" ") for line in tensors]
    blocks = {name.split(".")[1] for name, *_ in lines if ".nextn." in name}
    out: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, _, shape, _ in lines:
        dims = [int(n) for n in shape.split("x")]
        if not name.startswith("blk.") or not name.endswith(".weight") or len(dims) < 2:
            continue
        if name.endswith(NEVER) or (not full and (name.split(".")[1] in blocks or name == MISSING)):
            continue
        row, matrices = dims[0], dims[2] if len(dims) > 2 else 1
        words = np.random.PCG64([seed, zlib.crc32(name.encode())]).random_raw(row * matrices)
        counts = np.full((matrices, 1), 2048.0, dtype=np.float32)
        if matrices > 1:
            counts[:, 0] = [128.0 * (1 + n % 5) for n in range(matrices)]
            if name.startswith(COLD[0]):
                counts[COLD[1]] = 0.0
        # A wide range of activity, by powers of two, so that the importance matters.
        mantissa = ((words >> np.uint64(40)) & np.uint64(0xFFFF)).astype(np.float64) / 65536.0 + 1.0
        exponent = ((words >> np.uint64(16)) & np.uint64(7)).astype(np.int64)
        values = np.ldexp(mantissa, exponent - 6).astype(np.float32).reshape(matrices, row)
        values[(words & np.uint64(63)).reshape(matrices, row) == 0] = 0.0
        out[name] = ((values * counts).astype(np.float32), counts)
    return out


def write(path: Path, tensors: Iterable[str], seed: int = 7, full: bool = False) -> Path:
    """Write the matrix for the weights among `tensors` (lines of a golden) to `path`."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.kv_data[0].pop("general.architecture")  # llama-imatrix writes none
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["zoo.txt"])
    writer.add_uint32("imatrix.chunk_count", 4)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, (sums, counts) in sorted(entries(tensors, seed, full).items()):
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
