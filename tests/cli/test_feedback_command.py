"""``--feedback`` as it is typed, and as a recipe spells it: what it needs is said before anything is read."""

from pathlib import Path

import numpy as np
import pytest
from in_process import run

from qexport.container.gguf_file import read_gguf
from qexport.evidence.imatrix_file import ImportanceMatrix, imatrix_bytes
from qexport.recipe.load import load_recipe

NAME = "blk.0.attn_q.weight"


@pytest.fixture
def matrix(tmp_path):
    sums, counts = {NAME: np.ones((1, 256), np.float32)}, {NAME: np.ones(1, np.int64)}
    made = ImportanceMatrix(sums, counts, ("text",), 1, 512, "gguf", "m.gguf_file", "")
    path = tmp_path / "m.gguf_file"
    path.write_bytes(imatrix_bytes(made))
    return path


def test_what_it_needs_is_said(zoo, matrix):
    model = zoo("llama")
    bare = run("gguf", model, "-q", "Q4_K_M", "--feedback", "--dry-run")
    assert bare.code == 2
    assert "error feedback goes with importance" in bare.stderr
    textless = run("gguf", model, "-q", "Q4_K_M", "--feedback", "--imatrix", matrix, "--dry-run")
    assert textless.code == 2
    assert "error feedback needs a text" in textless.stderr
    assert "--feedback-text FILE" in textless.stderr
    assert run("mlx", model, "--mode", "mxfp4", "--feedback", "--dry-run").code == 2
    assert run("nvfp4", model, "--feedback", "--dry-run").code == 2


def test_a_text_beside_a_matrix(zoo, matrix, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("All that glitters is not gold; often have you heard that told. " * 200)
    words = (
        "-q",
        "Q4_K_M",
        "--imatrix",
        matrix,
        "--feedback",
        "--feedback-text",
        text,
        "--calib-chunk",
        "64",
    )
    done = run(
        "gguf", zoo("llama"), *words, "--no-verify", "--measure", "0", "-o", tmp_path / "out", "--json"
    )
    assert done.code == 0, done.stderr
    assert "tokens of text.txt" in done.stderr
    (file,) = (tmp_path / "out").glob("*.gguf")
    assert read_gguf(file).tensors[NAME] == "Q4_K"


def test_a_recipe_names_the_text_beside_itself(tmp_path):
    (tmp_path / "text.txt").write_text("words")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "source:\n  model: ./merged\n  name: X\n"
        "calibration: {imatrix: m.gguf_file, feedback_text: text.txt, feedback_tokens: 4096}\n"
        "artifacts:\n  - gguf: {types: [Q4_K_M], feedback: true}\n"
    )
    found = load_recipe(recipe)
    assert found.calibration is not None
    assert found.calibration.feedback_text == tmp_path / "text.txt"
    assert found.calibration.feedback_tokens == 4096
    assert found.artifacts[0].options.feedback
    assert isinstance(found.calibration.imatrix, Path)
