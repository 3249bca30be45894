"""What is stored beside the source's weights: what rounding explains passes, planted faults are named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from zoo_types import Zoo

from qexport.checkpoint.local import LocalCheckpoint
from qexport.codecs.ggml_types import GGML_TYPES
from qexport.container.gguf_file import read_gguf
from qexport.doctor import Repaired, diagnose
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.fp8.plan import plan_fp8
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.mlx.plan import plan_mlx
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.nvfp4.plan import plan_nvfp4
from qexport.formats.opening import open_artifact
from qexport.onepass.execute import execute
from qexport.receipt.store import write_receipt
from qexport.receipt.verification import Status, Verdict
from qexport.run.receipts import entry_for
from qexport.verification.options import VerifyOptions
from qexport.verification.run import verify
from qexport.verification.source_weights import check_weights, judge_weights, rounded_alone
from qexport.verification.weight_pairs import Compared, WorstRun, pairs_of

SIZES = {"experts": 3, "layers": 4, "hidden": 256, "intermediate": 256, "head_dim": 128, "vision": False}
OPTIONS: dict[str, Any] = {
    "fp8": Fp8Options(),
    "fp8 block": Fp8Options(layout="compressed-tensors"),
    "fp8 dynamic": Fp8Options(scheme="FP8_DYNAMIC"),
    "nvfp4": Nvfp4Options(),
    "nvfp4 ct": Nvfp4Options(layout="compressed-tensors"),
    "mlx 4": MlxOptions(bits=4),
    "mlx 2": MlxOptions(bits=2),
}
TYPES = ("BF16", "Q8_0", "Q4_K_M", "MXFP4_MOE", "NVFP4", "Q2_K")
LAYER = "model.layers.1.mlp"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def source(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Repaired:
    """A mixture whose matrices are louder in some tiles than in others, as those of trained ones are."""
    folder = tmp_path_factory.mktemp("source") / "model"
    shutil.copytree(zoo("qwen3_5_moe", **SIZES), folder)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if tensor.ndim > 1 and tensor.shape[-1] >= 256 and tensor.shape[-2] >= 256:
                tensor[..., :128, 128:] *= 3
            elif name.endswith("norm.weight"):
                tensor += 0.05 * torch.randn(tensor.shape)
        save_file(tensors, file, metadata={"format": "pt"})
    return diagnose(LocalCheckpoint(folder)).repaired


@pytest.fixture(scope="module")
def folder(source: Repaired, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    out = tmp_path_factory.mktemp("folders")

    @cache
    def written(case: str) -> Path:
        options = OPTIONS[case]
        planners = {Fp8Options: plan_fp8, Nvfp4Options: plan_nvfp4, MlxOptions: plan_mlx}
        plans = planners[type(options)](source, options)
        plans = list(plans) if isinstance(plans, tuple | list) else [plans]
        execute(plans, [out / case, out / f"{case}-head"][: len(plans)], threads=1)
        return out / case

    return written


def judged(path: Path, source: Repaired) -> Verdict:
    view = source.view()
    found = check_weights(open_artifact(path, like=view), view)
    assert found is not None
    return found


@pytest.mark.parametrize("case", OPTIONS)
def test_rounding_is_no_fault(folder: Callable[[str], Path], source: Repaired, case: str) -> None:
    found = judged(folder(case), source)
    assert found.status is Status.PASS, found
    assert "are the source's as far as rounding goes" in found.summary
    assert found.data["compared"] > 3 * 4 * SIZES["experts"]  # each expert for itself


def test_nor_is_it_in_files(source: Repaired, tmp_path: Path) -> None:
    plans = plan_gguf(source.view(), TYPES, GgufOptions())
    execute(plans, tmp_path, threads=1)
    for plan in plans:
        found = judged(tmp_path / plan.files[0].name, source)
        assert found.status is Status.PASS, (plan.files[0].name, found)


def test_a_superblock_of_twice_its_scale_is_found(source: Repaired, tmp_path: Path) -> None:
    """One of 256 numbers in a matrix of 65536, in its last row; named by its place. Of 3 bits, thrice."""
    for kind, times in (("Q4_K_M", 2), ("Q3_K_M", 3)):
        (made,) = plan_gguf(source.view(), (kind,), GgufOptions())
        execute([made], tmp_path, threads=1)
        path = tmp_path / made.files[0].name
        assert judged(path, source).status is Status.PASS
        name = "blk.1.ffn_down_shexp.weight"
        entry = read_gguf(path).entries[name]
        assert entry.type_name in ("Q4_K", "Q5_K", "Q6_K", "Q3_K"), entry.type_name
        block = bytearray(path.read_bytes())
        at = entry.stop - GGML_TYPES[entry.type_name].nbytes
        for place in SCALES_AT[entry.type_name]:
            scale = np.frombuffer(block, np.float16, 1, at + place) * np.float16(times)
            block[at + place : at + place + 2] = scale.tobytes()
        path.write_bytes(block)
        found = judged(path, source)
        assert found.status is Status.FAIL, (kind, found)
        (fault,) = found.data["faults"]
        assert fault.startswith("model.layers.1.mlp.shared_expert.down_proj.weight: columns ")
        assert "of row 255 are off by" in fault


SCALES_AT = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q3_K": (108,)}
"""Where the float16 scales of a superblock lie."""


def of_expert(tensors: Tensors, number: int, part: str) -> list[str]:
    return [name for name in tensors if f"{LAYER}.experts.{number}.{part}." in name]


def quadrupled(tensors: Tensors) -> str:
    (name,) = [each for each in of_expert(tensors, 2, "down_proj") if each.endswith("weight_scale_2")]
    tensors[name] *= 4
    return "model.layers.1.mlp.experts.down_proj.weight[2] is off by 30"


def exchanged(tensors: Tensors) -> str:
    for part in ("gate_proj", "up_proj", "down_proj"):
        for one, other in zip(of_expert(tensors, 0, part), of_expert(tensors, 1, part), strict=True):
            tensors[one], tensors[other] = tensors[other], tensors[one]
    return "model.layers.1.mlp.experts.gate_proj.weight[0] is off by 1"


def permuted(tensors: Tensors) -> str:
    tensors[f"{LAYER}.gate.weight"] = tensors[f"{LAYER}.gate.weight"].roll(1, 0).contiguous()
    return "model.layers.1.mlp.gate.weight is off by"


def silenced(tensors: Tensors) -> str:
    tensors[f"{LAYER}.shared_expert_gate.weight"] *= 0
    return "model.layers.1.mlp.shared_expert_gate.weight is off by 100.0%, 0.00 times the source's"


def halves(tensors: Tensors) -> str:
    left, right = tensors["mtp.fc.weight"].chunk(2, 1)
    tensors["mtp.fc.weight"] = torch.cat([right, left], 1)
    return "mtp.fc.weight is off by 14"


def halved(tensors: Tensors) -> str:
    for name in of_expert(tensors, 0, "up_proj"):
        if name.endswith(("weight_scale_2", "weight_global_scale")):
            tensors[name] *= 0.5 if name.endswith("_2") else 2
    return "model.layers.1.mlp.experts.up_proj.weight[0] is off by 5"


def transposed(tensors: Tensors) -> str:
    (name,) = [each for each in of_expert(tensors, 1, "gate_proj") if "scale" in each]
    tensors[name] = tensors[name].T.contiguous()
    return "model.layers.1.mlp.experts.gate_proj.weight[1] is off by"


def one_run(tensors: Tensors) -> str:
    """Scales of 128 numbers, twice as large."""
    name = f"{LAYER}.experts.2.up_proj.weight_scale"
    scales = tensors[name].float()
    scales[7, 8:16] *= 2
    tensors[name] = scales.to(torch.float8_e4m3fn)
    return "model.layers.1.mlp.experts.up_proj.weight[2]: columns 128 to 255 of row 7 are off by"


def one_row(tensors: Tensors) -> str:
    tensors[f"{LAYER}.experts.2.up_proj.weight_scale"][9] *= 2
    return "model.layers.1.mlp.experts.up_proj.weight[2] is off by 7"


def one_group(tensors: Tensors) -> str:
    """Of a stack: row 4 of its last expert."""
    for part in ("scales", "biases"):
        tensors[f"language_model.{LAYER}.switch_mlp.up_proj.{part}"][2, 4, :2] *= 2
    return "model.layers.1.mlp.experts.up_proj.weight[2]: columns 0 to 127 of row 4 are off by"


def plain(tensors: Tensors) -> str:
    tensors["model.norm.weight"] -= 1
    return "model.norm.weight is off by"


PLANTED = [
    *[("nvfp4", plant) for plant in (quadrupled, exchanged, permuted, silenced, halves, halved, plain)],
    *[("nvfp4", one_run), ("fp8 dynamic", one_row), ("mlx 4", one_group)],
    *[("nvfp4 ct", plant) for plant in (exchanged, halved)],
    *[("fp8", plant) for plant in (exchanged, transposed)],
    ("fp8 block", transposed),
    ("fp8 dynamic", exchanged),
]


@pytest.mark.parametrize(("case", "plant"), PLANTED, ids=lambda each: getattr(each, "__name__", each))
def test_planted_faults_are_named(
    folder: Callable[[str], Path],
    source: Repaired,
    tmp_path: Path,
    case: str,
    plant: Callable[[Tensors], str],
) -> None:
    shutil.copytree(folder(case), tmp_path / "out")
    (file,) = (tmp_path / "out").glob("*.safetensors")
    tensors = load_file(file)
    words = plant(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    found = judged(tmp_path / "out", source)
    assert found.status is Status.FAIL, found
    assert found.summary.startswith(words), found.summary
    parts = {fault.partition(" is off")[0].partition("[")[0] for fault in found.data["faults"]}
    assert len(parts) <= 3  # and nothing else


def rescaled(source: Repaired, out: Path, change: Callable[[Tensors], None] | None = None) -> Path:
    """The model as AWQ leaves it before it quantizes, quantized: channels behind every norm, between up and
    down, v and o, divided here and multiplied there; with one thing more changed."""
    shutil.copytree(source.view().tensors[0].data.pieces[0].checkpoint.folder, out / "scaled")
    random = torch.Generator().manual_seed(4)
    (file,) = (out / "scaled").glob("*.safetensors")
    tensors = {name: tensor.float() for name, tensor in load_file(file).items()}

    def scales(count: int) -> torch.Tensor:
        return torch.exp(0.5 * torch.randn(count, generator=random))

    for name in [name for name in tensors if ".layers." in name and not name.startswith("mtp.")]:
        before, _, inside = name.partition(".layers.")
        layer = f"{before}.layers.{inside.partition('.')[0]}"
        if name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight")):
            by = scales(len(tensors[name]))
            tensors[name] = (tensors[name] + 1) / by - 1
            attention = name.endswith("input_layernorm.weight")
            for other in BEHIND[attention]:
                for each in (each for each in tensors if each.startswith(f"{layer}.") and other in each):
                    tensors[each] *= by
        elif name.endswith("shared_expert.up_proj.weight"):
            by = scales(len(tensors[name]))
            tensors[name] /= by[:, None]
            tensors[name.replace("up_proj", "down_proj")] *= by
        elif name.endswith("v_proj.weight"):
            into = tensors[name.replace("v_proj", "o_proj")]
            by = scales(len(tensors[name])).view(-1, 128)
            tensors[name] /= by.view(-1, 1)
            into *= by.repeat_interleave(into.shape[1] // by.numel(), 0).view(-1)
    if change is not None:
        change(tensors)
    kept = load_file(file)
    save_file(
        {name: tensors[name].to(kept[name].dtype).contiguous() for name in kept},
        file,
        metadata={"format": "pt"},
    )
    made = plan_nvfp4(diagnose(LocalCheckpoint(out / "scaled")).repaired, Nvfp4Options(scope="all-linear"))
    execute([made], out / "made", threads=1)
    return out / "made"


BEHIND = {
    True: ("q_proj.weight", "k_proj.weight", "v_proj.weight", "in_proj_"),
    False: ("gate_proj", "up_proj", "mlp.gate.weight", "shared_expert_gate.weight"),
}
"""What is behind the first norm of a layer, and the second."""


def test_a_rescaled_model_is_judged_by_products(source: Repaired, tmp_path: Path) -> None:
    """As AWQ leaves it: what a norm is divided by, the matrices behind it are multiplied by."""
    found = judged(rescaled(source, tmp_path), source)
    assert found.status is Status.PASS, found
    assert "rescaled before it was quantized" in found.summary
    assert found.data["rescaled"] > 20


@pytest.mark.parametrize(
    "part", ["mlp.shared_expert.down_proj", "self_attn.v_proj", "mlp.gate", "self_attn.o_proj"]
)
def test_what_is_wrong_with_a_rescaled_model_is_named(source: Repaired, tmp_path: Path, part: str) -> None:
    def shuffled(tensors: Tensors) -> None:
        (name,) = [
            each for each in tensors if f"layers.3.{part}.weight" in each and not each.startswith("mtp")
        ]
        tensors[name] = tensors[name].roll(1, 0)

    found = judged(rescaled(source, tmp_path, shuffled), source)
    assert found.status is Status.FAIL, found
    assert any(f"layers.3.{part}.weight" in fault for fault in found.data["faults"])
    assert len(found.data["faults"]) <= 2  # it, and the one that it is fitted to


def test_a_turned_model_is_not_judged() -> None:
    """Where no product is the source's either; a norm alone is at fault."""
    sound = Compared("a", 4, norm=False, error=0.1, size=1.0)
    norm, matrix = (Compared("b", 16, norm=is_norm, error=0.5, size=1.2) for is_norm in (True, False))
    for found, status in (([sound, norm, matrix], Status.SKIPPED), ([sound, norm], Status.FAIL)):
        verdict = judge_weights(found, [sound, matrix])
        assert verdict is not None
        assert verdict.status is status
    assert judge_weights([]) is None


def test_of_two_bits_the_size_is_judged() -> None:
    assert Compared("a", 2, norm=False, error=0.5, size=0.8).sound
    assert not Compared("a", 2, norm=False, error=0.55, size=0.5).sound
    assert not Compared("a", 2, norm=False, error=float("inf"), size=float("nan")).sound


@pytest.mark.parametrize(
    "sizes",
    [{"kv_heads": 1, "value_heads": 6}, {"hidden": 320, "layers": 3}, {"head_dim": 64, "experts": 5}],
    ids=str,
)
def test_a_model_of_other_sizes_is_not_the_source(
    folder: Callable[[str], Path], zoo: Zoo, sizes: dict[str, int]
) -> None:
    """Vectors of another length are as little to be compared as matrices of other columns."""
    other = diagnose(LocalCheckpoint(zoo("qwen3_5_moe", **{**SIZES, **sizes}))).repaired
    artifact, view = open_artifact(folder("fp8")), other.view()
    shapes = {tensor.name: tensor.shape for tensor in view}
    assert all(pair.tensor.shape == shapes[pair.tensor.name] for pair in pairs_of(artifact, view))
    found = check_weights(artifact, view)
    assert found is None or found.status is not Status.PASS


def test_verification_says_it(folder: Callable[[str], Path], source: Repaired) -> None:
    options = VerifyOptions(reference=False, twin=False)
    found = verify(folder("nvfp4"), view=source.view(), options=options)
    assert "weights" in [check.value for check in found.verified]
    assert "weights" not in [
        each.check.value for each in verify(folder("nvfp4"), view=None, options=options).findings
    ]


def test_error_feedback_may_move_errors_but_no_more() -> None:
    """Of what a hybrid with loud rows and columns came to in IQ4_XS and Q3_K_M; faults stay faults."""
    for bits, error, size, run in ((4, 0.47, 1.09, 0.77), (3, 0.61, 0.86, 0.91)):
        worst = WorstRun(run, 0, (0, 128))
        assert not Compared("a", bits, norm=False, error=error, size=size, worst=worst).sound
        assert Compared("a", bits, norm=False, error=error, size=size, worst=worst, rounded=False).sound
    for bits in (16, 8, 6, 5, 4, 3, 2, 1):
        for error, size in ((1.2, 0.0), (1.0, 0.0), (1.0, 2.0), (0.5, 0.5)):
            found = Compared("a", bits, norm=False, error=error, size=size, rounded=False)
            assert not found.sound, (bits, error, size)
        worst = WorstRun(6.0, 0, (0, 128))
        assert not Compared("a", bits, norm=False, error=0.005, size=1.0, worst=worst, rounded=False).sound
    plain, fed = (Compared("a", 8, norm=False, error=0.06, size=1.0, rounded=each) for each in (True, False))
    assert not plain.sound
    assert not fed.sound  # there is nothing to be gained in eight bits


def test_the_receipt_says_whether_there_was_feedback(zoo: Zoo, tmp_path: Path) -> None:
    subject = diagnose(LocalCheckpoint(zoo("qwen2")))
    (plan,) = plan_gguf(subject.repaired.view(), ("Q4_0",), GgufOptions())
    written = execute([plan], tmp_path, threads=1)[0]
    path = tmp_path / plan.files[0].name
    assert not rounded_alone(path)  # nobody says
    for details, expected in (({}, True), ({"feedback": {}}, False), ({"adopted": "x"}, False)):
        entry = entry_for(subject, replace(plan, details=details), written, None, {})
        write_receipt(tmp_path, [entry], lambda _: None)
        assert rounded_alone(path) is expected
        assert not rounded_alone(tmp_path / "other.gguf")
    inner = tmp_path / "Q4_0"
    inner.mkdir()
    shutil.copy(path, inner / path.name)
    assert not rounded_alone(inner / path.name)
