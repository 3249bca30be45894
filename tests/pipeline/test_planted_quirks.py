"""Quirk planted, quirk survived, in MLX, FP8 and NVFP4: the clean checkpoint's bytes, and a sound config.

One set of weights is laid out as publishers, transformers 5 and merges lay it out. Whatever the layout, the
exported tensors are the clean checkpoint's, by canonical name (a text-only model keeps its own names), and
what is written beside them is what readers look for. Which quirk is found under which id is tested in
``doctor/``; GGUF has its own tests.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from quirks_planted import PLANTS, change_config
from safetensors import safe_open
from zoo_types import Zoo

sys.path.insert(0, str(Path(__file__).parents[1] / "mlx"))
from mlx_bench import mlx_lm, needs_mlx_lm

from qexport.artifacts.weights import StoredWeight
from qexport.checkpoint.local import LocalCheckpoint
from qexport.doctor import diagnose
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.opening import open_artifact
from qexport.receipt.verification import Status
from qexport.run import steps
from qexport.run.target import Target, plan
from qexport.verification.stored_form import check_stored_form

pytestmark = pytest.mark.slow

FORMATS: Mapping[str, Any] = {
    "mlx": MlxOptions(bits=4, mtp_bits=8),
    "mlx-mtplx": MlxOptions(bits=4, mtp=("mtplx",)),
    "fp8": Fp8Options(),
    "fp8-ct": Fp8Options(layout="compressed-tensors"),
    "nvfp4": Nvfp4Options(scope="all-linear"),
    "nvfp4-ct": Nvfp4Options(layout="compressed-tensors"),
}
SMALL = {"hidden": 128, "intermediate": 256}
FLAT = {"form": "flat", "vision": False}
SAVED = FLAT | {"style": "saved"}  # rope_parameters only, TokenizersBackend, text only
MERGED = SAVED | {"mtp": False, "expert_layout": "each"}
Parts = dict[tuple[str, str], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A checkpoint with quirks.

    Attributes:
        clean: the zoo entry whose weights it has, as its publisher writes it.
        plants: quirks of ``quirks_planted``.
        entry, options: what they are planted in, if that is not the clean checkpoint.
        head_from: the zoo entry that its head is grafted from.
    """

    clean: str
    plants: tuple[str, ...] = ()
    entry: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    head_from: str | None = None


CASES: Mapping[str, Case] = {
    "rope_parameters only": Case("llama", ("rope_parameters_only",)),
    "rope_parameters only, saved": Case("qwen3", options={"style": "saved"}),
    "rope_parameters only, experts": Case("qwen3_moe", options={"style": "saved"}),
    "rope keys of before": Case("qwen3_5", ("rope_legacy_only_hybrid",)),
    "TokenizersBackend": Case("qwen3_5", ("tokenizers_backend",)),
    "text only": Case("qwen3_5", options=FLAT),
    "text only, saved": Case("qwen3_5", options=SAVED),
    "text only, wrapper's type": Case("qwen3_5", ("wrapper_type_flat",), options=FLAT),
    "text only, wrapper's names": Case("qwen3_5", ("causal_arch_wrapper_names",), options=FLAT),
    "text only, adapter's prefix": Case("qwen3_5", ("peft_prefix",), options=FLAT),
    "wrapper, text's type": Case("qwen3_5", ("text_type_in_wrapper",)),
    "wrapper, text's names": Case("qwen3_5", ("conditional_arch_flat_names",)),
    "wrapper, names of before": Case("qwen3_5", ("prefix_language_model_model",)),
    "wrapper, nested twice": Case("qwen3_5", ("nested_prefix_twice",)),
    "wrapper, no vision": Case("qwen3_5", ("vision_declared_absent",)),
    "wrapped for training": Case("qwen3_5_moe", ("wrapped_in_training",)),
    "head under another name": Case("qwen3_5", ("mtp_prefix_model", "mtp_key_absent")),
    "grafted head": Case("qwen3_5", ("mtp_declared_absent",), head_from="qwen3_5"),
    "experts one by one": Case("qwen3_5_moe", ("experts_each_in_trunk", "experts_each_in_mtp")),
    "experts one by one in the trunk": Case("qwen3_5_moe", ("experts_each_in_trunk",)),
    "experts one by one in the head": Case("qwen3_5_moe", entry="qwen3_5_moe_122b"),
    "fused experts called weight": Case("qwen3_5_moe", ("experts_fused_with_weight_suffix",)),
    "fused head onto single experts": Case("qwen3_5_moe", options=MERGED, head_from="qwen3_5_moe"),
    "single head onto single experts": Case("qwen3_5_moe", options=MERGED, head_from="qwen3_5_moe_122b"),
    "single head onto fused experts": Case(
        "qwen3_5_moe", ("moe_mtp_declared_absent",), head_from="qwen3_5_moe_122b"
    ),
    "all at once": Case(
        "qwen3_5_moe", ("causal_arch_wrapper_names",), options=MERGED, head_from="qwen3_5_moe_122b"
    ),
}
THETA = {"llama": 250000.0, "qwen3": 1000000.0, "qwen3_moe": 1000000.0}
Exports = Callable[[str], dict[str, Path]]


def _built(zoo: Zoo, entry: str, **options: Any) -> Path:
    # Llama's width is that of its heads.
    heads = {"head_dim": SMALL["hidden"] // 8} if entry == "llama" else {}
    return zoo(entry, **(SMALL | heads | options))


def _clean(zoo: Zoo, name: str, out: Path) -> Path:
    """As its publisher writes it; Llama with the base that the plant has."""
    source = _built(zoo, name, style="published")
    if name == "llama":
        shutil.copytree(source, out, copy_function=shutil.copyfile)
        change_config(out, lambda config: config.update(rope_theta=THETA[name]))
        return out
    return source


def _planted(zoo: Zoo, case: Case, out: Path) -> Path:
    source = _built(zoo, case.entry or case.clean, **({"style": "published"} | dict(case.options)))
    shutil.copytree(source, out, copy_function=shutil.copyfile)
    for name in case.plants:
        PLANTS[name](out)
    return out


def _export(folder: Path, out: Path, *, base: Path | None = None, only: str = "") -> dict[str, Path]:
    """Every format from one pass, by name; a drafter lies beside its trunk."""
    head = LocalCheckpoint(base) if base is not None else None
    diagnosis = diagnose(LocalCheckpoint(folder), mtp="auto" if head is None else "graft", mtp_from=head)
    targets = [Target(o, out / name, verify=None) for name, o in FORMATS.items() if only in (name, "")]
    steps.write(plan(targets, diagnosis), diagnosis, threads=2)
    return {target.out.name: target.out for target in targets}


def _export_case(zoo: Zoo, name: str, out: Path, only: str = "") -> dict[str, Path]:
    case = CASES[name]
    base = None if case.head_from is None else _built(zoo, case.head_from)
    return _export(_planted(zoo, case, out / "Planted"), out, base=base, only=only)


@pytest.fixture(scope="module")
def clean(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """``clean(entry)``: every format of the checkpoint without quirks."""
    made: dict[str, dict[str, Path]] = {}

    def get(name: str) -> dict[str, Path]:
        if name not in made:
            out = tmp_path_factory.mktemp("clean")
            made[name] = _export(_clean(zoo, name, out / "Clean"), out)
        return made[name]

    return get


# --- what is stored ---------------------------------------------------------------------------------------


def _parts(folder: Path) -> Parts:
    """Everything that is stored, by the weight's canonical name and the name of the part; no vision."""
    found: Parts = {}
    for name, weight in open_artifact(folder).weights.items():
        assert isinstance(weight, StoredWeight)
        if "visual" not in name:
            found |= {(name, part): stored.whole() for part, stored in weight.parts.items()}
    return found


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return one.contiguous().view(-1).view(torch.uint8).equal(other.contiguous().view(-1).view(torch.uint8))


def _names(folder: Path) -> Iterator[str]:
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            yield from opened.keys()


def _tensor_prefix(folder: Path) -> str:
    (prefix,) = {n.split("layers.")[0] for n in _names(folder) if ".layers." in n and "mtp." not in n}
    return prefix


def _assert_config(folder: Path, theta: float, head: bool) -> None:
    """Type, architecture and names of one form; the base where that form's readers look; head as declared."""
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", config)
    wrapped = "text_config" in config
    kind, (architecture,) = config["model_type"], config["architectures"]
    assert architecture.endswith("ForConditionalGeneration" if wrapped else "ForCausalLM")
    if "qwen3_5" in kind:
        assert kind.endswith("_text") != wrapped
        assert architecture.startswith("Qwen3_5Moe" if "moe" in kind else "Qwen3_5For")
        assert text["model_type"].endswith("_text")
    if not folder.name.startswith("mlx"):  # whose modules are called the same whatever the form
        assert _tensor_prefix(folder) == ("model.language_model." if wrapped else "model.")
    rope = text.get("rope_parameters") or {}
    bases = {value for value in (rope.get("rope_theta"), text.get("rope_theta")) if value is not None}
    assert bases == {theta}
    # transformers 4 and mlx-lm know plain families by the old key, everybody the wrapper by the new one.
    assert ("rope_parameters" if wrapped else "rope_theta") in text
    assert bool(text.get("mtp_num_hidden_layers")) == (head and folder.name != "mlx")
    if folder.name == "mlx" and head:
        drafter = json.loads((folder.with_name("mlx-MTP") / "config.json").read_text())
        assert drafter["text_config"]["mtp_num_hidden_layers"] == 1
        assert drafter["text_config"]["rope_parameters"]["rope_theta"] == theta


@pytest.mark.parametrize("name", CASES)
def test_the_same_tensors_and_a_sound_config(name: str, zoo: Zoo, clean: Exports, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    case = CASES[name]
    theta = THETA.get(case.clean, 10000000)
    for form, folder in _export_case(zoo, name, tmp_path).items():
        good = clean(case.clean)[form]
        expected, found = _parts(good), _parts(folder)
        assert len(expected) > 20
        assert found.keys() == expected.keys(), form
        assert [key for key in expected if not _same(found[key], expected[key])] == [], form
        for finding in check_stored_form(open_artifact(folder)):
            assert finding.status is not Status.FAIL, f"{form}: {finding.summary}"
        _assert_config(folder, theta, head="qwen3_5" in case.clean)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        assert settings["tokenizer_class"] != "TokenizersBackend"
        # The readers of these folders go through transformers for tokens, and most of them for the config.
        read = transformers.AutoConfig.from_pretrained(folder).get_text_config()
        assert read.rope_parameters["rope_theta"] == theta
        words = "The same text, whoever reads it: 12 words."
        ids = [
            transformers.AutoTokenizer.from_pretrained(each)(words)["input_ids"] for each in (folder, good)
        ]
        assert ids[0] == ids[1]
        assert ids[0]


# --- what a reader makes of it ----------------------------------------------------------------------------


def _logits(folders: list[Path]) -> list[list[float]]:
    """mlx-lm's, in a process of its own."""
    results = mlx_lm("logits", ([str(folder), [5, 17, 200, 33, 8, 300, 21, 90]] for folder in folders))
    assert all("logits" in result for result in results), results
    return [result["logits"] for result in results]


@needs_mlx_lm
def test_mlx_lm_says_the_same_of_all(zoo: Zoo, clean: Exports, tmp_path: Path) -> None:
    """All in one process: mlx-lm is imported once. Another base of the rope says something else."""
    folders = {name: _export_case(zoo, name, tmp_path / str(n), "mlx")["mlx"] for n, name in enumerate(CASES)}
    good = {name: clean(name)["mlx"] for name in {case.clean for case in CASES.values()}}
    off = tmp_path / "off"
    shutil.copytree(good["llama"], off)
    change_config(off, lambda config: config.update(rope_theta=10000.0))
    *found, lost = _logits([*folders.values(), *good.values(), off])
    said = dict(zip([*folders, *good], found, strict=True))
    assert [name for name in CASES if said[name] != said[CASES[name].clean]] == []
    assert lost != said["llama"]
