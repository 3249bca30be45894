"""The verification of folders against runtimes that say what they are told to, and who may judge what."""

from __future__ import annotations

import json
import sys

import pytest
import quantized_folders
import zoo
from safetensors.torch import load_file, save_file
from verify_fakes import FakeReference, FakeRuntime, generation

from qexport.checkpoint.local import LocalCheckpoint
from qexport.children.failure import Failure, RuntimeFailure
from qexport.errors import EnvironmentProblem, InputError, UsageProblem
from qexport.families.roles import Block
from qexport.families.view import ModelView
from qexport.formats.opening import open_artifact
from qexport.formats.registry import tolerance
from qexport.receipt.verification import Check, Status, Verdict
from qexport.verification import memory
from qexport.verification import run as run_module
from qexport.verification.choose import can_judge, choose_runtime
from qexport.verification.folder_runtimes import FolderRuntime
from qexport.verification.options import VerifyOptions
from qexport.verification.run import verify

SIZES = {"head_dim": 128, "linear_dim": 128, "hidden": 128, "intermediate": 128, "layers": 4, "heads": 2}
SIZES |= {"kv_heads": 1, "key_heads": 1, "value_heads": 2, "vision": False, "shards": 1}


def answers():
    return [generation(range(24)), generation(range(30, 54)), generation(tok_s=50.0)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    out = tmp_path_factory.mktemp("folders")
    for name in ("qwen3_5", "qwen3_5_moe"):
        zoo.build(name, out / name, **SIZES)
        for kind in quantized_folders.KINDS:
            quantized_folders.quantize(out / name, out / f"{name}-{kind}", kind)
    zoo.build("llama", out / "llama")
    return out


def view(**fields) -> ModelView:
    given = {"family": "llama", "label": "tiny", "config": {}, "text": {}, "tensors": (), "layers": 2}
    return ModelView(**{**given, "mtp_layers": 0, **fields})


def test_everything_checked_and_passed(folders):
    runtime = FakeRuntime(answers(), facts={"strict": True})
    report = verify(folders / "llama", view=None, runtime=runtime, reference=FakeReference())
    assert report.verdict == "passed, without tokens, ends, template_kept"
    assert (report.engine.name, report.file_type) == ("fake", "F16")
    assert report.bits_per_weight == 16.0
    assert Check.USED in report.verified
    assert Check.TEMPLATE in report.verified
    json.dumps(report.to_json(), allow_nan=False)


def test_a_folder_that_no_runtime_ran_is_never_verified(folders):
    report = verify(folders / "qwen3_5-modelopt-nvfp4", view=None, options=VerifyOptions(twin=False))
    assert report.verdict == "not run"
    assert not report.passed
    assert report.engine.name == "none"
    assert "--runtime vllm --runtime-python PATH" in report.finding(Check.LOADS).summary
    assert Check.LOADS in report.unverified


def test_a_runtime_that_is_not_installed_is_skipped_unless_it_was_named(folders, monkeypatch):
    problem = EnvironmentProblem("mlx-lm cannot be imported", hint="pip install it")
    monkeypatch.setattr(run_module, "choose_runtime", lambda *_: FakeRuntime(refuse=problem))
    report = verify(folders / "llama", view=None)
    assert report.verdict == "not run"
    assert "pip install it" in report.finding(Check.LOADS).summary
    with pytest.raises(EnvironmentProblem):
        verify(folders / "llama", view=None, options=VerifyOptions(runtime="mlx-lm"))


def test_a_machine_that_lacks_kernels_verifies_nothing_and_accuses_nobody(folders):
    lacking = RuntimeFailure(Failure.LACKING, "no FP4 here")
    report = verify(folders / "llama", view=None, runtime=FakeRuntime(refuse=lacking))
    assert report.verdict == "not run"
    assert report.finding(Check.LOADS).status is Status.SKIPPED


def test_a_machine_too_small_for_a_folder_tries_nothing_and_accuses_nobody(folders, monkeypatch):
    """The system would kill the child, which looks like a folder that brings its runtime down."""
    started = []
    monkeypatch.setattr(FolderRuntime, "open", lambda *_: started.append(1) or pytest.fail("it was started"))
    monkeypatch.setattr(memory, "_for_children", lambda: 100_000)
    path = folders / "qwen3_5-fp8"
    for options in (VerifyOptions(), VerifyOptions(runtime="transformers")):
        report = verify(path, view=None, options=options)
        assert report.verdict == "not run"
        assert not report.failures
        found = report.finding(Check.LOADS)
        assert found.status is Status.SKIPPED
        assert "GB are free; prove it on a larger machine with `qexport verify qwen3_5-fp8`" in found.summary
        assert "--runtime vllm" in found.summary
        assert found.data["available"] == 100_000
        weights = found.data["needed"] - memory._CHILD_BYTES
        # What is stored, and the trunk in bf16 beside it.
        assert weights == stored_bytes(path) + 2 * trunk_parameters(path)
    assert started == []


def stored_bytes(path) -> int:
    tensors = LocalCheckpoint(path, quantized=True).tensors.values()
    return sum(tensor.stop - tensor.start for tensor in tensors)


def trunk_parameters(path) -> int:
    return sum(t.data.numel for t in open_artifact(path).view() if t.block is not Block.MTP)


def test_what_each_runtime_needs(folders):
    def shortage(name, runtime, available=0):
        artifact, stored = open_artifact(folders / name), LocalCheckpoint(folders / name, quantized=True)
        return memory.shortage(runtime, artifact, stored, available=available)

    # What vLLM and SGLang need is theirs to say.
    assert shortage("qwen3_5-fp8", "vllm") is shortage("qwen3_5-fp8", "sglang") is None
    assert (
        shortage("qwen3_5-ct-nvfp4", "transformers").needed < shortage("qwen3_5-fp8", "transformers").needed
    )
    size = stored_bytes(folders / "llama")
    assert shortage("llama", "transformers").needed == size + memory._CHILD_BYTES
    # All of it is 16 bits, which the child widens to 32 where it runs on a CPU.
    widened = size * (1 if sys.platform == "darwin" else 2)
    short = shortage("llama", "mlx-lm")
    assert short.needed == widened + memory._CHILD_BYTES
    assert "vllm" not in str(short)
    assert shortage("llama", "mlx-lm", short.needed) is None


def test_the_stored_form_comes_first_and_counts(folders, tmp_path):
    for file in (folders / "qwen3_5").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["mtp_num_hidden_layers"] = 0
    (tmp_path / "config.json").write_text(json.dumps(config))
    runtime = FakeRuntime(answers())
    report = verify(tmp_path, view=None, runtime=runtime, options=VerifyOptions(mtp=False))
    assert len(runtime.opened) == 1
    assert report.verdict == "failed: mtp_declared"


def test_a_runtime_without_mtp_is_not_asked_for_it(folders):
    runtime = FakeRuntime(answers(), drafts=False, name="transformers")
    report = verify(folders / "qwen3_5", view=None, runtime=runtime)
    assert len(runtime.opened) == 1
    assert report.finding(Check.MTP_LOADS).summary == "transformers has no MTP"


def test_a_head_that_loads_and_cannot_draft_is_said(folders):
    runtime = FakeRuntime(answers(), facts={"no_drafts": "no Triton"})
    report = verify(folders / "qwen3_5", view=None, runtime=runtime)
    assert [settings.draft_max for settings in runtime.opened] == [0, 3]
    assert report.finding(Check.MTP_LOADS).status is Status.PASS
    assert report.finding(Check.MTP_TEXT) == Verdict(Check.MTP_TEXT, Status.SKIPPED, "no Triton")
    assert report.drafts is None


def test_a_lost_head_is_said(folders):
    report = verify(
        folders / "llama",
        view=view(mtp_layers=1),
        options=VerifyOptions(reference=False),
        runtime=FakeRuntime(answers()),
    )
    assert report.finding(Check.MTP_LOADS).summary == "the source has an MTP head, the folder has none"


def test_a_folder_that_cannot_be_read(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    report = verify(tmp_path, view=None, runtime=FakeRuntime(answers()))
    assert report.verdict == "failed: file"
    with pytest.raises(InputError, match="no such file or folder"):
        verify(tmp_path / "none", view=None)


TYPES = {
    "fp8": "FP8_BLOCK",
    "ct-fp8": "FP8_BLOCK",
    "ct-nvfp4": "NVFP4A16",
    "modelopt-nvfp4": "W4A16_NVFP4",
}
JUDGES = {
    "qwen3_5-fp8": "transformers",
    "qwen3_5-ct-fp8": "transformers",
    "qwen3_5-ct-nvfp4": "transformers",
    "qwen3_5_moe-fp8": "transformers",
}


@pytest.mark.parametrize("kind", quantized_folders.KINDS)
@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_who_judges_what(folders, name, kind):
    artifact = open_artifact(folders / f"{name}-{kind}")
    assert artifact.layout.stored_type(artifact) == TYPES[kind]
    assert tolerance(TYPES[kind]).agreement < tolerance("BF16").agreement
    chosen = choose_runtime(artifact, VerifyOptions())
    expected = JUDGES.get(f"{name}-{kind}")
    assert (chosen if isinstance(chosen, str) else chosen.name) == (expected or chosen)
    assert isinstance(chosen, str) == (expected is None)
    assert can_judge("vllm", artifact) is None
    assert "does not read" in str(can_judge("mlx-lm", artifact))
    if expected is None:
        with pytest.raises(UsageProblem, match="cannot be verified by transformers"):
            choose_runtime(artifact, VerifyOptions(runtime="transformers"))


def test_odd_sizes_are_not_left_to_transformers(folders, tmp_path):
    artifact = open_artifact(folders / "qwen3_5-fp8")
    assert can_judge("transformers", artifact) is None
    tensors = load_file(folders / "qwen3_5-fp8" / "model.safetensors")
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name][:96].clone()
    for file in (folders / "qwen3_5-fp8").glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(tensors, tmp_path / "model.safetensors")
    assert "layers.0.mlp.up_proj" in str(can_judge("transformers", open_artifact(tmp_path)))


def test_a_python_that_is_named_has_vllm_for_all_but_mlx(folders, tmp_path):
    options = VerifyOptions(runtime_python=tmp_path / "python")
    assert choose_runtime(open_artifact(folders / "qwen3_5-fp8"), options).name == "vllm"
