"""config.json of the trunk, and the small files beside it.

mlx-lm writes its keys sorted, indented by four, without ``vision_config`` (programs take that for the mark of
a text model; with a tower it is kept, as mlx-vlm does), with the stop tokens of generation_config.json, and
with the quantization under two names. What is different here: everything that the two programs read is
written down, where they would take another default than transformers; a text-only ``qwen3_5_text``, which
mlx-lm refuses, gets the published form (``text_config`` and a model type that mlx-lm and mlx-vlm know); and
the MTP head is declared only where it is. Tokenizer files are the checkpoint's own, not written again by
another version of transformers, which is how special tokens and classes get lost.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qexport.doctor.draft import PROCESSOR_FILES
from qexport.doctor.form import wrapper_config
from qexport.errors import InputError
from qexport.families.known import FAMILIES
from qexport.families.vision import image_tokens
from qexport.formats.limits import window_period

if TYPE_CHECKING:
    from qexport.doctor.repaired import Repaired
    from qexport.families.family import Dialect
    from qexport.families.view import ModelView


# The model card describes the source.
_LEFT_OUT = ("README.md", "config.json")

# What mlx-lm's models read of a config, with defaults of their own or none at all.
_READ = frozenset(
    {
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "partial_rotary_factor",
        "tie_word_embeddings",
    }
)


def dump(config: Mapping[str, Any], indent: int = 4) -> bytes:
    """JSON as mlx-lm writes it: sorted at the top, no newline at the end."""
    return json.dumps(dict(sorted(config.items())), indent=indent).encode()


def small_files(repaired: Repaired, *, sees: bool) -> dict[str, bytes]:
    """Tokenizer, chat templates, generation config, licences: the repaired checkpoint's bytes.

    Args:
        sees: with the files that say how a picture becomes numbers.
    """
    left_out = _LEFT_OUT if sees else (*_LEFT_OUT, *PROCESSOR_FILES)
    return {name: data for name, data in repaired.files.items() if name not in left_out}


def language_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of ``config`` that holds the language model's hyper-parameters."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def trunk_config(
    repaired: Repaired,
    view: ModelView,
    dialect: Dialect,
    quantization: Mapping[str, Any],
    *,
    head: bool,
    sees: bool,
) -> dict[str, Any]:
    """The trunk's config.json.

    Args:
        quantization: the block, overrides included.
        head: whether the MTP head is in the same folder; ``sees``: likewise the vision tower.

    Raises:
        InputError: mlx-lm could not build the model from any config.
    """
    config = copy.deepcopy(dict(repaired.config))
    vision = config.pop("vision_config", None)
    config.pop("_name_or_path", None)
    if dialect.always_wrapped and "text_config" not in config:
        config = wrapper_config(config, FAMILIES[view.family])
    text = language_config(config)
    _complete(text, repaired, view, dialect)
    if dialect.wrapper_prefix and text is not config:
        config.setdefault("vocab_size", text["vocab_size"])  # gemma3.py looks for it there alone
    if sees:
        assert view.vision is not None
        open_keys = {key: value for key, value in view.vision.config.items() if vision.get(key) is None}
        config["vision_config"] = {**vision, **open_keys}
        _complete_sight(config, text, view, dialect)
    stops = generation_of(repaired).get("eos_token_id")
    if stops:
        config["eos_token_id"] = stops
    tower = FAMILIES[view.family].head
    if tower is not None and (head or text.get(tower.count)):
        text[tower.count] = view.mtp_layers if head else 0
    return config | {"quantization": dict(quantization), "quantization_config": dict(quantization)}


def _complete(text: dict[str, Any], repaired: Repaired, view: ModelView, dialect: Dialect) -> None:
    """Write down what mlx-lm reads and would otherwise guess."""
    hyper = view.hyper
    for key, value in hyper.text.items():
        if text.get(key) is None and value is not None and (key in _READ or key in dialect.reads):
            text[key] = copy.deepcopy(value)
    for key in ("rope_parameters", "rope_scaling"):
        if isinstance(given := text.get(key), dict) and isinstance(whole := hyper.text.get(key), Mapping):
            text[key] = {**given, **{name: whole[name] for name in whole if name not in given}}
    if not dialect.scaled_rope:
        text.setdefault("rope_scaling", None)  # an argument without a default
    if "sliding_window_pattern" in dialect.reads:
        text["sliding_window_pattern"] = window_period(hyper)
    if hyper.linear is not None:
        text["full_attention_interval"] = _interval(view)


def _complete_sight(config: dict[str, Any], text: dict[str, Any], view: ModelView, dialect: Dialect) -> None:
    """Write down what mlx-vlm reads of a model that sees, and would otherwise guess."""
    for key, number in image_tokens(FAMILIES[view.family], config).items():
        config.setdefault(key, number)
    if dialect.wrapper_prefix:  # its Gemma 3 has names of its own
        config.setdefault("hidden_size", text["hidden_size"])
        text.setdefault("mm_tokens_per_image", config.get("mm_tokens_per_image", 256))
        text.setdefault("rope_global_base_freq", view.hyper.rope.theta)
        if view.hyper.rope.sections:  # its Qwen3-VL knows the older spelling alone, and the published word
            text.setdefault("rope_scaling", dict(view.hyper.text["rope_parameters"]))
            config["vision_config"]["model_type"] = FAMILIES[view.family].wrapper_model_type


def _interval(view: ModelView) -> int:
    """``full_attention_interval``, all that mlx-lm's qwen3_5 looks at."""
    kinds = view.hyper.kinds
    interval = kinds.index("full") + 1 if "full" in kinds else len(kinds) + 1
    if kinds != tuple("linear" if (n + 1) % interval else "full" for n in range(len(kinds))):
        raise InputError(
            f"{view.label}: layer_types do not put full attention into every n-th layer, "
            "and mlx-lm cannot build any other model"
        )
    return interval


def generation_of(repaired: Repaired) -> Mapping[str, Any]:
    """generation_config.json, empty where there is none."""
    try:
        found = json.loads(repaired.files.get("generation_config.json", b"{}"))
    except ValueError:
        return {}
    return found if isinstance(found, Mapping) else {}
