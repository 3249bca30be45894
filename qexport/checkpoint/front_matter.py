"""The front matter of a model card: the YAML between the two ``---`` lines that open a README.md.

A card is prose that someone typed, and often someone else: what cannot be read is noted, not refused.
"""

from __future__ import annotations

from typing import Any

from qexport.checkpoint.yaml_tree import Place, parse_yaml, plain

_RULE = "---"


def read_front_matter(readme: bytes | None, notes: list[str]) -> dict[str, Any]:
    """The front matter as plain JSON; empty where there is none or it cannot be read, which is then noted.

    As in llama.cpp's reader, tabs count as two spaces.
    """
    lines = (readme or b"").decode("utf-8", errors="replace").removeprefix("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != _RULE:
        return {}
    end = next((n for n, line in enumerate(lines) if n and line.rstrip() == _RULE), None)
    if end is None:
        notes.append("README.md: the front matter that its first line opens is not closed")
        return {}
    problems: list[tuple[Place, str]] = []
    text = "\n".join(lines[1:end]).replace("\t", "  ")
    root = parse_yaml(text, "README.md", lambda *problem: problems.append(problem), line=2)
    if problems:
        place, message = min(problems)
        notes.append(f"{place}: {message}")
        return {}
    found = plain(root)
    if found is not None and not isinstance(found, dict):
        notes.append("README.md:2: its front matter is not a mapping")
    return found if isinstance(found, dict) else {}
