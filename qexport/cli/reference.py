"""The command line reference, docs/cli.md, made from the commands themselves: ``make docs``."""

from __future__ import annotations

import click

from qexport.cli.main import COMMANDS, cli

__all__ = ["render"]

_HEAD = """# Command line

Made from the program by `make docs`; a test checks that it is current.

Data goes to stdout, words and progress bars to stderr; `--json` prints exactly one document.
Shell completion: `eval "$(qexport completion bash)"` (or `zsh`, `fish`).
"""


def render() -> str:
    """The whole page as Markdown; help texts as the program prints them, 100 columns wide."""
    parts = [_HEAD, _section("qexport", cli)]
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        parts.append(_section(f"qexport {name}", command))
    return "\n".join(parts)


def _section(title: str, command: click.Command) -> str:
    # info_name is what usage lines begin with; a parent would add the program's name twice.
    context = click.Context(command, info_name=title, terminal_width=100, max_content_width=100)
    return f"## {title}\n\n```\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    print(render(), end="")
