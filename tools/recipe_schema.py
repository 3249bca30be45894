"""The JSON Schema of recipes, made from their types."""

from __future__ import annotations

import re
from typing import Any

from qexport.formats.registry import FORMATS
from qexport.recipe.schema import File

__all__ = ["json_schema"]

# One key, or several with commas between, of the section "Attributes:".
_ATTRIBUTE = re.compile(r"^ {4,8}(\w[\w, ]*): (.*(?:\n {9,}.*)*)", re.MULTILINE)


def json_schema() -> dict[str, Any]:
    """For editors (``# yaml-language-server: $schema=...``); what a key means comes from docstrings."""
    schema: dict[str, Any] = _compact(File.model_json_schema())
    for part in (schema, *schema["$defs"].values()):
        title, _, attributes = part.get("description", "").partition("\n\n")
        part["description"] = " ".join(title.split())
        for names, text in _ATTRIBUTE.findall(attributes.partition("Attributes:")[2].split("\n\n")[0]):
            for name in set(names.split(", ")) & set(part["properties"]):
                part["properties"][name]["description"] = " ".join(text.replace("``", "").split())
    schema["$defs"]["Artifact"]["oneOf"] = [{"required": [word]} for word in FORMATS]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _compact(schema: Any) -> Any:
    """Without titles that repeat a key; with bounds in JSON Schema's words."""
    if isinstance(schema, list):
        return [_compact(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    words = {"ge": "minimum", "le": "maximum"}
    return {
        words.get(key, key): _compact(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str)) and not (key == "default" and value is None)
    }
