"""``qexport completion``: the shell completion script that click makes."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from qexport.cli._terminal import put
from qexport.cli.main import cli


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    Examples:
      eval "$(qexport completion bash)"
      qexport completion fish > ~/.config/fish/completions/qexport.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # click ships all three
    put(kind(cli, {}, "qexport", "_QEXPORT_COMPLETE").source())
