"""Sensitivities in the importance matrix: names, the order of rows, planned bytes, and what they predict."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from held_text import own_words
from oracle import toolchain

from qexport.codecs.contract import Matrices, ggml_stored
from qexport.codecs.engines import encode_rows
from qexport.demo import MODEL
from qexport.errors import InputError
from qexport.evidence.backward import TwoWayStream
from qexport.evidence.imatrix_file import ImportanceMatrix, imatrix_bytes, read_imatrix
from qexport.evidence.imatrix_sums import merged
from qexport.evidence.observe import InputSquares
from qexport.evidence.options import StreamOptions
from qexport.evidence.sensitivity import CLOSED_FORM, Summed, closed_form_kld, predicted_kld, weights_of
from qexport.evidence.store import Evidence, Kind
from qexport.families.view import ModelView
from qexport.formats.gguf.arch import arch_of, arrangement_of, gguf_name
from qexport.formats.gguf.importance import evidence_of, gguf_importance, uncollected, unfelt
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf
from qexport.onepass.execute import execute
from qexport.recipe.choice import ModelChoice
from qexport.run.model import examine


def view_of(folder: Path) -> ModelView:
    return examine(ModelChoice(str(folder)), download=False).repaired.view()


def collected(
    view: ModelView, ids: np.ndarray, label: str = "m.gguf_file", **options: Any
) -> ImportanceMatrix:
    stream = TwoWayStream(view, StreamOptions(precision="float32"), **options)
    squares = InputSquares()
    found = stream.run_both(ids, squares, text="t").sensitivity
    about = {"datasets": ["d"], "chunk_count": len(ids), "chunk_size": ids.shape[1], "label": label}
    return gguf_importance(view, squares.sums, squares.counts, sensitivity=found, **about)  # type: ignore[arg-type]


def some_ids(chunks: int = 3, size: int = 24) -> np.ndarray:
    return (np.arange(chunks * size, dtype=np.int32) * 7 % 300).reshape(chunks, size)


@pytest.mark.parametrize("name", ["qwen3_5_moe", "qwen3_5_tied", "llama3"])
def test_what_is_planned_is_what_is_written(zoo: Any, tmp_path: Path, name: str) -> None:
    """Every table and shape, so the size; what is read again is what was written, and llama.cpp's part of it
    is what it is without."""
    view = view_of(zoo(name))
    matrix = collected(view, some_ids(), at_most=48)
    assert matrix.sensitivity is not None
    sums, counts = uncollected(view)
    expected = replace(matrix, sums={}, counts={}, sensitivity=None)
    planned = gguf_importance(
        view, sums, counts, sensitivity=unfelt(view, 1, 1, ("t seed 0",)),
        datasets=["d"], chunk_count=3, chunk_size=24, label=expected.label,
    )  # fmt: skip
    data = imatrix_bytes(matrix)
    assert len(imatrix_bytes(planned)) == len(data)
    (tmp_path / "m.gguf_file").write_bytes(data)
    again = read_imatrix(tmp_path / "m.gguf_file")
    assert again.sensitivity is not None
    assert {t: set(rows) for t, rows in again.sensitivity.tables.items()} == {
        t: set(rows) for t, rows in matrix.sensitivity.tables.items()
    }
    for table, rows in matrix.sensitivity.tables.items():
        for tensor, values in rows.items():
            assert np.array_equal(again.sensitivity.tables[table][tensor], values), (table, tensor)
    assert (again.sensitivity.tokens, again.sensitivity.texts) == (48, ("t seed 0",))
    assert again.sensitivity.draft_tokens == (0 if name == "llama3" else 46)
    (tmp_path / "plain.gguf_file").write_bytes(imatrix_bytes(replace(matrix, sensitivity=None)))
    plain = read_imatrix(tmp_path / "plain.gguf_file")
    assert plain.sensitivity is None
    assert all(np.array_equal(plain.sums[tensor], again.sums[tensor]) for tensor in plain.sums)
    # llama.cpp takes tensors that end so for its own and asks for their partners
    reader = gguf.GGUFReader(tmp_path / "m.gguf_file")
    theirs = {t.name for t in reader.tensors if t.name.endswith((".in_sum", ".in_sum2", ".counts"))}
    assert theirs == {f"{tensor}.{s}" for tensor in matrix.sums for s in ("in_sum2", "counts")}
    assert max(len(t.name) for t in reader.tensors) < 64


@pytest.mark.parametrize("name", ["qwen3_5", "llama3", "qwen3_5_moe"])
def test_rows_are_the_gguf_tensors_and_come_back(zoo: Any, name: str) -> None:
    """Rows of queries are interleaved and value heads tiled in GGUF; the store has the checkpoint's order."""
    view = view_of(zoo(name))
    raw = TwoWayStream(view, StreamOptions(precision="float32"), at_most=48)
    squares = InputSquares()
    found = raw.run_both(some_ids(), squares, text="t").sensitivity
    about = {"datasets": ["d"], "chunk_count": 3, "chunk_size": 24, "label": "m"}
    matrix = gguf_importance(view, squares.sums, squares.counts, sensitivity=found, **about)  # type: ignore[arg-type]
    assert matrix.sensitivity is not None
    evidence, moved = evidence_of(view, matrix), 0
    for tensor in view:
        values = found.tables[Summed.GRADIENTS].get(tensor.name)
        if values is None:
            continue
        tokens = found.draft_tokens if tensor.name.startswith("mtp.") else found.tokens
        back = evidence.of(Kind.OUTPUT_GRADIENTS, tensor.name)
        assert back is not None
        np.testing.assert_allclose(back, values / tokens, rtol=1e-6)
        pair, seen = (found.tables[table][tensor.name] for table in (Summed.JOINT, Summed.TOKENS))
        joint = evidence.of(Kind.JOINT, tensor.name)
        assert joint is not None
        expected = seen * pair[:, :1] / np.maximum(values.sum(1, keepdims=True) * pair[:, 1:], 1e-30)
        np.testing.assert_allclose(joint[seen > 0], expected[seen > 0], rtol=1e-4)
        assert (joint[seen == 0] == 1).all()
        order = arrangement_of(arch_of(view), view, tensor).row_order
        outside = matrix.sensitivity.tables[Summed.GRADIENTS][gguf_name(arch_of(view), view, tensor)]
        assert np.array_equal(outside, values if order is None else values[:, order])
        moved += not np.array_equal(outside, values)
    assert moved > 0
    embedding = next(iter(found.tables[Summed.LOOKUPS]))
    lookups = evidence.of(Kind.LOOKUPS, embedding)
    assert lookups is not None
    assert lookups.sum() == pytest.approx(1, rel=1e-5)


def test_merging_adds_and_keeps(zoo: Any) -> None:
    view = view_of(zoo("qwen3_5_moe"))
    one, two = collected(view, some_ids(), at_most=48), collected(view, some_ids(), at_most=24, seed=1)
    assert one.sensitivity is not None
    assert two.sensitivity is not None
    both = merged([one, two], "both", 24).sensitivity
    assert both is not None
    assert (both.tokens, both.draft_tokens, both.texts) == (72, 69, ("t seed 0", "t seed 1"))
    for table, rows in both.tables.items():
        for tensor, values in rows.items():
            total = one.sensitivity.tables[table][tensor] + two.sensitivity.tables[table][tensor]
            assert np.array_equal(values, total)
    kept = merged([replace(one, sensitivity=None), two], "kept", 24).sensitivity
    assert kept is not None
    assert (kept.tokens, kept.texts) == (24, ("t seed 1",))
    assert merged([replace(one, sensitivity=None)], "none", 24).sensitivity is None
    tables = {**two.sensitivity.tables, Summed.GRADIENTS: {"output.weight": np.ones((1, 5), np.float32)}}
    other = replace(two, label="other", sensitivity=replace(two.sensitivity, tables=tables))
    with pytest.raises(InputError, match=r"other: output\.weight\.out_grad2 is \(1, 5\), not \(1, "):
        merged([one, other], "no", 24)
    with pytest.raises(InputError, match=r"values for output\.weight\.out_grad2, not .* another model"):
        evidence_of(view, other)


def test_damaged_sensitivities_are_refused(zoo: Any, tmp_path: Path) -> None:
    matrix = collected(view_of(zoo("llama3")), some_ids(), at_most=24)
    assert matrix.sensitivity is not None
    tables = {Summed.GRADIENTS: {"output.weight": np.full((1, 5), -1, np.float32)}}
    bad = replace(matrix, sensitivity=replace(matrix.sensitivity, tables=tables))
    (tmp_path / "bad").write_bytes(imatrix_bytes(bad))
    with pytest.raises(InputError, match=r"output\.weight\.out_grad2 has values that are negative"):
        read_imatrix(tmp_path / "bad")
    none = replace(matrix, sensitivity=replace(matrix.sensitivity, tokens=0))
    (tmp_path / "none").write_bytes(imatrix_bytes(none))
    with pytest.raises(InputError, match=r"qexport\.sensitivity\.tokens"):
        read_imatrix(tmp_path / "none")


def test_without_sensitivity_nothing_is_said() -> None:
    assert weights_of(Evidence({Kind.INPUT_SQUARES: {"x": np.ones((1, 4), np.float32)}}), "x") == ()


@pytest.mark.toolchain
@pytest.mark.skipif(not toolchain.can_quantize(), reason=toolchain.NO_QUANTIZER)
def test_llama_quantize_reads_past_them(zoo: Any, tmp_path: Path) -> None:
    view = view_of(zoo("qwen3_5"))
    matrix = collected(view, some_ids(), at_most=48)
    (plan,) = plan_gguf(view, ["BF16"], GgufOptions())
    execute([plan], tmp_path)
    peers = []
    for name, each in (("felt", matrix), ("plain", replace(matrix, sensitivity=None))):
        given, peer = tmp_path / f"{name}.gguf_file", tmp_path / f"{name}.gguf"
        given.write_bytes(imatrix_bytes(each))
        said = toolchain.quantize(tmp_path / plan.files[0].name, peer, "Q4_K_M", imatrix=given)
        assert f"loaded {len(matrix.sums)} importance matrix entries" in said
        peers.append({t.name: t.data.tobytes() for t in gguf.GGUFReader(peer).tensors})
    assert peers[0] == peers[1]


# --- what it is for --------------------------------------------------------------------------------------


def decoded(rows: torch.Tensor, type_name: str, importance: np.ndarray | None) -> torch.Tensor:
    (packed,) = encode_rows(ggml_stored(type_name), rows, known=Matrices(importance=importance))
    data = np.asarray(packed[0]).view(np.uint8).reshape(len(rows), -1)
    back = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[type_name])
    return torch.from_numpy(back.reshape(rows.shape).copy())


# Of every kind of product.
TENSORS = (
    "model.layers.0.linear_attn.in_proj_qkv.weight",
    "model.layers.0.linear_attn.in_proj_z.weight",
    "model.layers.0.linear_attn.out_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
    "model.layers.2.mlp.gate_proj.weight",
    "model.layers.2.linear_attn.out_proj.weight",
    "model.layers.3.self_attn.k_proj.weight",
    "model.layers.3.self_attn.v_proj.weight",
    "model.layers.3.self_attn.o_proj.weight",
    "model.layers.3.mlp.down_proj.weight",
    "model.embed_tokens.weight",
)
# Some heads of some tokens have queries near zero; the norm behind them makes gradients of that, which no
# error of this size can follow. Four tokens of four thousand hold nine tenths of this matrix's energy.
OVERRATED = "model.layers.3.self_attn.q_proj.weight"
TYPES = ("Q3_K", "Q5_K")


@pytest.mark.slow
def test_the_predicted_divergence_is_the_measured_one() -> None:
    """Single tensors of a trained model, the tied embedding among them; on text it was not collected on."""
    from transformers import AutoModelForCausalLM

    view = view_of(MODEL)
    evidence = evidence_of(view, collected(view, own_words(11)))
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    ids = torch.from_numpy(own_words(22, 2048).astype(np.int64))
    plain = {name.replace("model.language_model.", "model."): p for name, p in model.named_parameters()}

    @torch.no_grad()
    def predictions() -> torch.Tensor:
        return model(ids, use_cache=False).logits.double().log_softmax(-1)

    source = predictions()
    likely = source.exp()
    predicted, closed, measured = [], [], []
    for name, type_name in product((*TENSORS, OVERRATED), TYPES):
        before = plain[name].detach().clone()
        weights = weights_of(evidence, name)
        assert len(weights) == (2 if "embed" in name else 1)
        after = decoded(before, type_name, evidence.of(Kind.INPUT_SQUARES, name))
        predicted.append(predicted_kld(weights, (after - before).numpy()))
        closed.append(closed_form_kld(weights, before.numpy(), type_name))
        plain[name].data.copy_(after)
        measured.append(float(likely.mul(source - predictions()).sum(-1).mean()))
        plain[name].data.copy_(before)
    for found, most in ((predicted, 2), (closed, 2.5)):
        ratios = np.array(found) / np.array(measured)
        trusted = ratios[: -len(TYPES)]
        assert np.corrcoef(_ranks(found), _ranks(measured))[0, 1] > 0.9, ratios
        assert trusted.max() < most, ratios
        assert trusted.min() > 1 / most, ratios
        assert ratios.max() < 8, ratios
    assert set(TYPES) <= set(CLOSED_FORM)


def _ranks(values: list[float]) -> np.ndarray:
    return np.argsort(np.argsort(values))
