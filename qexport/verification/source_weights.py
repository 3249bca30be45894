"""Whether what is stored is the source's weights: what rounding explains, and nothing else.

Every matrix is compared, each expert's alone (:mod:`qexport.verification.weight_pairs`).

Artifacts are read by qexport's own readers: what writing and reading have wrong alike is for runtimes, for
other libraries (:mod:`qexport.verification.readers`) and for parity with peers to find.

Whoever rescales a model before quantizing it (AWQ, SmoothQuant) changes its norms along with its matrices:
then products are compared (:mod:`qexport.verification.rescaled`). Of one that was rotated (QuaRot) nothing is
said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from qexport.errors import InputError
from qexport.receipt.store import read_receipt
from qexport.receipt.verification import Check, Status, Verdict
from qexport.sizes import counted
from qexport.verification.judge import skipped
from qexport.verification.rescaled import products
from qexport.verification.weight_pairs import Compared, compare, pairs_of

if TYPE_CHECKING:
    from pathlib import Path

    from qexport.artifacts.artifact import Opened
    from qexport.families.view import ModelView


_NAMED = 20  # faults that a finding lists


def rounded_alone(path: Path) -> bool:
    """Whether the receipt says that the file or folder was made by rounding, without error feedback.

    Of what others made, or adopted folders hold, nobody knows.
    """
    path = path.absolute()
    for folder in (path.parent, path.parent.parent) if path.is_file() else (path, path.parent):
        try:
            read = read_receipt(folder)
        except InputError:
            continue
        inside = path.relative_to(folder).as_posix()
        for made in read.receipt.artifacts:
            if any(file.name == inside or inside in (".", file.name.split("/")[0]) for file in made.files):
                return not {"feedback", "adopted"} & set(made.details)
    return False


def check_weights(artifact: Opened, source: ModelView, *, rounded: bool = True) -> Verdict | None:
    """The finding; ``None`` where the two have no tensor in common.

    Args:
        rounded: whether nothing but rounding was done, and no error feedback.
    """
    try:
        pairs = list(pairs_of(artifact, source))
        found = compare(pairs, rounded=rounded)
        if _rescaled(found):
            arch = artifact.family.arch
            about_one = frozenset() if arch is None else arch.norms_plus_one
            made = products(source, about_one, pairs)
            return judge_weights(found, compare(made, rounded=rounded))
    except InputError as error:
        return skipped(Check.WEIGHTS, error.message)
    return judge_weights(found)


def _rescaled(found: Iterable[Compared]) -> bool:
    """Whether norms and matrices are both others than the source's."""
    return {each.norm for each in found if not each.sound} == {True, False}


def judge_weights(found: list[Compared], products: Sequence[Compared] = ()) -> Verdict | None:
    """The judgement on what was compared.

    Args:
        found: as it is stored.
        products: where norms and matrices are both others, of each matrix the product that rescaling leaves.
    """
    if not found:
        return None
    if not _rescaled(found):
        many = counted(len(found), "matrix is", "matrices are")
        return _judged(found, f"{many} the source's as far as rounding goes")
    others = {each.name for each in found if not each.sound}
    made = sum(each.sound and each.name in others for each in products)
    if made <= sum(not each.sound for each in products):
        words = "norms and matrices are not the source's: turned before it was quantized, or damaged"
        return skipped(Check.WEIGHTS, words, **_data(found))
    words = (
        f"rescaled before it was quantized: with norms and partners, {counted(made, 'matrix', 'matrices')}"
    )
    return _judged(
        products, f"{words} and all others are the source's as far as rounding goes", rescaled=made
    )


def _judged(found: Sequence[Compared], good: str, **more: int) -> Verdict:
    data = _data(found) | more
    if faults := [each for each in found if not each.sound]:
        rest = f" (and {len(faults) - 2} more)" if len(faults) > 2 else ""
        return Verdict(Check.WEIGHTS, Status.FAIL, "; ".join(map(str, faults[:2])) + rest, data)
    most = ", ".join(f"{error:.1%} in {bits} bits" for bits, error in data["error"].items())
    return Verdict(Check.WEIGHTS, Status.PASS, f"{good}, off by at most {most}", data)


def _data(found: Sequence[Compared]) -> dict[str, Any]:
    worst = {bits: max(each.error for each in found if each.bits == bits) for bits in {e.bits for e in found}}
    faults = [str(each) for each in found if not each.sound]
    return {
        "compared": len(found),
        "error": {str(bits): worst[bits] for bits in sorted(worst)},
        "faults": faults[:_NAMED],
    }
