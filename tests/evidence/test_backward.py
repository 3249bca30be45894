"""The way back against torch's own backward through whole models, with the same labels."""

from __future__ import annotations

import weakref
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_stream import damaged, ids_for, view_of
from whole_gradient import DraftGradient, Gradients, whole_gradient
from zoo_types import Zoo, ZooCopy

from qexport.checkpoint.local import LocalCheckpoint
from qexport.errors import InputError
from qexport.evidence import backward as backward_module
from qexport.evidence import stream as stream_module
from qexport.evidence.backward import Returned, TwoWayStream
from qexport.evidence.observe import InputSquares
from qexport.evidence.options import StreamOptions
from qexport.evidence.sensitivity import Summed
from qexport.families.roles import Block, Role

# Float32 in another order; the worst that was seen is 3e-6.
TOLERANCE = 1e-5
MODELS = ("qwen3_5", "qwen3_5_tied", "qwen3_5_moe", "llama3", "gemma3", "glm4_moe")


@cache
def there_and_back(folder: Path) -> Returned:
    """Five chunks of 40; the way back has three of them."""
    return once(folder)


def once(folder: Path, *, at_most: int = 100, seed: int = 3, **options: Any) -> Returned:
    options = {"precision": "float32", "batch_tokens": 80, **options}
    stream = TwoWayStream(view_of(folder), StreamOptions(**options), at_most=at_most, seed=seed)
    return stream.run_both(ids_for(folder), InputSquares(), text="t")


def whole(folder: Path, returned: Returned) -> Gradients:
    """What a whole model gives for the same labels."""
    return _whole(folder, returned.labels.tobytes(), returned.labels.shape)


@cache
def _whole(folder: Path, labels: bytes, shape: tuple[int, int]) -> Gradients:
    given = np.frombuffer(labels, np.int64).reshape(shape).copy()
    return whole_gradient(folder, ids_for(folder)[: shape[0], : shape[1]], given)


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the value plus the mean of its matrix."""
    scale = expected + np.maximum(expected.mean(axis=1, keepdims=True), 1e-30)
    return float((np.abs(found - expected) / scale).max())


def worst(returned: Returned, expected: Gradients) -> float:
    """Over all tensors of ``expected``, which must all be there, with the same counts."""
    tables, largest = returned.sensitivity.tables, 0.0
    (head,) = tables[Summed.HEAD_INPUTS]
    for name, sums in expected.sums.items():
        mine = head if name == "lm_head.weight" else name
        assert tables[Summed.TOKENS][mine][:, 0].tolist() == expected.counts[name].tolist(), name
        largest = max(largest, distance(tables[Summed.GRADIENTS][mine], sums))
        largest = max(largest, distance(tables[Summed.JOINT][mine], expected.joint[name]))
    return largest


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_of_the_whole_model(zoo: Zoo, name: str) -> None:
    """Products, routers, shared experts and their gates, each expert, the output matrix, the embedding."""
    folder = zoo(name)
    returned = there_and_back(folder)
    expected = whole(folder, returned)
    tables = returned.sensitivity.tables
    trunk = {tensor.name for tensor in view_of(folder) if tensor.block is not Block.MTP}
    assert len(trunk & tables[Summed.GRADIENTS].keys()) == len(expected.sums)
    assert worst(returned, expected) < TOLERANCE
    ((embedding, lookups),) = tables[Summed.LOOKUP_GRADIENTS].items()
    assert distance(lookups, expected.embedding) < TOLERANCE
    assert distance(next(iter(tables[Summed.HEAD_INPUTS].values())), expected.head) < TOLERANCE
    ids = ids_for(folder)
    rows = tables[Summed.LOOKUPS][embedding]
    table = view_of(folder).find(Role.TOKEN_EMBD)
    assert table is not None
    assert (table.name, (1, table.shape[0])) == (embedding, rows.shape)
    assert rows[0].tolist() == np.bincount(ids.reshape(-1), minlength=rows.shape[1]).tolist()
    assert returned.sensitivity.tokens == 120
    assert returned.sensitivity.texts == ("t seed 3",)


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_the_gradient_of_the_draft_head(zoo: Zoo, name: str) -> None:
    """With labels of its own; its gradient does not reach the trunk."""
    folder = zoo(name)
    returned = there_and_back(folder)
    assert returned.draft_labels is not None
    hidden = whole(folder, returned).final
    expected = DraftGradient(folder).back(ids_for(folder)[:3], hidden, returned.draft_labels)
    assert worst(returned, expected) < TOLERANCE
    mine = {tensor for tensor in returned.sensitivity.tables[Summed.GRADIENTS] if tensor.startswith("mtp.")}
    assert mine == set(expected.sums)
    assert returned.sensitivity.draft_tokens == 3 * 39
    wrong = DraftGradient(folder, swapped=True).back(ids_for(folder)[:3], hidden, returned.draft_labels)
    assert (
        distance(returned.sensitivity.tables[Summed.GRADIENTS]["mtp.fc.weight"], wrong.sums["mtp.fc.weight"])
        > 0.1
    )


# --- what would be wrong shows -----------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["order", "states", "residual"])
def test_a_planted_fault_shows(zoo: Zoo, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Layers in the order of the way forth, run from what entered another, or without residuals."""
    way, layers, gradient = (
        backward_module._Way,
        backward_module.TwoWayStream._layers,
        backward_module._gradient,
    )
    entered = way._entered
    if fault == "order":
        monkeypatch.setattr(
            backward_module.TwoWayStream,
            "_layers",
            lambda self, work, observer, **_: layers(self, work, observer),
        )
    elif fault == "states":
        monkeypatch.setattr(
            way, "_entered", lambda self, layer, *at: entered(self, layer - (layer in (1, 2)), *at)
        )
    else:

        def without(left: torch.Tensor, into: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
            added = left.grad_fn is not None and left.grad_fn.name().startswith("Add")
            return gradient(left, into, back) - (back if added else 0)

        monkeypatch.setattr(backward_module, "_gradient", without)
    folder = zoo("qwen3_5")
    returned = once(folder)
    assert worst(returned, whole(folder, returned)) > 1000 * TOLERANCE


# --- how it is cut does not matter -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen3_5_moe"])
def test_batches_slices_and_spilling_change_nothing(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = zoo(name)
    first = once(folder, batch_tokens=10**6)
    monkeypatch.setattr(backward_module, "_LOGITS", 1 << 13)
    monkeypatch.setattr(backward_module, "_HEAD_TOKENS", 40)
    again = once(folder, batch_tokens=1, activation_memory=0, spill_folder=tmp_path)
    assert np.array_equal(first.labels, again.labels)
    assert first.draft_labels is not None
    assert again.draft_labels is not None
    assert np.array_equal(first.draft_labels, again.draft_labels)
    for table, rows in first.sensitivity.tables.items():
        for tensor, values in rows.items():
            assert distance(again.sensitivity.tables[table][tensor], values) < TOLERANCE, (table, tensor)
    assert list(tmp_path.iterdir()) == []


def test_labels_follow_from_seed_and_distribution(zoo: Zoo) -> None:
    """The label is where the whole model's probabilities, added up, exceed a number that was drawn."""
    folder = zoo("qwen3_5_tied")
    returned = there_and_back(folder)
    other = once(folder, seed=4)
    assert (returned.labels != other.labels).mean() > 0.5
    view = view_of(folder)
    table = view.find(Role.OUTPUT) or view.find(Role.TOKEN_EMBD)
    assert table is not None
    weight = torch.cat([p.checkpoint.read_rows(p.name, p.start, p.stop) for p in table.data.pieces]).float()
    added = (whole(folder, returned).final.double() @ weight.double().t()).softmax(-1).cumsum(-1)
    drawn = np.random.default_rng([3, 0]).random(returned.labels.shape)
    expected = (added.numpy() <= drawn[..., None]).sum(-1)
    assert (returned.labels == expected).mean() > 0.98


def test_a_chunk_longer_than_what_is_wanted_is_cut(zoo: Zoo) -> None:
    folder = zoo("qwen3_5")
    returned = once(folder, at_most=24)
    assert returned.labels.shape == (1, 24)
    assert worst(returned, whole(folder, returned)) < TOLERANCE


@pytest.mark.parametrize("precision", ["mixed", "bfloat16"])
def test_rounded_products_give_nearly_the_same(zoo: Zoo, precision: str) -> None:
    folder = zoo("qwen3_5")
    returned = once(folder, precision=precision)
    expected = whole(folder, returned)
    near = 0.02 if precision == "mixed" else 0.05
    for name, sums in expected.sums.items():
        found = returned.sensitivity.tables[Summed.GRADIENTS].get(name)
        if found is not None:
            assert found.sum() == pytest.approx(sums.sum(), rel=near), name


# --- memory, progress, errors ------------------------------------------------------------------------------


def test_what_is_read_and_what_stays(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer twice, the output matrix twice for each loss; never more than two layers at once."""
    read: Counter[str] = Counter()
    living: dict[int, list[weakref.ref[torch.Tensor]]] = {}
    most = 0
    plain, fill = LocalCheckpoint.read_rows, stream_module.fill

    def read_rows(self: LocalCheckpoint, name: str, start: int, stop: int) -> torch.Tensor:
        read[name.replace("model.language_model.", "model.")] += stop - start
        return plain(self, name, start, stop)

    def filled(tensors: Any, *args: Any) -> dict[str, torch.Tensor]:
        nonlocal most
        weights = fill(tensors, *args)
        if tensors[0].block is Block.TRUNK and tensors[0].layer is not None:
            living[tensors[0].layer] = [weakref.ref(weight) for weight in weights.values()]
            most = max(most, sum(any(ref() is not None for ref in refs) for refs in living.values()))
        return weights

    monkeypatch.setattr(LocalCheckpoint, "read_rows", read_rows)
    monkeypatch.setattr(stream_module, "fill", filled)
    folder = zoo("qwen3_5")
    once(folder)
    view = view_of(folder)
    rows = {t.name: t.data.matrix_shape[0] for t in view}
    for tensor in view:
        if tensor.block in (Block.TRUNK, Block.MTP) and len(tensor.shape) > 1:
            assert read[tensor.name] == 2 * rows[tensor.name], tensor.name
    assert read["lm_head.weight"] == 4 * rows["lm_head.weight"]
    assert most == 2 < view.layers


def test_progress_ends_at_its_total(zoo: Zoo) -> None:
    class Total:
        done = 0

        def advance(self, units: int) -> None:
            self.done += units

    total, ids = Total(), ids_for(zoo("qwen3_5"))
    stream = TwoWayStream(view_of(zoo("qwen3_5")), StreamOptions(batch_tokens=80), at_most=100)
    stream.run_both(ids, InputSquares(), progress=total)
    assert total.done == stream.units(ids)


def test_a_damaged_output_matrix_is_said(zoo_copy: ZooCopy) -> None:
    with pytest.raises(InputError, match="probabilities of the next token are not finite"):
        once(damaged(zoo_copy("qwen3_5"), "lm_head.weight"))
