"""What the choice of types is about: shapes, the numbers that decide, overrides, and the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from qexport.codecs.ggml_types import ggml_type
from qexport.errors import UsageProblem

OUTPUT = "output.weight"
EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")


@dataclass(frozen=True)
class TensorShape:
    """A tensor as it stands in the GGUF: name, shape in torch order (rows first)."""

    name: str
    shape: tuple[int, ...]

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def ggml_dims(self) -> int:
        """Dimensions as ggml counts them: outer ones of size 1 do not count, a vector has one."""
        outer = next((i for i, size in enumerate(self.shape) if size > 1), len(self.shape) - 1)
        return max(1, len(self.shape) - outer)

    @property
    def block(self) -> int:
        """The number in ``blk.N.``, or -1."""
        match = re.match(r"blk\.(\d+)", self.name)
        return int(match[1]) if match else -1


@dataclass(frozen=True)
class MixtureModel:
    """The hyper-parameters that decide, as the GGUF metadata has them.

    ``layers`` is ``block_count``, the MTP blocks included; ``heads`` and ``kv_heads`` may be one number or
    one per layer.
    """

    arch: str
    layers: int
    heads: int | Sequence[int]
    kv_heads: int | Sequence[int] | None = None
    experts: int = 0
    mtp_layers: int = 0

    @property
    def trunk_layers(self) -> int:
        return self.layers - self.mtp_layers

    @property
    def gqa(self) -> int:
        """Query heads per KV head of layer 0, 0 where layer 0 has none: that is the layer llama.cpp asks."""
        heads, kv_heads = self._first_heads
        return heads // kv_heads if kv_heads else 0

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp takes it for LLM_TYPE_70B (src/models/{llama,qwen2,deci,olmo,jais2}.cpp)."""
        if self.arch == "llama":
            heads, kv_heads = self._first_heads
            return self.trunk_layers == 80 and self.experts != 8 and heads != kv_heads
        return self.trunk_layers == {"qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}.get(self.arch)

    @property
    def _first_heads(self) -> tuple[int, int]:
        heads = self.heads if isinstance(self.heads, int) else self.heads[0]
        if self.kv_heads is None:
            return heads, heads
        return heads, self.kv_heads if isinstance(self.kv_heads, int) else self.kv_heads[0]


@dataclass(frozen=True)
class Overrides:
    """What the user asked for by name.

    ``tensor_types`` are (pattern, type) pairs, searched in order, the first match wins. As in llama-quantize
    patterns are lower-cased, apply to quantized file types only, and a tensor that one of them names does not
    count when the mixture counts layers.
    """

    tensor_types: Sequence[tuple[str, str]] = ()
    output: str | None = None
    token_embedding: str | None = None

    def __post_init__(self) -> None:
        for pattern, type_name in self.tensor_types:
            ggml_type(type_name)
            compile_pattern(pattern)
        for name in (self.output, self.token_embedding):
            if name is not None:
                ggml_type(name)


class Reason(StrEnum):
    """Why a tensor got its type."""

    KEPT = "kept"  # never quantized: vectors, norms, routers, convolutions
    DEFAULT = "default"  # the type that the file is named after
    MIXTURE = "mixture"  # a rule of the recipe
    OVERRIDE = "override"  # --tensor-type, --output-tensor-type, --token-embedding-type
    MTP = "mtp"  # our floor for the MTP block, or --mtp-type
    GIVEN = "given"  # --types-from


@dataclass(frozen=True)
class Choice:
    """The type of one tensor; ``fallback_from`` is the type it would have if its rows were whole blocks."""

    type: str
    reason: Reason
    fallback_from: str | None = None


# llama-quantize compiles patterns with std::regex (ECMAScript). Python's syntax contains what is used in
# practice, but for POSIX classes.
_POSIX = {"[:digit:]": "0-9", "[:alpha:]": "a-zA-Z", "[:alnum:]": "a-zA-Z0-9", "[:lower:]": "a-z"}


def compile_pattern(pattern: str) -> re.Pattern[str]:
    lowered = pattern.lower()
    for posix, plain in _POSIX.items():
        lowered = lowered.replace(posix, plain)
    try:
        return re.compile(lowered)
    except re.error as error:
        raise UsageProblem(
            f"{pattern!r} is not a regular expression: {error}",
            hint=r"write a pattern that is searched in tensor names, such as 'blk\.[0-3]\.ffn_down'",
        ) from None
