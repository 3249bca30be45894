"""The front matter of a model card, as the Hub reads it.

Keys and their values: https://huggingface.co/docs/hub/model-cards. With ``base_model`` and
``base_model_relation: quantized`` a repository appears among the quantizations of its model;
``library_name`` decides which "use this model" snippet the Hub shows.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from qexport.checkpoint.front_matter import read_front_matter
from qexport.formats.gguf.host_paths import holds_host_path
from qexport.publish.artifacts import mapping

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qexport.publish.artifacts import Artifact

__all__ = ["front_matter", "front_matter_text", "hub_id", "source_card"]

# The first kind that is there names the library: a folder with GGUF files is a GGUF repository to the Hub.
_LIBRARIES = (
    ("gguf", "gguf"),
    ("mlx", "mlx"),
    ("nvfp4", "vllm"),
    ("fp8", "transformers"),
    ("merged", "transformers"),
)
_KIND_TAGS = {
    "gguf": ("gguf", "llama.cpp"),
    "mlx": ("mlx",),
    "fp8": ("fp8", "vllm", "sglang"),
    "nvfp4": ("nvfp4", "vllm", "sglang"),
}
_FROM_SOURCE = ("license", "license_name", "license_link", "language", "pipeline_tag")
_HUB_LABEL = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)@[0-9a-f]{8}")


def front_matter(
    artifacts: Sequence[Artifact],
    *,
    base_model: str | None,
    quantized_by: str | None,
    kept: Mapping[str, Any],
) -> dict[str, Any]:
    """The front matter: what the receipts say, then what stood in the earlier card.

    Args:
        base_model: the Hub id of the model that was exported; from the receipts where it is ``None``.
        quantized_by: the account to name.
        kept: of the earlier card; its keys stay where nothing is said here, and its tags are kept, too.
    """
    source = _source_card(artifacts)
    found: dict[str, Any] = {}
    bases = [base_model] if base_model else sorted({hub_id(a) for a in artifacts} - {None}, key=str)
    if bases:
        found["base_model"] = bases[0] if len(bases) == 1 else bases
        found["base_model_relation"] = "quantized"
    kinds = [artifact.kind.partition("-")[0] for artifact in artifacts]
    library = next((name for kind, name in _LIBRARIES if kind in kinds), None)
    if library is not None:
        found["library_name"] = library
    found["pipeline_tag"] = "text-generation"
    for key in _FROM_SOURCE:
        if source.get(key):
            found[key] = source[key]
    if quantized_by:
        found["quantized_by"] = quantized_by
    tags = kept.get("tags")
    found["tags"] = list(dict.fromkeys([*_tags(artifacts, kinds), *(tags if isinstance(tags, list) else [])]))
    stays = {key: value for key, value in kept.items() if key not in found and key != "base_model_relation"}
    # A person's licence or language outranks what the source's card said of itself.
    stays |= {key: kept[key] for key in _FROM_SOURCE if kept.get(key)}
    return {**found, **stays}


def front_matter_text(values: Mapping[str, Any]) -> str:
    """YAML between two lines of dashes, keys in the order given."""
    import yaml

    text = yaml.safe_dump(
        dict(values), sort_keys=False, allow_unicode=True, default_flow_style=False, width=1000
    )
    return f"---\n{text}---\n"


def source_card(readme: bytes | None) -> dict[str, Any]:
    """What a receipt carries of the source's own card: licence, language and task, as plain JSON."""
    found = read_front_matter(readme, [])
    return {key: found[key] for key in _FROM_SOURCE if _is_plain(found.get(key))}


def hub_id(artifact: Artifact) -> str | None:
    """The Hub id that an artifact was exported from; ``None`` for a folder.

    A receipt labels a Hub source ``org/name@`` and the first digits of the commit.
    """
    match = _HUB_LABEL.fullmatch(str(mapping(artifact.entry.get("source")).get("label")))
    return match["id"] if match else None


def _is_plain(value: object) -> bool:
    """A word or a list of words, none of them a path of the machine that made the source."""
    words = value if isinstance(value, list) else [value]
    return bool(words) and all(isinstance(w, str) and w and not holds_host_path(w) for w in words)


def _tags(artifacts: Sequence[Artifact], kinds: Sequence[str]) -> list[str]:
    tags = ["quantized", "qexport"]
    for kind in dict.fromkeys(kinds):
        tags += _KIND_TAGS.get(kind, ())
    if any(
        a.kind == "imatrix" or mapping(a.entry.get("details")).get("importance_matrix") for a in artifacts
    ):
        tags.append("imatrix")
    if any(artifact.has_mtp for artifact in artifacts):
        tags += ["mtp", "speculative-decoding"]
    return tags


def _source_card(artifacts: Sequence[Artifact]) -> Mapping[str, Any]:
    """The source's own front matter, where a receipt carries it."""
    cards = (mapping(mapping(a.entry.get("source")).get("card")) for a in artifacts)
    return next((card for card in cards if card), {})
