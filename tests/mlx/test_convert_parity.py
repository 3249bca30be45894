"""Tensor bytes, quantization blocks and index equal to ``mlx_lm convert``; every family, mode and recipe."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from mlx_bench import (
    config_of,
    differences,
    fixed,
    mlx_lm,
    needs_mlx_lm,
    repaired,
    tensors_of,
    written,
)
from zoo_types import Zoo

from qexport.assign.assignment import Assignment, Prediction
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.mlx.plan import plan_mlx
from qexport.formats.mlx.sized import WORDS, candidates, plan_sized
from qexport.onepass.execute import execute


@dataclass(frozen=True)
class Case:
    """A zoo model, our options, mlx-lm's, and what the oracle's input has to be built with instead."""

    model: str
    options: dict[str, Any]
    theirs: dict[str, Any]
    oracle: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([self.model, *map(str, self.options.values())])


def same(model: str, /, **options: Any) -> Case:
    words = {"bits": "q_bits", "group_size": "q_group_size", "mode": "q_mode", "recipe": "quant_predicate"}
    theirs = {words.get(key, key): value for key, value in options.items() if key != "text_only"}
    if "recipe" in options:
        theirs.setdefault("q_group_size", 64)
    return Case(model, options, theirs)


# mlx-lm stacks fused experts alone (qwen3_5_moe); the zoo gives both layouts the same numbers.
ONE_BY_ONE = Case("qwen3_5_moe_text", {"bits": 4}, {"q_bits": 4}, oracle={"expert_layout": "fused"})
# mlx-lm's glm4_moe insists on the key rope_scaling, which transformers 5 does not write.
OLDER = {"style": "published"}
CASES = [
    same("qwen3_5", bits=6),
    same("qwen3_5", bits=4, text_only=True),
    same("qwen3_5_text", bits=3, group_size=32),
    same("qwen3_5_tied", bits=4),
    same("qwen3_5_moe", bits=6, text_only=True),
    same("qwen3_5_moe_122b", bits=8, group_size=128),
    ONE_BY_ONE,
    same("qwen3_5", mode="mxfp4"),
    same("qwen3_5_moe", mode="nvfp4"),
    same("qwen3_5_moe", recipe="mixed_3_6"),
    same("llama", bits=5),
    same("llama", bits=4, dtype="bfloat16"),
    same("llama3", bits=2, group_size=128),
    same("smollm", bits=4),
    same("mistral", recipe="mixed_2_6"),
    same("mistral", mode="mxfp8"),
    same("qwen2", bits=4),
    same("qwen2", bits=4, dtype="bfloat16"),
    same("qwen3", recipe="mixed_4_6", group_size=32),
    same("qwen3_moe", bits=4),
    same("qwen3_moe", mode="nvfp4"),
    same("qwen3_vl", recipe="mixed_4_6"),
    same("gemma3", recipe="mixed_3_4"),
    same("glm4_moe", bits=6),
    replace(same("glm4_moe_air", mode="mxfp4"), oracle=OLDER),
    replace(same("glm4_moe_air", recipe="mixed_4_6"), oracle=OLDER),
    same("qwen3_5", bits=4, dtype="float16"),
]


@needs_mlx_lm
@pytest.mark.slow
def test_equals_convert(zoo: Zoo, tmp_path: Path) -> None:
    """All cases in one test: mlx-lm is imported once, and the source folders are written once."""
    jobs: list[list[Any]] = []
    ours: list[Path] = []
    for number, case in enumerate(CASES):
        model = repaired(zoo(case.model))
        oracle = repaired(zoo(case.model, **case.oracle)) if case.oracle else model
        source = fixed(oracle, tmp_path / f"{number}-source")
        folders, _ = written(model, MlxOptions(**case.options), tmp_path / f"{number}-ours")
        ours.append(folders[0])
        jobs.append([str(source), str(tmp_path / f"{number}-theirs"), case.theirs])
    results = mlx_lm("convert", jobs)
    found = {
        str(case): result or compared(folder, Path(job[1]))
        for case, folder, job, result in zip(CASES, ours, jobs, results, strict=True)
    }
    assert found == {str(case): [] for case in CASES}


@needs_mlx_lm
@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_5_moe", "qwen3_5_tied"])
def test_types_for_an_aim_equal_convert_with_a_predicate(zoo: Zoo, tmp_path: Path, name: str) -> None:
    """Every word on some matrix, the embedding and lm_head among them."""
    model = repaired(zoo(name, hidden=128, intermediate=256))
    (group,) = zip(*candidates(model).groups, strict=True)
    types = {tensor: WORDS[number % len(WORDS)] for number, tensor in enumerate(group)}
    whole = plan_mlx(model, MlxOptions())[0].assignment
    assert whole is not None
    given = Assignment("mlx", "QX-1MB", {**whole.types, **types}, Prediction(0.1, aim="1 MB"))
    plan, *_ = plan_sized(model, MlxOptions(size=1_000_000, types_from=given))
    assert plan.label == "QX-1MB"
    execute([plan], [tmp_path / "ours"], threads=2)
    settings = config_of(tmp_path / "ours")["quantization"]
    stored = tensors_of(tmp_path / "ours")
    by_path = {
        path: settings.get(path, True)
        for path in (name.removesuffix(".scales") for name in stored if name.endswith(".scales"))
    }
    assert {"model.embed_tokens", "language_model.model.embed_tokens"} & set(by_path)
    usual = {"q_bits": settings["bits"], "q_group_size": settings["group_size"]}
    source = fixed(model, tmp_path / "source")
    (result,) = mlx_lm("convert", [[str(source), str(tmp_path / "theirs"), {**usual, "by_path": by_path}]])
    assert not result, result
    assert compared(tmp_path / "ours", tmp_path / "theirs") == []


def compared(ours: Path, theirs: Path) -> list[str]:
    """What differs between two folders and should not."""
    stored = tensors_of(ours)
    seeing = [name for name in stored if "vision" in name]
    language = {name: tensor for name, tensor in stored.items() if name not in seeing}
    wrong = differences(language, tensors_of(theirs))
    mine, other = config_of(ours), config_of(theirs)
    if not mine["quantization"] == mine["quantization_config"] == other["quantization"]:
        wrong.append("config.json: quantization")
    if ("vision_config" in mine) != bool(seeing) or list(mine) != sorted(mine):
        wrong.append("config.json: vision_config, or not sorted")
    if mine.get("eos_token_id") != other.get("eos_token_id"):
        wrong.append("config.json: eos_token_id")
    index, wanted = (json.loads((f / "model.safetensors.index.json").read_text()) for f in (ours, theirs))
    for name in seeing:  # mlx-lm has no tower, and counts no weights of one
        del index["weight_map"][name]
        wanted["metadata"] = index["metadata"]
    return wrong if index == wanted else [*wrong, "index"]
