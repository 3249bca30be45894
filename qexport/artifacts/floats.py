"""A quantized folder as the checkpoint of floats that it stands for.

The doctor examines checkpoints whose tensors are floats. Given this, it says of somebody else's quantized
folder what it says of a model: which head and tower it lacks, whether the base's fit, what is wrong with its
config and tokenizer. Packed matrices are called BF16, or float16 where their scales are (AutoAWQ, GPTQ: their
kernels want it), and are decoded when they are read; every tensor keeps the file and the name that it has.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from qexport.artifacts.forms import codes_of
from qexport.artifacts.weights import StoredWeight
from qexport.checkpoint.tensors import FLOAT_DTYPES, Checkpoint, StoredTensor, torch_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from qexport.artifacts.artifact import Opened
    from qexport.artifacts.rows import Decoded


DECLARATIONS = ("hf_quant_config.json",)
"""Files beside config.json that say how weights are packed."""
_CONFIG, _KEY = "config.json", "quantization_config"


class AsFloats(Checkpoint):
    """Implements ``Checkpoint`` over an opened folder.

    Args:
        artifact: the folder as it was opened.
        stored: the same folder as it lies there.
    """

    def __init__(self, artifact: Opened, stored: Checkpoint) -> None:
        self._stored = stored
        self._packed: dict[str, Decoded] = {}
        found: dict[str, StoredTensor] = {}
        for weight in artifact.weights.values():
            assert isinstance(weight, StoredWeight)
            codes = codes_of(weight.name, weight.parts).tensor
            if codes.dtype in FLOAT_DTYPES:
                found[codes.name] = codes
                continue
            name, decoded = f"{weight.module}.weight", weight.decode()
            self._packed[name] = decoded
            half = "qweight" in weight.parts and weight.parts["scales"].dtype == "F16"
            dtype = "F16" if half else "BF16"
            found[name] = StoredTensor(name, dtype, decoded.shape, codes.file, codes.start, codes.stop)
        ordered = sorted(found.values(), key=lambda tensor: (tensor.file, tensor.start))
        self._tensors = {tensor.name: tensor for tensor in ordered}
        self._files = {name: size for name, size in stored.files.items() if name not in DECLARATIONS}

    @property
    def label(self) -> str:
        return self._stored.label

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        return self._tensors

    @property
    def files(self) -> Mapping[str, int]:
        return self._files

    @property
    def folder(self) -> Path | None:
        return self._stored.folder

    def read_file(self, name: str) -> bytes:
        """As it lies there; config.json without what it says of packed weights."""
        data = self._stored.read_file(name)
        return _without_declaration(data) if name == _CONFIG else data

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows of floats; of packed ones rounded to what they are called."""
        if name in self._packed:
            return self._packed[name].read(start, stop).to(torch_dtype(self._tensors[name].dtype))
        return self._stored.read_rows(name, start, stop)

    def identity(self) -> list[object]:
        return self._stored.identity()

    def changed(self) -> list[str]:
        return self._stored.changed()


def _without_declaration(data: bytes) -> bytes:
    config: Any = json.loads(data)
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        part.pop(_KEY, None)
    return json.dumps(config).encode()
