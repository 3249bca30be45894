"""Our importance matrices against llama-imatrix's own, and their file byte for byte."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from oracle import toolchain
from oracle.summary import compare, summarize
from zoo import ZOO

from qexport.codecs.ggml import ONLY_GGML
from qexport.evidence.corpus import read_corpus
from qexport.evidence.imatrix_file import ImportanceMatrix, imatrix_bytes, read_imatrix
from qexport.evidence.observe import Inputs, InputSquares
from qexport.evidence.options import StreamOptions
from qexport.evidence.stream import LayerStream
from qexport.evidence.tokens import tokenize
from qexport.families.roles import Role
from qexport.families.view import ModelView
from qexport.formats.gguf.file_types import FILE_TYPES
from qexport.formats.gguf.importance import cold_experts, gguf_importance, plan_imatrix, uncollected, unfelt
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf
from qexport.onepass.execute import execute
from qexport.recipe.choice import ModelChoice
from qexport.run.model import examine

sys.path.insert(0, str(Path(__file__).parents[1] / "evidence"))
import make_imatrix_golden as golden


def view_of(folder: Path, **choice: Any) -> ModelView:
    return examine(ModelChoice(str(folder), **choice), download=False).repaired.view()


def collected(view: ModelView, work: Path, **options: Any) -> ImportanceMatrix:
    """The matrix of the goldens' text, as `qexport imatrix --corpus text.txt` collects it."""
    corpus = work / golden.TEXT_NAME
    corpus.write_text(golden.text(), encoding="utf-8")
    chunks = tokenize(
        read_corpus(corpus), view.files, tokens=golden.CHUNK * golden.CHUNKS, chunk=golden.CHUNK
    )
    squares = InputSquares(inputs=(inputs := Inputs()))
    LayerStream(view, StreamOptions(**options)).run(chunks.ids, squares)
    return gguf_importance(
        view,
        squares.sums,
        squares.counts,
        datasets=[golden.TEXT_NAME],
        chunk_count=len(chunks.ids),
        chunk_size=chunks.size,
        label="ours.gguf",
        totals=inputs.sums,
    )


def draft_names(view: ModelView) -> set[str]:
    """What llama-imatrix has nothing for: the matrices of the MTP block."""
    sums, counts = uncollected(view)
    mtp = {name: rows for name, rows in sums.items() if name.startswith("mtp.")}
    return set(gguf_importance(view, mtp, counts, datasets=[], chunk_count=0, chunk_size=0, label="").sums)


def agree(ours: ImportanceMatrix, theirs: ImportanceMatrix, view: ModelView) -> None:
    """Every tensor of theirs is ours, with a correlation above 0.999 and a mean difference below 2 %."""
    assert set(ours.sums) - set(theirs.sums) == draft_names(view)
    assert set(theirs.sums) <= set(ours.sums)
    assert (ours.chunk_count, ours.chunk_size) == (theirs.chunk_count, theirs.chunk_size)
    for name, means in theirs.entries.items():
        mine = ours.entries[name]
        assert mine.shape == means.shape, name
        # A router near a tie may choose otherwise; no token is lost by that, but an expert that few tokens
        # chose has other numbers with one more or less. Its row is then judged with its stack.
        assert ours.counts[name].sum() == theirs.counts[name].sum(), name
        moved = np.abs(ours.counts[name] - theirs.counts[name]).sum() / 2
        assert moved <= 0.005 * theirs.counts[name].sum(), name
        same = ours.counts[name] == theirs.counts[name]
        for mine_row, row in [(mine.ravel(), means.ravel()), *zip(mine[same], means[same], strict=True)]:
            assert np.corrcoef(mine_row, row)[0, 1] > 0.999, name
            assert np.abs(mine_row - row).mean() < 0.02 * row.mean(), name


@pytest.mark.parametrize("precision", ["auto", "mixed"])
@pytest.mark.parametrize("case", golden.CASES)
def test_the_numbers_are_llama_imatrixs(zoo: Any, tmp_path: Path, case: str, precision: str) -> None:
    name, options = golden.CASES[case]
    view = view_of(zoo(name, **options))
    (tmp_path / "theirs.gguf").write_bytes(golden.load(case))
    theirs = read_imatrix(tmp_path / "theirs.gguf")
    agree(collected(view, tmp_path, precision=precision), theirs, view)


def test_sums_of_inputs_are_llama_imatrixs(zoo: Any, tmp_path: Path) -> None:
    """Signs cancel in them, so that bfloat16 shows more: over a tensor, a correlation above 0.99."""
    name, options = golden.CASES["hybrid_moe"]
    view = view_of(zoo(name, **options))
    (tmp_path / "theirs.gguf").write_bytes(golden.load(golden.DESCRIBED))
    theirs, ours = read_imatrix(tmp_path / "theirs.gguf"), collected(view, tmp_path)
    assert ours.totals.keys() == ours.sums.keys()
    for name, inputs in theirs.totals.items():
        assert ours.totals[name].shape == inputs.shape
        assert np.corrcoef(ours.totals[name].ravel(), inputs.ravel())[0, 1] > 0.99, name


def test_columns_in_the_checkpoints_order_would_show(zoo: Any, tmp_path: Path) -> None:
    """The comparison above, with ssm_out's columns left as they are in the checkpoint."""
    name, options = golden.CASES["hybrid"]
    view = view_of(zoo(name, **options))
    (tmp_path / "theirs.gguf").write_bytes(golden.load("hybrid"))
    theirs = read_imatrix(tmp_path / "theirs.gguf").entries["blk.0.ssm_out.weight"][0]
    ours = collected(view, tmp_path).entries["blk.0.ssm_out.weight"][0]
    width, per_key, keys = 64, 2, 2
    untiled = ours.reshape(per_key, keys, width).swapaxes(0, 1).reshape(-1)
    assert np.corrcoef(ours, theirs)[0, 1] > 0.999
    assert np.corrcoef(untiled, theirs)[0, 1] < 0.9


@pytest.mark.parametrize("case", golden.CASES)
def test_the_file_is_llama_imatrixs_byte_for_byte(tmp_path: Path, case: str) -> None:
    (tmp_path / "theirs.gguf").write_bytes(golden.load(case))
    theirs = read_imatrix(tmp_path / "theirs.gguf")
    assert imatrix_bytes(theirs, described=False) == golden.load(case)  # of before there were statistics


def test_so_is_a_newer_one_with_statistics(tmp_path: Path) -> None:
    """Statistics are long sums, whose last bits follow the processor; all else is the same to the byte."""
    (tmp_path / "theirs.gguf").write_bytes(golden.load(golden.DESCRIBED))
    theirs = read_imatrix(tmp_path / "theirs.gguf")
    assert theirs.totals.keys() == theirs.sums.keys()
    assert any((inputs < 0).any() for inputs in theirs.totals.values())
    (tmp_path / "ours.gguf").write_bytes(imatrix_bytes(theirs))
    mine, other = (gguf.GGUFReader(tmp_path / name) for name in ("ours.gguf", "theirs.gguf"))
    assert list(mine.fields) == list(other.fields)
    assert mine.fields["imatrix.stats_schema"].contents() == other.fields["imatrix.stats_schema"].contents()
    for one, there in zip(mine.tensors, other.tensors, strict=True):
        assert (one.name, one.shape.tolist()) == (there.name, there.shape.tolist())
        if one.name.endswith(".stats"):
            np.testing.assert_allclose(one.data, there.data, rtol=1e-5, atol=1e-7, err_msg=one.name)
        else:
            assert one.data.tobytes() == there.data.tobytes(), one.name
    read = read_imatrix(tmp_path / "ours.gguf")
    assert replace(read, file_sha256="").sha256 == read.sha256


def test_every_golden_is_compared() -> None:
    assert {path.name for path in golden.GOLDEN.glob("*.gz")} == {
        f"{case}.gguf.gz" for case in (*golden.CASES, golden.DESCRIBED)
    }


# --- names, orders, files --------------------------------------------------------------------------------


def made(view: ModelView, sums: dict[str, np.ndarray], counts: dict[str, np.ndarray]) -> ImportanceMatrix:
    return gguf_importance(
        view, sums, counts, datasets=["text", "код"], chunk_count=3, chunk_size=16, label="m.gguf"
    )


def test_columns_of_ssm_out_are_tiled(zoo: Any) -> None:
    """Two key heads with three value heads each, 64 wide: value head v of key head k goes to place 2v + k."""
    view = view_of(zoo("qwen3_5_tied"))
    sums, counts = uncollected(view)
    names = [t.name for t in view if t.role is Role.LINEAR_OUT]
    assert len(names) == 3
    for name in sums:
        sums[name] = np.arange(sums[name].size, dtype=np.float64).reshape(sums[name].shape)
    matrix = made(view, sums, counts)
    for layer in range(3):
        found = matrix.sums[f"blk.{layer}.ssm_out.weight"][0].reshape(6, 64)
        for key in range(2):
            for value in range(3):
                first = (3 * key + value) * 64
                assert found[2 * value + key].tolist() == list(range(first, first + 64))
    others = [name for name in matrix.sums if not name.endswith("ssm_out.weight")]
    for name in others:
        assert np.array_equal(matrix.sums[name].reshape(-1), np.arange(matrix.sums[name].size)), name


def test_the_order_is_the_gguf_tensors_own(zoo: Any, tmp_path: Path) -> None:
    """Whatever moves the columns of a weight moves its importance: F32 files show where each went."""
    view = view_of(zoo("qwen3_5_tied"))
    (plan,) = plan_gguf(view, ["F32"], GgufOptions())
    execute([plan], tmp_path)
    reader = gguf.GGUFReader(tmp_path / plan.files[0].name)
    stored = {tensor.name: tensor.data for tensor in reader.tensors}
    sums, counts = uncollected(view)
    for tensor in view:
        if tensor.role is Role.LINEAR_OUT:
            (piece,) = tensor.data.pieces
            rows = piece.checkpoint.read_rows(piece.name, piece.start, piece.stop).float().numpy()
            sums[tensor.name] = np.square(rows.astype(np.float64)).sum(0, keepdims=True)
    matrix = made(view, sums, counts)
    for layer in range(3):
        name = f"blk.{layer}.ssm_out.weight"
        expected = np.square(stored[name].astype(np.float64)).sum(0)
        np.testing.assert_allclose(matrix.sums[name][0], expected, rtol=1e-6)


@pytest.mark.parametrize("name", ZOO)
def test_what_is_planned_is_what_is_collected(zoo: Any, name: str) -> None:
    """Names and shapes from headers alone; every name is a matrix of the GGUF file."""
    view = view_of(zoo(name))
    vocabulary = next(t.shape[0] for t in view if t.role is Role.TOKEN_EMBD)
    ids = (np.arange(64, dtype=np.int32) * 7 % vocabulary).reshape(2, 32)
    squares = InputSquares()
    LayerStream(view, StreamOptions(precision="float32")).run(ids, squares)
    sums, counts = uncollected(view)
    assert {n: s.shape for n, s in squares.sums.items()} == {n: s.shape for n, s in sums.items()}
    assert {n: c.shape for n, c in squares.counts.items()} == {n: c.shape for n, c in counts.items()}
    real, planned = made(view, squares.sums, squares.counts), made(view, sums, counts)
    assert len(imatrix_bytes(real)) == len(imatrix_bytes(planned))
    (plan,) = plan_gguf(view, ["F32"], GgufOptions())
    shapes = {tensor.name: tensor.shape for tensor in plan.tensors}
    for entry, rows in real.sums.items():
        *matrices, _, columns = shapes[entry]
        assert rows.shape == (*(matrices or [1]), columns), entry


def test_write_and_read(zoo: Any, tmp_path: Path) -> None:
    """Counts, cold experts and texts beyond ASCII; through gguf-py's reader, too."""
    view = view_of(zoo("qwen3_5_moe"))
    sums, counts = uncollected(view)
    for number, name in enumerate(sums):
        words = np.random.PCG64([3, number]).random_raw(sums[name].size)
        sums[name] = (words >> np.uint64(40)).astype(np.float64).reshape(sums[name].shape)
        counts[name] = np.full(len(sums[name]), 16777217 + number)  # beyond float32's whole numbers
    cold = "model.layers.2.mlp.experts.gate_proj.weight"
    counts[cold] = np.array([5, 0, 7, 0])
    sums[cold][[1, 3]] = 0
    matrix = made(view, sums, counts)
    (written,) = execute([plan_imatrix(matrix, "m.gguf")], tmp_path)
    assert written[0].sha256 == matrix.sha256
    again = read_imatrix(tmp_path / "m.gguf")
    assert again.sha256 == matrix.sha256
    assert (again.datasets, again.chunk_count, again.chunk_size) == (("text", "код"), 3, 16)
    assert list(again.sums) == list(matrix.sums) == sorted(matrix.sums, key=str.encode)
    for name in matrix.sums:
        assert np.array_equal(again.sums[name], matrix.sums[name])
        assert np.array_equal(again.counts[name], np.float32(matrix.counts[name]).astype(np.int64))
    values = again.entries["blk.2.ffn_gate_exps.weight"]
    assert (values[[1, 3]] == 1).all()  # no preference
    np.testing.assert_allclose(values[0], matrix.sums["blk.2.ffn_gate_exps.weight"][0] / 5, rtol=1e-6)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert {t.name for t in reader.tensors} == {
        f"{n}.{s}" for n in matrix.sums for s in ("in_sum2", "counts", "stats")
    }
    shapes = {t.name: t.shape.tolist() for t in reader.tensors}
    assert shapes["blk.2.ffn_gate_exps.weight.in_sum2"] == [256, 4]
    assert shapes["blk.2.ffn_gate_exps.weight.counts"] == [1, 4]
    assert shapes["blk.0.ffn_gate_inp.weight.counts"] == [1]


def test_cold_experts_are_reported(zoo: Any) -> None:
    view = view_of(zoo("qwen3_moe"))
    sums, counts = uncollected(view)
    counts["model.layers.1.mlp.experts.down_proj.weight"] = np.array([3, 0, 1, 0, 0, 2, 9, 4])
    matrix = made(view, sums, counts)
    assert cold_experts(matrix, matrix.sums) == {"blk.1.ffn_down_exps.weight": (3, 8)}
    assert cold_experts(matrix, ["blk.0.ffn_down_exps.weight", "no.such"]) == {}
    (note,) = plan_imatrix(matrix, "m.gguf").notes
    assert "blk.1.ffn_down_exps.weight: 3 of 8 experts saw no token" in note


def test_a_matrix_to_come_is_sized_and_its_numbers_not_looked_at(
    zoo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = view_of(zoo("qwen3_moe"))
    sums, counts = uncollected(view)
    felt = unfelt(view, 1, 1, ("text",))
    whole = made(view, sums, counts)
    whole = replace(whole, totals=whole.sums, sensitivity=felt)
    size = len(imatrix_bytes(whole))

    def never(*_: object) -> None:
        raise AssertionError("statistics of numbers that are not there")

    monkeypatch.setattr("qexport.evidence.imatrix_stats.described", never)
    (file,) = plan_imatrix(replace(whole, to_come=True), "m.gguf").files
    assert (file.size, file.header) == (size, b"")


def test_details_for_the_receipt(zoo: Any) -> None:
    view = view_of(zoo("smollm"))
    plan = plan_imatrix(made(view, *uncollected(view)), "m.gguf", {"corpus": "text", "tokens": 48})
    assert (plan.kind, plan.label) == ("imatrix", "imatrix")
    assert plan.details == {
        "entries": 21,
        "datasets": ["text", "код"],
        "chunks": 3,
        "chunk_size": 16,
        "corpus": "text",
        "tokens": 48,
    }


# --- the tools themselves --------------------------------------------------------------------------------


BELOW_4_BITS = tuple(name for name in FILE_TYPES if name.startswith(("IQ3", "IQ2", "IQ1")))


class TestToolchain:
    """llama-imatrix and llama-quantize, run here."""

    pytestmark = pytest.mark.toolchain
    needs_imatrix = pytest.mark.skipif(not toolchain.can_collect(), reason=toolchain.NO_IMATRIX)

    @needs_imatrix
    @pytest.mark.parametrize("name", ["qwen3_5", "gemma3", "qwen2", "mistral"])
    def test_live_comparison(self, zoo: Any, tmp_path: Path, name: str) -> None:
        """From the file that qexport makes, where the goldens take the converter's."""
        view = view_of(zoo(name))
        (plan,) = plan_gguf(view, ["F32" if name == "qwen2" else "BF16"], GgufOptions())
        execute([plan], tmp_path)
        theirs = read_imatrix(golden.collect(tmp_path / plan.files[0].name, tmp_path))
        agree(collected(view, tmp_path), theirs, view)

    @needs_imatrix
    @pytest.mark.parametrize("case", golden.CASES)
    def test_goldens_are_what_llama_imatrix_makes(self, tmp_path: Path, case: str) -> None:
        """Within threads' order of adding up, which may send a token of a near-tie to another expert."""
        again, kept = read_imatrix(golden.make(case, tmp_path)), tmp_path / "kept.gguf"
        kept.write_bytes(golden.load(case))
        for name, means in read_imatrix(kept).entries.items():
            near = np.isclose(again.entries[name], means, rtol=0.02, atol=0.02 * means.mean())
            assert near.mean() > 0.99, name

    @pytest.mark.skipif(not toolchain.can_quantize(), reason=toolchain.NO_QUANTIZER)
    @pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe", "smollm"])
    @pytest.mark.parametrize("kind", ["Q4_K_M", "IQ4_XS", "Q2_K_S"])
    def test_llama_quantize_makes_our_file_of_our_matrix(
        self, zoo: Any, tmp_path: Path, name: str, kind: str
    ) -> None:
        """It reads the entries of the MTP block, too, and gives every byte that we write."""
        view = view_of(zoo(name))
        data = imatrix_bytes(collected(view, tmp_path))
        (tmp_path / "imatrix.gguf").write_bytes(data)
        matrix = read_imatrix(tmp_path / "imatrix.gguf")
        options = GgufOptions(imatrix=matrix, mtp_type="mixture")
        plans = plan_gguf(view, ["BF16", kind], options)
        execute(plans, tmp_path)
        files = [tmp_path / plan.files[0].name for plan in plans]
        said = toolchain.quantize(files[0], tmp_path / "peer.gguf", kind, imatrix=tmp_path / "imatrix.gguf")
        assert f"loaded {len(matrix.sums)} importance matrix entries" in said
        assert compare(files[1], summarize(tmp_path / "peer.gguf")) == []
        assert files[1].read_bytes() == (tmp_path / "peer.gguf").read_bytes()

    @pytest.mark.skipif(not toolchain.can_quantize(), reason=toolchain.NO_QUANTIZER)
    @pytest.mark.parametrize("name", ["qwen3_5", "qwen3_moe"])
    def test_so_do_files_below_4_bits(self, zoo: Any, tmp_path: Path, name: str) -> None:
        """Rows of whole blocks of 256: the mixtures of all types that only ggml encodes, from one pass."""
        view = view_of(zoo(name, hidden=256, intermediate=256))
        (tmp_path / "imatrix.gguf").write_bytes(imatrix_bytes(collected(view, tmp_path)))
        matrix = read_imatrix(tmp_path / "imatrix.gguf")
        plans = plan_gguf(view, ["BF16", *BELOW_4_BITS], GgufOptions(imatrix=matrix, mtp_type="mixture"))
        execute(plans, tmp_path)
        floats, *made = (tmp_path / plan.files[0].name for plan in plans)
        for kind, file in zip(BELOW_4_BITS, made, strict=True):
            peer = tmp_path / f"peer-{kind}.gguf"
            toolchain.quantize(floats, peer, kind, imatrix=tmp_path / "imatrix.gguf")
            assert compare(file, summarize(peer)) == [], kind
            assert file.read_bytes() == peer.read_bytes(), kind
        assert {tensor.stored.name for plan in plans for tensor in plan.tensors} >= ONLY_GGML
