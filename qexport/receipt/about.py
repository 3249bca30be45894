"""What a receipt says of a model to somebody who is going to use it: a card is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qexport.receipt.memory import Cache

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty")
"""Keys of ``generation_config.json`` that are passed on."""


@dataclass(frozen=True)
class Conversation:
    """How it is talked to.

    Attributes:
        prompt: one turn through the chat template, with :data:`SYSTEM` and :data:`PROMPT` in it.
        thinking: whether it thinks before it answers, unless told: ``on``, ``off``; empty: no switch.
    """

    prompt: str = ""
    thinking: str = ""


SYSTEM, PROMPT = "{system_prompt}", "{prompt}"


@dataclass(frozen=True)
class About:
    """The model.

    Attributes:
        cache: what it keeps of a text in memory.
        sampling: what its ``generation_config.json`` recommends.
        description: the first words of its own card.
        base: the Hub's id of what it was tuned from.
    """

    cache: Cache = field(default_factory=Cache)
    chat: Conversation = field(default_factory=Conversation)
    sampling: Mapping[str, float] = field(default_factory=dict)
    description: str = ""
    base: str = ""
