"""What a known key of a config may hold, and numbers that arrive as something else.

Merging scripts write ``"1e-05"``, ``4096.0`` or ``np.float32(0.25)``; transformers refuses them, mlx-lm makes
a model of them that cannot run. :func:`typed` gives such values the type that every reader expects, leaves
out what nothing can be made of, and says both by key. Keys that are not listed pass as they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_MOST = 2**31 - 1  # sizes become 32-bit numbers in every format
_WRAPPED = re.compile(r"^(?:\w+\.)?(?:u?int|float|bool_?|tensor|bfloat)\d*_?\((.*?)(?:, ?d?type=.*)?\)$")
_NOTHING = ("", "none", "null")
_TRUTH = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}


class _Unusable(Exception):
    """Nothing can be made of a value; the text says what it has to be."""


@dataclass(frozen=True)
class Typed:
    """``values``, each of its type; ``changed`` and ``unusable`` say what was otherwise, key by key."""

    values: dict[str, Any]
    changed: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()


def _number(value: Any) -> int | float:
    if isinstance(value, str):
        text = value.strip()
        while (inner := _WRAPPED.match(text)) is not None:
            text = inner[1].strip()
        try:
            value = float(text) if re.search(r"[.eEnN]", text) else int(text)
        except ValueError:
            raise _Unusable("a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Unusable("a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise _Unusable("a finite number")
    return value


def _whole(least: int, what: str) -> Callable[[Any], int]:
    def make(value: Any) -> int:
        try:
            number = _number(value)
        except _Unusable:
            raise _Unusable(what) from None
        if number != int(number) or not least <= number <= _MOST:
            raise _Unusable(what)
        return int(number)

    return make


def _real(least: float, what: str, most: float = 1e38) -> Callable[[Any], int | float]:
    def make(value: Any) -> int | float:
        try:
            number = _number(value)
        except _Unusable:
            raise _Unusable(what) from None
        if not least <= number <= most:
            raise _Unusable(what)
        return number

    return make


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if isinstance(value, str) and (inner := _WRAPPED.match(word)) is not None:
        word = inner[1]
    if isinstance(value, int | str) and word in _TRUTH:
        return _TRUTH[word]
    raise _Unusable("true or false")


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise _Unusable("a word")
    return value


def _list(one: Callable[[Any], Any], what: str) -> Callable[[Any], list[Any]]:
    def make(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise _Unusable(what)
        try:
            return [one(each) for each in value]
        except _Unusable:
            raise _Unusable(what) from None

    return make


def _tokens(value: Any) -> int | list[int]:
    what = "a token's number, or a list of them"
    token = _whole(-1, what)
    return _list(token, what)(value) if isinstance(value, list) else token(value)


def _one_token(value: Any) -> int:
    """eos_token_id alone may be a list."""
    one = value[0] if isinstance(value, list) and len(value) == 1 else value
    return _whole(-1, "a token's number")(one)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Unusable("an object")
    return value


_size = _whole(1, "a positive integer")
_count = _whole(0, "an integer, 0 or more")
_positive = _real(1e-45, "a positive number")
_fraction = _real(1e-9, "a number between 0 and 1", most=1.0)
_rate = _real(0.0, "a number, 0 or more")
_words = _list(_word, "a list of words")
_reals = _list(_positive, "a list of positive numbers")

_ROPE: Mapping[str, Callable[[Any], Any]] = {
    "rope_type": _word,
    "type": _word,
    "rope_theta": _positive,
    "factor": _positive,
    "partial_rotary_factor": _fraction,
    "original_max_position_embeddings": _size,
    "mrope_section": _list(_count, "a list of integers"),
    "mrope_interleaved": _flag,
    "low_freq_factor": _positive,
    "high_freq_factor": _positive,
    "beta_fast": _positive,
    "beta_slow": _positive,
    "attention_factor": _rate,
    "attn_factor": _rate,
    "extrapolation_factor": _rate,
    "mscale": _rate,
    "mscale_all_dim": _rate,
    "truncate": _flag,
    "short_factor": _reals,
    "long_factor": _reals,
    "full_attention": _object,
    "sliding_attention": _object,
}

_KEYS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(
        (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "vocab_size",
            "max_position_embeddings",
            "original_max_position_embeddings",
            "num_experts",
            "num_local_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
            "linear_conv_kernel_dim",
            "linear_key_head_dim",
            "linear_value_head_dim",
            "linear_num_key_heads",
            "linear_num_value_heads",
            "decoder_sparse_step",
            "full_attention_interval",
            "sliding_window_pattern",
            "_sliding_window_pattern",
        ),
        _size,
    ),
    **dict.fromkeys(
        (
            "intermediate_size",
            "shared_expert_intermediate_size",
            "max_window_layers",
            "mtp_num_hidden_layers",
            "num_nextn_predict_layers",
            "pretraining_tp",
        ),
        _count,
    ),
    # -1 and 0 are met as "no window"; whether that can be meant is the family's to say.
    "sliding_window": _whole(-1, "an integer or null"),
    **dict.fromkeys(
        ("rms_norm_eps", "rope_theta", "rope_local_base_freq", "query_pre_attn_scalar"), _positive
    ),
    "partial_rotary_factor": _fraction,
    **dict.fromkeys(
        (
            "final_logit_softcapping",
            "attn_logit_softcapping",
            "initializer_range",
            "attention_dropout",
            "router_aux_loss_coef",
        ),
        _rate,
    ),
    **dict.fromkeys(
        (
            "tie_word_embeddings",
            "attention_bias",
            "mlp_bias",
            "use_sliding_window",
            "norm_topk_prob",
            "use_cache",
            "attn_output_gate",
            "output_router_logits",
            "mtp_use_dedicated_embeddings",
            "is_causal",
            "use_bidirectional_attention",
        ),
        _flag,
    ),
    **dict.fromkeys(("model_type", "hidden_act", "hidden_activation", "torch_dtype", "dtype"), _word),
    **dict.fromkeys(("architectures", "layer_types"), _words),
    "mlp_only_layers": _list(_count, "a list of layers"),
    **dict.fromkeys(("bos_token_id", "pad_token_id"), _one_token),
    "eos_token_id": _tokens,
    **dict.fromkeys(("rope_parameters", "rope_scaling"), _object),
}

GENERATION: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("bos_token_id", "pad_token_id"), _one_token),
    "eos_token_id": _tokens,
    **dict.fromkeys(("temperature", "top_p", "min_p", "typical_p", "repetition_penalty"), _rate),
    **dict.fromkeys(("top_k", "max_length", "max_new_tokens", "num_beams"), _count),
    **dict.fromkeys(("do_sample", "use_cache"), _flag),
}
"""Keys of generation_config.json."""

TOKENIZER: Mapping[str, Callable[[Any], Any]] = {
    "model_max_length": _number,  # 1e30 is "no limit"
    **dict.fromkeys(
        (
            "add_bos_token",
            "add_eos_token",
            "add_prefix_space",
            "clean_up_tokenization_spaces",
            "legacy",
            "split_special_tokens",
        ),
        _flag,
    ),
}
"""Keys of tokenizer_config.json."""


def typed(
    document: Mapping[str, Any],
    *,
    where: str = "",
    keys: Mapping[str, Callable[[Any], Any]] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Typed:
    """``document`` with the values of known keys in their types.

    Args:
        where: in front of the keys in messages (``text_config.``).
        keys: what the keys may hold; those of a model's config by default.
        defaults: the family's; keys that only it has are of the types of these.
    """
    table = _KEYS if keys is None else keys
    values: dict[str, Any] = {}
    changed: list[str] = []
    unusable: list[str] = []
    for key, value in document.items():
        make = table.get(key) or _like((defaults or {}).get(key))
        if make is None or value is None:
            values[key] = value
            continue
        if isinstance(value, str) and make is not _word and value.strip().lower() in _NOTHING:
            values[key] = None
            changed.append(f"{where}{key} is {value!r}")
            continue
        try:
            made = make(value)
        except _Unusable as error:
            unusable.append(f"{where}{key} is {_shown(value)}, but must be {error}")
            continue
        if make is _object:
            inner = typed(made, where=f"{where}{key}.", keys=_ROPE)
            made = inner.values
            changed += inner.changed
            unusable += inner.unusable
        elif not _same(made, value):
            changed.append(f"{where}{key} is {_shown(value)}")
        values[key] = made
    return Typed(values, tuple(changed), tuple(unusable))


def _like(default: Any) -> Callable[[Any], Any] | None:
    """What may stand where a config class has this default."""
    return next((make for kind, make in _BY_DEFAULT.items() if type(default) is kind), None)


_BY_DEFAULT: Mapping[type, Callable[[Any], Any]] = {bool: _flag, int: _count, float: _rate}


def _same(made: Any, value: Any) -> bool:
    if isinstance(made, list) and isinstance(value, list):
        return all(_same(one, other) for one, other in zip(made, value, strict=True))
    return type(made) is type(value) and bool(made == value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
