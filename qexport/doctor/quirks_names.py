"""Quirks of tensor names. Names are read canonically and written as published; that is the whole repair."""

from __future__ import annotations

import re
from collections.abc import Callable

from qexport.doctor.quirk import Quirk, as_read
from qexport.doctor.subject import VALUE_HEAD, Subject
from qexport.families.names import SpelledName, behind_front

_RENAMED = ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")
_PUBLISHED = (
    "Names are written as published: `model.*` for text, `model.language_model.*` with a vision tower."
)
# LoRA and its kin (DoRA's magnitudes, embeddings), IA3, LoHa, LoKr, VeRA, OFT; copies that PEFT keeps beside.
_ADAPTER = re.compile(
    r"\.(lora_|ia3_|hada_|lokr_|vera_|oft_|boft_|prompt_embeddings|modules_to_save\.|original_module\.)"
)
_CLASSIFIER = re.compile(r"^(score|classifier|qa_outputs|reward_head|value_head|rm_head|regression_head)\.")
_MISTRAL = re.compile(
    r"(^|\.)(layers\.\d+\.(attention\.w[qkvo]|feed_forward\.w[123])|tok_embeddings)\.weight$"
)
_FLAT = re.compile(r"(^|\.)_?flat_param(_|$)")
_VALUE_HEAD = re.compile("^" + re.escape(VALUE_HEAD))


def _spelled(how: Callable[[SpelledName], object]) -> Callable[[Subject], list[str]]:
    """Tensors whose names are spelled so, and how they are published."""
    return lambda subject: [_shown(n, s) for n, s in subject.spellings.items() if how(s)]


def _shown(stored: str, spelled: SpelledName) -> str:
    return f"{stored} (published: {spelled.canonical})"


def _called(pattern: re.Pattern[str]) -> Callable[[Subject], list[str]]:
    """Tensors of such (canonical) names."""
    return lambda subject: [n for n, s in subject.spellings.items() if pattern.search(s.canonical)]


def _depth(spelled: SpelledName) -> int:
    parts = spelled.prefix.split(".")
    return 0 if spelled.mtp else max(parts.count("language_model"), parts.count("model"))


def _prefix(subject: Subject) -> list[str]:
    if subject.foreign is not None:
        return []  # its names are its own
    return [
        _shown(name, spelled)
        for name, spelled in subject.spellings.items()
        if not spelled.mtp and _depth(spelled) <= 1 and not _accepted(subject, spelled)
        # A tower of no known form is left out, a tensor of no known name refused: neither is renamed.
        if spelled.canonical.startswith(_RENAMED) or (spelled.vision and subject.wants_wrapper)
    ]


def _accepted(subject: Subject, spelled: SpelledName) -> bool:
    family, wrapper = subject.family, subject.says_wrapper
    if spelled.vision:
        # transformers maps both spellings of Gemma's vision tower; Qwen's has one.
        return spelled.prefix == family.vision_prefix or not family.vision_prefix
    if spelled.canonical.startswith("lm_head."):
        return spelled.prefix == "" or (wrapper and spelled.prefix == family.wrapper_head)
    if spelled.canonical.startswith("model."):
        wanted = (family.wrapper_prefix, "model.language_model.") if wrapper else ("model.",)
        # What stands in front may stand in the place of `model.`.
        return spelled.prefix in wanted or (spelled.wrapped and f"model.{spelled.prefix}" in wanted)
    return True


def _twins(subject: Subject) -> str | None:
    if not subject.twins:
        return None
    first = subject.twins[0]
    checked = "with the same contents"
    if not first.compared:
        checked = "whose contents could not be compared without the data"
    return f"{len(subject.twins)} tensors are there twice {checked}, such as {first.kept} and {first.dropped}"


def _copies(subject: Subject) -> list[str]:
    """What a name in front makes a second one of. Towers have layers too, but not under a model's name."""
    if subject.foreign is not None:
        return []
    behind = {name: behind_front(spelled.canonical) for name, spelled in subject.spellings.items()}
    return [
        name
        for name, found in behind.items()
        if found and found[1].canonical in subject.tensors and (found[1].prefix or found[1].mtp)
    ]


def _unknown(subject: Subject) -> str | None:
    stored = subject.checkpoint.tensors
    if any(name.startswith(("model.layers.", "model.embed_tokens.")) for name in subject.tensors):
        return None
    other = [name for name in stored if not name.endswith("lm_head.weight")]
    such = f", such as {other[0]}" if other else ""
    return f"none of {len(stored)} tensors is named as in a layer of the {subject.family.name} family{such}"


NAME_QUIRKS = (
    Quirk(
        "names.adapter",
        "adapter weights beside the model's",
        see=_called(_ADAPTER),
        what="{count} adapter tensors, such as {first}: nobody can tell whether they are merged",
        explains=True,
        repair="Merge first: `model = model.merge_and_unload()`, then `model.save_pretrained(folder)`.",
        breaks={"any": "the fine-tuning is silently left out, or the file is refused"},
    ),
    Quirk(
        "names.classifier",
        "a classifier or reward model instead of a language model",
        see=_called(_CLASSIFIER),
        what="{first} is there: a classifier or reward model, which gives a score and writes no text",
        explains=True,
        repair=(
            "Export the model that writes text (...ForCausalLM): no format here has a place for a score. If "
            "only the head was trained beside it, save the model without it."
        ),
        breaks={"any": "lm_head.weight is newly initialized: the model writes noise"},
    ),
    Quirk(
        "names.mistral",
        "Mistral's or Meta's own names instead of transformers'",
        see=_called(_MISTRAL),
        what="{count} tensors have the names of Mistral's and Meta's own code, such as {first}",
        explains=True,
        repair=(
            "Take the transformers layout (config.json, model*.safetensors), which most such repositories "
            "have too, or convert: transformers' convert_mistral_weights_to_hf.py or "
            "convert_llama_weights_to_hf.py. Renaming is not enough: rows of q and k are in another order."
        ),
        breaks={"transformers": "all weights are newly initialized: the model writes noise"},
        reference=(
            "https://github.com/huggingface/transformers/blob/main/src/transformers/models/mistral/"
            "convert_mistral_weights_to_hf.py"
        ),
    ),
    Quirk(
        "names.flat",
        "FSDP's flattened parameters",
        see=_called(_FLAT),
        what="{count} tensors are FSDP's flattened parameters, such as {first}",
        explains=True,
        repair=(
            "Gather the weights before saving: `fsdp_state_dict_type: FULL_STATE_DICT`, or `accelerate "
            "merge-weights` for a sharded state that is saved already."
        ),
        breaks={"any": "no weight is found under its name"},
    ),
    Quirk(
        "names.unknown",
        "no tensor has a name of the family that config.json says",
        see=_unknown,
        explains=True,
        repair=(
            "config.json and weights belong to different models, or the weights were saved by another "
            "framework: give the folder that save_pretrained wrote, or convert them with its own tool."
        ),
        breaks={"transformers": "all weights are newly initialized: the model writes noise"},
    ),
    Quirk(
        "names.copies",
        "a second copy of tensors, under names with something in front",
        error=True,
        see=_copies,
        what="{count} tensors have something in front of names that are there without it, such as {first}",
        repair=(
            "Keep one of the two, which nobody else can choose: the average of a training run (`ema.`) and a "
            "reference model (`ref.`) are saved beside the model like this. Save the model alone."
        ),
        breaks={"any": "the second copy is left out without a word, or the file is refused"},
    ),
    Quirk(
        "names.wrapped",
        "names of what the model was wrapped in for training",
        see=_spelled(lambda s: s.wrapped),
        what="{count} tensors carry names of what the model was wrapped in for training, such as {first}",
        fix=as_read,
        repair=(
            "`_orig_mod.`, `module.`, `_fsdp_wrapped_module.` and their like are taken out of the names, in "
            "front and in the middle."
        ),
        breaks={
            "transformers": "Some weights ... were newly initialized: ['model.embed_tokens.weight', ...]",
            "vLLM": "KeyError, or ValueError: There is no module or parameter named 'module'",
        },
    ),
    Quirk(
        "names.value_head",
        "a value head beside the model",
        see=_called(_VALUE_HEAD),
        what="a value head is there ({count} tensors, such as {first})",
        fix=as_read,
        repair="It is left out: it scores texts in training, and nothing that runs the model reads it.",
        breaks={
            "vLLM, SGLang": "ValueError: There is no module or parameter named 'v_head'",
            "llama.cpp's converter": "ValueError: Can not map tensor 'v_head.summary.weight'",
        },
    ),
    Quirk(
        "names.nested",
        "language_model or model repeated in names",
        see=_spelled(lambda s: _depth(s) > 1),
        what="{count} tensors have nested repeats in their names, such as {first}",
        fix=as_read,
        repair=f"Repeats are collapsed. {_PUBLISHED}",
        breaks={
            "vLLM": "KeyError: '...w2_weight_packed'",
            "prime-rl, SGLang": "parameters skipped silently, random weights",
        },
        reference="https://github.com/vllm-project/llm-compressor/issues/2568",
    ),
    Quirk(
        "names.prefix",
        "the names of one form under the config of the other",
        see=_prefix,
        what="{count} tensors are not named as config.json's {s.form} form has them, such as {first}",
        fix=as_read,
        repair=_PUBLISHED,
        breaks={
            "vLLM < 0.32": "ValueError: There is no module or parameter named 'language_model'",
            "SGLang 0.5": "Parameter language_model.layers... not found in params_dict (and random weights)",
        },
        reference="https://github.com/vllm-project/vllm/pull/50355",
    ),
    Quirk(
        "names.peft",
        "names that PEFT gives wrapped modules",
        see=_spelled(lambda s: s.peft),
        what="{count} tensors carry names from PEFT, such as {first}",
        fix=as_read,
        repair="`base_model.model.` and `.base_layer` are taken out of the names.",
        breaks={
            "transformers": "Some weights ... were newly initialized: ['model.embed_tokens.weight', ...]"
        },
    ),
    Quirk(
        "names.mtp_prefix",
        "MTP tensors under model. or deeper",
        see=_spelled(lambda s: s.mtp and s.prefix),
        what="{count} tensors of the MTP head have something before their prefix, such as {first}",
        fix=as_read,
        repair="The head is written under its published names.",
        breaks={
            "vLLM": "ValueError: Following weights were not initialized from checkpoint: {'model.fc.weight'}"
        },
        reference="https://github.com/vllm-project/vllm/blob/main/vllm/model_executor/models/qwen3_5_mtp.py",
    ),
    Quirk(
        "names.twice",
        "one tensor under two names",
        see=_twins,
        fix=as_read,
        repair="The first is kept.",
        breaks={"any": "files larger than they need be; readers differ in which of the two they take"},
    ),
)
