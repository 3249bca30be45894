"""The table of files in a card: a row for each artifact, a column wherever one of them has a value."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from qexport.publish.artifacts import Proof
from qexport.publish.figures import acceptance, measure, number
from qexport.publish.safe_text import cell
from qexport.sizes import size_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qexport.publish.artifacts import Artifact

__all__ = ["file_table", "legend"]

_MARKS = {Proof.PASSED: "yes", Proof.FAILED: "**failed**", Proof.MISSING: "**no**", Proof.NOT_NEEDED: ""}


def file_table(artifacts: Sequence[Artifact]) -> str:
    """A Markdown table; columns without any value are left out."""
    rows = [[value(artifact) for _, _, value in _COLUMNS] for artifact in artifacts]
    shown = [at for at in range(len(_COLUMNS)) if any(row[at] for row in rows)]
    head = "| " + " | ".join(_COLUMNS[at][0] for at in shown) + " |"
    line = "|" + "|".join("---:" if _COLUMNS[at][1] else "---" for at in shown) + "|"
    body = ["| " + " | ".join(row[at] for at in shown) + " |" for row in rows]
    return "\n".join([head, line, *body])


def legend(artifacts: Sequence[Artifact]) -> list[str]:
    """What the figures mean, for those that are there."""
    lines = []
    if any(measure(a, "kld") is not None or measure(a, "same_top1") is not None for a in artifacts):
        lines.append(
            "KL divergence and same top-1 compare next-token probabilities with the unquantized model's, on "
            "text that was not calibrated on: a divergence of 0 and a top-1 of 100 % would be no loss."
        )
    if any(acceptance(a) is not None for a in artifacts):
        lines.append(
            "MTP acceptance is the share of tokens drafted by the MTP head that the model then accepts. The "
            "text is the same either way; the more is accepted, the faster it comes."
        )
    if any(measure(a, "tok_s") is not None for a in artifacts):
        lines.append(
            "Tokens/s is one short run on the machine that made the export, without MTP: only rows compare."
        )
    return lines


def _file(artifact: Artifact) -> str:
    first = artifact.files[0].name
    if artifact.kind in ("gguf", "imatrix"):
        more = f" and {len(artifact.files) - 1} more" if len(artifact.files) > 1 else ""
        return f"[{cell(first)}](./{quote(first)}){more}"
    folder = min((file.name.rpartition("/")[0] for file in artifact.files), key=len)
    return f"[{cell(folder)}/](./{quote(folder)})" if folder else "this repository"


def _bits(artifact: Artifact) -> str:
    bits = number(artifact.entry.get("bits_per_weight"))
    return f"{bits:.2f}" if bits else ""


def _kld(artifact: Artifact) -> str:
    value = measure(artifact, "kld")
    return "" if value is None else f"{value:.3g}" if value >= 0.1 else f"{value:.5f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _speed(artifact: Artifact) -> str:
    value = measure(artifact, "tok_s")
    return "" if value is None else f"{value:.1f}"


# Title, whether it is a number, and the cell of an artifact.
_COLUMNS: tuple[tuple[str, bool, Callable[[Artifact], str]], ...] = (
    ("File", False, _file),
    ("Type", False, lambda a: cell(a.label)),
    ("Size", True, lambda a: size_text(a.size)),
    ("Bits/weight", True, _bits),
    ("KL divergence", True, _kld),
    ("Same top-1", True, lambda a: _share(measure(a, "same_top1"))),
    ("MTP acceptance", True, lambda a: _share(acceptance(a))),
    ("Tokens/s", True, _speed),
    ("Verified", False, lambda a: _MARKS[a.proof]),
)
