"""``general.*``: what the model is called, where it comes from, how to sample from it.

Most of it is guessed, by the rules of llama.cpp's ``gguf.Metadata``
(https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/metadata.py): the model card's front matter
first, then the config's ``_name_or_path``, then the folder's name, each filling what is still missing.
Those heuristics are called, not rewritten; sources are cleared of host paths before they see them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexport.checkpoint.front_matter import read_front_matter
from qexport.container.gguf_write import KV, ValueType, array, f32, i32, string, u32
from qexport.families.view import ModelView
from qexport.formats.gguf.host_paths import holds_host_path, is_local


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of values in the GGUF's tensors; ``expert`` counts one expert per tensor."""

    total: int
    shared: int
    expert: int = 0
    experts: int = 0

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> ParameterCounts:
        """Counts from GGUF tensor names and shapes (torch order), extra tensors included."""
        total = shared = expert = expert_sum = expert_tensors = 0
        for name, shape in shapes.items():
            size = 1
            for n in shape:
                size *= n
            total += size
            if "_exps." in name and len(shape) >= 3:
                count = shape[-2 if ".bias" in name else -3]
                expert += size // count
                expert_sum += count
                expert_tensors += 1
            else:
                shared += size
        return cls(total, shared, expert, expert_sum // expert_tensors if expert_tensors else 0)


@dataclass(frozen=True)
class GeneralOptions:
    """What the user says about the model; everything said here wins over what is guessed."""

    name: str | None = None
    author: str | None = None
    version: str | None = None
    organization: str | None = None
    finetune: str | None = None
    basename: str | None = None
    description: str | None = None
    quantized_by: str | None = None
    size_label: str | None = None
    url: str | None = None
    repo_url: str | None = None


# generation_config.json's names for each sampling parameter, the first that is there counts.
_SAMPLING: tuple[tuple[str, tuple[str, ...], Callable[[Any], KV]], ...] = (
    ("sequence", ("sequence",), string),
    ("top_k", ("top_k",), i32),
    ("top_p", ("top_p",), f32),
    ("min_p", ("min_p",), f32),
    ("xtc_probability", ("xtc_probability",), f32),
    ("xtc_threshold", ("xtc_threshold",), f32),
    ("temp", ("temperature",), f32),
    ("penalty_last_n", ("penalty_last_n",), i32),
    ("penalty_repeat", ("penalty_repeat", "repetition_penalty"), f32),
    ("mirostat", ("mirostat",), i32),
    ("mirostat_tau", ("mirostat_tau",), f32),
    ("mirostat_eta", ("mirostat_eta",), f32),
)

# Key after "general.", attribute of gguf.Metadata; in the order in which the converter writes them.
_TEXTS = (
    ("name", "name"),
    ("author", "author"),
    ("version", "version"),
    ("organization", "organization"),
    ("finetune", "finetune"),
    ("basename", "basename"),
    ("description", "description"),
    ("quantized_by", "quantized_by"),
    ("size_label", "size_label"),
    ("license", "license"),
    ("license.name", "license_name"),
    ("license.link", "license_link"),
    ("url", "url"),
    ("doi", "doi"),
    ("uuid", "uuid"),
    ("repo_url", "repo_url"),
    ("source.url", "source_url"),
    ("source.doi", "source_doi"),
    ("source.uuid", "source_uuid"),
    ("source.repo_url", "source_repo_url"),
)
_ENTRY_KEYS = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")
_CARD_NAMES = ("base_model", "base_models", "base_model_sources", "datasets", "dataset", "dataset_sources")


def general_metadata(
    view: ModelView, arch: str, counts: ParameterCounts, options: GeneralOptions, notes: list[str]
) -> dict[str, KV]:
    """Every ``general.*`` key but ``file_type`` and ``quantization_version``."""
    from gguf.metadata import Metadata
    from gguf.utility import size_label

    front_matter = read_front_matter(view.files.get("README.md"), [])  # the doctor notes what is wrong
    card = _cleared_card(front_matter, notes)
    config = dict(view.config)
    known_as = config.get("_name_or_path")
    if isinstance(known_as, str) and known_as and is_local(known_as):
        notes.append("config.json's _name_or_path is a local path: not used")
        del config["_name_or_path"]
    elif not known_as and "/" in view.label and not is_local(view.label):
        config["_name_or_path"] = view.label  # a Hub id says the organisation, which a folder's name does not
    folder = Path(view.label.rstrip("/").rsplit("/", 1)[-1])
    found = Metadata.apply_metadata_heuristic(Metadata(), card, config, folder, counts.total)

    for name, value in vars(options).items():
        if value is not None:
            setattr(found, name, value)
    if found.name is None:
        found.name = folder.name
    if found.size_label is None and counts.total > 0:
        found.size_label = size_label(counts.total, counts.shared, counts.expert, counts.experts)
    if isinstance(found.license, list):
        found.license = ",".join(map(str, found.license))

    result = {"general.architecture": string(arch), "general.type": string("model")}
    result.update(_sampling(view.files.get("generation_config.json"), notes))
    for key, attribute in _TEXTS:
        value = getattr(found, attribute)
        if value not in (None, ""):
            _put_text(result, f"general.{key}", value, notes)
    for kind, entries in (("base_model", found.base_models), ("dataset", found.datasets)):
        if entries is None:
            continue
        result[f"general.{kind}.count"] = u32(len(entries))
        for n, entry in enumerate(entries):
            for key in _ENTRY_KEYS:
                if entry.get(key):
                    _put_text(result, f"general.{kind}.{n}.{key}", entry[key], notes)
    for key in ("tags", "languages"):
        values = [str(value) for value in getattr(found, key) or [] if value is not None]
        if values:
            result[f"general.{key}"] = array(ValueType.STRING, values)
    return result


def _put_text(result: dict[str, KV], key: str, value: object, notes: list[str]) -> None:
    text = str(value)
    if holds_host_path(text):
        notes.append(f"{key} holds a path of some machine: left out")
    else:
        result[key] = string(text)


def _sampling(data: bytes | None, notes: list[str]) -> dict[str, KV]:
    """Recommended sampling parameters; llama.cpp's tools take them as defaults."""
    result: dict[str, KV] = {}
    try:
        config = json.loads(data) if data else {}
    except ValueError:
        notes.append("generation_config.json is not valid JSON: no sampling parameters written")
        return result
    for key, names, make in _SAMPLING:
        value = next((config[name] for name in names if name in config), None)
        if value is None or (make is string and not value):
            continue
        try:
            result[f"general.sampling.{key}"] = make(value)
        except (TypeError, ValueError):
            notes.append(f"generation_config.json: {names[0]} is {value!r}, which is no number: left out")
    return result


def _cleared_card(card: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """The card's front matter without local paths."""
    card = dict(card)
    for key in _CARD_NAMES:
        if key not in card:
            continue
        values = card[key] if isinstance(card[key], list) else [card[key]]
        kept = [value for value in values if not _names_a_path(value)]
        if len(kept) != len(values):
            notes.append(f"README.md's {key} is a local path: left out")
        if kept:
            card[key] = kept
        else:
            del card[key]
    if isinstance(card.get("tags"), list):
        # PEFT writes base_model:adapter:<path>.
        kept_tags = [tag for tag in card["tags"] if not is_local(str(tag).rsplit(":", 1)[-1])]
        if len(kept_tags) != len(card["tags"]):
            notes.append("README.md's tags name a local path: left out")
        card["tags"] = kept_tags
    return card


def _names_a_path(value: object) -> bool:
    if isinstance(value, str):
        return is_local(value)
    if isinstance(value, Mapping):
        return any(isinstance(v, str) and holds_host_path(v) for v in value.values())
    return False
