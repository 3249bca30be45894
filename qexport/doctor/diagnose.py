"""The diagnosis: every finding, and the repaired checkpoint. Headers and small files are enough for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qexport.checkpoint.chat_templates import TEMPLATE_FILE
from qexport.checkpoint.tensors import Checkpoint
from qexport.doctor.draft import Draft
from qexport.doctor.finding import Finding
from qexport.doctor.mtp import MtpMode, MtpResult, settle_mtp
from qexport.doctor.quirks import QUIRKS
from qexport.doctor.repaired import Repaired, finish
from qexport.doctor.subject import Subject, examine
from qexport.doctor.vision import VisionMode, settle_vision
from qexport.errors import InputError

# Findings about a head that is then replaced or dropped are of no interest.
_OLD_HEAD = ("experts.mtp_layout", "names.mtp_prefix")
# Groups of findings that say nothing where the tensors are not the model's at all.
_GROUPS = ("dtype", "experts", "layers", "mtp", "names", "tensors", "tie", "vision", "vocab", "weights")
_OF_TENSORS = ("config.contradiction", *(f"{group}." for group in _GROUPS))


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found.

    Attributes:
        subject: the checkpoint as it is.
        findings: all of them, errors first.
    """

    subject: Subject = field(repr=False)
    findings: tuple[Finding, ...]
    _repaired: Repaired | None = field(default=None, repr=False)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that need a decision before anything can be exported."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def repaired(self) -> Repaired:
        """The checkpoint after repairs.

        Raises:
            InputError: there are errors; all are named, each with its ways out.
        """
        if self._repaired is None or self.errors:
            label = self.subject.checkpoint.label
            what = "\n  ".join(finding.what for finding in self.errors)
            ways = "\n".join(dict.fromkeys(finding.repair for finding in self.errors if finding.repair))
            raise InputError(f"{label} cannot be exported as it is:\n  {what}", hint=ways or None)
        return self._repaired

    def to_json(self) -> dict[str, Any]:
        """Findings and what became of the MTP head, as plain JSON values."""
        repaired = self._repaired
        return {
            "findings": [finding.to_json() for finding in self.findings],
            "mtp": None
            if repaired is None
            else {"layers": repaired.mtp_layers, "origin": repaired.mtp_origin},
            "vision": None if repaired is None else {"origin": repaired.vision_origin},
        }


def diagnose(
    checkpoint: Checkpoint,
    *,
    mtp: MtpMode = "auto",
    mtp_from: Checkpoint | None = None,
    vision: VisionMode = "auto",
    vision_from: Checkpoint | None = None,
    vision_named: bool = True,
) -> Diagnosis:
    """Examine ``checkpoint`` and repair what is known; the source is not touched.

    Args:
        checkpoint: local, or on the Hub with nothing but headers known.
        mtp: what to do about the MTP head.
        mtp_from: the base model: its head is grafted if asked for, or if there is none, with ``auto``.
        vision, vision_from: likewise for the vision tower; processor files that are missing come with it.
        vision_named: it was named for the tower: what does not fit is an error, else it is left alone.

    Raises:
        InputError: there is no usable config, or no family that is known.
        UsageProblem: a mode and its base do not go together, or not with this family.
    """
    try:
        return _diagnose(checkpoint, mtp, mtp_from, vision, vision_from, vision_named)
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        # Config and tokenizer files come from anywhere; a value of another kind than any reader expects.
        raise InputError(
            f"{checkpoint.label}: config.json or a tokenizer file has a value that cannot be used: {error!r}",
            hint="Compare them with the base model's.",
        ) from error


def _diagnose(
    checkpoint: Checkpoint,
    mtp: MtpMode,
    mtp_from: Checkpoint | None,
    vision: VisionMode,
    vision_from: Checkpoint | None,
    vision_named: bool,
) -> Diagnosis:
    given = examine(checkpoint, base=mtp_from, sight=vision_from)
    base = examine(mtp_from) if mtp_from is not None and given.family.head and mtp != "drop" else None
    same = base if vision_from is mtp_from else None
    sight = same or (examine(vision_from) if vision_from is not None and vision != "drop" else None)
    tower = settle_vision(given, vision, sight, named=vision_named)
    subject = tower.subject
    draft = Draft(subject)
    for name, data in tower.files.items():
        draft.remove(name) if data is None else draft.write(name, data)
    # Names are judged by the form that the checkpoint has, all else by the one that it is to have.
    seen = [(quirk, quirk.detect(given if quirk.id.startswith("names.") else subject)) for quirk in QUIRKS]
    try:
        head = settle_mtp(draft, mtp, base)
    except InputError:
        if not any(found is not None and found.severity == "error" for _, found in seen):
            raise
        head = MtpResult((), 0, "none")  # nobody can tell before the errors are mended
    if TEMPLATE_FILE in tower.files:
        seen = [(quirk, found) for quirk, found in seen if quirk.id != "template.missing"]
    if head.replaced:
        seen = [(quirk, found) for quirk, found in seen if quirk.id not in _OLD_HEAD]
    if causes := [(quirk, found) for quirk, found in seen if quirk.explains and found is not None]:
        seen = [*causes[:1], *(pair for pair in seen if not pair[0].id.startswith(_OF_TENSORS))]
        head = MtpResult((), 0, "none")
    findings = [*head.findings, *tower.findings, *(found for _, found in seen if found is not None)]
    repaired = None
    if not any(finding.severity == "error" for finding in findings):
        try:
            written: dict[str, str] = {}
            for quirk, found in seen:
                if found is not None and quirk.fix is not None:
                    before = dict(draft.text)
                    quirk.fix(draft)
                    written |= {
                        key: quirk.id for key, value in draft.text.items() if before.get(key) != value
                    }
            repaired = finish(draft, head, tower.origin, written)
            repaired.view()
        except InputError as error:
            repair = error.hint or "Does config.json belong to these weights?"
            findings.append(Finding("tensors.unfit", "error", error.message, repair=repair))
    order = {"error": 0, "repaired": 1, "note": 2}
    return Diagnosis(given, tuple(sorted(findings, key=lambda f: order[f.severity])), repaired)
