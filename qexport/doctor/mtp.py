"""The MTP head: keep it, graft it from the base, or drop it; afterwards tensors and declaration agree.

transformers leaves the head out when it loads a model, so nearly every merge has lost it, often while
config.json goes on declaring it. What is right then is the user's choice:

=========  ===================================================================================================
``auto``   keep a head that is there; with a base and no head, graft; a declared head that is lost is an error
``keep``   the head has to be there
``graft``  take the base's, also in place of one that is there
``drop``   none, and none declared
=========  ===================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qexport.doctor.draft import Draft
from qexport.doctor.finding import Breaks, Finding, Severity
from qexport.doctor.graft import (
    TowerMode,
    head_tensors,
    misfits,
    own_matrices,
    tower_problems,
    vocabulary_notes,
)
from qexport.doctor.kinship import strangers
from qexport.doctor.subject import Subject
from qexport.errors import UsageProblem
from qexport.families.family import Tower
from qexport.families.hyper import resolve
from qexport.families.roles import Block
from qexport.sizes import counted

MtpMode = TowerMode
_WAYS_OUT = "`--mtp graft --mtp-from BASE` takes the base model's head, `--mtp drop` exports without one."
_LLAMA_LOST = Breaks("llama.cpp", "check_tensor_dims: tensor 'blk.N.attn_norm.weight' not found")
_VLLM_LOST = Breaks(
    "vLLM",
    "ValueError: Following weights were not initialized from checkpoint: {'model.pre_fc_norm_hidden.weight'}",
)
_LOST = (
    _LLAMA_LOST,
    _VLLM_LOST,
    Breaks("vLLM, quantized", "random weights: no draft is ever accepted, silently"),
)
_ASSERT = (Breaks("llama.cpp's converter", "AssertionError (opt_num_mtp_layers != 0); --no-mtp avoids it"),)
_LOST_REFERENCE = "https://github.com/modelscope/ms-swift/issues/9802"


@dataclass(frozen=True)
class MtpResult:
    """What became of the head.

    Attributes:
        layers: MTP layers that the repaired checkpoint holds.
        origin: ``own``, ``none``, ``dropped``, or ``grafted from <label>``.
        replaced: the head that was there is not in the result.
    """

    findings: tuple[Finding, ...]
    layers: int
    origin: str
    replaced: bool = False


def settle_mtp(draft: Draft, mode: MtpMode, base: Subject | None) -> MtpResult:
    """Bring ``draft`` into the state that ``mode`` asks for.

    Raises:
        UsageProblem: a graft without a base, or of a family that has no heads.
    """
    subject = draft.subject
    tower = subject.family.head
    if tower is None:
        return _without_heads(subject, mode)
    if mode == "graft" and base is None:
        raise UsageProblem(
            "--mtp graft needs the checkpoint to take the head from.",
            hint="Add `--mtp-from BASE`: the model that was fine-tuned, a folder or a Hub id.",
        )
    head = subject.family.head_names(draft.tensors, draft.text)
    if mode == "drop":
        return _drop(draft, tower, head)
    if base is not None and (mode == "graft" or (mode == "auto" and not head)):
        return _graft(draft, tower, base, head)
    if head:
        return _keep(draft, tower, head)
    return _lost(draft, tower, mode)


def _without_heads(subject: Subject, mode: MtpMode) -> MtpResult:
    name = subject.family.name
    if mode == "graft":
        hint = "Leave --mtp and --mtp-from out."
        raise UsageProblem(f"the family {name} has no MTP head: there is nothing to graft.", hint=hint)
    if mode == "keep":
        what = f"--mtp keep, but the family {name} has no MTP head"
        return MtpResult((_finding("mtp.none", "error", what, repair="Leave --mtp out."),), 0, "none")
    if subject.base is None or mode == "drop" or subject.family.vision is not None:
        return MtpResult((), 0, "none")
    what = f"a base is named for the MTP head ({subject.base.label}), and the family {name} has none"
    return MtpResult((_finding("mtp.none", "note", what, repair="Nothing is grafted."),), 0, "none")


def _keep(draft: Draft, tower: Tower, head: Mapping[str, int]) -> MtpResult:
    subject, declared, layers = draft.subject, _declared(draft, tower), max(head.values()) + 1
    findings: list[Finding] = []
    if layers > 1:
        what = f"the MTP head has {layers} layers; llama.cpp runs exactly one, and so does qexport"
        breaks = (Breaks("llama.cpp", "GGML_ASSERT(n_layer_nextn == 1) failed"),)
        findings.append(
            _finding("mtp.several", "error", what, breaks, "`--mtp drop` exports without the head.")
        )
    if own := own_matrices(subject.family, head):
        what = f"the MTP head has matrices of its own ({', '.join(own)}); published heads share the model's"
        findings.append(_finding("mtp.own_embeddings", "error", what, (), _WAYS_OUT))
    hyper = resolve(subject.family, draft.text)
    if problems := tower_problems(hyper, draft.tensors, draft.config, Block.MTP):
        what = f"the MTP head is incomplete or does not fit ({counted(len(head), 'tensor')}): " + "; ".join(
            problems
        )
        findings.append(_finding("mtp.incomplete", "error", what, _LOST, _WAYS_OUT))
    if not findings and declared != layers:
        there = counted(len(head), "tensor")
        what = f"there is an MTP head ({there}), but {tower.count} is {_raw(draft, tower)!r}"
        breaks = (Breaks("vLLM, SGLang, oMLX", "the head is ignored: no speculative decoding"),)
        findings.append(
            _finding("mtp.undeclared", "repaired", what, breaks, f"{tower.count}: {layers} is written.")
        )
        _declare(
            draft, tower, layers, {key: draft.text.get(key) or false for key, false in tower.beside.items()}
        )
    return MtpResult(tuple(findings), layers, "own")


def _lost(draft: Draft, tower: Tower, mode: MtpMode) -> MtpResult:
    if mode == "keep":
        what = "--mtp keep, but there is no MTP head"
        found = _finding("mtp.none", "error", what, (), _WAYS_OUT)
    elif declared := _declared(draft, tower):
        what = f"config.json declares an MTP head ({tower.count}: {declared}), but there are no "
        what += f"{_glob(draft)} tensors"
        found = _finding("mtp.lost", "error", what, _LOST, _WAYS_OUT, _LOST_REFERENCE)
    else:
        what = "there is no MTP head, and none is declared: merging loses it"
        repair = "Exported without one; `--mtp-from BASE` grafts the base model's for speculative decoding."
        found = _finding("mtp.none", "note", what, _ASSERT, repair, _LOST_REFERENCE)
        if tower.assumed:
            draft.text[tower.count] = 0  # or readers would take one for granted
    return MtpResult((found,), 0, "none")


def _drop(draft: Draft, tower: Tower, head: Mapping[str, int]) -> MtpResult:
    declared = _declared(draft, tower)
    if head or declared or tower.assumed:
        _declare(draft, tower, 0)
    if not head and not declared:
        return MtpResult((), 0, "none")
    draft.tensors = {name: tensor for name, tensor in draft.tensors.items() if name not in head}
    what = (
        "the MTP head is dropped"
        if head
        else f"{tower.count} is {declared}, but there is no head; none is wanted"
    )
    repair = f"No {_glob(draft)} tensors; {tower.count}: 0 is written."
    found = _finding("mtp.dropped", "repaired", what, _ASSERT, repair)
    return MtpResult((found,), 0, "dropped", replaced=bool(head))


def _graft(draft: Draft, tower: Tower, base: Subject, old: Mapping[str, int]) -> MtpResult:
    subject, label = draft.subject, base.checkpoint.label
    if reasons := misfits(subject, base):
        what = f"the MTP head of {label} does not fit: " + "; ".join(reasons)
        repair = "Give the model that was fine-tuned with --mtp-from, or export without a head: `--mtp drop`."
        return MtpResult((_finding("mtp.misfit", "error", what, (), repair),), 0, "none")
    head = head_tensors(base, draft.tensors)
    draft.tensors = {name: tensor for name, tensor in draft.tensors.items() if name not in old} | head
    _declare(draft, tower, 1, {key: base.text[key] for key in tower.beside if key in base.text})
    instead = "in place of the one that is there" if old else "the checkpoint has none"
    what = f"the MTP head of {label} is grafted ({counted(len(head), 'tensor')}; {instead})"
    repair = "Copied bit for bit. Measure what is accepted: a head fits its own trunk best."
    found = [_finding("mtp.grafted", "repaired", what, () if old else _LOST, repair, _LOST_REFERENCE)]
    found += [_finding("mtp.vocabulary", "note", note) for note in vocabulary_notes(subject, base)]
    found += strangers(subject, base, "mtp")
    return MtpResult(tuple(found), 1, f"grafted from {label}", replaced=bool(old))


def _glob(draft: Draft) -> str:
    tower = draft.subject.family.head
    assert tower is not None
    trunk = draft.text.get("num_hidden_layers")
    return tower.prefixes(0, trunk if isinstance(trunk, int) else 0)[0] + "*"


def _raw(draft: Draft, tower: Tower) -> Any:
    return draft.text.get(tower.count, draft.config.get(tower.count))


def _declared(draft: Draft, tower: Tower) -> int:
    value = _raw(draft, tower)
    return value if isinstance(value, int) else 0


def _declare(draft: Draft, tower: Tower, layers: int, beside: Mapping[str, Any] | None = None) -> None:
    """In text_config, where readers look, and nowhere else."""
    if draft.text is not draft.config:
        draft.config.pop(tower.count, None)
    draft.text.update({tower.count: layers, **(beside or {})})


def _finding(
    name: str,
    severity: Severity,
    what: str,
    breaks: tuple[Breaks, ...] = (),
    repair: str = "",
    reference: str = "",
) -> Finding:
    return Finding(name, severity, what, breaks, repair, reference)
