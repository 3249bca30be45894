"""One safetensors file in memory: views without copies, and pages given back when done.

The mapping is private and writable: torch wants a writable buffer (it warns about any other), and pages of
a private mapping never reach the file, so the source stays as it is whatever a caller does to a view.
"""

from __future__ import annotations

import mmap
import sys
import threading
from typing import TYPE_CHECKING

from qexport.checkpoint.tensors import matrix_shape, torch_dtype
from qexport.errors import EnvironmentProblem, InputError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from qexport.checkpoint.tensors import StoredTensor

__all__ = ["MappedFile"]

# Linux (asm-generic/mman-common.h); Python's mmap does not name it before 3.13. Without it a writable private
# mapping counts as memory in use, and a file larger than RAM would be refused.
_MAP_NORESERVE = 0x4000
# A page fault maps this much around it at once (fault_around_bytes, 64 KiB by default), so pages just before
# the rows being read come back after they were released; releasing from this much earlier catches them.
# What is mapped ahead (up to 2 MB where the page cache has huge folios) goes when its own rows do.
_FAULT_AROUND = 1 << 16


class MappedFile:
    """A safetensors file, mapped when first read. Safe to use from several threads.

    Args:
        path: the file.
        file: its name in messages.
        size: its size in bytes when its header was checked.
    """

    def __init__(self, path: Path, file: str, size: int) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._lock = threading.Lock()
        self._map: mmap.mmap | None = None

    def rows(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        """Rows ``[start, stop)`` of ``tensor`` as ``(stop - start, columns)`` in its stored dtype.

        A view of the mapping, valid as long as it is referenced. Only a tensor whose bytes do not begin at a
        multiple of its item size (a file written without padding) comes as a copy, since vector code may
        fault on it.

        Raises:
            InputError: the file is gone or has another size than before.
            EnvironmentProblem: the file cannot be mapped.
        """
        import torch

        dtype = torch_dtype(tensor.dtype)
        columns = matrix_shape(tensor.shape)[1]
        count = (stop - start) * columns
        if count == 0:
            return torch.empty((stop - start, columns), dtype=dtype)
        mapping = self._open()
        offset = tensor.start + start * columns * dtype.itemsize
        if offset % dtype.itemsize:
            data = bytearray(memoryview(mapping)[offset : offset + count * dtype.itemsize])
            return torch.frombuffer(data, dtype=dtype).view(stop - start, columns)
        return torch.frombuffer(mapping, dtype=dtype, count=count, offset=offset).view(stop - start, columns)

    def release(self, start: int, stop: int) -> None:
        """Let the pages of bytes ``[start, stop)`` leave memory, edge pages too.

        Harmless when another thread is reading next to them, or reads them again: the pages are clean, and
        are mapped again from the page cache or the file.
        """
        mapping = self._map
        if mapping is None or stop <= start or not hasattr(mmap, "MADV_DONTNEED"):
            return
        low = max(start - _FAULT_AROUND, 0) // mmap.PAGESIZE * mmap.PAGESIZE
        high = min(-(-stop // mmap.PAGESIZE) * mmap.PAGESIZE, self._size)
        mapping.madvise(mmap.MADV_DONTNEED, low, high - low)

    def _open(self) -> mmap.mmap:
        if self._map is not None:
            return self._map
        with self._lock:
            if self._map is None:
                self._map = self._make_map()
            return self._map

    def _make_map(self) -> mmap.mmap:
        try:
            with self._path.open("rb") as stream:
                size = stream.seek(0, 2)
                if size != self._size:
                    message = (
                        f"{self._file} changed while it was in use: {self._size} bytes before, {size} now."
                    )
                    raise InputError(message, hint="Start again when nothing writes to the checkpoint.")
                if sys.platform == "win32":
                    return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
                flags = mmap.MAP_PRIVATE | (_MAP_NORESERVE if sys.platform == "linux" else 0)
                return mmap.mmap(stream.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        except FileNotFoundError as error:
            raise InputError(f"{self._file} is gone.", hint="Put the file back and start again.") from error
        except OSError as error:
            message = f"{self._file} cannot be mapped into memory: {error.strerror or 'input/output error'}."
            raise EnvironmentProblem(
                message, hint="Check permissions, `ulimit -v` and `ulimit -n`."
            ) from error
