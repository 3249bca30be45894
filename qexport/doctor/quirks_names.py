"""Quirks of tensor names. Names are read canonically and written as published; that is the whole repair."""

from __future__ import annotations

from qexport.doctor.draft import Draft
from qexport.doctor.quirk import Quirk
from qexport.doctor.subject import Subject
from qexport.families.names import SpelledName

__all__ = ["NAME_QUIRKS"]


def _rewritten(_: Draft) -> None:
    """Tensors are written under published names whatever they were called."""


def _example(found: list[tuple[str, SpelledName]], what: str) -> str | None:
    if not found:
        return None
    stored, spelled = found[0]
    return f"{len(found)} tensors {what}, such as {stored} (published: {spelled.canonical})"


def _depth(prefix: str) -> int:
    parts = prefix.split(".")
    return max(parts.count("language_model"), parts.count("model"))


def _nested(subject: Subject) -> str | None:
    found = [(n, s) for n, s in subject.spellings.items() if not s.mtp and _depth(s.prefix) > 1]
    return _example(found, "have nested repeats in their names")


def _accepted(subject: Subject, spelled: SpelledName) -> bool:
    family, wrapper = subject.family, subject.says_wrapper
    if spelled.vision:
        # transformers maps both spellings of Gemma's vision tower; Qwen's has one.
        return spelled.prefix == family.vision_prefix or not family.vision_prefix
    if spelled.canonical.startswith("lm_head."):
        return spelled.prefix == "" or (wrapper and spelled.prefix == family.wrapper_head)
    if spelled.canonical.startswith("model."):
        wanted = (family.wrapper_prefix, "model.language_model.") if wrapper else ("model.",)
        return spelled.prefix in wanted
    return True


def _prefix(subject: Subject) -> str | None:
    found = [
        (name, spelled)
        for name, spelled in subject.spellings.items()
        if not spelled.mtp and _depth(spelled.prefix) <= 1 and not _accepted(subject, spelled)
    ]
    form = "multimodal" if subject.says_wrapper else "text-only"
    return _example(found, f"are not named as config.json's {form} form has them")


def _peft(subject: Subject) -> str | None:
    return _example([(n, s) for n, s in subject.spellings.items() if s.peft], "carry names from PEFT")


def _mtp_prefix(subject: Subject) -> str | None:
    found = [(n, s) for n, s in subject.spellings.items() if s.mtp and s.prefix]
    return _example(found, "of the MTP head have something before `mtp.`")


def _twins(subject: Subject) -> str | None:
    if not subject.twins:
        return None
    first = subject.twins[0]
    checked = (
        "with the same contents"
        if first.compared
        else "whose contents could not be compared without the data"
    )
    return f"{len(subject.twins)} tensors are there twice {checked}, such as {first.kept} and {first.dropped}"


_PUBLISHED = (
    "Names are written as published: `model.*` for text, `model.language_model.*` with a vision tower."
)


def _adapters(subject: Subject) -> str | None:
    marks = (".lora_", ".modules_to_save.", ".original_module.")
    left = [name for name in subject.spellings if any(mark in name for mark in marks)]
    return (
        f"{len(left)} adapter tensors, such as {left[0]}: nobody can tell whether they are merged"
        if left
        else None
    )


NAME_QUIRKS = (
    Quirk(
        id="names.adapter",
        title="adapter weights beside the model's",
        severity="error",
        see=_adapters,
        repair="Merge first: `model = model.merge_and_unload()`, then `model.save_pretrained(folder)`.",
        breaks=(("any", "the fine-tuning is silently left out, or the file is refused"),),
    ),
    Quirk(
        id="names.nested",
        title="language_model or model repeated in names",
        severity="repaired",
        see=_nested,
        fix=_rewritten,
        repair=f"Repeats are collapsed. {_PUBLISHED}",
        breaks=(
            ("vLLM", "KeyError: '...w2_weight_packed'"),
            ("prime-rl, SGLang", "parameters skipped silently, random weights"),
        ),
        reference="https://github.com/vllm-project/llm-compressor/issues/2568",
    ),
    Quirk(
        id="names.prefix",
        title="the names of one form under the config of the other",
        severity="repaired",
        see=_prefix,
        fix=_rewritten,
        repair=_PUBLISHED,
        breaks=(
            ("vLLM < 0.32", "ValueError: There is no module or parameter named 'language_model'"),
            (
                "SGLang 0.5",
                "Parameter language_model.layers... not found in params_dict (and random weights)",
            ),
        ),
        reference="https://github.com/vllm-project/vllm/pull/50355",
    ),
    Quirk(
        id="names.peft",
        title="names that PEFT gives wrapped modules",
        severity="repaired",
        see=_peft,
        fix=_rewritten,
        repair="`base_model.model.` and `.base_layer` are taken out of the names.",
        breaks=(
            ("transformers", "Some weights ... were newly initialized: ['model.embed_tokens.weight', ...]"),
        ),
    ),
    Quirk(
        id="names.mtp_prefix",
        title="MTP tensors under model. or deeper",
        severity="repaired",
        see=_mtp_prefix,
        fix=_rewritten,
        repair="The head is written as `mtp.*`, as published.",
        breaks=(
            (
                "vLLM",
                "ValueError: Following weights were not initialized from checkpoint: {'model.fc.weight'}",
            ),
        ),
        reference="https://github.com/vllm-project/vllm/blob/main/vllm/model_executor/models/qwen3_5_mtp.py",
    ),
    Quirk(
        id="names.twice",
        title="one tensor under two names",
        severity="repaired",
        see=_twins,
        fix=_rewritten,
        repair="The first is kept.",
        breaks=(("any", "files larger than they need be; readers differ in which of the two they take"),),
    ),
)
