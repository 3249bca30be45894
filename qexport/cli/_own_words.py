"""Hints in the words of the command that is run.

The floors below say what helps by the options that exporting commands have for head and tower. Where a
command has another name for the same, or a recipe in its place, or nothing of the kind, its user is not sent
there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Set

    import click


_WORD = "(?<![\\w-]){}(?![\\w-])"
_TOWERS = re.compile(_WORD.format("--(?:(?:mtp|vision)(?:-from)?|base)"))
_MODE = re.compile("--(mtp|vision) (auto|keep|graft|drop)")
_SENTENCES, _CLAUSES = re.compile(r"((?<=[.!?])\s+|\n)"), re.compile(r"(, (?:or )?|; )")


def own_words(text: str, command: click.Command) -> str:
    """``text`` with the options of head and tower that ``command`` has.

    A clause that leads to what it does not have is left out, unless its sentence says nothing else.

    >>> import click
    >>> adopt = click.Command("adopt", params=[click.Option(["--base"]), click.Option(["--mtp"])])
    >>> own_words("`--mtp graft --mtp-from BASE` takes it, `--mtp drop` leaves it out.", adopt)
    '`--mtp graft --base BASE` takes it, `--mtp drop` leaves it out.'
    >>> init = click.Command("init", params=[click.Option(["--base"])])
    >>> own_words("`--mtp graft --mtp-from BASE` takes it, `--mtp drop` leaves it out.", init)
    '`--base BASE` takes it.'
    """
    known = _options(command)
    if "--set" in known:
        text = _MODE.sub(r"--set \1.mode=\2", text)
        text = re.sub(_WORD.format("--(mtp|vision)-from"), r"--set \1.base", text)
        text = re.sub(_WORD.format("--base"), "--set base.model", text)
        return re.sub(r"(--set [\w.]+) BASE\b", r"\1=BASE", text)
    for tower in ("mtp", "vision"):
        if f"--{tower}" not in known:
            text = text.replace(f"--{tower} graft --", "--")
        if f"--{tower}-from" not in known and "--base" in known:
            text = re.sub(_WORD.format(f"--{tower}-from"), "--base", text)
    if "--base" not in known and "--mtp-from" in known:
        text = re.sub(_WORD.format("--base"), "--mtp-from", text)
    return "".join(_within(sentence, known) for sentence in _SENTENCES.split(text))


def _within(sentence: str, known: Set[str]) -> str:
    first, *rest = _CLAUSES.split(sentence)
    clauses = [("", first), *zip(rest[::2], rest[1::2], strict=True)]
    kept = [each for each in clauses if set(_TOWERS.findall(each[1])) <= known]
    if len(kept) in (0, len(clauses)):
        return sentence
    words = "".join(between + clause for between, clause in kept).removeprefix(kept[0][0])
    return words if words.endswith(".") or not sentence.endswith(".") else f"{words}."


def _options(command: click.Command) -> Set[str]:
    """Of a group: of all that are in it."""
    inner = getattr(command, "commands", {}).values()
    own = {flag for each in command.params for flag in each.opts}
    return own.union(*(_options(each) for each in inner))
