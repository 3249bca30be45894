"""What verification found: frozen, JSON-able, and careful to say what was not checked.

A check that was skipped proves nothing: it is listed under ``unverified`` and never counts as verified. A
report passes when nothing failed and the file loaded, gave finite numbers and sensible text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["REQUIRED", "Check", "Finding", "Report", "Status"]


class Check(StrEnum):
    """Everything that can be found about a file, in the order in which it is looked at."""

    FILE = "file"
    NUMBERS = "numbers"
    TENSORS = "tensors"
    STORED = "stored"
    DECLARED = "declared"
    FUSED = "fused"
    MTP_DECLARED = "mtp_declared"
    LOADS = "loads"
    USED = "used"
    TOKENS = "tokens"
    ENDS = "ends"
    TEMPLATE_KEPT = "template_kept"
    TEMPLATE = "template"
    GENERATES = "generates"
    FINITE = "finite"
    TEXT = "text"
    AGREEMENT = "agreement"
    MTP_LOADS = "mtp_loads"
    MTP_TEXT = "mtp_text"
    MTP_ACCEPTANCE = "mtp_acceptance"
    MTP_HEAD = "mtp_head"
    DIVERGENCE = "divergence"


REQUIRED = (Check.FILE, Check.LOADS, Check.GENERATES, Check.FINITE, Check.TEXT)


# Fields of a report that its JSON holds under the same name.
_PLAIN = ("file_type", "size", "bits_per_weight", "load_s", "tok_s", "mtp_tok_s", "acceptance")


class Status(StrEnum):
    """How a check ended."""

    PASS = "pass"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """One check's outcome: a sentence for people, ``data`` for programs."""

    check: Check
    status: Status
    summary: str
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "check": self.check.value,
            "status": self.status.value,
            "summary": self.summary,
            "data": _plain(self.data),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Finding:
        """The finding that :meth:`to_json` gave."""
        return cls(Check(value["check"]), Status(value["status"]), value["summary"], value["data"])


@dataclass(frozen=True)
class Report:
    """The verdict on one artifact. Speeds are tokens a second, 0 where nothing was measured."""

    artifact: str
    runtime: str
    runtime_version: str
    findings: tuple[Finding, ...]
    texts: tuple[str, ...] = ()
    file_type: str = ""
    size: int = 0
    bits_per_weight: float = 0.0
    load_s: float = 0.0
    tok_s: float = 0.0
    mtp_tok_s: float = 0.0
    acceptance: float | None = None

    @property
    def passed(self) -> bool:
        held = {finding.check for finding in self.findings if finding.status is Status.PASS}
        return not self.failures and held.issuperset(REQUIRED)

    @property
    def failures(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.status is Status.FAIL)

    @property
    def verified(self) -> tuple[Check, ...]:
        """The checks that were made and passed."""
        return tuple(finding.check for finding in self.findings if finding.status is Status.PASS)

    @property
    def unverified(self) -> tuple[Check, ...]:
        """The checks that were not made."""
        return tuple(finding.check for finding in self.findings if finding.status is Status.SKIPPED)

    def finding(self, check: Check) -> Finding | None:
        """The finding of one check, if it came to that."""
        return next((finding for finding in self.findings if finding.check is check), None)

    @property
    def verdict(self) -> str:
        """``pass``, ``pass, without agreement``, or ``fail: agreement, mtp_text``."""
        if self.failures:
            return "fail: " + ", ".join(finding.check.value for finding in self.failures)
        if not self.passed:
            return "not verified"
        return "pass" + (", without " + ", ".join(self.unverified) if self.unverified else "")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Report:
        """The report that a receipt holds. Raises KeyError or ValueError for what is none."""
        return cls(
            artifact=value["artifact"],
            runtime=value["runtime"]["name"],
            runtime_version=value["runtime"]["version"],
            findings=tuple(Finding.from_json(finding) for finding in value["findings"]),
            texts=tuple(value["texts"]),
            **{name: value[name] for name in _PLAIN},
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON for receipts and ``--json``; no host paths in it."""
        return {
            "artifact": self.artifact,
            "passed": self.passed,
            "verdict": self.verdict,
            "runtime": {"name": self.runtime, "version": self.runtime_version},
            "file_type": self.file_type,
            "size": self.size,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "load_s": round(self.load_s, 3),
            "tok_s": round(self.tok_s, 3),
            "mtp_tok_s": round(self.mtp_tok_s, 3),
            "acceptance": None if self.acceptance is None else round(self.acceptance, 4),
            "verified": [check.value for check in self.verified],
            "unverified": [check.value for check in self.unverified],
            "findings": [finding.to_json() for finding in self.findings],
            "texts": list(self.texts),
        }


def _plain(value: Any) -> Any:
    """``value`` as strict JSON: no tuples, and no NaN or infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else str(value)
    return value
