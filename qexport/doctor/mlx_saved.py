"""A checkpoint that mlx-lm or mlx-vlm saved in bf16, turned back as it is read.

On loading, mlx-lm turns the convolution's axes and, where it has done so, adds one to the norms of Qwen3.5
(``TextModel.sanitize`` in https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/models/qwen3_5.py); a model
that it saves afterwards keeps both, without a word in its config. ``(channels, kernel, 1)`` instead of
``(channels, 1, kernel)`` is the mark of such a save. mlx-vlm does the same, and keeps the vision tower, whose
patches have their colours last then.

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
_PATCHES = (".patch_embed.proj.weight", ".patch_embedding.weight")
_COLOURS = 3
_PLUS_ONE = (
    ".input_layernorm.weight",
    ".post_attention_layernorm.weight",
    "model.norm.weight",
    ".q_norm.weight",
    ".k_norm.weight",
)


class MlxSaved:
    """The checkpoint ``inner`` with its convolutions and norms as their publisher stores them.

    Attributes:
        turned: kernels by stored name, as they are given; ``norms`` are those that have one added.
        sees: there is a vision tower among them.
    """

    def __init__(
        self, inner: Checkpoint, turned: Mapping[str, StoredTensor], norms: frozenset[str], *, sees: bool
    ) -> None:
        self.inner, self.norms, self.sees = inner, norms, sees
        self.label, self.files, self.folder = inner.label, inner.files, inner.folder
        self.revision: str | None = getattr(inner, "revision", None)
        self.tensors: Mapping[str, StoredTensor] = MappingProxyType({**inner.tensors, **turned})
        self.turned = turned

    def read_file(self, name: str) -> bytes:
        """The bytes of one of ``files``."""
        return self.inner.read_file(name)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``[start, stop)``, turned back."""
        if name in self.turned:
            return self._kernel(name, start, stop)
        rows = self.inner.read_rows(name, start, stop)
        return rows - 1 if name in self.norms else rows

    def _kernel(self, name: str, start: int, stop: int) -> torch.Tensor:
        stored, shape = self.inner.tensors[name].shape, self.turned[name].shape
        rows, stored_rows = (matrix_shape(each)[0] // shape[0] for each in (shape, stored))  # of an output
        first, last = start // rows, -(-stop // rows)
        outputs = self.inner.read_rows(name, first * stored_rows, last * stored_rows)
        turned = outputs.reshape(last - first, *stored[1:]).movedim(-1, 1).reshape(-1, shape[-1])
        return turned[start - first * rows : stop - first * rows]

    def identity(self) -> list[object]:
        """That of the checkpoint underneath, and that it is turned back."""
        return [*self.inner.identity(), "mlx"]

    def changed(self) -> list[str]:
        """The files of the checkpoint underneath that are not any more what they were."""
        return self.inner.changed()


def turned_back(checkpoint: Checkpoint, names: Mapping[str, str]) -> Checkpoint:
    """``checkpoint`` itself, or turned back where mlx-lm or mlx-vlm has saved it.

    Args:
        names: the canonical name of each stored tensor.
    """
    stored = checkpoint.tensors
    convolutions = [name for name, canonical in names.items() if canonical.endswith(_CONVOLUTION)]
    shapes = [stored[name].shape for name in convolutions]
    if not all(len(shape) == 3 and shape[2] == 1 < shape[1] for shape in shapes):
        return checkpoint
    patches = [name for name, canonical in names.items() if _colours_last(canonical, stored[name].shape)]
    if not convolutions and not patches:
        return checkpoint
    turned = {name: _first(stored[name]) for name in (*convolutions, *patches)}
    norms = frozenset(
        name
        for name, canonical in names.items()
        if canonical.startswith("model.") and canonical.endswith(_PLUS_ONE) and len(stored[name].shape) == 1
    )
    return MlxSaved(checkpoint, turned, norms if convolutions else frozenset(), sees=bool(patches))


def _colours_last(canonical: str, shape: tuple[int, ...]) -> bool:
    return canonical.endswith(_PATCHES) and len(shape) in (4, 5) and shape[-1] == _COLOURS != shape[1]


def _first(stored: StoredTensor) -> StoredTensor:
    """With what goes in in second place, not in the last."""
    outputs, *size, inputs = stored.shape
    return replace(stored, shape=(outputs, inputs, *size))


def underneath(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as it was opened."""
    return checkpoint.inner if isinstance(checkpoint, MlxSaved) else checkpoint
