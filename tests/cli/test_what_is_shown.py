"""Tables at any width, the board of what is being proven, and how much is said."""

from __future__ import annotations

import io
import re
import sys
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner
from in_process import ok
from rich.console import Console

from qexport.cli import _board
from qexport.cli._board import Board
from qexport.cli._options import JSON
from qexport.cli._output import Output
from qexport.cli._table import drawn
from qexport.run.watcher import Phase
from qexport.verification.table import COLUMNS

if TYPE_CHECKING:
    from pathlib import Path

    from zoo_types import Zoo

ROWS = [
    ["27B-Q4_K_M.gguf", "17 GB", "4.85", "0.0352 ± 0.0021", "92.7 ± 1.3 %", "42 ± 1 %", "57 of 66", "passed"],
    ["A-Model-27B-FP8", "28 GB", "8.5", "-", "", "-", "-", "failed: generates"],
]  # fmt: skip


@pytest.mark.parametrize("width", [40, 80, 100, 120, 200])
def test_a_table_fits_and_loses_nothing(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    table = drawn(COLUMNS, ROWS, "Results", screen=True)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", table)
    assert max(map(len, plain.splitlines())) <= width
    for cell in (cell for row in ROWS for cell in row if len(cell) > 1):
        assert cell in plain
    assert ("KL 0.0352 ± 0.0021" in plain) is (width < 120)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", table)  # no colour


def test_what_is_read_later_is_never_folded() -> None:
    wide = [["x" * 300, "1", *[""] * 6]]
    assert "x" * 300 in drawn(COLUMNS, wide, None, screen=False)
    assert "\x1b" not in drawn(COLUMNS, ROWS, "Results", screen=False)


def test_verdicts_have_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    table = drawn(COLUMNS, ROWS, None, screen=True)
    assert "\x1b[32mpassed" in table
    assert "\x1b[31mfailed: generates" in table
    assert drawn(("a",), [["\x1b[31mx"]], None, screen=True).count("\\x1b[31mx") == 1


def test_the_board(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(_board, "monotonic", lambda: now[0])
    board = Board(["a.gguf", "b" * 200, "c.gguf"])
    board.stage("a.gguf", "running")
    now[0] += 61
    board.stage("a.gguf", "measuring")
    now[0] += 4
    assert board.done("a.gguf", "passed").split() == ["passed", "a.gguf", "1:05"]
    board.stage("b" * 200, "running")
    now[0] += 5
    into = io.StringIO()
    Console(file=into, width=80, color_system=None).print(board.drawn())
    lines = into.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].split() == ["a.gguf", "passed", "1:05"]
    assert lines[1].split()[1:] == ["running", "0:05"]
    assert lines[2].split() == ["c.gguf", "waiting"]
    assert lines[3].strip() == "1 of 3, 1:10, about 2:05 left"


@pytest.mark.parametrize(
    ("words", "said"), [((), ["said", "passed"]), (("-v",), ["said", "detail", "passed"]), (("--quiet",), [])]
)
def test_how_much_is_said(words: tuple[str, ...], said: list[str]) -> None:
    @click.command()
    @JSON
    def command(as_json: bool) -> None:
        output = Output(as_json=as_json)
        output.say("said")
        with output.phase(Phase.VERIFYING, 1):
            output.stage("a", "running")
            output.detail("detail")
            output.proven("a", "passed")
        output.text("result")

    ran = CliRunner().invoke(command, words)
    assert ran.stdout == "result\n"
    assert [line.split()[0] for line in ran.stderr.splitlines()] == said


def test_a_refusal_is_said_however_quiet(zoo: Zoo, tmp_path: Path) -> None:
    quiet = ok("gguf", zoo("qwen3"), "-q", "Q8_0", "--no-verify", "--quiet", "-o", tmp_path / "out")
    assert quiet.stderr == ""
    with pytest.raises(AssertionError, match="Error: "):
        ok("gguf", zoo("qwen3"), "-q", "Q8_0", "--no-verify", "--quiet", "-o", zoo("qwen3"))


def watched(monkeypatch: pytest.MonkeyPatch) -> str:
    """What of a proof goes to a terminal."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    output = Output(as_json=False)
    with output.phase(Phase.VERIFYING, 2):
        for name in ("a.gguf", "b.gguf"):
            output.stage(name, "running")
            output.proven(name, "passed")
    return screen.getvalue()


def test_a_terminal_sees_the_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    shown = watched(monkeypatch)
    assert "a.gguf" in shown
    assert "2 of 2" in shown
    assert "\x1b[?25l" in shown


def test_a_cell_of_a_notebook_sees_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the cursor cannot go up, each drawing of the board stood below the one before."""
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    shown = watched(monkeypatch)
    assert [line.split()[:2] for line in shown.splitlines()] == [["passed", "a.gguf"], ["passed", "b.gguf"]]
    assert "\x1b" not in shown


def test_a_dry_run_names_tensors_only_where_all_is_asked_for(zoo: Zoo) -> None:
    """A file has a thousand of them: what it weighs is in a table."""
    words = ("gguf", zoo("llama3"), "-q", "Q8_0", "--dry-run")
    brief, whole = ok(*words).stdout, ok(*words, "-v").stdout
    assert "blk.0.attn_q.weight" in whole
    assert "blk." not in brief
    assert len(brief.splitlines()) < 10
    for shown in (brief, whole):
        assert re.search(r"llama3-Q8_0\.gguf +\S+ MB", shown)
        assert "to write" in shown
