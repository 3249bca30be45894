"""Types of the fixtures that hand out zoo checkpoints (conftest.py)."""

from pathlib import Path
from typing import Any, Protocol


class Zoo(Protocol):
    """Path of a zoo checkpoint; the same call gives the same folder."""

    def __call__(self, name: str, **options: Any) -> Path: ...


class ZooCopy(Protocol):
    """A checkpoint of one's own to write into."""

    def __call__(self, name: str, **options: Any) -> Path: ...
