"""Reading a GGUF back: the family's tensors under llama.cpp's names, their arrangement undone.

Sizes and conventions come from the model that the file is compared with, not from its metadata: a file of
another model is then one whose shapes do not fit. Types that qexport does not write (ternary ones) are
decoded by gguf-py, which is slower. Left out: files that are compared with nothing; their metadata would have
to become a config again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.artifacts.artifact import AnyWeight, Opened, skeleton
from qexport.artifacts.description import Description
from qexport.artifacts.forms import Form
from qexport.artifacts.layout import ArtifactLayout, OnDisk
from qexport.artifacts.packed import PackedMatrix, PackedRows
from qexport.checkpoint.chat_templates import DEFAULT, ChatTemplates
from qexport.checkpoint.tensors import matrix_shape
from qexport.codecs.ggml_types import GGML_TYPES
from qexport.container.gguf_file import GgufInfo, homes_of, read_gguf, shard_paths
from qexport.errors import InputError
from qexport.families.known import FAMILIES
from qexport.formats.gguf.arch import arch_of, arrangement_of, gguf_name
from qexport.formats.gguf.chat_template import key_of
from qexport.formats.gguf.head_beside import head_beside
from qexport.formats.gguf.numbers import gguf_numbers
from qexport.formats.gguf.rows import FLOATS, GgufRows, stored_rows
from qexport.formats.plan import Arrangement
from qexport.formats.turned import turned
from qexport.sizes import counted

if TYPE_CHECKING:
    from qexport.artifacts.rows import Decoded


# Made of the config, not of the checkpoint.
_COMPUTED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class GgufWeight:
    """One tensor of the file; ``shape`` is the canonical tensor's."""

    name: str
    stored: str
    type_name: str
    shape: tuple[int, ...]
    rows: GgufRows = field(repr=False)
    arrangement: Arrangement = field(repr=False)

    @property
    def bits(self) -> int:
        return self.rows.bits

    def decode(self) -> Decoded:
        try:
            return turned(self.rows, self.arrangement, self.shape)
        except ValueError as error:
            raise InputError(f"{self.stored}: {error}", hint="Is this a file of another model?") from None


def open_gguf(found: OnDisk) -> Opened:
    """Open a GGUF by any of its shards. Raises InputError as ``open_artifact``."""
    path, like = found.path, found.like
    if like is None:
        raise InputError(
            f"{path.name}: the tensors of a GGUF can only be told beside the model that it was made from",
            hint="Name the source with --against.",
        )
    info = read_gguf(path)
    if info.head_only:
        raise InputError(
            f"{path.name} is an MTP head alone", hint="Name the file of its model, and this one as the head."
        )
    stored = stored_rows(path, info)
    beside = found.head or head_beside(shard_paths(path)[0], info)[0]
    if beside is not None:
        extra = stored_rows(beside, read_gguf(beside))
        stored |= {name: more for name, more in extra.items() if name not in stored}
    family = FAMILIES[like.family]
    text = dict(like.text)
    if "token_embd.weight" in stored:  # llama.cpp has no rows beyond the last token
        text["vocab_size"] = stored["token_embd.weight"][0].shape[0]
    has_head = any(".nextn." in name for name in stored)
    text["tie_word_embeddings"] = "output.weight" not in stored
    bare = skeleton(family, text, int(has_head), info.name)
    arch = arch_of(bare)
    if info.architecture != arch.name:
        message = f"{info.name} is a {info.architecture!r} model, {like.label} would be {arch.name!r}"
        raise InputError(message, hint="Compare it with the model that it was made from.")
    weights: dict[str, AnyWeight] = {}
    for tensor in bare:
        name = gguf_name(arch, bare, tensor)
        if (there := stored.pop(name, None)) is not None:
            arrangement = arrangement_of(arch, bare, tensor)
            entry, rows = there
            weights[tensor.name] = GgufWeight(
                tensor.name, name, entry.type_name, tensor.shape, rows, arrangement
            )
    for name, (entry, rows) in stored.items():
        if name not in _COMPUTED:
            weights[name] = GgufWeight(name, name, entry.type_name, entry.shape, rows, Arrangement())
    return Opened(
        label=info.name,
        layout=GGUF_FILE,
        family=family,
        config=like.config,
        text=text,
        weights=weights,
        files=like.files,
        declared_mtp=info.nextn_layers,
        details={"file_type": info.file_type},
    )


def describe_gguf(found: OnDisk) -> Description:
    """What the file says of itself, whatever model it is of. Raises InputError where it is damaged."""
    info = read_gguf(found.path)
    paths = shard_paths(found.path)
    lost = info.nextn_layers and not info.head_tensors
    head, strange = head_beside(paths[0], info)
    parts = [(paths, info), *([] if head is None else [([head], read_gguf(head))])]
    return Description(
        path=paths[0],
        model=info.architecture,
        file_type=info.file_type,
        tensors=len(info.tensors),
        files={path.name: path.stat().st_size for path in paths},
        stored=sum(entry.stop - entry.start for entry in info.entries.values()),
        values=info.parameters,
        shards=info.shards,
        templates=lambda source: _templates(info, source),
        chats=info.chat_template,
        context=info.context_length,
        drafts=bool(info.nextn_layers) or head is not None,
        has_head=bool(info.nextn_layers) or head is not None,
        drafter=head,
        strange_head=strange,
        alone=info.head_only,
        towers=_towers(paths[0]),
        fault=f"it declares {counted(info.nextn_layers, 'MTP layer')} and holds no tensors of it"
        if lost
        else "",
        facts={"architecture": info.architecture, "nextn_layers": info.nextn_layers},
        numbers=lambda: chain.from_iterable(gguf_numbers(files, each) for files, each in parts),
        packed=lambda: chain.from_iterable(_packed(files[0], each) for files, each in parts),
    )


def _packed(path: Path, info: GgufInfo) -> Iterator[PackedMatrix]:
    """What is in blocks that are decoded here; the others are gguf-py's to read anyway."""
    for name, (entry, rows) in stored_rows(path, info).items():
        if entry.type_name in GGML_TYPES and entry.type_name not in FLOATS:
            count, _ = matrix_shape(entry.shape)
            form = Form(entry.type_name, 0, per="block")
            height = entry.shape[-2] if len(entry.shape) > 1 else 1
            yield PackedMatrix(name, form, count, height, rows.read, partial(_stored, rows, form))


def _stored(rows: GgufRows, form: Form, start: int, stop: int) -> PackedRows:
    return PackedRows(form, rows.packed(start, stop), shared=rows.scales_of(start, stop))


def _towers(model: Path) -> tuple[Path, ...]:
    """Files of vision towers beside the model's, the largest first."""
    found = (path for folder in homes_of(model) for path in folder.glob("*.gguf"))
    named = (path for path in found if "mmproj" in path.name.lower())
    return tuple(sorted(named, key=lambda path: (-path.stat().st_size, path.name)))


def _templates(info: GgufInfo, source: ChatTemplates | None) -> dict[str, str]:
    """Under the names of the source: a key keeps letters and digits of one."""
    names = [DEFAULT, *(source.named if source is not None else ())]
    found = {name: info.metadata.get(key_of(name)) for name in names}
    return {name: text for name, text in found.items() if isinstance(text, str) and text}


GGUF_FILE = ArtifactLayout(
    word="gguf",
    opens=lambda found: found.is_file,
    open=open_gguf,
    describe=describe_gguf,
    stored_type=lambda artifact: str(artifact.details["file_type"]),
    own=True,
    here="xllamacpp",
    served=(),
    title="GGUF files",
)
