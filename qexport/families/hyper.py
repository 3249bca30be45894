"""Hyper-parameters, resolved once: what a config says, what it leaves open, and where each value comes from.

Everything downstream (the doctor, GGUF's metadata, MLX's config, calibration, scopes) reads :class:`Hyper`,
which rides on the model view; nobody fills in a default a second time. It means what transformers'
``AutoConfig`` means by the same ``config.json``; a test holds it to that for every family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from qexport.errors import InputError
from qexport.families.family import Family
from qexport.families.rope import Rope, complete_rope, rope_of, rope_parameters
from qexport.families.values import typed

# Far above any model; numbers beyond come from damaged files, and would be counted to one by one.
_MOST_LAYERS, _MOST_EXPERTS = 10_000, 100_000
_NONE = ("sliding_window",)  # null is a value here
_COPY = "Copy config.json from the checkpoint that was fine-tuned and try again."
_LEGACY_KIND = {"attention": "full_attention"}  # transformers, remap_legacy_layer_types


@dataclass(frozen=True)
class Experts:
    """A mixture of experts, and how its routers choose.

    Attributes:
        shared_inner: width of the ``shared`` experts that every token goes through, all together.
        normed: whether the weights of the experts that a token is given to are made to sum to one.
        scale: what these weights are multiplied with then.
        groups, groups_used: experts are chosen within the best groups of so many.
    """

    count: int
    used: int
    inner: int
    shared: int
    shared_inner: int | None
    normed: bool
    scoring: str
    scale: float
    groups: int
    groups_used: int


@dataclass(frozen=True)
class LinearAttention:
    """Sizes of Gated DeltaNet."""

    k_heads: int
    v_heads: int
    k_dim: int
    v_dim: int
    kernel: int


@dataclass(frozen=True)
class Hyper:
    """A language model's hyper-parameters, with nothing left to guess.

    Attributes:
        inner: width of the dense MLP; ``None`` where no layer has one.
        epsilon: of the norms.
        kinds: for each trunk layer, the key into ``Family.layers``; ``dense`` is one without experts among
            those with them.
        windows: for each trunk layer, how many tokens it looks back; ``None`` is all.
        rope, local_rope: of the layers; ``local_rope`` of those with a window, where theirs is another.
        query_scale: what scores are divided by the root of; ``None`` is the size of a head.
        interval: full attention in every n-th layer, where layers are linear otherwise and a config says so.
        text: all of it as transformers spells it, with every key that the config has.
        sources: where the values of ``text`` come from: ``stated``, a config class's default, ``derived``, or
            the quirk that repaired them.
    """

    family: Family = field(repr=False)
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    inner: int | None
    epsilon: float
    activation: str
    tied: bool
    causal: bool
    kinds: tuple[str, ...] = field(repr=False)
    windows: tuple[int | None, ...] = field(repr=False)
    rope: Rope
    local_rope: Rope | None
    experts: Experts | None
    linear: LinearAttention | None
    query_scale: float | None
    softcap: float | None
    attention_softcap: float | None
    interval: int | None
    text: Mapping[str, Any] = field(repr=False)
    sources: Mapping[str, str] = field(repr=False)

    @cached_property
    def dims(self) -> dict[str, int]:
        """Numbers for the words in the shapes of templates."""
        dims = {
            "one": 1,
            "hidden": self.hidden,
            "two_hidden": 2 * self.hidden,
            "vocab": self.vocab,
            "head_dim": self.head_dim,
            "heads_dim": self.heads * self.head_dim,
            "q": self.heads * self.head_dim * (2 if self.family.gated_q else 1),
            "kv": self.kv_heads * self.head_dim,
        }
        if self.inner is not None:
            dims["inter"] = self.inner
        if self.experts is not None:
            dims |= {"experts": self.experts.count, "expert_inter": self.experts.inner}
            if self.experts.shared_inner is not None:
                dims["shared_inter"] = self.experts.shared_inner
        if (linear := self.linear) is not None:
            dims |= {
                "linear_qkv": 2 * linear.k_heads * linear.k_dim + linear.v_heads * linear.v_dim,
                "linear_v": linear.v_heads * linear.v_dim,
                "linear_v_heads": linear.v_heads,
                "linear_k_heads": linear.k_heads,
                "linear_v_head_dim": linear.v_dim,
                "linear_k_head_dim": linear.k_dim,
                "linear_conv": linear.kernel,
            }
        return dims

    @property
    def rotary(self) -> int:
        """Values of each head that are turned."""
        return int(self.head_dim * self.rope.partial)


def source_of(family: Family, key: str, text: Mapping[str, Any]) -> str:
    """Where a value comes from that the resolver found for ``key``."""
    if text.get(key) is not None:
        return "stated"
    if family.defaults.get(key) is not None:
        return f"default of {family.config_class}"
    return "derived"


def resolve(
    family: Family,
    text: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    *,
    repaired: Mapping[str, str] | None = None,
) -> Hyper:
    """The hyper-parameters of a language model.

    Args:
        text: the language model's part of ``config.json``.
        config: the whole of it, for what only its root says.
        repaired: keys that a quirk has written, and which.

    Raises:
        InputError: a key that is needed has no usable value; all of those are named.
    """
    door = typed(text, defaults=family.defaults)
    if door.unusable:
        raise InputError("config.json: " + "; ".join(door.unusable), hint=_COPY)
    whole = _whole(family, door.values, config or {})
    sources = {key: source_of(family, key, door.values) for key, value in whole.items() if value is not None}
    sources |= {key: quirk for key, quirk in (repaired or {}).items() if key in sources}
    return _typed(family, whole, door.values.get("full_attention_interval"), sources)


def _whole(family: Family, text: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as ``AutoConfig(...).to_dict()`` would give it, and RoPE in both spellings."""
    given = {key: value for key, value in text.items() if value is not None or key in _NONE}
    defaults = {key: value for key, value in family.defaults.items() if value is not None}
    for alias, key in family.aliases.items():  # one number under two names; configs use either
        if alias in given:
            given.setdefault(key, given[alias])
    whole = {**text, **defaults, **given}
    heads, hidden = whole["num_attention_heads"], whole["hidden_size"]
    if family.null_kv_heads and text.get("num_key_value_heads", 0) is None:
        whole["num_key_value_heads"] = heads
    if whole.get("num_key_value_heads") is None:
        whole["num_key_value_heads"] = heads
    if whole.get("head_dim") is None:
        whole["head_dim"] = hidden // heads
        if not whole["head_dim"]:
            raise InputError(f"config.json: {heads} attention heads in a hidden_size of {hidden}", hint=_COPY)
    # All readers take 10000 where a plain transformer's config is silent.
    silent = not rope_parameters(family, whole)
    whole |= complete_rope(family, {**whole, "rope_theta": 10000.0} if silent else whole)
    _check_theta(family, whole)
    flag = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    whole["tie_word_embeddings"] = bool(whole.get("tie_word_embeddings") if flag is None else flag)
    return whole


def _check_theta(family: Family, whole: dict[str, Any]) -> None:
    params = whole["rope_parameters"]
    if not family.turning.local:
        params.setdefault("rope_theta", 10000.0)
        whole.setdefault("rope_theta", params["rope_theta"])
        return
    for kind, key in (("full_attention", "rope_theta"), ("sliding_attention", "rope_local_base_freq")):
        params.setdefault(kind, {"rope_type": "default"}).setdefault("rope_theta", whole[key])


def _typed(
    family: Family, whole: Mapping[str, Any], interval: int | None, sources: Mapping[str, str]
) -> Hyper:
    layers = whole["num_hidden_layers"]
    if layers > _MOST_LAYERS:
        raise InputError(f"config.json: num_hidden_layers is {layers}, which no model has", hint=_COPY)
    params = whole["rope_parameters"]
    named = _layer_types(family, whole)
    return Hyper(
        family=family,
        hidden=whole["hidden_size"],
        layers=layers,
        heads=whole["num_attention_heads"],
        kv_heads=whole["num_key_value_heads"],
        head_dim=whole["head_dim"],
        vocab=whole["vocab_size"],
        context=whole["max_position_embeddings"],
        inner=whole.get("intermediate_size") or None,
        epsilon=whole["rms_norm_eps"],
        activation=whole["hidden_activation" if "hidden_activation" in family.defaults else "hidden_act"],
        tied=whole["tie_word_embeddings"],
        causal=whole.get("is_causal") is not False,
        kinds=_kinds(family, {**whole, "layer_types": named}),
        windows=_windows(family, whole, named),
        rope=rope_of(params.get("full_attention") or params),
        local_rope=rope_of(params["sliding_attention"]) if "sliding_attention" in params else None,
        experts=_experts(family, whole),
        linear=_linear(family, whole),
        query_scale=whole.get("query_pre_attn_scalar"),
        softcap=whole.get("final_logit_softcapping") or None,
        attention_softcap=whole.get("attn_logit_softcapping") or None,
        interval=interval,
        text=whole,
        sources=sources,
    )


def _layer_types(family: Family, whole: Mapping[str, Any]) -> tuple[str, ...] | None:
    """``layer_types``, where the family's layers differ by them."""
    types, layers = whole.get("layer_types"), whole["num_hidden_layers"]
    if types is None or not family.attention:
        return None
    if len(types) != layers:
        what = f"layer_types has {len(types)} entries, but num_hidden_layers is {layers}"
        raise InputError(what, hint=_COPY)
    named = tuple(str(_LEGACY_KIND.get(kind, kind)) for kind in types)
    known = family.attention
    if (odd := next((kind for kind in named if kind not in known), None)) is not None:
        raise InputError(f"layer_types has {odd!r}; {family.name} has {' and '.join(known)}", hint=_COPY)
    return named


def _kinds(family: Family, whole: Mapping[str, Any]) -> tuple[str, ...]:
    return ("full",) * whole["num_hidden_layers"] if family.kinds is None else family.kinds(whole)


def _windows(
    family: Family, whole: Mapping[str, Any], named: tuple[str, ...] | None
) -> tuple[int | None, ...]:
    """transformers' ``create_sliding_window_causal_mask``: which layers get it, by family."""
    count: int = whole["num_hidden_layers"]
    size: int | None = whole.get("sliding_window")
    if "use_sliding_window" in family.defaults and not whole["use_sliding_window"]:
        size = None
    if size is None or "sliding_window" not in family.defaults:
        return (None,) * count
    if "sliding_window_pattern" in family.defaults:
        every = whole["sliding_window_pattern"]
        default = tuple("sliding_attention" if (i + 1) % every else "full_attention" for i in range(count))
    elif "max_window_layers" in family.defaults:
        first = whole["max_window_layers"]
        default = tuple("sliding_attention" if i >= first else "full_attention" for i in range(count))
    else:
        default = ("sliding_attention",) * count
    return tuple(size if kind == "sliding_attention" else None for kind in named or default)


def _experts(family: Family, whole: Mapping[str, Any]) -> Experts | None:
    if not family.is_moe:
        return None
    count, inner = whole[family.experts], whole["moe_intermediate_size"]
    if count > _MOST_EXPERTS:
        raise InputError(f"config.json: {family.experts} is {count}, which no model has", hint=_COPY)
    shared_inner = whole.get("shared_expert_intermediate_size") or 0
    shared = whole.get("n_shared_experts") or int(shared_inner > 0)
    return Experts(
        count=count,
        used=whole["num_experts_per_tok"],
        inner=inner,
        shared=shared,
        shared_inner=shared_inner or shared * inner or None,
        normed=bool(whole.get("norm_topk_prob", True)),
        scoring=family.scoring,
        scale=float(whole.get("routed_scaling_factor") or 1.0),
        groups=whole.get("n_group") or 1,
        groups_used=whole.get("topk_group") or 1,
    )


def _linear(family: Family, whole: Mapping[str, Any]) -> LinearAttention | None:
    if "linear" not in family.layers:
        return None
    return LinearAttention(
        k_heads=whole["linear_num_key_heads"],
        v_heads=whole["linear_num_value_heads"],
        k_dim=whole["linear_key_head_dim"],
        v_dim=whole["linear_value_head_dim"],
        kernel=whole["linear_conv_kernel_dim"],
    )
