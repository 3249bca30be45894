"""What a receipt says of a model, from its config and small files: no weights are read."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from qexport.checkpoint.chat_templates import template_files
from qexport.checkpoint.front_matter import read_front_matter
from qexport.errors import InputError
from qexport.evidence.chat import json_file
from qexport.evidence.prompt_format import one_turn
from qexport.families.parts import part_of
from qexport.formats.gguf.host_paths import is_local
from qexport.headtune.folder import RECEIPT, tuned_in
from qexport.receipt.about import PROMPT, SAMPLING, SYSTEM, About, Conversation
from qexport.receipt.memory import cache_of
from qexport.receipt.source_card import description_of
from qexport.receipt.types import HUB_LABEL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from qexport.doctor.diagnose import Diagnosis
    from qexport.formats.plan import ArtifactPlan

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_ADAPTER = "adapter_config.json"
_LONGEST = 4000


def about_of(diagnosis: Diagnosis) -> About:
    """The model of a diagnosis that has no errors."""
    view = diagnosis.repaired.view()
    given = json_or_nothing(view.files, "generation_config.json", view.label)
    words = ((key, given.get(key)) for key in SAMPLING)
    sampling = {
        key: value
        for key, value in words
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6
    }
    return About(
        cache=cache_of(view.hyper, view.mtp_layers),
        chat=_conversation(view.files, view.label),
        sampling=sampling if given.get("do_sample") is not False else {},
        description=description_of(view.files.get("README.md")),
        base=_base(diagnosis),
    )


def parts_of(diagnosis: Diagnosis, plan: ArtifactPlan) -> dict[str, dict[str, int]]:
    """For each part of the model, as what it is stored, and how many bytes of each."""
    parts = {tensor.name: part_of(tensor) for tensor in diagnosis.repaired.view()}
    found: dict[str, dict[str, int]] = {}
    for tensor in plan.tensors:
        if part := parts.get(tensor.canonical, ""):
            kinds = found.setdefault(part, {})
            kinds[tensor.stored.name] = kinds.get(tensor.stored.name, 0) + tensor.nbytes
    return found


def json_or_nothing(files: Mapping[str, bytes], name: str, label: str) -> dict[str, Any]:
    """A small file that nothing depends on."""
    try:
        return json_file(files, name, label)
    except InputError:
        return {}


def _conversation(files: Mapping[str, bytes], label: str) -> Conversation:
    names = (*template_files(files), "tokenizer_config.json", "special_tokens_map.json")
    given = tuple((name, files[name]) for name in dict.fromkeys(names) if name in files)
    prompt, thinking = _turn(given, label)
    return Conversation(prompt, thinking) if len(prompt) <= _LONGEST else Conversation("", thinking)


@lru_cache(maxsize=64)
def _turn(files: tuple[tuple[str, bytes], ...], label: str) -> tuple[str, str]:
    """Templates are rendered in a process of their own: once for all artifacts of a model."""
    return one_turn(dict(files), label, SYSTEM, PROMPT)


def _base(diagnosis: Diagnosis) -> str:
    """What the model was tuned from: whose head or tower it was given, else what its files name."""
    own = diagnosis.subject.checkpoint.label.partition("@")[0]
    return next((name for name in _bases(diagnosis) if _is_hub_id(name) and name != own), "")


def _bases(diagnosis: Diagnosis) -> Iterator[Any]:
    subject = diagnosis.subject
    for given in (subject.base, subject.sight):
        if given is not None:
            if RECEIPT in given.files and (tuned := tuned_in(given.read_file(RECEIPT))) is not None:
                yield tuned.base.partition("@")[0]
            match = HUB_LABEL.fullmatch(given.label)
            yield match["id"] if match else ""
    files = subject.checkpoint.files
    readme = subject.checkpoint.read_file("README.md") if "README.md" in files else None
    named = read_front_matter(readme, []).get("base_model")
    yield named[0] if isinstance(named, list) and len(named) == 1 else named
    if _ADAPTER in files:
        adapter = json_or_nothing({_ADAPTER: subject.checkpoint.read_file(_ADAPTER)}, _ADAPTER, "")
        yield adapter.get("base_model_name_or_path")
    yield subject.config.get("_name_or_path")


def _is_hub_id(name: object) -> bool:
    return isinstance(name, str) and _HUB_ID.fullmatch(name) is not None and not is_local(name)
