"""The bytes and declarations of ModelOpt and llm-compressor: from the goldens, and from the tools again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from expert_layouts import one_by_one
from make_nvfp4_golden import CASES, LEFT, MIXED, MIXED_CASES, W4A4_CASES, w4a4_tokens
from nvfp4_folders import json_of, plan, repaired, same, write
from nvfp4_reading import digest_of, tensors_in
from zoo_types import Zoo

from qexport.evidence.products import InputProducts
from qexport.evidence.store import Kind
from qexport.formats.linears import modules_of
from qexport.formats.opening import open_artifact
from qexport.onepass.execute import execute
from qexport.onepass.rows import read_rows

HERE = Path(__file__).parent
HOW: dict[str, dict[str, Any]] = {
    "modelopt": {"scope": "all-linear"},
    "modelopt-mixed": {"scope": "nvidia"},
    "llmcompressor": {"scope": "all-linear", "layout": "compressed-tensors"},
    "llmcompressor-mixed": {"scope": "nvidia", "layout": "compressed-tensors"},
}
WEIGHT_PARTS = ("weight_packed", "weight_scale", "weight_global_scale")
ONESHOT = "llmcompressor-w4a4"
CALIBRATED = "modelopt-w4a4"
PAIRS = [
    (peer, case) for peer in HOW for case in json.loads((HERE / f"golden_{peer}.json").read_text())["cases"]
]

needs_both = pytest.mark.skipif(
    find_spec("modelopt") is None or find_spec("llmcompressor") is None,
    reason="llm-compressor or nvidia-modelopt is not installed",
)


def partners(module: str) -> set[str]:
    """The modules that runtimes fuse with this one."""
    parent, _, last = module.rpartition(".")
    for group in ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}, {"in_proj_qkv", "in_proj_z"}):
        if last in group:
            return {f"{parent}.{part}" for part in group}
    return {module}


def make(zoo: Zoo, tmp_path: Path, peer: str, case: str, out: Path) -> None:
    """What qexport writes of the case; the mixed one with a layer whose MLP is FP8, by a list of types."""
    name, options = (CASES | MIXED_CASES)[case]
    how = HOW[peer]
    if peer == "llmcompressor-mixed":
        assignment = plan(zoo(name, **options), **how).assignment
        assert assignment is not None
        types = {n: "F8_E4M3" if ".layers.1.mlp." in n else word for n, word in assignment.types.items()}
        how = {**how, "types_from": tmp_path / "types.json"}
        how["types_from"].write_text(json.dumps(assignment.to_json() | {"types": types}))
    write(zoo(name, **options), out, **how)


def compare(peer: str, theirs: dict[str, Any], out: Path) -> None:
    mine = digest_of(tensors_in(out))
    their_modules = theirs["modules"]
    assert mine.keys() == their_modules.keys()
    agreeing = 0
    for module, (kind, shared, digest) in mine.items():
        if [kind, shared] == their_modules[module][:2]:
            assert digest == their_modules[module][2], module
            agreeing += 1
            continue
        # Not shared by the peer: FP8 in ModelOpt; experts and DeltaNet in llm-compressor. Ours is that of
        # the partner with the largest values.
        assert (peer, kind) in {
            ("modelopt-mixed", "FP8"),
            ("llmcompressor", "NVFP4"),
            ("llmcompressor-mixed", "NVFP4"),
        }
        choose = max if peer == "modelopt-mixed" else min
        assert shared == choose(their_modules[partner][1] for partner in partners(module))
        assert "mlp.gate_proj" not in module
        assert ("self_attn" in module) == (peer == "modelopt-mixed" and "self_attn" in module)
    assert agreeing > len(mine) / 2
    assert peer != "modelopt" or agreeing == len(mine)


def compare_config(peer: str, theirs: dict[str, Any], out: Path) -> None:
    mine, other = json_of(out)["quantization_config"], dict(theirs["config"])
    if peer.startswith("llmcompressor"):
        if peer == "llmcompressor-mixed":
            modules = digest_of(tensors_in(out))
            theirs_too = matched(other["config_groups"], modules)
            assert set(theirs_too) == set(MIXED)
            assert matched(mine["config_groups"], modules) == theirs_too
            for groups in (mine["config_groups"], other["config_groups"]):
                for group in groups.values():
                    group.pop("targets")
        assert set(mine.pop("ignore")) <= {*LEFT, "re:.*lm_head$"}
        other.pop("ignore")
        assert mine == other
        return
    whole = json_of(out, "hf_quant_config.json")
    mine_inner, their_inner = whole["quantization"], dict(theirs["file"]["quantization"])
    if peer == "modelopt-mixed":  # the recipe has an FP8 KV cache; its exporter lists nothing excluded
        assert other.pop("kv_cache_scheme") == {"dynamic": False, "num_bits": 8, "type": "float"}
        their_inner["kv_cache_quant_algo"] = None
        their_inner["exclude_modules"] = other["ignore"] = [e for e in mine["ignore"] if e.startswith("mtp")]
    else:  # the exporter sees neither the vision tower nor the MTP head
        extra = [e for e in mine["ignore"] if e.startswith(("mtp", "model.visual"))]
        other["ignore"] += extra
        their_inner["exclude_modules"] = [*their_inner["exclude_modules"], *extra]
    mine.pop("producer"), other.pop("producer")
    assert mine == other
    assert mine_inner == their_inner


def matched(groups: dict[str, Any], modules: Iterable[str]) -> dict[str, set[str]]:
    """The modules that each group takes: each exactly one."""
    found: dict[str, set[str]] = {name: set() for name in groups}
    for module in modules:
        (name,) = [n for n, g in groups.items() if any(re.match(t[3:], module) for t in g["targets"])]
        found[name].add(module)
    return found


@pytest.mark.parametrize(("peer", "case"), PAIRS)
def test_golden(zoo: Zoo, tmp_path: Path, peer: str, case: str) -> None:
    make(zoo, tmp_path, peer, case, tmp_path / "out")
    theirs = json.loads((HERE / f"golden_{peer}.json").read_text())["cases"][case]
    compare(peer, theirs, tmp_path / "out")
    compare_config(peer, theirs, tmp_path / "out")


@pytest.fixture(scope="module")
def made_now(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both libraries write of every case, here and now: one child, for they take long to import.

    ModelOpt's search for the least squared error is not among them: it runs on GPUs alone.
    """
    jobs = [*(f"{peer}/{case}" for peer, case in PAIRS), *(f"{CALIBRATED}/{case}" for case in W4A4_CASES)]
    return peers_make(tmp_path_factory.mktemp("peers"), jobs)


@pytest.fixture(scope="module")
def oneshot_now(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What llm-compressor's oneshot makes of the cases with scales of inputs."""
    jobs = [f"{ONESHOT}/{case}" for case in W4A4_CASES]
    return peers_make(tmp_path_factory.mktemp("oneshot"), jobs) / ONESHOT


def peers_make(out: Path, jobs: list[str]) -> Path:
    for job in jobs:
        (out / job).parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    command = [sys.executable, "-W", "ignore", str(HERE / "make_nvfp4_golden.py"), str(out), *jobs]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return out


@needs_both
@pytest.mark.slow
@pytest.mark.parametrize(("peer", "case"), PAIRS)
def test_equals_peer(zoo: Zoo, tmp_path: Path, made_now: Path, peer: str, case: str) -> None:
    make(zoo, tmp_path, peer, case, tmp_path / "out")
    theirs = json.loads((made_now / peer / f"{case}.json").read_text())
    compare(peer, theirs, tmp_path / "out")
    compare_config(peer, theirs, tmp_path / "out")
    ours, stored = tensors_in(tmp_path / "out"), one_by_one(tensors_in(made_now / peer / case))
    if peer.startswith("llmcompressor"):
        assert ours.keys() == stored.keys()
    else:  # ModelOpt's exporter leaves the vision tower and the MTP head out
        left = {key for key in ours if key.startswith(("mtp.", "model.visual."))}
        assert ours.keys() - left == stored.keys()
    modules = {f"{module}." for module in digest_of(ours)}
    rest = [key for key in stored if f"{key.rpartition('.')[0]}." not in modules]
    assert [key for key in rest if not same(ours[key], stored[key])] == []


class Given(InputProducts):
    """The pass, with largest inputs from elsewhere: by module path."""

    def __init__(self, source: Path, seen: dict[str, float]) -> None:
        model = repaired(source)
        super().__init__(model.view(), w4a4_tokens().numpy())
        self._tables = {
            tensor.name: np.array([seen[module] for module in modules if module in seen])
            for tensor in model.view()
            if (modules := modules_of(model, tensor))
        }

    def measured(self, kind: Kind) -> dict[str, np.ndarray]:
        return self._tables


def given_and_measured(
    tmp_path: Path, source: Path, seen: dict[str, float], **options: Any
) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of two W4A4 folders: on the peer's statistics, and on those of our own pass."""
    made, folders = plan(source, scope="all-linear", scheme="NVFP4", **options), {}
    for word, products in {
        "given": Given(source, seen),
        "measured": InputProducts(repaired(source).view(), w4a4_tokens().numpy()),
    }.items():
        with closing(products):
            execute([made], tmp_path / word, threads=2, products=products)
        folders[word] = tensors_in(tmp_path / word)
    return folders


@needs_both
@pytest.mark.slow
@pytest.mark.parametrize("case", W4A4_CASES)
def test_w4a4_equals_oneshot(zoo: Zoo, tmp_path: Path, oneshot_now: Path, case: str) -> None:
    """Given its statistics, its folder; and the statistics of our pass beside its own.

    In float32 those agree; a model in bfloat16 rounds every sum of its own order, and a random one doubles
    such differences from layer to layer: scales within 8 %, most within 2 %.
    """
    name, options = W4A4_CASES[case]
    source, wide = zoo(name, **options), options.get("dtype") == "fp32"
    seen = json.loads((oneshot_now / f"{case}-inputs.json").read_text())
    theirs = one_by_one(tensors_in(oneshot_now / case))
    folders = given_and_measured(tmp_path, source, seen)
    ours, digests = folders["given"], (digest_of(folders["given"]), digest_of(theirs))
    assert ours.keys() == theirs.keys()
    alone = {module for module in digests[0] if digests[0][module][1] != digests[1][module][1]}
    assert all("in_proj" in module for module in alone)  # llm-compressor shares no scale of DeltaNet's
    assert all(digests[0][module] == digests[1][module] for module in digests[0].keys() - alone)
    quantized = {f"{module}.{last}" for module in alone for last in WEIGHT_PARTS}
    for key in ours.keys() - quantized:
        other = theirs[key]
        if wide and other.dtype == torch.float32 and other.ndim and not key.endswith("global_scale"):
            other = other.to(ours[key].dtype)  # what is not quantized is bfloat16 in ours
        if not same(ours[key], other):  # it calibrates with 1 + w in place of w, and takes the 1 away again
            assert key.endswith("norm.weight"), key
            assert same((ours[key] + 1) - 1, other) or wide, key
    scales = [key for key in ours if key.endswith("input_global_scale")]
    assert len(scales) == len(digests[0]) == len(seen)
    ratios = [abs(float(folders["measured"][key] / theirs[key]) - 1) for key in scales]
    assert max(ratios) < (1e-4 if wide else 0.08)
    assert median(ratios) < 0.02
    mine, other = (
        json_of(folder)["quantization_config"] for folder in (tmp_path / "given", oneshot_now / case)
    )
    assert list(mine.pop("config_groups").values()) == list(other.pop("config_groups").values())
    assert not other.pop("sparsity_config")
    left = mine.pop("ignore")
    listed = [each for each in other.pop("ignore") if not each.startswith("re:")]
    assert all(any(re.match(each[3:], module) for each in left) for module in listed)
    assert mine == other


def by_export(seen: dict[str, float], modules: Iterable[str]) -> dict[str, float]:
    """Of exported modules, from ModelOpt's quantizers: all experts of a layer share two."""
    found = {}
    for module in modules:
        path, _, last = module.replace("language_model.", "").rpartition(".")
        if ".experts." in path:
            stack, first = path.rpartition(".")[0], "down_proj" if last == "down_proj" else "gate_up_proj"
            found[module] = seen[f"{stack}.{first}_input_quantizer"]
        else:
            found[module] = seen[f"{path}.{last}.input_quantizer"]
    return found


@needs_both
@pytest.mark.slow
@pytest.mark.parametrize("case", W4A4_CASES)
def test_w4a4_equals_modelopt(zoo: Zoo, tmp_path: Path, made_now: Path, case: str) -> None:
    """NVFP4_DEFAULT_CFG, exported: given its statistics, its tensors and both of its configs.

    And the statistics of our pass beside its own, as with llm-compressor.
    """
    name, options = W4A4_CASES[case]
    source, wide, out = zoo(name, **options), options.get("dtype") == "fp32", made_now / CALIBRATED
    theirs = one_by_one(tensors_in(out / case))
    modules = digest_of(theirs)
    seen = by_export(json.loads((out / f"{case}-inputs.json").read_text()), modules)
    folders = given_and_measured(tmp_path, source, seen, layout="modelopt")
    ours = folders["given"]
    left = {key for key in ours if key.startswith(("mtp.", "model.visual."))}  # its exporter leaves them out
    assert ours.keys() - left == theirs.keys()
    scales = [key for key in theirs if key.endswith(".input_scale")]
    assert len(scales) == len(modules)
    for key, other in theirs.items():
        plain = wide and key.rpartition(".")[0] not in modules
        assert same(ours[key], other.to(ours[key].dtype) if plain else other), key
    compare_config("modelopt", json.loads((out / f"{case}.json").read_text()), tmp_path / "given")
    measured = folders["measured"]
    seen_of = {key: seen[key.removesuffix(".input_scale")] for key in scales}
    assert list(seen_of.values()).count(0) == 1  # planted; the exporter's number for it is ours
    ratios = [abs(float(measured[key] / theirs[key]) - 1) for key in scales if seen_of[key]]
    assert max(ratios) < (1e-4 if wide else 0.08)
    assert median(ratios) < 0.02


@pytest.mark.slow
@pytest.mark.skipif(find_spec("compressed_tensors") is None, reason="compressed-tensors is not installed")
@pytest.mark.filterwarnings("ignore")
def test_the_library_reads_a_mixed_folder(zoo: Zoo, tmp_path: Path) -> None:
    """transformers with compressed-tensors: each module in the format of its group, with our values."""
    from compressed_tensors.compressors import decompress_module
    from transformers import AutoModelForCausalLM

    make(zoo, tmp_path, "llmcompressor-mixed", "dense mixed", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    ours = {tensor.name: tensor.data for tensor in open_artifact(tmp_path / "out").view()}
    formats: Counter[str] = Counter()
    for name, module in model.named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None:
            continue
        decompress_module(module)
        data = ours[f"{name.replace('language_model.', '')}.weight"]
        values = read_rows(data, 0, data.matrix_shape[0]).float()
        assert float((module.weight.float() - values).abs().max()) < 2**-8 * float(values.abs().max()), name
        formats[scheme.format.value] += 1
    assert formats == {"float-quantized": 16, "nvfp4-pack-quantized": 9}
