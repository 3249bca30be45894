"""What is stored beside its source: one block that is wrong is found, where answers would not show it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from zoo_types import Zoo

from qexport.codecs.ggml import is_available
from qexport.codecs.ggml_types import GGML_TYPES
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf
from qexport.onepass.execute import execute
from qexport.receipt.verification import Check, Status, Verdict, Verification
from qexport.recipe.choice import ModelChoice
from qexport.run.measure import Measure
from qexport.run.model import examine
from qexport.run.weigh import stand_in
from qexport.verification.rounding import LIMITS

pytestmark = pytest.mark.skipif(not is_available(), reason="xllamacpp is not installed")
# Types whose tables ggml builds at once, each in some of the tensors.
TYPES = (("attn|ssm|shexp", "IQ3_XXS"), ("blk.0.ffn_up", "Q4_0"), ("ffn", "IQ2_XXS"), ("nextn", "Q8_0"))


def test_every_type_has_its_limits() -> None:
    quantized = {name for name, kind in GGML_TYPES.items() if kind.is_quantized}
    assert set(LIMITS) == quantized
    assert max(LIMITS.values()) < 1  # zeros


@pytest.mark.parametrize("name", ["qwen3_5_moe", "qwen3_5"])
def test_what_is_damaged_is_named(zoo: Zoo, tmp_path: Path, name: str) -> None:
    view = examine(ModelChoice(str(zoo(name, hidden=256, intermediate=256))), download=False).repaired.view()
    options = GgufOptions(imatrix=stand_in(view, None), tensor_types=TYPES, mtp_type="mixture")
    (plan,) = plan_gguf(view, ["Q4_K_M"], options)
    execute([plan], tmp_path)
    path = tmp_path / plan.files[0].name
    healthy = found(view, path)
    assert healthy.status is Status.PASS
    kinds = {tensor.stored.name for tensor in plan.tensors if GGML_TYPES[tensor.stored.name].is_quantized}
    assert set(healthy.data["furthest"]) == kinds >= {"IQ3_XXS", "IQ2_XXS", "Q4_0", "Q6_K"}
    whole = path.read_bytes()
    for damage in (scale, grid, rows):
        path.write_bytes(whole)
        hurt = damage(path)
        verdict = found(view, path)
        assert verdict.status is Status.FAIL, damage
        (fault,) = verdict.data["faults"]
        kind = next(t.stored.name for t in plan.tensors if t.name == hurt)
        assert f"({kind})" in fault, damage
    path.write_bytes(whole)
    assert found(view, path) == healthy


def found(view: Any, path: Path) -> Verdict:
    """The finding of a measurement."""
    with ExitStack() as stack:
        report = Measure(view, 64, lambda _: None, stack).add_to(Verification(path.name), path)
    return report.finding(Check.ROUNDING)


def tensor_of(path: Path, *kinds: str) -> tuple[str, np.ndarray]:
    """A tensor of this type, its blocks ``(rows, blocks, bytes)``; what is written there is in the file."""
    reader = gguf.GGUFReader(path, "r+")
    tensor = next(each for each in reader.tensors if each.tensor_type.name in kinds)
    return tensor.name, tensor.data.reshape(-1, GGML_TYPES[tensor.tensor_type.name].nbytes)


def scale(path: Path) -> str:
    """One superblock's scale, twice as large."""
    name, blocks = tensor_of(path, "IQ3_XXS")
    blocks[len(blocks) // 2, :2].view(np.float16)[:] *= 2
    return name


def grid(path: Path) -> str:
    """Other points of the grid, for a whole tensor: signs and scales are kept."""
    name, blocks = tensor_of(path, "IQ2_XXS")
    words = blocks[:, 2:].reshape(len(blocks), 8, 8)
    words[:, :, :4] ^= 0x55
    return name


def rows(path: Path) -> str:
    """Rows exchanged."""
    name, blocks = tensor_of(path, "Q4_0")
    blocks[:] = blocks[::-1].copy()
    return name
