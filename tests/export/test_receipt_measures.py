"""Figures that are added to a receipt later: to the right artifact, and kept as long as its bytes are."""

import copy

import pytest

from qexport.export.receipt import add_measure, read_receipt, write_receipt

FIGURE = {"speeds": [1, 2]}


def entry(kind, label, *names, sha256="a" * 64, measures=None):
    files = [{"name": name, "bytes": 3, "sha256": sha256} for name in names]
    return {"kind": kind, "label": label, "files": files, "measures": measures}


def folder(path, *entries):
    for made in entries:
        for file in made["files"]:
            (path / file["name"]).parent.mkdir(parents=True, exist_ok=True)
            (path / file["name"]).write_bytes(b"abc")
    write_receipt(path, entries)
    return path


def measures(path):
    return {made["label"]: made["measures"] for made in read_receipt(path)["artifacts"]}


def test_one_file_of_several(tmp_path):
    folder(tmp_path, entry("gguf", "Q8_0", "a.gguf", measures={"tok_s": 3}), entry("gguf", "Q4_0", "b.gguf"))
    before = [made["label"] for made in read_receipt(tmp_path)["artifacts"]]
    assert add_measure(tmp_path / "a.gguf", "bench", FIGURE) == tmp_path / "qexport.json"
    assert measures(tmp_path) == {"Q8_0": {"tok_s": 3, "bench": FIGURE}, "Q4_0": None}
    assert [made["label"] for made in read_receipt(tmp_path)["artifacts"]] == before


def test_a_folder_with_its_own_receipt_or_one_above(tmp_path):
    own = folder(tmp_path / "own", entry("fp8", "FP8", "model.safetensors", "config.json"))
    assert add_measure(own, "bench", FIGURE) == own / "qexport.json"
    above = folder(tmp_path / "above", entry("mlx", "6bit", "M/a", "M/b/c"), entry("mlx", "4bit", "N/a"))
    assert add_measure(above / "N", "bench", FIGURE) == above / "qexport.json"
    assert measures(above) == {"6bit": None, "4bit": {"bench": FIGURE}}


def test_a_folder_is_not_the_gguf_in_it(tmp_path):
    folder(tmp_path, entry("gguf", "Q8_0", "a.gguf"), entry("imatrix", "imatrix", "i.gguf"))
    assert add_measure(tmp_path, "bench", FIGURE) is None


@pytest.mark.parametrize("change", [lambda p: p.write_bytes(b"other"), lambda p: p.unlink()])
def test_what_a_receipt_does_not_know_is_not_noted(tmp_path, change):
    folder(tmp_path, entry("fp8", "FP8", "model.safetensors"))
    change(tmp_path / "model.safetensors")
    assert add_measure(tmp_path, "bench", FIGURE) is None
    (tmp_path / "else").mkdir()
    assert add_measure(tmp_path / "else", "bench", FIGURE) is None


def test_it_stays_when_the_same_artifact_is_proven_again(tmp_path):
    made = entry("gguf", "Q8_0", "a.gguf", measures={"tok_s": 3})
    folder(tmp_path, made)
    add_measure(tmp_path / "a.gguf", "bench", FIGURE)
    again = copy.deepcopy(made)
    again["measures"] = {"tok_s": 4}
    for _ in range(2):
        write_receipt(tmp_path, [again])
        assert measures(tmp_path) == {"Q8_0": {"tok_s": 4, "bench": FIGURE}}


def test_it_goes_with_the_bytes_it_was_measured_on(tmp_path):
    folder(tmp_path, entry("gguf", "Q8_0", "a.gguf"))
    add_measure(tmp_path / "a.gguf", "bench", FIGURE)
    write_receipt(tmp_path, [entry("gguf", "Q8_0", "a.gguf", sha256="b" * 64)])
    assert measures(tmp_path) == {"Q8_0": None}
