"""W4A4: scales of inputs, from a text that goes through the model while the folder is written."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from nvfp4_folders import json_of, plan, repaired, same, write
from nvfp4_reading import tensors_in
from w4a4_folders import EXACT, largest_of_whole, planted, tokens, w4a4
from zoo_types import Zoo

from qexport.artifacts.input_scales import input_scales
from qexport.checkpoint.local import LocalCheckpoint
from qexport.cli.main import cli
from qexport.codecs.contract import Nvfp4
from qexport.codecs.nvfp4 import input_scale
from qexport.doctor import diagnose
from qexport.errors import InputError, UsageProblem
from qexport.evidence.products import InputProducts
from qexport.evidence.rounded_inputs import rounded_inputs
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.opening import open_artifact
from qexport.onepass.execute import execute
from qexport.receipt.largest_inputs import read_inputs, shown_inputs
from qexport.receipt.store import read_receipt
from qexport.receipt.verification import Check, Status
from qexport.run import feedback
from qexport.run.target import Target
from qexport.verification.choose import can_judge, traits_of
from qexport.verification.comparison import compare
from qexport.verification.input_scales import check_input_scales, recorded
from qexport.verification.options import VerifyOptions
from qexport.verification.stored_form import check_stored_form

SCALE = {"compressed-tensors": "input_global_scale", "modelopt": "input_scale"}


@pytest.fixture(scope="module", params=SCALE)
def made(
    request: pytest.FixtureRequest, zoo: Zoo, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, dict[str, Any]]:
    """A mixture of experts, its folder in either layout, and what was measured."""
    source, out = zoo("qwen3_5_moe", experts=5), tmp_path_factory.mktemp("w4a4") / "out"
    return source, out, w4a4(source, out, scope="all-linear", layout=request.param)


def layout_of(out: Path) -> str:
    return open_artifact(out).layout.word


def test_scales_are_those_of_the_largest_inputs(made: tuple[Path, Path, dict[str, Any]]) -> None:
    """Of every quantized module, found in the whole model.

    llm-compressor's layout has one of each expert, those that the text is not sent to as well; ModelOpt's one
    for all experts of a layer, of what is sent to any.
    """
    source, out, largest = made
    stored, word = tensors_in(out), layout_of(out)
    sent = word == "modelopt"
    modules = [name.rpartition(".")[0] for name in stored if stored[name].dtype == torch.uint8]
    last = SCALE[word]
    assert {f"{module}.{last}" for module in modules} == {name for name in stored if name.endswith(last)}
    whole = largest_of_whole(source, sent=sent)
    everywhere = largest_of_whole(source)
    assert any(max(everywhere[name]) > 1.1 * max(whole[name]) for name in whole) == sent
    for module in modules:
        scale = stored[f"{module}.{last}"]
        assert scale.dtype == torch.float32
        assert scale.shape == (() if sent else (1,))
        path = module.removeprefix("model.").removeprefix("language_model.")
        before, _, expert = path.partition(".experts.")
        name = f"{before}.experts.{expert.partition('.')[2]}" if expert else path
        name = name.replace("experts.up_proj", "experts.gate_proj")
        seen = whole[name][int(expert.partition(".")[0]) if expert and not sent else 0]
        if sent:
            assert scale.item() == pytest.approx(seen / 2688, rel=1e-4), module
        else:  # llm-compressor divides in the model's dtype, bfloat16
            assert scale.item() == pytest.approx(2688 / seen, rel=2**-7), module
    down = largest["model.layers.1.mlp.experts.down_proj.weight"]
    assert len(set(down)) == (1 if sent else 5)
    assert len(largest["model.layers.1.mlp.experts.gate_proj.weight"]) == 1


def test_everything_else_is_what_w4a16_has(made: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    source, out, _ = made
    word = layout_of(out)
    write(source, tmp_path / "plain", scope="all-linear", layout=word)
    mine, other = tensors_in(out), tensors_in(tmp_path / "plain")
    assert {name for name in mine if not name.endswith(SCALE[word])} == other.keys()
    assert all(same(mine[name], other[name]) for name in other)
    one, two = (json_of(folder)["quantization_config"] for folder in (out, tmp_path / "plain"))
    assert one["ignore"] == two["ignore"]
    (group,) = one["config_groups"].values()
    assert group["input_activations"]["num_bits"] == 4
    assert group["input_activations"]["group_size"] == 16
    artifact = open_artifact(out)
    assert artifact.layout.stored_type(artifact) == "W4A4_NVFP4"


O_PROJ = "layers.3.self_attn.o_proj"
O_PROJ_NAME = f"model.{O_PROJ}.weight"
FAULTS: dict[str, tuple[str, Any, str]] = {
    "four times": ("layers.1.mlp.experts.3.down", lambda scale: scale * 4, "of the largest"),
    "a quarter": ("layers.2.linear_attn.out", lambda scale: scale / 4, "of the largest"),
    "none": (O_PROJ, lambda _: None, "no scale of its inputs"),
    "zero": (O_PROJ, lambda scale: scale * 0, "inputs is "),
    "two numbers": (O_PROJ, lambda scale: scale.repeat(2), "inputs is nan"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_scale_is_found(made: tuple[Path, Path, dict[str, Any]], tmp_path: Path, fault: str) -> None:
    _, out, largest = made
    assert check_input_scales(open_artifact(out), largest).status is Status.PASS
    place, change, words = FAULTS[fault]
    bad = planted(out, tmp_path / "bad", lambda name, scale: change(scale) if place in name else scale)
    artifact = open_artifact(bad)
    finding = check_input_scales(artifact, largest)
    assert finding.status is Status.FAIL
    assert words in finding.summary
    assert finding.data["problems"][0].startswith("model.")
    assert len(finding.data["problems"]) == 1
    # Without a record of what was measured a factor cannot be seen here, and the finding says so.
    alone = check_input_scales(artifact)
    assert (alone.status is Status.FAIL) == (fault in ("none", "zero", "two numbers"))
    assert alone.status is Status.FAIL or "no record" in alone.summary


def test_what_is_fused_has_one_scale(made: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    bad = planted(
        made[1],
        tmp_path / "bad",
        lambda name, scale: scale * 2 if "layers.1.mlp.experts.2.up" in name else scale,
    )
    (finding,) = [each for each in check_stored_form(open_artifact(bad)) if each.check is Check.FUSED]
    assert finding.status is Status.FAIL
    assert "scales of inputs of their own" in finding.summary
    assert all(each.status is Status.PASS for each in check_stored_form(open_artifact(made[1])))


def test_the_comparison_rounds_inputs_as_the_folder_says(
    made: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Activations cost more than weights alone; with room for a sixteenth of them, more still."""
    source, out, _ = made
    view, artifact = repaired(source).view(), open_artifact(out)
    scales = input_scales(artifact)
    assert len(scales["model.layers.1.mlp.experts.down_proj.weight"]) == 5  # as stored, in either layout
    weights = compare(view, artifact.view(), tokens()).trunk.mean
    found = compare(view, artifact.view(), tokens(), inputs=scales)
    cut = {name: scale * 16 for name, scale in scales.items()}
    broken = compare(view, artifact.view(), tokens(), inputs=cut).trunk.mean
    assert weights < found.trunk.mean < broken
    divergence, room, _ = found.findings()
    assert f"inputs of {len(found.room)} matrices rounded" in divergence.summary
    assert 0.9 < max(found.room) < 2  # the text that was measured, through rounded weights and inputs
    assert room.status is Status.PASS
    # All scales four times too large, and nobody's word for what was measured: half of the inputs do not fit.
    crowded = replace(found, room=tuple(share * 4 for share in found.room)).findings()[1]
    assert (crowded.check, crowded.status) == (Check.INPUT_ROOM, Status.FAIL)
    assert crowded.data["median"] > 2
    assert "the scales of inputs are too large" in crowded.summary
    bad = open_artifact(planted(out, tmp_path / "bad", lambda _, scale: scale * 0))
    with pytest.raises(InputError, match=r"the scale of its inputs is (0|inf)"):
        input_scales(bad)


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_inputs_are_rounded_as_the_library_rounds_them(factor: float) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.quant_scheme import NVFP4
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    inputs = torch.randn(7, 64, generator=torch.Generator().manual_seed(1)) * 3
    scale = torch.tensor([factor * 2688 / float(inputs.abs().max())])
    args = NVFP4["input_activations"]
    module = torch.nn.Linear(64, 1)
    scales, points = compute_dynamic_scales_and_zp(inputs, args, module, scale)
    theirs = fake_quantize(inputs, scales, points, args, global_scale=scale)
    mine = rounded_inputs(inputs, scale.item())
    assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert (float(mine.abs().max()) < 0.3 * float(inputs.abs().max())) == (factor > 1)


@pytest.mark.parametrize("layout", SCALE)
def test_the_command_measures_on_a_text(zoo: Zoo, tmp_path: Path, layout: str) -> None:
    """A text of one's own, or the package's; the receipt says which, and what was found."""
    source = str(zoo("qwen3_5"))
    text = tmp_path / "mine.txt"
    text.write_text("Many words about many things. " * 200)
    words = ["nvfp4", source, "--scheme", "NVFP4", "--no-verify", "--feedback-tokens", "1024"]
    words += [] if layout == "compressed-tensors" else ["--layout", layout]
    out = tmp_path / "out"
    run = CliRunner().invoke(cli, [*words, "--corpus", str(text), "-o", str(out)], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    (entry,) = read_receipt(out).receipt.artifacts
    assert entry.label == "W4A4_NVFP4"
    assert entry.options["scheme"] == "NVFP4"
    assert entry.options["input_scales"]["corpus"] == "mine.txt"
    assert entry.options["input_scales"]["tokens"] <= 1024
    assert entry.details["layout"] == layout
    artifact = open_artifact(out)
    assert artifact.layout.stored_type(artifact) == "W4A4_NVFP4"
    finding = check_input_scales(artifact, recorded(out))
    assert finding.status is Status.PASS
    assert finding.data["measured"]
    again = CliRunner().invoke(cli, [*words, "--corpus", str(text), "-o", str(out)], catch_exceptions=False)
    assert "is there, from the same source and options" in again.output
    text.write_text("Other words. " * 400)
    other = CliRunner().invoke(cli, [*words, "--corpus", str(text), "-o", str(out)])
    assert other.exit_code != 0  # it would be replaced: --overwrite
    dry = CliRunner().invoke(cli, [*words, "--dry-run", "--json"], catch_exceptions=False)
    assert "W4A4_NVFP4" in dry.output


def test_a_scale_of_nothing_but_zeros_is_what_the_libraries_store(
    made: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    """And passes for it. That ModelOpt stores this number its own exporter says (test_nvfp4_peers.py)."""
    word = layout_of(made[1])
    stored = Nvfp4(divides=word != "modelopt", inputs=True)
    number = float(input_scale(stored, torch.bfloat16, 0.0))
    assert number == (np.float32(6 / 2688) if word == "modelopt" else 1)
    unreached = planted(
        made[1], tmp_path / "zero", lambda name, scale: scale * 0 + number if O_PROJ in name else scale
    )
    finding = check_input_scales(open_artifact(unreached), {**made[2], O_PROJ_NAME: [0.0]})
    assert finding.status is Status.PASS
    assert check_input_scales(open_artifact(unreached), made[2]).status is Status.FAIL


def test_fp8_beside_w4a4_has_measured_scales_too(zoo: Zoo, tmp_path: Path) -> None:
    """And ``lm_head``, which no layer's pass reaches; no importance guesses what was measured."""
    source, out = zoo("qwen3_5"), tmp_path / "out"
    largest = w4a4(source, out, scope="nvidia", layout="modelopt")
    stored, whole = tensors_in(out), largest_of_whole(source)
    o_proj = "model.language_model.layers.3.self_attn.o_proj"
    assert stored[f"{o_proj}.weight"].dtype == torch.float8_e4m3fn
    assert stored[f"{o_proj}.input_scale"].item() == pytest.approx(
        whole["layers.3.self_attn.o_proj"][0] / 448, rel=1e-4
    )
    assert stored["lm_head.input_scale"].item() == pytest.approx(largest["lm_head.weight"][0] / 2688)
    artifact = open_artifact(out)
    assert artifact.layout.stored_type(artifact) == "W4A4_MIXED_PRECISION"
    assert check_input_scales(artifact, largest).status is Status.PASS
    layers = json_of(out)["quantization_config"]["quantized_layers"]
    assert layers["lm_head"] == {"quant_algo": "NVFP4", "group_size": 16}
    assert layers[o_proj] == {"quant_algo": "FP8"}


def test_a_receipt_has_a_line_for_a_stack_of_experts() -> None:
    """256 experts: extremes for readers, and all of them to 8 bits for the check."""
    table = np.exp(np.random.default_rng(2).normal(2, 1, 256))
    shown = shown_inputs(table)
    assert isinstance(shown, dict)
    assert (shown["least"], shown["largest"]) == (table.min(), table.max())
    assert len(json.dumps(shown)) < 800
    assert np.allclose(read_inputs(shown), table, rtol=2**-8)
    assert read_inputs(table.tolist()) == table.tolist()  # as it was before


@pytest.mark.parametrize("shown", [{"each": "no base64"}, {"least": 1}, {"each": "AA=="}, 3, None])
def test_a_record_that_is_none_is_no_pass(made: tuple[Path, Path, dict[str, Any]], shown: Any) -> None:
    finding = check_input_scales(open_artifact(made[1]), {**made[2], O_PROJ_NAME: read_inputs(shown)})
    assert finding.status is Status.FAIL
    assert "no record of how large its inputs were" in finding.summary


def test_a_w4a4_folder_without_any_scale_of_inputs_is_found(
    made: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Its config alone says that there should be some: config.json, or ModelOpt's other file."""
    bare = planted(made[1], tmp_path / "bare", lambda *_: None)
    for config in ("config.json", "hf_quant_config.json"):
        finding = check_input_scales(open_artifact(bare))
        assert finding.status is Status.FAIL, config
        assert finding.data["scales"] == 0
        if not (bare / "hf_quant_config.json").exists():
            break
        config = json_of(bare)
        config.pop("quantization_config", None)
        (bare / "config.json").write_text(json.dumps(config))


def test_what_does_not_go_together_is_refused(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="there are NVFP4A16, NVFP4"):
        Nvfp4Options(scheme="W4A4")  # type: ignore[arg-type]
    with pytest.raises(UsageProblem, match="scales of inputs need a text"):
        execute([plan(zoo("llama"), scheme="NVFP4")], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))
    source, text = str(zoo("qwen3_5")), tmp_path / "mine.txt"
    text.write_text("words")
    unread = CliRunner().invoke(cli, ["nvfp4", source, "--corpus", str(text)])
    assert "nothing reads --corpus here" in str(unread.exception)
    matrix = tmp_path / "ready.gguf_file"
    matrix.write_bytes(b"GGUF")
    asked = ["--scheme", "NVFP4", "--scale-search", "importance", "--importance", str(matrix)]
    forgotten = CliRunner().invoke(cli, ["nvfp4", source, *asked])
    assert isinstance(forgotten.exception, UsageProblem)
    assert "scales of inputs need a text, and ready.gguf_file holds sums of squares" in str(
        forgotten.exception
    )
    assert "--corpus FILE" in str(forgotten.exception.hint)
    for options in (["--feedback"], ["--best"]):
        alone = CliRunner().invoke(cli, ["nvfp4", source, "--scheme", "NVFP4", *options])
        assert isinstance(alone.exception, UsageProblem)
        assert "--importance FILE" in str(alone.exception.hint)
    # Hints of texts name no option that this command has not.
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    for path, words in ((text, "less than one chunk"), (empty, "is empty")):
        short = CliRunner().invoke(cli, ["nvfp4", source, "--scheme", "NVFP4", "--corpus", str(path)])
        assert isinstance(short.exception, InputError)
        assert words in short.exception.message
        assert "--imatrix" not in str(short.exception.hint)
        assert "chunk" not in str(short.exception.hint)


def test_a_run_that_went_on_behind_the_last_layer_has_no_record(zoo: Zoo) -> None:
    made = plan(zoo("llama"), scheme="NVFP4")
    with closing(InputProducts(repaired(zoo("llama")).view(), tokens(), EXACT)) as products:
        assert feedback.told(made, products) == made


def test_transformers_is_no_judge_of_any_mixture(zoo: Zoo) -> None:
    """Whatever its family calls the number of experts: its reader leaves their scales out."""
    for name, mixture in (("glm4_moe", True), ("qwen3_5_moe", True), ("qwen3", False)):
        model = repaired(zoo(name))
        assert traits_of(model.family, model.text, {}).experts is mixture, name


def test_a_recipe_names_the_text(zoo: Zoo, tmp_path: Path) -> None:
    from qexport.recipe.load import load_recipe

    text = tmp_path / "mine.txt"
    text.write_text("words")
    recipe = {
        "source": {"model": str(zoo("qwen3_5"))},
        "calibration": {"corpus": str(text), "feedback_tokens": 64},
        "artifacts": [{"nvfp4": {"scheme": "NVFP4"}}],
    }
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(recipe))
    loaded = load_recipe(path)
    assert loaded.artifacts[0].options.input_scales
    assert loaded.artifacts[0].folder == "{name}-NVFP4-W4A4"
    assert loaded.calibration is not None
    assert loaded.calibration.corpus == text


def test_transformers_is_no_judge_of_4_bits_beside_float16(zoo: Zoo, tmp_path: Path) -> None:
    """It makes bfloat16 of them, which it then cannot multiply: a sound folder failed. Whatever the reason a
    folder gives once it is there, its plan has foreseen it."""
    cases = {"llama": "float16", "qwen3": None, "qwen3_5_moe": "experts"}
    for name, words in cases.items():
        made, out = plan(zoo(name), layout="compressed-tensors"), tmp_path / name
        execute([made], out)
        why = can_judge("transformers", open_artifact(out))
        assert why is None if words is None else words in str(why), name
        target = Target(Nvfp4Options(layout="compressed-tensors"), out, VerifyOptions(twin=False))
        foreseen = target.foresee(made, diagnose(LocalCheckpoint(zoo(name))))
        assert foreseen is None if why is None else str(foreseen).startswith(f"{why};")
