"""Every type, with and without importance: the bytes of llama-quantize itself, run on the same BF16 file."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from codec_strategies import make_rows
from encoding import make_encoder
from oracle import toolchain

from qexport.codecs.ggml_types import GGML_TYPES
from qexport.evidence.imatrix_file import read_imatrix
from qexport.formats.gguf.mixture import requires_importance

pytestmark = toolchain.needs_quantizer
# NVFP4's scale of a whole matrix is in a tensor of its own, which llama-quantize does not write.
TYPES = [name for name in GGML_TYPES if name not in ("F32", "BF16", "NVFP4")]
SHAPES = {"ffn_up": (5, 512), "ffn_gate_exps": (3, 4, 512)}
EXPERTS = 3


def tensor_names() -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        f"blk.{layer}.{part}.weight": (type_name, shape)
        for layer, type_name in enumerate(TYPES)
        for part, shape in SHAPES.items()
    }


def weights(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    rows = make_rows("heavy", hash_of(name), int(np.prod(shape[:-1])), shape[-1])
    return torch.from_numpy(rows).to(torch.bfloat16)


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode()[-12:], "little") % 2**31


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(len(TYPES))
    writer.add_context_length(512)
    writer.add_embedding_length(512)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(64)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(2)
    for name, (_, shape) in tensor_names().items():
        stored = weights(name, shape).view(torch.uint8).numpy().reshape(*shape[:-1], 2 * shape[-1])
        writer.add_tensor(name, stored, raw_dtype=gguf.GGMLQuantizationType.BF16)
    finish(writer)
    return path


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_imatrix(path: Path, form: str) -> None:
    """As llama-imatrix writes it: the first expert of a stack saw no token; one tensor has no entry."""
    sums = {
        name: np.square(make_rows("heavy", 9 + i, shape[0] if len(shape) == 3 else 1, 512)) * 700
        for i, (name, (_, shape)) in enumerate(tensor_names().items())
        if i != 4
    }
    if form == "legacy":
        with path.open("wb") as file:
            file.write(struct.pack("<i", len(sums)))
            for name, values in sums.items():
                file.write(struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 7, values.size))
                file.write(values.astype("<f4").tobytes())
            file.write(struct.pack("<ii", 7, 4) + b"text")
        return
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["text"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, values in sums.items():
        counts = np.arange(1, len(values) + 1, dtype=np.float32)[:, None] * 213
        if len(values) > 1:
            counts[0] = 0
        writer.add_tensor(f"{name}.in_sum2", values)
        writer.add_tensor(f"{name}.counts", counts)
    finish(writer)


@pytest.mark.parametrize("form", ["none", "gguf", "legacy"])
def test_bytes(form: str, model: Path, tmp_path: Path) -> None:
    arguments = toolchain.quantizer()
    matrix = None
    if form != "none":
        write_imatrix(tmp_path / "imatrix", form)
        matrix = read_imatrix(tmp_path / "imatrix")
        assert matrix.form == form
        arguments += ["--imatrix", str(tmp_path / "imatrix")]
    for layer, type_name in enumerate(TYPES):
        if form == "none" and requires_importance("", type_name, "Q8_0"):
            continue
        arguments += ["--tensor-type", rf"blk\.{layer}\.={type_name.lower()}"]
    done = subprocess.run(
        [*arguments, str(model), str(tmp_path / "out.gguf"), "Q8_0", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    for name, (type_name, shape) in tensor_names().items():
        matrices = shape[0] if len(shape) == 3 else 1
        if form == "none" and requires_importance("", type_name, "Q8_0"):
            continue
        importance = None
        if matrix is not None and name in matrix.entries:
            importance = matrix.rows_for(name, matrices, shape[-1])
        packed = make_encoder(type_name, importance, shape[-2]).encode(weights(name, shape), 0)
        assert theirs[name].tensor_type.name == type_name
        assert packed.tobytes() == theirs[name].data.tobytes(), (name, type_name)
