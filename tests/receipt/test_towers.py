"""What was made of pictures is told of the tower that they were shown through, on page and card."""

from __future__ import annotations

from dataclasses import replace

import pytest
from receipts_made import PASSED, artifact, fill, found

from qexport.publishing.card import CardOptions, render_card
from qexport.receipt.state import State
from qexport.receipt.store import receipt_bytes
from qexport.receipt.towers import TOWERS, seen_through
from qexport.receipt.types import Receipt, Source
from qexport.receipt.verification import Check, Status
from qexport.report.gather import gather
from qexport.report.overview import overviews

SOURCE = Source("org/M@0123abcd", vision=True, tower="grafted from org/A@01234567")
OTHER = replace(SOURCE, tower="grafted from org/B@89abcdef")
SEEN = replace(PASSED, findings=(*PASSED.findings, *found(Check.IMAGE_EMBEDDINGS, Check.IMAGE_TEXT)))
WRONG = replace(
    PASSED,
    findings=(*PASSED.findings, *found(Check.IMAGE_TEXT, status=Status.FAIL)),
    said=State.FAILED,
)


def trunk(verification=SEEN, **more):
    return artifact(verification=verification, source=SOURCE, **more)


def tower(source=SOURCE, **more):
    return artifact("mmproj", "mmproj-BF16", "mmproj-BF16.gguf", source=source, **more)


def of_trunk(*both):
    return seen_through(both)[0].verification


@pytest.mark.parametrize(
    ("made", "beside", "same"),
    [
        (trunk(), tower(), True),
        (trunk(), tower(OTHER), False),
        (trunk(details={TOWERS: ["a"]}), tower(fingerprint="a"), True),
        (trunk(details={TOWERS: ["a"]}), tower(fingerprint="b"), False),
        (trunk(), tower(replace(OTHER, label="org/Another@0123abcd")), True),
        (trunk(), artifact("imatrix", "imatrix", "m.gguf", source=OTHER), True),
    ],
)
def test_a_verdict_on_pictures_is_of_the_tower_it_was_made_with(made, beside, same):
    assert of_trunk(made, beside).images.partition(":")[0] == ("passed" if same else "not run")
    assert of_trunk(made, beside).state is State.PASSED


def test_pictures_that_failed_through_another_tower_have_failed_no_more():
    assert of_trunk(trunk(WRONG), tower()).state is State.FAILED
    assert of_trunk(trunk(WRONG), tower(OTHER)).state is State.PASSED
    text = replace(WRONG, findings=(*found(Check.AGREEMENT, status=Status.FAIL), *WRONG.findings[-1:]))
    assert of_trunk(trunk(text), tower(OTHER)).state is State.FAILED


@pytest.mark.parametrize(("beside", "sees"), [(tower(), "passed"), (tower(OTHER), "not run")])
def test_page_and_card_say_so(tmp_path, beside, sees):
    both = (trunk(), beside)
    (fill(tmp_path, *both) / "qexport.json").write_bytes(receipt_bytes(Receipt(both)))
    (card,) = overviews(gather([tmp_path]).models[0])
    proven = sees == "passed"
    assert card.sees == ("sees pictures, proven" if proven else "sees pictures")
    assert card.verdict == ("passed" if proven else "passed, without pictures")
    text = render_card(seen_through(both), CardOptions("bob/M-GGUF"))
    assert ("It was shown pictures" in text) is proven
    assert ("another tower than is here now" in text) is not proven
