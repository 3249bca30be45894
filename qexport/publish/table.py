"""The table of files in a card: a row for each artifact, a column wherever one of them has a value."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from qexport.receipt.safe_text import cell
from qexport.receipt.text import bits, with_error
from qexport.sizes import size_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qexport.receipt.types import Artifact


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
    if any(artifact.measures.kld or artifact.measures.same_top1 for artifact in artifacts):
        counts = sorted({f"{a.measures.positions:,}" for a in artifacts if a.measures.positions})
        at = f"at {' and '.join(counts)} positions of" if counts else "on"
        lines.append(
            "KL divergence (nats, the mean) and same top-1 compare next-token probabilities with the "
            f"unquantized model's, {at} text that was not calibrated on: a divergence of 0 and a top-1 of "
            "100 % would be no loss. ± is the standard error, from blocks of neighbouring positions."
        )
    if any(artifact.measures.acceptance for artifact in artifacts):
        lines.append(
            "MTP acceptance is the share of tokens drafted by the MTP head, one ahead over the same text, "
            "that are the model's own choice. The text is the same either way; the more is accepted, the "
            "faster it comes."
        )
    if any(artifact.bits_per_weight for artifact in artifacts):
        lines.append("Bits/weight counts stored tensors with their scales; size counts all files.")
    return lines


def _file(artifact: Artifact) -> str:
    first = artifact.files[0].name
    if artifact.kind in ("gguf", "imatrix"):
        more = f" and {len(artifact.files) - 1} more" if len(artifact.files) > 1 else ""
        return f"[{cell(first)}](./{quote(first)}){more}"
    folder = min((file.name.rpartition("/")[0] for file in artifact.files), key=len)
    return f"[{cell(folder)}/](./{quote(folder)})" if folder else "this repository"


# Title, whether it is a number, and the cell of an artifact.
_COLUMNS: tuple[tuple[str, bool, Callable[[Artifact], str]], ...] = (
    ("File", False, _file),
    ("Type", False, lambda a: cell(a.label)),
    ("Size", True, lambda a: size_text(a.size)),
    ("Bits/weight", True, lambda a: bits(a.bits_per_weight)),
    ("KL divergence", True, lambda a: with_error(a.measures.kld.estimate if a.measures.kld else None)),
    ("Same top-1", True, lambda a: with_error(a.measures.same_top1, share=True)),
    ("MTP acceptance", True, lambda a: with_error(a.measures.acceptance, share=True)),
    ("Verified", False, lambda a: a.state.value if a.is_model else ""),
)
