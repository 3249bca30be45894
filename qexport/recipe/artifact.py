"""One entry of ``artifacts``: its kind, the options of its format, its importance, verification and gates."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qexport.errors import QexportError
from qexport.formats.gguf.file_types import file_type
from qexport.recipe.fields import check_keys, read_fields
from qexport.recipe.gates import read_gates
from qexport.recipe.kinds import KINDS
from qexport.recipe.problems import closest
from qexport.recipe.recipe import Artifact
from qexport.recipe.tree import Items, Scalar, Table
from qexport.recipe.values import WRONG, read_size, read_value
from qexport.recipe.verification import read_verify

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qexport.recipe.gates import Gates
    from qexport.recipe.kinds import Kind
    from qexport.recipe.problems import Place, Problems
    from qexport.recipe.tree import Node
    from qexport.verify.options import VerifyOptions

__all__ = ["NAME", "Defaults", "pending_matrix", "read_artifact", "with_name"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*", re.ASCII)
"""Names that may stand in file names, job names and on a command line as they are."""
_AROUND = ("name", "importance", "folder", "verify", "gates")


class _Pending:
    """Stands for a matrix that is not there yet, so that options which need one can be checked."""

    def __repr__(self) -> str:
        return "<importance, not collected yet>"


_PENDING = _Pending()


def pending_matrix(options: Any, field: str) -> bool:
    """Whether an option waits for the matrix of the run."""
    return isinstance(getattr(options, field), _Pending)


@dataclass(frozen=True)
class Defaults:
    """What the recipe says for all artifacts."""

    calibrated: bool
    verify: VerifyOptions | None
    gates: Gates


def read_artifact(node: Node, defaults: Defaults, problems: Problems) -> Artifact | None:
    """The artifact, or ``None`` after noting what is wrong."""
    if not isinstance(node, Table):
        problems.add(node.place, f"an artifact is expected here: a mapping with one of {', '.join(KINDS)}")
        return None
    check_keys(node, (*KINDS, *_AROUND), problems)
    named = [key for key in node.entries if key in KINDS]
    if len(named) != 1:
        got = f"not {' and '.join(named)}" if named else "and there is none"
        problems.add(node.place, f"an artifact has one of {', '.join(KINDS)}, {got}")
        return None
    word = named[0]
    kind, entry = KINDS[word], node.entries[word]
    values = None if isinstance(entry.value, Scalar) and entry.value.null else entry.value
    before = len(problems)
    types = _types(values, kind, entry.place, problems)
    given = read_fields(
        values,
        kind.options,
        problems,
        hidden=kind.hidden,
        also=("types",) if kind.ladder else (),
        readers=dict.fromkeys(kind.sizes, read_size),
    )
    importance = _importance(node, kind, word, given, defaults, problems)
    options = None
    if len(problems) == before:
        options = _made(kind, given, importance, entry.place, problems)
    name = _name(node, word, problems)
    folder = _folder(node, kind, options, problems)
    verify = read_verify(node.entries.get("verify"), defaults.verify, problems)
    gates = read_gates(node.get("gates"), types, problems, defaults.gates)
    if len(problems) > before:
        return None
    return Artifact(name, word, types, options, importance, folder, verify, gates, node.place)


def _types(values: Node | None, kind: Kind, place: Place, problems: Problems) -> tuple[str, ...]:
    if not kind.ladder:
        return ()
    node = values.get("types") if isinstance(values, Table) else None
    if node is None:
        problems.add(place, "'types' is missing: a list such as [Q4_K_M, Q8_0]")
        return ()
    if not isinstance(node, Items) or not node.items:
        problems.add(node.place, "a list of types is expected here, such as [Q4_K_M, Q8_0]")
        return ()
    found: list[str] = []
    for item in node.items:
        word = read_value(item, str, problems)
        if word is WRONG:
            continue
        try:
            name = file_type(word).name
        except QexportError as error:
            known = (error.hint or "").removeprefix("known types: ").split(", ")
            problems.add(item.place, error.message + closest(word, known))
            continue
        if name in found:
            problems.add(item.place, f"{name} is there twice")
        found.append(name)
    return tuple(found)


def _importance(
    node: Table, kind: Kind, word: str, given: Mapping[str, Any], defaults: Defaults, problems: Problems
) -> bool:
    asked = node.get("importance")
    if asked is None:
        return kind.matrix is not None and defaults.calibrated and kind.weighted(given)
    wanted = read_value(asked, bool, problems)
    if wanted is True and kind.matrix is None:
        problems.add(asked.place, f"{word} has no use for importance")
    elif wanted is True and not defaults.calibrated:
        problems.add(asked.place, "importance needs a 'calibration:' in the recipe")
    return wanted is True


def _made(
    kind: Kind, given: Mapping[str, Any], importance: bool, place: Place, problems: Problems
) -> Any | None:
    """The option class with these fields; what it refuses is a problem of this entry."""
    matrix = {kind.matrix: _PENDING} if kind.matrix is not None and importance else {}
    try:
        options = kind.options(**given, **matrix)
        kind.check(options)
    except QexportError as error:
        # Option classes speak of the command line's options: --mtp-layout is the key mtp_layout here.
        text = f"{error.message}{f' ({error.hint})' if error.hint else ''}"
        problems.add(place, re.sub(r"--([a-z][a-z0-9-]*)", lambda m: m[1].replace("-", "_"), text))
        return None
    return options


def _name(node: Table, word: str, problems: Problems) -> str:
    given = node.get("name")
    name = word if given is None else read_value(given, str, problems)
    if name is WRONG:
        return word
    if given is not None and NAME.fullmatch(name) is None:
        problems.add(given.place, f"{name!r} is no name for an artifact: letters, digits, '.', '_', '+', '-'")
    return str(name)


def _folder(node: Table, kind: Kind, options: Any, problems: Problems) -> str:
    given = node.get("folder")
    if given is None:
        return kind.folder(options) if options is not None else ""
    folder = read_value(given, str, problems)
    if folder is WRONG:
        return ""
    if NAME.fullmatch(folder.replace("{name}", "x")) is None:
        problems.add(given.place, f"{folder!r} is no name for a folder; it may hold {{name}}")
    return str(folder)


def with_name(options: Any, name: str | None) -> Any:
    """Options whose ``model_name`` is not set take the recipe's name."""
    if name is not None and hasattr(options, "model_name") and options.model_name is None:
        return replace(options, model_name=name)
    return options
