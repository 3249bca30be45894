"""Nothing that a name holds reaches the terminal, and no stream that fails gives a traceback."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from in_process import run

from qexport.children.redact import redact
from qexport.cli._terminal import printable, visible
from qexport.cli.main import cli, of_the_machine
from qexport.publishing.leaks import check_text

PACKAGE = Path(__file__).parents[2] / "qexport"
ODD = "a\x1b]0;x\x07\x9b31m\r\u202e\u2066\u200b\ud800\U000e0041\u2028\x7f"


def child(words, redirect="", **more):
    """``qexport WORDS`` from a shell, with its output redirected there."""
    line = f'exec "$0" -m qexport {words} {redirect}'
    return subprocess.run(
        ["bash", "-c", line, sys.executable], capture_output=True, text=True, timeout=60, **more
    )


def test_what_a_terminal_obeys_is_shown_as_an_escape():
    shown = printable(ODD)
    assert shown == "a\\x1b]0;x\\x07\\x9b31m\\x0d\\u202e\\u2066\\u200b\\ud800\\U000e0041\\u2028\\x7f"
    for plain in ("a b\n\tc", "Größe 数 – ✓", "नि\u200dक"):
        assert printable(plain) == plain


def test_documents_keep_their_meaning():
    value = {"name": ODD, "ü": ["\n"]}
    text = visible(json.dumps(value, ensure_ascii=False, indent=1))
    assert json.loads(text) == value
    assert printable(text) == text
    assert "ü" in text


@pytest.mark.parametrize("json_too", [(), ("--json",)])
def test_names_in_errors_are_escaped(tmp_path, json_too):
    ran = run("inspect", tmp_path / "\x1b[31mred\u202e", *json_too)
    assert ran.code == 3
    assert "\\x1b[31mred\\u202e" in ran.stderr
    assert printable(ran.stdout + ran.stderr) == ran.stdout + ran.stderr
    ran = run("\x1b[31m")
    assert ran.code == 2
    assert printable(ran.stderr) == ran.stderr


def test_names_of_files_and_tensors_are_escaped(zoo_copy):
    folder = zoo_copy("llama")
    (folder / "\x1b[31mred.txt").write_text("x")
    (folder / os.fsdecode(b"not-utf-8-\xff.txt")).write_text("x")
    for words in (
        ["inspect", folder],
        ["inspect", folder, "--json"],
        ["gguf", folder, "-q", "Q8_0", "--dry-run"],
    ):
        ran = run(*words)
        assert ran.code == 0, ran.stderr
        assert printable(ran.stdout + ran.stderr) == ran.stdout + ran.stderr


def test_everything_is_printed_in_one_place():
    """An echo elsewhere would print what it is given."""
    found = []
    for path in (PACKAGE / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("click.echo", "click.secho", "print", "sys.stdout.write", "sys.stderr.write"):
                found.append((path.name, called))
    assert found == [("_terminal.py", "click.secho")]


def test_words_that_are_not_text_are_refused():
    ran = child("inspect $'model-\\xff'")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("Error: 'model-\\udcff' is not text in UTF-8")


def test_the_current_folder_is_a_word_too(tmp_path):
    here = tmp_path / os.fsdecode(b"model-\xff")
    here.mkdir()
    ran = child("inspect .", cwd=here)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "udcff' is not text in UTF-8" in ran.stderr


@pytest.mark.parametrize(
    ("words", "redirect", "code", "said"),
    [
        ("completion bash", ">&-", 0, ""),
        ("completion bash", "2>&-", 0, ""),
        ("completion bash", "<&- >&- 2>&-", 0, ""),
        ("inspect ./none", ">&- 2>&-", 3, ""),
        ("inspect ./none --json", "2>/dev/full", 3, ""),
        ("completion bash", ">/dev/full", 6, "Error: the result could not be written to stdout: No"),
        ("--help", ">/dev/full", 6, "No space left on device"),
        ("completion bash", ">/dev/full 2>/dev/full", 6, ""),
        ("completion bash", "> >(true)", 141, ""),
        ("completion bash", "> >(head -c 1 >/dev/null)", None, ""),
    ],
)  # fmt: skip
def test_streams_that_fail(words, redirect, code, said):
    ran = child(words, redirect)
    assert ran.returncode in ((0, 141) if code is None or code == 141 else (code,)), ran.stderr
    assert said in ran.stderr
    assert "Traceback" not in ran.stdout + ran.stderr
    assert "Exception ignored" not in ran.stderr


def test_a_closed_stdout_is_no_file_that_is_opened_later():
    """Else a library's word on stdout would land in the weights."""
    code = (
        "import os; from qexport.cli._terminal import prepare_streams; prepare_streams();"
        "assert os.open('/dev/zero', os.O_RDONLY) > 2"
    )
    ran = subprocess.run(
        ["bash", "-c", f'exec "$0" -c "{code}" <&- >&-', sys.executable], stderr=subprocess.PIPE, check=False
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    "surroundings",
    [
        {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"TERM": "dumb", "PYTHONIOENCODING": "ascii"},
        {},
    ],
)
def test_any_locale_and_no_home(surroundings, tmp_path):
    words = f"inspect {PACKAGE / 'demo' / 'model'}"
    ran = child(words, env=surroundings, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_defect_says_that_it_is_one(monkeypatch):
    def broken(*_):
        raise KeyError("x")

    monkeypatch.setattr(cli, "invoke", broken)
    ran = run("inspect", "m", "--json")
    assert ran.code == 1
    assert "Traceback" in ran.stderr
    assert "This is a defect of qexport" in ran.stderr
    assert ran.json() == {"error": "a defect of qexport: KeyError: 'x'", "hint": None, "exit_code": 1}


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MemoryError(), 6, "there is not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 6, "there is not enough memory"),
        (RuntimeError("Could not determine home directory."), 6, "no home directory"),
        (PermissionError(13, "Permission denied", "/x/y"), 6, "Error: /x/y: Permission denied"),
        (OSError("odd"), 6, "Error: odd"),
        (KeyboardInterrupt(), 130, "Stopped"),
        (click.Abort(), 130, "Stopped"),
    ],
)  # fmt: skip
def test_the_machine_is_6(monkeypatch, error, code, said):
    def broken(*_):
        raise error

    monkeypatch.setattr(cli, "invoke", broken)
    ran = run("inspect", "m")
    assert (ran.code, "Traceback" in ran.stderr) == (code, False), ran.stderr
    assert said in ran.stderr


def test_another_pipe_than_stdout_is_no_reader_that_has_enough(monkeypatch):
    def broken(*_, **__):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("qexport.run.model.examine", broken)
    ran = run("inspect", "m")
    assert ran.code == 6
    assert "another process closed its end of a pipe" in ran.stderr


def test_folders_that_are_not_there(monkeypatch):
    def gone():
        raise FileNotFoundError(2, "No such file or directory")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "cwd", gone)
    monkeypatch.setattr(Path, "home", homeless)
    assert redact("died in /some/where/file.py") == "died in file.py"
    check_text("a", b"text")


def test_what_no_machine_is_to_blame_for_is_none():
    assert of_the_machine(KeyError("x")) is None
    assert of_the_machine(RuntimeError("x")) is None


def test_a_second_stop_while_the_first_is_said(monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "invoke", stop)
    monkeypatch.setattr("qexport.cli.main.put", stop)
    assert run("inspect", "m").code == 130


def test_stopped_while_modules_are_loaded():
    code = (
        "import sys, builtins\n"
        "def stop(*_, **__): raise KeyboardInterrupt\n"
        "sys.modules['qexport.cli.main'] = type('M', (), {'__getattr__': lambda *_: stop()})()\n"
        "from qexport.__main__ import main\n"
        "main()\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (130, "")


@pytest.mark.parametrize(
    "words",
    [
        ("gguf", "m", "--threads", "9" * 30),
        ("gguf", "m", "--timeout", "nan"),
        ("gguf", "m", "--timeout", "inf"),
        ("bench", ".", "--timeout", "nan"),
        ("verify", ".", "--measure", "9" * 30),
        ("verify", ".", "--draft-max", "2147483648"),
        ("bench", ".", "--prompt-tokens", "9" * 30),
        ("push", ".", "a/b", "--timeout", "nan"),
        ("imatrix", "m", "--calib-tokens", "9" * 30),
        ("imatrix", "m", "--calib-chunk", "9" * 30),
        ("gguf", "m", "--split-max-size", "9" * 400),
        ("matrix", "r.yaml", "--params", "9" * 400 + "B"),
        ("matrix", "r.yaml", "--cores", "9" * 30),
        ("run", "r.yaml", "--measure", "9" * 30),
        ("gguf", "m", "--threads", "9" * 5000),
    ],
)
def test_numbers_that_no_machine_has_are_wrong_usage(words):
    ran = run(*words)
    assert (ran.code, "Traceback" in ran.stderr) == (2, False), ran.stderr
    assert "Invalid value" in ran.stderr
