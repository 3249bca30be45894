"""The commands of a card: for each program the artifact that it is shown with, in a shell's words."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.formats.gguf.file_name import found_by_tag
from qexport.formats.registry import words_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qexport.receipt.types import Artifact


@dataclass(frozen=True)
class Named:
    """An artifact in a shell's words.

    Attributes:
        model: what programs call it.
        fetch: the command that has to come first: a subfolder cannot be named by a Hub id.
        sees: it takes images.
        serve: llama-server's, of a GGUF.
        tower: the file of the vision tower beside it.
        head: that of its MTP head, where it is not in the model's.
        tag: its type, where programs that pick a file of a repository by that find this one.
        file: its name in a repository.
    """

    model: str
    fetch: str
    has_mtp: bool
    sees: bool = False
    serve: str = ""
    tower: str = ""
    head: str = ""
    tag: str = ""
    file: str = ""


def commands(
    models: Sequence[Artifact], towers: Sequence[str], heads: Sequence[str], repo: str
) -> Mapping[str, Named | None]:
    """The artifact that each program is shown with; ``None``: there is none for it.

    Args:
        towers, heads: files beside the GGUF files that hold a vision tower, and an MTP head.
    """
    trunks = [artifact for artifact in models if not artifact.is_drafter]
    candidates = {
        program: [artifact for artifact in trunks if words_of(artifact.format).program == program]
        for program in ("llama_cpp", "mlx_lm", "served")
    }
    candidates["drafter"] = [artifact for artifact in models if artifact.is_drafter]
    files = candidates.pop("llama_cpp")
    folders = {name: _named_folder(found[0], repo) if found else None for name, found in candidates.items()}
    return {"llama_cpp": _named_file(files, repo, towers, heads) if files else None, **folders}


def _named_file(ggufs: Sequence[Artifact], repo: str, towers: Sequence[str], heads: Sequence[str]) -> Named:
    chosen = next((a for a in ggufs if a.label == "Q4_K_M"), min(ggufs, key=lambda a: a.size))
    name, where = chosen.name, shlex.quote(repo)
    # Older names, and F16 beside BF16, are not found by their type: such a file is named in full.
    listed = [file.name for artifact in ggufs for file in artifact.files]
    found = found_by_tag(listed, chosen.label) == name
    if found:
        serve = f"llama-server -hf {shlex.quote(f'{repo}:{chosen.label}')}"
    else:
        serve = f"llama-server -hf {where} --hf-file {shlex.quote(name)}"
    shards = f"--include {shlex.quote(name.rsplit('-00001-of-', 1)[0] + '-*')}"
    whole = len(chosen.files) == 1
    what = shlex.quote(name) if whole else shards
    tower = shlex.quote(towers[0]) if towers else ""
    mine = [each for each in heads if each.rpartition("/")[2] == chosen.head_file]
    head = shlex.quote(mine[0]) if mine else ""
    also = [each for each in (tower, head) if each]
    beside = "".join(f" {each}" if whole else f" --include {each}" for each in also)
    fetch = f"hf download {where} {what}{beside} --local-dir ."
    tag = chosen.label if found and whole else ""
    return Named(
        shlex.quote(name),
        fetch,
        chosen.has_mtp or bool(head),
        serve=serve,
        tower=tower,
        head=head,
        tag=tag,
        file=name if whole else "",
    )


def _named_folder(artifact: Artifact, repo: str) -> Named:
    where = shlex.quote(repo)
    if not artifact.top:
        return Named(where, "", artifact.has_mtp, artifact.sees)
    fetch = f"hf download {where} --include {shlex.quote(artifact.top + '/*')} --local-dir ."
    return Named(shlex.quote(f"./{artifact.top}"), fetch, artifact.has_mtp, artifact.sees)
