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

from dataclasses import dataclass
from typing import Any, Literal

from qexport.doctor.draft import Draft
from qexport.doctor.finding import Breaks, Finding, Severity
from qexport.doctor.graft import head_layers, head_problems, head_tensors, misfits, vocabulary_notes
from qexport.doctor.subject import Subject
from qexport.errors import UsageProblem

MtpMode = Literal["auto", "keep", "graft", "drop"]
_KEY, _OWN_EMBEDDINGS = "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"
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
    if not subject.family.mtp:
        return _without_heads(subject, mode)
    if mode == "graft" and base is None:
        raise UsageProblem(
            "--mtp graft needs the checkpoint to take the head from.",
            hint="Add `--mtp-from BASE`: the model that was fine-tuned, a folder or a Hub id.",
        )
    present = head_layers(draft.tensors)
    if mode == "drop":
        return _drop(draft, present)
    if base is not None and (mode == "graft" or (mode == "auto" and not present)):
        return _graft(draft, base, present)
    if present:
        return _keep(draft, present)
    return _lost(draft, mode)


def _without_heads(subject: Subject, mode: MtpMode) -> MtpResult:
    name = subject.family.name
    if mode == "graft":
        hint = "Leave --mtp and --mtp-from out."
        raise UsageProblem(f"the family {name} has no MTP head: there is nothing to graft.", hint=hint)
    if mode == "keep":
        what = f"--mtp keep, but the family {name} has no MTP head"
        return MtpResult((_finding("mtp.none", "error", what, repair="Leave --mtp out."),), 0, "none")
    return MtpResult((), 0, "none")


def _keep(draft: Draft, layers: int) -> MtpResult:
    subject, declared = draft.subject, _declared(draft)
    names = [name for name in draft.tensors if name.startswith("mtp.")]
    own = [name for name in ("mtp.embed_tokens.weight", "mtp.lm_head.weight") if name in draft.tensors]
    findings: list[Finding] = []
    if layers > 1:
        what = f"the MTP head has {layers} layers; llama.cpp runs exactly one, and so does qexport"
        breaks = (Breaks("llama.cpp", "GGML_ASSERT(n_layer_nextn == 1) failed"),)
        findings.append(
            _finding("mtp.several", "error", what, breaks, "`--mtp drop` exports without the head.")
        )
    if own:
        what = f"the MTP head has matrices of its own ({', '.join(own)}); published heads share the model's"
        findings.append(_finding("mtp.own_embeddings", "error", what, (), _WAYS_OUT))
    if problems := head_problems(subject.family, draft.text, draft.tensors):
        what = f"the MTP head is incomplete or does not fit ({len(names)} tensors): " + "; ".join(problems)
        findings.append(_finding("mtp.incomplete", "error", what, _LOST, _WAYS_OUT))
    if not findings and declared != layers:
        what = f"there is an MTP head ({len(names)} tensors), but {_KEY} is {_raw(draft)!r}"
        breaks = (Breaks("vLLM, SGLang, oMLX", "the head is ignored: no speculative decoding"),)
        findings.append(_finding("mtp.undeclared", "repaired", what, breaks, f"{_KEY}: {layers} is written."))
        _declare(draft, layers, {_OWN_EMBEDDINGS: draft.text.get(_OWN_EMBEDDINGS) or False})
    return MtpResult(tuple(findings), layers, "own")


def _lost(draft: Draft, mode: MtpMode) -> MtpResult:
    if mode == "keep":
        what = "--mtp keep, but there is no MTP head"
        found = _finding("mtp.none", "error", what, (), _WAYS_OUT)
    elif declared := _declared(draft):
        what = f"config.json declares an MTP head ({_KEY}: {declared}), but there are no mtp.* tensors"
        found = _finding("mtp.lost", "error", what, _LOST, _WAYS_OUT, _LOST_REFERENCE)
    else:
        what = "there is no MTP head, and none is declared: merging loses it"
        repair = "Exported without one; `--mtp-from BASE` grafts the base model's for speculative decoding."
        found = _finding("mtp.none", "note", what, _ASSERT, repair, _LOST_REFERENCE)
    return MtpResult((found,), 0, "none")


def _drop(draft: Draft, present: int) -> MtpResult:
    declared = _declared(draft)
    if not present and not declared:
        return MtpResult((), 0, "none")
    draft.tensors = {name: tensor for name, tensor in draft.tensors.items() if not name.startswith("mtp.")}
    _declare(draft, 0, {})
    what = (
        "the MTP head is dropped"
        if present
        else f"{_KEY} is {declared}, but there is no head; none is wanted"
    )
    found = _finding("mtp.dropped", "repaired", what, _ASSERT, f"No mtp.* tensors; {_KEY}: 0 is written.")
    return MtpResult((found,), 0, "dropped", replaced=bool(present))


def _graft(draft: Draft, base: Subject, present: int) -> MtpResult:
    subject, label = draft.subject, base.checkpoint.label
    if reasons := misfits(subject, base):
        what = f"the MTP head of {label} does not fit: " + "; ".join(reasons)
        repair = "Give the model that was fine-tuned with --mtp-from, or export without a head: `--mtp drop`."
        return MtpResult((_finding("mtp.misfit", "error", what, (), repair),), 0, "none")
    head = head_tensors(base, draft.tensors)
    draft.tensors = {n: t for n, t in draft.tensors.items() if not n.startswith("mtp.")} | head
    extra = {_OWN_EMBEDDINGS: base.text[_OWN_EMBEDDINGS]} if _OWN_EMBEDDINGS in base.text else {}
    _declare(draft, 1, extra)
    instead = "in place of the one that is there" if present else "the checkpoint has none"
    what = f"the MTP head of {label} is grafted ({len(head)} tensors; {instead})"
    repair = "Copied bit for bit. Measure what is accepted: a head fits its own trunk best."
    found = [_finding("mtp.grafted", "repaired", what, () if present else _LOST, repair, _LOST_REFERENCE)]
    found += [_finding("mtp.vocabulary", "note", note) for note in vocabulary_notes(subject, base)]
    return MtpResult(tuple(found), 1, f"grafted from {label}", replaced=bool(present))


def _raw(draft: Draft) -> Any:
    return draft.text.get(_KEY, draft.config.get(_KEY))


def _declared(draft: Draft) -> int:
    value = _raw(draft)
    return value if isinstance(value, int) else 0


def _declare(draft: Draft, layers: int, extra: dict[str, Any]) -> None:
    # In text_config, where readers look, and nowhere else.
    if draft.text is not draft.config:
        draft.config.pop(_KEY, None)
    draft.text[_KEY] = layers
    draft.text.update(extra)


def _finding(
    name: str,
    severity: Severity,
    what: str,
    breaks: tuple[Breaks, ...] = (),
    repair: str = "",
    reference: str = "",
) -> Finding:
    return Finding(name, severity, what, breaks, repair, reference)
