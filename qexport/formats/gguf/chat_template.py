"""The chat template, from wherever a checkpoint keeps it.

``tokenizer_config.json`` wins where it has one (also a list of named ones), then ``chat_template.jinja``
with its siblings in ``additional_chat_templates/``, then ``chat_template.json``: the order of llama.cpp's
converter. A file without ``tokenizer_config.json`` has no template for it; ours is read nevertheless.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from qexport.formats.gguf.kv import KV, ValueType, array, string

__all__ = ["chat_template_metadata"]

Template = str | list[Mapping[str, Any]] | None


def chat_template_metadata(
    tokenizer_config: Mapping[str, Any] | None, files: Mapping[str, bytes], notes: list[str]
) -> dict[str, KV]:
    """``tokenizer.chat_template`` and, for named templates, ``tokenizer.chat_template.NAME``."""
    template: Any = _from_files(files)
    if tokenizer_config and "chat_template" in tokenizer_config:
        template = tokenizer_config["chat_template"]
    if template is None:
        return {}
    if isinstance(template, str):
        return {"tokenizer.chat_template": string(template)} if template else {}
    if not isinstance(template, list):
        notes.append("chat_template in tokenizer_config.json is neither text nor a list: left out")
        return {}
    default: str | None = None
    named: dict[str, KV] = {}
    names: set[str] = set()
    for entry in template:
        # A name becomes part of a key.
        name = "".join(c if c.isascii() and c.isalnum() else "_" for c in entry.get("name", ""))
        text = entry.get("template")
        if not name or text is None:
            continue
        if name == "default":
            default = text
        else:
            names.add(name)
            if text:
                named[f"tokenizer.chat_template.{name}"] = string(text)
    if names:
        # The converter writes them in the order of a set, which changes from run to run.
        named["tokenizer.chat_templates"] = array(ValueType.STRING, sorted(names))
    if default:
        named["tokenizer.chat_template"] = string(default)
    return named


def _from_files(files: Mapping[str, bytes]) -> Template:
    if "chat_template.jinja" in files:
        main = files["chat_template.jinja"].decode("utf-8")
        folder = PurePosixPath("additional_chat_templates")
        others = [
            {"name": path.stem, "template": files[str(path)].decode("utf-8")}
            for path in sorted(map(PurePosixPath, files))
            if path.parent == folder and path.suffix == ".jinja"
        ]
        return [{"name": "default", "template": main}, *others] if others else main
    if "chat_template.json" in files:
        found = json.loads(files["chat_template.json"]).get("chat_template")
        return found if isinstance(found, str | list) else None
    return None
