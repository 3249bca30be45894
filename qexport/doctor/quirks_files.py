"""Quirks of the small files: tokenizer settings, chat template, generation settings, processors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qexport.checkpoint.chat_templates import PROCESSOR, TEMPLATE_FILE
from qexport.checkpoint.front_matter import read_front_matter
from qexport.checkpoint.special_tokens import as_ids
from qexport.doctor.draft import PROCESSOR_FILES, Draft
from qexport.doctor.quirk import Quirk
from qexport.doctor.subject import GENERATION_CONFIG, TOKENIZER_CONFIG, Subject
from qexport.doctor.tokenizer_class import class_differs
from qexport.doctor.tokens import (
    begins_something,
    stop_ids,
    token_ids,
    tokenizer_eos,
    tokenizer_kind,
    turn_ends,
)
from qexport.doctor.turned import underneath

_TOKENIZER = "tokenizer.json"
# What Qwen3.5's split rule has and Qwen2's has not: letters with their combining marks.
_MARKS = r"[\p{L}\p{M}]+"
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN35_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The longest in use has a third of this; a megabyte takes Jinja ten seconds.
_MOST_TEMPLATE = 1 << 17
# A small vocabulary has no tokens of several digits anyway, and shows nothing.
_TELLING_VOCABULARY = 8192


# --- tokenizer ----------------------------------------------------------------------------------------------


def _name_class(draft: Draft) -> None:
    """Name the class that both transformers 4 and 5 know and that takes tokenizer.json as it is.

    Not Qwen2Tokenizer: transformers 5.17 rebuilds its split rule from the class, and Qwen3.5's differs.
    """
    settings = draft.edit_json(TOKENIZER_CONFIG)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.pop("backend", None)
    # transformers 4 would add token_type_ids otherwise, which generate() refuses.
    settings.setdefault("model_input_names", ["input_ids", "attention_mask"])


def _special_list(subject: Subject) -> str | None:
    found = subject.settings.get("extra_special_tokens")
    return str(len(found)) if isinstance(found, list) else None


def _name_specials(draft: Draft) -> None:
    settings = draft.edit_json(TOKENIZER_CONFIG)
    extra = settings.pop("extra_special_tokens")
    have = settings.get("additional_special_tokens") or []
    if merged := [*have, *(token for token in extra if token not in have)]:
        settings["additional_special_tokens"] = merged


def _split_rule(subject: Subject) -> str | None:
    settings, document = subject.settings, subject.json_file(_TOKENIZER)
    name = str(settings.get("tokenizer_class")).removesuffix("Fast")
    if name == "Qwen2Tokenizer" and _MARKS in str(document.get("pre_tokenizer")):
        return "tokenizer_class is Qwen2Tokenizer, but tokenizer.json has Qwen3.5's split rule"
    return class_differs(document, settings, subject.family.tokenizer_class)


def _parts(subject: Subject) -> tuple[Mapping[str, Any], Mapping[str, Any], list[dict[str, Any]]]:
    """tokenizer.json's model, its pre-tokenizer, and the steps of that; empty where they are not so."""
    document = subject.json_file(_TOKENIZER)
    model, cut = document.get("model"), document.get("pre_tokenizer")
    if not isinstance(model, Mapping) or not isinstance(cut, Mapping):
        return {}, {}, []
    return model, cut, _steps(document)


def _steps(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    cut = document.get("pre_tokenizer") or {}
    return [step for step in (cut, *(cut.get("pretokenizers") or [])) if isinstance(step, dict)]


def _digits_lost(subject: Subject) -> str | None:
    model, cut, _ = _parts(subject)
    vocab = model.get("vocab")
    if cut.get("type") != "ByteLevel" or not cut.get("use_regex", True):
        return None
    if not isinstance(vocab, Mapping) or len(vocab) < _TELLING_VOCABULARY:
        return None
    rows = subject.json_file(_TOKENIZER).get("added_tokens") or []
    added = {row.get("content") for row in rows if isinstance(row, Mapping)}
    if any(len(text) > 1 and text not in added and any(c in "0123456789" for c in text) for text in vocab):
        return None
    return f"tokenizer.json keeps digits together, but none of its {len(vocab)} tokens has two"


def _restore_digits(draft: Draft) -> None:
    document = draft.edit_json(_TOKENIZER)
    steps = [{"type": "Digits", "individual_digits": True}, document["pre_tokenizer"]]
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    # Made up in the same conversion; it would take spaces out of decoded text.
    draft.edit_json(TOKENIZER_CONFIG)["clean_up_tokenization_spaces"] = False


def _qwen2_splits(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The steps that cut words as Qwen2 does."""
    splits = [step for step in _steps(document) if step.get("type") == "Split"]
    patterns = [step["pattern"] for step in splits if isinstance(step.get("pattern"), dict)]
    return [pattern for pattern in patterns if pattern.get("Regex") == _QWEN2_SPLIT]


def _marks_lost(subject: Subject) -> bool:
    vocab, arch = _parts(subject)[0].get("vocab"), subject.family.arch
    if arch is None or arch.pre != "qwen35" or not isinstance(vocab, Mapping):
        return False
    # A smaller one is somebody's own, and may cut as it likes.
    return len(vocab) >= _TELLING_VOCABULARY and bool(_qwen2_splits(subject.json_file(_TOKENIZER)))


def _restore_marks(draft: Draft) -> None:
    for pattern in _qwen2_splits(draft.edit_json(_TOKENIZER)):
        pattern["Regex"] = _QWEN35_SPLIT


def _byte_fallback(subject: Subject) -> bool:
    model, _, steps = _parts(subject)
    return bool(model.get("byte_fallback")) and any(step.get("type") == "ByteLevel" for step in steps)


# --- where a reply ends -------------------------------------------------------------------------------------


def _eos_begins(subject: Subject) -> str | None:
    eos, ends = tokenizer_eos(subject), turn_ends(subject)
    if eos is None or not begins_something(eos) or not ends:
        return None
    return f"eos_token is {eos}, which begins a turn; the chat template ends one with {ends[0]}"


def _write_eos(draft: Draft) -> None:
    settings = draft.edit_json(TOKENIZER_CONFIG)
    settings["eos_token"] = turn_ends(draft.subject)[0]
    settings.pop("eos_token_id", None)


def _no_generation(subject: Subject) -> bool:
    return GENERATION_CONFIG not in subject.checkpoint.files


def _generation_eos(subject: Subject) -> str | None:
    if _no_generation(subject):
        return None
    stops = subject.generation.get("eos_token_id")
    missing = [number for number in stop_ids(subject) if number not in as_ids(stops)]
    if missing:
        words = {number: token for token, number in token_ids(subject).items()}
        ends = ", ".join(f"{words[number]} ({number})" for number in missing)
        return f"generation_config.json stops at {stops!r}, but a reply ends with {ends}"
    listed = stops if isinstance(stops, list) else [stops]
    wrong = stops is not None and any(type(one) is not int for one in listed)
    return f"eos_token_id of generation_config.json is {stops!r}, not a token's number" if wrong else None


def _write_generation(draft: Draft) -> None:
    subject, generation = draft.subject, draft.edit_json(GENERATION_CONFIG)
    have = as_ids(generation.get("eos_token_id"))
    if _no_generation(subject):
        have = _config_ends(subject)
        told = {key: subject.text.get(key) for key in ("bos_token_id", "pad_token_id")}
        generation.update({key: value for key, value in told.items() if value is not None})
    ids = [*(number for number in stop_ids(subject) if number not in have), *have]
    if ids:
        generation["eos_token_id"] = ids[0] if len(ids) == 1 else ids


def _config_ends(subject: Subject) -> list[int]:
    return as_ids(subject.text.get("eos_token_id") or subject.config.get("eos_token_id"))


def _config_eos(subject: Subject) -> str | None:
    given = _config_ends(subject)
    known = {*stop_ids(subject), *as_ids(subject.generation.get("eos_token_id"))}
    if _no_generation(subject) or not given or not known or known & set(given):
        return None
    return f"config.json stops at {given}, the tokenizer and generation_config.json at {sorted(known)}"


def _write_config_eos(draft: Draft) -> None:
    ids = stop_ids(draft.subject) or as_ids(draft.subject.generation.get("eos_token_id"))
    for part in (draft.config, draft.text):
        if part.get("eos_token_id") is not None:
            part["eos_token_id"] = ids[0] if len(ids) == 1 else ids


# --- chat template ------------------------------------------------------------------------------------------


def _template_broken(subject: Subject) -> str | None:
    """Of all that are used: one that another place hides is written over."""
    templates = subject.templates
    places = {name: place for place, named in reversed([*templates.places.items()]) for name in named}
    for name, text in templates.named.items():
        if why := _syntax_error(text):
            called = "" if name == "default" else f" {name!r:.40}"
            return f"the chat template{called} in {places[name]} cannot be compiled: {why}"
    return None


def _syntax_error(template: str) -> str | None:
    """Why Jinja cannot read it. Only read: to compile it would compute what a stranger has written."""
    from jinja2 import TemplateSyntaxError

    from qexport.children.programs.engine_template import environment

    if len(template) > _MOST_TEMPLATE:
        return None
    try:
        environment().parse(template)
    except TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message!s:.200}"
    except RecursionError:
        return "it is nested too deeply"
    return None


def _templates_differ(subject: Subject) -> str | None:
    places = subject.templates.places
    found = {place: named["default"] for place, named in places.items() if "default" in named}
    return f"the chat templates in {' and '.join(found)} differ" if len(set(found.values())) > 1 else None


def _template_hollow(subject: Subject) -> str | None:
    templates = subject.templates
    if not templates.hollow or templates.default is None:
        return None
    has = " and ".join(templates.places)
    return f"a chat template in {' and '.join(templates.hollow)} is null or empty; {has} has one"


def _template_not_default(subject: Subject) -> str | None:
    templates = subject.templates
    if templates.chosen in ("", "default"):
        return None
    names = ", ".join(templates.named)
    return f"chat templates {names} and none called default; conversations go through {templates.chosen}"


def _write_template(draft: Draft) -> None:
    """Put the template that transformers 5 uses wherever there is a place for one, and where that is a list
    whose names a file of its own would hide, into the list; else into a file of its own."""
    templates, files = draft.subject.templates, draft.subject.checkpoint.files
    text = templates.default
    if text is None:
        return
    own, inline = (templates.places.get(name, {}) for name in (TEMPLATE_FILE, TOKENIZER_CONFIG))
    apart = TEMPLATE_FILE in files or bool(own) or not inline.keys() - {"default"}
    if apart and own.get("default") != text:
        draft.write(TEMPLATE_FILE, text.encode())
    for name in (TOKENIZER_CONFIG, PROCESSOR):
        document = draft.edit_json(name) if name in files else {}
        if "chat_template" in document:
            document["chat_template"] = _with_default(document["chat_template"], text)


def _with_default(value: Any, text: str) -> Any:
    """A place's content with ``text`` as the template that is used where none is named."""
    if isinstance(value, list):
        rows = [row for row in value if isinstance(row, Mapping) and row.get("name") != "default"]
        return [{"name": "default", "template": text}, *rows] if rows else text
    return {**value, "default": text} if isinstance(value, Mapping) and value else text


# --- other files --------------------------------------------------------------------------------------------


def _card_unreadable(subject: Subject) -> str | None:
    notes: list[str] = []
    if "README.md" in subject.checkpoint.files:
        read_front_matter(subject.checkpoint.read_file("README.md"), notes)
    return notes[0] if notes else None


def _no_processor(subject: Subject, *, of_base: bool) -> str | None:
    """That it is missing; ``of_base``: where the base has one, else where it has none either."""
    file, base = PROCESSOR_FILES[0], subject.sight
    there = base is not None and file in base.files
    if there != of_base or not subject.wants_wrapper or file in subject.checkpoint.files:
        return None
    said = "" if base is None else f"; {base.label} has {'one' if there else 'none either'}"
    return f"there is a vision tower, but no {file}{said}"


def _copy_processor(draft: Draft) -> None:
    base = draft.subject.sight
    for name in PROCESSOR_FILES:
        if base is not None and name in base.files and name not in draft.subject.checkpoint.files:
            draft.write(name, base.read_file(name))


_PROCESSOR_BREAKS = {
    "vLLM, SGLang": "OSError: Can't load image processor for '...': preprocessor_config.json",
    "LlamaFactory": "ValueError: Processor was not found, please check and update your model file.",
}
_PROCESSOR_REFERENCE = "https://github.com/hiyouga/LLaMA-Factory/issues/10539"


FILE_QUIRKS = (
    Quirk(
        "tokenizer.missing",
        "no tokenizer",
        error=True,
        see=lambda s: tokenizer_kind(s) == "none",
        what="there is no tokenizer.json, tokenizer.model or vocab.json",
        repair="Save it beside the model (`tokenizer.save_pretrained`), or copy the base model's files.",
        breaks={"any": "OSError: Can't load tokenizer"},
    ),
    Quirk(
        "tokenizer.backend_class",
        "tokenizer_class: TokenizersBackend",
        see=lambda s: s.settings.get("tokenizer_class") == "TokenizersBackend",
        what="tokenizer_class is TokenizersBackend",
        fix=_name_class,
        repair="PreTrainedTokenizerFast is written, with which any transformers takes tokenizer.json.",
        breaks={
            "anything on transformers 4": (
                "ValueError: Tokenizer class TokenizersBackend does not exist or is not currently imported."
            )
        },
        reference="https://github.com/hiyouga/LLaMA-Factory/issues/10310",
    ),
    Quirk(
        "tokenizer.special_list",
        "extra_special_tokens as a list",
        see=_special_list,
        what="extra_special_tokens is a list of {found}",
        fix=_name_specials,
        repair="The list goes to additional_special_tokens, which transformers 4 and 5 read.",
        breaks={"anything on transformers 4": "AttributeError: 'list' object has no attribute 'keys'"},
    ),
    Quirk(
        "tokenizer.split_rule",
        "a tokenizer class that cuts text otherwise than tokenizer.json",
        see=_split_rule,
        repair="The files are carried as they are; GGUF takes the rule from tokenizer.json.",
        breaks={
            "transformers 5, mlx-lm, vLLM": (
                "follow the class: combining marks cut off as by Qwen2, no space after special tokens"
            )
        },
    ),
    Quirk(
        "tokenizer.marks_lost",
        "Qwen3.5's split rule replaced by Qwen2's",
        see=_marks_lost,
        what="tokenizer.json cuts words as Qwen2 does; Qwen3.5 keeps combining marks with their letters",
        fix=_restore_marks,
        repair="Qwen3.5's rule is written again.",
        breaks={"all readers": "words with combining marks (Hindi, Thai, ...) become tokens never trained"},
    ),
    Quirk(
        "tokenizer.byte_fallback",
        "a byte-level tokenizer that claims byte fallback",
        see=_byte_fallback,
        what="tokenizer.json claims byte fallback, but its alphabet is bytes already",
        fix=lambda draft: draft.edit_json(_TOKENIZER)["model"].update(byte_fallback=False),
        repair="byte_fallback is switched off; text is cut as before.",
        breaks={
            "llama.cpp's converter": (
                "takes it for SentencePiece and writes a file that cannot tokenize: _Map_base::at"
            )
        },
    ),
    Quirk(
        "tokenizer.digits_lost",
        "a split rule for digits that was lost",
        see=_digits_lost,
        fix=_restore_digits,
        repair="Digits are cut one by one again, as the vocabulary was trained.",
        breaks={"llama.cpp": "the pre-tokenizer is taken for GPT-2's: digits of other scripts cut otherwise"},
    ),
    Quirk(
        "eos.begins",
        "an end-of-text token that begins something",
        see=_eos_begins,
        fix=_write_eos,
        repair="eos_token becomes the token that ends a turn.",
        breaks={"llama.cpp, all servers": "a reply ends only by luck, or goes on as the next speaker"},
    ),
    Quirk(
        "generation.missing",
        "no generation_config.json",
        see=_no_generation,
        what="there is no generation_config.json",
        fix=_write_generation,
        repair="One is written with the ids at which a reply ends.",
        breaks={"all servers": "stops at config.json's eos alone: a chat model may never stop"},
    ),
    Quirk(
        "eos.generation",
        "generation_config.json does not stop where a reply ends",
        see=_generation_eos,
        fix=_write_generation,
        repair="The missing ids are added to eos_token_id.",
        breaks={"all servers": "never stops after <|im_end|>"},
        reference="https://github.com/Blaizzy/mlx-vlm/issues/2112",
    ),
    Quirk(
        "eos.config",
        "config.json stops elsewhere than tokenizer and generation_config.json",
        see=_config_eos,
        fix=_write_config_eos,
        repair="config.json's eos_token_id becomes that of the tokenizer.",
        breaks={"readers of config.json alone": "stops at the wrong token or never"},
    ),
    Quirk(
        "files.led_out",
        "a link that leads out of the model's folder",
        see=lambda s: getattr(underneath(s.checkpoint), "led_out", ()),
        what="left out, since they lead out of the folder: {found}",
        repair="Left out: it would publish a file of this machine. Put the file itself there if it belongs.",
    ),
    Quirk(
        "template.broken",
        "a chat template that cannot be compiled",
        error=True,
        see=_template_broken,
        repair=(
            "Correct it where it stands, or copy the base model's; without any, conversations have no form, "
            "but everything can be exported."
        ),
        breaks={
            "transformers, vLLM, SGLang": "jinja2.exceptions.TemplateSyntaxError, at the first conversation",
            "llama.cpp": "llama-server does not start, or falls back to a template of its own",
        },
    ),
    Quirk(
        "template.differs",
        "different chat templates in different places",
        see=_templates_differ,
        fix=_write_template,
        repair="The one that transformers 5 uses (chat_template.jinja first) is written in all places.",
        breaks={
            "transformers 4, vLLM, llama.cpp": "each takes another of them: prompts unlike those of training"
        },
        reference="https://github.com/modelscope/ms-swift/issues/4358",
    ),
    Quirk(
        "template.hollow",
        "a chat template that is null or empty in one place and there in another",
        see=_template_hollow,
        fix=_write_template,
        repair="null and empty count as absent: the template that is there is written in all places.",
        breaks={
            "llama.cpp's converter": "takes tokenizer_config.json's null: the file has no template",
            "transformers": "takes an empty chat_template.jinja: prompts are empty",
        },
    ),
    Quirk(
        "template.no_default",
        "named chat templates and none called default",
        see=_template_not_default,
        fix=_write_template,
        repair="One (chat, instruct, chatml, tool_use, else the first) is written as the default, too.",
        breaks={
            "transformers, vLLM": "ValueError: This model has multiple chat templates with no default ...",
            "llama.cpp": "finds no template and takes ChatML",
        },
    ),
    Quirk(
        "template.processor_only",
        "the chat template in chat_template.json alone",
        see=lambda s: {*s.templates.places} == {PROCESSOR},
        what=f"the chat template is in {PROCESSOR} alone",
        fix=_write_template,
        repair="chat_template.jinja is written too.",
        breaks={
            "transformers, vLLM": "ValueError: Cannot use chat template functions because ... is not set"
        },
    ),
    Quirk(
        "template.inline_only",
        "the chat template in tokenizer_config.json alone",
        see=lambda s: {*s.templates.places} == {TOKENIZER_CONFIG},
        what=f"the chat template is in {TOKENIZER_CONFIG} alone",
        repair="Kept where it is: all readers look there.",
    ),
    Quirk(
        "template.jinja_only",
        "the chat template in chat_template.jinja alone",
        see=lambda s: {*s.templates.places} == {TEMPLATE_FILE},
        what=f"the chat template is in {TEMPLATE_FILE} alone",
        repair="Kept where it is; readers of today look there.",
        breaks={"TGI, transformers before 4.51": "ValueError: ... tokenizer.chat_template is not set"},
        reference="https://github.com/huggingface/text-generation-inference/issues/3247",
    ),
    Quirk(
        "template.missing",
        "no chat template",
        see=lambda s: s.templates.default is None,
        what="there is no chat template",
        repair="Nothing is invented; verification then prompts without one.",
    ),
    Quirk(
        "card.unreadable",
        "front matter of README.md that cannot be read",
        see=_card_unreadable,
        repair=(
            "Nothing of it is carried over: licence, languages and tags are then missing from what is "
            "written. Correct it, or give them with --license and the like."
        ),
    ),
    Quirk(
        "vision.processor_missing",
        "a vision tower without its processor files",
        see=lambda subject: _no_processor(subject, of_base=False),
        repair=(
            "Copy preprocessor_config.json and its like from a model that has them, that which was tuned "
            "or another of its family; named with `--base`, it gives them by itself."
        ),
        breaks=_PROCESSOR_BREAKS,
        reference=_PROCESSOR_REFERENCE,
    ),
    Quirk(
        "vision.processor_copied",
        "a vision tower without its processor files, which the base has",
        see=lambda subject: _no_processor(subject, of_base=True),
        fix=_copy_processor,
        repair="They are copied from the base.",
        breaks=_PROCESSOR_BREAKS,
        reference=_PROCESSOR_REFERENCE,
    ),
)
