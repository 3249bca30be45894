"""Quirks of config.json: its form, RoPE in two spellings, dtypes, what readers need and savers leave out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qexport.checkpoint.refusals import SCHEME_KEYS
from qexport.doctor.contradictions import BIAS_FLAGS, contradictions
from qexport.doctor.draft import PROCESSOR_FILES, Draft
from qexport.doctor.form import reshape, words
from qexport.doctor.quirk import Quirk, as_read
from qexport.doctor.subject import GENERATION_CONFIG, TOKENIZER_CONFIG, Subject
from qexport.doctor.tokens import token_ids
from qexport.errors import some
from qexport.families.rope import complete_rope, legacy_rope_keys, rope_disagreements, rope_parameters
from qexport.families.values import GENERATION, TOKENIZER, typed
from qexport.families.vision import deepstack_problems, image_tokens

_TYPED_FILES = {GENERATION_CONFIG: GENERATION, TOKENIZER_CONFIG: TOKENIZER}
_DTYPE_WORDS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_LANGUAGE = ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")
_DEEPSTACK = "deepstack_visual_indexes"
_PATH = re.compile(r"^(/|~|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\)")


# --- values -------------------------------------------------------------------------------------------------


def _odd_types(subject: Subject) -> str:
    doors = {file: typed(subject.json_file(file), keys=keys) for file, keys in _TYPED_FILES.items()}
    found = {file: [*door.changed, *door.unusable] for file, door in doors.items()}
    return "; ".join(f"{file}: {', '.join(odd)}" for file, odd in found.items() if odd)


def _retype(draft: Draft) -> None:
    for file, keys in _TYPED_FILES.items():
        if file in draft.subject.checkpoint.files:
            target = draft.edit_json(file)
            values = typed(target, keys=keys).values
            target.clear()
            target.update(values)


def _biases(subject: Subject) -> dict[str, bool]:
    """Flags that are not as the tensors are, and what they have to be."""
    biases = [n for n in subject.tensors if n.startswith("model.layers.") and n.endswith(".bias")]
    there = {key: any(f".{block}" in name for name in biases) for key, block in BIAS_FLAGS.items()}
    return {
        key: yes
        for key, yes in there.items()
        if key in subject.family.defaults and yes != bool(subject.text.get(key))
    }


def _bias(subject: Subject) -> str:
    what = {True: "is not true, but there are such biases", False: "is true, but there are none"}
    return "; ".join(f"{key} {what[there]}" for key, there in _biases(subject).items())


def _interval(subject: Subject) -> str | None:
    wanted = _regular_interval(subject.text)
    given = subject.text.get("full_attention_interval")
    if "linear" not in subject.family.layers or wanted is None or wanted == (given or 4):
        return None
    return f"layer_types has full attention every {wanted} layers, but full_attention_interval is {given!r}"


def _regular_interval(text: Mapping[str, Any]) -> int | None:
    kinds = text.get("layer_types")
    if not isinstance(kinds, list) or "full_attention" not in kinds:
        return None
    every = kinds.index("full_attention") + 1
    regular = all((kind == "full_attention") == ((i + 1) % every == 0) for i, kind in enumerate(kinds))
    return every if regular else None


def _paths(subject: Subject) -> list[tuple[str, str]]:
    return [
        (file, key)
        for file in ("config.json", TOKENIZER_CONFIG)
        for key in ("_name_or_path", "name_or_path")
        if isinstance(value := subject.json_file(file).get(key), str) and _PATH.match(value)
    ]


def _drop_paths(draft: Draft) -> None:
    for file, key in _paths(draft.subject):
        draft.edit_json(file).pop(key, None)


def _quantization(subject: Subject) -> str | None:
    """Packed weights were refused when the checkpoint was opened; what is left is only the declaration."""
    for part in _parts(dict(subject.config)):
        for key in SCHEME_KEYS:
            if declared := part.get(key):
                named = declared if isinstance(declared, Mapping) else {"quant_method": declared}
                method = named.get("quant_method") or named.get("quant_algo")
                shown = f" ({method!s:.40})" if method else ""
                return f"config.json still has {key}{shown}, but the weights are plain floats"
    return None


def _parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The config and every config in it, at any depth."""
    return [config, *(part for value in config.values() if isinstance(value, dict) for part in _parts(value))]


def _drop_quantization(draft: Draft) -> None:
    for part in _parts(draft.config):
        for key in (*SCHEME_KEYS, "_pre_quantization_dtype"):
            part.pop(key, None)


# --- RoPE ---------------------------------------------------------------------------------------------------


def _legacy_missing(subject: Subject) -> list[str]:
    # Readers of all forms look for the older keys, but for those of Qwen3.5's wrapper.
    published = not (subject.family.multimodal and subject.says_wrapper)
    if not isinstance(subject.text.get("rope_parameters"), Mapping) or not published:
        return []
    wanted = legacy_rope_keys(rope_parameters(subject.family, subject.text))
    return [f"{key} ({value!r})" for key, value in wanted.items() if subject.text.get(key) is None]


def _parameters_missing(subject: Subject) -> str | None:
    # transformers 5 reads the older keys of the other families itself.
    if not subject.family.multimodal:
        return None
    given = subject.text.get("rope_parameters")
    wanted = rope_parameters(subject.family, subject.text)
    if not wanted:
        return "config.json says nothing about RoPE"
    if not isinstance(given, Mapping):
        return "the older RoPE keys without rope_parameters"
    missing = [key for key in wanted if key not in given]
    return f"rope_parameters without {', '.join(missing)}" if missing else None


def _no_rope(subject: Subject) -> bool:
    family = subject.family
    return not (family.multimodal or "rope_theta" in family.defaults or rope_parameters(family, subject.text))


def _write_rope(draft: Draft) -> None:
    family = draft.subject.family
    found = complete_rope(family, draft.text)
    if not found and family.turning.published:
        found = complete_rope(family, family.turning.published)
    if family.multimodal and draft.subject.wants_wrapper:
        found = {key: value for key, value in found.items() if key == "rope_parameters" or key in draft.text}
    draft.text.update(found)


# --- dtypes -------------------------------------------------------------------------------------------------


def _declared(subject: Subject) -> dict[str, Any]:
    parts = {"": subject.config, "text_config.": subject.text} if subject.nested else {"": subject.config}
    return {
        prefix + key: part[key]
        for prefix, part in parts.items()
        for key in ("dtype", "torch_dtype")
        if part.get(key) is not None
    }


def _dtype_wrong(subject: Subject) -> list[str]:
    wanted = _DTYPE_WORDS.get(subject.dtype)
    return [
        f"{key} is {value!r}"
        for key, value in _declared(subject).items()
        if isinstance(value, str) and value.removeprefix("torch.") != wanted
    ]


def _dtype_new_only(subject: Subject) -> bool:
    return not subject.says_wrapper and _declared(subject).keys() == {"dtype"}


def _write_dtype(draft: Draft) -> None:
    word = _DTYPE_WORDS[draft.subject.dtype]
    if not draft.subject.wants_wrapper:
        draft.text.update({"dtype": word, "torch_dtype": word})
        return
    draft.config["dtype"] = word
    for part in (draft.config, draft.text):
        part.update({key: word for key in ("dtype", "torch_dtype") if key in part})


# --- the form: multimodal or text only ----------------------------------------------------------------------


def _reshape(draft: Draft) -> None:
    draft.config = reshape(draft.config, draft.subject)


def _text_form(draft: Draft) -> None:
    """Give the config the text-only form, with all that this form's readers look for."""
    _write_rope(draft)
    _write_dtype(draft)
    _reshape(draft)
    for name in PROCESSOR_FILES:
        if name in draft.subject.checkpoint.files:
            draft.remove(name)


def _vision_absent(subject: Subject) -> str | None:
    config = subject.config
    if subject.vision or not subject.says_wrapper or subject.foreign is not None:
        return None
    named = f"architectures {config.get('architectures')!r}, model_type {config.get('model_type')!r}"
    declared = "a vision_config" if subject.has_vision_config else "the multimodal form"
    return f"config.json has {declared} ({named}), but there are no vision tensors"


def _vision_undeclared(subject: Subject) -> tuple[str, ...]:
    return () if subject.has_vision_config or subject.foreign is not None else subject.vision


def _deepstack(subject: Subject) -> Any:
    """Layers of a tower whose output goes into the language model's, in a family that has none."""
    given, vision = subject.config.get("vision_config"), subject.family.vision
    if not subject.wants_wrapper or not isinstance(given, Mapping) or (vision and vision.deepstack):
        return None
    return str(given.get(_DEEPSTACK) or "")


def _deepstack_misfit(subject: Subject) -> str:
    """What the config says of such layers, and the mergers that are there."""
    vision, config = subject.family.vision, subject.config.get("vision_config")
    if vision is None or (stack := vision.deepstack) is None or not subject.wants_wrapper:
        return ""
    whole = {**vision.defaults, **(config if isinstance(config, Mapping) else {})}
    given, layers = whole[stack.count], whole[vision.tower.count]
    if type(layers) is int and (problems := deepstack_problems(given, layers)):
        return problems[0]
    root = stack.layer_prefix.partition("{n}")[0]
    there = {n.removeprefix(root).partition(".")[0] for n in subject.vision if n.startswith(root)}
    if there == set(map(str, range(len(given)))):
        return ""
    named = f"{len(given)} blocks ({', '.join(map(str, given))})"
    return f"vision_config.{stack.count} names {named}, and there are mergers for {len(there)}"


def _clear_deepstack(draft: Draft) -> None:
    if isinstance(draft.config.get("vision_config"), dict):
        draft.config["vision_config"][_DEEPSTACK] = []


def _image_tokens(subject: Subject) -> str:
    """Tokens that stand for an image in the config and are none in the tokenizer."""
    if not subject.wants_wrapper or subject.tokenizer is None:
        return ""
    there = set(token_ids(subject).values())
    named = image_tokens(subject.family, subject.config)
    return ", ".join(f"{key} is {number}" for key, number in named.items() if number not in there)


def _leave_vision_out(draft: Draft) -> None:
    """Without its sizes no reader can build the tower; the language model is whole without it."""
    for name in draft.subject.vision:
        draft.tensors.pop(name, None)
    _text_form(draft)


def _foreign(subject: Subject) -> str | None:
    if subject.foreign is None:
        return None
    towers = [name for name in subject.tensors if not (name.startswith(_LANGUAGE) or name in subject.head)]
    left = f"; {len(towers)} tensors are not the language model's, such as {towers[0]}" if towers else ""
    return f"{subject.foreign!r} around a {subject.family.name} language model{left}"


def _keep_language(draft: Draft) -> None:
    """No reader here builds that model; its language model is one of its own."""
    head = draft.subject.head
    draft.tensors = {n: t for n, t in draft.tensors.items() if n.startswith(_LANGUAGE) or n in head}
    _text_form(draft)


def _form_is_settled(subject: Subject) -> bool:
    """Whether the config keeps its form; where it gets the other one, its words change with it."""
    return not (subject.foreign is not None or _vision_absent(subject) or _vision_undeclared(subject))


def _model_type(subject: Subject) -> str | None:
    _, wanted = words(subject.family, wrapper=subject.wants_wrapper)
    found, inner = subject.config.get("model_type"), subject.text.get("model_type")
    if not _form_is_settled(subject):
        return None
    if found != wanted:
        return f"model_type is {found!r}; for these tensors it has to be {wanted!r}"
    if subject.wants_wrapper and subject.nested and inner != subject.family.text_model_type:
        return f"text_config.model_type is {inner!r}; it has to be {subject.family.text_model_type!r}"
    return None


def _architecture(subject: Subject) -> str | None:
    wanted, _ = words(subject.family, wrapper=subject.wants_wrapper)
    found = subject.config.get("architectures")
    if found == [wanted] or not _form_is_settled(subject):
        return None
    return f"architectures is {found!r}; for these tensors it has to be {[wanted]!r}"


def _text_only(subject: Subject) -> bool:
    # Gemma 3's text-only form has been with its readers for long; Qwen3.5's has not.
    return subject.family.multimodal and not subject.vision and not subject.says_wrapper


# Forms come last: the fixes before them work on a config as it was saved.
CONFIG_QUIRKS = (
    Quirk(
        "config.values",
        "values in config.json that cannot be used",
        error=True,
        see=lambda s: "; ".join(s.unusable),
        what="config.json: {found}",
        repair="Correct them in config.json, or copy the file from the checkpoint that was fine-tuned.",
        breaks={"any": "TypeError, or a model of other sizes than the weights have"},
    ),
    Quirk(
        "config.contradiction",
        "numbers that contradict each other, or the tensors",
        error=True,
        see=lambda s: None if s.unusable else "; ".join(contradictions(s)),
        repair=(
            "Compare config.json with that of the checkpoint that was fine-tuned; where tensors contradict "
            "each other, the merge lost or added some: save it again."
        ),
        breaks={
            "llama.cpp": "GGML_ASSERT(n_expert_used_max <= hparams.n_expert) failed, and the like",
            "transformers": "a shape error at the first token, or another model than was trained",
        },
    ),
    Quirk(
        "config.bias",
        "a flag of biases that the tensors gainsay",
        see=_bias,
        fix=lambda draft: draft.text.update(_biases(draft.subject)),
        repair="The tensors win: the flag is written as they are.",
        breaks={"transformers, vLLM": "trained biases are dropped without a word, or new ones made up"},
    ),
    Quirk(
        "config.types",
        "numbers in config.json as text, or of another type",
        see=lambda s: some(s.retyped, 6),
        what="config.json: {found}: not of the type that readers expect",
        fix=as_read,
        repair="They are written as numbers, true or false.",
        breaks={
            "transformers 5": "StrictDataclassFieldValidationError: Validation error for field ...",
            "mlx-lm 0.32": "TypeError while building the model",
        },
    ),
    Quirk(
        "generation.types",
        "values in generation_config.json or tokenizer_config.json of another type",
        see=_odd_types,
        fix=_retype,
        repair="They are written as numbers, true or false; what cannot be used is left out.",
        breaks={"transformers, mlx-lm": "TypeError, or never stops"},
    ),
    Quirk(
        "rope.legacy_missing",
        "rope_parameters without the older keys",
        see=_legacy_missing,
        what="rope_parameters without the older keys {found}",
        fix=_write_rope,
        repair="The older keys are written beside rope_parameters, which stays whole.",
        breaks={
            "mlx-lm 0.32": (
                "reads the top level only, falls back to 10000 and talks nonsense, without any error"
            ),
            "slime, SGLang on transformers 4": "KeyError: 'rope_theta'",
        },
        reference="https://github.com/sgl-project/sglang/issues/22739",
    ),
    Quirk(
        "rope.parameters_missing",
        "RoPE settings of Qwen3.5 that are not whole",
        see=_parameters_missing,
        fix=_write_rope,
        repair="rope_parameters is written whole, from the older keys and the family's values.",
        breaks={"vLLM, SGLang": "a wrong base or no sections: nonsense beyond a few tokens"},
        reference="https://github.com/THUDM/slime/issues/1720",
    ),
    Quirk(
        "rope.missing",
        "no RoPE settings",
        see=_no_rope,
        what="config.json says nothing about RoPE: all readers take a base of 10000",
        repair="10000 is taken, as all readers do. If the base has another, copy it into config.json.",
        breaks={"any": "nonsense beyond a few tokens, if the model was trained with another base"},
    ),
    Quirk(
        "rope.contradicts",
        "the two spellings of RoPE differ",
        see=lambda subject: "; ".join(rope_disagreements(subject.family, subject.text)),
        fix=_write_rope,
        repair=(
            "rope_scaling goes first, then rope_parameters, then the older keys, as in transformers 5; both "
            "spellings are written alike."
        ),
        breaks={
            "mlx-lm, llama.cpp, transformers 4": "another base than in training: nonsense beyond a few tokens"
        },
    ),
    Quirk(
        "dtype.missing",
        "no dtype in config.json",
        see=lambda s: not _declared(s),
        what="config.json names no dtype; the tensors are {s.dtype}",
        fix=_write_dtype,
        repair="dtype and torch_dtype are written, as the tensors are.",
        breaks={"transformers, vLLM": "loads in float32 or float16"},
        reference="https://github.com/ModelCloud/GPTQModel/issues/1804",
    ),
    Quirk(
        "dtype.contradicts",
        "config.json names another dtype than the tensors have",
        see=_dtype_wrong,
        what="{found}, but the tensors are {s.dtype}",
        fix=_write_dtype,
        repair="dtype and torch_dtype become those of the tensors.",
        breaks={"transformers, vLLM": "casts on loading; bfloat16 to float16 overflows"},
    ),
    Quirk(
        "dtype.new_key_only",
        "dtype without torch_dtype in a text-only config",
        see=_dtype_new_only,
        what="dtype without torch_dtype",
        fix=_write_dtype,
        repair="torch_dtype is written too.",
        breaks={"mlx-lm 0.32, transformers 4": "ignores dtype and takes float32 or float16"},
        reference="https://github.com/unslothai/unsloth/issues/3225",
    ),
    Quirk(
        "config.interval",
        "layer_types and full_attention_interval differ",
        see=_interval,
        fix=lambda draft: draft.text.update(full_attention_interval=_regular_interval(draft.text)),
        repair="full_attention_interval is written as layer_types has it.",
        breaks={
            "llama.cpp's converter, mlx-lm": "takes 4 and expects other tensors: KeyError or wrong layers"
        },
    ),
    Quirk(
        "config.quantization",
        "a quantization declared that the weights no longer have",
        see=_quantization,
        fix=_drop_quantization,
        repair="The declaration is left out.",
        breaks={
            "transformers, vLLM": "quantize the bf16 weights again while loading, or look for packed ones"
        },
    ),
    Quirk(
        "config.host_path",
        "a path of the machine that saved it",
        see=lambda s: [f"{key} in {file} is a path on somebody's machine" for file, key in _paths(s)],
        fix=_drop_paths,
        repair="The entry is left out.",
        breaks={"any": "publishes a user name; some loaders try to follow it"},
    ),
    Quirk(
        "vision.absent",
        "a vision tower declared, and none there",
        see=_vision_absent,
        fix=_text_form,
        repair=(
            "The text-only form is written: flat config, text names, no processor files. "
            "`--base BASE` gives it the tower of the model that was fine-tuned."
        ),
        breaks={
            "vLLM": (
                "ValueError: Following weights were not initialized from checkpoint: {'visual.blocks.0...'}"
            ),
            "mlx-vlm, LM Studio": "ValueError: Missing 333 parameters: vision_tower...",
        },
        reference="https://github.com/Blaizzy/mlx-vlm/issues/1812",
    ),
    Quirk(
        "vision.undeclared",
        "vision tensors that no config describes",
        see=_vision_undeclared,
        what="there are {count} vision tensors, such as {first}, but no vision_config",
        fix=_leave_vision_out,
        repair=(
            "The text-only form is written, without the tower. Those of Qwen3.5, Qwen3-VL and Gemma 3 are "
            "kept with `--base BASE`, whose config.json describes them."
        ),
        breaks={"transformers": "UNEXPECTED model.visual.blocks.0...: the tower is dropped"},
    ),
    Quirk(
        "vision.foreign",
        "a multimodal model that is not known, around a language model that is",
        see=_foreign,
        fix=_keep_language,
        repair="The language model alone is written, text only; everything around it is left out.",
        breaks={"any": "the text-only files cannot take images or sound"},
    ),
    Quirk(
        "vision.deepstack",
        "layers of a vision tower that are said to go into the language model's",
        see=_deepstack,
        what="vision_config.deepstack_visual_indexes is {found}; {s.family.name} has no such layers",
        fix=_clear_deepstack,
        repair="An empty list is written.",
        breaks={
            "llama.cpp": "clip.cpp looks for v.deepstack.N tensors: the projector does not load",
            "mlx-vlm": "builds mergers that no tensor fills: Missing parameters: vision_tower.deepstack...",
        },
    ),
    Quirk(
        "vision.deepstack_misfit",
        "blocks of a vision tower that go into the language model, and others that are said to",
        error=True,
        see=_deepstack_misfit,
        repair="Copy vision_config from the base's config.json; `--vision drop` exports without the tower.",
        breaks={
            "llama.cpp": "IndexError in the converter, or clip.cpp finds no tensor v.deepstack.N.norm.weight",
            "transformers": "mergers are newly initialized, or are not used: the model sees worse",
        },
    ),
    Quirk(
        "vision.tokens",
        "tokens of an image that the tokenizer has not",
        see=_image_tokens,
        what="config.json: {found}, and the tokenizer has no such token",
        repair="Copy the ids, or the tokenizer's files, from the base; text is not concerned.",
        breaks={"transformers, vLLM": "ValueError: Image features and image tokens do not match"},
    ),
    Quirk(
        "config.flat_wrapper",
        "a multimodal config with the language model's settings at the root",
        see=lambda s: s.wants_wrapper and not s.nested,
        what="config.json has a vision_config, but the language model's settings are not in a text_config",
        fix=_reshape,
        repair="They are moved into text_config.",
        breaks={"transformers, vLLM": "takes the default text_config: size mismatch for every tensor"},
    ),
    Quirk(
        "config.model_type",
        "a model_type that does not fit the form",
        see=_model_type,
        fix=_reshape,
        repair="model_type is written as the form has it.",
        breaks={
            "vLLM < 0.32": "TypeError: Invalid type of HuggingFace config. Expected type: ...Qwen3_5Config"
        },
        reference="https://github.com/vllm-project/vllm/issues/36236",
    ),
    Quirk(
        "config.architecture",
        "an architecture that does not fit the form",
        see=_architecture,
        fix=_reshape,
        repair="architectures is written as the form has it.",
        breaks={
            "vLLM < 0.32": "ValueError: There is no module or parameter named 'language_model'",
            "llama.cpp's converter": "Architecture '...' not supported!",
        },
        reference="https://github.com/vllm-project/vllm/pull/50355",
    ),
    Quirk(
        "config.text_only",
        "a text-only checkpoint of a multimodal family",
        see=_text_only,
        what="a text-only checkpoint of the multimodal family {s.family.name}",
        repair=(
            "Kept text only. Formats whose readers know the multimodal form alone write that. "
            "`--base BASE` gives it the tower of the model that was fine-tuned."
        ),
        breaks={
            "mlx-lm 0.32": "ValueError: Model type qwen3_5_text not supported.",
            "vLLM < 0.32": "TypeError: Invalid type of HuggingFace config. Expected type: ...Qwen3_5Config",
        },
        reference="https://github.com/vllm-project/vllm/pull/50210",
    ),
)
