"""The ``qexport`` program: its commands, loaded when used, and the one error boundary.

Commands are named in a table with their one-line help, so that ``qexport --help`` and shell completion load
neither torch nor any command's module.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING

import click

from qexport import __version__
from qexport.cli._output import Output
from qexport.cli._own_words import own_words
from qexport.cli._terminal import (
    ReaderGone,
    not_written,
    prepare_streams,
    put,
    quiet_end,
    stdout_fails,
    visible,
)
from qexport.errors import EnvironmentProblem, ExitCode, QexportError, UsageProblem
from qexport.evidence.ranks import here
from qexport.optional import missing_from
from qexport.search_path import without_current_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


COMMANDS: Mapping[str, str] = {
    "inspect": "Explain a checkpoint: what it is, what is wrong with it, what each format would weigh.",
    "fix": "Write the repaired bf16 checkpoint (config quirks, MTP head grafted).",
    "imatrix": "Collect an importance matrix, one layer in memory at a time.",
    "mtp": "The MTP head: how well it guesses, the trunk's own text, a head tuned to its trunk.",
    "gguf": "Write GGUF files, every type from one read, each proven by llama.cpp.",
    "mlx": "Write an MLX folder, the MTP head beside it, proven by mlx-lm.",
    "fp8": "Write block-wise FP8 as the official Qwen repositories have it.",
    "nvfp4": "Write NVFP4, W4A16 or W4A4: 4-bit MLPs with scales that fused matrices share.",
    "init": "Write a first recipe for a model, from its headers.",
    "run": "Every artifact of a recipe from one read, here or on Hugging Face Jobs.",
    "matrix": "Print recipes as jobs for CI.",
    "adopt": "Make a folder whole that somebody else quantized: head, tower, lists, proof, receipt.",
    "verify": "Load and run an artifact in a runtime its users use, and judge what comes out.",
    "bench": "Measure tokens a second in the real runtime, bare and with the MTP head.",
    "report": "Put receipts into one report: plots, tables, provenance, as HTML, Markdown and JSON.",
    "push": "Publish what was exported: model card, checksums, one commit on the Hub.",
    "demo": "All of it on the tiny model inside the package.",
    "completion": "Print or install the shell completion script.",
}


_STOPPED = 130
_READER_GONE = 141  # as a program that SIGPIPE ends
_DEFECT = "This is a defect of qexport, not of what it was given. Please report it with the lines above."


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

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except QexportError as error:
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            if command is not None:
                error.message = own_words(error.message, command)
                error.hint = error.hint and own_words(error.hint, command)
            raise
        except BrokenPipeError as error:  # click would end here without a word, whichever pipe it was
            if stdout_fails():
                raise ReaderGone from error
            raise EnvironmentProblem("another process closed its end of a pipe") from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 2 wrong usage, 3 the input cannot be used, 4 an artifact failed "
    "verification, 5 one does not keep a limit of its recipe, or the best was no better than plain, 6 an "
    "artifact was not run or not compared with its source (0 with --allow-unverified), or the machine is "
    "the problem (disk, missing runtime, network), 130 stopped.",
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
    without_current_folder()
    gc.set_threshold(100_000, 20, 20)  # imports and vocabularies are millions of objects that all stay
    signal.signal(signal.SIGTERM, _interrupt)  # as for Ctrl-C: what is written is recorded, no orphans
    prepare_streams()
    try:
        code = _run()
    except KeyboardInterrupt:  # a second one, while words about the first were said
        code = _STOPPED
    quiet_end()
    if here().count > 1:
        os._exit(code)  # threads of torch and gloo may outlive the objects that they work for, and then abort
    sys.exit(code)


def _run() -> int:
    ranks = here()
    try:
        _check_words(sys.argv[1:])
        with ranks.together(), _unheard() if ranks.rank else contextlib.nullcontext():
            code = cli.main(standalone_mode=False)
        return code if isinstance(code, int) else int(ExitCode.OK)
    except click.exceptions.Exit as error:
        return error.exit_code
    except (ReaderGone, SystemExit):  # the latter is click's way to end where its own help met a closed pipe
        return _READER_GONE
    except (click.Abort, KeyboardInterrupt):
        if ranks.rank:
            return _STOPPED
        put("Stopped. The same command again goes on where this one was.", err=True)
        return _document("stopped", None, _STOPPED)
    except click.ClickException as error:
        if ranks.rank:
            return error.exit_code
        words = io.StringIO()
        error.show(words)
        put(words.getvalue(), err=True, nl=False)
        return _document(error.format_message(), None, error.exit_code)
    except QexportError as error:
        return int(error.exit_code) if ranks.rank else _show(error)  # the first one says it
    except Exception as error:  # noqa: BLE001
        known = of_the_machine(error)
        if known is not None:
            return _show(known)
        put(traceback.format_exc(), err=True, nl=False)
        what = f"{type(error).__name__}: {error}"
        put(_DEFECT, err=True)
        return _document(f"a defect of qexport: {what}", None, int(ExitCode.FAILURE))


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """One of several processes speaks for all."""
    with (
        open(os.devnull, "w") as nothing,  # noqa: PTH123
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
    ):
        yield


def of_the_machine(error: Exception) -> QexportError | None:
    """What the machine, not the program, is to blame for; ``None`` for a defect."""
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    ):
        return EnvironmentProblem(
            "there is not enough memory",
            hint="Fewer --threads, or a machine with more; what is written stays.",
        )
    if (absent := missing_from(error)) is not None:
        return absent
    if isinstance(error, OSError):
        if stdout_fails():
            return not_written(error)
        name = f"{error.filename}: " if error.filename is not None else ""
        return EnvironmentProblem(f"{name}{error.strerror or error or type(error).__name__}")
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return EnvironmentProblem(
            "this user has no home directory", hint="Set HOME, or give paths without ~."
        )
    return None


def _check_words(words: Sequence[str]) -> None:
    here = ""
    with contextlib.suppress(OSError):  # it was removed
        here = os.getcwd()  # noqa: PTH109 what "." is called in receipts
    for word in (*words, here):
        try:
            word.encode("utf-8")
        except UnicodeEncodeError:
            raise UsageProblem(
                f"{word!a} is not text in UTF-8, and neither receipts nor cards can hold it",
                hint="Rename the file or folder.",
            ) from None


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _show(error: QexportError) -> int:
    put("Error: ", err=True, nl=False, fg="red", bold=True)
    put(error.message, err=True)
    if error.hint:
        put(error.hint, err=True)
    return _document(error.message, error.hint, int(error.exit_code))


def _document(message: str, hint: str | None, code: int) -> int:
    """The one document of a command that was asked for JSON and has printed none; returns ``code``."""
    if "--json" in sys.argv and not Output.printed:
        with contextlib.suppress(ReaderGone, QexportError):
            put(visible(json.dumps({"error": message, "hint": hint, "exit_code": code}, ensure_ascii=False)))
    return code
