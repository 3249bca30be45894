"""The two forms of a config, multimodal wrapper and text only, and the way from one to the other.

With a vision tower: ``architectures: [...ForConditionalGeneration]``, the language model one level down in
``text_config``, as published. Without: flat, ``...ForCausalLM``, as transformers saves a text model. Anything
in between is read by some runtimes and refused by others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qexport.checkpoint.config import text_config
from qexport.doctor.subject import Subject
from qexport.families.family import Family
from qexport.families.known import FAMILIES

_BOTH = ("tie_word_embeddings", "dtype", "torch_dtype", "transformers_version")
# Keys of the multimodal model itself; everything else in a flat config belongs to the language model.
_ROOT = ("architectures", "model_type", *_BOTH, "auto_map")
_ROOT_STARTS = ("vision_", "image_", "video_", "audio_", "boi_", "eoi_", "mm_")
# What a text-only config takes over from the wrapper if the inner config does not say it.
_SHARED = (*_BOTH, "bos_token_id", "eos_token_id", "pad_token_id")


def words(family: Family, *, wrapper: bool) -> tuple[str, str]:
    """``architectures[0]`` and the root ``model_type`` of a form."""
    if wrapper and family.wrapper_arch and family.wrapper_model_type:
        return family.wrapper_arch, family.wrapper_model_type
    return family.causal_arch, family.alone


def reshape(config: Mapping[str, Any], subject: Subject) -> dict[str, Any]:
    """``config`` in the form that ``subject`` is to have; equal to it if it already has that form."""
    if subject.wants_wrapper:
        return wrapper_config(config, subject.family)
    return flat_config(config, subject.family)


def flat_config(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The text-only form."""
    architecture, model_type = words(family, wrapper=False)
    inner = text_config(config)
    if inner is not config:
        flat = {"architectures": [architecture], **inner}
        flat |= {key: config[key] for key in _SHARED if key in config and flat.get(key) is None}
    else:
        flat = {key: value for key, value in config.items() if not key.startswith(_ROOT_STARTS)}
    if family.alone_model_type:  # where the config is silent, that family's class takes its own defaults
        theirs = FAMILIES[family.alone_model_type].defaults
        silent = (key for key, value in family.defaults.items() if value is not None and key not in flat)
        flat |= {key: family.defaults[key] for key in silent if theirs.get(key) != family.defaults[key]}
    return flat | {"architectures": [architecture], "model_type": model_type}


def wrapper_config(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The multimodal form; ``config`` has a ``vision_config``."""
    architecture, model_type = words(family, wrapper=True)
    inner = config.get("text_config")
    if isinstance(inner, Mapping):
        wrapped = dict(config)
        text = dict(inner)
    else:
        wrapped = {
            key: value for key, value in config.items() if key in _ROOT or key.startswith(_ROOT_STARTS)
        }
        text = {
            key: value
            for key, value in config.items()
            if key not in wrapped or key in ("dtype", "torch_dtype")
        }
        if "tie_word_embeddings" in config:
            text["tie_word_embeddings"] = config["tie_word_embeddings"]
    text["model_type"] = family.text_model_type
    return wrapped | {"architectures": [architecture], "model_type": model_type, "text_config": text}


def seeing_config(config: Mapping[str, Any], base: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The multimodal form, with what the base's config says of its tower and of images."""
    sight = {key: value for key, value in base.items() if key.startswith(_ROOT_STARTS)}
    return wrapper_config({**config, **sight}, family)
