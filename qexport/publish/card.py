"""The model card: written from receipts, so that every figure on it was measured and can be looked up.

It is for someone who has never heard of qexport: which file, how to run it, how far it can be trusted, where
it came from. The same receipts give the same card, byte for byte: no dates of today, no counters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from qexport.publish.front_matter import can_do, front_matter, front_matter_text
from qexport.publish.gate import unproven
from qexport.publish.kept import KEEP_END, KEEP_START, Kept
from qexport.publish.running import commands
from qexport.receipt.kinds import place, words_of
from qexport.receipt.safe_text import MARKDOWN, cell, code, hub_link, template
from qexport.receipt.tables import ACCEPTANCE, BITS, KLD, SAME_TOP1, SIZE, VERIFIED, Column, Table
from qexport.receipt.words import WAS_RUN, facts, glossary, repairs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qexport.receipt.types import Artifact


@dataclass(frozen=True)
class CardOptions:
    """What the receipts cannot know.

    Attributes:
        repo: where the card will stand, ``org/name``.
        base_model: Hub id of the exported model; from the receipts where not given.
        quantized_by: whom to name; the repository's owner where not given.
        kept: what an earlier card keeps.
        included: names of further files that are published beside the artifacts.
        front_matter: what outranks the receipts: license, language, task; tags are added.
    """

    repo: str
    base_model: str | None = None
    quantized_by: str | None = None
    kept: Kept = field(default_factory=Kept)
    included: tuple[str, ...] = ()
    front_matter: Mapping[str, Any] = field(default_factory=dict)


def render_card(artifacts: Sequence[Artifact], options: CardOptions) -> str:
    """The text of README.md. ``artifacts`` are all that the repository will hold, in table order."""
    owner, _, title = options.repo.rpartition("/")
    models = sorted((a for a in artifacts if a.is_model), key=lambda a: (place(a.format), a.size))
    others = [artifact for artifact in artifacts if not artifact.is_model]
    matter = front_matter(
        artifacts,
        base_model=options.base_model,
        quantized_by=options.quantized_by or owner or None,
        kept=_asked(options, artifacts),
    )
    bases = matter.get("base_model", [])
    labels = dict.fromkeys(artifact.source.label for artifact in models)
    sources = [
        *map(hub_link, bases if isinstance(bases, list) else [bases]),
        *(() if bases else (code(label) for label in labels if label)),
    ]
    formats = dict.fromkeys(artifact.format for artifact in models)
    return template(__package__, "card.md.jinja").render(
        front_matter=front_matter_text(matter),
        title=title,
        source=" and ".join(sources) or "a model",
        formats="; ".join(cell(words_of(name).readers) for name in formats),
        has_mtp=any(artifact.has_mtp for artifact in models),
        blind=_blind(models),
        models=models,
        unproven=unproven(models),
        keep_start=KEEP_START,
        keep_end=KEEP_END,
        kept=options.kept.text,
        table=file_table(models or others),
        legend=_legend(models),
        matrices=[file for a in others if models and a.kind == "imatrix" for file in a.files],
        included=options.included,
        **commands(models, options.repo),
        was_run=WAS_RUN,
        provenance=[fact for fact in facts(artifacts, MARKDOWN) if fact.text != "none"],
        repairs=repairs(artifacts, MARKDOWN),
    )


def _asked(options: CardOptions, artifacts: Sequence[Artifact]) -> dict[str, Any]:
    """What a person has said: in the earlier card, and in a recipe, which is the later word. Tags add up.

    An earlier card may have its task from the source, from a version that did not ask whether it can be done.
    """
    earlier, given = dict(options.kept.front_matter), options.front_matter
    if not can_do(earlier.get("pipeline_tag"), artifacts):
        del earlier["pipeline_tag"]
    both = [tag for part in (earlier, given) if isinstance(part.get("tags"), list) for tag in part["tags"]]
    return {**earlier, **given, **({"tags": both} if both else {})}


def file_table(artifacts: Sequence[Artifact]) -> str:
    """A Markdown table, a row for each artifact, a column wherever one of them has a value."""
    return Table.of("Files", _COLUMNS, artifacts).markdown


def _file(artifact: Artifact) -> str:
    if artifact.kind in ("gguf", "imatrix"):
        more = f" and {len(artifact.files) - 1} more" if len(artifact.files) > 1 else ""
        return f"[{cell(artifact.name)}](./{quote(artifact.name)}){more}"
    return f"[{cell(artifact.top)}/](./{quote(artifact.top)})" if artifact.top else "this repository"


_COLUMNS = (
    Column("File", _file, markup=True),
    Column("Type", lambda a: a.label),
    *(SIZE, BITS, KLD, SAME_TOP1, ACCEPTANCE, VERIFIED),
)


def _legend(models: Sequence[Artifact]) -> dict[str, str]:
    """Of the columns that are there."""
    shown = {column.title for column in _COLUMNS}
    return {name: words for name, words in glossary(models).items() if name in shown}


def _blind(models: Sequence[Artifact]) -> str:
    """Where the vision tower of the source is not."""
    had = [artifact for artifact in models if artifact.source.vision and not artifact.is_drafter]
    without = dict.fromkeys(words_of(artifact.format).name for artifact in had if not artifact.sees)
    if not without or not any(artifact.sees for artifact in models):
        return "here" if without else ""
    return f"in the {' and '.join(without)} files"
