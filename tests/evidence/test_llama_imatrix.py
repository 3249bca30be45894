"""Plain text reaches the model as llama.cpp's own llama-imatrix gives it, token by token.

What enters the first layer's query matrix is the normalized embedding of each token, so the tool's sums for
that matrix are a fingerprint of the tokens it ran: they are computed here from our chunks and compared.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
import zoo_tokenizers
from gguf.quants import dequantize
from oracle import toolchain
from zoo import ZOO
from zoo_types import Zoo

from qexport.evidence.corpus import read_corpus
from qexport.evidence.imatrix_file import read_imatrix
from qexport.evidence.tokens import tokenize

pytestmark = [pytest.mark.slow, *toolchain.needs_imatrix]
SIZE = 64
# Special tokens as text, a diaeresis, blanks; first, so that it is not in the part that is dropped.
ODD = "\nIt said <s> and </s> and <|im_start|>user and <|eot_id|> and <bos>, naïve  as   it was.\n"
QUERY = "blk.0.attn_q.weight"


@pytest.mark.parametrize("name", ["llama", "llama3", "qwen2", "gemma3", "smollm"])
def test_same_tokens_as_llama_imatrix(zoo: Zoo, tmp_path: Path, name: str) -> None:
    folder = zoo(name)
    model = toolchain.convert(folder, tmp_path / "model.gguf", "f32", pre=ZOO[name].pre)
    text = tmp_path / "text.txt"
    text.write_text(ODD + zoo_tokenizers.TEXT, encoding="utf-8")
    command = [str(toolchain.tool("llama-imatrix")), "-m", str(model), "-f", str(text), "-o", "out.gguf"]
    # Flash attention and GPU layers make no difference to the first layer's input; threads neither.
    run = subprocess.run(
        [*command, "-c", str(SIZE), "-t", "2", "--no-ppl"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    theirs = read_imatrix(tmp_path / "out.gguf")

    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".safetensors"}
    chunks = tokenize(read_corpus(text), files, chunk=SIZE)
    assert theirs.chunk_count == len(chunks.ids) > 5
    assert theirs.counts[QUERY].tolist() == [chunks.tokens]
    expected = (first_inputs(model, chunks.ids) ** 2).mean(axis=0)
    np.testing.assert_allclose(theirs.entries[QUERY][0], expected, rtol=1e-4)


def first_inputs(model: Path, ids: np.ndarray) -> np.ndarray:
    """Inputs of the first layer's attention, ``(tokens, hidden)``."""
    reader = gguf.GGUFReader(model)
    tensors = {t.name: dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors[:]}
    arch = reader.fields["general.architecture"].contents()
    epsilon = reader.fields[f"{arch}.attention.layer_norm_rms_epsilon"].contents()
    x = tensors["token_embd.weight"][ids.ravel()]
    if arch == "gemma3":
        x *= np.sqrt(x.shape[1])
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + epsilon) * tensors["blk.0.attn_norm.weight"]
