"""What a config says that cannot be: numbers against each other, and against the tensors.

One table. Each check looks at the resolved hyper-parameters (and at shapes, where numbers are told by them)
and says what is wrong, by key. No reader can run such a model as it was trained: some abort, most compute
something else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator

from qexport.doctor.subject import Subject
from qexport.errors import InputError
from qexport.families.hyper import Hyper, resolve

_EXPERT = re.compile(r"^(model\.layers\.\d+\.mlp\.)experts\.(\d+)\.(?:gate|up|down)_proj\.weight$")
_FUSED = re.compile(r"^(model\.layers\.\d+\.mlp\.)experts\.(?:gate_up_proj|down_proj)(?:\.weight)?$")
# transformers' ACT2FN: which of them a format's readers take is for qexport.formats.limits to say.
_ACT2FN = """
gelu gelu_10 gelu_accurate gelu_fast gelu_new gelu_python gelu_python_tanh gelu_pytorch_tanh hardswish laplace
leaky_relu linear mish prelu quick_gelu relu relu2 relu6 sigmoid silu sqrtsoftplus swish tanh xielu
"""
ACTIVATIONS = frozenset(_ACT2FN.split())
_NEEDS_FACTOR = ("linear", "dynamic", "yarn", "llama3")
BIAS_FLAGS = {"attention_bias": "self_attn.", "mlp_bias": "mlp."}


def contradictions(subject: Subject) -> list[str]:
    """Everything that cannot be."""
    try:
        hyper = resolve(subject.family, subject.text, subject.config)
    except InputError as error:
        return [error.message]
    return [what for check in _CHECKS for what in check(hyper, subject)]


def _heads(h: Hyper, _: Subject) -> Iterator[str]:
    if h.heads % h.kv_heads:
        yield f"num_key_value_heads is {h.kv_heads}, which does not divide num_attention_heads ({h.heads})"
    if h.family.heads_divide and h.hidden % h.heads:
        yield f"num_attention_heads is {h.heads}, which does not divide hidden_size ({h.hidden})"
    linear = h.linear
    if linear is not None and linear.v_heads % linear.k_heads:
        yield (
            f"linear_num_key_heads is {linear.k_heads}, which does not divide linear_num_value_heads "
            f"({linear.v_heads})"
        )


def _activation(h: Hyper, _: Subject) -> Iterator[str]:
    if h.activation not in ACTIVATIONS:
        key = "hidden_activation" if "hidden_activation" in h.family.defaults else "hidden_act"
        yield f"{key} is {h.activation!r}, which is no activation that transformers knows"


def _rotation(h: Hyper, _: Subject) -> Iterator[str]:
    rope = h.rope
    if rope.partial != 1.0 and h.family.turning.partial is None:
        yield f"partial_rotary_factor is {rope.partial:g}, but {h.family.name} turns whole heads"
    elif h.rotary < 2 or h.rotary % 2:
        yield f"RoPE turns pairs, but head_dim {h.head_dim} times {rope.partial:g} is {h.rotary} values"
    elif rope.sections and 2 * sum(rope.sections) != h.rotary:
        yield f"mrope_section {list(rope.sections)} has not the sum of {h.rotary // 2} pairs that are turned"
    for each in (rope, h.local_rope):
        if each is not None and each.kind in _NEEDS_FACTOR and each.factor is None:
            yield f"RoPE is scaled ({each.kind}), but by no factor"
    low, high = rope.values.get("low_freq_factor"), rope.values.get("high_freq_factor")
    if rope.kind == "llama3" and low is not None and high is not None and not low < high:
        yield f"low_freq_factor is {low}, not below high_freq_factor ({high})"
    for key in ("short_factor", "long_factor") if rope.kind == "longrope" else ():
        if len(rope.values.get(key) or ()) != h.rotary // 2:
            yield f"{key} has {len(rope.values.get(key) or ())} numbers, for {h.rotary // 2} pairs"


def _windows(h: Hyper, _: Subject) -> Iterator[str]:
    if any(window is not None and window < 1 for window in h.windows):
        yield f"sliding_window is {h.text['sliding_window']}; null is none"
    if any(h.windows) or "sliding_attention" not in h.family.attention:
        return
    named = h.text.get("layer_types") or ()
    if "sliding_attention" in named:
        yield "layer_types has sliding_attention, but no sliding_window is in use"
    elif not named and h.text.get("sliding_window_pattern", 1) > 1:
        yield "sliding_window is null, but sliding_window_pattern has layers that need it"


def _experts(h: Hyper, subject: Subject) -> Iterator[str]:
    if h.experts is None:
        return
    if h.experts.used > h.experts.count:
        yield f"num_experts_per_tok is {h.experts.used}, but {h.family.experts} {h.experts.count}"
    if (over := [layer for layer in h.text.get("mlp_only_layers") or () if layer >= h.layers]) != []:
        yield f"mlp_only_layers names layer {over[0]}, but there are {h.layers}"
    if h.experts.count % h.experts.groups or h.experts.groups_used > h.experts.groups:
        groups = f"topk_group {h.experts.groups_used} of n_group {h.experts.groups}"
        yield f"{h.experts.count} experts cannot be chosen in {groups}"
    stored: Counter[str] = Counter()
    for name, tensor in subject.tensors.items():
        if (found := _EXPERT.match(name)) is not None:
            stored[found[1]] = max(stored[found[1]], int(found[2]) + 1)
        elif (found := _FUSED.match(name)) is not None and len(tensor.shape) == 3:
            stored[found[1]] = tensor.shape[0]
    for block, count in stored.items():
        router = subject.tensors.get(f"{block}gate.weight")
        if router is not None and router.shape[0] != count:
            yield f"{block}* has {count} experts, but its router chooses among {router.shape[0]}"
            return


def _qk_norm(h: Hyper, subject: Subject) -> Iterator[str]:
    flag = h.text.get("use_qk_norm")
    there = any(name.endswith(".self_attn.q_norm.weight") for name in subject.tensors)
    if flag is not None and bool(flag) != there:
        yield f"use_qk_norm is {flag}, but there are {'such' if there else 'no'} norms"


def _biases(h: Hyper, subject: Subject) -> Iterator[str]:
    """Readers give a bias to all matrices of a kind or to none, by one flag; without a flag, to all."""
    for key, block in BIAS_FLAGS.items():
        names = [
            f"model.layers.{i}.{t.name}"
            for i, kind in enumerate(h.kinds)
            for t in h.family.layers[kind]
            if t.name.startswith(block) and t.name.endswith(".bias")
        ]
        matrices = [n for n in names if n.removesuffix("bias") + "weight" in subject.tensors]
        first = next((n for n in matrices if n in subject.tensors), None)
        without = next((n for n in matrices if n not in subject.tensors), None)
        if without is not None and first is not None:
            yield f"there is {first}, but no {without}: readers make all of these biases or none"
        elif without is not None and key not in h.family.defaults:
            yield f"there is no {without}, and {h.family.name} always has these biases"


_CHECKS: tuple[Callable[[Hyper, Subject], Iterator[str]], ...] = (
    _heads,
    _activation,
    _rotation,
    _windows,
    _experts,
    _qk_norm,
    _biases,
)
