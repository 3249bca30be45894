"""Conversations as the model reads them: through its own chat template.

A template is a program of a stranger, so it is rendered in a process of its own, with limits of time and
memory (``children/programs/engine_template.py``); one that goes past them is not asked again. Templates
refuse what their authors had no use for, aloud (an exception) or in silence (tools that appear nowhere), so
there are three steps: the conversation as it is; without tools and system turns, whose text goes to the
user; and the contents as plain text. How many conversations needed which is reported.

Reasoning that a template leaves out is put in front of the answer in think tags, if the model has such a
token. The date that some templates write is fixed, so that the same corpus gives the same tokens tomorrow.
"""

from __future__ import annotations

import json
import weakref
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from qexport.checkpoint.chat_templates import read_templates
from qexport.checkpoint.config import parse_json
from qexport.children.failure import RuntimeFailure
from qexport.children.process import ChildProcess, engine_command
from qexport.evidence.records import Chat

How = Literal["template", "simplified", "plain"]

_TODAY = (2026, 1, 1)
# Far above what any template needs: it renders a conversation in milliseconds.
_PATIENCE_S = 20.0
_MEMORY = 1 << 30
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_THINK = "<think>"


def json_file(files: Mapping[str, bytes], name: str, label: str) -> dict[str, Any]:
    """A parsed small file, empty where there is none. Raises InputError where it is not a JSON object."""
    return parse_json(files[name], f"{label}: {name}") if name in files else {}


def special_words(files: Mapping[str, bytes], label: str) -> dict[str, str]:
    """``bos_token`` and the like as templates are given them."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        document = json_file(files, name, label)
        for key in _SPECIAL:
            value = document.get(key)
            value = value.get("content") if isinstance(value, Mapping) else value
            if isinstance(value, str):
                found[key] = value
    return found


class ChatRenderer:
    """Renders conversations for one model.

    Args:
        files: the model's small files.
        thinks: whether ``<think>`` is a token of its tokenizer.
        label: what to call the model in errors.

    Attributes:
        counts: conversations rendered, by how.
        reason: why the first of them was not rendered as it is.
    """

    def __init__(self, files: Mapping[str, bytes], *, thinks: bool, label: str) -> None:
        templates = read_templates(files, label)
        self._templates = {**templates.named, "default": templates.default} if templates.default else {}
        self._words = special_words(files, label) if self._templates else {}
        self._thinks = thinks
        self.counts: dict[How, int] = {"template": 0, "simplified": 0, "plain": 0}
        self._process: ChildProcess | None = None
        self.reason = "" if self._templates else "the model has no chat template"

    def render(self, chat: Chat) -> tuple[str, How]:
        """The conversation's text, and which of the three steps made it.

        Raises:
            EnvironmentProblem: there is a template, and no Jinja to render it.
        """
        text, how = self._render(chat)
        self.counts[how] += 1
        return text, how

    def begun(self, chat: Chat, **more: Any) -> str | None:
        """The conversation as it is, up to where the next answer begins; ``None``: the template makes none.

        Args:
            more: what else the template is given.
        """
        return self._through_template(chat, {"add_generation_prompt": True, **more})

    def __enter__(self) -> ChatRenderer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()

    def _render(self, chat: Chat) -> tuple[str, How]:
        if self._templates:
            chat = _numbered(chat)
            text = self._with_reasoning(chat)
            missing = None if text is None else _left_out(chat, text)
            if text is not None and missing is None:
                return text, "template"
            if missing is not None:
                self.reason = self.reason or f"the template leaves out {missing[:40]!r}"
            text = self._with_reasoning(_simplified(chat))
            if text is not None:
                return text, "simplified"
        return _plain(chat), "plain"

    def _with_reasoning(self, chat: Chat) -> str | None:
        text = self._through_template(chat)
        lost = _last_reasoning(chat)
        if text is None or not lost or lost in text or not self._thinks:
            return text
        inline = [
            {
                **message,
                "content": f"{_THINK}\n{message['reasoning_content']}\n</think>\n\n{message['content']}",
            }
            if message.get("reasoning_content")
            else message
            for message in chat.messages
        ]
        return self._through_template(Chat(tuple(inline), chat.tools)) or text

    def _through_template(self, chat: Chat, more: Mapping[str, Any] | None = None) -> str | None:
        if not self._templates:
            return None
        if self._process is None:
            self._process = self._start()
        messages = [dict(message) for message in chat.messages]
        name = "tool_use" if chat.tools and "tool_use" in self._templates else "default"
        tools = [dict(tool) for tool in chat.tools] or None
        try:
            asked = {"name": name, "messages": messages, "tools": tools, "more": dict(more or {})}
            found = self._process.ask("render", within=_PATIENCE_S, **asked)
        except RuntimeFailure as failure:
            self._process.kill()
            self._templates = {}
            self.reason = failure.message
            return None
        if "refused" in found:
            self.reason = self.reason or f"the template refuses it: {found['refused']}"
        return str(found.get("text") or "") or None

    def _start(self) -> ChildProcess:
        process = ChildProcess(
            engine_command("engine_template.py"),
            what="the chat template",
            time_limit=float("inf"),
            memory_limit=_MEMORY,
            request={"templates": self._templates, "words": self._words, "today": _TODAY},
        )
        process.ready("pip install jinja2")
        weakref.finalize(self, process.kill)
        return process


def _numbered(chat: Chat) -> Chat:
    """The same with an id on every call and result, which some templates insist on: Mistral's want nine
    letters or digits."""
    messages: list[Mapping[str, Any]] = []
    made, open_ids = 0, list[str]()
    for message in chat.messages:
        if message.get("tool_calls"):
            calls = []
            for call in message["tool_calls"]:
                made += 1
                calls.append({"id": f"call{made:05}", **call})
            open_ids = [call["id"] for call in calls]
            message = {**message, "tool_calls": calls}
        elif message["role"] == "tool" and open_ids:
            message = {"tool_call_id": open_ids.pop(0), **message}
        messages.append(message)
    return Chat(tuple(messages), chat.tools)


def _left_out(chat: Chat, text: str) -> str | None:
    """What a template ignored in silence: a tool or a call, by name (contents may be escaped), or the first
    line of a system turn. A call of a tool that is also declared has to appear twice."""
    words = Counter(tool["function"]["name"] for tool in chat.tools)
    words.update(call["function"]["name"] for turn in chat.messages for call in turn.get("tool_calls", ()))
    words.update(_first_line(turn["content"]) for turn in chat.messages if turn["role"] == "system")
    return next((word for word, count in words.items() if text.count(word) < count), None)


def _last_reasoning(chat: Chat) -> str:
    """The last answer's reasoning; templates drop earlier ones by design."""
    return str(chat.messages[-1].get("reasoning_content", "")).strip()


def _simplified(chat: Chat) -> Chat:
    """User and assistant by turns, nothing else: what the plainest template takes."""
    preface = ["Functions:\n" + "\n".join(map(_json, chat.tools))] if chat.tools else []
    turns: list[dict[str, Any]] = []
    for message in chat.messages:
        role = "assistant" if message["role"] == "assistant" else "user"
        parts = [message["content"], *(_json(call["function"]) for call in message.get("tool_calls", ()))]
        turn: dict[str, Any] = {"role": role, "content": "\n".join(part for part in parts if part)}
        if message.get("reasoning_content"):
            turn["reasoning_content"] = message["reasoning_content"]
        if message["role"] in ("system", "developer") and not turns:
            preface.insert(0, turn["content"])
        elif turns and turns[-1]["role"] == role:
            turn["content"] = f"{turns[-1]['content']}\n\n{turn['content']}"
            turns[-1] |= turn
        else:
            turns.append(turn)
    if preface and turns and turns[0]["role"] == "user":
        turns[0]["content"] = "\n\n".join((*preface, turns[0]["content"]))
    elif preface:
        turns.insert(0, {"role": "user", "content": "\n\n".join(preface)})
    return Chat(tuple(turns))


def _plain(chat: Chat) -> str:
    parts: list[str] = []
    for turn in _simplified(chat).messages:
        parts += [turn.get("reasoning_content", ""), turn["content"]]
    return "\n\n".join(part for part in parts if part)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0]
