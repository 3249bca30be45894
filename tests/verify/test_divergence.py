"""Divergence against the plain way: transformers' whole models, all logits at once, float64."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from zoo_types import Zoo

from qexport.checkpoint.local import LocalCheckpoint
from qexport.doctor import diagnose
from qexport.errors import InputError
from qexport.evidence.options import StreamOptions
from qexport.families.view import ModelView
from qexport.verification import logits as logits_module
from qexport.verification.blocks import block_error
from qexport.verification.comparison import compare
from qexport.verification.divergence import Divergence, NotFinite, compare_runs, gained
from qexport.verification.mtp_head import score_head
from qexport.verification.text_run import EXACT, run_text

SMALL = {"hidden": 128, "intermediate": 256, "layers": 4, "shards": 1}
CHUNKS, CHUNK = 5, 24


@pytest.fixture(autouse=True)
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices that divide nothing evenly: of the vocabulary, and of positions."""
    monkeypatch.setattr(logits_module, "_SLICE", 100)
    monkeypatch.setattr(logits_module, "_POSITIONS", 30)


def view_of(folder: Path) -> ModelView:
    return diagnose(LocalCheckpoint(folder)).repaired.view()


def noisy(folder: Path, out: Path, amount: float = 0.3) -> Path:
    """The same model, its matrices a little different."""
    shutil.copytree(folder, out, copy_function=shutil.copyfile)
    tensors = load_file(out / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    for name, tensor in tensors.items():
        if tensor.ndim >= 2 and "visual" not in name:
            noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std() * amount
            tensors[name] = (tensor.float() + noise).to(tensor.dtype)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def ids_for(folder: Path) -> np.ndarray:
    config = json.loads((folder / "config.json").read_text())
    vocabulary = config.get("text_config", config)["vocab_size"]
    return np.random.default_rng(5).integers(0, vocabulary, (CHUNKS, CHUNK)).astype(np.int32)


def all_logits(folder: Path, ids: np.ndarray) -> torch.Tensor:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.from_numpy(ids).long()).logits.double()


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe", "gemma3"])
@pytest.mark.parametrize("first", [None, 0])
def test_against_all_logits_at_once(zoo: Zoo, tmp_path: Path, name: str, first: int | None) -> None:
    source = zoo(name, **(SMALL if name != "gemma3" else {"layers": 2}))
    other = noisy(source, tmp_path / "other")
    ids = ids_for(source)
    found = compare(view_of(source), view_of(other), ids, first=first).trunk

    begin = CHUNK // 2 if first is None else first
    p, q = (all_logits(folder, ids)[:, begin:-1].log_softmax(-1) for folder in (source, other))
    expected = (p.exp() * (p - q)).sum(-1).reshape(-1).numpy()
    assert expected.mean() > 0.01
    assert found.positions == len(expected) == CHUNKS * (CHUNK - 1 - begin)
    assert found.mean == pytest.approx(expected.mean(), rel=1e-3)
    assert found.median == pytest.approx(np.median(expected), rel=1e-3)
    assert found.max == pytest.approx(expected.max(), rel=1e-3)
    for key, percent in (("p90", 90), ("p95", 95), ("p99", 99), ("p99_9", 99.9)):
        if len(expected) * (100 - percent) >= 1000:
            assert getattr(found, key) == pytest.approx(np.percentile(expected, percent), rel=1e-3)
        else:  # fewer than ten positions lie beyond it
            assert getattr(found, key) is None
    assert found.same_top == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    targets = torch.from_numpy(ids).long()[:, begin + 1 :, None]
    for loss, logprobs in ((found.source_loss, p), (found.loss, q)):
        assert loss == pytest.approx(-float(logprobs.gather(-1, targets).mean()), rel=1e-4)
    assert found.perplexity_ratio == pytest.approx(np.exp(found.loss - found.source_loss))
    said = (p - q).gather(-1, targets)[..., 0].double().numpy()
    assert found.perplexity.error == pytest.approx(found.perplexity_ratio * block_error(said), rel=1e-3)


def test_a_model_from_itself(zoo: Zoo) -> None:
    folder = zoo("qwen3_5", **SMALL)
    view = view_of(folder)
    found = compare(view, view, ids_for(folder)).trunk
    assert (found.mean, found.max, found.same_top) == (0, 0, 1)
    assert found.loss == found.source_loss


def test_spilled_states_are_the_same(zoo: Zoo, tmp_path: Path) -> None:
    """Hidden states in files instead of memory change nothing."""
    folder = zoo("qwen3_5", **SMALL)
    other = view_of(noisy(folder, tmp_path / "other"))
    ids = ids_for(folder)
    options = StreamOptions(precision="float32", activation_memory=0, spill_folder=tmp_path)
    with run_text(other, ids, options) as run:
        assert run.final.spilled
        assert run.head is not None
        assert run.head.draft.spilled
    found = compare(view_of(folder), other, ids, options)
    assert found.score is not None
    assert found == compare(view_of(folder), other, ids, EXACT)


def test_a_smaller_vocabulary_is_compared_as_far_as_it_goes(zoo: Zoo) -> None:
    """llama.cpp's Gemma has no rows beyond the last token; so both are normalized over the rest."""
    ids = np.full((2, 8), 5, np.int32)
    wide, narrow = (view_of(zoo("qwen3_5", **SMALL, vocab=rows)) for rows in (448, 440))
    found = compare(wide, narrow, ids).trunk
    assert found.vocabulary == 440


def test_different_texts_are_not_compared(zoo: Zoo) -> None:
    view = view_of(zoo("qwen3_5", **SMALL))
    one, two = np.full((2, 8), 5, np.int32), np.full((2, 8), 6, np.int32)
    with (
        run_text(view, one) as a,
        run_text(view, two) as b,
        pytest.raises(InputError, match="different texts"),
    ):
        compare_runs(a, b)


def test_damaged_weights_are_said(zoo: Zoo, tmp_path: Path) -> None:
    folder = zoo("qwen3_5", **SMALL)
    out = noisy(folder, tmp_path / "other", 0)
    tensors = load_file(out / "model.safetensors")
    tensors["lm_head.weight"][7] = torch.inf
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    view = view_of(out)
    with pytest.raises(NotFinite, match=r"^other: .* are not finite"):
        compare(view_of(folder), view, ids_for(folder))
    with pytest.raises(NotFinite, match=r"^other: .* are not finite"):  # whose it is, whichever side
        compare(view, view_of(folder), ids_for(folder))
    with run_text(view, ids_for(folder)) as run, pytest.raises(NotFinite, match="not finite"):
        score_head(run)


def test_a_perplexity_beyond_floats_is_infinite() -> None:
    ones = {field.name: 1 for field in fields(Divergence)}
    assert Divergence(**ones | {"loss": 2000.0}).perplexity_ratio == math.inf


def test_what_is_gained_is_told_position_by_position(zoo: Zoo, tmp_path: Path) -> None:
    source = zoo("llama3", layers=2)
    ids = ids_for(source)
    near, far = (noisy(source, tmp_path / str(amount), amount) for amount in (0.3, 0.33))
    with run_text(view_of(source), ids) as run:
        closer, plain = (compare(run, view_of(folder), ids).trunk for folder in (near, far))
        shorter = compare(run, view_of(near), ids, first=20).trunk
    found = gained(plain, closer)
    assert found.value == pytest.approx(plain.mean - closer.mean)
    assert found.error is not None
    assert closer.error is not None
    assert plain.error is not None
    # The two stumble over the same places, so the difference is known better than either.
    assert 0 < found.error < 0.5 * math.hypot(closer.error, plain.error)
    assert gained(closer, plain).value == -found.value
    assert "each" not in plain.to_json()
    with pytest.raises(InputError, match="different positions"):
        gained(plain, shorter)


def test_the_head_is_run_once_and_what_it_needs_is_read_once(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = zoo("qwen3_5", **SMALL)
    read, real = [], LocalCheckpoint.read_rows

    def noted(self: LocalCheckpoint, name: str, start: int, stop: int) -> torch.Tensor:
        read.append((name, start, stop))
        return real(self, name, start, stop)

    with run_text(view_of(folder), ids_for(folder), EXACT) as run:
        monkeypatch.setattr(LocalCheckpoint, "read_rows", noted)
        score = score_head(run)
        assert any(name.startswith("mtp.") for name, _, _ in read)
        assert len(read) == len(set(read))
        read.clear()
        assert score_head(run) == score
        assert read == []
