"""Other libraries read what qexport writes, and what others write: the same numbers, or it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import packed_folders as packing
import pytest
from zoo_types import Zoo

from qexport.artifacts.layout import OnDisk
from qexport.artifacts.packed import PackedMatrix
from qexport.checkpoint.local import LocalCheckpoint
from qexport.doctor import diagnose
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.fp8.plan import plan_fp8
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.mlx.plan import plan_mlx
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.nvfp4.plan import plan_nvfp4
from qexport.formats.opening import layout_of
from qexport.onepass.execute import execute
from qexport.receipt.verification import Status, Verdict
from qexport.verification.libraries import LIBRARIES
from qexport.verification.options import VerifyOptions
from qexport.verification.readers import check_readers
from qexport.verification.run import verify

needs = {
    library.name: pytest.mark.skipif(not library.installed, reason=f"{library.name} is not installed")
    for library in LIBRARIES
}
NVIDIA = Nvfp4Options(scope="nvidia")
WRITTEN: dict[str, tuple[str, Any, list[str]]] = {
    "fp8": ("compressed-tensors", Fp8Options(), ["fp8, a scale per tile"]),
    "mixed": ("nvidia-modelopt", NVIDIA, ["fp8, a scale per matrix", "nvfp4 in groups of 16"]),
    "divided": (
        "compressed-tensors",
        replace(NVIDIA, layout="compressed-tensors"),
        ["fp8, a scale per tile", "nvfp4 in groups of 16"],
    ),
    "affine": (
        "mlx",
        MlxOptions(recipe="mixed_3_6"),
        ["affine of 3 bits in groups of 64", "affine of 6 bits in groups of 64"],
    ),
    "mxfp4": ("mlx", MlxOptions(mode="mxfp4"), ["mxfp4 in groups of 32"]),
    "mxfp8": ("mlx", MlxOptions(mode="mxfp8"), ["mxfp8 in groups of 32"]),
    "mlx nvfp4": ("mlx", MlxOptions(mode="nvfp4"), ["nvfp4 in groups of 16"]),
    "gguf": ("gguf", "Q4_K_M", ["Q4_K", "Q6_K"]),
    "gguf NVFP4": ("gguf", "NVFP4", ["NVFP4"]),
    "gguf small": ("gguf", "IQ4_XS", ["IQ4_XS", "Q6_K"]),
}
PLANNERS: dict[type, Callable[..., Any]] = {
    Fp8Options: plan_fp8,
    Nvfp4Options: plan_nvfp4,
    MlxOptions: plan_mlx,
}


def written(zoo: Zoo, out: Path, options: Any, model: str = "qwen3_5_moe") -> Path:
    """The folder, or the file."""
    sizes = {"hidden": 256, "intermediate": 512} if model == "qwen3_5" else {"experts": 3}
    repaired = diagnose(LocalCheckpoint(zoo(model, **sizes))).repaired
    if isinstance(options, str):
        (plan,) = plan_gguf(repaired.view(), [options], GgufOptions())
        execute([plan], out)
        return out / plan.files[0].name
    made = PLANNERS[type(options)](repaired, options)
    plans = list(made) if isinstance(made, tuple | list) else [made]
    execute(plans, [out, out.with_name("head")][: len(plans)], threads=1)
    return out


def packed(path: Path) -> list[PackedMatrix]:
    found = OnDisk(path)
    return list(layout_of(found).describe(found).packed())


def judged(matrices: Iterable[PackedMatrix], **options: Any) -> Verdict:
    found = check_readers(matrices, **options)
    assert found is not None
    return found


@pytest.mark.parametrize("case", [pytest.param(case, marks=needs[WRITTEN[case][0]]) for case in WRITTEN])
def test_libraries_read_what_is_written(zoo: Zoo, tmp_path: Path, case: str) -> None:
    library, options, forms = WRITTEN[case]
    model = "qwen3_5" if library == "gguf" else "qwen3_5_moe"
    found = judged(packed(written(zoo, tmp_path / "out", options, model)))
    assert found.status is Status.PASS, found
    assert not found.data["unread"]
    read = next(said for name, said in found.data["read"].items() if name.startswith(library))
    assert set(forms) <= set(read)


@pytest.mark.parametrize(
    ("make", "library"),
    [
        pytest.param(packing.modelopt, "nvidia-modelopt", marks=needs["nvidia-modelopt"]),
        pytest.param(packing.compressed_nvfp4, "compressed-tensors", marks=needs["compressed-tensors"]),
        pytest.param(
            lambda source: packing.compressed_fp8(source, "channel"),
            "compressed-tensors",
            marks=needs["compressed-tensors"],
        ),
        pytest.param(packing.compressed_int, "compressed-tensors", marks=needs["compressed-tensors"]),
        pytest.param(
            lambda source: packing.compressed_int(source, points=True),
            "compressed-tensors",
            marks=needs["compressed-tensors"],
        ),
    ],
)
def test_and_what_others_write(zoo: Zoo, tmp_path: Path, make: Any, library: str) -> None:
    found = judged(packed(make(zoo("qwen3_5")).write(tmp_path / "out")))
    assert found.status is Status.PASS, found
    assert library in found.summary


@pytest.mark.parametrize("case", [pytest.param(case, marks=needs[WRITTEN[case][0]]) for case in WRITTEN])
def test_a_wrong_scale_in_our_reading_is_found(zoo: Zoo, tmp_path: Path, case: str) -> None:
    library, options, _ = WRITTEN[case]
    matrices = packed(written(zoo, tmp_path / "out", options, "qwen3_5"))
    wrong = matrices[0]  # always in the sample, or another of its form
    twice = replace(wrong, decode=lambda start, stop: 2 * wrong.decode(start, stop))
    found = judged([twice])
    assert found.status is Status.FAIL
    assert f"{library} reads {wrong.name} ({found.data['read'].popitem()[1][0]}) otherwise: " in found.summary
    assert "numbers, the first " in found.summary


@needs["compressed-tensors"]
@pytest.mark.parametrize("case", ["mixed", "divided"])
def test_swapped_nibbles_are_found(zoo: Zoo, tmp_path: Path, case: str) -> None:
    matrices = packed(written(zoo, tmp_path / "out", WRITTEN[case][1], "qwen3_5"))
    four = next(matrix for matrix in matrices if matrix.form.kind == "nvfp4")

    def swapped(start: int, stop: int) -> Any:
        rows = four.stored(start, stop)
        return replace(rows, codes=(rows.codes >> 4) | (rows.codes << 4))

    found = judged([replace(four, stored=swapped)])
    assert found.status is Status.FAIL
    assert found.data["faults"][0].startswith(f"compressed-tensors reads {four.name} ")


def test_without_the_library_it_is_not_run(zoo: Zoo, tmp_path: Path) -> None:
    matrices = packed(written(zoo, tmp_path / "out", Fp8Options(), "qwen3_5"))
    absent = [replace(library, module="of_nobody") for library in LIBRARIES]
    found = judged(matrices, libraries=absent)
    assert found.status is Status.SKIPPED
    assert found.summary == "compressed-tensors is not installed (pip install 'qexport[reference]')"
    assert judged(matrices, libraries=()).summary == "no library that is asked here knows the form"


def test_a_form_that_nobody_reads_is_not_passed_by_another(zoo: Zoo, tmp_path: Path) -> None:
    matrices = packed(written(zoo, tmp_path / "out", NVIDIA, "qwen3_5"))
    absent = [
        replace(
            library,
            module="of_nobody",
            knows=lambda rows, knows=library.knows: rows.form.kind == "fp8" and knows(rows),
        )
        for library in LIBRARIES
    ]
    four = [
        replace(each, knows=lambda rows: rows.form.kind == "nvfp4") for each in LIBRARIES if each.installed
    ]
    found = judged(matrices, libraries=[*four[:1], *absent])
    assert found.status is Status.SKIPPED
    assert found.data["unread"] == ["fp8, a scale per matrix"]
    assert found.summary.startswith("fp8, a scale per matrix: ")
    assert "is not installed" in found.summary
    assert "; the rest: compressed-tensors" in found.summary


def test_a_library_that_breaks_says_nothing_of_the_file(zoo: Zoo, tmp_path: Path) -> None:
    def moved(_: Any) -> Any:
        raise ImportError("cannot import name 'dequantize'")

    matrices = packed(written(zoo, tmp_path / "out", "Q4_K_M", "qwen3_5"))
    broken = [replace(library, read=moved) for library in LIBRARIES]
    found = judged(matrices, libraries=broken)
    assert found.status is Status.SKIPPED
    assert found.summary == "gguf cannot be asked (ImportError: cannot import name 'dequantize')"


def test_floats_need_no_reader(zoo: Zoo, tmp_path: Path) -> None:
    assert check_readers(packed(zoo("llama"))) is None
    assert check_readers(packed(written(zoo, tmp_path / "out", "BF16", "qwen3_5"))) is None


@needs["compressed-tensors"]
def test_verification_says_it(zoo: Zoo, tmp_path: Path) -> None:
    """Of a folder that no runtime here runs, too."""
    folder = written(zoo, tmp_path / "out", replace(NVIDIA, layout="compressed-tensors"))
    found = verify(folder, view=None, options=VerifyOptions(reference=False))
    said = next(each for each in found.findings if each.check.value == "readers")
    assert said.status is Status.PASS
