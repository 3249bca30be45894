"""The front matter of a model card, as the Hub reads it.

Keys and their values: https://huggingface.co/docs/hub/model-cards. With ``base_model`` and
``base_model_relation: quantized`` a repository appears among the quantizations of its model;
``library_name`` decides which "use this model" snippet the Hub shows.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from qexport.receipt.kinds import words_of
from qexport.receipt.safe_text import without_hidden
from qexport.receipt.source_card import FROM_SOURCE, plain_card

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qexport.receipt.kinds import FormatWords
    from qexport.receipt.types import Artifact


# The first that is there names the repository: with GGUF files in it, it is a GGUF repository to the Hub.
_LIBRARIES = ("gguf", "mlx", "vllm", "transformers")
_SEEING = re.compile(r"image|video|visual|document|audio|any-to-any", re.IGNORECASE)


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
    bases = [base_model] if base_model else sorted({a.source.hub_id for a in artifacts} - {None}, key=str)
    if bases:
        found["base_model"] = bases[0] if len(bases) == 1 else bases
        found["base_model_relation"] = "quantized"
    known = [words_of(name) for name in dict.fromkeys(artifact.format for artifact in artifacts)]
    if libraries := {each.library for each in known} - {""}:
        found["library_name"] = min(libraries, key=_LIBRARIES.index)
    found["pipeline_tag"] = "text-generation"
    for key in FROM_SOURCE:
        if source.get(key) and (key != "pipeline_tag" or can_do(source[key], artifacts)):
            found[key] = source[key]
    if quantized_by:
        found["quantized_by"] = quantized_by
    tags = kept.get("tags")
    found["tags"] = list(dict.fromkeys([*_tags(artifacts, known), *(tags if isinstance(tags, list) else [])]))
    stays = {key: value for key, value in kept.items() if key not in found and key != "base_model_relation"}
    # A person's licence or language outranks what the source's card said of itself.
    stays |= {key: kept[key] for key in FROM_SOURCE if kept.get(key)}
    return {**found, **stays}


def can_do(task: object, artifacts: Sequence[Artifact]) -> bool:
    """Whether any of the artifacts can do a task of the Hub's: one with images needs a vision tower.

    >>> can_do("text-generation", [])
    True
    """
    return not (isinstance(task, str) and _SEEING.search(task)) or any(each.sees for each in artifacts)


def front_matter_text(values: Mapping[str, Any]) -> str:
    """YAML between two lines of dashes, keys in the order given."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Text of several lines in one, with escapes: no line of it can look like the end of the matter."""

    Dumper.add_representer(
        str,
        lambda dumper, text: dumper.represent_scalar(
            "tag:yaml.org,2002:str", text, style='"' if "\n" in text else None
        ),
    )
    text = yaml.dump(
        _visible(dict(values)),
        Dumper=Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=1000,
    )
    return f"---\n{text}---\n"


def _visible(value: Any) -> Any:
    """The same without characters that nobody sees; lines stay lines."""
    if isinstance(value, dict):
        return {_visible(key): _visible(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_visible(inner) for inner in value]
    return "\n".join(map(without_hidden, value.splitlines())) if isinstance(value, str) else value


def _tags(artifacts: Sequence[Artifact], known: Sequence[FormatWords]) -> list[str]:
    tags = ["quantized", "qexport", *(tag for each in known for tag in each.tags)]
    if any(artifact.format == "imatrix" or artifact.matrix is not None for artifact in artifacts):
        tags.append("imatrix")
    if any(artifact.has_mtp for artifact in artifacts):
        tags += ["mtp", "speculative-decoding"]
    return tags


def _source_card(artifacts: Sequence[Artifact]) -> Mapping[str, Any]:
    """The source's own front matter, where a receipt carries it."""
    cards = (artifact.source.card for artifact in artifacts)
    return next((plain_card(card) for card in cards if card), {})
