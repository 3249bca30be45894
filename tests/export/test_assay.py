"""What tensors are said to cost: the sum over what is stored of them, however they are arranged and read."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from zoo_types import Zoo

from qexport.checkpoint.memory import MemoryCheckpoint
from qexport.codecs.contract import ggml_stored
from qexport.codecs.engines import NUMBA, Engine
from qexport.doctor.repaired import Repaired
from qexport.errors import InputError
from qexport.evidence.sensitivity import predicted_kld, weights_of
from qexport.evidence.store import Evidence, Kind
from qexport.families.view import ModelView
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.mlx.plan import plan_mlx
from qexport.formats.plan import Arrangement, ArtifactPlan, PlannedTensor
from qexport.onepass.as_stored import as_stored
from qexport.onepass.assay import assay, assayed_bytes
from qexport.onepass.rows import read_rows
from qexport.recipe.choice import ModelChoice
from qexport.run.model import examine


def repaired(folder: Path) -> Repaired:
    return examine(ModelChoice(str(folder)), download=False).repaired


def felt(view: ModelView, seed: int = 0) -> Evidence:
    """Random sensitivities of every matrix: each row and column weighs something else."""
    random = np.random.default_rng(seed)
    gradients, inputs = {}, {}
    for tensor in view:
        if len(tensor.shape) >= 2 and "conv" not in tensor.name:
            matrices = tensor.shape[0] if len(tensor.shape) == 3 else 1
            gradients[tensor.name] = random.lognormal(size=(matrices, tensor.shape[-2])).astype(np.float32)
            inputs[tensor.name] = random.lognormal(size=(matrices, tensor.shape[-1])).astype(np.float32)
    return Evidence({Kind.OUTPUT_GRADIENTS: gradients, Kind.INPUT_SQUARES: inputs})


def of_gguf(model: Repaired, type_name: str, evidence: Evidence) -> ArtifactPlan:
    (plan,) = plan_gguf(model.view(), [type_name], GgufOptions(mtp_type="mixture"))
    return replace(plan, evidence=evidence)


def of_mlx(model: Repaired, bits: int, evidence: Evidence) -> ArtifactPlan:
    return replace(plan_mlx(model, MlxOptions(bits=bits))[0], evidence=evidence)


def by_hand(view: ModelView, plan: ArtifactPlan, evidence: Evidence) -> dict[str, float]:
    """From the numbers that the written artifact would give, in the checkpoint's own order."""
    stored, found = {tensor.name: tensor for tensor in as_stored(view, [plan])}, {}
    for tensor in view:
        weights = weights_of(evidence, tensor.name)
        if weights and tensor.name in stored:
            rows, _ = tensor.data.matrix_shape
            there = read_rows(stored[tensor.name].data, 0, rows).float()
            errors = (there - read_rows(tensor.data, 0, rows).float()).reshape(tensor.shape)
            found[tensor.name] = predicted_kld(weights, errors.numpy())
    return found


SMALL = {"hidden": 128, "intermediate": 256, "layers": 4}


@pytest.mark.parametrize("name", ["qwen3_5", "llama3", "qwen3_5_moe"])
def test_costs_are_those_of_what_would_be_written(zoo: Zoo, name: str) -> None:
    """Queries interleaved, value heads tiled in rows and columns, stacks of experts: nothing is mixed up."""
    model = repaired(zoo(name, **SMALL))
    view, evidence = model.view(), felt(model.view())
    plans = [of_gguf(model, "Q4_0", evidence), of_gguf(model, "Q8_0", evidence), of_mlx(model, 4, evidence)]
    found = assay(plans, threads=2)
    for plan, costs in zip(plans, found, strict=True):
        expected = by_hand(view, plan, evidence)
        quantized = {t.canonical for t in plan.tensors if t.stored.name not in ("F32", "BF16")}
        assert quantized <= set(costs)
        for tensor in quantized:
            assert costs[tensor] == pytest.approx(expected[tensor], rel=1e-4), tensor
    # Only where llama.cpp's two mixtures differ: routers stay, an embedding may be Q8_0 in both.
    types = [{t.canonical: t.stored.name for t in plan.tensors} for plan in plans[:2]]
    fewer = [t for t in types[0] if (types[0][t], types[1][t]) == ("Q4_0", "Q8_0")]
    assert fewer
    for tensor in fewer:
        assert found[0][tensor] > found[1][tensor] > 0, tensor
    # Planted: sensitivities that are arranged otherwise than the rows give other costs.
    order = {
        tensor.canonical: tensor.arrangement
        for tensor in plans[0].tensors
        if tensor.arrangement.row_order is not None or tensor.arrangement.column_order is not None
    }
    assert order
    for tensor in set(order) & quantized:
        table = {kind: dict(rows) for kind, rows in evidence.tables.items()}
        for kind, way in (
            (Kind.OUTPUT_GRADIENTS, order[tensor].row_order),
            (Kind.INPUT_SQUARES, order[tensor].column_order),
        ):
            if way is not None:
                table[kind][tensor] = table[kind][tensor][:, way]
        (wrong,) = assay([replace(plans[0], evidence=Evidence(table))], threads=1)
        assert wrong[tensor] != pytest.approx(found[0][tensor], rel=1e-5), tensor


def test_several_formats_give_what_each_gives_and_threads_do_not_matter(zoo: Zoo) -> None:
    model = repaired(zoo("qwen3_5", **SMALL))
    evidence = felt(model.view())
    plans = [of_gguf(model, "Q5_0", evidence), of_mlx(model, 6, evidence), of_gguf(model, "Q8_0", evidence)]
    together = assay(plans, threads=3)
    assert together == assay(plans, threads=1)
    assert together == [assay([plan])[0] for plan in plans]


# --- one matrix ------------------------------------------------------------------------------------------


class CountingCheckpoint(MemoryCheckpoint):
    """Counts how often each row was read."""

    def __init__(self, label, tensors):
        super().__init__(label, tensors)
        self.read = {name: np.zeros(len(rows), int) for name, rows in tensors.items()}

    def read_rows(self, name, start, stop):
        self.read[name][start:stop] += 1
        return super().read_rows(name, start, stop)


def one(
    values: torch.Tensor, types: list[str], rows: np.ndarray, columns: np.ndarray, **more: object
) -> tuple[list[ArtifactPlan], CountingCheckpoint]:
    """A plan of one matrix ``w`` for each type."""
    source = CountingCheckpoint("made", {"w": values.reshape(-1, values.shape[-1])})
    logical = replace(source.logical("w"), shape=tuple(values.shape))
    tables = {Kind.OUTPUT_GRADIENTS: {"w": rows}, Kind.INPUT_SQUARES: {"w": columns}}
    plans = []
    for name in types:
        tensor = PlannedTensor("w", logical.shape, logical, Arrangement(), ggml_stored(name), ())
        plans.append(ArtifactPlan("made", name, (), (tensor,), evidence=Evidence(tables)))
    return plans, source


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def test_every_row_is_read_once_for_all_types_and_alike_types_are_encoded_once():
    plans, source = one(normal(5000, 256), ["Q2_K", "Q4_K", "Q8_0", "Q4_K"], ones(1, 5000), ones(1, 256))
    encoded: Counter[str] = Counter()

    def encoder(stored):
        encode = NUMBA.encoder(stored)

        def counted(stored, rows, known):
            encoded[stored.name] += len(rows)
            return encode(stored, rows, known)

        return counted

    found = assay(plans, threads=2, engines=[Engine("counting", encoder)])
    assert set(source.read["w"]) == {1}
    assert encoded == dict.fromkeys(("Q2_K", "Q4_K", "Q8_0"), 5000)
    assert found[1] == found[3]
    assert found[0]["w"] > found[1]["w"] > found[2]["w"] > 0
    assert assayed_bytes(plans) == 5000 * 256 * 2


def test_a_sample_of_rows_gives_nearly_what_all_rows_give():
    """Rows and their sensitivities of very different size, as those of an output matrix."""
    random = np.random.default_rng(1)
    size = torch.from_numpy(random.lognormal(sigma=1, size=(20000, 1)))
    values = (normal(20000, 256).float() * size).bfloat16()
    rows = random.lognormal(sigma=2, size=(1, 20000)).astype(np.float32)
    plans, _ = one(values, ["Q3_K", "Q6_K"], rows, ones(1, 256))
    whole = assay(plans, sampled=1 << 60)
    found = assay(plans)
    assert found != whole
    for costs, exact in zip(found, whole, strict=True):
        assert costs["w"] == pytest.approx(exact["w"], rel=0.03)


def test_energy_is_counted_over_all_rows():
    """One row, of those that are not encoded, holds nearly all of it."""
    rows = ones(1, 20000)
    plans, _ = one(normal(20000, 256), ["Q4_K"], rows, ones(1, 256))
    ((before,),) = [costs.values() for costs in assay(plans)]
    heavy = []
    for row in (7000, 7001, 7002, 7003):
        loud = rows.copy()
        loud[0, row] = 1e6
        plans, _ = one(normal(20000, 256), ["Q4_K"], loud, ones(1, 256))
        heavy.append(assay(plans)[0]["w"] / before)
    assert min(heavy) > 30
    assert max(heavy) < 80  # a millionfold row among twenty thousand: fiftyfold


def test_an_expert_without_tokens_counts_as_the_mean_of_the_others():
    values = normal(1, 32, 256).repeat(4, 1, 1)
    plans, _ = one(values, ["Q4_K"], ones(4, 32), ones(4, 256))
    (all_known,) = assay(plans)
    cold = ones(4, 32)
    cold[2] = 0
    plans, _ = one(values, ["Q4_K"], cold, ones(4, 256))
    (three,) = assay(plans)
    assert three["w"] == pytest.approx(all_known["w"])
    plans, _ = one(values, ["Q4_K"], np.zeros_like(cold), ones(4, 256))
    assert assay(plans) == [{}]
    assert assayed_bytes(plans) == 0


def test_weights_that_are_no_numbers_are_named():
    values = normal(64, 256)
    values[3, 7] = torch.nan
    plans, _ = one(values, ["Q4_K"], ones(1, 64), ones(1, 256))
    with pytest.raises(InputError, match="1 weight is NaN or infinite, in 1 tensor:\n  w: 1 value"):
        assay(plans)


def test_a_type_that_cannot_hold_a_tensor_costs_everything():
    values = normal(64, 256)
    values[3, 7] = 1e10
    plans, _ = one(values, ["Q8_0", "BF16"], ones(1, 64), ones(1, 256))
    assert assay(plans) == [{"w": np.inf}, {"w": 0.0}]
