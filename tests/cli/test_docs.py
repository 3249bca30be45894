"""Documents that are made from the program are current, and README's commands exist."""

import re
import shlex
from pathlib import Path

import click
import pytest

import make_docs
from qexport.cli.main import COMMANDS, cli

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["cli.md", "quirks.md", "json.md", "recipe.schema.json"])
def test_pages_made_from_the_program_are_current(name):
    assert (ROOT / "docs" / name).read_text() == make_docs.pages()[name], "run `make docs`"


def test_helps_are_whole_and_plain():
    """No sentence cut off, no ranges that are bounds of sanity."""
    text = make_docs.pages()["cli.md"]
    assert [line for line in text.splitlines() if line.endswith("...") and "Usage:" not in line] == []
    assert not re.search(r"RANGE|<=?x", text)


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_commands_in_documents_exist(path):
    """Every `qexport ...` line in a code block names a command and options that the program has."""
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", path.read_text(), re.DOTALL)
    for line in (line for block in blocks for line in block.replace("\\\n", " ").splitlines()):
        words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        if not words or words[0] != "qexport" or len(words) < 2 or words[1].startswith("-"):
            continue
        assert words[1] in COMMANDS, line
        command = cli.get_command(click.Context(cli), words[1])
        known = {name for option in command.params for name in option.opts} | {"--help"}
        used = {word.split("=")[0] for word in words[2:] if word.startswith("-")}
        assert used <= known, line


def test_links_in_documents_lead_somewhere():
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
            if not target.startswith(("http", "mailto")):
                assert (path.parent / target).exists(), f"{path.name}: {target}"
