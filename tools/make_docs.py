"""What of docs/ is made from the program: commands, quirks, the schema of recipes. ``make docs``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from json_page import json_page
from qexport.cli.main import COMMANDS, cli
from qexport.doctor.quirks import QUIRKS
from receipt_schema import schema_text
from recipe_schema import json_schema

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qexport.doctor.quirk import Quirk

__all__ = ["command_line", "main", "pages", "quirks"]

_COMMAND_LINE = """# Command line

Made from the program by `make docs`; a test checks that it is current.

Data goes to stdout, words and progress bars to stderr; `--json` prints exactly one document.
Shell completion: `eval "$(qexport completion bash)"` (or `zsh`, `fish`).
"""
_QUIRKS = """# Quirks

What the doctor knows, made from its table by `make docs`. MTP heads have [a page of their own](mtp.md).

*repaired*: qexport repairs it in everything it writes. *error*: needs your decision first. *note*: worth
knowing.
The source is never touched; every finding and repair is in the receipt.
"""


def command_line() -> str:
    """docs/cli.md; help texts as the program prints them, 100 columns wide."""
    parts = [_COMMAND_LINE, _section("qexport", cli)]
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        parts.append(_section(f"qexport {name}", command))
        inner = command.commands if isinstance(command, click.Group) else {}
        parts += [_section(f"qexport {name} {one}", each) for one, each in inner.items()]
    return "\n".join(parts)


def quirks() -> str:
    """docs/quirks.md."""
    return "\n".join([_QUIRKS, *(_quirk(quirk) for quirk in QUIRKS)])


def pages() -> Mapping[str, str]:
    """File name under docs/ to content."""
    schema = json.dumps(json_schema(), indent=1) + "\n"
    return {
        "cli.md": command_line(),
        "quirks.md": quirks(),
        "json.md": json_page(),
        "recipe.schema.json": schema,
        "receipt.schema.json": schema_text(),
    }


def main() -> None:
    """Write the pages into the folder that is named."""
    for name, text in pages().items():
        (Path(sys.argv[1]) / name).write_text(text, encoding="utf-8")


def _section(title: str, command: click.Command) -> str:
    context = click.Context(
        command,
        info_name=title,
        terminal_width=100,
        max_content_width=100,
        help_option_names=["-h", "--help"],
    )
    return f"## {title}\n\n```\n{command.get_help(context)}\n```\n"


def _quirk(quirk: Quirk) -> str:
    lines = [f"## {quirk.id}", "", f"{quirk.title[0].upper()}{quirk.title[1:]} (*{quirk.severity}*).", ""]
    lines += [f"- breaks {reader}: {error}" for reader, error in quirk.breaks.items()]
    lines.append(f"- {quirk.repair}")
    if quirk.reference:
        lines.append(f"- see <{quirk.reference}>")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
