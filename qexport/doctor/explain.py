"""What a checkpoint is, in numbers: the data behind ``qexport inspect``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qexport.doctor.diagnose import Diagnosis
from qexport.doctor.finding import Finding
from qexport.doctor.subject import Subject
from qexport.doctor.tokens import tokenizer_kind
from qexport.errors import InputError
from qexport.families.hyper import resolve
from qexport.families.names import is_expert_name

_KINDS = {"full": "full attention", "linear": "linear attention", "dense": "full attention, dense MLP"}


@dataclass(frozen=True)
class Parameters:
    """Counts of stored values. ``active``: of the trunk, what a token passes through (and the embedding)."""

    total: int
    trunk: int
    mtp: int
    vision: int
    active: int


@dataclass(frozen=True)
class Explanation:
    """The checkpoint as it is, and what was found.

    Attributes:
        layers: number of trunk layers of each kind.
        dtypes: stored values by dtype.
        files: safetensors files, with bytes of tensor data.
        chat_template: where the chat template is; empty if there is none.
        mtp: MTP layers that there are tensors for.
    """

    label: str
    family: str
    architecture: str
    multimodal: bool
    layers: Mapping[str, int]
    parameters: Parameters
    dtypes: Mapping[str, int]
    files: Mapping[str, int]
    tied: bool
    vocabulary: int
    context_length: int
    experts: int | None
    experts_per_token: int | None
    mtp: int
    tokenizer: str
    chat_template: tuple[str, ...]
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        value = asdict(self)
        value["chat_template"] = list(self.chat_template)
        value["findings"] = [finding.to_json() for finding in self.findings]
        return value


def explain(diagnosis: Diagnosis) -> Explanation:
    """Put together what ``qexport inspect`` shows.

    Raises:
        InputError: config.json does not say how many layers there are.
    """
    subject = diagnosis.subject
    try:
        hyper = resolve(subject.family, subject.text, subject.config)
    except InputError:
        _ = diagnosis.repaired  # names all that is wrong
        raise
    kinds = Counter(_KINDS[kind] for kind in hyper.kinds)
    stored = subject.checkpoint.tensors.values()
    experts = hyper.experts.count if hyper.experts else None
    per_token = hyper.experts.used if hyper.experts else None
    return Explanation(
        label=subject.checkpoint.label,
        family=subject.family.name,
        architecture=_named(subject.config.get("architectures")),
        multimodal=bool(subject.vision),
        layers=dict(kinds),
        parameters=_parameters(subject, experts, per_token),
        dtypes=_sums((tensor.dtype, tensor.numel) for tensor in stored),
        files=_sums((tensor.file, tensor.nbytes) for tensor in stored),
        tied="lm_head.weight" not in subject.tensors,
        vocabulary=hyper.vocab,
        context_length=hyper.context,
        experts=experts,
        experts_per_token=per_token,
        mtp=max(subject.head.values(), default=-1) + 1,
        tokenizer=tokenizer_kind(subject),
        chat_template=tuple(subject.templates.places),
        findings=diagnosis.findings,
    )


def _named(architectures: Any) -> str:
    if not isinstance(architectures, list) or not architectures:
        return "not named"
    return ", ".join(str(name) for name in architectures)


def _sums(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for key, number in pairs:
        found[key] += number
    return dict(found)


def _parameters(subject: Subject, experts: int | None, per_token: int | None) -> Parameters:
    vision = set(subject.vision)
    parts: Counter[str] = Counter()
    for name, tensor in subject.tensors.items():
        part = "vision" if name in vision else "mtp" if name in subject.head else "trunk"
        parts[part] += tensor.numel
        if part == "trunk" and is_expert_name(name):
            parts["experts"] += tensor.numel
    idle = 0
    if experts and per_token:
        idle = parts["experts"] - parts["experts"] * min(per_token, experts) // experts
    total = parts["vision"] + parts["mtp"] + parts["trunk"]
    return Parameters(total, parts["trunk"], parts["mtp"], parts["vision"], parts["trunk"] - idle)
