"""What a chat template makes of one turn: the words around a prompt, and whether the model thinks first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qexport.errors import QexportError
from qexport.evidence.chat import ChatRenderer
from qexport.evidence.records import Chat

if TYPE_CHECKING:
    from collections.abc import Mapping


SWITCH = "enable_thinking"
"""The variable that Qwen's, GLM's and other templates turn thinking off by."""


def one_turn(files: Mapping[str, bytes], label: str, system: str, prompt: str) -> tuple[str, str]:
    """The text of a turn up to where the answer begins, and ``on`` or ``off``: what thinking is unless told.

    Args:
        files: the model's small files.
        system, prompt: what stands in the places of both.

    Returns:
        Empty texts where there is no template, or none that can be rendered; an empty second one where the
        template has no switch.
    """
    try:
        renderer = ChatRenderer(files, thinks=False, label=label)
        with renderer:
            asked = {"role": "user", "content": prompt}
            turns: tuple[tuple[dict[str, str], ...], ...] = (
                ({"role": "system", "content": system}, asked),
                (asked,),
            )
            for messages in turns:
                if (text := renderer.begun(Chat(messages))) is not None:
                    told = [renderer.begun(Chat(messages), **{SWITCH: each}) for each in (True, False)]
                    return text, _thinking(text, *told)
    except QexportError:
        pass  # the doctor says what is wrong with a template, and why there is nothing to render it
    return "", ""


def _thinking(text: str, on: Any, off: Any) -> str:
    if on == off:
        return ""
    return "off" if text == off else "on"
