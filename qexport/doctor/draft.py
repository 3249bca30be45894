"""The checkpoint under repair: what repairs may change, and the small files as they come out."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

from qexport.checkpoint.config import text_config
from qexport.checkpoint.tensors import Checkpoint
from qexport.doctor.subject import Subject
from qexport.families.tokenizer import TokenizerJson, keep_parsed

PROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
# What readers look for beside the weights, and the model card, whose front matter holds licence and lineage.
# Trainer state and pictures stay behind.
_CARRIED = """
README.md config.json generation_config.json tokenizer.json tokenizer_config.json tokenizer.model
special_tokens_map.json added_tokens.json vocab.json merges.txt chat_template.jinja chat_template.json
"""
CARRIED = (*_CARRIED.split(), *PROCESSOR_FILES)
_CARRIED_STARTS = ("additional_chat_templates/", "LICENSE", "NOTICE", "USE_POLICY")


def dump_json(value: Mapping[str, Any]) -> bytes:
    """JSON as transformers writes it: two spaces, UTF-8, a newline at the end."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def dump_tokenizer(value: Mapping[str, Any]) -> bytes:
    """tokenizer.json, in one line: indenting a large vocabulary takes seconds."""
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    keep_parsed(data, TokenizerJson(value))
    return data


class Draft:
    """A subject being repaired. The subject, and the folder it came from, stay as they are.

    Attributes:
        config: a copy of config.json, to be changed in place.
        tensors: tensors by canonical name, to be changed in place.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.config: dict[str, Any] = copy.deepcopy(dict(subject.config))
        self.tensors = dict(subject.tensors)
        self._json: dict[str, dict[str, Any]] = {}
        self._bytes: dict[str, bytes | None] = {}

    @property
    def text(self) -> dict[str, Any]:
        """The language model's part of ``config``."""
        inner = text_config(self.config)
        return inner if isinstance(inner, dict) else self.config

    def edit_json(self, name: str) -> dict[str, Any]:
        """The parsed file ``name`` (empty if there is none), to be changed in place."""
        if name == "config.json":
            return self.config
        if name not in self._json:
            given = dict(self.subject.json_file(name))
            large = given.get("model") if name == "tokenizer.json" else None
            if isinstance(large, Mapping):  # vocabulary and merges are left as they are, or put in anew
                given = {**given, "model": None}
            self._json[name] = copy.deepcopy(given)
            if large is not None:
                self._json[name]["model"] = dict(large)
        return self._json[name]

    def write(self, name: str, data: bytes) -> None:
        """Put ``data`` in place of file ``name``."""
        self._bytes[name] = data

    def remove(self, name: str) -> None:
        """Leave file ``name`` out."""
        self._bytes[name] = None

    def files(self) -> SmallFiles:
        """The small files after repairs; those that no repair changed are the source's bytes."""
        changed = dict(self._bytes)
        for name, value in {**self._json, "config.json": self.config}.items():
            if value != self.subject.json_file(name):
                changed[name] = dump_tokenizer(value) if name == "tokenizer.json" else dump_json(value)
        return SmallFiles(self.subject.checkpoint, changed)


class SmallFiles(Mapping[str, bytes]):
    """Small files by name; untouched ones are read from the source when asked for."""

    def __init__(self, checkpoint: Checkpoint, changed: Mapping[str, bytes | None]) -> None:
        self._checkpoint = checkpoint
        self._changed = dict(changed)
        kept = [name for name in checkpoint.files if name in CARRIED or name.startswith(_CARRIED_STARTS)]
        self._names = sorted(
            ({*kept} | changed.keys()) - {name for name, data in changed.items() if data is None}
        )

    @property
    def changed(self) -> tuple[str, ...]:
        """Files that repairs wrote or left out."""
        return tuple(sorted(self._changed))

    def __getitem__(self, name: str) -> bytes:
        if name not in self._names:
            raise KeyError(name)
        data = self._changed.get(name)
        return self._checkpoint.read_file(name) if data is None else data

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"SmallFiles({', '.join(self._names)})"
