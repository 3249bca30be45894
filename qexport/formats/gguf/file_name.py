"""File names of GGUF files, which others read: llama.cpp's ``-hf``, its folders of models, the Hub.

They tell a model from what lies beside it by its name alone, and pick a type by the tag in it, so a name that
holds one of their words is a file that nobody finds. What is written is ``Name-Q4_K_M.gguf``, and a name that
would be misread is changed. The rules, as of llama.cpp b11434:

- ``common/download.cpp``, ``gguf_filename_is_model``: a name with ``mmproj``, ``imatrix``, ``mtp-``,
  ``eagle3-``, ``dflash-`` or ``dspark-`` in it is no model; ``common/preset.cpp`` has the same words. Other
  readers take them in any case (the Hub shows a repository of such files as something else), and so do we.
- ``find_best_model``: ``-hf repo:TAG`` is the first file, by name, with ``TAG`` and ``-`` or ``.`` in it, in
  any case. So ``Tuned-BF16-Q4_K_M.gguf`` is found as BF16.
- A shard ends in ``-00001-of-00003``; one that is not the first is passed over.
- The Hub reads the type from the last words that look like one (``@huggingface/gguf``, ``GGUF_QUANT_RE``).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from qexport.errors import UsageProblem
from qexport.formats.gguf.file_types import FILE_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qexport.families.view import ModelView
    from qexport.formats.gguf.options import GgufOptions


MATRIX_SUFFIX = ".gguf_file"
"""Of importance matrices: GGUF inside, but no reader lists them among the models."""
HEAD_PREFIX = "mtp-"
"""Of MTP heads that are files of their own."""
_ANYWHERE = ("mmproj", "imatrix")
_BEFORE_DASH = ("mtp", "eagle3", "dflash", "dspark")
_TYPES = "|".join(sorted(FILE_TYPES, key=len, reverse=True))
_SHARD = re.compile(r"-(?P<index>\d{5})-of-(?P<count>\d{5})(?!\d)")
_JOINTS = "-._+ "
# As a word of its own it goes, with the joint before it; inside another word the dash behind it does.
_WORD = re.compile(
    rf"(?:^|[{_JOINTS}]+)(?:(?:{'|'.join((*_ANYWHERE, *_BEFORE_DASH))})(?=[{_JOINTS}]|$)"
    rf"|(?:{_TYPES})(?=[-.]|$))",
    re.IGNORECASE,
)
_INSIDE = re.compile("|".join(_ANYWHERE), re.IGNORECASE)
_DASHED = re.compile(rf"({'|'.join((*_BEFORE_DASH, _TYPES))})[-.]", re.IGNORECASE)


def model_stem(label: str) -> str:
    """The model's name as it may stand in a file name: no organisation, revision or odd characters.

    >>> model_stem("Qwen/Qwen3.5-9B@1a2b3c4d")
    'Qwen3.5-9B'
    """
    last = label.rstrip("/").rsplit("/", 1)[-1].split("@", 1)[0]
    return re.sub(r"[^\w.+-]+", "-", last).strip("-.") or "model"


def readable_stem(name: str) -> str:
    """``name`` without what readers would take for something else; a dash and the type come behind it.

    >>> readable_stem("Tuned-MTP-9B"), readable_stem("smtp-bot"), readable_stem("Tuned-BF16")
    ('Tuned-9B', 'smtp_bot', 'Tuned')
    """
    before = None
    while name != before:
        before = name
        name = _INSIDE.sub("", _WORD.sub("", _SHARD.sub("", name)))
        if name != before:
            name = name.strip(_JOINTS)
        if _DASHED.search(f"{name}-"):
            name = _DASHED.sub(r"\1_", f"{name}-").removesuffix("-")
    return name or "model"


def file_stem(view: ModelView, type_name: str, options: GgufOptions) -> tuple[str, list[str]]:
    """The file name without ``.gguf``, by default ``Name-Q4_K_M``, and what a user should know about it.

    Raises:
        UsageProblem: the template cannot be filled in, or gives no file name.
    """
    name = model_stem(options.model_name or view.label)
    asked = options.file_name.removesuffix(".gguf").replace("{name}", name)
    for old in ("{mtp}", "{imatrix}"):  # words that no name may hold: templates of earlier versions have them
        asked = asked.replace(old, "")
    if re.search(r"[{}]", asked.replace("{type}", "")):
        raise UsageProblem(
            f"the file name template {options.file_name!r} cannot be filled in",
            hint="It may use {name} and {type}.",
        )
    if re.search(r"[/\\]", asked) or asked.startswith(".") or not asked.isprintable() or not asked.strip():
        raise UsageProblem(f"{asked!r} is no file name: choose the folder with --out")
    wanted = asked.replace("{type}", type_name)
    stem, notes = _readable(asked, type_name), []
    if stem != wanted:
        notes.append(
            f"the file is called {stem}.gguf and not {wanted}.gguf, which llama.cpp's -hf or the Hub would "
            "take for another type, a drafter, a projector or an importance matrix"
        )
    if found_by_tag([f"{stem}.gguf"], type_name) is None:
        notes.append(
            f"`llama-server -hf repo:{type_name}` does not find {stem}.gguf: {{type}} is not in its name"
        )
    return stem, notes


def _readable(asked: str, type_name: str) -> str:
    """The template with everything around the type made readable, and the type put in."""
    head, found, tail = asked.partition("{type}")
    if not found:
        return readable_stem(asked)
    tail = tail.replace("{type}", type_name)
    front, back = head.rstrip(_JOINTS), tail.lstrip(_JOINTS)
    if front:
        head = readable_stem(front) + head[len(front) :]
    if back:
        tail = tail[: len(tail) - len(back)] + readable_stem(back)
    return f"{head}{type_name}{tail}"


def matrix_name(label: str) -> str:
    """The file name of a model's importance matrix.

    >>> matrix_name("alice/Tuned-MTP")
    'Tuned-imatrix.gguf_file'
    """
    return f"{readable_stem(model_stem(label))}-imatrix{MATRIX_SUFFIX}"


def is_model_name(path: str) -> bool:
    """Whether readers of a repository take the file for a model (or a shard of one).

    >>> is_model_name("Tuned-Q4_K_M.gguf"), is_model_name("Tuned-MTP-Q4_K_M.gguf")
    (True, False)
    """
    name = path.rsplit("/", 1)[-1].lower()
    return (
        name.endswith(".gguf")
        and not any(word in name for word in _ANYWHERE)
        and not any(f"{word}-" in name for word in _BEFORE_DASH)
    )


def found_by_tag(paths: Iterable[str], tag: str) -> str | None:
    """The file that ``llama-server -hf repo:tag`` loads of a repository that holds these; ``None``: none."""
    wanted = re.compile(f"{re.escape(tag)}[-.]", re.IGNORECASE)
    for path in sorted(paths):
        shard = _SHARD.search(path)
        if is_model_name(path) and wanted.search(path) and (shard is None or int(shard["index"]) == 1):
            return path
    return None
