"""One artifact in a report: what it is, whether it is proven, and every figure there is of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from qexport.verify.speeds import Bench

__all__ = ["File", "Kld", "Row"]


@dataclass(frozen=True)
class Kld:
    """KL divergence from the source's predictions, nats; ``None`` where a receipt does not say."""

    mean: float | None = None
    median: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    p99_9: float | None = None
    max: float | None = None


@dataclass(frozen=True)
class File:
    """Name relative to the folder that was reported on, bytes, SHA-256 in hexadecimal."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Row:
    """An artifact. Shares are from 0 to 1, speeds tokens a second; ``None``: not measured.

    Attributes:
        kind: ``gguf``, ``mlx``, ``mlx-drafter``, ``fp8``, ``nvfp4`` or ``merged``.
        name: the file, or the folder.
        proof: ``passed``, ``failed`` or ``not verified``.
        verdict: verification's own words.
        drafter: an MTP head in a folder of its own; what was measured is in the row of its trunk.
        has_mtp: whether an MTP head is inside.
        runtime: what verified it.
        positions: predictions that were compared.
        acceptance, source_acceptance: share of drafts, one token ahead, that are the trunk's own choice, over
            held-out text.
        runtime_acceptance: drafts accepted while the runtime answered verification's prompts.
        settings: what was asked for, without names of files.
    """

    kind: str
    label: str
    name: str
    size: int
    files: tuple[File, ...]
    proof: str
    verdict: str
    bits_per_weight: float | None = None
    drafter: bool = False
    has_mtp: bool = False
    runtime: str = ""
    kld: Kld | None = None
    same_top1: float | None = None
    perplexity_ratio: float | None = None
    positions: int | None = None
    acceptance: float | None = None
    source_acceptance: float | None = None
    runtime_acceptance: float | None = None
    tok_s: float | None = None
    mtp_tok_s: float | None = None
    bench: Bench | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def format(self) -> str:
        """``gguf``, ``mlx``, ``fp8``, ``nvfp4`` or ``merged``."""
        return self.kind.partition("-")[0]

    @property
    def title(self) -> str:
        """What charts call it: the label, with the format where the label does not say it."""
        names = {"mlx": "MLX", "merged": "merged"}
        prefix = names.get(self.format, "")
        return self.label if not prefix or prefix in self.label else f"{prefix} {self.label}"

    def to_json(self) -> dict[str, Any]:
        value = asdict(self)
        value["bench"] = None if self.bench is None else self.bench.to_json()
        value["files"] = [asdict(file) for file in self.files]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Row:
        """The row that :meth:`to_json` gave. Raises KeyError, TypeError or ValueError for what is none."""
        plain = {each.name: value[each.name] for each in fields(cls)}
        plain["files"] = tuple(File(**file) for file in value["files"])
        plain["kld"] = None if value["kld"] is None else Kld(**value["kld"])
        plain["bench"] = None if value["bench"] is None else Bench.from_json(value["bench"])
        return cls(**plain)
