"""Host paths out of everything that a report quotes: receipts are published.

llama.cpp quotes the paths it was built from and the paths it was given. Of an absolute path only its last
part is kept, line number included: ``/home/alice/llama.cpp/ggml/src/ggml.c:123:`` becomes ``ggml.c:123:``.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

_START = r"(?:[A-Za-z]:[\\/]+|/(?!/)|\\\\(?=[\w.-]+[\\/]))"
_PART = r"[^\s\\/'\"`:;,<>|*?()]+"
_HOME = re.compile(rf"(?:[A-Za-z]:)?[\\/]+(?:home|Users)[\\/]+{_PART}[\\/]*(?=$|[\s'\"`:;,<>|*?()])")
# Spaces may be part of a quoted path; a lone "/word" in quotes is an endpoint, not a path.
_QUOTED = re.compile(rf"(?<=['\"`]){_START}[^'\"`\n]*?[\\/]?[^'\"`\n\\/]+[\\/]*(?=['\"`])")
_PLAIN = re.compile(
    # Not inside a relative path or an address, unless what follows can only be a home directory.
    rf"(?:(?<![\w.~/\\])(?:file://)?{_START}|[\\/](?=(?:home|Users)[\\/]))(?:{_PART}[\\/]+)+(?={_PART})"
)
_DRIVE = re.compile(r"(?<![\w.~/\\])[A-Za-z]:[\\/]+(?=[^\s\\/])")


def redact(text: str) -> str:
    """``text`` with every absolute path, POSIX or Windows, cut down to its last part."""
    # Known folders first: they may have spaces in them, which end a path anywhere else.
    for folder in machine_folders():
        if len(folder.parts) > 1:
            text = text.replace(f"{folder}/", "/~/").replace(f"{folder}\\", "/~/")
    text = _HOME.sub("~", _QUOTED.sub(_last_part, text))
    return _DRIVE.sub("", _PLAIN.sub("", text))


def machine_folders() -> list[Path]:
    """Where this process works, lives and puts temporary files, as far as there are such places."""
    found: list[Path] = []
    for ask in (Path.cwd, Path.home, lambda: Path(tempfile.gettempdir())):
        try:
            found.append(ask())
        except (OSError, RuntimeError):  # a folder that is gone; a user without a home
            continue
    return found


def _last_part(match: re.Match[str]) -> str:
    parts = [part for part in re.split(r"[\\/]+", match[0]) if part]
    if len(parts) < 2 or parts[-2] in ("home", "Users"):
        # The user's name would be left of a home directory; what has one part needs no cutting.
        return "~" if len(parts) > 1 else match[0]
    return parts[-1]


def folders_of(*paths: Path) -> dict[str, str]:
    """The folders we name to a runtime, to cut out of quoted log lines: they may have spaces in them."""
    return {
        f"{folder}{os.sep}": ""
        for path in paths
        for folder in {path.resolve().parent, path.absolute().parent}
    }
