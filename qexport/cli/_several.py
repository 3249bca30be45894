"""Running recipes: a single one, or one after the other with a table in the end."""

from __future__ import annotations

import gc
import traceback
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qexport.cli._output import Gathered
from qexport.cli._recipe import hub_state, only_changed, problem_of
from qexport.cli._terminal import put
from qexport.errors import QexportError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.cli._output import Output
    from qexport.recipe.several import Chosen
    from qexport.run.changed import HubState
    from qexport.run.local import Local
    from qexport.run.outcome import Outcome


_UNCHANGED = "unchanged"
_NOT_RUN = "not run"


@dataclass(frozen=True)
class Ended:
    """How one of several recipes ended.

    Attributes:
        state: that of its worst artifact, ``failed`` with any error, ``unchanged``, or ``not run``.
        artifacts: how many it made, or found.
        documents: one for each model, as a single recipe prints them.
    """

    name: str
    state: str
    artifacts: int = 0
    error: QexportError | None = None
    documents: Sequence[Any] = ()

    def to_json(self) -> dict[str, Any]:
        """As in the list that ``--json`` prints."""
        error = self.error
        return {
            "recipe": self.name,
            "state": self.state,
            "exit_code": 0 if error is None else int(error.exit_code),
            "error": None if error is None else error.message,
            "hint": None if error is None else error.hint,
            "models": list(self.documents),
        }


def run_all(output: Output, given: dict[str, Any], local: Local) -> None:
    """Run every recipe that was named.

    Raises:
        QexportError: of a single recipe its own; of several one for all that ended with one.
    """
    from qexport.recipe.several import Refused, choose
    from qexport.run.model import Openings

    paths = given["recipe_paths"]
    chosen, refused = choose(paths, given["overrides"], given["only"])
    if refused and (len(paths) == 1 or given["fail_fast"]):
        raise refused[0].error
    for one in refused:
        output.say(f"{one.name}: {one.error.message}")
    if given["measure"] is not None:
        chosen = [replace(each, recipe=replace(each.recipe, measure=given["measure"])) for each in chosen]
    state = hub_state(Openings()) if given["if_changed"] else None
    if len(paths) == 1:
        _run_one(output, given, local, chosen[0], state)
        return
    ended = [Ended(each.name, "failed", error=each.error) for each in refused]
    for each in chosen:
        if given["fail_fast"] and any(one.error for one in ended):
            ended.append(Ended(each.name, _NOT_RUN))
            continue
        output.title(f"\n{each.name}")
        ended.append(_ended(output, local, each, state))
        gc.collect()  # the next model needs the memory of this one
    output.document([each.to_json() for each in ended])
    rows = [[each.name, str(each.artifacts or "-"), each.state, _line(each.error)] for each in ended]
    output.table(("recipe", "artifacts", "verdict", "why"), rows)
    failed = [Refused(each.name, each.error) for each in ended if each.error is not None]
    if (error := problem_of(failed)) is not None:
        raise error


def _run_one(
    output: Output, given: dict[str, Any], local: Local, chosen: Chosen, state: HubState | None
) -> None:
    gathered = Gathered(output)
    outcome = _outcome(gathered, local, chosen, state)
    output.document(gathered.documents)
    if outcome is None:
        output.text("Nothing has changed; nothing was made.")
        return
    outcome.raise_problem()
    if chosen.recipe.publish and not given["pushing"]:
        output.next("push", given["out"] or ".", "--recipe", chosen.words, "--dry-run")


def _outcome(output: Output, local: Local, chosen: Chosen, state: HubState | None) -> Outcome | None:
    """What became of it; ``None``: the Hub has all of it."""
    from qexport.run.job import run

    if state is not None:
        chosen = only_changed(output, state, chosen)
        if not chosen.units:
            return None
    return run(chosen.recipe, local, output, chosen.units)


def _ended(output: Output, local: Local, chosen: Chosen, state: HubState | None) -> Ended:
    """Run it in a folder of its own; whatever happens is an answer."""
    from qexport.receipt.state import worst

    gathered = Gathered(output)
    assert local.out is not None
    try:
        outcome = _outcome(gathered, replace(local, out=local.out / chosen.name), chosen, state)
    except QexportError as error:
        return Ended(chosen.name, "failed", error=_said(error), documents=gathered.documents)
    except Exception as error:  # noqa: BLE001 a defect in one is no reason to leave out the others
        return Ended(chosen.name, "failed", error=_said(_defect(error)), documents=gathered.documents)
    if outcome is None:
        return Ended(chosen.name, _UNCHANGED)
    made, problem = outcome.artifacts, outcome.problem
    verdict = worst(item.state for item in made).value if problem is None else "failed"
    if problem is not None:
        _said(problem)
    return Ended(chosen.name, verdict, len(made), problem, gathered.documents)


def _said(error: QexportError) -> QexportError:
    put(f"Error: {error}", err=True)
    return error


def _defect(error: Exception) -> QexportError:
    from qexport.cli.main import of_the_machine

    known = of_the_machine(error)
    if known is not None:
        return known
    put("".join(traceback.format_exception(error)), err=True, nl=False)
    return QexportError(f"a defect of qexport: {type(error).__name__}: {error}")


def _line(error: QexportError | None) -> str:
    return "" if error is None else error.message.splitlines()[0]
