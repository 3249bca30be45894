"""The front matter of a model card: the YAML between the two ``---`` lines that open a README.md."""

from __future__ import annotations

from typing import Any

__all__ = ["read_front_matter"]


def read_front_matter(readme: bytes | None, label: str, notes: list[str]) -> dict[str, Any]:
    """The front matter as a dict; empty where there is none or it cannot be read.

    A card is prose that someone typed: what cannot be read is noted, not refused. As in llama.cpp's reader, a
    bare ``no`` in a list is the language Norwegian, and tabs count as two spaces.
    """
    import yaml

    if readme is None:
        return {}
    lines = readme.decode("utf-8", errors="replace").splitlines()
    if not lines or lines[0] != "---":
        return {}
    body = lines[1 : lines.index("---", 1)] if "---" in lines[1:] else lines[1:]
    text = "".join(line + "\n" for line in body).replace("- no\n", '- "no"\n').replace("\t", "  ")
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        notes.append(
            f"{label}: the front matter of README.md is not valid YAML ({type(error).__name__}): not used"
        )
        return {}
    return data if isinstance(data, dict) else {}
