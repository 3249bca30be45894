"""The model card: written from receipts, so that every figure on it was measured and can be looked up.

It is for someone who has never heard of qexport: which file, how to run it, how far it can be trusted, where
it came from. The same receipts give the same card, byte for byte: no dates of today, no counters.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qexport.formats.registry import FORMATS, place_of, words_of
from qexport.publishing.commands import Named, commands
from qexport.publishing.front_matter import front_matter, front_matter_text
from qexport.publishing.gate import unproven
from qexport.publishing.kept import KEEP_END, KEEP_START, Kept
from qexport.publishing.tables import (
    choice_table,
    draft_table,
    figure_table,
    file_table,
    part_table,
    speed_table,
)
from qexport.receipt.about import SAMPLING
from qexport.receipt.choosing import contexts, options_of, tokens_text
from qexport.receipt.plainly import outcome, plainly
from qexport.receipt.safe_text import MARKDOWN, cell, code, fenced, hub_link, template
from qexport.receipt.text import listed
from qexport.receipt.verification import Status
from qexport.receipt.words import WAS_RUN, facts, glossary, repairs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qexport.receipt.tables import TextTable
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
        drafter: the repository with the MTP head, where that is one of its own.
    """

    repo: str
    base_model: str | None = None
    quantized_by: str | None = None
    kept: Kept = field(default_factory=Kept)
    included: tuple[str, ...] = ()
    front_matter: Mapping[str, Any] = field(default_factory=dict)
    drafter: str = ""


def render_card(artifacts: Sequence[Artifact], options: CardOptions) -> str:
    """The text of README.md. ``artifacts`` are all that the repository will hold, in table order."""
    models = sorted((a for a in artifacts if a.is_model), key=lambda a: (place_of(a.format), a.size))
    others = [artifact for artifact in artifacts if not artifact.is_model]
    matter = front_matter(artifacts, options)
    formats = dict.fromkeys(artifact.format for artifact in models)
    towers = [file for a in others if models and a.kind == "mmproj" for file in a.files]
    heads = [file for a in others if models and a.kind == "mtp" for file in a.files]
    found = options_of(artifacts)
    beside = [[file.name for file in files] for files in (towers, heads)]
    named = commands(models, beside[0], beside[1], options.repo)
    figures = figure_table(models)
    proven = [artifact for artifact in models if artifact.verification]
    about = next((a.source.about for a in models), None)
    return template(__package__, "card.md.jinja").render(
        front_matter=front_matter_text(matter),
        title=options.repo.rpartition("/")[2],
        noun="Exports" if list(formats) in ([], ["merged"]) else "Quantized versions",
        source=_sources(models, options),
        base=about.base if about and options.base_model != about.base else "",
        description=about.description if about else "",
        formats="; ".join(cell(words_of(name).readers) for name in formats),
        has_mtp=bool(heads) or any(artifact.has_mtp for artifact in models),
        blind=_blind(models, any(a.sees for a in others)),
        models=models,
        unproven=unproven(models),
        keep_start=KEEP_START,
        keep_end=KEEP_END,
        kept=options.kept.text,
        chosen=choice_table(found),
        least=tokens_text(min(contexts(found), default=0)),
        has_files=any(each.artifact.format == "gguf" for each in found),
        table=file_table(models or others, found),
        needs=listed([tokens_text(length) for length in contexts(found)]),
        figures=figures,
        legend=_legend(figures, models),
        matrices=[file for a in others if models and a.kind == "imatrix" for file in a.files],
        towers=towers,
        heads=heads,
        included=[name for name in options.included if name != _PICTURE],
        picture=_PICTURE in options.included,
        repo=options.repo,
        **named,
        **_pulled(named["llama_cpp"], options.repo),
        beside=options.drafter if not named["drafter"] and named["mlx_lm"] else "",
        trunk=_trunk(options.repo) if named["drafter"] else "",
        mlx_flags=_flags(about.sampling if about else {}),
        notes=[note for name in formats if (note := words_of(name).note)],
        drafts=draft_table(models),
        speeds=speed_table(models),
        machine=next((str(a.bench.machine) for a in models if a.bench), ""),
        sampling=_sampling(about.sampling) if about else "",
        chat=about.chat if about else None,
        prompt=fenced(about.chat.prompt) if about else "",
        parts=part_table(models),
        was_run=WAS_RUN,
        proofs=[(artifact, plainly(artifact.verification)) for artifact in proven if artifact.verification],
        marks=_MARKS,
        outcome=outcome,
        provenance=[fact for fact in facts(artifacts, MARKDOWN) if fact.text != "none"],
        repairs=repairs(artifacts, MARKDOWN),
    )


def _legend(figures: TextTable, models: Sequence[Artifact]) -> dict[str, str]:
    """Of the columns that are there."""
    shown = {column.title for column in figures.columns}
    return {name: words for name, words in glossary(models).items() if name in shown}


def _blind(models: Sequence[Artifact], towers: bool) -> str:
    """Where the vision tower of the source is not; ``towers``: GGUF files have theirs beside them."""
    had = [artifact for artifact in models if artifact.source.vision and not artifact.is_drafter]
    blind = [a for a in had if not (a.sees or (towers and a.format == "gguf"))]
    if not blind or len(blind) == len(had):
        return "here" if blind else ""
    seeing = {artifact.format for artifact in had if artifact not in blind}
    without = dict.fromkeys(cell(a.label) if a.format in seeing else words_of(a.format).name for a in blind)
    return f"in the {' and '.join(without)} files"


_PICTURE = "report.png"  # of `qexport report --png`
_MARKS = {Status.PASS: "✓", Status.FAIL: "✗ failed:", Status.SKIPPED: "– not checked:"}
_MLX_FLAGS = {"temperature": "--temp", "top_k": "--top-k", "top_p": "--top-p", "min_p": "--min-p"}


def _sources(models: Sequence[Artifact], options: CardOptions) -> str:
    """What was exported, as links where it is on the Hub."""
    own = {artifact.source.hub_id for artifact in models if artifact.source.hub_id}
    ids = [options.base_model] if options.base_model else sorted(own)
    labels = dict.fromkeys(code(artifact.source.label) for artifact in models if artifact.source.label)
    return " and ".join(map(hub_link, ids)) or " and ".join(labels) or "a model"


def _sampling(values: Mapping[str, float]) -> str:
    return ", ".join(f"`{key}` {values[key]:g}" for key in SAMPLING if key in values)


def _flags(values: Mapping[str, float]) -> str:
    """As options of mlx-lm, which does not look into the files."""
    return "".join(f" {flag} {values[key]:g}" for key, flag in _MLX_FLAGS.items() if key in values)


def _pulled(file: Named | None, repo: str) -> dict[str, str]:
    """The arguments of programs that take a repository and a type."""
    tag = file.tag if file else ""
    return {
        "ollama": shlex.quote(f"hf.co/{repo}:{tag}"),
        "lmstudio": shlex.quote(f"https://huggingface.co/{repo}@{tag.lower()}"),
    }


def _trunk(repo: str) -> str:
    """The repository of the model that a head drafts for, by the name that a push gives the head's."""
    endings = (ending for known in FORMATS.values() for ending in known.beside.values())
    return next((repo.removesuffix(ending) for ending in endings if repo.endswith(ending)), "")
