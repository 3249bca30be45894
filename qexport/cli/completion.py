"""``qexport completion``: the shell completion script that click makes, printed or put in its place."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from qexport.cli._terminal import put
from qexport.cli.main import cli


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.option(
    "--install", is_flag=True, help="Write the script where SHELL looks for it, and print what is left to do."
)
def command(shell: str, install: bool) -> None:
    """Print the completion script for SHELL, or install it.

    \b
    Examples:
      qexport completion bash --install
      eval "$(qexport completion zsh)"
    """
    kind = get_completion_class(shell)
    assert kind is not None  # click ships all three
    script = kind(cli, {}, "qexport", "_QEXPORT_COMPLETE").source()
    if not install:
        put(script)
        return
    path = place(shell)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{script}\n", encoding="utf-8")
    put(f"{path}\n{_LEFT_TO_DO[shell]}")


def place(shell: str) -> Path:
    """Where a shell looks for a user's completions, by the shells' own documentation.

    bash-completion: https://github.com/scop/bash-completion (FAQ); fish:
    https://fishshell.com/docs/current/completions.html
    """
    if shell == "bash":
        given = os.environ.get("BASH_COMPLETION_USER_DIR")
        folder = Path(given) if given else _xdg("DATA", ".local/share") / "bash-completion"
        return folder / "completions" / "qexport"
    if shell == "fish":
        return _xdg("CONFIG", ".config") / "fish" / "completions" / "qexport.fish"
    return _xdg("DATA", ".local/share") / "zsh" / "site-functions" / "_qexport"


def _xdg(kind: str, usual: str) -> Path:
    given = os.environ.get(f"XDG_{kind}_HOME", "")
    return Path(given) if given else Path.home() / usual


_LEFT_TO_DO = {
    "bash": "A new shell has it, where the package bash-completion is installed.",
    "zsh": "A new shell has it, if ~/.zshrc has this line before compinit:\n"
    "  fpath=(${XDG_DATA_HOME:-$HOME/.local/share}/zsh/site-functions $fpath)",
    "fish": "A new shell has it.",
}
