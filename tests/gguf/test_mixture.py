"""The choice of types equals llama-quantize's, tensor by tensor, for every file type and model shape.

The goldens are what ``llama-quantize --dry-run`` printed; make_mixture_golden.py writes them anew.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest

from qexport.codecs.ggml_types import GGML_TYPES
from qexport.errors import InputError, UsageProblem
from qexport.formats.gguf.file_types import FILE_TYPES, file_type
from qexport.formats.gguf.mixture import choose_types, protect_mtp, requires_importance, walk_order
from qexport.formats.gguf.mixture_terms import Choice, MixtureModel, Overrides, Reason, TensorShape

GOLDEN = Path(__file__).parent / "golden_mixture"
MODELS = [
    "hybrid_32_1_tied",
    "hybrid_64_0",
    "hybrid_64_1",
    "hybrid_8_0_width_576_tied",
    "hybrid_8_1_width_544",
    "hybrid_moe_40_1",
    "hybrid_moe_60_1",
    "llama_12_kv_per_layer",
    "llama_22_gqa8_width_100",
    "llama_30_gqa3_tied",
    "llama_32_8_experts",
    "llama_32_gqa1",
    "llama_32_gqa4",
    "llama_6_width_100_head",
    "llama_80_65b",
    "llama_80_70b",
    "qwen2_80_72b",
    "qwen3moe_48",
]


@cache
def blocks(text: str) -> list[int]:
    """``"0-2 5" -> [0, 1, 2, 5]``; outside blocks, ``[-1]``."""
    if not text:
        return [-1]
    bounds = [tuple(int(n) for n in part.split("-")) for part in text.split()]
    return [n for bound in bounds for n in range(bound[0], bound[-1] + 1)]


def load(label: str) -> tuple[MixtureModel, list[TensorShape], list[dict[str, Any]]]:
    document = json.loads((GOLDEN / f"{label}.json").read_text())
    tensors = [
        TensorShape(f"blk.{block}.{name}" if block >= 0 else name, tuple(shape))
        for name, shape, where in document["tensors"]
        for block in blocks(where)
    ]
    for run, before in zip(document["runs"][1:], document["runs"], strict=False):
        run.setdefault("types", before["types"])
    return MixtureModel(**document["model"]), tensors, document["runs"]


def expected(run: dict[str, Any], tensor: TensorShape) -> str:
    row = run["types"][tensor.name.split(".", 2)[2] if tensor.block >= 0 else tensor.name]
    if isinstance(row, str):
        return row
    return next(kind for kind, where in row.items() if tensor.block in blocks(where))


@pytest.mark.parametrize("label", MODELS)
def test_equals_llama_quantize(label: str) -> None:
    model, tensors, runs = load(label)
    assert {file_type(run["file_type"]).name for run in runs} == set(FILE_TYPES) - {"NVFP4"}  # ours
    for run in runs:
        overrides = Overrides(
            [(pattern, kind) for pattern, kind in run.get("tensor_types", [])],
            output=run.get("output"),
            token_embedding=run.get("token_embedding"),
        )
        imatrix = run.get("imatrix", False)
        chosen = choose_types(run["file_type"], tensors, model, has_imatrix=imatrix, overrides=overrides)
        pairs = {t.name: (chosen[t.name].type, expected(run, t)) for t in tensors}
        wrong = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
        assert not wrong, (run["file_type"], imatrix, overrides)


def test_every_golden_is_compared() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.json")) == sorted(MODELS)


def test_order_of_tensors_does_not_matter() -> None:
    model, tensors, _ = load("hybrid_32_1_tied")
    shuffled = sorted(tensors, key=lambda t: t.name[::-1])
    assert choose_types("Q4_K_M", shuffled, model) == choose_types("Q4_K_M", tensors, model)
    assert list(choose_types("Q4_K_M", shuffled, model)) == [t.name for t in shuffled]
    assert sorted(["blk.10.b", "blk.2.a", "output.weight", "blk.2.B"], key=walk_order) == [
        "output.weight",
        "blk.2.B",
        "blk.2.a",
        "blk.10.b",
    ]


def test_file_type_numbers_are_ggufs() -> None:
    for file in FILE_TYPES.values():
        prefix = "ALL" if file.name == "F32" else "MOSTLY"
        assert file.id == gguf.LlamaFileType[f"{prefix}_{file.name}"].value
        assert file.default in GGML_TYPES


def test_aliases_and_case() -> None:
    assert file_type("q4_k") is FILE_TYPES["Q4_K_M"]
    assert file_type("Q3_K") is FILE_TYPES["Q3_K_M"]
    with pytest.raises(UsageProblem, match="TQ2_0") as caught:
        file_type("TQ2_0")
    assert "Q4_K_M" in str(caught.value)


def test_reasons_and_fallbacks() -> None:
    model, tensors, _ = load("hybrid_8_1_width_544")
    overrides = Overrides([("blk.0.ffn_up", "Q6_K")])
    chosen = choose_types("Q4_K_M", tensors, model, overrides=overrides)
    assert chosen["output.weight"] == Choice("Q8_0", Reason.MIXTURE)
    assert chosen["blk.0.attn_norm.weight"] == Choice("F32", Reason.KEPT)
    assert chosen["blk.0.ffn_gate.weight"] == Choice("Q5_0", Reason.DEFAULT, fallback_from="Q4_K")
    assert chosen["blk.0.ffn_up.weight"] == Choice("Q8_0", Reason.OVERRIDE, fallback_from="Q6_K")
    assert chosen["blk.0.ffn_down.weight"] == Choice("Q8_0", Reason.MIXTURE, fallback_from="Q6_K")


def test_shapes_as_ggml_counts_them() -> None:
    # an outer dimension of 1 does not make a matrix: the router of a shared expert stays float32
    model = MixtureModel("qwen35moe", 1, 4, 4, experts=4)
    row = [TensorShape("blk.0.ffn_gate_inp_shexp.weight", (1, 256)), TensorShape("blk.0.x.weight", (1, 256))]
    chosen = choose_types("Q4_K_M", row, model)
    assert [choice.type for choice in chosen.values()] == ["F32", "BF16"]
    assert TensorShape("scalar", ()).ggml_dims == 1
    assert TensorShape("experts", (4, 1, 8)).ggml_dims == 3


def test_layer_zero_decides_about_grouped_attention() -> None:
    assert MixtureModel("llama", 2, [32, 8], [8, 8]).gqa == 4
    assert MixtureModel("llama", 2, 32).gqa == 1
    assert MixtureModel("qwen35", 2, 32, [0, 8]).gqa == 0


def test_what_llama_cpp_calls_70b() -> None:
    assert MixtureModel("llama", 80, 64, 8).is_70b
    assert not MixtureModel("llama", 80, 64, 64).is_70b
    assert not MixtureModel("llama", 80, 64, 8, experts=8).is_70b
    assert MixtureModel("qwen2", 80, 64, 8).is_70b
    assert not MixtureModel("qwen3", 80, 64, 8).is_70b


def test_expert_model_with_unnumbered_layers_is_refused() -> None:
    model = MixtureModel("qwen3moe", 2, 4, 4, experts=4)
    with pytest.raises(InputError, match=r"blk\.2\.ffn_down"):
        choose_types("Q4_K_M", [TensorShape("blk.2.ffn_down_exps.weight", (4, 2, 256))], model)


def test_bad_overrides_are_refused_early() -> None:
    with pytest.raises(UsageProblem, match="regular expression"):
        Overrides([("blk.(", "Q8_0")])
    with pytest.raises(UsageProblem, match="Q9_0"):
        Overrides([("blk", "Q9_0")])
    with pytest.raises(UsageProblem, match="nope"):
        Overrides(output="nope")


# --- our own rule for the MTP block ---


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_1", "Q5_K_M", "IQ4_XS"])
def test_mtp_never_below_q6_k(name: str) -> None:
    model, tensors, _ = load("hybrid_64_1")
    plain = choose_types(name, tensors, model)
    safe = protect_mtp(plain, tensors, model)
    assert safe["blk.64.nextn.eh_proj.weight"] == Choice("Q6_K", Reason.MTP)
    assert {safe[t.name].type for t in tensors if t.block == 64} == {"F32", "Q6_K"}
    assert all(safe[t.name] == plain[t.name] for t in tensors if t.block < 64)


def test_mtp_keeps_what_is_higher() -> None:
    model, tensors, _ = load("hybrid_64_1")
    for name in ("Q6_K", "Q8_0", "F16", "BF16", "F32"):
        plain = choose_types(name, tensors, model)
        assert protect_mtp(plain, tensors, model) == plain


def test_mtp_floor_where_rows_do_not_fit() -> None:
    model, tensors, _ = load("hybrid_8_1_width_544")
    safe = protect_mtp(choose_types("Q4_K_M", tensors, model), tensors, model)
    assert safe["blk.8.ffn_up.weight"] == Choice("Q8_0", Reason.MTP, fallback_from="Q6_K")


def test_mtp_type_is_obeyed_and_mixture_is_llama_cpp() -> None:
    model, tensors, _ = load("hybrid_64_1")
    plain = choose_types("Q6_K", tensors, model)
    assert protect_mtp(plain, tensors, model, "mixture") == plain
    lower = protect_mtp(plain, tensors, model, "q4_k")
    assert {lower[t.name].type for t in tensors if t.block == 64} == {"F32", "Q4_K"}
    full = protect_mtp(plain, tensors, model, "BF16")
    assert {full[t.name].type for t in tensors if t.block == 64} == {"F32", "BF16"}
    with pytest.raises(UsageProblem, match="Q7"):
        protect_mtp(plain, tensors, model, "Q7")


def test_a_named_tensor_wins_over_the_mtp_rule() -> None:
    model, tensors, _ = load("hybrid_64_1")
    plain = choose_types("Q4_K_M", tensors, model, overrides=Overrides([("eh_proj", "Q4_0")]))
    safe = protect_mtp(plain, tensors, model, "Q8_0")
    assert safe["blk.64.nextn.eh_proj.weight"] == Choice("Q4_0", Reason.OVERRIDE)
    assert safe["blk.64.attn_q.weight"].type == "Q8_0"


def test_no_mtp_block_no_change() -> None:
    model, tensors, _ = load("hybrid_64_0")
    plain = choose_types("Q2_K", tensors, model)
    assert protect_mtp(plain, tensors, model, "Q8_0") == plain


def test_what_needs_an_imatrix() -> None:
    assert requires_importance("blk.0.attn_q.weight", "Q2_K", "Q2_K_S")
    assert not requires_importance("token_embd.weight", "Q2_K", "Q2_K_S")
    assert not requires_importance("blk.0.attn_q.weight", "Q2_K", "Q2_K")
    assert not requires_importance("blk.0.attn_v.weight", "Q4_K", "Q2_K_S")
    assert requires_importance("blk.0.attn_q.weight", "IQ2_S", "IQ3_XXS")
    assert not requires_importance("blk.0.attn_q.weight", "IQ3_S", "IQ3_S")
    assert not requires_importance("token_embd.weight", "IQ2_S", "IQ2_M")
    assert requires_importance("token_embd.weight", "IQ2_XXS", "IQ2_XXS")  # ggml would abort
