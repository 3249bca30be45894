"""A tokenizer whose class and file differ: a note on the source, and no failure of what was exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from verify_fakes import FakeRuntime, FakeSession, generation, write_llama

from qexport.checkpoint.local import LocalCheckpoint
from qexport.doctor import diagnose
from qexport.families.view import ModelView
from qexport.receipt.verification import Check, Status, Verdict
from qexport.verification.options import VerifyOptions
from qexport.verification.prompts import Probe, ids_by_file, probes
from qexport.verification.run import verify
from qexport.verification.source_tokenizer import ids_by_class

DROP = object()
CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "legacy false": ("llama", {"legacy": False}, True),
    "legacy absent": ("llama", {"legacy": DROP}, True),
    # A blank in front stays one: the class adds none to it, the file does.
    "legacy true": ("llama", {"legacy": True}, True),
    "no space in front": ("llama", {"add_prefix_space": False}, True),
    "a class that takes the file": ("llama", {"tokenizer_class": "PreTrainedTokenizerFast"}, False),
    "gemma": ("gemma3", {}, False),
    "qwen2": ("qwen2", {}, False),
    "llama 3": ("llama3", {}, False),
}


@pytest.fixture
def source(zoo_copy: Callable[..., Path]) -> Callable[[str], Path]:
    def get(case: str) -> Path:
        name, changes, _ = CASES[case]
        folder = zoo_copy(name)
        path = folder / "tokenizer_config.json"
        settings = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in settings.items() if value is not DROP}))
        return folder

    return get


def view_of(folder: Path) -> ModelView:
    return diagnose(LocalCheckpoint(folder)).repaired.view()


@pytest.mark.parametrize("case", CASES)
def test_class_against_file_is_said_of_the_source(source: Callable[[str], Path], case: str) -> None:
    found = {finding.id: finding for finding in diagnose(LocalCheckpoint(source(case))).findings}
    assert ("tokenizer.split_rule" in found) is CASES[case][2]
    if CASES[case][2]:
        assert found["tokenizer.split_rule"].severity == "note"
        assert "LlamaTokenizer" in found["tokenizer.split_rule"].what


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_it_is_what_transformers_does(source: Callable[[str], Path], case: str) -> None:
    pytest.importorskip("transformers")
    view = view_of(source(case))
    asked = [probe for probe in probes(view.files) if not probe.prompt]
    assert (ids_by_class(view, asked) != ids_by_file(view.files, asked)) is CASES[case][2]


class Cutting(FakeSession):
    """A runtime with a tokenizer: what it cuts, and what it makes of the source's."""

    mine: Callable[[str, bool], list[int]]
    theirs: Callable[[str, bool], list[int]] | None

    def tokenize(self, text: str, *, add_special: bool) -> tuple[int, ...]:
        return tuple(self.mine(text, add_special))

    def source_ids(
        self, folder: Path, texts: list[str], *, add_special: bool
    ) -> list[tuple[int, ...]] | None:
        assert (folder / "tokenizer.json").is_file()
        assert (folder / "config.json").is_file()
        return None if self.theirs is None else [tuple(self.theirs(text, add_special)) for text in texts]


class CuttingRuntime(FakeRuntime):
    def open(self, model: Path, settings: object) -> Cutting:
        session = Cutting([generation(range(24)), generation(range(30, 54)), generation()])
        session.mine, session.theirs = self.mine, self.theirs
        return session


def tokens(tmp_path: Path, view: ModelView, mine: Any, theirs: Any) -> Verdict:
    runtime = CuttingRuntime()
    runtime.mine, runtime.theirs = mine, theirs
    path = write_llama(tmp_path / "tiny.gguf")
    report = verify(path, view=view, runtime=runtime, options=VerifyOptions(reference=False))
    found = report.finding(Check.TOKENS)
    assert found is not None
    return found


def cutter(view: ModelView, **changes: Any) -> Callable[[str, bool], list[int]]:
    document = {**json.loads(view.files["tokenizer.json"]), **changes}
    tokenizer = Tokenizer.from_str(json.dumps(document))
    return lambda text, special: list(tokenizer.encode(text, add_special_tokens=special).ids)


def test_the_source_in_the_same_library_is_the_judge(source: Callable[[str], Path], tmp_path: Path) -> None:
    view = view_of(source("legacy false"))
    by_file = cutter(view)
    by_class = cutter(view, normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"})
    same = tokens(tmp_path, view, by_class, by_class)
    assert same.status is Status.PASS
    assert "than its tokenizer.json" in same.summary
    assert same.data["class_differs"] > 0
    assert tokens(tmp_path, view, by_file, by_class).status is Status.FAIL
    assert tokens(tmp_path, view, by_file, None).status is Status.PASS
    plain = tokens(tmp_path, view, by_file, by_file)
    assert (plain.status, "class" in plain.summary) == (Status.PASS, False)


@pytest.mark.slow
def test_a_runtime_without_a_library_may_follow_the_settings(
    source: Callable[[str], Path], tmp_path: Path
) -> None:
    """llama.cpp with add_space_prefix, which comes from the settings and not from the file."""
    pytest.importorskip("transformers")
    view = view_of(source("no space in front"))
    by_class = cutter(view, normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"})
    assert tokens(tmp_path, view, by_class, None).status is Status.PASS
    assert tokens(tmp_path, view, lambda text, _: [len(text)], None).status is Status.FAIL


def test_what_is_put_around_a_prompt_is_compared(source: Callable[[str], Path], tmp_path: Path) -> None:
    view = view_of(source("legacy true"))
    found = tokens(tmp_path, view, lambda text, _: cutter(view)(text, False), None)
    assert found.status is Status.FAIL  # a prompt without its <s>
    assert Probe("def fibonacci(n):\n    ", prompt=True) in probes(view.files)
