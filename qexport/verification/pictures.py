"""Small pictures made by rule: a shape or a digit in one colour on a ground of another.

No library draws them and no file holds them, so they are the same bytes everywhere. Colours differ in each
channel and shapes have no symmetry in common: channels in another order, or rows and columns exchanged, make
another picture.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable


COLOURS = {
    "red": (214, 40, 57),
    "green": (46, 158, 79),
    "blue": (38, 84, 200),
    "yellow": (240, 200, 8),
    "white": (250, 250, 250),
    "black": (17, 17, 17),
}
# Three by five cells, a row each.
_DIGITS = (
    "####.##.##.####",
    ".#.##..#..#.###",
    "##...#.#.#..###",
    "##...#.#...###.",
    "#.##.####..#..#",
    "####..##...###.",
    ".###..####.####",
    "###..#.#..#..#.",
    "####.#####.####",
    "####.####..###.",
)


def _inside_digit(number: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    cells = np.array([mark == "#" for mark in _DIGITS[number]]).reshape(5, 3)

    def inside(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        column = np.floor((x / 0.6 + 1) * 1.5).astype(int)
        row = np.floor((y + 1) * 2.5).astype(int)
        there = (column >= 0) & (column < 3) & (row >= 0) & (row < 5)
        found: np.ndarray = there & cells[np.clip(row, 0, 4), np.clip(column, 0, 2)]
        return found

    return inside


# Where a shape is, for coordinates from -1 to 1 over its box.
SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda x, y: x * x + y * y <= 1,
    "square": lambda x, y: (abs(x) <= 0.9) & (abs(y) <= 0.9),
    "triangle": lambda x, y: (abs(y) <= 1) & (abs(x) <= (y + 1) / 2),
    **{str(number): _inside_digit(number) for number in range(10)},
}


@dataclass(frozen=True)
class Picture:
    """A shape on a ground.

    Attributes:
        shape: of :data:`SHAPES`.
        colour, ground: of :data:`COLOURS`.
        x, y: its middle, as shares of the side, from the upper left.
        size: of its box, as a share of the side.
    """

    shape: str
    colour: str
    ground: str = "white"
    x: float = 0.5
    y: float = 0.5
    size: float = 0.7

    def __str__(self) -> str:
        return f"a {self.colour} {self.shape}"

    def pixels(self, side: int) -> np.ndarray:
        """uint8 ``(side, side, 3)``: rows from the top, red, green, blue."""
        across = (np.arange(side) + 0.5) / side
        x = np.broadcast_to((across[None, :] - self.x) * 2 / self.size, (side, side))
        y = np.broadcast_to((across[:, None] - self.y) * 2 / self.size, (side, side))
        inside = SHAPES[self.shape](x, y)[..., None]
        found: np.ndarray = np.where(inside, COLOURS[self.colour], COLOURS[self.ground]).astype(np.uint8)
        return found


def png(pixels: np.ndarray) -> bytes:
    """uint8 ``(height, width, 3)`` as a PNG file: rows unfiltered, which every reader takes."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(pixels))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
