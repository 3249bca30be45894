"""The pass divided over processes that torchrun starts: what one process gives, one voice, one error."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from test_stream import damaged
from zoo_types import Zoo

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
from in_process import ok

from qexport.errors import UsageProblem
from qexport.evidence.imatrix_file import ImportanceMatrix, read_imatrix
from qexport.evidence.options import StreamOptions
from qexport.evidence.ranks import ALONE, Ranks, here
from qexport.recipe.recipe import Recipe
from qexport.run.job import run
from qexport.run.local import Local

ROOT = Path(__file__).parents[2]
# Float32 sums in another order.
TOLERANCE = 1e-5
WORDS: dict[str, tuple[str, ...]] = {"plain": (), "felt": ("--sensitivity", "--sensitivity-tokens", "96")}
NAMES = ("qwen3_5", "qwen3_5_moe")

# What torchrun starts: one thing after the other, each with output and exit code of its own. They meet where
# torchrun says, then at ports of their own: its store remembers where they met. It leaves with the last code.
CHILD = """
import json, os, sys
from pathlib import Path

from qexport.cli.main import main
from qexport.errors import InputError
from qexport.evidence.ranks import here

folder = Path(__file__).parent


def meet(broken):
    ranks = here()
    try:
        with ranks.together():
            ranks.meet()
            if ranks.rank == int(broken):
                raise InputError("it is broken", hint="mend it")
            ranks.meet()
            print("nobody comes here")
    except InputError as error:
        print(error.message)


ports, leave, os._exit = sys.argv, os._exit, sys.exit  # which main() would leave by
for number, (name, words) in enumerate(json.loads((folder / "jobs.json").read_text()).items()):
    if number:
        os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": ports[number]}
    for fd, kind in ((1, "out"), (2, "err")):
        file = folder / f"{name}.{os.environ['RANK']}.{kind}"
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), fd)
    sys.argv, code = ["qexport", *words], 0
    try:
        meet(*words[1:]) if words[0] == "meet" else main()
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    (folder / f"{name}.{os.environ['RANK']}.code").write_text(str(code))
leave(code)
"""


@dataclass(frozen=True)
class Done:
    """What torchrun's two processes did: the folder of their files, and what torchrun itself said."""

    folder: Path
    said: str

    def of(self, name: str, kind: str) -> list[str]:
        """What each printed (``out``, ``err``), or its exit code (``code``)."""
        return [(self.folder / f"{name}.{rank}.{kind}").read_text() for rank in range(2)]


def imatrix(folder: Path, out: Path, *words: str) -> list[str]:
    corpus = out.parent / "corpus.jsonl"
    ids = np.random.default_rng(0).integers(0, 300, (5, 32)).tolist()
    corpus.write_text("\n".join(json.dumps({"input_ids": row}) for row in ids))
    words = (str(folder), "--corpus", str(corpus), "-o", str(out), "--calib-chunk", "32", *words)
    return ["imatrix", *words, "--precision", "float32"]


@pytest.fixture(scope="module")
def together(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """All that two processes do: torchrun and both of them take seconds to begin."""
    folder = tmp_path_factory.mktemp("together")
    jobs = {
        f"{name} {word}": imatrix(zoo(name), folder / f"{name} {word}", *more, "--json")
        for name, (word, more) in product(NAMES, WORDS.items())
    }
    jobs |= {f"broken {rank}": ["meet", str(rank)] for rank in range(2)}
    whole = shutil.copytree(zoo("qwen3_5"), folder / "damaged", copy_function=shutil.copyfile)
    jobs["damaged"] = imatrix(damaged(whole, "model.layers.1.mlp.up_proj.weight"), folder / "none")
    (folder / "jobs.json").write_text(json.dumps(jobs))
    (folder / "child.py").write_text(CHILD)
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(folder / "child.py")]
    with ExitStack() as taken:
        found = [taken.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in jobs]
        start += [str(each.getsockname()[1]) for each in found]
    known = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, *start], env=known, capture_output=True, text=True, check=False)
    return Done(folder, f"{ran.returncode}: {ran.stdout}{ran.stderr}")


def tables(matrix: ImportanceMatrix) -> dict[str, np.ndarray]:
    found = {f"{name} sums": table for name, table in matrix.sums.items()}
    found |= {f"{name} counts": table for name, table in matrix.counts.items()}
    if (felt := matrix.sensitivity) is not None:
        found |= {f"{name} {table}": rows[name] for table, rows in felt.tables.items() for name in rows}
        found["amounts"] = np.array([felt.tokens, felt.draft_tokens])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_give_the_matrix_of_one(
    zoo: Zoo, tmp_path: Path, together: Done, name: str, word: str
) -> None:
    """Five chunks: three and two. Of the three that go back, two and one."""
    alone = ok(*imatrix(zoo(name), tmp_path / "one", *WORDS[word], "--json"))
    both = f"{name} {word}"
    assert together.of(both, "code") == ["0", "0"], together.of(both, "err")
    document, nothing = together.of(both, "out")  # one document: the others are silent
    assert nothing == ""
    said = json.loads(document)
    assert "".join(together.of(both, "err")).count("collected in") == 1
    assert said["processes"] == 2
    assert {**said, "processes": None}.keys() == {**alone.json(), "processes": None}.keys()
    expected, found = (tables(read_imatrix(path)) for path in (tmp_path / "one", together.folder / both))
    assert expected.keys() == found.keys()
    for key, table in expected.items():
        scale = np.abs(table) + np.abs(table).mean(axis=-1, keepdims=True) + 1e-30
        assert (np.abs(found[key] - table) / scale).max() < TOLERANCE, key
    assert expected["amounts"].tolist() == [96, 93] if word == "felt" else "amounts" not in expected


@pytest.mark.slow
def test_an_error_ends_all_with_one_message(together: Done) -> None:
    said = "".join(together.of("damaged", "err"))
    assert [line[:7] for line in said.splitlines()].count("Error: ") == 1
    assert "not finite" in said
    assert together.of("damaged", "code") == ["3", "3"]
    assert "exitcode  : 3" in together.said  # torchrun's summary has ours
    assert not (together.folder / "none").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("broken", "words"), [(0, "it is broken"), (1, "process 2 of 2: it is broken")])
def test_what_is_wrong_with_one_is_wrong_with_all(together: Done, broken: int, words: str) -> None:
    assert together.of(f"broken {broken}", "code") == ["0", "0"], together.of(f"broken {broken}", "err")
    assert together.of(f"broken {broken}", "out") == [f"{words}\n"] * 2


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
