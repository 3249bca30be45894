"""Files made for a size, end to end: as large as asked, better than plain ones, and the same in every way of
asking for them."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from held_text import own_words
from in_process import ok, run
from tokenizers import Tokenizer

from qexport.assign.aim import Aim
from qexport.checkpoint.local import LocalCheckpoint
from qexport.codecs import ggml
from qexport.demo import MODEL
from qexport.errors import InputError, QexportError
from qexport.evidence.backward import TwoWayStream
from qexport.evidence.imatrix_file import ImportanceMatrix, imatrix_bytes, read_imatrix
from qexport.evidence.observe import InputSquares
from qexport.evidence.options import StreamOptions
from qexport.formats.gguf import format as gguf_format
from qexport.formats.gguf import sized as gguf_sized
from qexport.formats.gguf.importance import gguf_importance
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.registry import format_of
from qexport.onepass.as_stored import as_stored
from qexport.receipt.store import read_receipt
from qexport.recipe.choice import ModelChoice
from qexport.recipe.load import load_recipe
from qexport.run.allocation import ROUTED, offers, settle
from qexport.run.model import examine
from qexport.run.target import Target
from qexport.run.watcher import Watcher
from qexport.verification.divergence import Divergence, compare_runs, gained
from qexport.verification.text_run import TextRun, run_text


@pytest.fixture(scope="module")
def diagnosis() -> Any:
    return examine(ModelChoice(str(MODEL)), download=False)


@pytest.fixture(scope="module")
def matrix(diagnosis: Any) -> ImportanceMatrix:
    view, ids, squares = diagnosis.repaired.view(), own_words(11, 2048, 128), InputSquares()
    stream = TwoWayStream(view, StreamOptions(precision="float32"), at_most=2048)
    found = stream.run_both(ids, squares, text="t").sensitivity
    return gguf_importance(
        view, squares.sums, squares.counts, datasets=["d"], chunk_count=len(ids), chunk_size=128,
        label="m.gguf_file", sensitivity=found,
    )  # fmt: skip


@pytest.fixture(scope="module")
def matrix_file(matrix: ImportanceMatrix, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("matrix") / "m.gguf_file"
    path.write_bytes(imatrix_bytes(matrix))
    return path


def settled(diagnosis: Any, matrix: ImportanceMatrix, *options: dict[str, Any]) -> list[Any]:
    """The plans of GGUF targets with these options."""
    return plans_of(diagnosis, *(GgufOptions(imatrix=matrix, **each) for each in options))


def plans_of(diagnosis: Any, *options: Any) -> list[Any]:
    """The plans of targets with these options."""
    targets = [Target(each, Path("nowhere")) for each in options]
    return [target.plans(diagnosis)[0][0] for target in settle(targets, diagnosis, Watcher())]


def lost(source: TextRun, plan: Any) -> Divergence:
    """By the trunk; heads are not asked."""
    with run_text(as_stored(source.view, [plan]), source.tokens) as run:
        return compare_runs(source, run)


def types_of(plan: Any) -> dict[str, str]:
    return {tensor.canonical: tensor.stored.name for tensor in plan.tensors}


FOLDERS = {
    "mlx 6bit": MlxOptions(like="6bit"),
    "mlx mixed_3_6": MlxOptions(like="mixed_3_6"),
    "nvfp4 mlp": Nvfp4Options(like="mlp"),
    "nvfp4 mlp compressed": Nvfp4Options(like="mlp", layout="compressed-tensors"),
}


@pytest.mark.slow
def test_folders_as_large_as_the_plain_one_and_better(diagnosis: Any, matrix: ImportanceMatrix) -> None:
    aimed = [replace(each, importance=matrix) for each in FOLDERS.values()]
    plain = [format_of(each).sizing.plain(each, each.like) for each in aimed]
    plans = plans_of(diagnosis, *aimed, *plain)
    view = diagnosis.repaired.view()
    with run_text(view, own_words(22, 2048, 128)) as source:
        measured = [lost(source, plan) for plan in plans]
    for number, name in enumerate(FOLDERS):
        sized, like = plans[number], plans[number + len(aimed)]
        assert 0.97 * like.size <= sized.size <= like.size, name
        gain = gained(measured[number + len(aimed)], measured[number])
        assert gain.value > 2 * gain.error, name
        assert gain.value > 0.1 * measured[number + len(aimed)].mean, name
        found = measured[number].mean
        assert found / 3 < sized.assignment.predicted.kld < found * 3, name


@pytest.mark.slow
def test_as_large_as_the_plain_file_and_better(diagnosis: Any, matrix: ImportanceMatrix) -> None:
    words = ("Q4_K_M",)
    asked = [{key: value} for word in words for key, value in (("types", (word,)), ("like", word))]
    plans = settled(diagnosis, matrix, *asked)
    view = diagnosis.repaired.view()
    with run_text(view, own_words(22, 8192, 128)) as source:
        for plain, sized in zip(plans[::2], plans[1::2], strict=True):
            assert 0.995 * plain.size <= sized.size <= plain.size
            measured = [lost(source, plan) for plan in (plain, sized)]
            gain = gained(*measured)
            assert gain.value > 2 * gain.error, sized.label
            assert gain.value > 0.1 * measured[0].mean, sized.label
            for plan, found in zip((plain, sized), measured, strict=True):
                assert found.mean / 3 < plan.assignment.predicted.kld < found.mean * 3, plan.label
    heads = [name for name in types_of(plans[1]) if name.startswith("mtp.") and "norm" not in name]
    assert heads
    for plan in plans[1::2]:
        types = types_of(plan)
        assert {types[name] for name in heads} <= {"Q6_K", "Q8_0"}
        assert any("MTP head has Q6_K at least" in note for note in plan.notes)
        assert types["model.embed_tokens.weight"] not in ("F32", "BF16")


@pytest.mark.slow
def test_sizes_bits_and_divergences_are_kept(diagnosis: Any, matrix: ImportanceMatrix) -> None:
    size = 2_600_000
    by_size, by_bits, by_kld, good = settled(
        diagnosis, matrix, {"size": size}, {"bpw": 4.8}, {"max_kld": 0.01}, {"max_kld": 0.001}
    )
    assert 0.98 * size < by_size.size <= size
    assert 4.7 < by_bits.bits_per_weight <= 4.8
    assert 0.009 < by_kld.assignment.predicted.kld <= 0.01
    assert good.assignment.predicted.kld <= 0.001
    assert good.size > by_kld.size
    assert by_bits.files[0].name == f"model-{by_bits.label}.gguf"
    assert by_bits.label.startswith("QX-Q3_K")
    # At a size where no slow types are offered: what is predicted for it asks for that size again.
    (again,) = settled(diagnosis, matrix, {"max_kld": by_size.assignment.predicted.kld})
    assert again.size == pytest.approx(by_size.size, rel=0.01)
    assert settled(diagnosis, matrix, {"size": size})[0] == by_size


def test_what_cannot_be_made_is_said(diagnosis: Any, matrix: ImportanceMatrix) -> None:
    with pytest.raises(InputError, match=r"^1 MB is too small.*it takes \d.*MTP head has Q6_K"):
        settled(diagnosis, matrix, {"size": 1_000_000})
    with pytest.raises(InputError, match=r"diverge by 1e-09 nats or less; the best by \d"):
        settled(diagnosis, matrix, {"max_kld": 1e-9})
    # More than the largest types take is no error: it is they.
    (plan,) = settled(diagnosis, matrix, {"size": 10**9})
    assert {kind for kind in types_of(plan).values() if kind != "F32"} == {"Q8_0"}


def test_tensors_named_by_the_user_or_unknown_to_the_matrix_are_left(
    diagnosis: Any, matrix: ImportanceMatrix
) -> None:
    assert matrix.sensitivity is not None
    lost = "blk.1.ffn_up.weight"
    tables = {
        table: {name: rows for name, rows in each.items() if name != lost}
        for table, each in matrix.sensitivity.tables.items()
    }
    partial = replace(matrix, sensitivity=replace(matrix.sensitivity, tables=tables))
    named = {"tensor_types": ((r"blk\.0\.ffn_down", "Q5_0"),), "mtp_type": "Q8_0"}
    plain, sized = settled(diagnosis, partial, {"types": ("Q4_K_M",), **named}, {"like": "Q4_K_M", **named})
    types = types_of(sized)
    assert types["model.layers.1.mlp.up_proj.weight"] == types_of(plain)["model.layers.1.mlp.up_proj.weight"]
    assert types["model.layers.0.mlp.down_proj.weight"] == "Q5_0"
    assert {kind for name, kind in types.items() if name.startswith("mtp.")} == {"Q8_0", "F32"}
    assert any(
        "no sensitivity is known of 1 tensor: as in QX-Q4_K_M" in note
        and "model.layers.1.mlp.up_proj.weight" in note
        for note in sized.notes
    )
    assert not any("at least" in note for note in sized.notes)
    assert 0.995 * plain.size <= sized.size <= plain.size


def test_one_read_and_few_plans(
    diagnosis: Any, matrix: ImportanceMatrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many targets: each row is read once; each candidate is planned once."""
    rows: Counter[tuple[str, int]] = Counter()
    plans: list[Any] = []
    real_read, real_plan = LocalCheckpoint.read_rows, gguf_format.GGUF.plan

    def read(self: LocalCheckpoint, name: str, start: int, stop: int) -> Any:
        rows.update((name, row) for row in range(start, stop))
        return real_read(self, name, start, stop)

    def plan(*args: Any) -> Any:
        plans.append(args)
        return real_plan(*args)

    monkeypatch.setattr(LocalCheckpoint, "read_rows", read)
    object.__setattr__(gguf_format.GGUF, "plan", plan)
    try:
        settled(diagnosis, matrix, {"like": "Q4_K_M"}, {"types": ("Q8_0", "Q5_K_M")}, {"bpw": 5.0})
    finally:
        object.__setattr__(gguf_format.GGUF, "plan", real_plan)
    assert set(rows.values()) == {1}
    assert len({name for name, _ in rows}) >= 40
    # Of an aim: the stand-in twice, seven words, like, the choice until it fits, and here once more.
    assert len(plans) <= 2 * 13 + 3


@pytest.mark.slow
def test_a_printed_plan_gives_the_same_bytes_and_is_not_made_twice(matrix_file: Path, tmp_path: Path) -> None:
    words = ("gguf", MODEL, "--no-mmproj", "--imatrix", matrix_file)
    aim = (*words, "--like", "Q4_K_M", "--no-verify")
    printed = ok(*aim, "--dry-run", "--json", "-o", tmp_path / "sized").json()
    (artifact,) = printed["artifacts"]
    said = ok(*words, "-q", "Q8_0", "--dry-run", "-o", tmp_path / "sized").stdout
    assert re.search(r"predicted: a divergence of \d\S* nats per token", said)
    assert artifact["label"] == "QX-Q4_K_M"
    assert artifact["assignment"]["predicted"]["aim"] == "the size of Q4_K_M"
    assert 0 < artifact["assignment"]["predicted"]["kld"] < 0.1
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(printed))
    first = ok(*aim, "-q", "Q8_0", "-o", tmp_path / "sized")
    assert "types chosen for the size of Q4_K_M" in first.stderr
    ok(*words, "-q", "Q4_K_M", "--types-from", plan, "--no-verify", "-o", tmp_path / "given")
    sized = tmp_path / "sized" / "model-QX-Q4_K_M.gguf"
    assert sized.stat().st_size == artifact["bytes"]
    assert sized.read_bytes() == (tmp_path / "given" / "model-Q4_K_M.gguf").read_bytes()
    entries = {each.label: each for each in read_receipt(tmp_path / "sized").receipt.artifacts}
    assert set(entries) == {"QX-Q4_K_M", "Q8_0"}
    predicted = entries["QX-Q4_K_M"].predicted
    assert predicted is not None
    assert predicted.kld == pytest.approx(artifact["assignment"]["predicted"]["kld"], rel=1e-6)
    assert predicted.types == artifact["assignment"]["types"]
    assert entries["QX-Q4_K_M"].options["like"] == "Q4_K_M"
    assert entries["Q8_0"].predicted is not None
    assert entries["Q8_0"].predicted.kld < predicted.kld
    again = ok(*aim, "-q", "Q8_0", "-o", tmp_path / "sized")
    assert "types chosen" not in again.stderr
    assert again.stderr.count("is there, from the same source and options") == 2
    # Another aim, or files that are gone: they are chosen anew.
    sized.unlink()
    third = ok(*aim, "-o", tmp_path / "sized")
    assert "types chosen" in third.stderr


def test_without_sensitivities_it_is_refused(matrix: ImportanceMatrix, tmp_path: Path) -> None:
    blind = tmp_path / "blind.gguf_file"
    blind.write_bytes(imatrix_bytes(replace(matrix, sensitivity=None)))
    for words in ((), ("--imatrix", blind)):
        refused = run("gguf", MODEL, "--bpw", "4.8", *words, "-o", tmp_path / "out")
        assert refused.code == 2
        assert "sensitivities" in refused.stderr
        assert "--sensitivity` collects one" in refused.stderr
    assert not (tmp_path / "out").exists()
    both = run("gguf", MODEL, "--like", "Q4_K_M", "--size", "2M", "--imatrix", blind)
    assert (both.code, "--size and --like: a file can be made for one" in both.stderr) == (2, True)
    plain = run("gguf", MODEL, "--like", "BF16", "--imatrix", blind)
    assert (plain.code, "BF16 is no quantized type" in plain.stderr) == (2, True)
    none = run("gguf", MODEL)
    assert (none.code, "one of --size, --bpw, --like, --max-kld" in none.stderr) == (2, True)
    given = run("gguf", MODEL, "--like", "Q4_K_M", "--types-from", blind, "--imatrix", blind)
    assert (given.code, "--types-from both say which types" in given.stderr) == (2, True)


@pytest.mark.slow
def test_a_run_that_collects_its_matrix_collects_sensitivities_along(tmp_path: Path) -> None:
    corpus = tmp_path / "words.txt"
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    corpus.write_text(tokenizer.decode(own_words(5, 1024, 128).reshape(-1).tolist()))
    words = ("gguf", MODEL, "--no-mmproj", "--bpw", "5", "--imatrix", corpus)
    words += ("--calib-chunk", "64", "--calib-tokens", "512")
    before = ok(*words, "--dry-run", "-o", tmp_path / "out")
    assert "are chosen when it is known what errors cost" in before.stdout.replace("\n", " ")
    assert not (tmp_path / "out").exists()
    ok(*words, "--no-verify", "-o", tmp_path / "out")
    assert read_imatrix(tmp_path / "out" / "model-imatrix.gguf_file").sensitivity is not None
    labels = {each.label for each in read_receipt(tmp_path / "out").receipt.artifacts}
    assert labels == {"imatrix", "QX-Q3_K_L"}  # which has so many bits in so small a model


@pytest.mark.slow
def test_experts_without_tokens_are_estimated_and_said(zoo: Any) -> None:
    """A text of a few tokens reaches few of the experts; the others are not taken for worthless."""
    found = examine(ModelChoice(str(zoo("qwen3_5_moe", hidden=256, intermediate=256))), download=False)
    view, squares = found.repaired.view(), InputSquares()
    ids = np.full((1, 3), 5, np.int32)
    felt = TwoWayStream(view, StreamOptions(precision="float32")).run_both(ids, squares, text="t").sensitivity
    few = gguf_importance(
        view, squares.sums, squares.counts, datasets=["d"], chunk_count=1, chunk_size=3, label="few",
        sensitivity=felt,
    )  # fmt: skip
    (plan,) = settled(found, few, {"bpw": 6.0})
    (note,) = [each for each in plan.notes if "have no sensitivity" in each]
    assert re.match(r"\d+ of \d+ experts in \d+ tensors? have no sensitivity; each counts as the mean", note)
    assert plan.assignment.predicted.kld > 0
    assert ROUTED in plan.notes


def small_matrix(view: Any) -> ImportanceMatrix:
    """Of 128 tokens, with sensitivities."""
    squares, ids = InputSquares(), np.arange(128, dtype=np.int32).reshape(1, 128)
    felt = TwoWayStream(view, StreamOptions(precision="float32")).run_both(ids, squares, text="t").sensitivity
    return gguf_importance(
        view, squares.sums, squares.counts, datasets=["d"], chunk_count=1, chunk_size=128, label="m",
        sensitivity=felt,
    )  # fmt: skip


def test_a_size_is_that_of_a_file_and_of_the_head_beside_it(zoo: Any) -> None:
    """Bits per weight are the file's own."""
    found = examine(ModelChoice(str(zoo("qwen3_5", hidden=256, intermediate=256))), download=False)
    matrix = small_matrix(found.repaired.view())
    options = GgufOptions(size=2_400_000, mtp="drafter", no_mmproj=True, imatrix=matrix)
    (offer,) = offers([Target(options, Path("nowhere"))], found, Watcher())
    of_size, of_bits = (offer.settled(aim).plans(found) for aim in (options.aim, Aim("bpw", 5.5)))
    (trunk, _), (head, _) = of_size
    assert (trunk.kind, head.kind, head.size > 500_000) == ("gguf", "mtp", True)
    assert 0.98 * 2_400_000 < trunk.size + head.size <= 2_400_000
    assert 5.4 < of_bits[0][0].bits_per_weight <= 5.5
    with pytest.raises(InputError, match=r"^1 MB is too small.*; \d.* of it are the MTP head's file"):
        offer.settled(Aim("size", 1_000_000))


@pytest.mark.skipif(not ggml.is_available(), reason="xllamacpp is not installed")
def test_below_3_bits_what_only_ggml_encodes_is_chosen(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a size that nothing else can be made for, or not well; never for others, which would take hours."""
    found = examine(ModelChoice(str(zoo("qwen3_5", hidden=256, intermediate=256))), download=False)
    matrix = small_matrix(found.repaired.view())

    def offered(**aim: Any) -> Any:
        return gguf_sized.candidates(found.repaired.view(), GgufOptions(imatrix=matrix, **aim))

    for aim in ({"like": "Q3_K_S"}, {"bpw": 5.0}, {"size": 10**9}, {"max_kld": 0.5}):
        assert offered(**aim).words == gguf_sized.WORDS, aim
    for aim in ({"like": "Q2_K"}, {"like": "IQ2_M"}, {"bpw": 2.2}, {"size": 10**6}):
        small = offered(**aim)
        assert small.words == (*gguf_sized.SLOW, *gguf_sized.WORDS), aim
        # The embedding has no importance; ggml would abort.
        assert small.barred["model.embed_tokens.weight"] == ggml.ABORTS_WITHOUT_IMPORTANCE
        assert "Q3_K" in small.barred["mtp.fc.weight"]
    # Two of them, whose tables ggml builds at once.
    monkeypatch.setattr(gguf_sized, "SLOW", ("IQ2_XXS", "IQ3_XXS"))
    asked = ({"types": ("Q2_K",)}, {"like": "Q2_K"}, {"like": "IQ2_M"}, {"max_kld": 9.0}, {"max_kld": 0.004})
    plain, chosen, smaller, loose, strict = settled(found, matrix, *asked)
    assert 0.99 * plain.size < chosen.size <= plain.size
    assert chosen.assignment.predicted.kld < plain.assignment.predicted.kld
    assert smaller.size < chosen.size
    assert smaller.label == "QX-IQ2_M"
    # For a divergence none of them is tried, which is said where one would have made a smaller file.
    assert loose.size < plain.size < strict.size
    untried = "IQ2_XXS to IQ3_XXS are slow to encode and were not tried; --size tries them"
    assert [untried in each.notes for each in (smaller, loose, strict)] == [False, True, False]
    assert "IQ3_XXS" in types_of(chosen).values()
    assert "IQ2_XXS" in types_of(smaller).values()


def test_recipes_have_the_same_words(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    head = "source: {model: ./merged, name: X}\ncalibration: {corpus: c.txt}\nartifacts:\n"
    recipe.write_text(head + "  - gguf: {types: [Q8_0]}\n  - {name: sized, gguf: {size: 2G}}\n")
    plain, sized = load_recipe(recipe).artifacts
    assert (plain.options.aim, sized.options.size, sized.importance) == (None, 2 * 10**9, True)
    for entry, words in (
        ("gguf: {like: Q4_K_M, bpw: 4}", "a file can be made for one of them"),
        ("gguf: {like: Q4_K_M, types: [Q8_0]}", "types and like are two artifacts"),
        ("gguf: {}", "'types' is missing: a list such as [Q4_K_M, Q8_0]; or one of size, bpw, like, max_kld"),
        ("gguf: {like: F16}", "is no quantized type"),
        ("gguf: {bpw: -1}", "has to be more than 0"),
    ):
        recipe.write_text(head + f"  - {entry}\n")
        with pytest.raises(QexportError, match=words.replace("[", r"\[")):
            load_recipe(recipe)
