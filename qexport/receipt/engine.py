"""What ran an artifact, and on what machine, without naming the host."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Engine:
    """A runtime; ``none``: nothing ran it."""

    name: str = "none"
    version: str = ""

    def __str__(self) -> str:
        return "" if self.name == "none" else f"{self.name} {self.version}".strip()


@dataclass(frozen=True)
class Machine:
    """``processors`` counts hardware threads; ``gpu`` is empty where none was seen."""

    cpu: str
    processors: int
    system: str
    gpu: str = ""

    def __str__(self) -> str:
        gpu = f", {self.gpu}" if self.gpu else ""
        return f"{self.cpu}, {self.processors} hardware threads, {self.system}{gpu}"
