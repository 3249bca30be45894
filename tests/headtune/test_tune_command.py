"""`qexport mtp tune`: the folder it writes, where that goes, and what is refused or kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from document_types import misfits
from head_texts import EXACT, ids_file, tiny, view_of
from safetensors.torch import load_file
from zoo_types import Zoo

from qexport.cli._documents import TunedDocument
from qexport.errors import InputError, UsageProblem
from qexport.evidence.corpus import read_corpus
from qexport.headtune.folder import RECEIPT, check_out
from qexport.headtune.options import TrainOptions, TuneOptions
from qexport.headtune.tune import prepare
from qexport.recipe.choice import ModelChoice
from qexport.run.head import HeadRequest, tuned_head
from qexport.run.model import examine
from qexport.run.receipts import source_of
from qexport.run.watcher import Watcher

# Of the zoo's vocabulary, in documents that no other is like.
DOCUMENTS, LENGTH = 60, 224


def request_of(text: Path, out: Path, **train: Any) -> HeadRequest:
    how = TrainOptions(**{"steps": 12, "rate": 3e-3, "batch_tokens": 512, **train})
    return HeadRequest(text, out, TuneOptions(how, generic=0.0, chunk=64), EXACT)


def tuned(folder: Path, head: Path | None, request: HeadRequest) -> dict[str, Any]:
    mode = "auto" if head is None else "graft"
    choice = ModelChoice(str(folder), mtp=mode, mtp_from=None if head is None else str(head), vision="drop")
    return tuned_head(choice, examine(choice, download=False), request, Watcher())


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "own.jsonl"
    return ids_file(path, DOCUMENTS, LENGTH, 200, domain="ids")


def head_of(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= {name: values for name, values in load_file(file).items() if name.startswith("mtp.")}
    return tensors


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit."""
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def test_a_head_that_gains_is_written_and_goes_wherever_a_head_goes(
    zoo: Zoo, text: Path, tmp_path: Path
) -> None:
    """The trunk is another one than the head's: everything is to be learned."""
    trunk, base = tiny(zoo, mtp=False, seed=5), tiny(zoo)
    out = tmp_path / "head"
    document = tuned(trunk, base, request_of(text, out, mode="sampling", steps=24))
    assert document["result"] == "tuned", document["reason"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head"]
    assert json.loads((out / RECEIPT).read_text()) == document
    assert misfits(TunedDocument, document) == []
    sampled = [document[when]["ids"]["tokens_per_verification"]["sampled"] for when in ("before", "after")]
    gain = document["verdict"]["gains"]["sampled"]
    assert sampled[1]["value"] - sampled[0]["value"] == pytest.approx(gain["value"])
    assert gain["value"] > 2 * gain["error"] > 0
    assert len(document["training"]["curve"]) > 2
    for key in ("base_head_sha256", "head_sha256", "states_sha256"):
        assert len(document[key]) == 64
    old, new = head_of(base), head_of(out)
    assert old.keys() == new.keys()
    assert {values.dtype for values in new.values()} == {torch.bfloat16}
    assert not any(same(old[name], new[name]) for name in old if name.endswith("proj.weight"))
    # Every other tensor of an export is what it is with the base's head, bit for bit.
    views = [view_of(trunk, each) for each in (base, out)]
    one, other = ({tensor.name: tensor for tensor in view} for view in views)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        pieces = [[(p.name, p.start, p.stop) for p in each.data.pieces] for each in (tensor, other[name])]
        mine = name.startswith("mtp.")
        assert mine or pieces[0] == pieces[1]
        assert mine or {p.checkpoint.label for p in other[name].data.pieces} == {trunk.name}
    diagnosis = examine(ModelChoice(str(trunk), mtp="graft", mtp_from=str(out)), download=False)
    assert diagnosis.repaired.mtp_origin == "grafted from head"
    told = source_of(diagnosis).tuned
    assert told is not None
    assert (told.base, told.drafts, told.n_max) == (base.name, "sampling", 3)
    assert (told.before.value, told.after.value) == (sampled[0]["value"], sampled[1]["value"])


def test_a_head_that_does_not_gain_is_kept_bit_for_bit(zoo: Zoo, text: Path, tmp_path: Path) -> None:
    base, out = tiny(zoo), tmp_path / "head"
    document = tuned(base, None, request_of(text, out, rate=1e-9, steps=2))
    assert misfits(TunedDocument, document) == []
    assert document["result"] == "kept"
    assert "standard errors" in document["reason"]
    old, new = head_of(base), head_of(out)
    assert old.keys() == new.keys()
    assert all(same(old[name], new[name]) for name in old)
    assert document["head_sha256"] == document["base_head_sha256"]


def test_a_head_that_is_lost_in_training_is_kept(zoo: Zoo, text: Path, tmp_path: Path) -> None:
    base, out = tiny(zoo), tmp_path / "head"
    document = tuned(base, None, request_of(text, out, rate=1e30, steps=30))
    assert misfits(TunedDocument, document) == []
    assert document["result"] == "kept"
    assert all(same(values, head_of(out)[name]) for name, values in head_of(base).items())


def test_experts_of_a_head_are_taken_back(zoo: Zoo, text: Path, tmp_path: Path) -> None:
    base, out = tiny(zoo, "qwen3_5_moe", experts=4), tmp_path / "head"
    tuned(base, None, request_of(text, out, rate=1e-9, steps=1))
    one, other = (
        {t.name: t for t in view_of(base, head) if t.name.startswith("mtp.")} for head in (None, out)
    )
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert same(values_of(tensor), values_of(other[name])), name


def values_of(tensor: Any) -> torch.Tensor:
    rows = tensor.data.rows(0, tensor.data.matrix_shape[0])
    return torch.cat([p.checkpoint.read_rows(p.name, p.start, p.stop) for p in rows])


def prepared(path: Path, zoo: Zoo, **options: Any) -> Any:
    return prepare(read_corpus(path), view_of(tiny(zoo)), TuneOptions(TrainOptions(), **options))


def test_too_little_text_is_refused(zoo: Zoo, tmp_path: Path) -> None:
    path = ids_file(tmp_path / "few.jsonl", 10, 200, 200)
    with pytest.raises(InputError, match="at least 8192") as refused:
        prepared(path, zoo)
    assert "mtp generate" in str(refused.value.hint)


def test_loops_are_refused_and_a_few_are_left_out(zoo: Zoo, tmp_path: Path) -> None:
    good = ids_file(tmp_path / "good.jsonl", 60, 224, 200).read_text().splitlines()
    loop = [json.dumps({"input_ids": [number, *([3, 1, 4, 1, 5] * 40)]}) for number in range(60)]
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join([*good, *loop]))
    with pytest.raises(InputError, match="60 of 120 documents repeat themselves"):
        prepared(path, zoo)
    path.write_text("\n".join([*good, *loop[:5]]))
    assert prepared(path, zoo).loops == 5


def test_the_package_s_text_is_judged_by_its_own_domains(zoo: Zoo, tmp_path: Path) -> None:
    path = ids_file(tmp_path / "own.jsonl", 60, 224, 200, domain="code")
    found = prepared(path, zoo)
    assert found.own == ("own code",)
    assert {"code", "prose", "reasoning"} <= set(found.text.domains)
    start, stop = found.text.splits["judge"]
    judged = {found.text.domains[each] for each in np.unique(found.text.document[start:stop]) if each >= 0}
    assert len(judged) > 3


def test_text_that_the_trunk_would_never_write_is_refused(zoo: Zoo, text: Path, tmp_path: Path) -> None:
    """A trunk that is sure of something else: its output matrix is many times as large."""
    from safetensors.torch import save_file

    base, trunk = tiny(zoo), tmp_path / "sure"
    trunk.mkdir()
    for file in base.iterdir():
        (trunk / file.name).write_bytes(file.read_bytes())
    for weights in trunk.glob("*.safetensors"):
        tensors = load_file(weights)
        for name in [each for each in tensors if each.endswith("lm_head.weight")]:
            tensors[name] = tensors[name] * 200
            save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match="nats less likely"):
        tuned(trunk, None, request_of(text, tmp_path / "head"))
    assert [path.name for path in tmp_path.iterdir()] == ["sure"]


def test_what_is_no_head_of_ours_is_not_replaced(tmp_path: Path) -> None:
    check_out(tmp_path / "new", overwrite=False)
    (tmp_path / "mine").mkdir()
    check_out(tmp_path / "mine", overwrite=False)
    (tmp_path / "mine" / "file").write_text("")
    with pytest.raises(UsageProblem, match="no tuned head"):
        check_out(tmp_path / "mine", overwrite=True)
    (tmp_path / "mine" / RECEIPT).write_text("{}")
    with pytest.raises(UsageProblem, match="already there"):
        check_out(tmp_path / "mine", overwrite=False)
    check_out(tmp_path / "mine", overwrite=True)
