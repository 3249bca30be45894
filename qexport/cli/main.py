"""The ``qexport`` program: its commands, loaded when used, and the one error boundary.

Commands are named in a table with their one-line help, so that ``qexport --help`` and shell completion load
neither torch nor any command's module.
"""

from __future__ import annotations

import gc
import importlib
import json
import signal
import sys
from typing import TYPE_CHECKING

import click

from qexport import __version__
from qexport.cli._output import Output
from qexport.errors import ExitCode, QexportError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["COMMANDS", "cli", "main"]

COMMANDS: Mapping[str, str] = {
    "inspect": "Explain a checkpoint: what it is, what is wrong with it, what each format would weigh.",
    "fix": "Write the repaired bf16 checkpoint (config quirks, MTP head grafted).",
    "imatrix": "Collect an importance matrix, one layer in memory at a time.",
    "gguf": "Write GGUF files, every type from one read, each proven by llama.cpp.",
    "mlx": "Write an MLX folder, the MTP head beside it, proven by mlx-lm.",
    "fp8": "Write block-wise FP8 as the official Qwen repositories have it.",
    "nvfp4": "Write NVFP4 W4A16: 4-bit MLPs with scales that fused matrices share.",
    "run": "Every artifact of a recipe from one read, here or on Hugging Face Jobs.",
    "matrix": "Print a recipe as jobs for CI.",
    "verify": "Load and run an artifact in a runtime its users use, and judge what comes out.",
    "bench": "Measure tokens a second in the real runtime, bare and with the MTP head.",
    "report": "Put receipts into one report: plots, tables, provenance, as HTML, Markdown and JSON.",
    "push": "Publish what was exported: model card, checksums, one commit on the Hub.",
    "demo": "All of it on the tiny model inside the package.",
    "completion": "Print the shell completion script.",
}


class _LazyGroup(click.Group):
    """Lists commands from the table; imports ``qexport.cli.<name>`` for the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"qexport.cli.{cmd_name}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 2 wrong usage, 3 the input cannot be used, 4 an artifact failed "
    "verification, 5 one does not keep a limit of its recipe, 6 the machine (disk, missing runtime, "
    "network), 130 stopped.",
)
@click.version_option(__version__, "-V", "--version", prog_name="qexport")
def cli() -> None:
    """One pass over a merged checkpoint writes every format its users run, and nothing counts as exported
    until it has been run.

    MODEL is a folder with safetensors, or a Hub id (org/name).

    \b
    Examples:
      qexport inspect ./merged
      qexport gguf ./merged --mtp-from Qwen/Qwen3.5-9B -q Q4_K_M -q Q8_0
      qexport mlx ./merged --bits 6
      qexport verify ./merged-GGUF/merged-Q4_K_M.gguf --against ./merged
    """


def main() -> None:
    """Run the command line: known errors become a sentence, the next step and an exit code."""
    gc.set_threshold(100_000, 20, 20)  # imports and vocabularies are millions of objects that all stay
    signal.signal(signal.SIGTERM, _interrupt)  # as for Ctrl-C: what is written is recorded, no orphans
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.Abort:
        click.echo("Stopped. The same command again goes on where this one was.", err=True)
        _document("stopped", None, 130)
        code = 130
    except click.ClickException as error:
        error.show()
        _document(error.format_message(), None, error.exit_code)
        code = error.exit_code
    except QexportError as error:
        _show(error)
        code = int(error.exit_code)
    sys.exit(code if isinstance(code, int) else int(ExitCode.OK))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _show(error: QexportError) -> None:
    click.secho("Error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(error.message, err=True)
    if error.hint:
        click.echo(error.hint, err=True)
    _document(error.message, error.hint, int(error.exit_code))


def _document(message: str, hint: str | None, code: int) -> None:
    """The one document of a command that was asked for JSON and has printed none."""
    if "--json" in sys.argv and not Output.printed:
        click.echo(json.dumps({"error": message, "hint": hint, "exit_code": code}))
