"""Types printed and given back, or taken from another artifact: the same bytes; what does not fit is said."""

import json
import re
from collections import Counter
from pathlib import Path

import gguf
import numpy as np
import pytest
from oracle import make_golden

from qexport.assign.assignment import Assignment, read_types
from qexport.checkpoint.opening import open_checkpoint
from qexport.doctor.diagnose import diagnose
from qexport.errors import InputError, QexportError, UsageProblem
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.fp8.plan import plan_fp8
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.mlx.plan import plan_mlx
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.nvfp4.plan import plan_nvfp4
from qexport.onepass.execute import execute
from qexport.run.target import Target


def repaired(folder):
    return diagnose(open_checkpoint(str(folder))).repaired


def plan_of(word, folder, given=None, **options):
    """The trunk's plan of a format, its types from ``given``."""
    model = repaired(folder)
    if word == "gguf":
        (plan,) = plan_gguf(model.view(), ["Q4_K_M"], GgufOptions(types_from=given, **options))
    elif word == "mlx":
        plan = plan_mlx(model, MlxOptions(types_from=given, **options))[0]
    elif word == "fp8":
        plan = plan_fp8(model, Fp8Options(types_from=given, **options))
    else:
        plan = plan_nvfp4(model, Nvfp4Options(types_from=given, **options))
    return plan


def saved(plan, path, **changes):
    document = plan.assignment.to_json()
    document["types"] |= changes
    path.write_text(json.dumps(document))
    return path


def contents(plan, folder):
    execute([plan], folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


UNUSUAL = [
    ("gguf", "qwen3_5_moe", {"tensor_types": (("ffn_down", "Q5_0"),), "output_type": "Q8_0"}, {}),
    ("gguf", "llama", {"mtp_type": "mixture"}, {}),
    ("mlx", "qwen3_5_moe", {"bits": 4}, {"bits": 4}),
    ("mlx", "llama", {"bits": 4, "recipe": "mixed_3_6"}, {"bits": 4, "recipe": "mixed_3_6"}),
    ("mlx", "llama", {"mode": "mxfp4"}, {"mode": "mxfp4"}),
    ("fp8", "qwen3_5_moe", {}, {}),
    ("fp8", "qwen3_5", {"layout": "compressed-tensors"}, {"layout": "compressed-tensors"}),
    ("nvfp4", "qwen3_5_moe", {"scope": "nvidia"}, {}),
    ("nvfp4", "qwen3_5", {"scope": "all-linear"}, {"scope": "mlp"}),
]


@pytest.mark.parametrize(("word", "name", "first", "then"), UNUSUAL)
def test_printed_and_given_back_is_the_same(zoo, tmp_path, word, name, first, then):
    one = plan_of(word, zoo(name), **first)
    assert one.assignment.format == word
    other = plan_of(word, zoo(name), saved(one, tmp_path / "types.json"), **then)
    assert other.assignment.types == one.assignment.types
    assert contents(one, tmp_path / "one") == contents(other, tmp_path / "two")


def test_what_another_gguf_has(zoo, tmp_path):
    plan = plan_of("gguf", zoo("qwen3_5"), tensor_types=((r"blk\.1\.", "Q3_K"),), split_max_size=1 << 20)
    execute([plan], tmp_path / "one")
    first = tmp_path / "one" / plan.files[0].name
    assert len(plan.files) > 1
    other = plan_of("gguf", zoo("qwen3_5"), first)
    assert [t.stored for t in other.tensors] == [t.stored for t in plan.tensors]
    assert other.notes == plan_of("gguf", zoo("qwen3_5")).notes


@pytest.mark.parametrize("golden", ["llama Q4_K_M", "qwen3_5 IQ4_XS", "qwen3_5 Q2_K", "qwen3_5 Q3_K_M"])
def test_types_of_a_file_that_llama_quantize_made(zoo, tmp_path, golden):
    """The golden's own list of tensors, as a GGUF without data worth reading."""
    name, kind = golden.split()
    found = make_golden.load(name, kind)
    lines = [line.split() for line in found["tensors"]]
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", found["kv"]["general.architecture"][-1])
    for tensor, type_name, shape, _ in lines:
        dims = [int(size) for size in shape.split("x")]
        stored = gguf.GGMLQuantizationType[type_name]
        block, nbytes = gguf.GGML_QUANT_SIZES[stored]
        data = np.zeros((*dims[1:][::-1], dims[0] // block * nbytes), np.uint8)
        writer.add_tensor(tensor, data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    plan = plan_of("gguf", zoo(name), tmp_path / "theirs.gguf")
    theirs = {tensor: type_name for tensor, type_name, _, _ in lines}
    assert {tensor.name: tensor.stored.name for tensor in plan.tensors} == theirs


@pytest.mark.parametrize("options", [{"bits": 6}, {"recipe": "mixed_2_6"}, {"mode": "mxfp8"}])
def test_what_another_mlx_folder_has(zoo, tmp_path, options):
    plan = plan_of("mlx", zoo("qwen3_5_moe"), **options)
    execute([plan], tmp_path / "one")
    other = plan_of("mlx", zoo("qwen3_5_moe"), tmp_path / "one")
    assert other.assignment.types == plan.assignment.types
    assert [t.stored for t in other.tensors] == [t.stored for t in plan.tensors]


def test_each_tensor_as_it_is_told(zoo, tmp_path):
    """Mixed as no recipe mixes, and config.json says so where a loader has to know."""
    plain = plan_of("mlx", zoo("llama"))
    layer = "model.layers.0.mlp.{}_proj.weight"
    names = {layer.format("up"): "8-bit g32", layer.format("gate"): "plain", layer.format("down"): "mxfp4"}
    path = saved(plain, tmp_path / "types.json", **names)
    made = contents(plan_of("mlx", zoo("llama"), path), tmp_path / "out")
    settings = json.loads(made["config.json"])["quantization"]
    assert settings["model.layers.0.mlp.up_proj"] == {"group_size": 32, "bits": 8}
    assert settings["model.layers.0.mlp.down_proj"] == {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    assert "model.layers.0.mlp.gate_proj" not in settings
    index = json.loads(made["model.safetensors.index.json"])["weight_map"]
    assert "model.layers.0.mlp.gate_proj.scales" not in index
    assert "model.layers.0.mlp.down_proj.scales" in index
    assert "model.layers.0.mlp.down_proj.biases" not in index


def test_options_that_name_types_win(zoo, tmp_path):
    path = saved(plan_of("gguf", zoo("llama")), tmp_path / "types.json")
    plan = plan_of("gguf", zoo("llama"), path, output_type="F16", tensor_types=(("attn_v", "Q8_0"),))
    stored = {tensor.name: tensor.stored.name for tensor in plan.tensors}
    assert stored["output.weight"] == "F16"
    assert {kind for name, kind in stored.items() if "attn_v" in name} == {"Q8_0"}


def test_what_is_not_named_gets_the_usual_and_that_is_said(zoo, tmp_path):
    plan = plan_of("gguf", zoo("llama"))
    types = dict(plan.assignment.types)
    removed = types.pop("lm_head.weight")
    path = tmp_path / "types.json"
    path.write_text(json.dumps(Assignment("gguf", "x", types).to_json()))
    other = plan_of("gguf", zoo("llama"), path)
    assert {t.name: t.stored.name for t in other.tensors}["output.weight"] == removed
    assert "types.json has no type for 1 tensor, and takes the usual: lm_head.weight" in other.notes


def test_rows_that_are_no_whole_blocks_fall_back_and_that_is_said(zoo, tmp_path):
    source = zoo("smollm", intermediate=672)  # a multiple of 32, not of 256
    down = "model.layers.0.mlp.down_proj.weight"
    path = saved(plan_of("gguf", source), tmp_path / "types.json", **{down: "Q6_K"})
    plan = plan_of("gguf", source, path)
    assert {t.name: t.stored.name for t in plan.tensors}["blk.0.ffn_down.weight"] == "Q8_0"
    assert any(re.search(r"no whole number of Q6_K blocks and become Q8_0.*ffn_down", n) for n in plan.notes)
    path = saved(plan_of("mlx", source), tmp_path / "mlx.json", **{down: "4-bit g128"})
    plan = plan_of("mlx", source, path)
    assert plan.assignment.types[down] == "plain"
    assert any("do not divide into groups" in note and down in note for note in plan.notes)
    path = saved(plan_of("nvfp4", zoo("smollm")), tmp_path / "nvfp4.json")
    with pytest.raises(InputError, match="rows of 680 values"):
        plan_of("nvfp4", zoo("smollm", intermediate=680), path)


def refusal(word, folder, path, **options):
    with pytest.raises(QexportError) as caught:
        plan_of(word, folder, path, **options)
    return f"{caught.value.message} | {caught.value.hint}"


def test_faults(zoo, tmp_path):
    llama, path = zoo("llama"), tmp_path / "types.json"
    mine = plan_of("gguf", llama)
    up, gate = (f"model.layers.0.mlp.{part}_proj.weight" for part in ("up", "gate"))
    saved(mine, path, **{"model.layers.0.mlp.up_prj.weight": "Q4_K"})
    said = refusal("gguf", llama, path)
    assert "1 tensor that this model does not have" in said
    assert f"did you mean '{up}'" in said
    saved(mine, path, **{up: "Q4_KM"})
    assert "unknown tensor type 'Q4_KM'" in refusal("gguf", llama, path)
    saved(mine, path, **{"model.norm.weight": "Q8_0"})
    assert "output_norm.weight cannot be Q8_0: readers want it as floats" in refusal("gguf", llama, path)
    saved(plan_of("gguf", zoo("qwen3_5_moe")), path)
    assert "It was made for another model" in refusal("gguf", llama, path)
    assert "holds types for gguf, not for mlx" in refusal("mlx", llama, path)
    saved(plan_of("mlx", llama), path, **{up: "4-bit g63"})
    assert "unknown MLX type '4-bit g63'; did you mean '4-bit g64'?" in refusal("mlx", llama, path)
    saved(plan_of("mlx", llama), path, **{"model.norm.weight": "4-bit g64"})
    assert "model.norm.weight cannot be 4-bit g64" in refusal("mlx", llama, path)
    saved(plan_of("fp8", llama), path, **{up: "plain"})
    assert "which runtimes fuse: they need one type" in refusal("fp8", llama, path)
    saved(plan_of("fp8", llama), path, **{up: "E4M3"})
    assert "unknown tensor type 'E4M3'; did you mean 'F8_E4M3'?" in refusal("fp8", llama, path)
    saved(plan_of("fp8", llama), path, **{"model.embed_tokens.weight": "F8_E4M3"})
    assert "which fp8 does not quantize here" in refusal("fp8", llama, path)
    saved(plan_of("nvfp4", llama), path, **{up: "F8_E4M3", gate: "F8_E4M3"})
    assert plan_of("nvfp4", llama, path).assignment.types[up] == "F8_E4M3"
    saved(plan_of("nvfp4", llama), path, **{"lm_head.weight": "NVFP4"})
    found = refusal("nvfp4", llama, path, layout="compressed-tensors")
    assert "has NVFP4 for lm_head.weight, which nvfp4 does not quantize here" in found


def test_a_gguf_of_another_model(zoo, tmp_path):
    for name, message in (
        ("qwen3_5", "of architecture qwen35, the model is llama"),
        ("smollm", "tensor that this model does not have"),
    ):
        (plan,) = plan_gguf(repaired(zoo(name)).view(), ["Q4_0"], GgufOptions())
        execute([plan], tmp_path / name)
        path = tmp_path / name / plan.files[0].name
        if name == "smollm":  # one layer more than the other
            path = saved(plan, tmp_path / "x.json", **{"model.layers.99.mlp.up_proj.weight": "Q4_0"})
        assert message in refusal("gguf", zoo("llama"), path)


def test_one_quantized_file_only(zoo, tmp_path):
    path = saved(plan_of("gguf", zoo("llama")), tmp_path / "types.json")
    view = repaired(zoo("llama")).view()
    for types in (["BF16"], ["Q4_K_M", "Q8_0"]):
        with pytest.raises(UsageProblem, match="the types of one quantized file"):
            plan_gguf(view, types, GgufOptions(types_from=path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "holds no types"),
        ('{"qexport_types": 2, "format": "gguf", "types": {"a": "F32"}}', "version 2"),
        ('{"qexport_types": 1, "format": "gguf", "types": {}}', "has to be a mapping"),
        ('{"qexport_types": 1, "format": "gguf", "types": {"a": 1}}', "has to be a mapping"),
        ('{"qexport_types": 1, "format": "fp8", "types": {"a": "F32"}}', "for fp8, not for gguf"),
        (
            json.dumps({"artifacts": [{"assignment": {"qexport_types": 1, "format": "gguf"}}] * 2}),
            "2 lists of types for gguf, not one",
        ),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "types.json"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        read_types(path, "gguf")


def test_receipts_name_the_file_without_its_folder(tmp_path):
    path = tmp_path / "types.json"
    gguf_options = Target(GgufOptions(("Q4_0",), types_from=path), tmp_path).chosen()
    folder_options = Target(Fp8Options(types_from=path), tmp_path).chosen()
    assert gguf_options["types_from"] == folder_options["types_from"] == "types.json"


def test_all_formats_print_every_tensor_they_may_quantize(zoo):
    counts = {
        word: Counter(plan_of(word, zoo("qwen3_5_moe")).assignment.types.values())
        for word in ("gguf", "mlx", "fp8", "nvfp4")
    }
    assert set(counts["fp8"]) <= {"F8_E4M3", "plain"}
    assert set(counts["nvfp4"]) == {"NVFP4", "plain"}
    assert counts["mlx"]["4-bit g64"] > counts["mlx"]["8-bit g64"] > 0
    assert counts["gguf"]["F32"] > 0


@pytest.mark.parametrize(("word", "plain"), [("fp8", "F8_E4M3"), ("nvfp4", "NVFP4")])
def test_layers_that_differ_are_listed_one_by_one(zoo, tmp_path, word, plain):
    """An expression for all layers would have loaders take quantized matrices for plain ones."""
    layout = {"layout": "compressed-tensors"}
    usual = plan_of(word, zoo("llama"), **layout)
    parts = {f"model.layers.1.mlp.{part}_proj.weight": "plain" for part in ("gate", "up")}
    assert {usual.assignment.types[name] for name in parts} == {plain}
    plan = plan_of(word, zoo("llama"), saved(usual, tmp_path / "types.json", **parts), **layout)
    (config,) = (json.loads(file.header) for file in plan.files if file.name == "config.json")
    ignore = config["quantization_config"]["ignore"]
    expressions = [re.compile(each.removeprefix("re:")) for each in ignore]
    for name, kind in plan.assignment.types.items():
        module = name.removesuffix(".weight")
        assert any(each.match(module) for each in expressions) == (kind == "plain"), name
