"""Which of llama.cpp's pre-tokenizers a ``tokenizer.json`` asks for.

A byte-level BPE cuts text into pieces before it merges, and llama.cpp knows the ways to cut by name
(``tokenizer.ggml.pre``; ``llama_vocab::impl::load`` in
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp). Its converter finds the name by
hashing the tokens of one long string, so a tokenizer whose vocabulary was retrained or extended is unknown
to it. Here the tokenizer's own rules are read: :func:`split_rules` writes them in one canonical way and
:data:`qexport.formats.gguf.pretokenizer_rules.RULES` says which name cuts so.

Several names cut alike and differ in what happens beside it, which decides between them: whether a piece
that is a token is taken without merging (``ignore_merges``), and whether detokenising cleans up spaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qexport.errors import InputError, UsageProblem
from qexport.formats.gguf.pretokenizer_rules import GPT2_SPLIT, KNOWN_NAMES, RULES, Rule, canonical_regex


def check_name(name: str) -> str:
    """``name`` if llama.cpp knows it as a pre-tokenizer."""
    if name not in KNOWN_NAMES:
        raise UsageProblem(
            f"llama.cpp has no pre-tokenizer named {name!r}",
            hint=f"Known names: {', '.join(sorted(KNOWN_NAMES))}",
        )
    return name


def recognise(
    tokenizer: Mapping[str, Any], *, cleans_up_spaces: bool | None, label: str, published: str | None = None
) -> str:
    """llama.cpp's name for the pre-tokenizer of a parsed ``tokenizer.json``.

    Args:
        cleans_up_spaces: ``clean_up_tokenization_spaces`` of ``tokenizer_config.json``, if it says.
        label: what the model is called in messages.
        published: the name for the family's own; taken where it cuts so.
    """
    rules = split_rules(tokenizer)
    found = [rule for rule in RULES if rules is not None and rules in rule.spellings]
    if not found:
        seen = describe(tokenizer)
        raise InputError(
            f"{label}: no pre-tokenizer of llama.cpp is known to cut text as tokenizer.json does:\n{seen}",
            hint="If you know that one does, name it: --pre-tokenizer NAME (qwen2, llama-bpe ...).",
        )
    if any(name.name == published for name in found[0].candidates):
        return str(published)
    return _choose(found[0], tokenizer, cleans_up_spaces)


def _choose(rule: Rule, tokenizer: Mapping[str, Any], cleans_up_spaces: bool | None) -> str:
    ignores = bool((tokenizer.get("model") or {}).get("ignore_merges"))
    nfc = "NFC" in _normalizers(tokenizer)
    # Later criteria only break ties; the first candidate is the one that most models mean.
    ranked = sorted(
        rule.candidates,
        key=lambda name: (
            name.ignore_merges is not None and name.ignore_merges != ignores,
            name.clean_spaces is not None
            and cleans_up_spaces is not None
            and name.clean_spaces != cleans_up_spaces,
            name.nfc is not None and name.nfc != nfc,
        ),
    )
    return ranked[0].name


def split_rules(tokenizer: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The steps that cut text, canonically, or ``None`` where no step of llama.cpp does the same.

    Each step is a regex that isolates its matches, or a word in angle brackets for what is not a regex.
    """
    # llama.cpp does not normalise text for BPE. NFC leaves almost all text as it is, and the published
    # tokenizers that llama.cpp names (Qwen, OLMo, Command R) have it; any other normaliser is another
    # tokenizer.
    normalizers = [name for name in _normalizers(tokenizer) if name != "NFC"]
    steps: list[str] = []
    if normalizers:
        if normalizers != ["<spaces to U+2581>"]:
            return None
        steps.append(normalizers[0])
    cutting = _flat(tokenizer.get("pre_tokenizer"), "pretokenizers")
    # With a byte-level alphabet every byte has a token, and nothing is left to fall back from.
    if not any(step.get("type") == "ByteLevel" for step in cutting):
        if not (tokenizer.get("model") or {}).get("byte_fallback"):
            return None
        steps.append("<byte fallback>")
    for step in cutting:
        canonical = _step(step)
        if canonical is None:
            return None
        steps.extend(canonical)
    return tuple(steps)


def _step(step: Mapping[str, Any]) -> tuple[str, ...] | None:
    kind = step.get("type")
    if kind == "ByteLevel":
        # llama.cpp's BPE never puts a space in front.
        if step.get("add_prefix_space", True):
            return None
        return (GPT2_SPLIT,) if step.get("use_regex", True) else ()
    if kind == "Digits":
        return (r"\p{N}",) if step.get("individual_digits") else (r"\p{N}+",)
    if kind == "Punctuation":
        return ("<punctuation runs>",) if step.get("behavior") == "Contiguous" else None
    if kind != "Split":
        return None
    pattern = step.get("pattern") or {}
    behavior, invert = step.get("behavior"), bool(step.get("invert"))
    if pattern.get("String") == " " and behavior == "MergedWithPrevious" and not invert:
        return ("<after each space>",)
    if "Regex" not in pattern:
        return None
    regex = canonical_regex(pattern["Regex"])
    if behavior == "Isolated":
        return (regex,)  # matches and what lies between them are both kept, so inversion changes nothing
    # Keeping the matches and dropping the rest is the same where nothing is left between them: the patterns
    # that end in `|\s+` take letters, digits, whitespace and everything that is none of them.
    if behavior == "Removed" and invert and regex.endswith(r"|\s+"):
        return (regex,)
    return None


def describe(tokenizer: Mapping[str, Any]) -> str:
    """The rules as they stand in tokenizer.json, for messages."""
    lines = [f"  normalizer: {', '.join(_normalizers(tokenizer)) or 'none'}"]
    steps = _flat(tokenizer.get("pre_tokenizer"), "pretokenizers")
    lines += [f"  pre-tokenizer: {dict(step)}" for step in steps] or ["  pre-tokenizer: none"]
    model = tokenizer.get("model") or {}
    lines.append(f"  model: {model.get('type')}, byte_fallback {bool(model.get('byte_fallback'))}")
    return "\n".join(lines)


def _normalizers(tokenizer: Mapping[str, Any]) -> list[str]:
    names = []
    for step in _flat(tokenizer.get("normalizer"), "normalizers"):
        name = str(step.get("type"))
        if name == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == "▁":
            name = "<spaces to U+2581>"
        names.append(name)
    return names


def _flat(step: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    if not step:
        return []
    if step.get("type") == "Sequence":
        return [inner for part in step.get(key) or [] for inner in _flat(part, key)]
    return [step]
