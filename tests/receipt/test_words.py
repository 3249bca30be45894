"""Card and report say the same of an artifact: one sentence for its outcome, one for where it came from."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import takewhile

import pytest
from receipts_made import FULL, PASSED, artifact, fill, found, report

from qexport.publishing.card import CardOptions, render_card
from qexport.receipt.store import receipt_bytes
from qexport.receipt.types import Artifact, Gate, Receipt
from qexport.receipt.verification import Check, Status
from qexport.report import write_report

SKIPPED = report(*found(Check.AGREEMENT), *found(Check.MTP_LOADS, status=Status.SKIPPED))
FAILED = report(*found(Check.AGREEMENT, status=Status.FAIL))
BROKEN = Gate("a", "max_mean_kld", 0.1)
NOT_KEPT = "limits not kept: mean KL divergence, at most 0.1 nats"


def texts(folder, *made: Artifact) -> tuple[str, str, str]:
    """Card, report in Markdown, report in HTML."""
    (fill(folder, *made) / "qexport.json").write_bytes(receipt_bytes(Receipt(made)))
    paths = write_report([folder], folder / "out")
    card = render_card(made, CardOptions("bob/M-GGUF"))
    return card, paths.markdown.read_text(), paths.html.read_text()


def column(markdown: str, title: str) -> list[str]:
    """Of the first table that has it."""
    lines = markdown.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("|") and f"| {title} |" in line)
    rows = [line.strip("|").split("|") for line in takewhile(lambda line: line.startswith("|"), lines[at:])]
    return [row[rows[0].index(f" {title} ")].strip() for row in rows[2:]]


@pytest.mark.parametrize(
    ("verification", "gates", "words"),
    [
        (PASSED, (), "passed"),
        (SKIPPED, (), "passed, without drafting"),
        (
            SKIPPED,
            (BROKEN,),
            "passed, without drafting; limits not kept: mean KL divergence, at most 0.1 nats",
        ),
        (FAILED, (), "failed: comparing answers"),
        (report(), (), "ran, not compared"),
        (None, (), "not run"),
    ],
)
def test_one_sentence_says_how_it_ended(tmp_path, verification, gates, words):
    made = artifact(verification=verification, gates=gates)
    card, markdown, html = texts(tmp_path, made)
    assert column(card, "Verified") == column(markdown, "Verified") == [words]
    assert f">{words}<" in html
    summaries = re.findall(r"</b>: (.*?)</summary>", card)
    assert summaries == ([words] if verification else [])


def test_one_sentence_says_where_it_came_from(tmp_path):
    grafted = replace(FULL, source=replace(FULL.source, mtp="grafted from org/Base@01234567"))
    card, markdown, _ = texts(tmp_path, grafted)
    listed = [line.removeprefix("- ") for line in card.split("## Provenance")[1].splitlines() if "- " in line]
    card_facts = [re.sub(r"`|\[(.*?)\]\(.*?\)", r"\1", line) for line in listed]
    told = markdown.split("### Where it came from")[1].split("###")[0]
    facts = re.findall(r"^- \*\*(.*?)\*\*(: .*)$", told, re.MULTILINE)
    assert card_facts == [what + text for what, text in facts]
    assert len(facts) == 5
    assert card_facts[0] == f"Source: org/M on the Hugging Face Hub, commit {'0' * 40}, 9 B of weights"
    assert card_facts[2] == "Calibration: importance matrix m.gguf, from calib, 512 tokens"


def test_one_sentence_says_what_a_figure_means(tmp_path):
    card, markdown, html = texts(tmp_path, replace(FULL, verification=PASSED))
    legend = card.split("## Files")[1].split("</details>")[0]
    terms = re.findall(r"^- (.*?): (.*)$", legend, re.MULTILINE)
    assert [term for term, _ in terms] == ["KL divergence", "Same top-1", "Bits/weight"]
    for term, words in terms:
        assert f"- **{term}**: {words}\n" in markdown
        assert term in html
    assert "the mean at 1,020 positions of a text that nothing was calibrated on" in terms[0][1]
