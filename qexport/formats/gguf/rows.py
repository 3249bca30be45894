"""The rows of a GGUF's tensors as they are in its files, packed and decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.checkpoint.source_file import SourceFile
from qexport.checkpoint.tensors import StoredTensor, matrix_shape
from qexport.codecs.decoders import decode_rows
from qexport.codecs.ggml_types import GGML_TYPES
from qexport.container.gguf_file import GgufInfo, shard_paths
from qexport.formats.gguf.scaled import NVFP4, scale_name

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from qexport.container.gguf_read import GgufTensor


FLOATS = {"F32": "F32", "F16": "F16", "BF16": "BF16"}


class GgufRows:
    """The rows of one tensor as they are in the file."""

    def __init__(
        self, name: str, tensor: GgufTensor, file: SourceFile, scales: GgufRows | None = None
    ) -> None:
        self.shape = tensor.shape
        self._scales = scales
        self.dtype = FLOATS.get(tensor.type_name, "F32")
        rows, self._columns = matrix_shape(tensor.shape)
        self._type = tensor.type_name
        width = (tensor.stop - tensor.start) // max(1, rows)
        self._bytes = StoredTensor(name, "U8", (rows, width), "", tensor.start, tensor.stop)
        self._file = file

    @property
    def bits(self) -> int:
        """Whole bits of a number, those of a block's scales among them."""
        return 8 * self._bytes.shape[1] // self._columns

    def packed(self, start: int, stop: int) -> torch.Tensor:
        """Blocks, uint8 ``(rows, bytes)``."""
        return self._file.rows(self._bytes, start, stop)

    def read(self, start: int, stop: int) -> torch.Tensor:
        import torch

        packed = self.packed(start, stop)
        if self._type in FLOATS:
            dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[self._type]
            return packed.view(dtype)
        if self._type in GGML_TYPES:
            values = torch.from_numpy(decode_rows(self._type, packed.numpy(), self._columns))
            scales = self.scales_of(start, stop)
            return values if scales is None else values.mul_(scales)
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        return torch.from_numpy(dequantize(packed.numpy(), GGMLQuantizationType[self._type]))

    def scales_of(self, start: int, stop: int) -> torch.Tensor | None:
        """Of each row: that of its matrix, where the type has one in a tensor of its own."""
        import torch

        if self._scales is None:
            return None
        all_of_them = self._scales.read(0, 1).view(-1)
        return all_of_them[torch.arange(start, stop) // self.shape[-2] % len(all_of_them)][:, None]


def stored_rows(path: Path, info: GgufInfo) -> dict[str, tuple[GgufTensor, GgufRows]]:
    """Every tensor by its name; what scales another is not one of its own."""
    files = [SourceFile(part, part.name, part.stat().st_size) for part in shard_paths(path)]
    made: dict[str, tuple[GgufTensor, GgufRows]] = {}
    for name, entry in info.entries.items():
        scales = None
        if entry.type_name == NVFP4 and (beside := info.entries.get(scale_name(name))):
            scales = GgufRows(scale_name(name), beside, files[beside.shard])
        made[name] = entry, GgufRows(name, entry, files[entry.shard], scales)
    used = {scale_name(name) for name, (entry, _) in made.items() if entry.type_name == NVFP4}
    return {name: pair for name, pair in made.items() if name not in used}
