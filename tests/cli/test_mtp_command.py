"""`qexport mtp`: what its commands print, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
from document_types import misfits
from head_texts import ids_file, tiny
from in_process import names, ok, run
from zoo_types import Zoo

from qexport.cli._documents import ScoreDocument

_OUT = {"score": (), "tune": ("-o", "head")}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return ids_file(tmp_path / "ids.jsonl", 8, 80, 200, domain="ids")


def test_a_head_is_scored(zoo: Zoo, text: Path, tmp_path: Path) -> None:
    trunk, base = tiny(zoo, mtp=False), tiny(zoo)
    given = ("mtp", "score", trunk, "--mtp-from", base, "--text", text, "--chunk", 32)
    document = ok(*given, "--precision", "float32", "--threads", 1, "--json").json()
    assert misfits(ScoreDocument, document) == []
    assert document["head"] == f"grafted from {base.name}"
    assert document["text"]["documents"] == 8
    assert set(document["domains"]) == {"all", "ids"}
    assert 0 <= document["domains"]["all"]["acceptance"][3]["value"] <= 1
    assert document["domains"]["all"]["tokens_per_verification"]["n_max"] == 3
    planned = ok(*given, "--dry-run", "--json").json()
    assert misfits(ScoreDocument, planned) == []
    assert planned["text"]["tokens"] == 640
    assert names(tmp_path) == {"ids.jsonl"}


def test_what_cannot_be_scored_or_tuned_is_refused(zoo: Zoo, text: Path, tmp_path: Path) -> None:
    none = run("mtp", "score", tiny(zoo, mtp=False), "--text", text)
    assert none.code == 3
    assert "--mtp-from BASE" in none.stderr
    (tmp_path / "empty.jsonl").touch()
    for each in ("score", "tune"):  # whatever is wrong with the text, too
        bad = run("mtp", each, tiny(zoo, mtp=False), "--text", tmp_path / "empty.jsonl", *_OUT[each])
        assert (bad.code, "has no MTP head" in bad.stderr) == (3, True), bad.stderr
    (tmp_path / "empty.jsonl").unlink()
    few = run("mtp", "tune", tiny(zoo), "--text", text, "--generic", 0, "-o", tmp_path / "head")
    assert few.code == 3
    assert "at least 8192 are needed" in few.stderr
    both = run("mtp", "generate", tiny(zoo), "--server", "http://x", "--gguf", text, "-o", tmp_path / "own")
    assert both.code == 2
    assert names(tmp_path) == {"ids.jsonl"}
