"""Records of a corpus: a text, a conversation or ids, read from the columns that data sets use for them.

Nobody agrees on names: ``messages`` (OpenAI, transformers), ``conversations`` with ``from``/``value``
(ShareGPT), pairs such as ``instruction``/``output`` (Alpaca), or one column of text. All conversations become
transformers' messages here; extra columns are ignored. A pair of prompt and completion is taken for a
question and its answer, as a chat model would see it, not for a text cut in two.

Left out: images and sound (refused), preference pairs, columns with names of their own.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]

# Question and answer, by the columns' names. An Alpaca record's "input" belongs to its instruction.
_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("question", "response"),
)
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_REASONING = ("reasoning_content", "reasoning", "thinking")
_KEPT = ("name", "tool_call_id")
_UNDERSTOOD = (
    "messages, conversations, text, content, input_ids, prompt + completion, instruction (+ input) + output, "
    "question + answer"
)
_MAX_ID = 2**31


class RecordError(ValueError):
    """What is wrong with a record, as a clause that follows the place; ``hint`` may say what is right."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Text:
    """Plain text; special tokens in it are only text."""

    text: str

    def as_json(self) -> dict[str, Any]:
        return {"text": self.text}


@dataclass(frozen=True)
class Chat:
    """A conversation, for the model's own chat template.

    Attributes:
        messages: each with ``role`` and ``content`` (text, possibly empty), as they apply with
            ``reasoning_content``, ``tool_calls`` (arguments parsed), ``name``, ``tool_call_id``.
        tools: JSON schemas of the functions on offer.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"messages": list(self.messages)}
        return found | {"tools": list(self.tools)} if self.tools else found


@dataclass(frozen=True)
class Ids:
    """Token ids, used as they are."""

    ids: array[int]

    def as_json(self) -> dict[str, Any]:
        return {"input_ids": self.ids.tolist()}


Content = Text | Chat | Ids


@dataclass(frozen=True)
class Record:
    """One record.

    Attributes:
        category: what the built-in corpus is balanced by, empty elsewhere.
        domain: what the record says of itself; it has no part in what the record is.
        prompt: of ids, how many in front the model was given, where the record says so; likewise.
    """

    content: Content
    category: str = ""
    domain: str = ""
    prompt: int = 0

    def canonical(self) -> bytes:
        """The same bytes for the same content, whatever columns it came in. UnicodeEncodeError: half of a
        surrogate pair, which JSON can spell and UTF-8 cannot."""
        fields = self.content.as_json() | ({"category": self.category} if self.category else {})
        return json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def read_record(row: Any, category: str = "") -> Record:
    """The record in a parsed JSON value. Raises RecordError."""
    if not isinstance(row, Mapping):
        raise RecordError(f"is a JSON {_kind(row)}, not an object", f"A record has columns: {_UNDERSTOOD}.")
    domain, prompt = row.get("domain"), row.get("prompt_tokens")
    record = Record(
        _content(row),
        category,
        domain if isinstance(domain, str) else "",
        prompt if isinstance(prompt, int) and prompt > 0 else 0,
    )
    try:
        record.canonical()
    except UnicodeEncodeError:
        raise RecordError("holds half of a surrogate pair, which is no text") from None
    return record


def _content(row: Mapping[str, Any]) -> Content:
    if "input_ids" in row:
        return Ids(_ids(row["input_ids"]))
    tools = _tools(row.get("tools"))
    system = row.get("system")
    before = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    for column in ("messages", "conversations", "conversation"):
        if row.get(column) is not None:
            turns = row[column]
            if not isinstance(turns, list) or not turns:
                raise RecordError(f"has {column} that is not a list of messages, or an empty one")
            messages = [_message(turn, column, number) for number, turn in enumerate(turns, 1)]
            return Chat((*(() if messages[0]["role"] == "system" else before), *messages), tools)
    for question, answer in _PAIRS:
        if row.get(question) is not None and row.get(answer) is not None:
            return _pair(row, question, answer, before, tools)
    for column in ("text", "content"):
        if isinstance(row.get(column), str):
            if not row[column]:
                raise RecordError(f"has an empty {column}")
            return Text(row[column])
    found = ", ".join(map(str, row)) or "none"
    raise RecordError(f"has no column that can be used (found: {found})", f"Understood: {_UNDERSTOOD}.")


def _pair(
    row: Mapping[str, Any],
    question: str,
    answer: str,
    before: list[dict[str, Any]],
    tools: tuple[Mapping[str, Any], ...],
) -> Chat:
    asked, answered, more = row[question], row[answer], row.get("input")
    if isinstance(asked, str) and isinstance(answered, str):
        if question == "instruction" and isinstance(more, str) and more:
            asked = f"{asked}\n\n{more}"
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        return Chat((*before, *turns), tools)
    if isinstance(asked, list) and isinstance(answered, list) and asked:  # TRL's conversational form
        messages = [
            _message(turn, f"{question} + {answer}", number)
            for number, turn in enumerate((*asked, *answered), 1)
        ]
        return Chat(tuple(messages), tools)
    kinds = f"{_kind(asked)} and {_kind(answered)}"
    raise RecordError(f"has {question} and {answer} of the wrong kind ({kinds}); both should be text")


def _message(turn: Any, column: str, number: int) -> Message:
    place = f"has {column} of which no. {number}"
    if not isinstance(turn, Mapping):
        raise RecordError(f"{place} is a JSON {_kind(turn)}, not a message")
    if "from" in turn and "role" not in turn:
        return _sharegpt(turn, place)
    role = turn.get("role")
    if not isinstance(role, str) or not role:
        raise RecordError(f"{place} has no role", 'A message is {"role": "user", "content": "..."}.')
    calls = turn.get("tool_calls") or []
    if not isinstance(calls, list):
        raise RecordError(f"{place} has tool_calls that are not a list")
    content = turn.get("content")
    if content is None and not calls:
        raise RecordError(f"{place} has no content", 'A message is {"role": "user", "content": "..."}.')
    message: dict[str, Any] = {"role": role, "content": _words(content, place)}
    for name in _REASONING:
        if isinstance(turn.get(name), str) and turn[name]:
            message["reasoning_content"] = turn[name]
            break
    if calls:
        message["tool_calls"] = [_call(call, place) for call in calls]
    return message | {name: turn[name] for name in _KEPT if isinstance(turn.get(name), str)}


def _sharegpt(turn: Mapping[str, Any], place: str) -> Message:
    who, value = turn["from"], turn.get("value")
    if not isinstance(value, str):
        raise RecordError(f"{place} has no value", 'A ShareGPT turn is {"from": "human", "value": "..."}.')
    if who == "function_call":
        try:
            calls = json.loads(value)
        except ValueError:
            raise RecordError(f"{place} has a function_call that is not JSON") from None
        calls = calls if isinstance(calls, list) else [calls]
        return {"role": "assistant", "content": "", "tool_calls": [_call(call, place) for call in calls]}
    if not isinstance(who, str) or who not in _SHAREGPT_ROLES:
        known = ", ".join((*_SHAREGPT_ROLES, "function_call"))
        raise RecordError(f"{place} is from {who!r}", f"Known: {known}.")
    return {"role": _SHAREGPT_ROLES[who], "content": value}


def _words(content: Any, place: str) -> str:
    """Text, also where it is in parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    if all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts):
        return "".join(part["text"] for part in parts)
    raise RecordError(f"{place} has content that is not text", "Images and sound cannot be used here.")


def _call(call: Any, place: str) -> dict[str, Any]:
    """A tool call as templates expect it: arguments are an object, which OpenAI's form has as text."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RecordError(f"{place} has a tool call without a name")
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise RecordError(f"{place} has a tool call whose arguments are not JSON") from None
    if not isinstance(arguments, Mapping):
        raise RecordError(f"{place} has a tool call whose arguments are not an object")
    made = {"type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}}
    return {"id": call["id"], **made} if isinstance(call.get("id"), str) else made


def _tools(tools: Any) -> tuple[Mapping[str, Any], ...]:
    """Schemas; data sets often keep them as text, and some without the envelope."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else []
        except ValueError:
            raise RecordError("has tools that are not JSON") from None
    if tools is None:
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RecordError("has tools that are not a list of schemas")
    wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    for tool in wrapped:
        if not isinstance(tool["function"], Mapping) or not isinstance(tool["function"].get("name"), str):
            raise RecordError("has a tool without a name")
    return tuple(wrapped)


def _ids(values: Any) -> array[int]:
    if isinstance(values, list) and len(values) == 1 and isinstance(values[0], list):
        values = values[0]  # a batch of one, as tokenizers return with return_tensors
    if not isinstance(values, list) or not values:
        raise RecordError("has input_ids that is not a list of ids, or an empty one")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MAX_ID:
            raise RecordError(f"has input_ids with {str(value)[:24]!r}, which is no token id")
    return array("i", values)


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
