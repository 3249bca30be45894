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
from nvfp4_folders import json_of, plan, repaired, write
from nvfp4_reading import tensors_in
from safetensors.torch import save_file
from zoo_types import Zoo

from qexport.artifacts.input_scales import input_scales
from qexport.cli.main import cli
from qexport.errors import InputError, UsageProblem
from qexport.evidence.options import StreamOptions
from qexport.evidence.products import InputProducts
from qexport.evidence.rounded_inputs import rounded_inputs
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.opening import open_artifact
from qexport.onepass.execute import execute
from qexport.receipt.names import LARGEST_INPUTS
from qexport.receipt.store import read_receipt
from qexport.receipt.verification import Check, Status
from qexport.run import feedback
from qexport.verification.choose import can_judge, traits_of
from qexport.verification.comparison import compare
from qexport.verification.input_scales import check_input_scales, recorded
from qexport.verification.stored_form import check_stored_form

EXACT = StreamOptions(precision="float32")
SCALE = "input_global_scale"


def tokens() -> np.ndarray:
    return (np.arange(4 * 24, dtype=np.int32) * 7 % 300).reshape(4, 24)


def w4a4(source: Path, out: Path, stream: StreamOptions = EXACT, **options: Any) -> dict[str, Any]:
    """Write the folder; the largest inputs, by tensor."""
    made = plan(source, scheme="NVFP4", **options)
    with closing(InputProducts(repaired(source).view(), tokens(), stream)) as products:
        execute([made], out, threads=2, products=products)
        details: dict[str, Any] = dict(feedback.told(made, products).details[LARGEST_INPUTS])
    return details


def largest_of_whole(source: Path) -> dict[str, list[float]]:
    """By the module's path, from transformers' whole model: of experts, each of all tokens."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval().model
    seen: dict[str, list[float]] = {}

    def note(name: str, inputs: list[torch.Tensor]) -> None:
        found = [float(each.abs().max()) for each in inputs]
        seen[name] = [max(pair) for pair in zip(found, seen.get(name, found), strict=True)]

    def experts(name: str, stack: Any, states: torch.Tensor) -> None:
        note(f"{name}.gate_proj", [states] * len(stack.down_proj))
        halves = [(states @ weight.t()).chunk(2, dim=-1) for weight in stack.gate_up_proj]
        note(f"{name}.down_proj", [torch.nn.functional.silu(gate) * up for gate, up in halves])

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, args, name=name: note(name, [args[0]]))
        elif type(module).__name__.endswith("Experts"):
            module.register_forward_pre_hook(lambda m, args, name=name: experts(name, m, args[0]))
    with torch.no_grad():
        model(torch.from_numpy(tokens()).long(), use_cache=False)
    return seen


@pytest.fixture(scope="module")
def made(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A mixture of experts, its folder, and what was measured."""
    source, out = zoo("qwen3_5_moe", experts=5), tmp_path_factory.mktemp("w4a4") / "out"
    return source, out, w4a4(source, out, scope="all-linear")


def test_scales_are_those_of_the_largest_inputs(made: tuple[Path, Path, dict[str, Any]]) -> None:
    """Of every quantized module, experts that the text is not sent to as well; found in the whole model."""
    source, out, largest = made
    stored = tensors_in(out)
    modules = [name.removesuffix(".weight_packed") for name in stored if name.endswith(".weight_packed")]
    assert {f"{module}.{SCALE}" for module in modules} == {name for name in stored if name.endswith(SCALE)}
    whole = largest_of_whole(source)
    for module in modules:
        scale = stored[f"{module}.{SCALE}"]
        assert scale.dtype == torch.float32
        assert scale.shape == (1,)
        path = module.removeprefix("model.").removeprefix("language_model.")
        before, _, expert = path.partition(".experts.")
        name = f"{before}.experts.{expert.partition('.')[2]}" if expert else path
        name = name.replace("experts.up_proj", "experts.gate_proj")
        seen = whole[name][int(expert.partition(".")[0]) if expert else 0]
        # The number that llm-compressor stores: its division is in the model's dtype, bfloat16.
        assert scale.item() == pytest.approx(2688 / seen, rel=2**-7), module
    down = largest["model.layers.1.mlp.experts.down_proj.weight"]
    assert len(set(down)) == 5
    assert len(largest["model.layers.1.mlp.experts.gate_proj.weight"]) == 1


def test_everything_else_is_what_w4a16_has(made: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    source, out, _ = made
    write(source, tmp_path / "plain", scope="all-linear", layout="compressed-tensors")
    mine, other = tensors_in(out), tensors_in(tmp_path / "plain")
    assert {name for name in mine if not name.endswith(SCALE)} == other.keys()
    assert all(torch.equal(mine[name].view(torch.uint8), other[name].view(torch.uint8)) for name in other)
    one, two = (json_of(folder)["quantization_config"] for folder in (out, tmp_path / "plain"))
    assert one["ignore"] == two["ignore"]
    inputs = one["config_groups"]["NVFP4"]["input_activations"]
    assert (inputs["dynamic"], inputs["num_bits"], inputs["group_size"]) == ("local", 4, 16)


def planted(out: Path, to: Path, change: Any) -> Path:
    """The folder with its scales of inputs changed: ``change(name, scale)``, ``None`` to leave one out."""
    to.mkdir()
    stored = {}
    for name, tensor in tensors_in(out).items():
        stored[name] = change(name, tensor) if name.endswith(SCALE) else tensor
    save_file({n: t for n, t in stored.items() if t is not None}, to / "model.safetensors")
    for file in out.iterdir():
        if file.suffix == ".json" and "index" not in file.name:
            (to / file.name).write_bytes(file.read_bytes())
    return to


O_PROJ = "layers.3.self_attn.o_proj"
FAULTS: dict[str, tuple[str, Any, str]] = {
    "four times": ("layers.1.mlp.experts.3.down", lambda scale: scale * 4, "of the largest"),
    "a quarter": ("layers.2.linear_attn.out", lambda scale: scale / 4, "of the largest"),
    "none": (O_PROJ, lambda _: None, "no scale of its inputs"),
    "zero": (O_PROJ, lambda scale: scale * 0, "inputs is 0"),
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
    assert len(scales["model.layers.1.mlp.experts.down_proj.weight"]) == 5
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
    with pytest.raises(Exception, match="the scale of its inputs is 0"):
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


def test_the_command_measures_on_a_text(zoo: Zoo, tmp_path: Path) -> None:
    """A text of one's own, or the package's; the receipt says which, and what was found."""
    source = str(zoo("qwen3_5"))
    text = tmp_path / "mine.txt"
    text.write_text("Many words about many things. " * 200)
    words = ["nvfp4", source, "--scheme", "NVFP4", "--no-verify", "--feedback-tokens", "1024"]
    out = tmp_path / "out"
    run = CliRunner().invoke(cli, [*words, "--corpus", str(text), "-o", str(out)], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    (entry,) = read_receipt(out).receipt.artifacts
    assert entry.label == "W4A4_NVFP4"
    assert entry.options["scheme"] == "NVFP4"
    assert entry.options["input_scales"]["corpus"] == "mine.txt"
    assert entry.options["input_scales"]["tokens"] <= 1024
    assert entry.details["layout"] == "compressed-tensors"
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


def test_what_does_not_go_together_is_refused(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="NVFP4 is a scheme of compressed-tensors"):
        Nvfp4Options(layout="modelopt", scheme="NVFP4")
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
        assert traits_of(model.family, model.text).experts is mixture, name


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
    """It makes bfloat16 of them, which it then cannot multiply: a sound folder failed."""
    for name, half in (("llama", True), ("qwen3", False)):
        execute([plan(zoo(name), layout="compressed-tensors")], tmp_path / name)
        why = can_judge("transformers", open_artifact(tmp_path / name)) or ""
        assert ("float16" in why) is half, name
