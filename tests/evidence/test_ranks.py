"""The pass divided over processes that torchrun starts: what one process gives, one voice, one error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_stream import damaged
from zoo_types import Zoo, ZooCopy

from qexport.errors import UsageProblem
from qexport.evidence.imatrix_file import ImportanceMatrix, read_imatrix
from qexport.evidence.options import StreamOptions
from qexport.evidence.ranks import ALONE, Ranks, here
from qexport.recipe.recipe import Recipe
from qexport.run.job import run
from qexport.run.local import Local

ROOT = Path(__file__).parents[2]
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
# Float32 sums in another order.
TOLERANCE = 1e-5


def imatrix(
    folder: Path, out: Path, *words: str, start: tuple[str, ...] = ("-m",)
) -> subprocess.CompletedProcess[str]:
    corpus = out.parent / "corpus.jsonl"
    ids = np.random.default_rng(0).integers(0, 300, (5, 32)).tolist()
    corpus.write_text("\n".join(json.dumps({"input_ids": row}) for row in ids))
    words = (str(folder), "--corpus", str(corpus), "-o", str(out), "--calib-chunk", "32", *words)
    command = [sys.executable, *start, "qexport", "imatrix", *words, "--precision", "float32"]
    known = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=known, capture_output=True, text=True, check=False)


def tables(matrix: ImportanceMatrix) -> dict[str, np.ndarray]:
    found = {f"{name} sums": table for name, table in matrix.sums.items()}
    found |= {f"{name} counts": table for name, table in matrix.counts.items()}
    if (felt := matrix.sensitivity) is not None:
        found |= {f"{name} {table}": rows[name] for table, rows in felt.tables.items() for name in rows}
        found["amounts"] = np.array([felt.tokens, felt.draft_tokens])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [(), ("--sensitivity", "--sensitivity-tokens", "96")], ids=["plain", "felt"]
)
@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_two_processes_give_the_matrix_of_one(
    zoo: Zoo, tmp_path: Path, name: str, words: tuple[str, ...]
) -> None:
    """Five chunks: three and two. Of the three that go back, two and one."""
    one, both = tmp_path / "one.gguf_file", tmp_path / "both.gguf_file"
    alone = imatrix(zoo(name), one, *words, "--json")
    assert alone.returncode == 0, alone.stderr
    together = imatrix(zoo(name), both, *words, "--json", start=TWO)
    assert together.returncode == 0, together.stderr
    said = json.loads(together.stdout)  # one document: the others are silent
    assert together.stderr.count("collected in") == 1
    assert said["processes"] == 2
    assert {**said, "processes": None}.keys() == {**json.loads(alone.stdout), "processes": None}.keys()
    expected, found = (tables(read_imatrix(path)) for path in (one, both))
    assert expected.keys() == found.keys()
    for key, table in expected.items():
        scale = np.abs(table) + np.abs(table).mean(axis=-1, keepdims=True) + 1e-30
        assert (np.abs(found[key] - table) / scale).max() < TOLERANCE, key
    assert expected["amounts"].tolist() == [96, 93] if words else "amounts" not in expected


@pytest.mark.slow
def test_an_error_ends_all_with_one_message(zoo_copy: ZooCopy, tmp_path: Path) -> None:
    out = tmp_path / "both.gguf_file"
    done = imatrix(damaged(zoo_copy("qwen3_5"), "model.layers.1.mlp.up_proj.weight"), out, start=TWO)
    assert done.returncode != 0
    assert [line[:7] for line in done.stderr.splitlines()].count("Error: ") == 1
    assert "not finite" in done.stderr
    assert "exitcode  : 3" in done.stderr  # torchrun's summary has ours
    assert not out.exists()


CHILD = """
import sys
from pathlib import Path

from qexport.errors import InputError
from qexport.evidence.ranks import here

said = Path(__file__).parent
ranks = here()
try:
    with ranks.together():
        ranks.meet()
        if ranks.rank == int(sys.argv[1]):
            raise InputError("it is broken", hint="mend it")
        ranks.meet()
        (said / f"{ranks.rank}.txt").write_text("nobody comes here")
except InputError as error:
    (said / f"{ranks.rank}.txt").write_text(error.message)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("broken", "words"), [(0, "it is broken"), (1, "process 2 of 2: it is broken")])
def test_what_is_wrong_with_one_is_wrong_with_all(tmp_path: Path, broken: int, words: str) -> None:
    child = tmp_path / "child.py"
    child.write_text(CHILD)
    done = subprocess.run(
        [sys.executable, *TWO[:-1], str(child), str(broken)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == [words, words]


def test_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for word, number in (("RANK", 5), ("WORLD_SIZE", 8), ("LOCAL_RANK", 1), ("LOCAL_WORLD_SIZE", 4)):
        monkeypatch.setenv(word, str(number))
    assert here() == ALONE  # others set these words, too
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert here() == Ranks(5, 8, 1, 4)
    with pytest.raises(UsageProblem, match="an export is one process, and torchrun has started 8"):
        run(Recipe(subjects=(), artifacts=()), Local())


def test_shares_devices_and_memory() -> None:
    rows = np.arange(10)
    shares = [Ranks(rank, 4).share(rows).tolist() for rank in range(4)]
    assert sorted(number for share in shares for number in share) == rows.tolist()
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    ranks = Ranks(5, 8, 1, 4)
    given = ranks.options(StreamOptions(device="cuda", activation_memory=100))
    assert (given.device, given.activation_memory) == ("cuda:1", 25)
    assert ranks.options(StreamOptions(activation_memory=100)).device == "cpu"
    with pytest.raises(UsageProblem, match="8 processes cannot share cuda:0"):
        ranks.options(StreamOptions(device="cuda:0"))
    assert ALONE.options(StreamOptions(device="cuda:0")) == StreamOptions(device="cuda:0")


def test_alone_nothing_is_told() -> None:
    tables = {"a": np.ones(3)}
    with ALONE.together():
        ALONE.meet()
        assert ALONE.added(tables) == tables
