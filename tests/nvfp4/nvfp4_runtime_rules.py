"""How vLLM and SGLang decide which of their modules are NVFP4, in words of our own.

Both ask about modules of theirs: q, k and v are one, gate and up, qkv and z, b and a, and all experts of a
layer; and under paths of theirs. Written from vLLM 0.32 (``ModelOptQuantConfigBase``, ``is_layer_skipped``,
``ModelOptMixedPrecisionConfig``, ``should_ignore_layer`` of compressed-tensors) and SGLang 0.5.23
(``ModelOptQuantConfig``, ``ModelOptMixedPrecisionConfig``, ``should_ignore_layer``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
    "in_proj_ba": ("in_proj_b", "in_proj_a"),
}
_PART_OF = {part: fused for fused, parts in FUSED.items() for part in parts}
_NO_LAYER = ("embed_tokens", "norm", "pos_embed", "patch_embed.proj")


class MixedError(AssertionError):
    """Some parts of a fused module are quantized and some not: the runtime refuses to load."""


@dataclass(frozen=True)
class Module:
    """A linear layer of a runtime: its path there, and the published paths of what goes into it."""

    path: str
    parts: frozenset[str]


def runtime_modules(weights: Iterable[str], rename: Callable[[str], str]) -> list[Module]:
    """The layers that a runtime builds for these stored ``.weight`` names, ``rename`` giving its paths."""
    found: dict[str, set[str]] = {}
    for weight in weights:
        published = weight.removesuffix(".weight")
        if published.endswith(_NO_LAYER) or "norm" in published.rpartition(".")[2]:
            continue
        own = rename(published)
        if ".mlp.experts." in own:
            own = own[: own.index(".experts.") + len(".experts")]
        else:
            parent, _, last = own.rpartition(".")
            own = f"{parent}.{_PART_OF.get(last, last)}" if parent else last
        found.setdefault(own, set()).add(published)
    return [Module(path, frozenset(parts)) for path, parts in found.items()]


def vllm_path(published: str) -> str:
    """vLLM's path in the multimodal class; text-only classes have the published ones."""
    for before, after in (
        ("model.language_model.", "language_model.model."),
        ("model.visual.", "visual."),
        ("lm_head", "language_model.lm_head"),
    ):
        if published.startswith(before):
            return after + published.removeprefix(before)
    return published


def _vllm_listed(name: str) -> str:
    """What vLLM's mapper makes of an entry: only whole prefixes with their dot are renamed."""
    for before, after in (("model.language_model.", "language_model.model."), ("model.visual.", "visual.")):
        if name.startswith(before):
            return after + name.removeprefix(before)
    return name


def _parts(path: str) -> list[str]:
    parent, _, last = path.rpartition(".")
    return [f"{parent}.{part}" for part in FUSED.get(last, (last,))] if parent else [path]


def _one_answer(path: str, answers: Iterable[Any]) -> Any:
    found = set(answers)
    if len(found) > 1:
        raise MixedError(path)
    return found.pop()


def vllm_excludes(path: str, listed: list[str]) -> bool:
    """Whether vLLM keeps a module unquantized, from ``ignore`` of a ModelOpt folder."""
    entries: list[str] = []
    for entry in listed:
        whole = len(entry) > 1 and entry.endswith("*") and entry[-2] != "."
        entries += [entry[:-1], f"{entry[:-1]}.*"] if whole else [entry]
    entries = [_vllm_listed(entry) for entry in entries]
    if path.endswith(".experts"):
        equal = any(path in entry for entry in entries if "experts" in entry)
    else:
        equal = path in entries or _one_answer(path, (part in entries for part in _parts(path)))
    inside = any(entry in path for entry in entries if entry != path)
    return equal or inside or any(fnmatch(path, entry) for entry in entries)


def sglang_excludes(path: str, listed: list[str]) -> bool:
    """The same of SGLang, whose paths are the published ones and whose entries are not renamed."""

    def at_dots(name: str) -> bool:
        return any(f".{entry.rstrip('.')}." in f".{name}." for entry in listed)

    skipped = _one_answer(path, (at_dots(part) for part in _parts(path)))
    if path.endswith(".experts"):
        skipped = skipped or any(path in entry for entry in listed if "experts" in entry)
    globs = [re.compile(entry.replace(".", r"\.").replace("*", ".*")) for entry in listed]
    pieces = [path, *path.split(".")]
    return skipped or any(glob.fullmatch(piece) for glob in globs for piece in pieces)


def mixed_algo(path: str, layers: dict[str, dict[str, Any]]) -> str | None:
    """The algorithm of a module in a MIXED_PRECISION folder; both runtimes go about it alike."""
    candidates = [path]
    if path.endswith(".lm_head"):
        candidates.append("lm_head")
    if path.startswith("language_model.model."):
        candidates.append("model.language_model." + path.removeprefix("language_model.model."))
    for candidate in candidates:
        if candidate in layers:
            return layers[candidate]["quant_algo"]
    if path.rpartition(".")[2] in FUSED:
        found = {layers.get(part, {}).get("quant_algo") for c in candidates for part in _parts(c)} - {None}
        if found:
            return _one_answer(path, found)
    above = [c.removesuffix("experts") for c in candidates if c.endswith(".experts")]
    near = [f"{c}." for c in candidates] + above
    below = [layers[key]["quant_algo"] for start in near for key in layers if key.startswith(start)]
    return below[0] if below else None


def ct_group(path: str, groups: dict[str, Any], *, sglang: bool) -> str | None:
    """The group of a module that is not ignored. vLLM asks by its name, by its parts, then by its class;
    SGLang by the class before the parts, and refuses a module that no group takes.
    """

    def named(name: str) -> str | None:
        for group, settings in groups.items():
            for target in settings["targets"]:
                if target.startswith("re:") and re.match(target[3:], name):
                    return group
        return None

    if path.endswith(".experts"):
        names = [f"{path}.0.{part}_proj" for part in ("gate", "up", "down")]
        return _one_answer(path, (named(name) for name in names))
    by_class = next((group for group, settings in groups.items() if "Linear" in settings["targets"]), None)
    by_parts = _one_answer(path, map(named, _parts(path)))
    found = named(path) or (by_class or by_parts if sglang else by_parts or by_class)
    if found is None and sglang:
        raise MixedError(f"{path} has no group")
    return found


def ct_ignores(path: str, listed: list[str], *, suffixes: bool) -> bool:
    """Whether ``ignore`` of compressed-tensors leaves a module alone; ``suffixes`` as in SGLang."""
    names = (
        [f"{path}.0.{part}_proj" for part in ("gate", "up", "down")]
        if path.endswith(".experts")
        else _parts(path)
    )

    def hit(name: str) -> bool:
        for entry in listed:
            if entry.startswith("re:"):
                if re.match(entry[3:], name):
                    return True
            elif name == entry or (suffixes and name.endswith(f".{entry}")):
                return True
        return False

    return _one_answer(path, map(hit, names))
