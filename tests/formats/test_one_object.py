"""A format that only this test knows: one object, registered, goes all the way; no table asks for more."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from zoo_types import Zoo

sys.path.append(str(Path(__file__).parents[1] / "verify"))
from verify_fakes import FakeReference, FakeRuntime, generation

from qexport.artifacts.forms import Form
from qexport.artifacts.layout import Asked, Promise
from qexport.checkpoint.local import LocalCheckpoint
from qexport.doctor import diagnose
from qexport.formats.format import Format, Proof, Words
from qexport.formats.hf import hf_layout
from qexport.formats.merged.plan import plan_merged
from qexport.formats.opening import open_artifact
from qexport.formats.registry import FORMATS, format_of, place_of, tolerance
from qexport.formats.tolerance import FIVE_BITS
from qexport.onepass.execute import execute
from qexport.publishing.card import CardOptions, render_card
from qexport.receipt.folder import known_in
from qexport.receipt.store import write_receipt
from qexport.receipt.verification import Check, Status
from qexport.report.gather import gather
from qexport.report.write import write_report
from qexport.run.rates import guessed_core_seconds
from qexport.run.receipts import entry_for
from qexport.verification.choose import can_judge, choose_runtime
from qexport.verification.options import VerifyOptions
from qexport.verification.run import verify
from qexport.verification.stored_form import check_stored_form

PACKAGE = Path(__file__).parents[2] / "qexport"


@dataclass(frozen=True)
class ToyOptions:
    """``lies``: the config promises what is not stored."""

    lies: bool = False


def plan_toy(diagnosis, options, types):
    plan = plan_merged(diagnosis.repaired)
    files = []
    for file in plan.files:
        if file.name == "config.json":
            config = json.loads(file.header)
            config["quantization_config"] = {"quant_method": "toy", "lies": options.lies}
            data = json.dumps(config).encode()
            file = replace(file, size=len(data), header=data)
        files.append(file)
    return (replace(plan, kind="toy", files=tuple(files)),)


def promises(artifact):
    def promise(asked: Asked) -> Promise:
        return Form("fp8", 8, per="row") if artifact.details["quantization"]["lies"] else None

    return promise


LAYOUT = hf_layout(
    "toy",
    methods=("toy",),
    stored_type=lambda _: "TOY5",
    promises=promises,
    here="toybox",
    served=("vllm",),
    unfit=lambda folder: "toybox has no experts" if folder.experts else None,
    title="toys",
)
TOY = Format(
    word="toy",
    options=ToyOptions,
    plan=plan_toy,
    folder=lambda _: "{name}-Toy",
    bits=lambda _, __: 5.0,
    proof=Proof("toybox", "toys"),
    layouts=lambda: (LAYOUT,),
    layout_word=lambda _: "toy",
    words=Words(
        name="TOY",
        readers="TOY, for the nursery",
        library="toybox",
        tags=("wooden",),
        program="served",
        note="Wind it up first.",
        mark="M0,0H1V1Z",
        colours=("#010203", "#040506"),
    ),
    tolerances={"TOY.*": FIVE_BITS},
    rates={"TOY": (2.0, 1.0)},
)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "toy", TOY)  # the line in registry.py


def test_a_format_is_a_package_and_a_line(zoo: Zoo, tmp_path: Path) -> None:
    diagnosis = diagnose(LocalCheckpoint(zoo("llama")))
    options, out = ToyOptions(), tmp_path / "Model-Toy"
    (plan,) = format_of(options).plan(diagnosis, options, ())
    (written,) = execute([plan], out, threads=1)

    artifact = open_artifact(out)
    assert artifact.layout is TOY.layout(options)
    assert {tensor.name for tensor in artifact.view()} == {
        tensor.name for tensor in diagnosis.repaired.view()
    }
    assert {finding.status for finding in check_stored_form(artifact)} == {Status.PASS}

    assert tolerance("TOY5") is FIVE_BITS
    assert guessed_core_seconds(2e6, "TOY5", weighted=False) == 1.0
    assert can_judge("vllm", artifact) is None
    assert can_judge("transformers", artifact) == "transformers does not read toys"
    named = choose_runtime(artifact, VerifyOptions(runtime_python=tmp_path / "python"))
    assert not isinstance(named, str)
    assert named.name == "vllm"
    runtime = FakeRuntime([generation(range(24)), generation(range(30, 54))])
    report = verify(out, view=None, runtime=runtime, reference=FakeReference())
    assert report.passed
    assert (report.file_type, report.finding(Check.FILE).data["kind"]) == ("TOY5", "toy")

    write_receipt(out, [entry_for(diagnosis, plan, written, report, {})], pytest.fail)
    known = known_in(out).artifacts
    assert [(each.format, each.is_file, each.sees) for each in known] == [("toy", False, False)]
    card = render_card(known, CardOptions(repo="org/Toys"))
    for words in (
        "TOY, for the nursery",
        "library_name: toybox",
        "- wooden",
        "vllm serve",
        "Wind it up first.",
    ):
        assert words in card
    assert place_of("toy") == len(FORMATS) - 1
    (model,) = gather([out]).models
    assert [each.format for each in model.artifacts] == ["toy"]
    page = write_report([out], tmp_path).html.read_text()
    assert ".toy { --colour: #010203; }" in page


def test_what_it_promises_is_held_against_what_is_stored(zoo: Zoo, tmp_path: Path) -> None:
    diagnosis = diagnose(LocalCheckpoint(zoo("llama")))
    (plan,) = TOY.plan(diagnosis, ToyOptions(lies=True), ())
    execute([plan], tmp_path / "out", threads=1)
    found = {each.check: each for each in check_stored_form(open_artifact(tmp_path / "out"))}
    assert found[Check.DECLARED].status is Status.FAIL
    assert "the config promises fp8, a scale per row" in found[Check.DECLARED].summary


# --- no table of formats but the registry's ---------------------------------------------------------------

ALLOWED = {
    "cli/main.py": "what each command is for, said before any format is imported",
    "recipe/first.py": "what a first recipe asks for, as the shipped ones do",
    "verification/libraries.py": "kinds of packed numbers, of which two are called like formats",
}
"""Modules that name several formats in one place, and why. A format's own facts stand in its package."""


def tables(tree: ast.AST, words: frozenset[str]) -> Iterator[set[str]]:
    """Displays (tuples, lists, sets, keys of dicts) that name two formats or more."""
    for node in ast.walk(tree):
        match node:
            case ast.Tuple(elts=named) | ast.List(elts=named) | ast.Set(elts=named):
                items = list(named)
            case ast.Dict(keys=keys):
                items = [key for key in keys if key is not None]
            case _:
                continue
        # ("gguf", "GGUF") in a tuple of such pairs names one each.
        firsts = [item.elts[0] if isinstance(item, ast.Tuple) and item.elts else item for item in items]
        found = {each.value for each in firsts if isinstance(each, ast.Constant) and each.value in words}
        if len(found) > 1:
            yield found


def test_no_table_of_formats_stands_outside_their_packages() -> None:
    words = frozenset(FORMATS) - {"toy"}
    found = {
        inside: table
        for path in sorted(PACKAGE.rglob("*.py"))
        if not (inside := path.relative_to(PACKAGE).as_posix()).startswith("formats/")
        for table in tables(ast.parse(path.read_text()), words)
    }
    assert set(found) == set(ALLOWED), found


def test_a_table_is_seen() -> None:
    words = frozenset(FORMATS)
    for text in ('{"gguf": 1, "mlx": 2}', 'x in ("fp8", "nvfp4")', '[("gguf", 1), ("mlx", 2)]'):
        assert list(tables(ast.parse(text), words))
    assert not list(tables(ast.parse('("torch", "gguf")'), words))
