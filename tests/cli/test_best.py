"""`--best` on the demo model: kept where it is better; where sensitivities mislead, plain is written."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import names, ok, run

from qexport.demo import MODEL
from qexport.errors import InputError, UsageProblem
from qexport.evidence.backward import TwoWayStream
from qexport.evidence.corpus import kept_apart, read_corpus
from qexport.evidence.imatrix_file import ImportanceMatrix, imatrix_bytes
from qexport.evidence.observe import InputSquares
from qexport.evidence.options import StreamOptions
from qexport.evidence.sensitivity import Summed
from qexport.evidence.tokens import tokenize
from qexport.formats.gguf.importance import gguf_importance
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.registry import format_of
from qexport.recipe.choice import ModelChoice
from qexport.recipe.recipe import Calibration
from qexport.run import best
from qexport.run.best import divided, each_best, heldout_beside
from qexport.run.model import examine


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of the demo model's own little world."""
    path = Path(__file__).parents[2] / "tools" / "demo_corpus.py"
    spec = importlib.util.spec_from_file_location("demo_corpus", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out = tmp_path_factory.mktemp("corpus") / "own.jsonl"
    out.write_text("".join(json.dumps({"text": text}) + "\n" for text in islice(module.documents(5), 400)))
    return out


@pytest.fixture(scope="module")
def matrix(corpus: Path) -> ImportanceMatrix:
    view = examine(ModelChoice(str(MODEL)), download=False).repaired.view()
    ids = tokenize(read_corpus(corpus), view.files, tokens=1024, chunk=256).ids
    squares = InputSquares()
    found = TwoWayStream(view, StreamOptions()).run_both(ids, squares, text="t").sensitivity
    about: dict[str, Any] = {"datasets": ["own"], "chunk_count": 4, "chunk_size": 256, "label": "own"}
    return gguf_importance(view, squares.sums, squares.counts, sensitivity=found, **about)


def misled(matrix: ImportanceMatrix) -> ImportanceMatrix:
    """The tensors that matter most pass for those that matter least."""
    felt = matrix.sensitivity
    assert felt is not None
    tables = {table: dict(rows) for table, rows in felt.tables.items()}
    # Per token, squared gradient times squared input: what the sum of all weights of a tensor follows.
    together = tables[Summed.JOINT]
    middle = float(np.exp(np.mean([np.log(rows[:, 0].sum()) for rows in together.values()])))
    for name, rows in together.items():
        turned = (middle / rows[:, :1].sum()) ** 2
        together[name] = np.concatenate([rows[:, :1] * turned, rows[:, 1:]], axis=1).astype(np.float32)
    return replace(matrix, sensitivity=replace(felt, tables=tables))


def export(out: Path, *more: Any) -> tuple[Any, ...]:
    return ("gguf", MODEL, "-q", "Q3_K_M", "--no-mmproj", "--best", "--no-verify", "-o", out, *more)


FOLDERS = {
    "mlx": (("--bits", 4, "--mtp-layout", "none"), (), "QX-4bit", "4bit"),
    "nvfp4": ((), ("--scale-search", "importance"), "NVFP4-QX-mlp", "NVFP4"),
}
"""Arguments, those that the plain one has besides, and what the best folder and the plain one are called."""


def entry(out: Path) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads((out / "qexport.json").read_text())["artifacts"]
    (only,) = [each for each in found if each["kind"] != "imatrix"]
    return only


@pytest.mark.slow
def test_better_than_plain_on_a_part_of_the_corpus_that_was_kept_apart(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(best, "TOKENS", 2048)
    given = ("--imatrix", corpus, "--calib-tokens", 2048, "--calib-chunk", 256)
    ran = ok(*export(tmp_path, *given))
    assert "a tenth of own.jsonl that was kept apart: 2048 tokens" in ran.stderr
    assert names(tmp_path) == {"model-QX-Q3_K_M.gguf", "model-imatrix.gguf_file", "qexport.json"}
    found = entry(tmp_path)["against_plain"]
    assert found["kept"] is True
    assert found["best"]["value"] < found["plain"]["value"]
    assert found["gain"]["value"] == pytest.approx(found["plain"]["value"] - found["best"]["value"])
    assert found["gain"]["value"] > 2 * found["gain"]["error"] > 0
    assert found["positions"] == 8 * 127
    again = ok(*export(tmp_path, *given))
    assert "model-QX-Q3_K_M.gguf is there" in again.stderr
    assert "comparing with plain types" not in again.stderr
    assert entry(tmp_path)["against_plain"] == found


@pytest.mark.slow
def test_plain_is_written_where_sensitivities_mislead_and_everything_says_so(
    tmp_path: Path, matrix: ImportanceMatrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(best, "TOKENS", 2048)
    file, out = tmp_path / "misled.gguf_file", tmp_path / "out"
    file.write_bytes(imatrix_bytes(misled(matrix)))
    ran = run(*export(out, "--imatrix", file))
    assert ran.code == 5, ran.stderr
    assert "the held-out text inside the package" in ran.stderr
    assert "no better beyond noise" in ran.stderr
    assert "model-Q3_K_M.gguf: plain, not best" in ran.stderr
    assert names(out) == {"model-Q3_K_M.gguf", "qexport.json"}
    found = entry(out)
    assert found["label"] == "Q3_K_M"
    assert found["against_plain"]["kept"] is False
    # It is the file that the type alone gives, to the byte.
    words = ("gguf", MODEL, "-q", "Q3_K_M", "--no-mmproj", "--no-verify", "--imatrix", file)
    ok(*words, "-o", tmp_path / "plain")
    assert found["files"][0]["sha256"] == entry(tmp_path / "plain")["files"][0]["sha256"]
    again = run(*export(out, "--imatrix", file))
    assert again.code == 5
    assert "types chosen for" not in again.stderr
    assert "model-Q3_K_M.gguf is there" in again.stderr
    assert "comparing with plain types" not in again.stderr
    assert entry(out)["against_plain"] == found["against_plain"]


@pytest.mark.slow
def test_a_folder_that_is_better_on_a_text_of_the_users_own(
    tmp_path: Path, corpus: Path, matrix: ImportanceMatrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(best, "TOKENS", 2048)
    file, other, out = tmp_path / "own.gguf_file", tmp_path / "other.jsonl", tmp_path / "out"
    file.write_bytes(imatrix_bytes(matrix))
    other.write_text("".join(corpus.read_text().splitlines(keepends=True)[200:]))
    texts = ("--feedback-text", corpus, "--feedback-tokens", 2048, "--heldout", other)
    words = ("nvfp4", MODEL, "--best", "--importance", file, *texts, "--no-verify", "-o", out)
    ran = ok(*words)
    assert "comparing with plain types on other.jsonl: 2048 tokens" in ran.stderr
    found = entry(out)
    assert (found["label"], found["against_plain"]["kept"]) == ("NVFP4-QX-mlp", True)
    assert found["details"]["feedback"]["tensors"] > 0
    again = ok(*words)
    assert "out is there" in again.stderr
    assert "types chosen for" not in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("word", FOLDERS)
def test_folders_that_are_no_better_than_plain_are_plain(
    word: str, tmp_path: Path, matrix: ImportanceMatrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(best, "TOKENS", 1024)
    file, given = tmp_path / "misled.gguf_file", tmp_path / "merged"
    more, plainly, chosen, plain = FOLDERS[word]
    file.write_bytes(imatrix_bytes(misled(matrix)))
    given.symlink_to(MODEL)
    how = ("--importance", file, "--no-verify", *more)
    monkeypatch.chdir(tmp_path)
    ran = run(word, given, "--best", *how)
    assert ran.code == 5, ran.stderr
    assert "no better beyond noise" in ran.stderr
    # Under the plain one's name, and nothing of the other is left.
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir() and not path.is_symlink()]
    assert "QX" not in folder.name
    found = entry(folder)
    assert found["against_plain"]["kept"] is False
    assert (found["against_plain"]["label"], found["label"]) == (chosen, plain)
    assert found["against_plain"]["tried"]["types"]
    ok(word, given, *how, *plainly, "-o", tmp_path / "plain")
    assert digests(found) == digests(entry(tmp_path / "plain"))
    # What was tried is remembered: neither assayed nor compared again.
    again = run(word, given, "--best", *how)
    assert again.code == 5
    assert f"{folder.name} is there" in again.stderr
    assert "types chosen for" not in again.stderr
    assert "comparing with plain types" not in again.stderr
    assert entry(folder)["against_plain"] == found["against_plain"]


def digests(entry: dict[str, Any]) -> dict[str, str]:
    return {file["name"]: file["sha256"] for file in entry["files"]}


def test_a_general_corpus_is_said_to_cost_something(corpus: Path, tmp_path: Path) -> None:
    ran = ok("gguf", MODEL, "-q", "Q4_K_M", "--best", "--calib-tokens", 512, "--dry-run")
    assert "-31 % of the divergence" in ran.stderr
    assert "QX-Q4_K_M" in ran.stdout + ran.stderr
    own = ok("gguf", MODEL, "-q", "Q4_K_M", "--best", "--imatrix", corpus, "--dry-run")
    assert "-31 %" not in own.stderr


def test_what_is_judged_by_is_not_what_is_calibrated_on(corpus: Path) -> None:
    view = examine(ModelChoice(str(MODEL)), download=False).repaired.view()
    whole = read_corpus(corpus)
    rest, heldout = divided(whole, Calibration(corpus, chunk=256), view)
    parts = kept_apart(whole)
    assert parts is not None
    assert rest.sha256 == parts[0].sha256
    assert "kept apart" in heldout.words
    small = replace(whole, records=whole.records[:20])
    all_of_it, inside = divided(small, Calibration(corpus, chunk=256), view)
    assert all_of_it is small
    assert "inside the package" in inside.words


def test_a_text_of_the_users_own_to_judge_by(corpus: Path, matrix: ImportanceMatrix, tmp_path: Path) -> None:
    view, whole = examine(ModelChoice(str(MODEL)), download=False).repaired.view(), read_corpus(corpus)
    other = tmp_path / "other.jsonl"
    other.write_text("".join(corpus.read_text().splitlines(keepends=True)[:200]))
    how = Calibration(corpus, chunk=256, heldout=other)
    all_of_it, heldout = divided(whole, how, view)
    assert all_of_it is whole
    assert heldout.words == "other.jsonl"
    assert heldout.tokens.shape[1] == 256
    with pytest.raises(UsageProblem, match=r"own\.jsonl is what is calibrated on"):
        divided(whole, replace(how, heldout=corpus), view)
    # Beside a matrix: of that which the matrix names, and of the text of error feedback.
    of_corpus = replace(matrix, datasets=(f"own.jsonl sha256:{whole.sha256[:16]} 2048 tokens",))
    assert heldout_beside(of_corpus, how, view).words == "other.jsonl"
    for known, given in ((of_corpus, corpus), (matrix, other)):
        fed = replace(how, heldout=given, feedback_text=other)
        with pytest.raises(UsageProblem, match="is what is calibrated on"):
            heldout_beside(known, fed, view)
    other.write_text('{"text": "Only this."}\n')
    with pytest.raises(InputError, match="less than the 256 tokens of a chunk"):
        divided(whole, how, view)


def test_each_type_has_a_file_and_those_that_leave_nothing_to_choose_are_plain() -> None:
    made = each_best(GgufOptions(types=("Q4_K_M", "Q8_0", "BF16"), quality="best"))
    assert [(each.types, each.like, each.quality) for each in made] == [
        ((), "Q4_K_M", "best"),
        (("Q8_0",), None, "plain"),
        (("BF16",), None, "plain"),
    ]
    plain = GgufOptions(types=("Q4_K_M",))
    assert each_best(plain) == (plain,)


def test_the_best_folder_takes_importance_whatever_its_plain_one_does(matrix: ImportanceMatrix) -> None:
    """The word alone is enough: no scale_search beside it, and types that have no use for importance."""
    for options, like in (
        (Nvfp4Options(quality="best", importance=matrix, scope="nvidia", keep_head=True), "nvidia"),
        (MlxOptions(quality="best", importance=matrix, mode="mxfp4"), "mxfp4"),
        (MlxOptions(quality="best", importance=matrix, bits=6, group_size=128), "6bit-g128"),
    ):
        (made,) = each_best(options)
        assert (made.like, made.importance, made.feedback) == (like, matrix, True)
        assert format_of(options).weighted({"quality": "best"})
    with pytest.raises(UsageProblem, match="mse would weigh them alike"):
        Nvfp4Options(quality="best", importance=matrix, scale_search="mse")


@pytest.mark.parametrize(
    "aim", [{"size": 10**9}, {"bpw": 4.5}, {"max_kld": 0.1}, {"types_from": Path("x.json")}]
)
def test_the_best_of_what(aim: dict[str, Any]) -> None:
    with pytest.raises(UsageProblem, match="best file of a type's size"):
        GgufOptions(quality="best", **aim)
