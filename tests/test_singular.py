"""Nothing is said of one thing in the plural: numbers before nouns go through ``counted``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qexport.doctor.quirk import Quirk
from qexport.sizes import counted

PACKAGE = Path(__file__).parents[1] / "qexport"
NOUNS = "artifacts|chunks|documents|files|jobs|layers|limits|models|prompts|recipes|strings|tensors"


def test_no_word_has_two_numbers() -> None:
    """``file(s)`` is what a program says that has not looked."""
    found = [
        f"{path.name}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"[a-z]\((s|es|ies)\)( |,|\"|;|\.)", line) and ('"' in line) and "lambda" not in line
    ]
    assert found == []


@pytest.mark.parametrize("command", sorted((PACKAGE / "cli").glob("*.py")), ids=lambda path: path.stem)
def test_commands_count_in_words(command: Path) -> None:
    text = command.read_text(encoding="utf-8")
    assert re.findall(rf"\{{(?:len\([^{{}}]*\)|[\w.]*count)\}} (?:{NOUNS})\b", text) == []


@pytest.mark.parametrize(
    ("names", "what"), [(["a"], "1 tensor has x, such as a"), (["a", "b"], "2 tensors have x, such as a")]
)
def test_a_quirk_of_one_tensor(names: list[str], what: str) -> None:
    said = "{count} tensors have x, such as {first}"
    quirk = Quirk("a.b", title="", see=lambda _: names, repair="", what=said)
    found = quirk.detect(None)  # type: ignore[arg-type]
    assert found is not None
    assert found.what == what


def test_counted() -> None:
    assert counted(1, "model or base", "models and bases") == "1 model or base"
    assert counted(0, "file") == "0 files"
