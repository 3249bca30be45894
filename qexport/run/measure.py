"""Every artifact of a model against its source over one held-out text, in one engine for all formats.

The source is sent through once, each artifact once, a layer in memory at a time. What comes out is how far
the predictions are from the source's, and how often the MTP head guesses what its trunk then says, with the
source's own head beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from qexport.artifacts.input_scales import input_scales
from qexport.errors import EnvironmentProblem, InputError
from qexport.formats.opening import open_artifact
from qexport.receipt.measures import Measures
from qexport.receipt.verification import Check, Status, Verdict
from qexport.verification.comparison import compare
from qexport.verification.divergence import NotFinite
from qexport.verification.judge import skipped
from qexport.verification.options import MEASURED_TOKENS
from qexport.verification.text_run import COMPARED, DRAFTED, heldout_text, run_text, scored

if TYPE_CHECKING:
    from pathlib import Path

    from qexport.families.view import ModelView
    from qexport.receipt.verification import Verification
    from qexport.verification.text_run import TextRun


_CHUNK = 512


class Measure:
    """The source's side of all comparisons, made when the first artifact asks for it."""

    def __init__(self, view: ModelView, tokens: int, say: Callable[[str], None], stack: ExitStack) -> None:
        self._view = view
        self._count = tokens
        self._say = say
        self._stack = stack
        self._run: TextRun | None = None

    def add_to(self, report: Verification, path: Path, *, headless: bool = False) -> Verification:
        """The report with what was measured of the artifact at ``path``, or why nothing was.

        Args:
            headless: it was asked for without the MTP head that the source has.
        """
        try:
            artifact = open_artifact(path, like=self._view)
            run = self._source()
            self._say(f"{report.artifact}: measuring against the source, layer by layer")
            found = compare(run, artifact.view(), run.text, inputs=input_scales(artifact))
        except NotFinite as error:
            return _with(report, Verdict(Check.DIVERGENCE, Status.FAIL, error.message))
        except (EnvironmentProblem, InputError) as error:
            return _with(report, skipped(Check.DIVERGENCE, error.message))
        findings = found.findings(headless=headless)
        for finding in findings:
            words = f"{finding.check.value}: {finding.status.value}: {finding.summary}"
            self._say(f"{report.artifact}: {words}")
        return replace(_with(report, *findings), measures=found.measures(report.measures))

    def _source(self) -> TextRun:
        if self._run is None:
            chunk = min(_CHUNK, self._count, int(self._view.text.get("max_position_embeddings") or _CHUNK))
            text = heldout_text(self._view, tokens=self._count, chunk=chunk)
            tokens, more = (text.ids[text.part(each)] for each in (COMPARED, DRAFTED))
            of_heads = f"; {more.size} more for the MTP head" if more.size else ""
            self._say(
                f"measuring: {tokens.size} held-out tokens ({scored(tokens)} positions are scored{of_heads}) "
                f"through {self._view.label}, layer by layer"
            )
            self._run = self._stack.enter_context(run_text(self._view, text))
        return self._run


def head_report(report: Verification, trunk: Verification) -> Verification:
    """The report on a head in a folder of its own: what was found of the head when its trunk was measured."""
    found, shown = trunk.finding(Check.MTP_HEAD), trunk.measures
    mine = Measures(
        head=shown.head,
        source_head=shown.source_head,
        drafts=shown.drafts,
        acceptance=shown.acceptance,
        source_acceptance=shown.source_acceptance,
    )
    return replace(report, findings=() if found is None else (found,), measures=mine)


def _with(report: Verification, *findings: Verdict) -> Verification:
    order = list(Check)
    every = (*report.findings, *findings)
    return replace(report, findings=tuple(sorted(every, key=lambda finding: order.index(finding.check))))


@contextmanager
def measuring(
    view: ModelView, say: Callable[[str], None], *, tokens: int = MEASURED_TOKENS
) -> Iterator[Measure]:
    """A :class:`Measure` whose states in memory or on disk last as long as the context."""
    with ExitStack() as stack:
        yield Measure(view, tokens, say, stack)
