"""What of a recipe is on the Hub already, as it would be made today: ``--if-changed``.

The receipt in each repository says from which commit of the source (and of the bases) its artifacts were
made, by which version, and what the recipe asked for (:mod:`qexport.recipe.asked`). A folder has no commit:
what is made of one has always changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qexport import __version__
from qexport.checkpoint.hub_errors import hub_errors
from qexport.errors import UsageProblem
from qexport.formats.registry import FORMATS
from qexport.publishing.remote import Remote, held, look
from qexport.recipe.asked import asked_sha256
from qexport.run.model import Openings, examine
from qexport.run.receipts import source_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.receipt.types import Artifact, Source
    from qexport.recipe.recipe import AskedArtifact, Recipe
    from qexport.recipe.select import Unit


_TIMEOUT = 30.0


@dataclass(frozen=True)
class Standing:
    """How a unit stands on the Hub; ``why`` it has to be made, empty where nothing has changed."""

    unit: Unit
    repo: str
    why: str

    @property
    def changed(self) -> bool:
        """Whether it has to be made."""
        return bool(self.why)


@dataclass
class HubState:
    """What is on the Hub, each repository looked at once.

    Attributes:
        openings: what opens models; each is opened once.
    """

    openings: Openings = field(default_factory=Openings)
    _seen: dict[str, Remote] = field(default_factory=dict)

    def standing(self, recipe: Recipe, units: Sequence[Unit]) -> list[Standing]:
        """Every unit, in order.

        Raises:
            UsageProblem: the recipe names no repositories.
            InputError, EnvironmentProblem: a model cannot be opened, or the Hub cannot be asked.
        """
        if recipe.publish is None:
            raise UsageProblem(
                f"{recipe.label} does not say where to publish, so nothing there can be compared",
                hint="Add publish: with a repo, or leave --if-changed out.",
            )
        found: list[Standing] = []
        for subject in recipe.subjects:
            mine = [unit for unit in units if unit.subject == subject.key]
            if not mine:
                continue
            source = source_of(examine(subject.choice, download=False, opened=self.openings))
            for unit in mine:
                artifact = recipe.artifact(unit.artifact)
                repo = recipe.repo(subject, artifact)
                assert repo is not None
                asked = asked_sha256(recipe, subject, artifact)
                found.append(Standing(unit, repo, self._why(repo, unit, artifact, asked, source)))
        return found

    def _why(self, repo: str, unit: Unit, artifact: AskedArtifact, asked: str, source: Source) -> str:
        if not _at_a_commit(source):
            return "its source is a folder, which has no commit to compare"
        remote = self._remote(repo)
        if remote.sha is None:
            return "there is no such repository yet"
        there = [each for each in remote.artifacts if each.kind == artifact.kind]
        there = [each for each in there if not unit.type or each.label == unit.type]
        if not there:
            return "it is not there"
        made = next((each for each in there if each.asked == asked), None)
        if made is None:
            return "the recipe asks for something else now"
        return self._differs(repo, made, artifact, source)

    def _differs(self, repo: str, made: Artifact, artifact: AskedArtifact, source: Source) -> str:
        if made.tool != __version__:
            return f"it was written by qexport {made.tool}"
        if made.source.revision != source.revision:
            return f"it was made from {made.source.label}, and the source is {source.label}"
        if _bases(made.source) != _bases(source):
            return f"a base is another: {_bases(source)}, not {_bases(made.source)}"
        if not artifact.good_enough(made.state):
            return f"it is not proven ({made.state})"
        remote = self._remote(repo)
        if not held(remote, made):
            return "a file of it is gone, or another"
        lost = [each.label for each in remote.artifacts if not each.is_model and not held(remote, each)]
        if lost:
            return f"{', '.join(lost)} beside it is gone, or another"
        for kind, ending in FORMATS[artifact.kind].beside.items():
            inside = FORMATS[artifact.kind].inside or frozenset()
            apart = set(made.mtp_layouts) - inside - {"none"}
            other = self._remote(f"{repo}{ending}") if apart else None
            if other is not None and not any(
                each.kind == kind and held(other, each) and each.source.revision == source.revision
                for each in other.artifacts
            ):
                return f"{repo}{ending} is not there, or of another source"
        return ""

    def _remote(self, repo: str) -> Remote:
        if repo not in self._seen:
            from huggingface_hub import HfApi

            api = HfApi(library_name="qexport", library_version=__version__)
            with hub_errors(repo, None):
                self._seen[repo] = look(api, repo, None, _TIMEOUT)
        return self._seen[repo]


def _at_a_commit(source: Source) -> bool:
    bases = [base for base in (source.base, source.tower_base) if base]
    return source.revision is not None and all("@" in base for base in bases)


def _bases(source: Source) -> str:
    """Head and tower, with the first digits of their commits; of a tuned head whose it was."""
    head = source.mtp
    if source.tuned is not None:
        head = "own" if source.tuned.base == source.label else f"grafted from {source.tuned.base}"
    return f"MTP head {head or 'none'}, vision {source.tower or 'none'}"
