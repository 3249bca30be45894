"""What an artifact says of itself, headers and small files read: all that running and judging it depends on.

A file that describes itself fills it from its metadata (GGUF's ``reading.py``); folders of every layout do it
alike, here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.artifacts.packed import PackedMatrix, folder_matrices
from qexport.artifacts.words import Numbers, folder_numbers
from qexport.checkpoint.chat_templates import DEFAULT, read_templates
from qexport.families.names import VISION_NAMES
from qexport.families.roles import Block

if TYPE_CHECKING:
    from qexport.artifacts.artifact import Opened
    from qexport.artifacts.layout import OnDisk
    from qexport.checkpoint.chat_templates import ChatTemplates


@dataclass(frozen=True)
class Description:
    """What was found.

    Attributes:
        path: what a runtime is given: the folder, or the first of a file's shards.
        model: its architecture or family.
        file_type: its layout's word for what weights are stored as; empty if unknown.
        files: bytes of each file that belongs to it, by name.
        stored, values: bytes of its own tensors, and how many weights they stand for.
        shards: files of weights.
        templates: chat templates by name beside the source's, whose names a file may not keep; may raise
            InputError.
        chats: it has a template for plain conversations.
        complete_chats: a rendered chat has all special tokens already; llama.cpp adds what the file says.
        context: tokens that the model has; 0 if unknown.
        drafts: it has an MTP head that its runtime could draft with.
        has_head: there is one, wherever.
        alone: it is a head alone, which cannot answer.
        sees: it has a vision tower in itself.
        towers: files beside it that hold one for it.
        drafter: the file beside it that holds its head, where that is not in itself.
        strange_head: why a head that lies beside it is not its.
        fault: why it is wrong by its own account.
        facts: of the layout, for programs.
        numbers: every stored number, for a look at whether it is one.
        packed: its packed matrices, for libraries that read such.
        artifact: the same opened, where that needs no model to compare with.
    """

    path: Path
    model: str = ""
    file_type: str = ""
    tensors: int = 0
    files: Mapping[str, int] = field(default_factory=dict)
    stored: int = 0
    values: int = 0
    shards: int = 0
    templates: Callable[[ChatTemplates | None], Mapping[str, str]] = field(default=lambda _: {}, repr=False)
    chats: bool = False
    complete_chats: bool = False
    context: int = 0
    drafts: bool = False
    has_head: bool = False
    alone: bool = False
    sees: bool = False
    towers: tuple[Path, ...] = ()
    drafter: Path | None = None
    strange_head: str = ""
    fault: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    numbers: Callable[[], Iterable[Numbers]] = field(default=tuple, repr=False)
    packed: Callable[[], Iterable[PackedMatrix]] = field(default=tuple, repr=False)
    artifact: Opened | None = field(default=None, repr=False)

    @property
    def bits_per_weight(self) -> float:
        """Headers and padding are not weights."""
        return 8 * self.stored / self.values if self.values else 0.0


def describe_folder(found: OnDisk, artifact: Opened) -> Description:
    """What a folder says that was opened as ``artifact``. Raises InputError: its tensors are no model's."""
    stored = found.folder
    files = {tensor.file for tensor in stored.tensors.values()}
    # An MLX head is in files that the index does not name, or in a folder of its own.
    beside = artifact.details.get("head_outside")
    mine = (t.data.numel for t in artifact.view() if not (beside and t.block is Block.MTP))
    values = sum(mine)
    chats = read_templates(artifact.files, artifact.label).default is not None
    return Description(
        path=found.path,
        model=artifact.family.name,
        file_type=artifact.layout.stored_type(artifact),
        tensors=len(stored.tensors),
        files={**stored.files, **{name: (found.path / name).stat().st_size for name in files}},
        stored=sum(tensor.stop - tensor.start for tensor in stored.tensors.values()),
        values=values,
        shards=len(files),
        templates=lambda _: folder_templates(artifact.files),
        chats=chats,
        complete_chats=True,
        context=int(artifact.text.get("max_position_embeddings") or 0),
        drafts=artifact.has_head and artifact.layout.drafts,
        has_head=artifact.has_head,
        sees=any(name.startswith(VISION_NAMES) for name in artifact.weights),
        facts={
            "family": artifact.family.name,
            "kind": artifact.layout.word,
            "mtp_layers": artifact.declared_mtp,
            "head": artifact.has_head,
        },
        numbers=lambda: folder_numbers(artifact, stored),
        packed=lambda: folder_matrices(artifact),
        artifact=artifact,
    )


def folder_templates(files: Mapping[str, bytes]) -> dict[str, str]:
    """The chat templates among a folder's small files, the one for plain conversations as ``default``."""
    kept = read_templates(files, "the folder")
    return {**kept.named, DEFAULT: kept.default} if kept.default is not None else {}
