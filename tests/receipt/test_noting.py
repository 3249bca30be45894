"""Figures that are added to a receipt later: to the right artifact, and kept as long as its bytes are."""

from dataclasses import replace

import pytest
from receipts_made import BENCH, PASSED, artifact, fill

from qexport.receipt.store import note_bench, read_receipt, write_receipt


def folder(path, *artifacts):
    write_receipt(fill(path, *artifacts), artifacts, pytest.fail)
    return path


def benches(path):
    return {made.label: made.bench for made in read_receipt(path).receipt.artifacts}


def test_one_file_of_several(tmp_path):
    folder(
        tmp_path, artifact("gguf", "Q8_0", "a.gguf", verification=PASSED), artifact("gguf", "Q4_0", "b.gguf")
    )
    assert note_bench(tmp_path / "a.gguf", BENCH) == tmp_path / "qexport.json"
    assert benches(tmp_path) == {"Q8_0": BENCH, "Q4_0": None}
    assert list(benches(tmp_path)) == ["Q8_0", "Q4_0"]
    assert read_receipt(tmp_path).receipt.artifacts[0].measures == PASSED.measures


def test_a_folder_with_its_own_receipt_or_one_above(tmp_path):
    own = folder(tmp_path / "own", artifact("fp8", "FP8", "model.safetensors", "config.json"))
    assert note_bench(own, BENCH) == own / "qexport.json"
    above = folder(
        tmp_path / "above", artifact("mlx", "6bit", "M/a", "M/b/c"), artifact("mlx", "4bit", "N/a")
    )
    assert note_bench(above / "N", BENCH) == above / "qexport.json"
    assert benches(above) == {"6bit": None, "4bit": BENCH}


def test_a_folder_is_not_the_gguf_in_it(tmp_path):
    folder(tmp_path, artifact("gguf", "Q8_0", "a.gguf"), artifact("imatrix", "imatrix", "i.gguf"))
    assert note_bench(tmp_path, BENCH) is None


@pytest.mark.parametrize("change", [lambda p: p.write_bytes(b"other"), lambda p: p.unlink()])
def test_what_a_receipt_does_not_know_is_not_noted(tmp_path, change):
    folder(tmp_path, artifact("fp8", "FP8", "model.safetensors"))
    change(tmp_path / "model.safetensors")
    assert note_bench(tmp_path, BENCH) is None
    (tmp_path / "else").mkdir()
    assert note_bench(tmp_path / "else", BENCH) is None


def test_it_stays_when_the_same_artifact_is_proven_again(tmp_path):
    made = artifact("gguf", "Q8_0", "a.gguf")
    folder(tmp_path, made)
    note_bench(tmp_path / "a.gguf", BENCH)
    for _ in range(2):
        write_receipt(tmp_path, [replace(made, verification=PASSED)], pytest.fail)
        assert benches(tmp_path) == {"Q8_0": BENCH}


def test_it_goes_with_the_bytes_it_was_measured_on(tmp_path):
    folder(tmp_path, artifact("gguf", "Q8_0", "a.gguf"))
    note_bench(tmp_path / "a.gguf", BENCH)
    write_receipt(tmp_path, [artifact("gguf", "Q8_0", "a.gguf", sha256="b" * 64)], pytest.fail)
    assert benches(tmp_path) == {"Q8_0": None}
