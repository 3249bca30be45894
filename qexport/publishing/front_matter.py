"""The front matter of a model card, as the Hub reads it.

Keys and their values: https://huggingface.co/docs/hub/model-cards. With ``base_model`` and
``base_model_relation: quantized`` a repository appears among the quantizations of its model;
``library_name`` decides which "use this model" snippet the Hub shows.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from qexport.formats.registry import place_of, words_of
from qexport.receipt.safe_text import without_hidden
from qexport.receipt.source_card import FROM_SOURCE, plain_card

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qexport.formats.format import Words
    from qexport.publishing.card import CardOptions
    from qexport.receipt.types import Artifact


_ANY = "transformers"
"""The library of a repository that has no other: with GGUF files in it, the Hub takes it for GGUF's."""
_SEEING = re.compile(r"image|video|visual|document|audio|any-to-any", re.IGNORECASE)


def front_matter(artifacts: Sequence[Artifact], options: CardOptions) -> dict[str, Any]:
    """What the receipts say, then what a person has said: in the earlier card, and in a recipe, later.

    A person's licence, language or task outranks what the source's card said of itself, and tags add up; the
    other keys of theirs stay where nothing is said here.
    """
    source = next((plain_card(a.source.card) for a in artifacts if a.source.card), {})
    bases = [options.base_model] if options.base_model else _sources(artifacts)
    formats = dict.fromkeys(artifact.format for artifact in artifacts)
    known = [words_of(name) for name in formats]
    libraries = [words_of(name).library for name in sorted(formats, key=place_of)]
    libraries = sorted(filter(None, libraries), key=lambda name: name == _ANY)
    # A task may be one that what was written cannot do, even in an earlier card: that was not always asked.
    earlier = dict(options.kept.front_matter)
    source, earlier = (
        {key: value for key, value in card.items() if key != "pipeline_tag" or can_do(value, artifacts)}
        for card in (source, earlier)
    )
    said = {**earlier, **options.front_matter}
    tags = [card.get("tags") for card in (earlier, options.front_matter)]
    found: dict[str, Any] = {}
    if bases:
        found["base_model"] = bases[0] if len(bases) == 1 else bases
        found["base_model_relation"] = "quantized"
    elif tuned := next((a.source.about.base for a in artifacts if a.source.about.base), ""):
        # What was exported is on no Hub: then these are what has become of the model that it was tuned from.
        found["base_model"] = tuned
        found["base_model_relation"] = "finetune"
    if libraries:
        found["library_name"] = libraries[0]
    found["pipeline_tag"] = "text-generation"
    found |= {key: source[key] for key in FROM_SOURCE if source.get(key)}
    if by := options.quantized_by or options.repo.rpartition("/")[0]:
        found["quantized_by"] = by
    own = [tag for given in tags if isinstance(given, list) for tag in given]
    found["tags"] = list(dict.fromkeys([*_tags(artifacts, known), *own]))
    rest = {key: value for key, value in said.items() if key not in found and key != "base_model_relation"}
    return {**found, **rest, **{key: said[key] for key in FROM_SOURCE if said.get(key)}}


def _sources(artifacts: Sequence[Artifact]) -> list[str]:
    return sorted({artifact.source.hub_id for artifact in artifacts if artifact.source.hub_id})


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


def _tags(artifacts: Sequence[Artifact], known: Sequence[Words]) -> list[str]:
    tags = ["quantized", "qexport", *(tag for each in known for tag in each.tags)]
    if any(artifact.format == "imatrix" or artifact.matrix is not None for artifact in artifacts):
        tags.append("imatrix")
    if any(artifact.has_mtp or artifact.kind == "mtp" for artifact in artifacts):
        tags += ["mtp", "speculative-decoding"]
    return tags
