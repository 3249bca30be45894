"""`qexport verify DIR` and `bench DIR`: every artifact by its receipt, one table, one exit code."""

import json
import re
import sys
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).parents[1] / name) for name in ("publish", "report", "verify")]
from document_types import misfits
from exported_folders import FAILED, entry, export, gguf
from in_process import ok, run
from receipts_by_hand import bench as figures

import qexport.run.bench as bench_command
import qexport.run.verify as command
from qexport.artifacts.description import Description
from qexport.cli._documents import BenchDocument, VerifyDocument
from qexport.errors import EnvironmentProblem
from qexport.receipt.speeds import Bench, RuntimeVersion
from qexport.receipt.typed import fit
from qexport.receipt.verification import REQUIRED, Check, Status, Verdict, Verification
from qexport.run.measure import Measure
from qexport.verification.bench import Benched
from qexport.verification.options import VerifyOptions

RAN = tuple(Verdict(check, Status.PASS, "good") for check in REQUIRED)
PASSED = (*RAN, Verdict(Check.AGREEMENT, Status.PASS, "good"))
WRONG = (*RAN[:-1], Verdict(REQUIRED[-1], Status.FAIL, "gibberish"))


@pytest.fixture
def ran(monkeypatch):
    """The paths that were run; ``ran.says[name]`` is what comes of one, an error or findings."""

    class Ran(list[Path]):
        says: dict[str, object]

    calls = Ran()
    calls.says = {}

    def verify(path, **_):
        calls.append(path)
        said = calls.says.get(path.name, PASSED)
        if isinstance(said, Exception):
            raise said
        return Verification(path.name, RuntimeVersion("xllamacpp", "1"), said)

    monkeypatch.setattr(command, "verify_artifact", verify)
    return calls


@pytest.fixture
def out(tmp_path):
    """As `qexport run` leaves it: a ladder with a matrix, a split file and an old name, and an MLX folder."""
    split = {f"Tuned-Q6_K-0000{n}-of-00002.gguf": b"x" * n for n in (1, 2)}
    old = {"Tuned-MTP-Q5_K_M-imatrix.gguf": b"old"}
    matrix = {"Tuned-imatrix.gguf_file": b"m"}
    made = export(
        tmp_path / "Tuned-GGUF",
        [
            gguf("Q4_K_M", 1000),
            (entry("Q6_K", split), split),
            (entry("Q5_K_M", old), old),
            (entry("Q8_0", {"Tuned-Q8_0.gguf": b"q"}, verification=None), {"Tuned-Q8_0.gguf": b"q"}),
            (entry("imatrix", matrix, kind="imatrix", verification=None), matrix),
        ],
    )
    (made / "mmproj-Tuned.gguf").write_bytes(b"somebody's projector")
    files = {"config.json": b"{}", "model.safetensors": b"w"}
    export(tmp_path / "Tuned-MLX-6bit", [(entry("6bit", files, kind="mlx"), files)])
    export(tmp_path / "Tuned-MLX-6bit-MTP", [(entry("6bit-MTP", files, kind="mlx-drafter"), files)])
    return tmp_path


RECEIPTS = [
    "Tuned-Q4_K_M.gguf",
    "Tuned-Q6_K-00001-of-00002.gguf",
    "Tuned-MTP-Q5_K_M-imatrix.gguf",
    "Tuned-Q8_0.gguf",
]


def test_a_folder_of_gguf_files_is_gone_through_by_its_receipt(out, ran):
    assert ok("verify", out / "Tuned-GGUF").stdout.count("pass") >= 4
    assert [path.name for path in ran] == RECEIPTS
    document = ok("verify", out / "Tuned-GGUF", "--json").json()
    assert misfits(VerifyDocument, document) == []
    assert [each["artifact"] for each in document["artifacts"]] == RECEIPTS
    assert document["not_run"] == []


def test_the_source_is_run_once_for_all(out, monkeypatch):
    """Whatever the number of artifacts, what compares them with the source is made once."""
    given = []

    def verify(path, *, measure, **_):
        given.append(measure)
        return Verification(path.name, RuntimeVersion("xllamacpp", "1"), PASSED)

    monkeypatch.setattr(command, "verify_artifact", verify)
    how = {"options": VerifyOptions(), "say": str, "title": str}
    found = command.verify_all(out / "Tuned-GGUF", view=object(), measure=4096, **how)
    assert [each.artifact for each in found.reports] == RECEIPTS
    assert len(given) == len(RECEIPTS)
    assert isinstance(given[0], Measure)
    assert all(each is given[0] for each in given)
    given.clear()
    command.verify_all(out / "Tuned-GGUF", view=None, measure=4096, **how)
    assert given == [None] * len(RECEIPTS)  # nothing to compare with


def test_all_that_a_run_wrote(out, ran):
    ok("verify", out)
    assert [path.relative_to(out).as_posix() for path in ran] == [
        *(f"Tuned-GGUF/{name}" for name in RECEIPTS),
        "Tuned-MLX-6bit",
    ]


def test_again_runs_only_what_the_receipts_call_verified(out, ran):
    ok("verify", out / "Tuned-GGUF", "--again")
    assert [path.name for path in ran] == RECEIPTS[:3]


def test_a_model_that_no_receipt_knows_is_run_too(out, ran):
    (out / "Tuned-GGUF" / "theirs-Q2_K.gguf").write_bytes(b"x")
    ok("verify", out / "Tuned-GGUF")
    assert ran[-1].name == "theirs-Q2_K.gguf"


def test_a_folder_without_receipts(tmp_path, ran):
    for name in (
        "b.gguf",
        "a-00001-of-00002.gguf",
        "a-00002-of-00002.gguf",
        "mmproj-b.gguf",
        "b.imatrix.gguf",
        ".c.gguf",
    ):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "config.json").write_text("{}")  # as publishers leave it beside GGUF files
    ok("verify", tmp_path)
    assert [path.name for path in ran] == ["a-00001-of-00002.gguf", "b.gguf"]


@pytest.mark.parametrize("command", ["verify", "bench"])
@pytest.mark.parametrize("inside", [[], ["notes.txt"], ["mmproj-x.gguf", "x-imatrix.gguf_file"]])
def test_nothing_to_run_is_no_success(tmp_path, ran, command, inside):
    for name in inside:
        (tmp_path / name).write_bytes(b"x")
    found = run(command, tmp_path)
    assert found.code == 3
    assert "There is nothing to run" in found.stderr
    assert not ran


def test_again_where_nothing_was_verified(tmp_path, ran):
    made = export(
        tmp_path / "x", [gguf("Q4_K_M", 10, verification=FAILED), gguf("Q8_0", 10, verification=None)]
    )
    found = run("verify", made, "--again")
    assert found.code == 3
    assert "nothing was run" in found.stderr
    assert not ran


def replaced(path):
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (replaced, "is not the file that was exported"),
        (lambda path: path.write_bytes(b"short"), "has 5 bytes; the receipt says 1000"),
        (Path.unlink, "is in the receipt, but not in the folder"),
    ],
)
def test_another_file_under_a_receipts_name_fails_and_is_not_run(out, ran, harm, says):
    harm(out / "Tuned-GGUF" / "Tuned-Q4_K_M.gguf")
    found = run("verify", out / "Tuned-GGUF", "--json")
    assert found.code == 4
    assert says in found.stderr
    assert [path.name for path in ran] == RECEIPTS[1:]
    assert [each["artifact"] for each in found.json()["not_run"]] == ["Tuned-Q4_K_M.gguf"]


def test_one_that_fails_is_4_and_the_others_are_run(out, ran):
    ran.says = {"Tuned-Q6_K-00001-of-00002.gguf": WRONG, "Tuned-Q8_0.gguf": EnvironmentProblem("no runtime")}
    found = run("verify", out)
    assert found.code == 4
    assert len(ran) == 5
    assert "Tuned-Q6_K-00001-of-00002.gguf failed verification: text" in found.stderr
    assert "not run: no runtime" in found.stdout


@pytest.mark.parametrize("said", [EnvironmentProblem("no runtime"), PASSED[:1]])
def test_what_no_runtime_has_run_is_6(out, ran, said):
    ran.says = {"Tuned-MLX-6bit": said}
    found = run("verify", out)
    assert found.code == 6
    assert re.search(r"Tuned-MLX-6bit( is not verified|: not run)", found.stderr)


def test_what_ran_and_was_not_compared_is_6_unless_told(out, ran):
    ran.says = {"Tuned-MLX-6bit": RAN}
    found = run("verify", out)
    assert found.code == 6
    assert "Tuned-MLX-6bit: ran, not compared" in found.stderr
    assert "--against MODEL" in found.stderr
    ok("verify", out, "--allow-unverified")
    # The receipts have compared these very bytes; another machine only runs them.
    ok("verify", out, "--again")


def test_bench_measures_each_and_notes_it(out, ran, monkeypatch):
    monkeypatch.setattr(bench_command, "bench_subject", lambda path, _: (Description(path), None))
    monkeypatch.setattr(bench_command, "bench", lambda *_: Benched(fit(Bench, figures(40.0), "bench", [])))
    found = ok("bench", out / "Tuned-GGUF", "--json")
    assert misfits(list[BenchDocument], found.json()["artifacts"]) == []
    assert [each["artifact"] for each in found.json()["artifacts"]] == RECEIPTS
    entries = json.loads((out / "Tuned-GGUF" / "qexport.json").read_text())["artifacts"]
    assert [bool(each["bench"]) for each in entries] == [True] * 4 + [False]
    (out / "Tuned-GGUF" / RECEIPTS[0]).unlink()
    found = run("bench", out / "Tuned-GGUF", "--json")
    assert found.code == 3
    assert len(found.json()["artifacts"]) == 3
