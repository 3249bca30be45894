"""Chat templates: programs of strangers, in Jinja's sandbox and in a process that may be killed.

The environment is that of transformers (``transformers/utils/chat_template_utils.py``), so that a
conversation is what it was in training: ``tojson`` without HTML's escapes, ``raise_exception``,
``strftime_now`` (of a fixed day), loop controls, and ``generation`` blocks, which are what is in them.
"""

from __future__ import annotations

import datetime
import json
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MOST_CHARACTERS = 1 << 24


class _Generation(jinja2.ext.Extension):
    tags = {"generation"}  # noqa: RUF012 Jinja's own way

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def environment() -> ImmutableSandboxedEnvironment:
    """What templates are parsed in, with the tags that they may use."""
    return ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )


def _tojson(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


class Loaded:
    """The templates ``request["templates"]`` by name, with the special words that they are given."""

    version = str(jinja2.__version__)

    def __init__(self, request: dict[str, Any]) -> None:
        self.facts: dict[str, Any] = {}
        self._sources = request["templates"]
        self._words = request["words"]
        self._compiled: dict[str, Any] = {}
        self._environment = environment()
        self._environment.filters["tojson"] = _tojson
        self._environment.globals["raise_exception"] = _refuse
        day = datetime.date(*request["today"])
        self._environment.globals["strftime_now"] = day.strftime

    def render(
        self, name: str, messages: list[Any], tools: list[Any] | None, more: dict[str, Any] | None = None
    ) -> dict[str, str]:
        """``text``, or why there is none: ``refused``, in the template's own words.

        Args:
            more: what else the template is given, such as ``enable_thinking``.
        """
        try:
            if name not in self._compiled:
                self._compiled[name] = self._environment.from_string(self._sources[name])
            given = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": False}
            text = self._compiled[name].render(**{**given, **self._words, **(more or {})})
        except Exception as error:  # noqa: BLE001 a template raises whatever Python can
            words = str(error).strip().split("\n", 1)[0][:120]
            return {"refused": words or type(error).__name__}
        if len(text) > _MOST_CHARACTERS:
            return {"refused": f"it makes {len(text)} characters of a conversation"}
        return {"text": text}
