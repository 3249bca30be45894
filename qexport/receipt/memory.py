"""What of a model's memory grows with the text: pure arithmetic, exact from the config.

Only attention keeps keys and values of what it has read: two bytes for each value, as every runtime has it
unless told otherwise. A layer with a sliding window keeps those of its window alone. Gated DeltaNet keeps a
state whose size does not depend on the text, and once more for each token that is drafted: what is not
accepted is taken back. The layers of an MTP head have keys and values of their own, while it drafts. What a
runtime needs besides to compute with is :data:`WORKING`.

llama.cpp's sizes are these to the byte (``src/llama-kv-cache*.cpp``, ``llama-memory-recurrent.cpp``); a test
reads them from its log.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qexport.families.hyper import Hyper

CONTEXTS = (8 << 10, 32 << 10, 128 << 10)
"""Lengths that are shown: a conversation, a document, a code base."""
MEMORIES = (8, 12, 16, 24, 32)
"""GPUs and computers, in GiB, as they are sold."""
WORKING = 1 << 30
"""Bytes that are left for what a runtime computes with, and for the display."""
_VALUE = 2  # bytes: float16 or bfloat16
_STATE = 4  # bytes: states of linear attention are float32
# llama.cpp's tokens at a time, and the steps that the cells of a window are padded to.
_UBATCH, _PADDED = 512, 256


@dataclass(frozen=True)
class Keys:
    """Layers that keep the same.

    Attributes:
        layers: how many.
        values: numbers that one of them keeps of a token, keys and values together.
        window: tokens that it looks back; ``None``: all.
    """

    layers: int
    values: int
    window: int | None = None

    def size(self, context: int) -> int:
        """Bytes at so many tokens."""
        tokens = context
        if self.window is not None:
            cells = -(-(self.window + _UBATCH) // _PADDED) * _PADDED
            tokens = min(context, cells)
        return self.layers * self.values * _VALUE * tokens


@dataclass(frozen=True)
class Cache:
    """What a model keeps of the text that it has read.

    Attributes:
        keys: of its layers with attention.
        state: bytes of linear attention, whatever the length.
        head: of the MTP head's layers.
        most: tokens that the model was made for.
    """

    keys: tuple[Keys, ...] = ()
    state: int = 0
    head: tuple[Keys, ...] = ()
    most: int = 0

    def size(self, context: int, drafts: int = 0) -> int:
        """Bytes of one conversation at so many tokens, with at most so many drafts at a time.

        >>> Cache((Keys(16, 2048),)).size(8192) >> 20
        512
        """
        layers = (*self.keys, *(self.head if drafts else ()))
        return self.state * (1 + drafts) + sum(keys.size(context) for keys in layers)

    def longest(self, room: int, drafts: int = 0) -> int:
        """The most tokens that fit into so many bytes, in steps of 1024, up to what the model was made for.

        >>> Cache((Keys(16, 2048),), most=1 << 18).longest(512 << 20)
        8192
        """
        low, high = 0, (self.most or CONTEXTS[-1]) >> 10
        while low < high:
            middle = (low + high + 1) // 2
            if self.size(middle << 10, drafts) <= room:
                low = middle
            else:
                high = middle - 1
        return low << 10


@dataclass(frozen=True)
class Load:
    """What a runtime has to hold: weights (with those of a tower beside them), and the cache."""

    weights: int
    cache: Cache
    drafts: int = 0

    def size(self, context: int) -> int:
        """Bytes at so many tokens, without :data:`WORKING`."""
        return self.weights + self.cache.size(context, self.drafts)

    def longest(self, gib: int) -> int:
        """The most tokens in a memory of so many GiB; 0: not even the weights fit."""
        room = (gib << 30) - WORKING - self.weights
        return self.cache.longest(room, self.drafts) if room > 0 else 0


def cache_of(hyper: Hyper, head: int = 0) -> Cache:
    """Of a model whose MTP head has ``head`` layers."""
    values = 2 * hyper.kv_heads * hyper.head_dim
    windows = [window for kind, window in zip(hyper.kinds, hyper.windows, strict=True) if kind != "linear"]
    keys = tuple(Keys(windows.count(each), values, each) for each in dict.fromkeys(windows))
    return Cache(keys, _state(hyper), (Keys(head, values),) if head else (), hyper.context)


def _state(hyper: Hyper) -> int:
    """For each head a matrix; and of what is convolved, the inputs that the kernel looks back to."""
    if (linear := hyper.linear) is None:
        return 0
    inputs = 2 * linear.k_heads * linear.k_dim + linear.v_heads * linear.v_dim
    numbers = linear.v_heads * linear.k_dim * linear.v_dim + (linear.kernel - 1) * inputs
    return hyper.kinds.count("linear") * numbers * _STATE
