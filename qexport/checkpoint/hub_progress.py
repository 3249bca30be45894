"""The Hugging Face client's progress bars, turned into one callback.

``snapshot_download`` draws through a tqdm class that it is given: one bar counts files, one the bytes that
arrive and one the bytes that are written. Only the last is followed, since with Xet storage less arrives than
is written.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def bar_class(progress: Callable[[int, int], None], done: int, total: int) -> type[Any]:
    """A class to give as ``tqdm_class``; it draws nothing.

    Args:
        progress: called as ``progress(done, total)`` in bytes, one call at a time.
        done: bytes that are there already.
        total: bytes in the end.
    """
    from huggingface_hub.utils.tqdm import tqdm

    lock = threading.Lock()
    written = done

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.counts_bytes = kwargs.get("name") == "huggingface_hub.snapshot_download"
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal written
            if self.counts_bytes and n:
                with lock:
                    # A transfer that starts over is subtracted again; never show more than there is.
                    written += int(n)
                    progress(min(written, total), total)
            return None

    return Bar
