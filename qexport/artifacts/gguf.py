"""Opening a GGUF: the family's tensors under llama.cpp's names, their arrangement undone.

Sizes and conventions come from the model that the file is compared with, not from its metadata: a file of
another model is then one whose shapes do not fit. Types that qexport does not write (IQ1 to IQ3, MXFP4) are
decoded by gguf-py, which is slower. Left out: files that are compared with nothing; their metadata would have
to become a config again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.artifacts.artifact import Artifact, Kind, Weight, skeleton
from qexport.artifacts.turned import turned
from qexport.checkpoint.source_file import SourceFile
from qexport.checkpoint.tensors import StoredTensor, matrix_shape
from qexport.codecs.decoders import decode_rows
from qexport.codecs.ggml_types import GGML_TYPES
from qexport.container.gguf_file import GgufInfo, read_gguf, shard_paths
from qexport.container.gguf_read import GgufTensor
from qexport.errors import InputError
from qexport.families.table import FAMILIES
from qexport.formats.gguf.arch import arch_of, arrangement_of, gguf_name
from qexport.formats.plan import Arrangement

if TYPE_CHECKING:
    import torch

    from qexport.artifacts.rows import Decoded
    from qexport.families.view import ModelView


_FLOATS = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
# Made of the config, not of the checkpoint.
_COMPUTED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


class GgufRows:
    """The rows of one tensor as they are in the file."""

    def __init__(self, name: str, tensor: GgufTensor, file: SourceFile) -> None:
        self.shape = tensor.shape
        self.dtype = _FLOATS.get(tensor.type_name, "F32")
        rows, self._columns = matrix_shape(tensor.shape)
        self._type = tensor.type_name
        width = (tensor.stop - tensor.start) // max(1, rows)
        self._bytes = StoredTensor(name, "U8", (rows, width), "", tensor.start, tensor.stop)
        self._file = file

    def read(self, start: int, stop: int) -> torch.Tensor:
        import torch

        packed = self._file.rows(self._bytes, start, stop)
        if self._type in _FLOATS:
            dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[self._type]
            return packed.view(dtype)
        if self._type in GGML_TYPES:
            return torch.from_numpy(decode_rows(self._type, packed.numpy(), self._columns))
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        return torch.from_numpy(dequantize(packed.numpy(), GGMLQuantizationType[self._type]))


@dataclass(frozen=True)
class GgufWeight:
    """One tensor of the file; ``shape`` is the canonical tensor's."""

    name: str
    stored: str
    type_name: str
    shape: tuple[int, ...]
    rows: GgufRows = field(repr=False)
    arrangement: Arrangement = field(repr=False)

    def decode(self) -> Decoded:
        try:
            return turned(self.rows, self.arrangement, self.shape)
        except ValueError as error:
            raise InputError(f"{self.stored}: {error}", hint="Is this a file of another model?") from None


def open_gguf(path: Path, like: ModelView | None, head: Path | None = None) -> Artifact:
    """Open the GGUF at ``path`` (any of its shards); arguments and errors as ``open_artifact``."""
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
    stored = _tensors(path, info)
    if head is not None:
        extra = _tensors(head, read_gguf(head))
        stored |= {name: found for name, found in extra.items() if name not in stored}
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
    weights: dict[str, Weight] = {}
    for tensor in bare:
        name = gguf_name(arch, bare, tensor)
        if (found := stored.pop(name, None)) is not None:
            arrangement = arrangement_of(arch, bare, tensor)
            entry, rows = found
            weights[tensor.name] = GgufWeight(
                tensor.name, name, entry.type_name, tensor.shape, rows, arrangement
            )
    for name, (entry, rows) in stored.items():
        if name not in _COMPUTED:
            weights[name] = GgufWeight(name, name, entry.type_name, entry.shape, rows, Arrangement())
    return Artifact(
        label=info.name,
        kind=Kind.GGUF,
        family=family,
        config=like.config,
        text=text,
        weights=weights,
        files=like.files,
        declared_mtp=info.nextn_layers,
        details={"info": info},
    )


def _tensors(path: Path, info: GgufInfo) -> dict[str, tuple[GgufTensor, GgufRows]]:
    files = [SourceFile(part, part.name, part.stat().st_size) for part in shard_paths(path)]
    return {name: (entry, GgufRows(name, entry, files[entry.shard])) for name, entry in info.entries.items()}
