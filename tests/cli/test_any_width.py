"""What commands print fits the terminal, and with NO_COLOR nothing in it is for the terminal."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from in_process import run
from zoo_types import Zoo

sys.path.insert(0, str(Path(__file__).parents[1] / "publish"))
from exported_folders import export, gguf

from qexport.cli._terminal import folded

LONG = "a-model-with-a-long-name-" * 4


class Screen(io.StringIO):
    """Somebody looks at it."""

    def isatty(self) -> bool:
        return True


COMMANDS = {
    "inspect": "{model}",
    "gguf": "{model} -q Q4_K_M,Q8_0 --dry-run",
    "mlx": "{model} --dry-run",
    "fp8": "{model} --dry-run",
    "nvfp4": "{model} --dry-run",
    "imatrix": "{model} --dry-run",
    "fix": "{model} --dry-run",
    "init": "{model} -o {out}/r.yaml",
    "run": "demo --dry-run",
    "matrix": "demo qwen3.5-9b qwen3.6-27b",
    "mtp": "score {model} --dry-run",
    "report": "{made} -o {out}/report",
    "push": "{made} me/x --dry-run",
    "verify": "{out}/nothing.gguf",
    "bench": "{out}/nothing.gguf",
    "adopt": "{model} --base {model} -o {out}/adopted",
}


@pytest.fixture(scope="module")
def places(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("any-width")
    model = folder / LONG
    model.symlink_to(zoo("qwen3_5"), target_is_directory=True)
    made = export(folder / "Tuned-GGUF", [gguf("Q8_0"), gguf("Q4_K_M")])
    return {"model": model, "made": made, "out": folder}


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_line_is_wider_than_the_terminal(
    command: str, width: int, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("in_process.io.StringIO", Screen)
    for name, value in (("COLUMNS", str(width)), ("NO_COLOR", "1"), ("TERM", "xterm-256color")):
        monkeypatch.setenv(name, value)
    ran = run(command, *(word.format(**places) for word in COMMANDS[command].split()))
    shown, _, card = ran.stdout.partition("\n---\n")  # the card is Markdown, to be copied
    assert bool(card) == (command == "push")
    lines = [*shown.splitlines(), *ran.stderr.splitlines()]
    assert lines
    assert "\x1b" not in ran.stdout + ran.stderr
    # What is to be copied stays whole: commands, words that are wider themselves, what an error says.
    wide = [line for line in lines if len(line) > width and not line.startswith(("Next: ", "Error: "))]
    assert [line for line in wide if max(map(len, line.split())) < width - 6] == []


def test_sentences_end_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    text = "  a sentence that is longer\nshort\n/a/path/that/is/longer/than/that"
    assert folded(text, Screen()) == (
        "  a sentence that is\n    longer\nshort\n/a/path/that/is/longer/than/that"
    )
    assert folded(text, io.StringIO()) == text
