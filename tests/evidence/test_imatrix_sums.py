"""Adding matrices up, and their statistics, against numbers worked out by hand."""

from __future__ import annotations

import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import make_imatrix_golden as golden
import numpy as np
import pytest
from oracle import toolchain

from qexport.errors import InputError
from qexport.evidence.imatrix_file import ImportanceMatrix, imatrix_bytes, read_imatrix
from qexport.evidence.imatrix_stats import described
from qexport.evidence.imatrix_sums import merged, statistics


def matrix(
    entries: dict[str, tuple[Any, list[int]]], label: str = "m", form: Any = "gguf", datasets: Any = ()
) -> ImportanceMatrix:
    """From ``name: (rows of sums, counts)``."""
    return ImportanceMatrix(
        sums={name: np.array(sums, np.float32) for name, (sums, _) in entries.items()},
        counts={name: np.array(counts, np.int64) for name, (_, counts) in entries.items()},
        datasets=tuple(datasets),
        chunk_count=0,
        chunk_size=0,
        form=form,
        label=label,
    )


A, EXPERTS = "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"


def test_sums_and_counts_are_added() -> None:
    one = matrix({A: ([[1, 2]], [8]), EXPERTS: ([[1, 2], [0, 0]], [4, 0])}, datasets=["a", "b"])
    two = matrix({A: ([[3, 4]], [16]), EXPERTS: ([[1, 1], [5, 6]], [2, 3])}, datasets=["b", "c"])
    both = merged([one, two], "both", 8)
    assert both.sums[A].tolist() == [[4, 6]]
    assert both.counts[A].tolist() == [24]
    assert both.sums[EXPERTS].tolist() == [[2, 3], [5, 6]]
    assert both.counts[EXPERTS].tolist() == [6, 3]
    assert both.datasets == ("a", "b", "c")
    assert (both.chunk_count, both.chunk_size, both.form, both.label) == (3, 8, "gguf", "both")
    assert both.sums[A].dtype == np.float32
    assert one.sums[A].tolist() == [[1, 2]]  # untouched
    assert one.counts[EXPERTS].tolist() == [4, 0]


def test_means_weigh_by_tokens() -> None:
    """Three tokens' worth and one token's worth: not the mean of means."""
    both = merged([matrix({A: ([[3.0]], [3])}), matrix({A: ([[9.0]], [1])})], "both", 4)
    assert both.entries[A].tolist() == [[3.0]]


def test_sums_of_inputs_are_added_where_every_matrix_has_them() -> None:
    one = replace(matrix({A: ([[1, 2]], [8])}), totals={A: np.array([[-1, 2]], np.float32)}, nextn_layers=1)
    two = replace(matrix({A: ([[3, 4]], [8])}), totals={A: np.array([[-3, 1]], np.float32)})
    both = merged([one, two], "both", 8)
    assert both.totals[A].tolist() == [[-4, 3]]
    assert both.nextn_layers == 1
    assert merged([one, two, matrix({A: ([[1, 1]], [8])})], "three", 8).totals == {}


def test_sums_of_inputs_come_back_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    """What describes a tensor is worked out by hand: inputs of two tokens, with means -1 and 3."""
    one = replace(
        matrix({A: ([[4, 20]], [2]), "blk.1.attn_q.weight": ([[4, 20]], [2])}, datasets=["x"]),
        totals={A: np.array([[-2, 6]], np.float32), "blk.1.attn_q.weight": np.array([[-2, 2]], np.float32)},
    )
    (tmp_path / "m.gguf").write_bytes(imatrix_bytes(one))
    assert read_imatrix(tmp_path / "m.gguf").totals[A].tolist() == [[-2, 6]]
    below, above = (described(one)[name] for name in one.sums)
    mean_squares, entropy = 12, -(1 / 6 * np.log2(1 / 6) + 5 / 6 * np.log2(5 / 6))
    np.testing.assert_allclose(below[:6], [mean_squares, 1, 2, 2, 0, -2], atol=1e-6)
    np.testing.assert_allclose(below[7], 100 * entropy, rtol=1e-6)
    assert np.isnan(below[[6, 8, 9, 10, 11]]).all()  # nothing is before the first layer
    # Means -1 and 1 against -1 and 3: as far as 2 is, cosine 4 / sqrt(2 * 10), covariance 4 / 2.
    np.testing.assert_allclose(above[[6, 8, 9, 10, 11]], [1, 2, 4 / 20**0.5, 1, 2], rtol=1e-6)
    bad = replace(one, totals={A: np.array([[1, np.inf]], np.float32)})
    (tmp_path / "bad.gguf").write_bytes(imatrix_bytes(bad, described=False))
    with pytest.raises(InputError, match=r"blk\.0\.attn_q\.weight\.in_sum has 2 values"):
        read_imatrix(tmp_path / "bad.gguf")


def test_order_does_not_matter() -> None:
    one = matrix({A: ([[1, 2]], [8]), EXPERTS: ([[1, 2], [0, 0]], [4, 0])})
    two = matrix({EXPERTS: ([[7, 0, 1, 1]], [3])}, form="legacy")
    there, back = merged([one, two], "x", 4), merged([two, one], "x", 4)
    for name in there.sums:
        assert np.array_equal(there.sums[name], back.sums[name])
        assert np.array_equal(there.counts[name], back.counts[name])
    assert there.chunk_count == back.chunk_count


def test_what_only_one_has_is_kept() -> None:
    both = merged([matrix({A: ([[1]], [4])}), matrix({"blk.1.ffn_up.weight": ([[2]], [8])})], "both", 4)
    assert both.entries[A].tolist() == [[0.25]]
    assert both.entries["blk.1.ffn_up.weight"].tolist() == [[0.25]]
    assert both.chunk_count == 2


def test_a_legacy_file_is_spread_over_experts() -> None:
    """Its sums are per call, its one count holds for all experts; a call is taken for a chunk."""
    new = matrix({EXPERTS: ([[8, 0], [0, 16]], [8, 0])})
    old = matrix({EXPERTS: ([[1, 2, 3, 4]], [2])}, form="legacy")
    both = merged([new, old], "both", 4)
    assert both.sums[EXPERTS].tolist() == [[8 + 4, 8], [12, 16 + 16]]
    assert both.counts[EXPERTS].tolist() == [16, 8]
    assert both.entries[EXPERTS].tolist() == [[0.75, 0.5], [1.5, 4.0]]


def test_a_legacy_file_alone_keeps_its_means(tmp_path: Path) -> None:
    name = A.encode()
    data = struct.pack("<ii", 1, len(name)) + name + struct.pack("<iifff", 3, 3, 1.5, 0.75, 30)
    (tmp_path / "old.dat").write_bytes(data + struct.pack("<ii4s", 3, 4, b"wiki"))
    old = read_imatrix(tmp_path / "old.dat")
    new = merged([old], "new", 512)
    np.testing.assert_allclose(new.entries[A], old.entries[A], rtol=1e-6)
    assert (new.chunk_count, new.datasets) == (3, ("wiki",))
    (tmp_path / "new.gguf").write_bytes(imatrix_bytes(new))
    assert read_imatrix(tmp_path / "new.gguf").entries[A].tolist() == [[0.5, 0.25, 10.0]]


def test_another_models_sizes_are_refused() -> None:
    one = matrix({A: ([[1, 2]], [8])}, "first.gguf")
    for other in ([[1, 2, 3]], [[1, 2], [3, 4]]):
        with pytest.raises(
            InputError, match=rf"second\.gguf: {A} has [23x ]+ values, not 2 as in first\.gguf"
        ):
            merged([one, matrix({A: (other, [1] * len(other))}, "second.gguf")], "x", 8)


def test_as_many_values_in_another_shape_are_refused() -> None:
    """Two experts of 4 columns and four of 2 are different models, though both have 8 values."""
    one = matrix({EXPERTS: (np.ones((2, 4)), [3, 3])}, "first.gguf")
    two = matrix({EXPERTS: (np.ones((4, 2)), [1, 1, 1, 1])}, "second.gguf")
    with pytest.raises(InputError, match="has 4 x 2 values, not 2 x 4 as in first"):
        merged([one, two], "x", 8)


def test_one_count_may_stand_for_a_stack() -> None:
    """So it is in GGUF files that were converted from the legacy form."""
    one = matrix({EXPERTS: ([[1, 2, 3, 4]], [2])})
    two = matrix({EXPERTS: ([[1, 1], [0, 0]], [2, 0])})
    for both in (merged([one, two], "x", 2), merged([two, one], "x", 2)):
        assert both.sums[EXPERTS].tolist() == [[2, 3], [3, 4]]
        assert both.counts[EXPERTS].tolist() == [4, 2]


def test_small_parts_survive_in_float64() -> None:
    big = matrix({A: ([[2.0**24]], [1])})
    both = merged([big, *[matrix({A: ([[1.0]], [1])})] * 4], "x", 1)
    assert both.sums[A].tolist() == [[2.0**24 + 4]]


# --- statistics ------------------------------------------------------------------------------------------


def test_statistics_by_hand() -> None:
    """Mean squares 1, 1, 2, 4: entropy of 1/8, 1/8, 2/8, 4/8 is 1.75 bits."""
    (found,) = statistics(matrix({A: ([[2, 2, 4, 8]], [2])}))
    assert (found.name, found.total, found.mean) == (A, 8.0, 2.0)
    assert (found.smallest, found.largest, found.columns) == (1.0, 4.0, 4)
    assert found.entropy == pytest.approx(1.75)
    assert found.active == 1.0
    assert found.outliers == 0.25  # deviation 1.22: only 4 is further than that above 2
    assert found.similarity is None
    assert found.unseen == (0, 1)


def test_columns_that_never_were_active() -> None:
    (found,) = statistics(matrix({A: ([[0, 1e-5, 2e-5, 1]], [1])}))
    assert found.active == 0.5
    assert found.smallest == 0.0


def test_a_flat_tensor_has_all_the_entropy() -> None:
    (found,) = statistics(matrix({A: ([[3.0] * 16], [3])}))
    assert found.entropy == pytest.approx(4.0)
    assert found.outliers == 0.0


def test_experts_without_tokens_are_left_out() -> None:
    (found,) = statistics(matrix({EXPERTS: ([[1, 3], [0, 0], [2, 2]], [1, 0, 2])}))
    assert (found.total, found.columns, found.unseen) == (6.0, 4, (1, 3))
    assert found.smallest == 1.0


def test_nothing_was_seen_at_all() -> None:
    (found,) = statistics(matrix({EXPERTS: ([[0, 0], [0, 0]], [0, 0])}))
    assert found.unseen == (2, 2)
    assert (found.total, found.outliers, found.active) == (0.0, 0.0, 0.0)


def test_similarity_to_the_layer_before() -> None:
    layers = {
        "blk.8.ffn_up.weight": ([[1, 0]], [1]),
        "blk.9.ffn_up.weight": ([[3, 4]], [5]),
        "blk.10.ffn_up.weight": ([[6, 8]], [1]),
        "blk.10.ffn_down.weight": ([[6, 8]], [1]),
        "blk.11.ffn_up.weight": ([[1, 2, 3]], [1]),
        "blk.12.ffn_up.weight": ([[0, 0, 0]], [1]),
        "blk.x.ffn_up.weight": ([[1]], [1]),
        "output.weight": ([[1]], [1]),
    }
    found = {s.name: s.similarity for s in statistics(matrix(layers))}
    assert list(found) == list(layers)
    assert found.pop("blk.9.ffn_up.weight") == pytest.approx(0.6)
    assert found.pop("blk.10.ffn_up.weight") == pytest.approx(1.0)
    assert set(found.values()) == {None}


def test_entries_without_tokens_are_ones() -> None:
    """Sums without a count are no data: every column matters alike."""
    entries = matrix({EXPERTS: ([[9, 9], [4, 2]], [0, 2])}).entries
    assert entries[EXPERTS].tolist() == [[1, 1], [2, 1]]


# --- against llama-imatrix -------------------------------------------------------------------------------


def legacy_of(matrix: ImportanceMatrix) -> bytes:
    """The same matrix in the older form: every expert's means, scaled to one number of calls."""
    data = struct.pack("<i", len(matrix.sums))
    for name, means in matrix.entries.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 8, means.size)
        data += (means * 8).astype("<f4").tobytes()
    return data + struct.pack("<ii8s", 8, 8, b"text.txt")


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A golden, and another matrix of the same model with a data set of its own."""
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    one.write_bytes(golden.load("hybrid_moe"))
    two.write_bytes(golden.load("hybrid_moe").replace(b"text.txt", b"more.txt"))
    return one, two


def llama_imatrix(*words: Any, cwd: Path) -> str:
    command = [str(toolchain.tool("llama-imatrix")), "-m", "none", *map(str, words)]
    run = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    return run.stdout + run.stderr


def test_statistics_are_llama_imatrixs(tmp_path: Path) -> None:
    """Its table has a layer and a tensor's name in each row, then the numbers named below."""
    (tmp_path / "m.gguf").write_bytes(golden.load(golden.STATISTICS))
    found = {s.name: s for s in statistics(read_imatrix(tmp_path / "m.gguf"))}
    kept = (golden.GOLDEN / f"{golden.STATISTICS}.statistics.tsv").read_text()
    rows = [line.split("\t") for line in kept.splitlines()]
    assert {f"blk.{row[0]}.{row[1]}.weight" for row in rows} == set(found)
    for layer, tensor, *numbers in rows:
        total, low, high, mean, _, active, columns, entropy, _, above, cosine = map(float, numbers)
        mine = found[f"blk.{layer}.{tensor}.weight"]
        assert mine.total == pytest.approx(total, abs=0.006, rel=1e-4)
        assert mine.smallest == pytest.approx(low, abs=6e-5)
        assert mine.largest == pytest.approx(high, abs=6e-5, rel=1e-4)
        assert mine.mean == pytest.approx(mean, abs=0.006)
        assert 100 * mine.active == pytest.approx(active, abs=0.006)
        assert mine.columns == columns
        assert mine.entropy == pytest.approx(entropy, abs=6e-4)
        assert 100 * mine.outliers == pytest.approx(above, abs=0.006)
        assert (mine.similarity or 0.0) == pytest.approx(cosine, abs=6e-4)


class TestToolchain:
    pytestmark = toolchain.needs_imatrix

    def test_the_sum_is_llama_imatrixs_byte_for_byte(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        words = ("--in-file", "one.gguf,two.gguf", "-o", "both.gguf", "-c", golden.CHUNK)
        said = llama_imatrix(*words, cwd=tmp_path)
        both = merged([read_imatrix(path) for path in files], "both.gguf", golden.CHUNK)
        assert imatrix_bytes(both) == (tmp_path / "both.gguf").read_bytes(), said

    def test_so_is_the_sum_of_legacy_files(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        """Stacks keep one count there; we write one for each expert, which reads the same."""
        (tmp_path / "a.dat").write_bytes(legacy_of(read_imatrix(files[0])))
        (tmp_path / "b.dat").write_bytes(legacy_of(read_imatrix(files[1])).replace(b"text.txt", b"more.txt"))
        llama_imatrix("--in-file", "a.dat,b.dat", "-o", "both.gguf", "-c", golden.CHUNK, cwd=tmp_path)
        ours = merged(
            [read_imatrix(tmp_path / name) for name in ("a.dat", "b.dat")], "both.gguf", golden.CHUNK
        )
        theirs = read_imatrix(tmp_path / "both.gguf")
        assert list(ours.sums) == list(theirs.sums)
        assert (ours.datasets, ours.chunk_count) == (theirs.datasets, theirs.chunk_count)
        for name in ours.sums:
            np.testing.assert_allclose(ours.entries[name], theirs.entries[name], rtol=1e-6)
