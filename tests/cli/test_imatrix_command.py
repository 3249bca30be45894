"""`qexport imatrix` and `qexport gguf --imatrix` as a user meets them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from document_types import misfits
from in_process import names, ok, run
from safetensors.torch import load_file, save_file

from qexport.cli._documents import ImatrixDocument
from qexport.codecs import ggml
from qexport.errors import EnvironmentProblem
from qexport.evidence.corpus import builtin_corpus
from qexport.evidence.imatrix_file import read_imatrix

SMALL = ("--calib-tokens", 64, "--calib-chunk", 32)
TEXT = "The quick brown fox jumps over the lazy dog, and 12 others watch it. " * 40


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "mine.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def receipt(folder: Path) -> dict[str, dict[str, Any]]:
    """Artifacts by the name of their first file."""
    text = (folder / "qexport.json").read_text()
    assert str(folder) not in text
    return {a["files"][0]["name"]: a for a in json.loads(text)["artifacts"]}


# --- qexport imatrix -------------------------------------------------------------------------------------


def test_sensitivities_beside_it(zoo: Any, out: Path, corpus: Path) -> None:
    """As many bytes as planned; a matrix with them is another one to whoever runs again; merging adds."""
    target = out / "m.gguf_file"
    words = ("imatrix", zoo("qwen3_5"), "--corpus", corpus, "-o", target, *SMALL)
    planned = json.loads(ok(*words, "--sensitivity", "--dry-run", "--json").stdout)
    assert json.loads(ok(*words, "--dry-run", "--json").stdout)["bytes"] < planned["bytes"]
    ok(*words, "--sensitivity", "--sensitivity-tokens", 32)
    assert target.stat().st_size == planned["bytes"]
    found = read_imatrix(target).sensitivity
    assert found is not None
    assert (found.tokens, found.draft_tokens) == (32, 31)
    details = receipt(out)["m.gguf_file"]["details"]
    assert details["sensitivity_tokens"] == 32
    assert found.texts == (f"{details['tokens_sha256']} seed 0",)
    both = out / "both.gguf_file"
    ok(*words[:4], "-o", both, *SMALL, "--merge", target)
    merged = read_imatrix(both)
    assert merged.sensitivity is not None
    assert merged.sensitivity.tokens == 32
    assert merged.counts["blk.0.ffn_up.weight"].tolist() == [128]


def test_gguf_collects_them_too(zoo: Any, out: Path, corpus: Path) -> None:
    """The file's bytes are the same with and without: sensitivities weigh no encoder."""
    words = ("gguf", zoo("smollm"), "-q", "Q4_K_M", "--imatrix", corpus, *SMALL, "--no-verify")
    ok(*words, "-o", out / "plain")
    ok(*words, "-o", out / "both", "--sensitivity", "--sensitivity-tokens", 32)
    (plain, felt) = (
        next(path for path in (out / folder).iterdir() if path.name.endswith("-imatrix.gguf_file"))
        for folder in ("plain", "both")
    )
    assert read_imatrix(plain).sensitivity is None
    assert read_imatrix(felt).sensitivity is not None
    one, two = (gguf.GGUFReader(next((out / f).glob("*-Q4_K_M.gguf"))) for f in ("plain", "both"))
    for left, right in zip(one.tensors, two.tensors, strict=True):
        assert left.name == right.name
        assert np.array_equal(left.data, right.data)
    again = ok(*words, "-o", out / "both", "--sensitivity", "--sensitivity-tokens", 32)
    assert "collected in" not in again.stderr


def test_a_matrix_and_its_receipt(zoo: Any, out: Path) -> None:
    target = out / "m.gguf"
    ran = ok("imatrix", zoo("qwen3_5"), "-o", target, *SMALL, "--calib-seed", 3)
    assert names(out) == {"m.gguf", "qexport.json"}
    matrix = read_imatrix(target)
    assert (matrix.chunk_count, matrix.chunk_size) == (2, 32)
    assert "blk.4.nextn.eh_proj.weight" in matrix.sums  # the MTP block, behind four layers
    assert matrix.counts["blk.0.ffn_up.weight"].tolist() == [64]
    assert matrix.counts["blk.4.nextn.eh_proj.weight"].tolist() == [62]
    (dataset,) = matrix.datasets
    assert dataset == f"qexport-calib-1 sha256:{builtin_corpus().sha256[:16]} 64 tokens"
    assert f"{target}: {len(matrix.sums)} tensors" in ran.stdout
    assert dataset in ran.stderr
    (artifact,) = receipt(out).values()
    assert (artifact["kind"], artifact["verification"]) == ("imatrix", None)
    assert artifact["files"] == [{"name": "m.gguf", "bytes": target.stat().st_size, "sha256": matrix.sha256}]
    details = artifact["details"]
    assert details["corpus"] == "qexport-calib-1"
    assert details["corpus_sha256"] == builtin_corpus().sha256
    assert (details["tokens"], details["chunk"], details["seed"], details["chunks"]) == (64, 32, 3, 2)
    assert details["entries"] == len(matrix.sums)
    assert details["device"] == "cpu"
    assert len(details["tokens_sha256"]) == 64
    assert artifact["options"] == {"mtp": "auto", "merged": []}
    assert artifact["source"]["mtp"]


def test_its_default_name(zoo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ok("imatrix", zoo("qwen3_5"), *SMALL)
    ok("imatrix", zoo("smollm"), *SMALL)
    assert names(tmp_path) == {"qwen3_5-imatrix.gguf_file", "smollm-imatrix.gguf_file", "qexport.json"}
    assert set(receipt(tmp_path)) == {"qwen3_5-imatrix.gguf_file", "smollm-imatrix.gguf_file"}


def test_the_same_matrix_again(zoo: Any, out: Path, corpus: Path) -> None:
    """Same corpus, same seed, same bytes; another seed takes other records of the built-in corpus."""
    words = ("imatrix", zoo("smollm"), *SMALL, "--precision", "float32")
    for name, more in {
        "a": (),
        "b": (),
        "c": ("--calib-seed", 1),
        "d": ("--corpus", corpus),
        "e": ("--corpus", corpus, "--calib-seed", 1),  # a plain text has its own order
    }.items():
        ok(*words, "-o", out / name, *more)
    assert (out / "a").read_bytes() == (out / "b").read_bytes()
    assert (out / "a").read_bytes() != (out / "c").read_bytes()
    assert (out / "d").read_bytes() == (out / "e").read_bytes()
    assert read_imatrix(out / "d").datasets == (f"mine.txt sha256:{sha256(corpus)[:16]} 64 tokens",)
    assert receipt(out)["d"]["details"]["seed"] is None


def test_json_is_one_document(zoo: Any, out: Path) -> None:
    document = ok("imatrix", zoo("smollm"), "-o", out / "m", *SMALL, "--json").json()
    assert misfits(ImatrixDocument, document) == []
    matrix = read_imatrix(out / "m")
    assert document["file"] == "m"
    assert document["sha256"] == matrix.sha256 == sha256(out / "m")
    assert document["bytes"] == (out / "m").stat().st_size
    assert (document["entries"], document["chunks"], document["chunk_size"]) == (21, 2, 32)
    assert document["datasets"] == list(matrix.datasets)
    assert (document["tokens"], document["notes"], document["receipt"]) == (64, [], "qexport.json")
    assert "statistics" not in document


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe", "gemma3"])
def test_a_dry_run_knows_the_size_and_writes_nothing(zoo: Any, out: Path, name: str) -> None:
    words = ("imatrix", zoo(name), "-o", out / "m.gguf", *SMALL, "--json")
    planned = ok(*words, "--dry-run").json()
    assert misfits(ImatrixDocument, planned) == []
    assert not out.exists()
    real = ok(*words).json()
    assert planned["bytes"] == real["bytes"] == (out / "m.gguf").stat().st_size
    for key in ("file", "tokens", "entries", "datasets", "chunks", "chunk_size"):
        assert planned[key] == real[key]


def test_a_dry_run_in_words(zoo: Any, out: Path) -> None:
    ran = ok("imatrix", zoo("smollm"), "-o", out / "m.gguf", *SMALL, "--dry-run")
    assert ran.stdout.startswith("m.gguf: 21 tensors from 64 tokens (qexport-calib-1 sha256:")
    assert not out.exists()


def test_merging(zoo: Any, out: Path, corpus: Path) -> None:
    words = ("imatrix", zoo("qwen3_5_moe"), *SMALL, "--precision", "float32")
    ok(*words, "-o", out / "one")
    ok(*words, "-o", out / "two", "--corpus", corpus)
    merge = (*words, "-o", out / "both", "--corpus", corpus, "--merge", out / "one", "--json")
    planned = ok(*merge, "--dry-run").json()
    real = ok(*merge).json()
    one, two, both = (read_imatrix(out / name) for name in ("one", "two", "both"))
    for name in both.sums:
        np.testing.assert_allclose(both.sums[name], one.sums[name] + two.sums[name], rtol=1e-6)
        assert np.array_equal(both.counts[name], one.counts[name] + two.counts[name])
    assert both.datasets == (*two.datasets, *one.datasets)
    assert both.chunk_count == 4
    assert receipt(out)["both"]["options"]["merged"] == ["one"]
    assert planned["bytes"] == real["bytes"]
    assert planned["chunks"] == real["chunks"] == 4


def test_another_models_matrix_is_not_merged(zoo: Any, out: Path) -> None:
    """Known before the pass."""
    ok("imatrix", zoo("qwen3"), "-o", out / "qwen3", *SMALL)
    ran = run("imatrix", zoo("smollm"), "-o", out / "m", *SMALL, "--merge", out / "qwen3")
    assert ran.code == 3
    assert "qwen3: blk." in ran.stderr
    assert "different models" in ran.stderr
    assert "collected" not in ran.stderr
    assert "m" not in names(out)


def test_a_matrix_without_a_known_name_is_not_merged(zoo: Any, out: Path, tmp_path: Path) -> None:
    name = b"layers.0.weight"
    data = b"".join(
        [np.array([1, len(name)], "<i4").tobytes(), name, np.array([1, 1], "<i4").tobytes(), bytes(4)]
    )
    (tmp_path / "other.dat").write_bytes(data)
    ran = run("imatrix", zoo("smollm"), "-o", out / "m", *SMALL, "--merge", tmp_path / "other.dat")
    assert ran.code == 3
    assert "other.dat names none of this model's tensors" in ran.stderr


def test_statistics(zoo: Any, out: Path) -> None:
    words = ("imatrix", zoo("qwen3_5_moe"), "-o", out / "m.gguf", *SMALL, "--show-statistics")
    shown = ok(*words).stdout
    assert "blk.0.ffn_down_exps" in shown
    assert "unseen" in shown
    again = ok(*words, "--overwrite", "--json").json()
    alone = ok("imatrix", out / "m.gguf", "--json").json()
    assert misfits(ImatrixDocument, again) == misfits(ImatrixDocument, alone) == []
    assert alone["statistics"] == again["statistics"]
    found = {row["tensor"]: row for row in alone["statistics"]}
    matrix = read_imatrix(out / "m.gguf")
    assert list(found) == list(matrix.sums)
    row = found["blk.0.attn_qkv.weight"]
    means = matrix.entries["blk.0.attn_qkv.weight"][0].astype(float)
    assert row["total"] == pytest.approx(means.sum())
    assert (row["min"], row["max"]) == (means.min(), means.max())
    assert (row["columns"], row["experts"], row["unseen_experts"]) == (256, 1, 0)
    assert found["blk.3.ffn_up_exps.weight"]["experts"] == 4
    ran = ok("imatrix", out / "m.gguf")
    assert "m.gguf: qexport-calib-1" in ran.stdout
    assert "blk.0.attn_qkv" in ran.stdout


def test_a_file_that_is_no_matrix(corpus: Path, zoo: Any) -> None:
    for path in (corpus, zoo("smollm") / "model.safetensors"):
        ran = run("imatrix", path)
        assert ran.code == 3
        assert "not a usable importance matrix" in ran.stderr


def test_files_are_not_replaced_unasked(zoo: Any, out: Path) -> None:
    words = ("imatrix", zoo("smollm"), "-o", out / "m.gguf", *SMALL)
    ok(*words)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    ran = run(*words)
    assert ran.code == 2
    assert "--overwrite" in ran.stderr
    assert "collected" not in ran.stderr  # known before the pass
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    ok(*words, "--overwrite", "--calib-seed", 5)
    assert (out / "m.gguf").read_bytes() != before["m.gguf"]


def test_cold_experts_are_said(zoo: Any, out: Path) -> None:
    """Four tokens choose two of eight experts each, in three layers: not all can be chosen everywhere."""
    words = ("imatrix", zoo("qwen3_moe"), "-o", out / "m", "--calib-tokens", 2, "--calib-chunk", 2)
    ran = ok(*words)
    assert "of 8 experts saw no token" in ran.stderr
    (artifact,) = receipt(out).values()
    assert any("blk.0.ffn_up_exps.weight" in note for note in artifact["notes"])
    matrix = read_imatrix(out / "m")
    cold = matrix.counts["blk.0.ffn_up_exps.weight"] == 0
    assert cold.sum() >= 4
    assert (matrix.entries["blk.0.ffn_up_exps.weight"][cold] == 1).all()


# --- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"short", "less than one chunk"),
        (b"\xff\xfeT\x00", "UTF-16"),
        (b"Gr\xfc\xdfe " * 500, "not UTF-8"),
        (b"PK\x03\x04" + bytes(99), "zip"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_corpus_that_cannot_be_used(
    zoo: Any, out: Path, tmp_path: Path, content: bytes, message: str, as_json: bool
) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    words = ("imatrix", zoo("smollm"), "-o", out / "m", "--corpus", path, *(["--json"] if as_json else []))
    ran = run(*words)
    assert ran.code == 3
    assert message in ran.stderr
    assert not out.exists()
    if as_json:
        assert ran.json()["exit_code"] == 3


def test_a_matrix_is_no_corpus(zoo: Any, out: Path) -> None:
    ok("imatrix", zoo("smollm"), "-o", out / "m", *SMALL)
    ran = run("imatrix", zoo("smollm"), "-o", out / "n", "--corpus", out / "m")
    assert ran.code == 3
    assert "m is an importance matrix, not a corpus" in ran.stderr
    assert "--merge" in ran.stderr


def test_wrong_usage(zoo: Any, out: Path) -> None:
    for words in (
        ("--corpus", "absent.txt"),
        ("--calib-chunk", 1),
        ("--calib-tokens", 16),  # less than a chunk of 512
        ("--precision", "int4"),
        ("--device", "tpu"),
        ("--activation-memory", "lots"),
        ("--merge", "absent.gguf"),
    ):
        ran = run("imatrix", zoo("smollm"), "-o", out / "m", *words)
        assert ran.code == 2, (words, ran.stderr)
        assert not out.exists()


def test_no_cuda(zoo: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ran = run("imatrix", zoo("smollm"), "-o", out / "m", *SMALL, "--device", "cuda")
    assert ran.code == 6
    assert "sees no CUDA device" in ran.stderr
    assert not out.exists()


def test_transformers_missing(zoo: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    ran = run("imatrix", zoo("smollm"), "-o", out / "m", *SMALL)
    assert ran.code == 6
    assert "pip install 'qexport[reference]'" in ran.stderr
    assert not out.exists()


def test_no_room_for_activations(zoo: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    ran = run("imatrix", zoo("smollm"), "-o", out / "m", *SMALL, "--activation-memory", 1)
    assert ran.code == 6
    assert "activations do not fit" in ran.stderr
    assert "in a temporary file" in ran.stderr
    assert not out.exists()


def test_spilling_changes_no_byte(zoo: Any, out: Path) -> None:
    words = ("imatrix", zoo("qwen3_5"), *SMALL)
    ok(*words, "-o", out / "a")
    ran = ok(*words, "-o", out / "b", "--activation-memory", 1)
    assert "in a temporary file" in ran.stderr
    assert (out / "a").read_bytes() == (out / "b").read_bytes()


def test_damaged_weights(zoo_copy: Any, out: Path) -> None:
    source = zoo_copy("smollm")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    ran = run("imatrix", source, "-o", out / "m", *SMALL)
    assert ran.code == 3
    assert "layer 1: what enters model.layers.1.mlp.down_proj.weight is not finite" in ran.stderr
    assert not out.exists()


# --- qexport gguf --imatrix ------------------------------------------------------------------------------


def fields(path: Path) -> dict[str, Any]:
    found = gguf.GGUFReader(path).fields
    return {key: field.contents() for key, field in found.items() if key.startswith("quantize.imatrix.")}


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}


def test_a_ladder_with_the_built_in_corpus(zoo: Any, out: Path) -> None:
    """The matrix is collected once, lies beside the files, and makes the same file when given as a file."""
    ladder = ("-q", "Q4_K_M", "-q", "Q2_K_S", "-q", "Q8_0")
    words = ("gguf", zoo("qwen3_5"), *ladder, "--imatrix", *SMALL, "--json")
    planned = ok(*words, "-o", out, "--dry-run").json()
    assert not out.exists()
    ran = ok(*words, "-o", out, "--no-verify")
    assert ran.stderr.count("collected in") == 1
    sizes = {file["name"]: file["bytes"] for plan in planned["artifacts"] for file in plan["files"]}
    assert {path.name: path.stat().st_size for path in out.glob("*.gguf*")} == sizes
    assert set(sizes) == {
        "qwen3_5-imatrix.gguf_file",
        "qwen3_5-Q4_K_M.gguf",
        "qwen3_5-Q2_K_S.gguf",
        "qwen3_5-Q8_0.gguf",
        "mmproj-BF16.gguf",
    }
    matrix = read_imatrix(out / "qwen3_5-imatrix.gguf_file")
    assert fields(out / "qwen3_5-Q4_K_M.gguf") == {
        "quantize.imatrix.file": "qwen3_5-imatrix.gguf_file",
        "quantize.imatrix.dataset": matrix.datasets[0],
        "quantize.imatrix.entries_count": len(matrix.sums),
        "quantize.imatrix.chunks_count": 2,
    }
    assert fields(out / "qwen3_5-Q8_0.gguf") == {}
    artifacts = receipt(out)
    assert set(artifacts) == set(sizes)
    for artifact in artifacts.values():
        said = artifact["options"]["imatrix"]
        assert (said["file"], said["sha256"]) == ("qwen3_5-imatrix.gguf_file", matrix.sha256)
        assert said["calibration"]["corpus_sha256"] == builtin_corpus().sha256
        assert said["calibration"]["tokens"] == 64

    given = out.parent / "given"
    words = ("gguf", zoo("qwen3_5"), *ladder, "-o", given, "--no-verify")
    ran = ok(*words, "--imatrix", out / "qwen3_5-imatrix.gguf_file")
    assert "collected" not in ran.stderr
    assert names(given) == names(out) - {"qwen3_5-imatrix.gguf_file"}
    for path in given.glob("*.gguf"):
        assert path.read_bytes() == (out / path.name).read_bytes()
    plain = out.parent / "plain"
    ok("gguf", zoo("qwen3_5"), "-q", "Q4_K_M", "-o", plain, "--no-verify")
    with_matrix = tensors(out / "qwen3_5-Q4_K_M.gguf")
    for name, data in tensors(plain / "qwen3_5-Q4_K_M.gguf").items():
        if name in matrix.sums and not name.startswith("blk.4."):  # that block is kept at Q6_K or above
            assert not np.array_equal(data, with_matrix[name]) or "_inp" in name or "ssm_" in name, name


def test_a_corpus_of_ones_own(zoo: Any, out: Path, corpus: Path) -> None:
    words = ("gguf", zoo("smollm"), "-q", "IQ4_XS", "-o", out, "--no-verify", "--model-name", "Mine 1B")
    ok(*words, "--imatrix", corpus, *SMALL)
    assert names(out) == {"Mine-1B-imatrix.gguf_file", "Mine-1B-IQ4_XS.gguf", "qexport.json"}
    assert fields(out / "Mine-1B-IQ4_XS.gguf")["quantize.imatrix.dataset"].startswith("mine.txt sha")
    records = corpus.with_suffix(".jsonl")
    records.write_text("\n".join(json.dumps({"text": TEXT[n : n + 400]}) for n in range(9)))
    ok(*words, "--imatrix", records, *SMALL, "--overwrite")
    matrix = read_imatrix(out / "Mine-1B-imatrix.gguf_file")
    assert matrix.datasets[0].startswith("mine.jsonl sha256:")


@pytest.mark.parametrize("types", [("Q8_0",), ("BF16", "F16")])
def test_nothing_is_collected_for_types_without_a_use(zoo: Any, out: Path, types: tuple[str, ...]) -> None:
    words = ("gguf", zoo("smollm"), *[w for t in types for w in ("-q", t)], "--imatrix", *SMALL)
    dry = ok(*words, "-o", out, "--dry-run", "--json").json()
    ran = ok(*words, "-o", out, "--no-verify")
    assert "none of these types uses an importance matrix" in ran.stderr
    assert "collected in" not in ran.stderr
    assert names(out) == {*(f"smollm-{t}.gguf" for t in types), "qexport.json"}
    assert len(dry["artifacts"]) == len(types)
    assert all(artifact["options"]["imatrix"] is None for artifact in receipt(out).values())


def test_another_models_matrix(zoo: Any, out: Path, tmp_path: Path) -> None:
    ok("imatrix", zoo("qwen3"), "-o", tmp_path / "other.gguf", *SMALL)
    words = ("gguf", zoo("smollm"), "-q", "Q4_K_M", "-o", out, "--no-verify")
    ran = run(*words, "--imatrix", tmp_path / "other.gguf")
    assert ran.code == 3
    assert "which needs 288: it was made for another model" in ran.stderr
    assert not out.exists()
    name = b"blk.0.ffn_up.weight"
    head = np.array([1, len(name)], "<i4").tobytes() + name + np.array([1, 2], "<i4").tobytes()
    (tmp_path / "other.dat").write_bytes(head + np.ones(2, "<f4").tobytes())
    ran = run(*words, "--imatrix", tmp_path / "other.dat")
    assert ran.code == 3
    assert "has 2 values for blk.0.ffn_up.weight, which needs 288" in ran.stderr
    assert not out.exists()


def test_a_matrix_in_the_way(zoo: Any, out: Path) -> None:
    """Found before the pass, like every other name."""
    out.mkdir()
    (out / "smollm-imatrix.gguf_file").write_bytes(b"mine")
    ran = run("gguf", zoo("smollm"), "-q", "Q4_K_M", "-o", out, "--no-verify", "--imatrix", *SMALL)
    assert ran.code == 2
    assert "smollm-imatrix.gguf_file" in ran.stderr
    assert "collected" not in ran.stderr
    assert names(out) == {"smollm-imatrix.gguf_file"}


def test_a_template_that_gives_two_files_one_name(zoo: Any, out: Path) -> None:
    words = ("gguf", zoo("smollm"), "-q", "Q4_K_M", "-q", "Q8_0", "-o", out, "--no-verify")
    ran = run(*words, "--file-name", "{name}{imatrix}")
    assert ran.code == 2
    assert "two artifacts would have the name smollm.gguf" in ran.stderr


@pytest.mark.parametrize("given", ["absent.txt", "."])
def test_an_imatrix_that_is_not_there(zoo: Any, out: Path, given: str) -> None:
    ran = run("gguf", zoo("smollm"), "-q", "Q4_K_M", "-o", out, "--imatrix", given)
    assert ran.code == 3
    assert ran.stderr.startswith("Error: ")
    assert not out.exists()


def test_imatrix_before_model_takes_the_model_for_a_file(zoo: Any) -> None:
    """The help says: alone, after MODEL. Otherwise the error must at least be one of usage."""
    ran = run("gguf", "-q", "Q4_K_M", "--imatrix", zoo("smollm"))
    assert ran.code == 2
    assert "MODEL" in ran.stderr


def test_types_that_ggml_makes(zoo: Any, out: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """IQ3 and IQ2 need importance and ggml; both are said before anything is written or collected."""
    words = ("gguf", zoo("qwen3_5"), "-q", "IQ3_S,IQ2_XXS", "--no-mmproj", "-o", out)
    assert "IQ2_XXS needs an importance matrix" in refused(*words)
    weighed = (*words, "--imatrix", corpus, *SMALL, "--no-verify")
    with monkeypatch.context() as patch:
        patch.setattr(ggml, "find_library", absent)
        assert "ggml is not here" in refused(*weighed)
    assert not out.exists()
    ok(*weighed)
    source = {k: v for path in zoo("qwen3_5").glob("*.safetensors") for k, v in load_file(path).items()}
    wanted = next(v for k, v in source.items() if k.endswith("layers.1.mlp.up_proj.weight")).float().numpy()
    for name, most in (("IQ3_S", 0.25), ("IQ2_XXS", 0.65)):
        stored = gguf.GGUFReader(out / f"qwen3_5-{name}.gguf").tensors
        made = next(each for each in stored if each.name == "blk.1.ffn_up.weight")
        assert made.tensor_type.name == name
        error = gguf.quants.dequantize(made.data, made.tensor_type) - wanted
        assert 0 < np.square(error).sum() / np.square(wanted).sum() < most**2


def absent() -> Path:
    raise EnvironmentProblem("ggml is not here")


def refused(*words: Any) -> str:
    ran = run(*words)
    assert ran.code != 0
    return ran.stderr
