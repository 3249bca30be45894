"""What verification found, for somebody who has never heard of a tensor: who wants to know if a file is good.

The checks' own sentences are for who made the file. Here several of them are one sentence; what was not
looked at is said as such, and what failed in the check's own words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.receipt.state import State
from qexport.receipt.text import listed, percent
from qexport.receipt.verification import OF_IMAGES, Check, Status
from qexport.receipt.words import gate_value, gate_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from qexport.receipt.types import Artifact
    from qexport.receipt.verification import Verification


@dataclass(frozen=True)
class Said:
    """A sentence, and how it ended."""

    status: Status
    words: str


def plainly(found: Verification) -> tuple[Said, ...]:
    """Sentences, in the order in which they matter."""
    return tuple(said for topic in _TOPICS if (said := _said(topic, found)) is not None)


def outcome(artifact: Artifact) -> str:
    """How it ended in a few words: what failed, what was not looked at, what limits were broken."""
    found = artifact.verification
    words = str(artifact.state) if found is None or artifact.lost else ended(found)
    if artifact.lost is not None and len(artifact.files) > 1:
        words = f"{words}: {artifact.lost.file}"
    broken = (gate for gate in artifact.gates if not gate.passed)
    gates = "; ".join(f"{gate_words(gate.gate)} {gate_value(gate.gate, gate.limit)}" for gate in broken)
    return words if not gates else f"{words}; limits not kept: {gates}"


def ended(found: Verification) -> str:
    """Its state, and what failed or was not looked at: ``passed, without pictures``, ``failed: drafting``."""
    asked = found.failures or tuple(each for each in found.findings if each.status is Status.SKIPPED)
    topics = dict.fromkeys(_topic_of(each.check) for each in asked)
    ran = found.failures or found.state in (State.PASSED, State.UNCOMPARED)
    about = f"{': ' if found.failures else ', without '}{listed(list(topics))}" if topics and ran else ""
    return f"{found.state}{about}"


def _topic_of(check: Check) -> str:
    return next((topic.what for topic in _TOPICS if check in topic.checks), check.value)


@dataclass(frozen=True)
class _Topic:
    """Checks that answer one question.

    Attributes:
        what: they are about, after "not checked:".
        passed: the sentence, where those that were made passed.
        proof: without these nothing is said to have passed; any of the checks, where it is empty.
    """

    what: str
    checks: tuple[Check, ...]
    passed: Callable[[Verification], str]
    proof: tuple[Check, ...] = ()


def _said(topic: _Topic, found: Verification) -> Said | None:
    each = [finding for check in topic.checks if (finding := found.finding(check)) is not None]
    failed = [finding.summary or finding.check.value for finding in each if finding.status is Status.FAIL]
    if failed:
        return Said(Status.FAIL, f"{topic.what}: {'; '.join(failed)}")
    passed = {finding.check for finding in each if finding.status is Status.PASS}
    if passed and passed.issuperset(topic.proof):
        return Said(Status.PASS, topic.passed(found))
    skipped = next((finding for finding in each if finding.status is Status.SKIPPED), None)
    if skipped is None:
        return None
    return Said(Status.SKIPPED, f"{topic.what}{f': {skipped.summary}' if skipped.summary else ''}")


def _ran(found: Verification) -> str:
    engine = str(found.engine)
    where = f" in {engine}" if engine else ""
    if not {Check.GENERATES, Check.TEXT} <= set(found.verified):
        return f"It was loaded{where}."
    count = len(found.texts)
    asked = f"answered {count} question{'s' * (count != 1)}" if count else "answered"
    return f"It was loaded{where} and {asked}; the text is sane."


def _agreed(found: Verification) -> str:
    share, count = found.measures.agreement, found.measures.agreement_tokens
    if share is None:
        return "The tokens of its answers are ones that the original would have chosen, too."
    of = f" of {count}" if count else ""
    return f"{percent(share)}{of} tokens of its answers are ones that the original would have chosen, too."


def _drafted(found: Verification) -> str:
    more = f", {found.drafts} drafts were accepted" if found.drafts and found.drafts.drafted else ""
    return f"With its MTP head drafting, the text is the same{more}."


_TOPICS = (
    _Topic(
        "the file",
        (
            *(Check.FILE, Check.NUMBERS, Check.TENSORS, Check.STORED, Check.DECLARED, Check.FUSED),
            *(Check.INPUT_SCALES, Check.USED),
        ),
        lambda _: "It is complete: stored as its reader expects it, and every number is finite.",
        (Check.FILE,),
    ),
    _Topic(
        "other readers",
        (Check.READERS,),
        lambda _: "Other libraries that read such files find the same numbers in it.",
    ),
    _Topic(
        "the weights",
        (Check.WEIGHTS,),
        lambda _: "Its weights are the original's, each matrix as near as rounding explains.",
    ),
    _Topic(
        "running",
        (Check.LOADS, Check.GENERATES, Check.FINITE, Check.TEXT),
        _ran,
        (Check.LOADS,),
    ),
    _Topic("comparing answers", (Check.AGREEMENT,), _agreed),
    _Topic(
        "measuring divergence",
        (Check.DIVERGENCE, Check.INPUT_ROOM),
        lambda _: "Its probabilities were measured against the original's over text (see the table).",
    ),
    _Topic(
        "the chat format",
        (Check.TOKENS, Check.ENDS, Check.TEMPLATE_KEPT, Check.TEMPLATE),
        lambda _: "It reads text, formats a chat and ends its answers as the original does.",
    ),
    _Topic(
        "drafting",
        (Check.MTP_DECLARED, Check.MTP_LOADS, Check.MTP_TEXT, Check.MTP_ACCEPTANCE),
        _drafted,
        (Check.MTP_LOADS,),
    ),
    _Topic(
        "the MTP head",
        (Check.MTP_HEAD,),
        lambda _: "Its MTP head guesses what the model goes on to say about as well as the original's.",
    ),
    _Topic(
        "pictures",
        OF_IMAGES,
        lambda _: "It was shown pictures, and made of them what the original makes of them.",
        (Check.IMAGE_TEXT,),
    ),
)
