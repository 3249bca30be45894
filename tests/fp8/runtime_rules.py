"""How vLLM and SGLang decide from ``modules_to_not_convert`` whether a module is FP8, in their own words.

Both ask about modules of theirs: q, k and v are one, gate and up, qkv and z, b and a, and all experts of a
layer. Written from vLLM 0.32 (``is_layer_skipped``, mode exact) and SGLang 0.5.23 (``is_layer_skipped``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
    "in_proj_ba": ("in_proj_b", "in_proj_a"),
}
_PART_OF = {part: fused for fused, parts in FUSED.items() for part in parts}
_NOT_LINEAR = ("embed_tokens", "lm_head", "conv1d", "pos_embed", "patch_embed.proj")
"""Matrices, but no linear layers to a runtime."""


class MixedError(AssertionError):
    """Some parts of a fused module are listed and some not: the runtime refuses to load."""


def runtime_modules(matrices: Iterable[str]) -> dict[str, set[str]]:
    """The linear modules that a runtime builds, each with the stored weights that go into it."""
    found: dict[str, set[str]] = defaultdict(set)
    for weight in matrices:
        module = weight.removesuffix(".weight")
        if module.endswith(_NOT_LINEAR):
            continue
        if ".mlp.experts." in module:
            found[module[: module.index(".experts.") + len(".experts")]].add(weight)
            continue
        parent, _, last = module.rpartition(".")
        found[f"{parent}.{_PART_OF.get(last, last)}"].add(weight)
    return dict(found)


def _one_answer(module: str, answers: set[bool]) -> bool:
    if len(answers) > 1:
        raise MixedError(module)
    return answers.pop()


def vllm_skips(module: str, listed: list[str]) -> bool:
    """Whether vLLM keeps ``module``, one of :func:`runtime_modules`, as it is."""
    parent, _, last = module.rpartition(".")
    if last in FUSED:
        return module in listed or _one_answer(module, {f"{parent}.{p}" in listed for p in FUSED[last]})
    if "experts" in module:
        return any(module in name for name in listed if "experts" in name)
    return module in listed


def sglang_skips(module: str, listed: list[str]) -> bool:
    """Whether SGLang does; it has no word for what DeltaNet's fused matrices are made of."""
    bare = [name.removeprefix("model.") for name in listed]
    names = [*bare, *(f"model.{name}" for name in bare)]

    def at_dots(path: str) -> bool:
        return any(f".{name}." in f".{path}." for name in names)

    parent, _, last = module.rpartition(".")
    if last in ("qkv_proj", "gate_up_proj"):
        return _one_answer(module, {at_dots(f"{parent}.{part}") for part in FUSED[last]})
    return at_dots(module) or ("experts" in module and any(module in n for n in names if "experts" in n))
