"""The two streams of a command line, and the one place where text goes to them.

Names of files, tensors and repositories are somebody else's text: what could move a cursor, colour a line,
turn its direction or not be encoded at all is shown as an escape. A stream that is closed is nowhere; words
that cannot be written on stderr are lost, since an export is worth more than its commentary; a result that
cannot be written on stdout is an error.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import textwrap
import unicodedata
from typing import Any

import click

from qexport.errors import EnvironmentProblem


class ReaderGone(Exception):
    """Whoever read stdout has read enough (``| head -1``)."""


def printable(text: str) -> str:
    r"""``text`` with escapes for what a terminal would obey; lines and tabs stay.

    >>> printable("a\x1b[31mb\rc\n")
    'a\\x1b[31mb\\x0dc\n'
    """
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(each if _harmless(each) else _escape(each) for each in text)


def visible(document: str) -> str:
    """JSON with the same meaning, and nothing in it that a terminal would obey."""
    return "".join(each if _harmless(each) else _json_escape(each) for each in document)


def _harmless(character: str) -> bool:
    # Cc: control; Cf: direction marks, tags and their like, but for the two joiners that scripts need;
    # Cs: halves of surrogate pairs; Zl, Zp: line ends.
    odd = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return not odd or character in "\n\t\u200c\u200d"


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"


def _json_escape(character: str) -> str:
    data = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{data[at : at + 2].hex()}" for at in range(0, len(data), 2))


def prepare_streams() -> None:
    """Make both streams take any text, and let no file that is opened later be stdin, stdout or stderr."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def put(text: str, *, err: bool = False, nl: bool = True, raw: bool = False, **style: Any) -> None:
    """Print ``text`` as :func:`printable`; ``raw``: as it is, because it was made here.

    Raises:
        ReaderGone, EnvironmentProblem: it could not be written on stdout.
    """
    look = {} if colourless() else style
    try:
        click.secho(text if raw else printable(text), err=err, nl=nl, reset=bool(look), **look)
    except OSError as error:
        if err:
            return
        if error.errno == errno.EPIPE:
            raise ReaderGone from None
        raise not_written(error) from None


def colourless() -> bool:
    """NO_COLOR is set: neither colours nor weights (https://no-color.org)."""
    return bool(os.environ.get("NO_COLOR"))


def folded(text: str, stream: Any) -> str:
    """Lines that are wider than the terminal, ended between words; what is read by a program stays as it is.

    Words that are wider themselves, such as paths, stay whole.
    """
    if not is_terminal(stream):
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(_fold(line, width) for line in text.split("\n"))


def _fold(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    indent = line[: len(line) - len(line.lstrip())] + "  "
    return textwrap.fill(
        line,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )


def is_terminal(stream: Any) -> bool:
    """Whether somebody looks at it; a closed one is none."""
    return stream is not None and not stream.closed and bool(stream.isatty())


def redrawn(stream: Any) -> bool:
    """Whether several lines on it can be drawn again: a notebook's cell is a terminal to the commands in it
    (``!qexport``), and obeys no cursor."""
    return is_terminal(stream) and "JPY_PARENT_PID" not in os.environ


def not_written(error: OSError) -> EnvironmentProblem:
    """What it means that stdout cannot be written."""
    return EnvironmentProblem(
        f"the result could not be written to stdout: {error.strerror or error}",
        hint="Files that were exported are complete, and their receipts say what came of it.",
    )


def stdout_fails() -> bool:
    """Whether something that was printed cannot leave."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        return True
    return False


def quiet_end() -> None:
    """Nothing that is still buffered may fail while the interpreter ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            _to_nowhere(stream)


def _to_nowhere(stream: Any) -> None:
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
    except (OSError, ValueError, AttributeError):
        return
