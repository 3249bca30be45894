"""The chat template as GGUF keeps it: one for every conversation, and named ones beside it."""

from __future__ import annotations

from qexport.checkpoint.chat_templates import ChatTemplates
from qexport.container.gguf_write import KV, ValueType, array, string


def key_of(name: str) -> str:
    """The key of the template called ``name``."""
    if name == "default":
        return "tokenizer.chat_template"
    return "tokenizer.chat_template." + "".join(c if c.isascii() and c.isalnum() else "_" for c in name)


def chat_template_metadata(templates: ChatTemplates) -> dict[str, KV]:
    """``tokenizer.chat_template`` and, for named templates, ``tokenizer.chat_template.NAME``."""
    others = {key_of(name): text for name, text in templates.named.items() if name != "default"}
    result = {key: string(text) for key, text in others.items()}
    if others:
        # The converter writes them in the order of a set, which changes from run to run.
        words = sorted(key.removeprefix("tokenizer.chat_template.") for key in others)
        result["tokenizer.chat_templates"] = array(ValueType.STRING, words)
    if templates.default is not None:
        result["tokenizer.chat_template"] = string(templates.default)
    return result
