"""A first recipe for a model, as text with comments: what ``qexport init`` writes.

Everything in it is what looking at headers has shown: formats that cannot hold the model are left out and
named, sizes are those of plans, and where the MTP head or the tower is lost the ways out stand beside the one
taken.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qexport.checkpoint.front_matter import read_front_matter
from qexport.errors import QexportError
from qexport.formats.format import ATTACHED
from qexport.formats.gguf.file_name import model_stem
from qexport.formats.gguf.file_types import PRESETS
from qexport.formats.gguf.host_paths import holds_host_path
from qexport.formats.registry import FORMATS
from qexport.sizes import size_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from qexport.doctor.diagnose import Diagnosis
    from qexport.doctor.explain import Explanation
    from qexport.recipe.choice import ModelChoice


_SMALL = 4 * 10**9
"""Weights below which a model loses more at four bits than its users like."""
_MLX_BITS = 6
_PLAIN = re.compile(r"[A-Za-z0-9./~][\w./~+-]*", re.ASCII)


@dataclass(frozen=True)
class Looked:
    """A model as it can be exported: what was chosen for it to be so, and what was found."""

    choice: ModelChoice
    diagnosis: Diagnosis


def look_at(choice: ModelChoice, examine: Callable[[ModelChoice], Diagnosis]) -> Looked:
    """The model, without the head or the tower that it declares and has lost where no base is named."""
    diagnosis = examine(choice)
    lost = {part for part in ("mtp", "vision") if any(e.id.startswith(part) for e in diagnosis.errors)}
    if lost and choice.base is None:
        changed: dict[str, Any] = dict.fromkeys(lost, "drop")
        choice = replace(choice, **changed)
        diagnosis = examine(choice)
    return Looked(choice, diagnosis)


def first_recipe(
    looked: Looked, explained: Explanation, model: str, base: str | None = None, owner: str = "you"
) -> str:
    """The text.

    Args:
        model, base: what stands for them in the file.
        owner: of the repositories to publish to.

    Raises:
        InputError: it cannot be exported as it is.
    """
    diagnosis = looked.diagnosis
    diagnosis.repaired.view()
    return "\n".join(
        [
            *_about(explained),
            "",
            *_source(looked.choice, model, base),
            *_towers(looked, explained),
            "",
            "calibration: # text of yours is better than the corpus inside the package: corpus: ./mine.jsonl",
            "  tokens: 131072",
            "",
            *_artifacts(diagnosis, explained),
            "",
            "publish: # qexport run FILE --push; nothing is sent without it",
            f'  repo: "{owner}/{{folder}}"',
            "  private: true # until you have looked",
            "",
        ]
    )


def _about(explained: Explanation) -> list[str]:
    name = model_stem(explained.label)
    said = [f"{explained.family}, {explained.parameters.total / 1e9:.2f}B values"]
    if explained.experts:
        said.append(f"{explained.experts} experts, {explained.experts_per_token} per token")
    return [
        f"# {name}: {', '.join(said)}. Made by `qexport init` from the model's headers.",
        "# Every key: docs/recipes.md. What it would write, and how long that takes: `qexport run FILE "
        "--dry-run`.",
    ]


def _source(choice: ModelChoice, model: str, base: str | None) -> list[str]:
    lines = _place("source:", model, choice.revision)
    name = model_stem(model)
    if (plain := _for_the_hub(name)) != name:
        lines.append(f'  name: "{plain}" # of {name}, what the Hub takes in the name of a repository')
    if base is not None:
        taken = "base: # head and tower are taken of it where the model has lost them"
        lines += ["", *_place(taken, base, choice.base_revision)]
    return lines


def _for_the_hub(name: str) -> str:
    """A name that may stand in a repository's, with what formats put behind it.

    >>> _for_the_hub("tunéd--9B+"), _for_the_hub("模型")
    ('tuned-9B', 'model')
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^\w.-]+|[-.]{2,}", "-", plain).strip("-._")[:64].rstrip("-.") or "model"


def _place(key: str, model: str, revision: str | None) -> list[str]:
    lines = [key, f"  model: {_quoted(model)}"]
    return lines if revision is None else [*lines, f"  revision: {_quoted(revision)}"]


def _towers(looked: Looked, explained: Explanation) -> Iterator[str]:
    repaired, choice = looked.diagnosis.repaired, looked.choice
    base = _base_of(looked.diagnosis) or "org/Base"
    if choice.mtp == "drop":
        yield from (
            "",
            "mtp:",
            "  # The model declares an MTP head and has none: merging usually loses it. With the base's:",
            f"  #   mode: graft, and base: {base}",
            "  mode: drop",
        )
    elif repaired.mtp_layers:
        yield from (
            "",
            f"mtp: # {repaired.mtp_layers} layer, {repaired.mtp_origin}; tune fits it to the model",
            "  mode: auto",
        )
    if choice.vision == "drop":
        yield from (
            "",
            "vision:",
            "  # The model declares a vision tower and has none. With the base's:",
            f"  #   mode: graft, and base: {base}",
            "  mode: drop",
        )
    elif explained.parameters.vision:
        yield from ("", f"vision: # {repaired.vision_origin}; drop writes the text-only form", "  mode: auto")


def _base_of(diagnosis: Diagnosis) -> str | None:
    """What the model's card calls its base."""
    named = read_front_matter(diagnosis.repaired.files.get("README.md"), []).get("base_model")
    first = named[0] if isinstance(named, list) and named else named
    return first if isinstance(first, str) and not holds_host_path(first) else None


def _quoted(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _artifacts(diagnosis: Diagnosis, explained: Explanation) -> Iterator[str]:
    yield "artifacts:"
    small = explained.parameters.trunk < _SMALL
    types = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M") if small else PRESETS["standard"]
    asked: dict[str, dict[str, Any]] = {"gguf": {"types": types}, "mlx": {"bits": _MLX_BITS}}
    for word, kind in FORMATS.items():
        options = kind.options(**asked.get(word, {}))
        try:
            plans = [plan for plan in kind.plan(diagnosis, options) if plan.kind not in ATTACHED]
        except QexportError as error:
            yield f"  # not {word}: {error.message.splitlines()[0]}"
            continue
        sizes = [size_text(plan.size) for plan in plans]
        if word == "merged":
            yield "  # - merged: # the repaired checkpoint, unquantized, " + sizes[0]
            continue
        yield from _ENTRIES[word](types, sizes)


def _gguf(types: Sequence[str], sizes: Sequence[str]) -> list[str]:
    listed = ", ".join(types)
    return ["  - gguf:", f"      types: [{listed}] # {', '.join(sizes)}"]


def _mlx(_: Sequence[str], sizes: Sequence[str]) -> list[str]:
    head = f", and {sizes[1]} of the MTP head in a folder beside it" if len(sizes) > 1 else ""
    return ["  - mlx:", f"      bits: {_MLX_BITS} # {sizes[0]}{head}"]


def _fp8(_: Sequence[str], sizes: Sequence[str]) -> list[str]:
    return [f"  - fp8: # {sizes[0]}, tiles of 128 as the official Qwen repositories have them"]


def _nvfp4(_: Sequence[str], sizes: Sequence[str]) -> list[str]:
    return [
        f"  - nvfp4: # {sizes[0]}",
        "    unverified: allow # run here by a GGUF twin, where the disk has room",
    ]


_ENTRIES = {"gguf": _gguf, "mlx": _mlx, "fp8": _fp8, "nvfp4": _nvfp4}
