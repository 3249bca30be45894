"""A plan can be printed, compared and kept: it holds no state and no encoder, but for handles to data."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from qexport.checkpoint.opening import open_checkpoint
from qexport.codecs.contract import Nvfp4
from qexport.doctor.diagnose import diagnose
from qexport.evidence.store import NOTHING, Kind
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.fp8.plan import plan_fp8
from qexport.formats.gguf.importance import gguf_importance, uncollected
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.mlx.plan import plan_mlx
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.nvfp4.plan import plan_nvfp4
from qexport.onepass.fingerprint import fingerprint


def plans_of(folder):
    repaired = diagnose(open_checkpoint(str(folder))).repaired
    view = repaired.view()
    matrix = gguf_importance(
        view, *uncollected(view), datasets=(), chunk_count=1, chunk_size=1, label="imatrix.gguf"
    )
    return [
        *plan_gguf(view, ["Q4_K_M", "Q8_0"], GgufOptions(imatrix=matrix)),
        *plan_mlx(repaired, MlxOptions(importance=matrix)),
        plan_fp8(repaired, Fp8Options()),
        plan_nvfp4(repaired, Nvfp4Options(scope="nvidia", scale_search="importance", importance=matrix)),
    ]


def without_handles(plan):
    def bare(tensor):
        pieces = tuple(replace(piece, checkpoint=None) for piece in tensor.source.pieces)
        return replace(tensor, source=replace(tensor.source, pieces=pieces))

    return replace(plan, tensors=tuple(bare(tensor) for tensor in plan.tensors), evidence=NOTHING)


@pytest.mark.parametrize("name", ["qwen3_5_moe", "llama3"])
def test_plans_are_values(zoo, name):
    plans = plans_of(zoo(name))
    for plan, again in zip(plans, plans_of(zoo(name)), strict=True):
        value = without_handles(plan)
        kept = pickle.loads(pickle.dumps(value))
        assert kept == value == without_handles(again)
        assert repr(kept) == repr(value)
        assert fingerprint(plan, {}) == fingerprint(again, {})
        for other in plans:
            assert (without_handles(other) == value) == (other is plan)


def test_what_differs_makes_plans_differ(zoo):
    plan = plans_of(zoo("llama3"))[-1]
    value = without_handles(plan)
    at = next(i for i, tensor in enumerate(plan.tensors) if isinstance(tensor.stored, Nvfp4))
    mine = plan.tensors[at]
    backwards = replace(mine.arrangement, row_order=np.arange(mine.matrix_shape[0])[::-1])
    for changed in (
        replace(mine, stored=replace(mine.stored, scales="max")),
        replace(mine, needs=()),
        replace(mine, arrangement=backwards),
    ):
        tensors = (*plan.tensors[:at], changed, *plan.tensors[at + 1 :])
        other = replace(plan, tensors=tensors)
        assert without_handles(other) != value
        assert fingerprint(other, {}) != fingerprint(plan, {})
    assert mine.name in mine.need(Kind.LARGEST).of
