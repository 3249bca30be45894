"""What the commands on a card are about, so that they can be pasted; the card's template has their text."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.formats.gguf.file_name import found_by_tag

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qexport.receipt.types import Artifact


@dataclass(frozen=True)
class Named:
    """An artifact in a shell's words.

    Attributes:
        model: what programs call it.
        fetch: the command that has to come first: a subfolder cannot be named by a Hub id.
        serve: llama-server's, of a GGUF.
    """

    model: str
    fetch: str
    has_mtp: bool
    serve: str = ""


def commands(models: Sequence[Artifact], repo: str) -> Mapping[str, Named | None]:
    """The artifact that each program is shown with; ``None``: there is none for it."""
    trunks = [artifact for artifact in models if not artifact.is_drafter]
    ggufs = [artifact for artifact in trunks if artifact.format == "gguf"]
    of = {name: [a for a in trunks if a.format == name] for name in ("mlx", "fp8", "nvfp4", "merged")}
    firsts = {
        "mlx": of["mlx"],
        "drafter": [artifact for artifact in models if artifact.is_drafter],
        "served": [*of["fp8"], *of["nvfp4"], *of["merged"]],
    }
    folders = {name: _folder(found[0], repo) if found else None for name, found in firsts.items()}
    return {"gguf": _file(ggufs, repo) if ggufs else None, **folders}


def _file(ggufs: Sequence[Artifact], repo: str) -> Named:
    chosen = next((a for a in ggufs if a.label == "Q4_K_M"), min(ggufs, key=lambda a: a.size))
    name, where = chosen.name, shlex.quote(repo)
    # Older names, and F16 beside BF16, are not found by their type: such a file is named in full.
    listed = [file.name for artifact in ggufs for file in artifact.files]
    if found_by_tag(listed, chosen.label) == name:
        serve = f"llama-server -hf {shlex.quote(f'{repo}:{chosen.label}')}"
    else:
        serve = f"llama-server -hf {where} --hf-file {shlex.quote(name)}"
    shards = f"--include {shlex.quote(name.rsplit('-00001-of-', 1)[0] + '-*')}"
    what = shlex.quote(name) if len(chosen.files) == 1 else shards
    fetch = f"hf download {where} {what} --local-dir ."
    return Named(shlex.quote(name), fetch, chosen.has_mtp, serve)


def _folder(artifact: Artifact, repo: str) -> Named:
    where = shlex.quote(repo)
    if not artifact.top:
        return Named(where, "", artifact.has_mtp)
    fetch = f"hf download {where} --include {shlex.quote(artifact.top + '/*')} --local-dir ."
    return Named(shlex.quote(f"./{artifact.top}"), fetch, artifact.has_mtp)
