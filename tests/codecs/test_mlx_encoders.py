"""MLX's encoders as plans use them, and what the weighted fit is worth."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from codec_strategies import make_rows, rows_of
from encoding import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from make_golden_mlx import GOLDEN, fitted, importance
from make_golden_runtimes import DTYPES, digest, rows_in

from qexport.codecs import mlx_affine, mlx_float
from qexport.codecs.contract import Float, MlxAffine, MlxFloat
from qexport.codecs.mlx_affine import BITS, GROUPS
from qexport.codecs.warmup import Prepared, prepare_encoders
from qexport.errors import InputError, UsageProblem

KNOWN = json.loads(GOLDEN.read_text())["hashes"]
NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def error(rows: torch.Tensor, parts: tuple[np.ndarray, ...], bits: int, weights: np.ndarray) -> np.ndarray:
    """The weighted squared error of each group, exactly."""
    packed, scales, biases = parts
    wide = [torch.from_numpy(part).view(rows.dtype).float() for part in (scales, biases)]
    codes = mlx_affine.dequantize(packed, torch.ones_like(wide[0]), torch.zeros_like(wide[1]), bits)
    groups = scales.shape[1] // rows.element_size()
    made = codes.view(len(rows), groups, -1).double() * wide[0][..., None] + wide[1][..., None]
    miss = (made - rows.view(len(rows), groups, -1).double()) ** 2
    return (miss * torch.from_numpy(weights).double().view(groups, -1)).sum(-1).numpy()


@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_is_the_codec(dtype: torch.dtype) -> None:
    rows = rows_in(dtype)
    made = mlx_affine.quantize(rows, 5, 64)
    packed, scales, biases = Encoder(MlxAffine(5, 64, NAMES[dtype])).encode(rows, 0)
    assert np.array_equal(packed, made.packed)
    assert scales.tobytes() == made.scales.contiguous().view(torch.uint8).numpy().tobytes()
    assert biases.tobytes() == made.biases.contiguous().view(torch.uint8).numpy().tobytes()
    assert all(part.dtype == np.uint8 and len(part) == len(rows) for part in (packed, scales, biases))
    for mode in mlx_float.FLOAT_MODES:
        found = Encoder(MlxFloat(mode, NAMES[dtype])).encode(rows, 7)
        wanted = mlx_float.quantize(rows, mode)
        assert np.array_equal(found[0], wanted.packed)
        assert np.array_equal(found[1], wanted.scales)


def test_values_are_cast_first() -> None:
    rows = rows_in(torch.float32)
    narrow = rows.to(torch.bfloat16)
    for encoder in (Encoder(MlxAffine(4, 64, "BF16")), Encoder(MlxFloat("mxfp4", "BF16"))):
        for one, other in zip(encoder.encode(rows, 0), encoder.encode(narrow, 0), strict=True):
            assert np.array_equal(one, other)


def test_two_roundings() -> None:
    rows = torch.tensor([[1.0039064]])  # above halfway between two bfloat16
    once = Encoder(Float("F32")).encode(rows, 0).view(np.float32)
    assert once.item() == rows.item()
    assert Encoder(Float("F32", through="BF16")).encode(rows, 0).view(np.float32).item() == 1.0078125


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "group"), list(itertools.product(BITS, GROUPS)))
def test_fit_golden(bits: int, group: int, dtype: torch.dtype) -> None:
    made = fitted(bits, group, dtype)
    assert digest(*(part.tobytes() for part in made)) == KNOWN[f"fit {bits} {group} {NAMES_LONG[dtype]}"]


NAMES_LONG = {dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES}


@given(
    rows=rows_of(128),
    bits=st.sampled_from(BITS),
    group=st.sampled_from(GROUPS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 9),
)
@settings(max_examples=150, deadline=None)
def test_fit_is_never_worse(rows: np.ndarray, bits: int, group: int, dtype: torch.dtype, seed: int) -> None:
    source = torch.from_numpy(np.clip(rows, -1e4, 1e4)).to(dtype)
    weights = np.exp(np.random.default_rng(seed).normal(0, 2, source.shape[1])).astype(np.float32)
    plain = Encoder(MlxAffine(bits, group, NAMES[dtype])).encode(source, 0)
    fit = Encoder(MlxAffine(bits, group, NAMES[dtype]), weights[None]).encode(source, 0)
    assert [part.shape for part in fit] == [part.shape for part in plain]
    before, after = (error(source, parts, bits, weights) for parts in (plain, fit))
    # Sums in float32 decide; nothing smaller than their own rounding is claimed.
    rounding = 1e-9 * np.abs(source.double().numpy()).max() ** 2 * weights.sum()
    assert (after <= before + rounding).all()


@pytest.mark.parametrize("bits", BITS)
def test_fit_is_better(bits: int) -> None:
    rows = torch.from_numpy(make_rows("normal", 3, 64, 512)).to(torch.bfloat16)
    weights = np.exp(np.random.default_rng(0).normal(0, 1.5, 512)).astype(np.float32)
    plain = Encoder(MlxAffine(bits, 64)).encode(rows, 0)
    fit = Encoder(MlxAffine(bits, 64, "BF16"), weights[None]).encode(rows, 0)
    ratio = error(rows, fit, bits, weights).sum() / error(rows, plain, bits, weights).sum()
    assert ratio < 0.75


def test_experts_have_importance_of_their_own() -> None:
    rows = torch.from_numpy(make_rows("normal", 1, 80, 256)).to(torch.bfloat16)
    table = np.concatenate([importance(256), importance(256)[:, ::-1].copy()])
    whole = Encoder(MlxAffine(4, 32, "BF16"), table, 40)
    first, second = (Encoder(MlxAffine(4, 32, "BF16"), table[k : k + 1]) for k in (0, 1))
    parts = [*zip(first.encode(rows[:40], 0), second.encode(rows[40:], 40), strict=True)]
    for one, two in zip(whole.encode(rows, 0), parts, strict=True):
        assert np.array_equal(one, np.concatenate(two))
    across = [*zip(whole.encode(rows[:33], 0), whole.encode(rows[33:], 33), strict=True)]
    for one, two in zip(whole.encode(rows, 0), across, strict=True):
        assert np.array_equal(one, np.concatenate(two))
    with pytest.raises(UsageProblem, match="row 80 is beyond"):
        whole.encode(rows[:1], 80)


def test_only_proportions_of_importance_matter() -> None:
    rows = torch.from_numpy(make_rows("heavy", 1, 33, 256)).to(torch.bfloat16)
    weights = importance(256)
    one = Encoder(MlxAffine(4, 64, "BF16"), weights).encode(rows, 0)
    for factor in (2.0**-60, 2.0**60):
        other = Encoder(MlxAffine(4, 64, "BF16"), weights * np.float32(factor)).encode(rows, 0)
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    plain = Encoder(MlxAffine(4, 64, "BF16"), np.ones_like(weights)).encode(rows, 0)
    none = Encoder(MlxAffine(4, 64, "BF16"), np.zeros_like(weights)).encode(rows, 0)
    assert all(np.array_equal(a, b) for a, b in zip(plain, none, strict=True))  # nothing seen: no preference


@pytest.mark.parametrize(
    "encoder",
    [
        Encoder(MlxAffine(4, 64)),
        Encoder(MlxAffine(4, 64, "BF16"), np.ones((1, 128), np.float32)),
        Encoder(MlxFloat("mxfp4")),
        Encoder(MlxFloat("nvfp4")),
    ],
    ids=["affine", "weighted", "mxfp4", "nvfp4"],
)
def test_what_cannot_be_stored_is_an_error(encoder: Encoder) -> None:
    rows = torch.zeros(3, 128)
    encoder.encode(rows, 0)
    rows[1, 100] = float("inf")
    with pytest.raises(InputError, match=r"rows 5 to 7 hold values that .* cannot store"):
        encoder.encode(rows, 5)


def test_names_for_people() -> None:
    assert repr(MlxAffine(6, 64)) == "MlxAffine(bits=6, group=64, dtype='BF16')"
    assert [stored.name for stored in (MlxAffine(6, 64), MlxFloat("mxfp8"))] == ["6-bit g64", "mxfp8"]


def test_warming_up() -> None:
    told: list[Prepared] = []
    affine = MlxAffine(4, 64)
    kinds = [(affine, False), (affine, False), (affine, True), (MlxFloat("mxfp4"), False)]
    samples = [(stored, weighted, torch.bfloat16, 64) for stored, weighted in kinds]
    done = prepare_encoders(samples, announce=told.append)
    assert [one.type_name for one in done] == ["4-bit g64", "4-bit g64", "mxfp4"]
    assert told == [one for one in done if one.compiled]
    assert not any(one.compiled for one in prepare_encoders(samples))
