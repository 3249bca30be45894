"""Small files are read before they are published: no path of this machine, no access token.

Training tools write where they ran (``_name_or_path: /home/alice/run3``), and cards are pasted together.
Vocabularies and chat templates hold text like that on purpose; in them only this machine's own folders are
looked for. Weights are not read: their metadata is the exporter's business (``formats/gguf/host_paths.py``).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.children.redact import machine_folders
from qexport.errors import InputError
from qexport.formats.gguf.host_paths import holds_host_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


# Larger than any tokenizer.json; what is larger is weights by another name, and not read.
LARGEST = 64 << 20
_WEIGHTS = frozenset((".gguf", ".gguf_file", ".safetensors", ".bin", ".npz", ".dat", ".model", ".pt"))
_VOCABULARIES = frozenset(("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json"))
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")
# In running text: a home directory, or a path at least two parts deep below a folder that machines have.
_PATH = re.compile(
    r"(?<![\w./:-])(?:/(?:home|Users)/[\w.-]+|/root/[\w.-]+|[A-Za-z]:\\Users\\[\w.-]+|file:///[\w.-]+"
    r"|/(?:mnt|workspace|scratch|lustre|gpfs|kaggle|content|data|tmp|work)/[\w.-]+/[\w./-]+)"
)
# A value that is a path as a whole, as in config.json.
_PATH_STARTS = ("/", "~/", "./", "../")
# Templates show examples, and a model that was run may write whatever it likes.
_FREE_TEXT = frozenset(("chat_template", "texts"))


def is_small_file(name: str, size: int) -> bool:
    """Whether a file is read here."""
    return size <= LARGEST and Path(name).suffix.lower() not in _WEIGHTS


def check_text(name: str, data: bytes, *, secrets: Iterable[str] = (), prose: bool = False) -> None:
    """Refuse a small file that says too much.

    Args:
        name: relative, for the message; its suffix says how it is read.
        secrets: texts that must not be in it, such as the token in use.
        prose: someone wrote it to be read; only tokens and this machine's own folders are refused.

    Raises:
        InputError: what was found; a token is not repeated.
    """
    text = data.decode("utf-8", errors="replace")
    if _TOKEN.search(text) or any(secret and secret in text for secret in secrets):
        raise InputError(
            f"{name} holds an access token: not published.",
            hint="Remove it, and revoke that token on the Hub.",
        )
    base = name.rsplit("/", 1)[-1]
    found = next((own for own in _own_folders() if own in text), None)
    if found is None and not prose and base not in _VOCABULARIES and not base.endswith(".jinja"):
        found = _in_json(text) if base.endswith(".json") else _in_text(text)
    if found is not None:
        raise InputError(
            f"{name} holds a path of some machine ({found}): not published.",
            hint="Take it out of the source model and export again.",
        )


def _in_json(text: str) -> str | None:
    try:
        value = json.loads(text)
    except ValueError:
        return _in_text(text)
    for string in _strings(value):
        if match := _PATH.search(string):
            return match[0]
        if string.startswith(_PATH_STARTS) and "\n" not in string and holds_host_path(string):
            return string[:60]
    return None


def _in_text(text: str) -> str | None:
    match = _PATH.search(text)
    return None if match is None else match[0]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in _FREE_TEXT:
                yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _own_folders() -> Iterator[str]:
    """This machine's own folders; a short one (``/root``) stands in too many vocabularies."""
    for folder in machine_folders():
        if len(folder.parts) > 2:
            yield f"{folder}/"
