"""A checkpoint that mlx-lm saved in bf16, turned back as it is read.

On loading, mlx-lm turns the convolution's axes and, where it has done so, adds one to the norms of Qwen3.5
(``TextModel.sanitize`` in https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/models/qwen3_5.py); a model
that it saves afterwards keeps both, without a word in its config. ``(channels, kernel, 1)`` instead of
``(channels, 1, kernel)`` is the mark of such a save.

The convolution has the same bytes either way. One was added to the norms in bf16: of a weight near 0 up to
2**-8 was rounded off then, and no reader can have it back; taking the one off again is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from qexport.checkpoint.tensors import Checkpoint, StoredTensor, matrix_shape

if TYPE_CHECKING:
    import torch

_CONVOLUTION = "linear_attn.conv1d.weight"
_PLUS_ONE = (
    ".input_layernorm.weight",
    ".post_attention_layernorm.weight",
    "model.norm.weight",
    ".q_norm.weight",
    ".k_norm.weight",
)


class MlxSaved:
    """The checkpoint ``inner`` with its convolutions and norms as their publisher stores them."""

    def __init__(self, inner: Checkpoint, turned: Mapping[str, StoredTensor], norms: frozenset[str]) -> None:
        self.inner, self.norms = inner, norms
        self.label, self.files, self.folder = inner.label, inner.files, inner.folder
        self.revision: str | None = getattr(inner, "revision", None)
        self.tensors: Mapping[str, StoredTensor] = MappingProxyType({**inner.tensors, **turned})
        self._turned = turned

    def read_file(self, name: str) -> bytes:
        """The bytes of one of ``files``."""
        return self.inner.read_file(name)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``[start, stop)``, turned back."""
        if name in self._turned:  # each of its rows is stored as several
            shapes = self.inner.tensors[name].shape, self._turned[name].shape
            stored, here = (matrix_shape(shape)[0] for shape in shapes)
            each = stored // here
            rows = self.inner.read_rows(name, start * each, stop * each)
            return rows.reshape(stop - start, -1)
        rows = self.inner.read_rows(name, start, stop)
        return rows - 1 if name in self.norms else rows

    def identity(self) -> list[object]:
        """That of the checkpoint underneath, and that it is turned back."""
        return [*self.inner.identity(), "mlx"]

    def changed(self) -> list[str]:
        """The files of the checkpoint underneath that are not any more what they were."""
        return self.inner.changed()


def turned_back(checkpoint: Checkpoint, names: Mapping[str, str]) -> Checkpoint:
    """``checkpoint`` itself, or turned back where mlx-lm has saved it.

    Args:
        names: the canonical name of each stored tensor.
    """
    stored = checkpoint.tensors
    convolutions = [name for name, canonical in names.items() if canonical.endswith(_CONVOLUTION)]
    shapes = [stored[name].shape for name in convolutions]
    if not shapes or not all(len(shape) == 3 and shape[2] == 1 < shape[1] for shape in shapes):
        return checkpoint
    turned = {
        name: replace(stored[name], shape=(shape[0], 1, shape[1]))
        for name, shape in zip(convolutions, shapes, strict=True)
    }
    norms = frozenset(
        name
        for name, canonical in names.items()
        if canonical.startswith("model.") and canonical.endswith(_PLUS_ONE) and len(stored[name].shape) == 1
    )
    return MlxSaved(checkpoint, turned, norms)


def underneath(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as it was opened."""
    return checkpoint.inner if isinstance(checkpoint, MlxSaved) else checkpoint
