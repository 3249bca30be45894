"""The model card: written from receipts, so that every figure on it was measured and can be looked up.

It is for someone who has never heard of qexport: which file, how to run it, how far it can be trusted, where
it came from. The same receipts give the same card, byte for byte: no dates of today, no counters.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from qexport.formats.gguf.file_name import found_by_tag
from qexport.formats.registry import place_of, words_of
from qexport.publishing.front_matter import front_matter, front_matter_text
from qexport.publishing.gate import unproven
from qexport.publishing.kept import KEEP_END, KEEP_START, Kept
from qexport.receipt.safe_text import MARKDOWN, cell, code, hub_link, template
from qexport.receipt.tables import (
    ACCEPTANCE,
    BESIDE_PLAIN,
    BITS,
    FLIPS,
    IMAGES,
    KLD,
    PREDICTED,
    SAME_TOP1,
    SIZE,
    VERIFIED,
    Column,
    TextTable,
)
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
    models = sorted((a for a in artifacts if a.is_model), key=lambda a: (place_of(a.format), a.size))
    others = [artifact for artifact in artifacts if not artifact.is_model]
    matter = front_matter(artifacts, options)
    bases = matter.get("base_model") or []
    labels = dict.fromkeys(artifact.source.label for artifact in models)
    sources = [
        *map(hub_link, bases if isinstance(bases, list) else [bases]),
        *(() if bases else (code(label) for label in labels if label)),
    ]
    formats = dict.fromkeys(artifact.format for artifact in models)
    towers = [file for a in others if models and a.kind == "mmproj" for file in a.files]
    return template(__package__, "card.md.jinja").render(
        front_matter=front_matter_text(matter),
        title=options.repo.rpartition("/")[2],
        source=" and ".join(sources) or "a model",
        formats="; ".join(cell(words_of(name).readers) for name in formats),
        has_mtp=any(artifact.has_mtp for artifact in models),
        blind=_blind(models, any(a.sees for a in others)),
        models=models,
        unproven=unproven(models),
        keep_start=KEEP_START,
        keep_end=KEEP_END,
        kept=options.kept.text,
        table=file_table(models or others),
        legend=_legend(models),
        matrices=[file for a in others if models and a.kind == "imatrix" for file in a.files],
        towers=towers,
        included=options.included,
        **_commands(models, [file.name for file in towers], options.repo),
        notes=[note for name in formats if (note := words_of(name).note)],
        was_run=WAS_RUN,
        provenance=[fact for fact in facts(artifacts, MARKDOWN) if fact.text != "none"],
        repairs=repairs(artifacts, MARKDOWN),
    )


def file_table(artifacts: Sequence[Artifact]) -> str:
    """A Markdown table, a row for each artifact, a column wherever one of them has a value."""
    return TextTable.of("Files", _COLUMNS, artifacts).markdown


def _file(artifact: Artifact) -> str:
    if artifact.is_file:
        more = f" and {len(artifact.files) - 1} more" if len(artifact.files) > 1 else ""
        return f"[{cell(artifact.name)}](./{quote(artifact.name)}){more}"
    return f"[{cell(artifact.top)}/](./{quote(artifact.top)})" if artifact.top else "this repository"


_COLUMNS = (
    Column("File", _file, markup=True),
    Column("Type", lambda a: a.label),
    *(SIZE, BITS, KLD, PREDICTED, BESIDE_PLAIN, FLIPS, SAME_TOP1, ACCEPTANCE, IMAGES, VERIFIED),
)


def _legend(models: Sequence[Artifact]) -> dict[str, str]:
    """Of the columns that are there."""
    shown = {column.title for column in _COLUMNS}
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


@dataclass(frozen=True)
class Named:
    """An artifact in a shell's words.

    Attributes:
        model: what programs call it.
        fetch: the command that has to come first: a subfolder cannot be named by a Hub id.
        sees: it takes images.
        serve: llama-server's, of a GGUF.
        tower: the file of the vision tower beside it.
    """

    model: str
    fetch: str
    has_mtp: bool
    sees: bool = False
    serve: str = ""
    tower: str = ""


def _commands(models: Sequence[Artifact], towers: Sequence[str], repo: str) -> Mapping[str, Named | None]:
    """The artifact that each program is shown with; ``None``: there is none for it."""
    trunks = [artifact for artifact in models if not artifact.is_drafter]
    candidates = {
        program: [artifact for artifact in trunks if words_of(artifact.format).program == program]
        for program in ("llama_cpp", "mlx_lm", "served")
    }
    candidates["drafter"] = [artifact for artifact in models if artifact.is_drafter]
    files = candidates.pop("llama_cpp")
    folders = {name: _named_folder(found[0], repo) if found else None for name, found in candidates.items()}
    return {"llama_cpp": _named_file(files, repo, towers) if files else None, **folders}


def _named_file(ggufs: Sequence[Artifact], repo: str, towers: Sequence[str]) -> Named:
    chosen = next((a for a in ggufs if a.label == "Q4_K_M"), min(ggufs, key=lambda a: a.size))
    name, where = chosen.name, shlex.quote(repo)
    # Older names, and F16 beside BF16, are not found by their type: such a file is named in full.
    listed = [file.name for artifact in ggufs for file in artifact.files]
    if found_by_tag(listed, chosen.label) == name:
        serve = f"llama-server -hf {shlex.quote(f'{repo}:{chosen.label}')}"
    else:
        serve = f"llama-server -hf {where} --hf-file {shlex.quote(name)}"
    shards = f"--include {shlex.quote(name.rsplit('-00001-of-', 1)[0] + '-*')}"
    what = shlex.quote(name) if len(chosen.files) == 1 else shards
    tower = shlex.quote(towers[0]) if towers else ""
    beside = f" {tower}" if tower and len(chosen.files) == 1 else ""
    fetch = f"hf download {where} {what}{beside} --local-dir ."
    return Named(shlex.quote(name), fetch, chosen.has_mtp, serve=serve, tower=tower)


def _named_folder(artifact: Artifact, repo: str) -> Named:
    where = shlex.quote(repo)
    if not artifact.top:
        return Named(where, "", artifact.has_mtp, artifact.sees)
    fetch = f"hf download {where} --include {shlex.quote(artifact.top + '/*')} --local-dir ."
    return Named(shlex.quote(f"./{artifact.top}"), fetch, artifact.has_mtp, artifact.sees)
