"""What verification found: frozen, JSON-able, and careful to say what was not checked.

A check that was skipped proves nothing: it is listed under ``unverified`` and never counts as verified. What
does not apply (a head, where the source has none) is no check at all. An artifact has passed when nothing
failed, everything required was made, and something was compared with the source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from qexport.receipt.measures import Drafts, Measures
from qexport.receipt.speeds import RuntimeVersion
from qexport.receipt.state import State
from qexport.receipt.typed import as_json


class Check(StrEnum):
    """Everything that can be found about a file, in the order in which it is looked at."""

    FILE = "file"
    NUMBERS = "numbers"
    TENSORS = "tensors"
    STORED = "stored"
    DECLARED = "declared"
    FUSED = "fused"
    INPUT_SCALES = "input_scales"
    MTP_DECLARED = "mtp_declared"
    READERS = "readers"
    WEIGHTS = "weights"
    TWIN = "twin"
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
    IMAGE_LOADS = "image_loads"
    IMAGE_FRAMES = "image_frames"
    IMAGE_EMBEDDINGS = "image_embeddings"
    IMAGE_TEXT = "image_text"
    IMAGE_MTP = "image_mtp"
    INPUT_ROOM = "input_room"
    MTP_HEAD = "mtp_head"
    DIVERGENCE = "divergence"


REQUIRED = (Check.FILE, Check.LOADS, Check.GENERATES, Check.FINITE, Check.TEXT)
"""Without these an artifact has not been run."""
REQUIRED_OF_HEADS = (Check.MTP_HEAD,)
"""Of an MTP head in a folder of its own: run with its trunk, it guesses what the trunk says."""
OF_IMAGES = tuple(check for check in Check if check.value.startswith("image_"))
"""What the artifact makes of pictures, where the source sees."""
COMPARED = (Check.AGREEMENT, Check.DIVERGENCE, Check.MTP_HEAD)
"""Each of these compares what comes out with what the source says."""


class Status(StrEnum):
    """How a check ended."""

    PASS = "pass"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Verdict:
    """One check's outcome: a sentence for people, ``data`` for programs."""

    check: Check
    status: Status
    summary: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def derived(self) -> dict[str, Any]:
        """Numbers of ``data`` with six places are enough."""
        text = json.dumps(self.data)
        return {"data": json.loads(text, parse_float=_short, parse_constant=lambda word: str(float(word)))}


def _short(digits: str) -> float:
    return round(float(digits), 6)


@dataclass(frozen=True)
class Verification:
    """The verdict on one artifact.

    Attributes:
        prompts, texts: what was asked, and the answers.
        as_source: of each answer, whether every token of it is the source's own first choice.
        size: bytes of all its files.
        bits_per_weight: of stored tensors, scales included, headers and padding not.
        drafts: of the runtime, over the prompts that it answered.
        required: checks without which it has not been run.
        said: how a receipt says that it ended, whose findings may not be complete.
    """

    artifact: str = ""
    engine: RuntimeVersion = field(default_factory=RuntimeVersion, metadata={"json": "runtime"})
    findings: tuple[Verdict, ...] = ()
    prompts: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    as_source: tuple[bool, ...] = ()
    file_type: str = ""
    size: int = 0
    bits_per_weight: float = 0.0
    load_s: float = 0.0
    drafts: Drafts | None = None
    measures: Measures = field(default_factory=Measures)
    required: tuple[Check, ...] = REQUIRED
    said: State | None = field(default=None, metadata={"json": "state"})

    @property
    def state(self) -> State:
        """How far it is proven."""
        if self.failures or self.said is State.FAILED:
            return State.FAILED
        held = set(self.verified)
        if self.said is not State.PASSED:
            if not held.issuperset(self.required):
                return self.said or State.NOT_RUN
            if held.isdisjoint(COMPARED):
                return State.UNCOMPARED
        return State.PASSED

    @property
    def passed(self) -> bool:
        return self.state is State.PASSED

    @property
    def failures(self) -> tuple[Verdict, ...]:
        return tuple(finding for finding in self.findings if finding.status is Status.FAIL)

    @property
    def verified(self) -> tuple[Check, ...]:
        """The checks that were made and passed."""
        return tuple(finding.check for finding in self.findings if finding.status is Status.PASS)

    @property
    def unverified(self) -> tuple[Check, ...]:
        """The checks that were not made."""
        return tuple(finding.check for finding in self.findings if finding.status is Status.SKIPPED)

    def finding(self, check: Check) -> Verdict | None:
        """The finding of one check, if it came to that."""
        return next((finding for finding in self.findings if finding.check is check), None)

    @property
    def images(self) -> str:
        """``passed``, ``failed``, ``not run: why``, ``text alone: why``; empty without a tower."""
        found = [each for each in self.findings if each.check in OF_IMAGES]
        if any(each.status is Status.FAIL for each in found):
            return "failed"
        if {Check.IMAGE_TEXT, Check.IMAGE_EMBEDDINGS} <= set(self.verified):
            return "passed"
        why = next((each for each in found if each.status is Status.SKIPPED), None)
        if why is None:
            return "not run" if found else ""
        return f"{'text alone' if why.data.get('blind') else 'not run'}: {why.summary}"

    @property
    def verdict(self) -> str:
        """The state, and what it is about: ``passed, without mtp_loads``, ``failed: agreement, mtp_text``."""
        if self.failures:
            return f"{self.state}: " + ", ".join(finding.check.value for finding in self.failures)
        ran = self.state in (State.PASSED, State.UNCOMPARED)
        without = ", without " + ", ".join(self.unverified) if ran and self.unverified else ""
        return f"{self.state}{without}"

    @property
    def derived(self) -> dict[str, Any]:
        return {
            "state": self.state.value,
            "verdict": self.verdict,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "load_s": round(self.load_s, 3),
            "verified": [check.value for check in self.verified],
            "unverified": [check.value for check in self.unverified],
            "findings": as_json(self.findings),
            **({"images": self.images} if self.images else {}),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain JSON for receipts and ``--json``; no host paths in it."""
        return dict(as_json(self))
