"""What is stored against what the config tells a loader: sound folders pass, each planted lie is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import packed_folders as folders
import pytest
import torch
from safetensors.torch import save_file
from zoo_types import Zoo

from qexport.checkpoint.local import LocalCheckpoint
from qexport.doctor import diagnose
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf
from qexport.formats.opening import open_artifact
from qexport.onepass.execute import execute
from qexport.receipt.verification import Check, Status, Verdict
from qexport.verification.stored_form import check_stored_form

SMALL = {"hidden": 128, "intermediate": 256, "layers": 4}
Make = Callable[[Path], folders.Packed]
MAKERS: dict[str, Make] = {
    "plain": folders.Packed,
    "fp8": folders.fp8_folder,
    "compressed fp8": folders.compressed_fp8,
    "compressed fp8 rows": lambda source: folders.compressed_fp8(source, "channel"),
    "compressed nvfp4": folders.compressed_nvfp4,
    "compressed bytes": folders.compressed_bytes,
    "compressed int": lambda source: folders.compressed_int(source, points=True),
    "modelopt": folders.modelopt,
    "modelopt tiles": folders.modelopt_tiles,
    "modelopt awq": folders.modelopt_awq,
    "modelopt mixed": lambda source: folders.modelopt(source, mixed=True),
    "awq": folders.awq_folder,
    "gptq": folders.gptq_folder,
    "gptq v2": lambda source: folders.gptq_folder(source, less_one=False),
    "gptq, reordered": lambda source: folders.gptq_folder(source, sym=False, reorder=True),
    "mlx": folders.mlx_folder,
    "mlx mxfp4": lambda source: folders.mlx_folder(source, bits=4, group=32, mode="mxfp4"),
}
TRUNK = "model.language_model.layers"


def findings(packed: folders.Packed, out: Path) -> dict[Check, Verdict]:
    return {finding.check: finding for finding in check_stored_form(open_artifact(packed.write(out)))}


def statuses(found: dict[Check, Verdict]) -> dict[Check, Status]:
    return {check: finding.status for check, finding in found.items()}


@pytest.mark.parametrize("model", ["qwen3_5", "qwen3_5_moe"])
@pytest.mark.parametrize("case", MAKERS)
def test_sound_folders(zoo: Zoo, tmp_path: Path, case: str, model: str) -> None:
    found = findings(MAKERS[case](zoo(model, **SMALL)), tmp_path / "out")
    assert list(found) == [Check.TENSORS, Check.STORED, Check.DECLARED, Check.FUSED, Check.MTP_DECLARED]
    for finding in found.values():
        assert finding.status is Status.PASS, finding.summary


def test_a_head_that_is_not_quantized_can_be_listed(zoo: Zoo, tmp_path: Path) -> None:
    """Every linear layer by its full path; of the experts any one name does, as vLLM looks for the stack."""
    packed = folders.Packed(zoo("qwen3_5_moe", **SMALL))
    listed = packed.pack(
        lambda name: bool(folders.LINEAR.search(name)) and not name.startswith("mtp."),
        folders.fp8_tiles("weight_scale_inv"),
    )
    names = [name.removesuffix(".weight") for name in listed]
    names = [n for n in names if "mtp.layers.0.mlp.experts" not in n] + ["mtp.layers.0.mlp.experts"]
    packed.config["quantization_config"] = {"quant_method": "fp8", "modules_to_not_convert": names}
    assert findings(packed, tmp_path / "one")[Check.DECLARED].status is Status.PASS
    names.remove("mtp.layers.0.mlp.experts")
    lies = findings(packed, tmp_path / "two")[Check.DECLARED]
    assert lies.status is Status.FAIL
    assert lies.data["count"] == 3 * 4


def _unlist(packed: folders.Packed) -> None:
    del packed.config["quantization_config"]["modules_to_not_convert"][:]


def _bf16_head_listed(packed: folders.Packed, names: list[str]) -> None:
    """The head as floats, and these names listed in place of its own."""
    head = {n: t for n, t in folders.Packed(packed.source).tensors.items() if n.startswith("mtp.")}
    packed.tensors = {n: t for n, t in packed.tensors.items() if not n.startswith("mtp.")} | head
    listed = packed.config["quantization_config"]["modules_to_not_convert"]
    listed[:] = [name for name in listed if not name.startswith("mtp.")] + names


def _ignore(packed: folders.Packed) -> list[str]:
    return packed.config["quantization_config"]["ignore"]


def _only_mtp_layer(packed: folders.Packed) -> None:
    _ignore(packed).remove("re:.*mtp.*")
    _ignore(packed).append("re:.*mtp\\.layers.*")  # and not mtp.fc


def _anchored(packed: folders.Packed) -> None:
    _ignore(packed).remove("re:.*mtp.*")
    _ignore(packed).append("re:.*\\.mtp\\..*")  # the name begins with it, so it never matches


def _one_spelling(packed: folders.Packed) -> None:
    _ignore(packed).remove("re:.*self_attn.*")
    _ignore(packed).append("re:model\\.language_model\\..*self_attn.*")


def _short_gate(packed: folders.Packed) -> None:
    """`mlp.gate` of a dense model: vLLM finds it inside `mlp.gate_up_proj`."""
    for where in (_ignore(packed), packed.small["hf_quant_config.json"]["quantization"]["exclude_modules"]):
        where.append(f"{TRUNK}.0.mlp.gate")


def _no_mtp_exclusion(packed: folders.Packed) -> None:
    for where in (_ignore(packed), packed.small["hf_quant_config.json"]["quantization"]["exclude_modules"]):
        where[:] = [name for name in where if not name.startswith("mtp")]


def _different_files(packed: folders.Packed) -> None:
    packed.config["quantization_config"]["ignore"] = [*_ignore(packed), "model.norm"]


def _forgotten_layer(packed: folders.Packed) -> None:
    for where in (
        packed.config["quantization_config"],
        packed.small["hf_quant_config.json"]["quantization"],
    ):
        where["quantized_layers"] = {
            name: value for name, value in where["quantized_layers"].items() if ".0.mlp.down_proj" not in name
        }


def _no_override(packed: folders.Packed) -> None:
    for name in [name for name in packed.config["quantization"] if name.endswith("mlp.gate")]:
        del packed.config["quantization"][name]


def _wrong_bits(packed: folders.Packed) -> None:
    packed.config["quantization"]["bits"] = 8


def _declared_false(packed: folders.Packed) -> None:
    packed.config["quantization"]["language_model.lm_head"] = False


@pytest.mark.parametrize(
    ("case", "model", "lie", "words"),
    [
        ("fp8", "qwen3_5", _unlist, "in_proj_a is stored as 16-bit floats, but the config promises fp8"),
        (
            "fp8",
            "qwen3_5",
            lambda p: _bf16_head_listed(p, []),
            "mtp.fc is stored as 16-bit floats, but the config promises fp8",
        ),
        (
            "fp8",
            "qwen3_5",
            lambda p: _bf16_head_listed(p, ["mtp"]),
            "mtp.fc is stored as 16-bit floats, but the config promises fp8",
        ),
        (
            "fp8",
            "qwen3_5",
            lambda p: _bf16_head_listed(p, ["mtp.fc", "q_proj", "mtp.layers.0.mlp"]),
            "mtp.layers.0.self_attn.q_proj is stored as 16-bit floats",
        ),
        (
            "fp8",
            "qwen3_5",
            lambda p: p.config["quantization_config"]["modules_to_not_convert"].append(
                f"{TRUNK}.0.mlp.up_proj"
            ),
            "0.mlp.up_proj is stored as fp8, a scale per tile, but the config promises floats",
        ),
        ("compressed fp8", "qwen3_5", lambda p: _ignore(p).remove("lm_head"), "lm_head is stored as"),
        ("compressed fp8", "qwen3_5", _only_mtp_layer, "mtp.fc is stored as 16-bit floats"),
        ("compressed nvfp4", "qwen3_5", _anchored, "mtp.fc is stored as 16-bit floats"),
        ("compressed nvfp4", "qwen3_5", _one_spelling, "the name that transformers asks with and not"),
        ("compressed nvfp4", "qwen3_5_moe", lambda p: _ignore(p).remove(folders.ROUTERS[0]), "mlp.gate is"),
        ("modelopt", "qwen3_5", _short_gate, "0.mlp.gate_proj is stored as nvfp4 in groups of 16, but"),
        (
            "modelopt",
            "qwen3_5",
            _no_mtp_exclusion,
            "is stored as 16-bit floats, but the config promises nvfp4",
        ),
        ("modelopt", "qwen3_5", _different_files, "exclude different modules: ['model.norm']"),
        ("modelopt mixed", "qwen3_5", _forgotten_layer, "0.mlp.down_proj is stored as nvfp4"),
        ("mlx", "qwen3_5_moe", _no_override, "mlp.gate is stored as affine of 8 bits in groups of 64, but"),
        (
            "mlx",
            "qwen3_5",
            _wrong_bits,
            "affine of 4 bits in groups of 64, but the config promises affine of 8",
        ),
        ("mlx", "qwen3_5", _declared_false, "language_model.lm_head is stored as affine of 4 bits"),
    ],
)
def test_what_the_config_gets_wrong(
    zoo: Zoo, tmp_path: Path, case: str, model: str, lie: Callable[[folders.Packed], None], words: str
) -> None:
    packed = MAKERS[case](zoo(model, **SMALL))
    lie(packed)
    found = findings(packed, tmp_path / "out")
    assert found[Check.DECLARED].status is Status.FAIL
    problems = found[Check.DECLARED].data["problems"]
    assert any(words in problem for problem in problems), problems
    others = {check: status for check, status in statuses(found).items() if check is not Check.DECLARED}
    assert set(others.values()) == {Status.PASS}, others


def _bf16_again(packed: folders.Packed, module: str) -> None:
    """One partner of a fused pair is left as it was, and the config says so."""
    name = f"{module}.weight"
    packed.drop(rf"^{module}\.weight")
    packed.tensors[name] = folders.Packed(packed.source).tensors[name]
    config = packed.config["quantization_config"]
    config["ignore" if "ignore" in config else "modules_to_not_convert"].append(module)


def _scaled(packed: folders.Packed, name: str) -> None:
    packed.tensors[name] = packed.tensors[name] * 2


@pytest.mark.parametrize(
    ("case", "model", "plant", "words"),
    [
        ("fp8", "qwen3_5", lambda p: _bf16_again(p, f"{TRUNK}.0.mlp.up_proj"), "run as one and stored as"),
        ("fp8", "qwen3_5", lambda p: _bf16_again(p, f"{TRUNK}.3.self_attn.k_proj"), "k_proj to"),
        (
            "compressed nvfp4",
            "qwen3_5",
            lambda p: _scaled(p, f"{TRUNK}.0.mlp.up_proj.weight_global_scale"),
            "have global scales of their own",
        ),
        (
            "modelopt",
            "qwen3_5_moe",
            lambda p: _scaled(p, f"{TRUNK}.1.mlp.experts.2.gate_proj.weight_scale_2"),
            "experts.2.gate_proj and",
        ),
        (
            "modelopt",
            "qwen3_5_moe",
            lambda p: _scaled(p, f"{TRUNK}.1.mlp.shared_expert.gate_proj.weight_scale_2"),
            "shared_expert.gate_proj and",
        ),
    ],
)
def test_fused_modules_that_are_not_alike(
    zoo: Zoo, tmp_path: Path, case: str, model: str, plant: Callable[[folders.Packed], None], words: str
) -> None:
    packed = MAKERS[case](zoo(model, **SMALL))
    plant(packed)
    found = findings(packed, tmp_path / "out")
    assert found[Check.FUSED].status is Status.FAIL
    assert words in found[Check.FUSED].summary


def test_down_projections_have_scales_of_their_own(zoo: Zoo, tmp_path: Path) -> None:
    packed = folders.modelopt(zoo("qwen3_5_moe", **SMALL))
    _scaled(packed, f"{TRUNK}.1.mlp.experts.2.down_proj.weight_scale_2")
    assert findings(packed, tmp_path / "out")[Check.FUSED].status is Status.PASS


def _narrow(packed: folders.Packed, name: str) -> None:
    packed.tensors[name] = packed.tensors[name][..., :1]


@pytest.mark.parametrize(
    ("case", "plant", "words"),
    [
        ("fp8", lambda p: p.drop(r"^model.*0\.mlp\.up_proj\.weight_scale_inv"), "has no scale"),
        ("fp8", lambda p: p.drop(r"^mtp.*q_proj\.weight_scale_inv"), "mtp.layers.0.self_attn.q_proj.weight"),
        ("modelopt", lambda p: p.drop(r"0\.mlp\.up_proj\.weight_scale_2"), "has no global scale"),
        ("modelopt", lambda p: p.drop(r"0\.mlp\.up_proj\.weight_scale$"), "has no scale"),
        ("modelopt", lambda p: _narrow(p, f"{TRUNK}.0.mlp.up_proj.weight_scale"), r"expected (256, 8)"),
        ("mlx", lambda p: p.drop(r"0\.mlp\.up_proj\.scales"), "is U32 and has no scale"),
        ("mlx", lambda p: p.drop(r"0\.mlp\.up_proj\.biases"), "no biases"),
    ],
)
def test_parts_that_do_not_fit(
    zoo: Zoo, tmp_path: Path, case: str, plant: Callable[[folders.Packed], None], words: str
) -> None:
    packed = MAKERS[case](zoo("qwen3_5", **SMALL))
    plant(packed)
    found = findings(packed, tmp_path / "out")
    assert found[Check.STORED].status is Status.FAIL
    assert words in found[Check.STORED].summary
    assert found[Check.STORED].data["count"] == 1


@pytest.mark.parametrize("case", ["fp8", "compressed nvfp4", "modelopt", "mlx"])
def test_a_head_that_is_declared_and_missing(zoo: Zoo, tmp_path: Path, case: str) -> None:
    packed = MAKERS[case](zoo("qwen3_5", **SMALL))
    packed.drop(r"^mtp\.")
    found = findings(packed, tmp_path / "out")[Check.MTP_DECLARED]
    assert found.status is Status.FAIL
    assert "declares 1 MTP layer, and no tensors of it" in found.summary


@pytest.mark.parametrize("case", ["fp8", "modelopt", "mlx"])
def test_a_head_that_is_there_and_not_declared(zoo: Zoo, tmp_path: Path, case: str) -> None:
    packed = MAKERS[case](zoo("qwen3_5", **SMALL))
    packed.config["text_config"]["mtp_num_hidden_layers"] = 0
    found = findings(packed, tmp_path / "out")[Check.MTP_DECLARED]
    assert found.status is Status.FAIL
    assert "does not declare" in found.summary


def test_a_head_beside_the_trunk_need_not_be_declared_in_it(zoo: Zoo, tmp_path: Path) -> None:
    packed = folders.mlx_folder(zoo("qwen3_5", **SMALL))
    head = folders.take_head(packed)
    out = packed.write(tmp_path / "out")
    save_file({name: tensor.contiguous() for name, tensor in head.items()}, out / "mtp.safetensors")
    found = {finding.check: finding for finding in check_stored_form(open_artifact(out))}
    assert set(statuses(found).values()) == {Status.PASS}


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (lambda p: p.drop(r"layers\.2\.mlp\.experts\.3\.down_proj"), "experts.3.down_proj.weight is missing"),
        (lambda p: p.drop(r"^mtp\.norm"), "mtp.norm.weight is missing"),
        (lambda p: p.drop(r"^lm_head"), "lm_head.weight is missing"),
        (
            lambda p: p.tensors.update({"model.extra.weight": torch.zeros(4)}),
            "model.extra.weight is not part",
        ),
        (
            lambda p: p.tensors.update({"mtp.fc.weight": torch.zeros(128, 128)}),
            "mtp.fc.weight is [128, 128], but config.json says [128, 256]",
        ),
        (lambda p: p.config["text_config"].update(tie_word_embeddings=True), "readers take one or the other"),
    ],
)
def test_tensors_of_another_model(
    zoo: Zoo, tmp_path: Path, plant: Callable[[folders.Packed], None], words: str
) -> None:
    packed = folders.fp8_folder(zoo("qwen3_5_moe", **SMALL))
    plant(packed)
    found = findings(packed, tmp_path / "out")[Check.TENSORS]
    assert found.status is Status.FAIL
    assert any(words in problem for problem in found.data["problems"]), found.data


def test_a_config_that_is_not_known_is_not_judged(zoo: Zoo, tmp_path: Path) -> None:
    packed = folders.modelopt(zoo("qwen3_5", **SMALL))
    packed.config["quantization_config"]["quant_algo"] = "W3A5"
    packed.small["hf_quant_config.json"]["quantization"]["quant_algo"] = "W3A5"
    found = findings(packed, tmp_path / "out")[Check.DECLARED]
    assert found.status is Status.SKIPPED
    assert "W3A5" in found.summary


@pytest.mark.parametrize("mtp", ["auto", "drop"])
def test_gguf(zoo: Zoo, tmp_path: Path, mtp: str) -> None:
    view = diagnose(LocalCheckpoint(zoo("qwen3_5_moe", **SMALL)), mtp=mtp).repaired.view()
    plans = plan_gguf(view, ["Q8_0"], GgufOptions())
    execute(plans, tmp_path, threads=1)
    found = check_stored_form(open_artifact(tmp_path / plans[0].files[0].name, like=view))
    assert {finding.check: finding.status for finding in found} == {
        Check.TENSORS: Status.PASS,
        Check.MTP_DECLARED: Status.PASS,
    }


def test_gguf_that_lost_its_head(zoo: Zoo, tmp_path: Path) -> None:
    """Metadata that promises a head, tensors that are not there: llama.cpp fails to load it."""
    source = zoo("qwen3_5", **SMALL)
    view = diagnose(LocalCheckpoint(source)).repaired.view()
    bare = diagnose(LocalCheckpoint(source), mtp="drop").repaired.view()
    plan = plan_gguf(bare, ["BF16"], GgufOptions())[0]
    execute([plan], tmp_path, threads=1)
    path = tmp_path / plan.files[0].name
    artifact = open_artifact(path, like=view)
    assert {f.check: f.status for f in check_stored_form(artifact)}[Check.MTP_DECLARED] is Status.PASS
    promised = {f.check: f.status for f in check_stored_form(replace(artifact, declared_mtp=1))}
    assert promised[Check.MTP_DECLARED] is Status.FAIL
