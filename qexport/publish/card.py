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
from qexport.publish.running import how_to_run
from qexport.receipt.kinds import place, words_of
from qexport.receipt.safe_text import MARKDOWN, cell, code, hub_link, template
from qexport.receipt.state import State
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
    open_ = unproven(models)
    return template(__package__, "card.md.jinja").render(
        front_matter=front_matter_text(matter),
        title=title,
        intro=_intro(models, matter),
        unproven=open_,
        warning=_warning(open_, models),
        keep_start=KEEP_START,
        keep_end=KEEP_END,
        kept=options.kept.text,
        table=file_table(models or others),
        advice=_advice(models),
        legend=_legend(models),
        others=_others(others if models else [], options.included),
        how_to=how_to_run(models, options.repo),
        verification_intro=_verification_intro(models),
        reports=[artifact for artifact in models if artifact.verification],
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


def _intro(models: Sequence[Artifact], matter: dict[str, Any]) -> str:
    kinds = dict.fromkeys(a.format for a in models)
    formats = [cell(words_of(kind).readers) for kind in kinds]
    base = matter.get("base_model")
    names = base if isinstance(base, list) else [base] if base else []
    of = " and ".join(map(hub_link, names)) or _labels(models)
    listed = "; ".join(formats)
    head = (
        " The model's MTP head (multi-token prediction, for faster generation) is included."
        if any(a.has_mtp for a in models)
        else ""
    )
    return f"Exports of {of}, made with qexport: {listed}.{head}{_blind(models)}"


def _blind(models: Sequence[Artifact]) -> str:
    """That the vision tower of the source is not in some of them."""
    had = [a for a in models if a.source.vision and not a.is_drafter]
    without = dict.fromkeys(a.format.upper() for a in had if not a.sees)
    if not without:
        return ""
    which = "here" if not any(a.sees for a in models) else f"in the {' and '.join(without)} files"
    return f" The model's vision tower is not {which}: they take text alone, no images."


def _labels(models: Sequence[Artifact]) -> str:
    labels = dict.fromkeys(a.source.label for a in models)
    return " and ".join(code(label) for label in labels if label) or "a model"


def _advice(models: Sequence[Artifact]) -> str:
    if sum(artifact.kind == "gguf" for artifact in models) < 2:
        return ""
    return (
        "A larger file is closer to the original. Take the largest that fits into your GPU's memory (or the "
        "computer's), with a few GB to spare for the context."
    )


def _warning(open_: Sequence[Artifact], models: Sequence[Artifact]) -> str:
    if len(open_) == len(models):
        return (
            "Nothing here has passed verification."
            if len(models) > 1
            else "This has not passed verification."
        )
    return f"{len(open_)} of {len(models)} exports here have not passed verification:"


def _others(others: Sequence[Artifact], included: Sequence[str]) -> list[str]:
    lines = [
        f"{code(file.name)}: the importance matrix that the quantization was weighted with; "
        "`llama-quantize --imatrix` reads it."
        for artifact in others
        for file in artifact.files
        if artifact.kind == "imatrix"
    ]
    return [*lines, *map(code, included)]


def _verification_intro(models: Sequence[Artifact]) -> str:
    if all(artifact.state is State.NOT_RUN for artifact in models):
        return "None of these files has been run by the tool that wrote them."
    ran = all(artifact.state is not State.NOT_RUN for artifact in models)
    every = "Each export" if ran else "What is not marked as not run"
    return f"{every} {WAS_RUN}"
