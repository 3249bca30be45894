"""Where the bytes of a stream go: into the regions of the plan, one after another."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qexport.formats.plan import PlannedTensor


class Pour:
    """Bytes of one stream, poured into its regions one after another."""

    def __init__(self, tensor: PlannedTensor, stream: int) -> None:
        self._name = tensor.name
        self._regions = tensor.streams[stream]
        self._at = 0  # region
        self._filled = 0  # bytes of it

    def take(self, data: memoryview) -> Iterator[tuple[int, int, memoryview]]:
        """(file, offset, bytes) for the next ``data`` of the stream."""
        while len(data):
            if self._at == len(self._regions):
                raise ValueError(f"{self._name}: the encoder gives more than the plan has room for")
            region = self._regions[self._at]
            count = min(len(data), region.nbytes - self._filled)
            if count:
                yield region.file, region.offset + self._filled, data[:count]
            data = data[count:]
            self._filled += count
            if self._filled == region.nbytes:
                self._at, self._filled = self._at + 1, 0
