"""An MTP head in a file of its own beside its trunk: what is planned, found again, run and refused.

That its bytes are the converter's is in test_parity.py.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pytest
from zoo_types import Zoo

sys.path.append(str(Path(__file__).parents[1] / "verify"))
from verify_fakes import FakeReference, FakeRuntime, generation

from qexport.artifacts.layout import OnDisk
from qexport.checkpoint.local import LocalCheckpoint
from qexport.container import gguf_file
from qexport.container.gguf_file import read_gguf
from qexport.container.gguf_read import GgufHeader
from qexport.doctor import diagnose
from qexport.doctor.diagnose import Diagnosis
from qexport.errors import InputError, UsageProblem
from qexport.evidence.imatrix_file import ImportanceMatrix
from qexport.evidence.store import Kind
from qexport.families.roles import Block
from qexport.formats.gguf.format import GGUF
from qexport.formats.gguf.importance import gguf_importance, uncollected
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.reading import describe_gguf
from qexport.formats.opening import open_artifact
from qexport.formats.plan import ArtifactPlan
from qexport.onepass.execute import execute
from qexport.onepass.rows import read_rows
from qexport.publishing.card import CardOptions, render_card
from qexport.receipt.folder import known_in
from qexport.receipt.verification import Check, Status
from qexport.run import steps
from qexport.run.in_folder import artifacts_in, check_files
from qexport.run.target import Target, plan
from qexport.run.verify import verify_all, verify_artifact
from qexport.verification.options import VerifyOptions
from qexport.verification.run import verify
from qexport.verification.runtime import Settings

ANSWERS = [generation([4, 5, 6]) for _ in range(8)]
QUICK = VerifyOptions(prompts=("a",), reference=False)


def exported(folder: Path, out: Path, *types: str, **options: object) -> Diagnosis:
    """Written by the run's own steps, receipts and all, with nothing proven."""
    diagnosis = diagnose(LocalCheckpoint(folder))
    target = Target(GgufOptions(types, no_mmproj=True, **options), out, verify=None)
    items = plan([target], diagnosis)
    for item, found in zip(items, steps.write(items, diagnosis, threads=1), strict=True):
        assert [(f.name, f.size) for f in found.written] == [(f.name, f.size) for f in item.plan.files]
    return diagnosis


@pytest.fixture(scope="module")
def sidecar(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Diagnosis]:
    """Two trunks, one of them in shards, and their head."""
    out = tmp_path_factory.mktemp("head") / "Model-GGUF"
    diagnosis = exported(
        zoo("qwen3_5"),
        out,
        "BF16",
        "Q8_0",
        mtp="drafter",
        mtp_type="BF16",
        model_name="Model",
        split_max_size=10**6,
    )
    return out, diagnosis


def importance_of(diagnosis: Diagnosis) -> ImportanceMatrix:
    """The same for all columns; of the head's matrices, too."""
    view = diagnosis.repaired.view()
    return gguf_importance(view, *uncollected(view), datasets=["d"], chunk_count=1, chunk_size=8, label="m")


def trunk(folder: Path) -> Path:
    return next(iter(sorted(folder.rglob("Model-BF16*.gguf"))))


def test_one_head_serves_all_types(sidecar: tuple[Path, Diagnosis]) -> None:
    out, diagnosis = sidecar
    head = read_gguf(out / "mtp-Model-BF16.gguf")
    assert head.head_only
    assert {name.split(".")[0] for name in head.tensors} == {"blk", "output", "output_norm", "token_embd"}
    for kind in ("BF16", "Q8_0"):
        path = next(iter(sorted(out.glob(f"{kind}/Model-{kind}*.gguf"))))
        info = read_gguf(path)
        assert info.shards > 1
        assert (info.nextn_layers, info.head_tensors) == (0, False)
        about = describe_gguf(OnDisk(path))
        assert (about.drafter, about.drafts, about.has_head) == (out / "mtp-Model-BF16.gguf", True, True)
        assert sum(each.name.startswith("blk.4.") for each in about.numbers()) == 15
    view = diagnosis.repaired.view()
    artifact = open_artifact(trunk(out), like=view).view()
    assert artifact.mtp_layers == 1
    ours = {tensor.name: tensor.data for tensor in artifact if tensor.block is Block.MTP}
    for tensor in view:
        if tensor.block is Block.MTP:
            rows, found = ((each, 0, each.matrix_shape[0]) for each in (tensor.data, ours[tensor.name]))
            assert read_rows(*rows).float().sub(read_rows(*found).float()).abs().max() < 0.01, tensor.name


def test_receipt_and_card_link_trunk_and_head(sidecar: tuple[Path, Diagnosis]) -> None:
    out, _ = sidecar
    known = known_in(out).artifacts
    assert [(each.kind, each.label, each.is_model) for each in known] == [
        ("gguf", "BF16", True),
        ("gguf", "Q8_0", True),
        ("mtp", "mtp-BF16", False),
    ]
    assert {(each.head_file, each.drafts, each.has_mtp) for each in known[:2]} == {
        ("mtp-Model-BF16.gguf", True, False)
    }
    card = render_card(known, CardOptions("alice/Model-GGUF"))
    first = next(each for each in known if each.label == "Q8_0").name
    assert f"llama-server -m {first} -md mtp-Model-BF16.gguf --spec-type draft-mtp" in card
    assert "llama-server -hf alice/Model-GGUF:Q8_0 --spec-type draft-mtp" in card
    assert "--include 'Q8_0/Model-Q8_0-*' --include mtp-Model-BF16.gguf" in card
    alone = render_card(known[:2], CardOptions("alice/Model-GGUF"))
    assert "draft-mtp" not in alone


def test_the_same_head_is_not_written_again(zoo: Zoo, tmp_path: Path) -> None:
    """By another type into the same folder, nor by two targets of one run."""
    diagnosis = exported(zoo("qwen3_5"), tmp_path, "BF16", mtp="drafter")
    head = tmp_path / "mtp-qwen3_5-Q8_0.gguf"
    before = head.stat().st_mtime_ns
    options = GgufOptions(("Q8_0",), mtp="drafter", no_mmproj=True)
    both = [Target(each, tmp_path, verify=None) for each in (options, replace(options, types=("Q6_K",)))]
    items = plan(both, diagnosis)
    assert [item.plan.kind for item in items].count("mtp") == 1
    done, todo = steps.finished(items)
    assert [item.plan.kind for item in done] == ["mtp"]
    assert [item.plan.label for item in todo] == ["Q8_0", "Q6_K"]
    assert head.stat().st_mtime_ns == before


def test_with_another_head_a_trunk_is_proven_anew(zoo: Zoo, tmp_path: Path) -> None:
    """Its bytes stay, but what was measured was measured with the other head."""
    exported(zoo("qwen3_5"), tmp_path, "BF16", mtp="drafter")
    target = Target(GgufOptions(("BF16",), mtp="drafter", no_mmproj=True), tmp_path, verify=None)
    same = diagnose(LocalCheckpoint(zoo("qwen3_5")))
    base = LocalCheckpoint(zoo("qwen3_5", seed=7))
    grafted = diagnose(LocalCheckpoint(zoo("qwen3_5")), mtp="graft", mtp_from=base)
    for diagnosis, left in ((same, 0), (grafted, 2)):
        assert len(steps.finished(plan([target], diagnosis))[1]) == left


def copied(sidecar: tuple[Path, Diagnosis], out: Path) -> Path:
    shutil.copytree(sidecar[0], out)
    return trunk(out)


def test_the_nearest_in_folders_then_in_bits(
    sidecar: tuple[Path, Diagnosis], zoo: Zoo, tmp_path: Path
) -> None:
    path = copied(sidecar, tmp_path / "Model")
    other = tmp_path / "Model" / "mtp-Model-Q8_0.gguf"
    shutil.copy(tmp_path / "Model" / "mtp-Model-BF16.gguf", other)
    assert describe_gguf(OnDisk(path)).drafter == tmp_path / "Model" / "mtp-Model-BF16.gguf"
    eight = next(iter(sorted((tmp_path / "Model").glob("Q8_0/*.gguf"))))
    assert describe_gguf(OnDisk(eight)).drafter == other
    path.parent.rename(tmp_path / "Model" / "else")  # a folder of another name is no part of the one above
    assert describe_gguf(OnDisk(trunk(tmp_path / "Model"))).drafter is None


@pytest.mark.parametrize("fault", ["another seed", "another size", "another family", "cut", "a trunk"])
def test_another_models_head(fault: str, sidecar: tuple[Path, Diagnosis], zoo: Zoo, tmp_path: Path) -> None:
    path = copied(sidecar, tmp_path / "Model")
    head = tmp_path / "Model" / "mtp-Model-BF16.gguf"
    if fault == "cut":
        head.write_bytes(head.read_bytes()[:-5000])
    elif fault == "a trunk":
        head.unlink()
        shutil.copy(exported_one(zoo("qwen3_5"), tmp_path / "x"), head)
    else:
        named = "glm4_moe" if fault == "another family" else "qwen3_5"
        options = {"another seed": {"seed": 7}, "another size": {"hidden": 128}}.get(fault, {})
        diagnosis = diagnose(LocalCheckpoint(zoo(named, **options)))
        plans = GGUF.alongside(diagnosis, GgufOptions(mtp="drafter", mtp_type="BF16", no_mmproj=True))
        execute(plans, tmp_path / "x", threads=1)
        shutil.copy(tmp_path / "x" / plans[0].files[0].name, head)
    about = describe_gguf(OnDisk(path))
    assert about.drafter is None
    assert about.strange_head.startswith("mtp-Model-BF16.gguf")
    view = sidecar[1].repaired.view()
    runtime = FakeRuntime(list(ANSWERS))
    found = verify(path, view=view, runtime=runtime, reference=FakeReference()).finding(Check.MTP_LOADS)
    assert found is not None
    assert found.status is Status.FAIL
    assert "mtp-Model-BF16.gguf" in found.summary
    assert [settings.draft_max for settings in runtime.opened] == [0]


def exported_one(folder: Path, out: Path) -> Path:
    diagnosis = diagnose(LocalCheckpoint(folder), mtp="drop")
    (made,) = GGUF.plan(diagnosis, GgufOptions(("BF16",), no_mmproj=True))
    execute([made], out, threads=1)
    return out / made.files[0].name


def test_the_head_is_given_to_the_runtime_and_missed(sidecar: tuple[Path, Diagnosis], tmp_path: Path) -> None:
    path = copied(sidecar, tmp_path / "Model")
    head = tmp_path / "Model" / "mtp-Model-BF16.gguf"
    runtime = FakeRuntime(list(ANSWERS), list(ANSWERS))
    verify(path, view=None, runtime=runtime, options=VerifyOptions(prompts=("a",)))
    assert [(each.draft_max, each.drafter) for each in runtime.opened] == [(0, None), (3, head)]
    (first, *_) = artifacts_in(tmp_path / "Model")
    check_files(first)
    head.write_bytes(bytes([*head.read_bytes()[:-1], 1]))
    with pytest.raises(InputError, match=r"mtp-Model-BF16\.gguf is not the file"):
        check_files(first)
    head.unlink()
    with pytest.raises(InputError, match=r"mtp-Model-BF16\.gguf of mtp-BF16 is in the receipt"):
        check_files(first)


@pytest.mark.parametrize("fault", ["gone", "another's", "cut"])
def test_a_head_that_is_gone_is_told_of_one_file_too(
    fault: str, sidecar: tuple[Path, Diagnosis], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zoo: Zoo
) -> None:
    path = copied(sidecar, tmp_path / "Model")
    runtime = FakeRuntime(list(ANSWERS))
    monkeypatch.setattr("qexport.verification.run.llama_cpp", lambda _: runtime)
    head = tmp_path / "Model" / "mtp-Model-BF16.gguf"
    whole = head.read_bytes()
    head.unlink()
    if fault == "another's":
        plans = GGUF.alongside(
            diagnose(LocalCheckpoint(zoo("qwen3_5", seed=7))), GgufOptions(mtp="drafter", no_mmproj=True)
        )
        execute(plans, tmp_path / "x", threads=1)
        shutil.copy(tmp_path / "x" / plans[0].files[0].name, head)
    elif fault == "cut":
        head.write_bytes(whole[:-5000])
    report = verify_artifact(path, view=None, options=VerifyOptions(), say=lambda _: None)
    found = report.finding(Check.MTP_LOADS)
    assert found is not None
    assert (found.status, "mtp-Model-BF16.gguf" in found.summary) == (Status.FAIL, True)


def types_of(plan: ArtifactPlan) -> dict[str, str]:
    return {tensor.name: tensor.stored.name for tensor in plan.tensors}


def planned(diagnosis: Diagnosis, **options: object) -> tuple[ArtifactPlan, ArtifactPlan]:
    """A trunk and its head."""
    chosen = GgufOptions(("Q4_K_M",), mtp="drafter", no_mmproj=True, **options)
    (trunk,), (head,) = GGUF.plan(diagnosis, chosen), GGUF.alongside(diagnosis, chosen)
    return trunk, head


def test_types_of_another_file_go_where_their_tensors_go(zoo: Zoo, tmp_path: Path) -> None:
    """Its block's to the head, all others to the trunk; what the head has once more is of its own type."""
    diagnosis = diagnose(LocalCheckpoint(zoo("qwen3_5")))
    named = ((r"blk\.4\.attn_q", "Q6_K"), (r"blk\.4\.ffn_up", "Q5_0"), (r"blk\.1\.ffn_up", "Q5_1"))
    (one,) = GGUF.plan(diagnosis, GgufOptions(("Q4_K_M",), tensor_types=named, no_mmproj=True))
    execute([one], tmp_path, threads=1)
    path = tmp_path / one.files[0].name
    theirs, (trunk, head) = types_of(one), planned(diagnosis, types_from=path)
    assert types_of(trunk) == {name: kind for name, kind in theirs.items() if not name.startswith("blk.4.")}
    plain = types_of(planned(diagnosis)[1])
    found = types_of(head)
    assert {kind for name, kind in found.items() if name.startswith("token_embd")} == {"Q8_0"}
    for name, kind in found.items():
        assert kind == (theirs[name] if name.startswith("blk.4.") else plain[name]), name
    assert (found["blk.4.attn_q.weight"], found["blk.4.ffn_up.weight"]) == ("Q6_K", "Q5_0")
    assert not any("takes the usual" in note for note in (*trunk.notes, *head.notes))
    # A type that is named for the head wins, as it does of a head inside.
    assert types_of(planned(diagnosis, types_from=path, mtp_type="Q8_0")[1]) == plain
    # Of a file without a head nothing is known of it, and that is said.
    execute([trunk], tmp_path / "trunk", threads=1)
    _, head = planned(diagnosis, types_from=tmp_path / "trunk" / trunk.files[0].name)
    assert types_of(head) == plain
    assert any("has no type for 15 tensors" in note for note in head.notes)


def test_error_feedback_reaches_a_head_of_a_type_that_has_use_for_it(zoo: Zoo) -> None:
    diagnosis = diagnose(LocalCheckpoint(zoo("qwen3_5", hidden=256, intermediate=256)))
    matrix = importance_of(diagnosis)

    def fed(**options: object) -> tuple[set[str], tuple[str, ...]]:
        _, head = planned(diagnosis, imatrix=matrix, feedback=True, **options)
        return {t.name for t in head.tensors if t.need(Kind.INPUT_PRODUCTS)}, head.notes

    names, _ = fed(mtp_type="Q4_K_M")
    assert {"output.weight", "blk.4.nextn.eh_proj.weight", "blk.4.ffn_up.weight"} <= names
    assert "token_embd.weight" not in names
    names, notes = fed()
    assert (names, "error feedback has no use in these types" in notes) == (set(), True)
    assert fed(mtp_type="Q4_K_M", quality="best")[0] == set()


def test_two_heads_of_one_name_are_refused(zoo: Zoo, tmp_path: Path) -> None:
    """With importance and without it: one would have been written, and taken for both."""
    diagnosis = diagnose(LocalCheckpoint(zoo("qwen3_5", hidden=256, intermediate=256)))
    options = GgufOptions(("Q8_0",), mtp="drafter", mtp_type="Q4_K_M", no_mmproj=True)
    weighed = replace(options, types=("Q6_K",), imatrix=importance_of(diagnosis))
    targets = [Target(each, tmp_path, verify=None) for each in (options, weighed)]
    with pytest.raises(UsageProblem, match=r"mtp-qwen3_5-Q4_K_M\.gguf goes with all files") as caught:
        plan(targets, diagnosis)
    assert "folders of their own" in str(caught.value.hint)
    apart = [targets[0], replace(targets[1], out=tmp_path / "weighed")]
    assert [item.plan.kind for item in plan(apart, diagnosis)] == ["gguf", "mtp"] * 2


def test_a_header_is_parsed_once_in_a_verification(
    sidecar: tuple[Path, Diagnosis], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trunk and head, though each step opens them: and again where one was written anew."""
    path = copied(sidecar, tmp_path / "Model")
    head = tmp_path / "Model" / "mtp-Model-BF16.gguf"
    parsed: Counter[int] = Counter()
    reading = gguf_file.read_gguf_header

    def counting(file: BinaryIO, size: int, *, shard: int = 0) -> GgufHeader:
        parsed[os.fstat(file.fileno()).st_ino] += 1
        return reading(file, size, shard=shard)

    monkeypatch.setattr(gguf_file, "read_gguf_header", counting)
    monkeypatch.setattr(gguf_file, "_OLD", 0)
    again = partial(FakeRuntime, list(ANSWERS), list(ANSWERS))
    monkeypatch.setattr("qexport.verification.run.llama_cpp", lambda _: again())
    view = sidecar[1].repaired.view()

    def verified() -> Status | None:
        found = verify_all(path, view=view, options=QUICK, say=lambda _: None, title=lambda _: None)
        return next(each.status for each in found.reports[0].findings if each.check is Check.MTP_LOADS)

    assert verified() is Status.PASS
    assert parsed == dict.fromkeys((each.stat().st_ino for each in (*path.parent.glob("*"), head)), 1)
    head.write_bytes(head.read_bytes()[:-5000])
    assert verified() is Status.FAIL


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mtp": "sidecar"}, "embedded, drafter"),
        ({"mtp": "drafter", "mtp_type": "mixture"}, "name the type"),
        ({"mtp": "drafter", "mtp_type": "Q9"}, "Q4_K_M"),
    ],
)
def test_what_is_refused(options: dict[str, str], words: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        GGUF.check(GgufOptions(("Q8_0",), **options))
    assert words in f"{caught.value.message} {caught.value.hint}"


def test_a_model_without_a_head(zoo: Zoo) -> None:
    with pytest.raises(UsageProblem, match="has no MTP head"):
        GGUF.alongside(diagnose(LocalCheckpoint(zoo("llama"))), GgufOptions(("Q8_0",), mtp="drafter"))
    dropped = diagnose(LocalCheckpoint(zoo("qwen3_5")), mtp="drop")
    with pytest.raises(UsageProblem, match="is to be dropped") as caught:
        GGUF.alongside(dropped, GgufOptions(("Q8_0",), mtp="drafter"))
    assert "Leave out --mtp drop" in str(caught.value.hint)


@pytest.mark.slow
def test_llama_cpp_drafts_with_it_as_with_one_inside(
    sidecar: tuple[Path, Diagnosis], zoo: Zoo, tmp_path: Path
) -> None:
    runtimes = pytest.importorskip("qexport.verification.runtimes")
    pytest.importorskip("xllamacpp")
    exported(zoo("qwen3_5"), tmp_path, "BF16")
    out, drafted = sidecar[0], []
    for path, head in ((trunk(out), out / "mtp-Model-BF16.gguf"), (tmp_path / "qwen3_5-BF16.gguf", None)):
        settings = Settings(draft_max=3, threads=1, context=256, time_limit=300, drafter=head)
        with runtimes.Xllamacpp().open(path, settings) as session:
            answers = [session.generate(range(at, at + 8), n_predict=24, n_probs=0) for at in (3, 40)]
        drafted.append([(each.tokens, each.draft_n, each.draft_accepted) for each in answers])
    assert drafted[0] == drafted[1]
    assert all(count > 0 for _, count, _ in drafted[0])
