"""A receipt as values. What JSON calls the same is the same; ``bytes`` there is ``size`` here.

Names of files are relative to the folder of the receipt, with ``/``, and lie inside it: a value with another
name cannot be made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from qexport.checkpoint.paths import SHA256
from qexport.doctor.finding import Finding
from qexport.formats.format import ATTACHED
from qexport.formats.registry import FORMATS, words_of
from qexport.receipt.about import About
from qexport.receipt.measures import Estimate, Measures
from qexport.receipt.safe_text import without_hidden
from qexport.receipt.speeds import Bench
from qexport.receipt.state import Lost, State
from qexport.receipt.verification import Verification

SCHEMA = 2
"""The version of what is written; :mod:`qexport.receipt.old` reads the ones before."""
_NO_NAME = re.compile(r"[\\\ufffd]|^[A-Za-z]:")
_MOST_NAME = 1024
HUB_LABEL = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)@[0-9a-f]{8}", re.ASCII)
_GRAFTED = "grafted from "


def is_inside(name: str) -> bool:
    """Whether ``name`` is that of a file in the folder or below it, and nothing else.

    >>> is_inside("sub/a.gguf"), is_inside("../a"), is_inside("/a"), is_inside("a//b"), is_inside("C:a")
    (True, False, False, False, False)
    """
    parts = name.split("/")
    return (
        0 < len(name) <= _MOST_NAME
        and not any(part in ("", ".", "..") or part.startswith("-") for part in parts)
        and _NO_NAME.search(name) is None
        and without_hidden(name) == name
    )


@dataclass(frozen=True)
class File:
    """A file: name, bytes, SHA-256 in hexadecimal."""

    name: str
    size: int = field(metadata={"json": "bytes"})
    sha256: str

    def __post_init__(self) -> None:
        if not is_inside(self.name):
            raise ValueError(f"{self.name[:80]!r} is not a name inside the folder")
        if not SHA256.fullmatch(self.sha256) or self.size < 0:
            raise ValueError(f"{self.name!r} has no SHA-256 or no size")


@dataclass(frozen=True)
class WeightFile:
    """A weight file of the source: how many tensors, their bytes, and a hash of names, types and places."""

    tensors: int = 0
    size: int = field(default=0, metadata={"json": "bytes"})
    layout_sha256: str = ""


@dataclass(frozen=True)
class TunedHead:
    """What tuning the MTP head to this model came to, on documents that it was not trained on.

    Attributes:
        base: whose head it was.
        drafts: how the runtime drafts: ``argmax``, ``sampling`` or ``both``.
        n_max: most drafts of a verification.
        before, after: tokens per verification.
    """

    base: str
    drafts: str
    n_max: int
    before: Estimate
    after: Estimate


@dataclass(frozen=True)
class Source:
    """Where the weights came from.

    Attributes:
        label: of a folder its name; of a Hub model ``org/name@`` and the first digits of the commit.
        revision: the commit, for a model on the Hub.
        mtp: ``own``, ``none``, ``dropped``, or ``grafted from`` a base.
        vision: whether it has a vision tower; ``None``: not said.
        tower: where that is from, in the words of ``mtp``; empty: not said.
        card: what the source's own card says: licence, language, task.
        tuned: the head was tuned to this model; ``None``: it was not.
        about: what those who use it want to know.
    """

    label: str = ""
    revision: str | None = None
    files: Mapping[str, WeightFile] = field(default_factory=dict)
    mtp: str = "none"
    vision: bool | None = None
    tower: str = ""
    card: Mapping[str, Any] = field(default_factory=dict)
    tuned: TunedHead | None = None
    about: About = field(default_factory=About)

    @property
    def hub_id(self) -> str | None:
        """The id on the Hub; ``None`` for a folder."""
        match = HUB_LABEL.fullmatch(self.label)
        return match["id"] if match else None

    @property
    def head(self) -> str:
        """``own``, ``grafted``, ``dropped`` or empty: where the MTP head is from."""
        if self.mtp.startswith(_GRAFTED):
            return "grafted"
        return self.mtp if self.mtp in ("own", "dropped") else ""

    @property
    def base(self) -> str:
        """What the head was grafted from."""
        return self.mtp.removeprefix(_GRAFTED) if self.head == "grafted" else ""

    @property
    def tower_base(self) -> str:
        """What the vision tower was grafted from; empty where it was not."""
        return self.tower.removeprefix(_GRAFTED) if self.tower.startswith(_GRAFTED) else ""

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weight files."""
        return sum(file.size for file in self.files.values())


@dataclass(frozen=True)
class MatrixFile:
    """The importance matrix that weighted the rounding: its file, and what it was made from.

    Attributes:
        tokens: that it was collected over, where that was here.
    """

    file: str
    sha256: str = ""
    datasets: tuple[str, ...] = ()
    tokens: int | None = None


@dataclass(frozen=True)
class Possible:
    """A file that could have been chosen: bytes of all files, and its predicted divergence."""

    size: int = field(metadata={"json": "bytes"})
    kld: float


@dataclass(frozen=True)
class Forecast:
    """What was predicted before anything was written: nats of divergence per token, from sensitivities.

    Attributes:
        kld: of the model's predictions.
        draft_kld: of its MTP head's, by errors in the head alone.
        aim: what types were chosen for, such as ``the size of Q4_K_M``; empty where they were not chosen so.
        types: the type of each tensor that was chosen, by its name in the model.
        key: what the choice follows from, so that it is not made again.
        curve: what other sizes would have cost, the smallest first.
    """

    kld: float
    draft_kld: float | None = None
    aim: str = ""
    types: Mapping[str, str] = field(default_factory=dict)
    key: str = ""
    curve: tuple[Possible, ...] = ()


@dataclass(frozen=True)
class AgainstPlain:
    """How the best file of a size did beside the plain one, over text that was not calibrated on; in nats.

    Attributes:
        kept: the best one is what was written; where it was no better, the plain one was.
        best, plain: mean divergence of both.
        gain: the mean difference, position by position, and the standard error of that.
        positions: predictions that were compared.
        text: what text it was, in words.
        fingerprint: what the bytes of the best one follow from, so that it need not be tried again.
        label: what the best one is called, where it was not kept.
        tried: what was predicted of it then, with its types.
    """

    kept: bool
    best: Estimate
    plain: Estimate
    gain: Estimate
    positions: int
    text: str = ""
    fingerprint: str = ""
    label: str = ""
    tried: Forecast | None = None


@dataclass(frozen=True)
class Gate:
    """A limit that an artifact had to keep.

    Attributes:
        gate: its name in a recipe, such as ``max_mean_kld``.
        value: what was measured; ``None``: nothing was, which passes no gate.
    """

    artifact: str
    gate: str
    limit: float
    value: float | None = None
    passed: bool = False


@dataclass(frozen=True)
class Artifact:
    """One artifact.

    Attributes:
        kind: ``gguf``, ``mlx``, ``mlx-drafter``, ``fp8``, ``nvfp4``, ``merged``, ``imatrix``, ``mmproj`` or
            ``mtp``.
        label: its type, such as ``Q4_K_M``.
        details: facts of the format, for people and programs that know it.
        parts: for each part of the model as what it is stored, and how many bytes of that.
        notes: what was said when it was planned.
        verification: ``None``: not asked for.
        against_plain: where the best of a size was asked for, how it did beside the plain type.
        bench: speeds that ``qexport bench`` has measured.
        options: what was asked for.
        predicted: what it was predicted to cost; ``None`` where sensitivities were not looked at.
        model_name: what was asked for as the model's name.
        mtp_layouts: where the head was put, if that is not said by the format.
        findings: of the doctor, about the source.
        fingerprint: what its bytes follow from, so that they are not made again.
        asked: what its recipe asked for, as a hash; empty where no recipe's file did.
        tool: qexport's version; ``libraries``: those of others.
        written: when, in ISO 8601.
        folder: the name of the folder in which it was found; no part of a receipt.
        lost: the file that is gone, or another, since the receipt was written; no part of a receipt.
    """

    kind: str
    label: str
    files: tuple[File, ...]
    bits_per_weight: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    verification: Verification | None = None
    bench: Bench | None = None
    against_plain: AgainstPlain | None = None
    gates: tuple[Gate, ...] = ()
    source: Source = field(default_factory=Source)
    options: Mapping[str, Any] = field(default_factory=dict)
    matrix: MatrixFile | None = None
    predicted: Forecast | None = None
    model_name: str | None = None
    mtp_layouts: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    fingerprint: str | None = None
    asked: str = ""
    tool: str = field(default="", metadata={"json": "qexport"})
    libraries: Mapping[str, str] = field(default_factory=dict)
    written: str = ""
    folder: str = field(default="", compare=False, metadata={"json": ""})
    lost: Lost | None = field(default=None, compare=False, metadata={"json": ""})

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("it names no files")

    @property
    def format(self) -> str:
        """The kind; of a head in a folder of its own the trunk's."""
        return self.kind.partition("-")[0]

    @property
    def is_file(self) -> bool:
        """It is one file, shards or none, not a folder."""
        return not self.is_model or (self.kind in FORMATS and FORMATS[self.kind].ladder)

    @property
    def top(self) -> str:
        """The folder that all its files are in, by the names in the receipt."""
        return min((file.name.rpartition("/")[0] for file in self.files), key=len)

    @property
    def name(self) -> str:
        """Its file, or its folder."""
        if self.is_file:
            return self.files[0].name
        return f"{self.top or self.folder or self.label}/"

    @property
    def title(self) -> str:
        """What charts call it: the label, with the format where the label does not say it."""
        prefix = words_of(self.format).prefix
        return self.label if not prefix or prefix in self.label else f"{prefix} {self.label}"

    @property
    def is_model(self) -> bool:
        """Whether there is something in it that a runtime could run."""
        return self.kind not in ATTACHED

    @property
    def is_drafter(self) -> bool:
        """An MTP head in a folder of its own, which another artifact is run with."""
        return "draft" in self.kind

    @property
    def has_mtp(self) -> bool:
        """Whether an MTP head is inside."""
        inside = FORMATS[self.kind].inside if self.kind in FORMATS else None
        if inside is not None or self.mtp_layouts:
            return not (inside or frozenset()).isdisjoint(self.mtp_layouts)
        return self.is_model and self.source.head in ("own", "grafted")

    @property
    def head_file(self) -> str:
        """The name of the file beside it that its MTP head is in; empty where it has none there."""
        said = str(self.details.get("mtp_file", "")) if "drafter" in self.mtp_layouts else ""
        return said.rpartition("/")[2]

    @property
    def drafts(self) -> bool:
        """Whether there is an MTP head for it, in itself or in a file beside it."""
        return self.has_mtp or bool(self.head_file)

    @property
    def sees(self) -> bool:
        """Whether it can take an image: of an earlier version's receipt only the kind tells."""
        tower = self.kind == "mmproj" or bool(self.details.get("vision_tensors"))
        return tower or (self.is_model and words_of(self.format).sees and self.source.vision is not False)

    @property
    def state(self) -> State:
        """How far it is proven; what verification was not asked for has not run."""
        if self.lost is not None:
            return self.lost.state
        return State.NOT_RUN if self.verification is None else self.verification.state

    @property
    def verdict(self) -> str:
        """The state in words, with what it is about."""
        if self.verification is None or self.lost is not None:
            return self.state.value
        return self.verification.verdict

    @property
    def broken_gates(self) -> tuple[str, ...]:
        """Limits of its recipe that it does not keep."""
        return tuple(gate.gate for gate in self.gates if not gate.passed)

    @property
    def outcome(self) -> str:
        """How verification and the recipe's limits ended: the one sentence of cards and reports."""
        gates = ", ".join(self.broken_gates)
        return self.verdict if not gates else f"{self.verdict}; limits not kept: {gates}"

    @property
    def measures(self) -> Measures:
        """Its figures; those in a drafter's receipt are of its head alone."""
        return Measures() if self.verification is None else self.verification.measures

    @property
    def repairs(self) -> tuple[Finding, ...]:
        """What was wrong with the source and was put right in what was written."""
        return tuple(finding for finding in self.findings if finding.severity == "repaired")

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def derived(self) -> dict[str, Any]:
        """What is not there is said, too: it is the first that is looked for."""
        absent = {name: None for name in ("verification", "bench") if getattr(self, name) is None}
        return {"state": self.state.value, **absent}

    @property
    def written_at(self) -> float | None:
        """When it was written, in seconds since 1970; ``None`` where the receipt does not say."""
        try:
            moment = datetime.fromisoformat(self.written)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            return None


@dataclass(frozen=True)
class Receipt:
    """All artifacts of a folder; several runs may have filled it."""

    artifacts: tuple[Artifact, ...] = ()
    schema: int = SCHEMA
