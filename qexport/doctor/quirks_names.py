"""Quirks of tensor names. Names are read canonically and written as published; that is the whole repair."""

from __future__ import annotations

import re

from qexport.doctor.draft import Draft
from qexport.doctor.quirk import Quirk
from qexport.doctor.subject import VALUE_HEAD, Subject
from qexport.families.names import SpelledName

_RENAMED = ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")


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
    if subject.foreign is not None:
        return None  # its names are its own
    found = [
        (name, spelled)
        for name, spelled in subject.spellings.items()
        if not spelled.mtp and _depth(spelled.prefix) <= 1 and not _accepted(subject, spelled)
        # A tower of no known form is left out, a tensor of no known name refused: neither is renamed.
        if spelled.canonical.startswith(_RENAMED) or (spelled.vision and subject.wants_wrapper)
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


# --- tensors that are another thing than this model's -------------------------------------------------------

# LoRA and its kin (DoRA's magnitudes, embeddings), IA3, LoHa, LoKr, VeRA, OFT; copies that PEFT keeps beside.
_ADAPTER = re.compile(
    r"\.(lora_|ia3_|hada_|lokr_|vera_|oft_|boft_|prompt_embeddings|modules_to_save\.|original_module\.)"
)
_CLASSIFIER = re.compile(r"^(score|classifier|qa_outputs|reward_head|value_head|rm_head|regression_head)\.")
_MISTRAL = re.compile(
    r"(^|\.)(layers\.\d+\.(attention\.w[qkvo]|feed_forward\.w[123])|tok_embeddings)\.weight$"
)
_FLAT = re.compile(r"(^|\.)_?flat_param(_|$)")


def _found(subject: Subject, pattern: re.Pattern[str]) -> list[str]:
    return [name for name, s in subject.spellings.items() if pattern.search(s.canonical)]


def _adapters(subject: Subject) -> str | None:
    left = [name for name in subject.checkpoint.tensors if _ADAPTER.search(name)]
    return (
        f"{len(left)} adapter tensors, such as {left[0]}: nobody can tell whether they are merged"
        if left
        else None
    )


def _classifier(subject: Subject) -> str | None:
    if not (left := _found(subject, _CLASSIFIER)):
        return None
    return f"{left[0]} is there: a classifier or reward model, which gives a score and writes no text"


def _mistral(subject: Subject) -> str | None:
    left = _found(subject, _MISTRAL)
    return (
        f"{len(left)} tensors have the names of Mistral's and Meta's own code, such as {left[0]}"
        if left
        else None
    )


def _flat(subject: Subject) -> str | None:
    left = _found(subject, _FLAT)
    return f"{len(left)} tensors are FSDP's flattened parameters, such as {left[0]}" if left else None


def _unknown(subject: Subject) -> str | None:
    stored = subject.checkpoint.tensors
    if any(name.startswith(("model.layers.", "model.embed_tokens.")) for name in subject.tensors):
        return None
    other = [name for name in stored if not name.endswith("lm_head.weight")]
    such = f", such as {other[0]}" if other else ""
    return f"none of {len(stored)} tensors is named as in a layer of the {subject.family.name} family{such}"


# --- wrappers -----------------------------------------------------------------------------------------------


def _wrapped(subject: Subject) -> str | None:
    found = [(n, s) for n, s in subject.spellings.items() if s.wrapped]
    return _example(found, "carry names of what the model was wrapped in for training")


def _value_head(subject: Subject) -> str | None:
    left = _found(subject, re.compile("^" + re.escape(VALUE_HEAD)))
    return f"a value head is there ({len(left)} tensors, such as {left[0]})" if left else None


NAME_QUIRKS = (
    Quirk(
        id="names.adapter",
        title="adapter weights beside the model's",
        severity="error",
        see=_adapters,
        explains=True,
        repair="Merge first: `model = model.merge_and_unload()`, then `model.save_pretrained(folder)`.",
        breaks=(("any", "the fine-tuning is silently left out, or the file is refused"),),
    ),
    Quirk(
        id="names.classifier",
        title="a classifier or reward model instead of a language model",
        severity="error",
        see=_classifier,
        explains=True,
        repair=(
            "Export the model that writes text (...ForCausalLM): no format here has a place for a score. If "
            "only the head was trained beside it, save the model without it."
        ),
        breaks=(("any", "lm_head.weight is newly initialized: the model writes noise"),),
    ),
    Quirk(
        id="names.mistral",
        title="Mistral's or Meta's own names instead of transformers'",
        severity="error",
        see=_mistral,
        explains=True,
        repair=(
            "Take the transformers layout (config.json, model*.safetensors), which most such repositories "
            "have too, or convert: transformers' convert_mistral_weights_to_hf.py or "
            "convert_llama_weights_to_hf.py. Renaming is not enough: rows of q and k are in another order."
        ),
        breaks=(("transformers", "all weights are newly initialized: the model writes noise"),),
        reference="https://github.com/huggingface/transformers/blob/main/src/transformers/models/mistral/"
        "convert_mistral_weights_to_hf.py",
    ),
    Quirk(
        id="names.flat",
        title="FSDP's flattened parameters",
        severity="error",
        see=_flat,
        explains=True,
        repair=(
            "Gather the weights before saving: `fsdp_state_dict_type: FULL_STATE_DICT`, or `accelerate "
            "merge-weights` for a sharded state that is saved already."
        ),
        breaks=(("any", "no weight is found under its name"),),
    ),
    Quirk(
        id="names.unknown",
        title="no tensor has a name of the family that config.json says",
        severity="error",
        see=_unknown,
        explains=True,
        repair=(
            "config.json and weights belong to different models, or the weights were saved by another "
            "framework: give the folder that save_pretrained wrote, or convert them with its own tool."
        ),
        breaks=(("transformers", "all weights are newly initialized: the model writes noise"),),
    ),
    Quirk(
        id="names.wrapped",
        title="names of what the model was wrapped in for training",
        severity="repaired",
        see=_wrapped,
        fix=_rewritten,
        repair=(
            "`_orig_mod.`, `module.`, `_fsdp_wrapped_module.` and their like are taken out of the names, in "
            "front and in the middle."
        ),
        breaks=(
            ("transformers", "Some weights ... were newly initialized: ['model.embed_tokens.weight', ...]"),
            ("vLLM", "KeyError, or ValueError: There is no module or parameter named 'module'"),
        ),
    ),
    Quirk(
        id="names.value_head",
        title="a value head beside the model",
        severity="repaired",
        see=_value_head,
        fix=_rewritten,
        repair="It is left out: it scores texts in training, and nothing that runs the model reads it.",
        breaks=(
            ("vLLM, SGLang", "ValueError: There is no module or parameter named 'v_head'"),
            ("llama.cpp's converter", "ValueError: Can not map tensor 'v_head.summary.weight'"),
        ),
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
