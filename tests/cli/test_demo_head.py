"""`qexport demo --tune-head`: what the merged model is asked, and what the run is then told of its head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from in_process import run as command

from qexport.demo import MODEL
from qexport.headtune.folder import RECEIPT
from qexport.headtune.options import TuneOptions
from qexport.receipt.state import State
from qexport.run import job, own_text


class Artifact:
    """As far as the demo looks at one."""

    state, attached = State.PASSED, False


@pytest.mark.parametrize("wanted", [True, False])
def test_the_head_is_tuned_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    out, asked, recipes = tmp_path / "out", [], []
    figures = {"value": 0.5, "error": 0.1}
    ways = {key: {"value": 3.8, "error": None} for key in ("argmax", "own", "sampled")}
    row = {"positions": 9, "acceptance": [figures] * 4, "tokens_per_verification": ways}
    document = {"result": "kept", "reason": "no better", "before": {"all": row}, "after": {"all": row}}

    def written(choice: Any, request: Any, _: Any) -> dict[str, Any]:
        asked.append((choice, request))
        return {}

    def ran(recipe: Any, local: Any, _: Any) -> Any:
        recipes.append(recipe)
        (local.out / "Demo-Tuned-head").mkdir()
        (local.out / "Demo-Tuned-head" / RECEIPT).write_text(json.dumps(document))
        return type("Outcome", (), {"artifacts": [Artifact()], "report": None, "models": ()})()

    monkeypatch.setattr(own_text, "own_text", written)
    monkeypatch.setattr(job, "run", ran)
    found = command("demo", "-o", out, *(["--tune-head"] if wanted else []))
    assert found.code == 0, found.stderr
    (subject,) = recipes[0].subjects
    assert (subject.choice.mtp, subject.choice.mtp_from) == ("graft", str(MODEL))
    if not wanted:
        assert (asked, subject.tuning) == ([], None)
        return
    ((choice, request),) = asked
    assert choice.model == str(out / "Demo-Tuned")
    assert subject.tuning.text == request.out
    rows = [json.loads(line) for line in request.prompts.read_text().splitlines()]
    assert len({row["messages"][0]["content"] for row in rows}) == len(rows) > 50
    assert subject.tuning.options != TuneOptions()
    assert "50.0 ± 10.0" in found.stdout
    assert "has the old head; no better" in found.stdout
