"""Checkpoints whose axes are in another order than readers of the view expect, turned as they are read.

Two are known. One is published so: the fused experts of Qwen3-VL's mixtures are ``[experts, in, out]``, not
``[experts, out, in]``. The other was saved by mlx-lm or mlx-vlm in bf16.

On loading, mlx-lm turns the convolution's axes and, where it has done so, adds one to the norms of Qwen3.5
(``TextModel.sanitize`` in https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/models/qwen3_5.py); a model
that it saves afterwards keeps both, without a word in its config. ``(channels, kernel, 1)`` instead of
``(channels, 1, kernel)`` is the mark of such a save. mlx-vlm does the same, and keeps the vision tower, whose
patches have their colours last then.

The convolution has the same bytes either way. One was added to the norms in bf16: of a weight near 0 up to
2**-8 was rounded off then, and no reader can have it back; taking the one off again is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from qexport.checkpoint.tensors import Checkpoint, LogicalTensor, StoredTensor, matrix_shape

if TYPE_CHECKING:
    from collections.abc import Hashable

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


class Turned:
    """The checkpoint ``inner`` with the last axis of some tensors in second place.

    Attributes:
        turned: those, as they are given, by stored name.
    """

    mark = "turned"

    def __init__(self, inner: Checkpoint, names: Iterable[str]) -> None:
        self.inner = inner
        self.label, self.files, self.folder = inner.label, inner.files, inner.folder
        self.revision: str | None = getattr(inner, "revision", None)
        self.turned = {name: _first(inner.tensors[name]) for name in names}
        self.tensors: Mapping[str, StoredTensor] = MappingProxyType({**inner.tensors, **self.turned})

    def read_file(self, name: str) -> bytes:
        """The bytes of one of ``files``."""
        return self.inner.read_file(name)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``[start, stop)`` of what is given."""
        if name not in self.turned:
            return self.inner.read_rows(name, start, stop)
        shape = self.turned[name].shape
        rows = matrix_shape(shape)[0] // shape[0]  # of an output
        first, last = start // rows, -(-stop // rows)
        if last - first > 1:
            turned = _outputs(self.inner, name, first, last)
        else:  # an expert is more than is read at a time
            turned = _expert(cast("Hashable", self.inner), name, first)
        return turned[start - first * rows : stop - first * rows]

    def identity(self) -> list[object]:
        """That of the checkpoint underneath, and that it is turned."""
        return [*self.inner.identity(), self.mark]

    def changed(self) -> list[str]:
        """The files of the checkpoint underneath that are not any more what they were."""
        return self.inner.changed()


def _outputs(inner: Checkpoint, name: str, first: int, last: int) -> torch.Tensor:
    """Rows of the outputs ``[first, last)`` of a tensor, its last axis in second place."""
    stored = inner.tensors[name].shape
    rows = matrix_shape(stored)[0] // stored[0]
    outputs = inner.read_rows(name, first * rows, last * rows).reshape(last - first, *stored[1:])
    turned = outputs.movedim(-1, 1)
    return turned.reshape(-1, turned.shape[-1])


@lru_cache(maxsize=4)
def _expert(inner: Any, name: str, number: int) -> torch.Tensor:
    return _outputs(inner, name, number, number + 1)


class MlxSaved(Turned):
    """``inner`` with its convolutions and norms as their publisher stores them.

    Attributes:
        norms: those that have one added.
        sees: there is a vision tower among what is turned.
    """

    mark = "mlx"

    def __init__(
        self, inner: Checkpoint, turned: Iterable[str], norms: frozenset[str], *, sees: bool
    ) -> None:
        super().__init__(inner, turned)
        self.norms, self.sees = norms, sees

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Likewise, one taken off the norms."""
        rows = super().read_rows(name, start, stop)
        return rows - 1 if name in self.norms else rows


def experts_turned(checkpoint: Checkpoint, names: Mapping[str, str], inner: int) -> Checkpoint:
    """``checkpoint`` with fused experts as ``[experts, out, in]``, where they are stored the other way.

    Args:
        names: the canonical name of each stored tensor.
        inner: the width of an expert, by which one is told from the other; of a square one nothing tells,
            and it is taken as published.
    """
    outputs = {"gate_up_proj": 1, "down_proj": 2}  # the axis that the width stands on where it is not turned

    def turned(name: str, canonical: str) -> bool:
        part, shape = canonical.rpartition(".")[2], checkpoint.tensors[name].shape
        if ".mlp.experts." not in canonical or part not in outputs or len(shape) != 3:
            return False
        width = inner * (2 if part == "gate_up_proj" else 1)
        return shape[3 - outputs[part]] == width

    found = [name for name, canonical in names.items() if turned(name, canonical)]
    return Turned(checkpoint, found) if found else checkpoint


def as_published(tensor: LogicalTensor) -> LogicalTensor:
    """Fused experts ``[experts, out, in]`` as ``[experts, in, out]``: as they are stored, or turned."""
    piece = tensor.pieces[0]
    checkpoint = piece.checkpoint
    if isinstance(checkpoint, Turned) and piece.name in checkpoint.turned:
        return LogicalTensor.whole(checkpoint.inner, checkpoint.inner.tensors[piece.name], name=tensor.name)
    other = Turned(checkpoint, (piece.name,))
    return LogicalTensor.whole(other, other.tensors[piece.name], name=tensor.name)


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
    norms = frozenset(
        name
        for name, canonical in names.items()
        if canonical.startswith("model.") and canonical.endswith(_PLUS_ONE) and len(stored[name].shape) == 1
    )
    given = norms if convolutions else frozenset[str]()
    return MlxSaved(checkpoint, (*convolutions, *patches), given, sees=bool(patches))


def _colours_last(canonical: str, shape: tuple[int, ...]) -> bool:
    return canonical.endswith(_PATCHES) and len(shape) in (4, 5) and shape[-1] == _COLOURS != shape[1]


def _first(stored: StoredTensor) -> StoredTensor:
    """With what goes in in second place, not in the last."""
    outputs, *size, inputs = stored.shape
    return replace(stored, shape=(outputs, inputs, *size))


def underneath(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as it was opened."""
    return underneath(checkpoint.inner) if isinstance(checkpoint, Turned) else checkpoint
