"""Special tokens: which id begins, ends and pads a text, and whether the runtime adds them.

Three files have a say. ``tokenizer.json``'s post-processor says what is put around a text; names in
``tokenizer_config.json`` find their ids among the added tokens; ids in ``config.json`` fill what is left.
The order and its corners are those of llama.cpp's ``SpecialVocab``
(https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/vocab.py), whose result the runtime's
end-of-turn detection relies on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qexport.checkpoint.special_tokens import as_ids
from qexport.container.gguf_write import KV, boolean, u32
from qexport.errors import InputError

TYPES: tuple[str, ...] = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

# GGUF's words. `cls` has none: llama.cpp takes bos where it needs one.
_ID_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "mask": "mask_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
}
_ADDED_AUTOMATICALLY = ("bos", "eos", "sep")


@dataclass
class SpecialTokens:
    """Ids and add flags by type, in the order they were found."""

    ids: dict[str, int] = field(default_factory=dict)
    add: dict[str, bool] = field(default_factory=dict)

    def metadata(self) -> dict[str, KV]:
        ids = {f"tokenizer.ggml.{_ID_KEYS[t]}": u32(i) for t, i in self.ids.items() if t in _ID_KEYS}
        add = {
            f"tokenizer.ggml.add_{t}_token": boolean(v)
            for t, v in self.add.items()
            if t in _ADDED_AUTOMATICALLY
        }
        return {**ids, **add}


def read_special_tokens(
    tokenizer: Mapping[str, Any] | None,
    tokenizer_config: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    *,
    n_vocab: int | None,
    notes: list[str],
) -> SpecialTokens:
    """Ids and flags from the three files; ids from ``n_vocab`` on are left out and noted."""
    found = SpecialTokens()
    types = TYPES
    names = dict(tokenizer_config) if tokenizer_config else None
    if tokenizer:
        types = _post_processor(tokenizer, names, found)

    def take(kind: str, token_id: object) -> None:
        if isinstance(token_id, int) and token_id < 0:
            raise InputError(f"the {kind} token has the id {token_id}")
        for number in as_ids(token_id):
            if n_vocab is None or number < n_vocab:
                found.ids.setdefault(kind, number)
                return
            notes.append(f"the {kind} token id {number} is outside the vocabulary of {n_vocab}: left out")

    if names is not None:
        added = (tokenizer or {}).get("added_tokens") or []
        for kind in types:
            flag = names.get(f"add_{kind}_token")
            # What the post-processor does is what happens; the flag is a wish.
            if isinstance(flag, bool) and found.add.setdefault(kind, flag) != flag:
                notes.append(
                    f"tokenizer_config.json says add_{kind}_token={str(flag).lower()}, tokenizer.json's "
                    f"post-processor does the opposite: the latter is written"
                )
            entry = names.get(f"{kind}_token")
            content = entry.get("content") if isinstance(entry, Mapping) else entry
            if isinstance(content, str):
                take(kind, next((t.get("id") for t in added if t.get("content") == content), None))
    for kind in types:
        token_id = config.get(f"{kind}_token_id")
        if token_id is None and isinstance(config.get("text_config"), Mapping):
            token_id = config["text_config"].get(f"{kind}_token_id")
        take(kind, token_id)
    return found


def _post_processor(
    tokenizer: Mapping[str, Any], names: dict[str, Any] | None, found: SpecialTokens
) -> tuple[str, ...]:
    """Read the post-processor; may complete ``names`` and returns the types to look for."""
    types = TYPES
    state = {kind: (names or {}).get(f"{kind}_token") for kind in ("bos", "cls", "eos", "sep")}

    def name(kind: str, content: object) -> None:
        state[kind] = content
        if names is not None:
            names[f"{kind}_token"] = content

    # BERT's words for begin and end.
    if names is not None:
        if not state["bos"] and state["cls"]:
            name("bos", state["cls"])
        if not state["eos"] and state["sep"]:
            name("eos", state["sep"])

    processor = tokenizer.get("post_processor") or {}
    for step in processor.get("processors", [processor]):
        kind = step.get("type")
        if kind == "ByteLevel":
            found.add.setdefault("bos", False)
            found.add.setdefault("eos", False)
        elif kind == "RobertaProcessing":
            found.add.update(bos=True, eos=True, sep=True)
            if names is not None:
                if not state["cls"]:
                    name("cls", (step.get("cls") or [state["bos"]])[0])
                if not state["sep"]:
                    name("sep", (step.get("sep") or [state["eos"]])[0])
        elif kind == "TemplateProcessing":
            types = _template(step, names, state, name, found, types)
    return types


def _template(
    step: Mapping[str, Any],
    names: dict[str, Any] | None,
    state: dict[str, Any],
    name: Any,
    found: SpecialTokens,
    types: tuple[str, ...],
) -> tuple[str, ...]:
    """``<bos> A <eos>`` and ``<bos> A <sep> B <eos>``: what stands first, last and between."""
    single, pair = step.get("single") or [], step.get("pair") or []
    first = last = None
    if len(single) > 1:
        if first := _special(single[0]):
            if names is None:
                state["bos"] = first
            elif first not in (state["bos"], state["cls"]):
                for kind in ("bos", "cls"):
                    if not state[kind]:
                        name(kind, first)
            found.add["bos"] = first in (state["bos"], state["cls"])
        if last := _special(single[-1]):
            if names is None:
                state["eos"] = last
            elif last != state["eos"]:
                # What the config called eos ends a turn then.
                spare = next((kind for kind in ("eot", "eom") if kind not in types), None)
                if spare is not None:
                    types = (*types, spare)
                    names[f"{spare}_token"] = state["eos"]
                name("eos", last)
            found.add["eos"] = last == state["eos"]
    if not pair:
        return types
    start = 1 if first and _special(pair[0]) == first else 0
    stop = len(pair) - (1 if last and _special(pair[-1]) == last else 0)
    middle = pair[start:stop]
    if middle and _sequence(middle[0]) == "A" and _sequence(middle[-1]) == "B" and (middle := middle[1:-1]):
        separators = (state["sep"], state["eos"])
        entry = _special(middle[0])
        add = bool(entry) and entry in separators and not last
        if len(middle) == 2 and (second := _special(middle[1])):
            add = add or second in separators
        found.add["sep"] = add
        if add and not state["sep"] and names is not None:
            names["sep_token"] = state["eos"]
    return types


def _special(piece: Mapping[str, Any]) -> Any:
    return (piece.get("SpecialToken") or {}).get("id")


def _sequence(piece: Mapping[str, Any]) -> Any:
    return (piece.get("Sequence") or {}).get("id")
