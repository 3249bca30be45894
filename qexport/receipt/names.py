"""Files about artifacts. A push writes them anew; what lies in a folder under these names is not sent."""

from __future__ import annotations

RECEIPT_NAME = "qexport.json"
CARD_NAME = "README.md"
SUMS_NAME = "SHA256SUMS"
LARGEST_INPUTS = "largest_inputs"
"""In the details of a W4A4 artifact: by canonical name, the largest inputs that its scales were made of
(:mod:`qexport.receipt.largest_inputs`)."""
_MADE_HERE = frozenset((CARD_NAME, SUMS_NAME, RECEIPT_NAME))


def is_made_here(name: str) -> bool:
    """Whether a file of this name, in any folder, is a card, a list of sums or a receipt.

    >>> is_made_here("drafter/README.md"), is_made_here("config.json")
    (True, False)
    """
    return name.rsplit("/", 1)[-1] in _MADE_HERE
