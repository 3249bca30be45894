"""The commands as a user meets them: output, exit codes, nothing left behind."""

import json
import os
import subprocess
import sys

import gguf
import pytest
import torch
from in_process import apart, run
from quirks_planted import BAD, BASE, PLANTS
from safetensors.torch import load_file, save_file

from qexport.cli.main import COMMANDS


def contents(folder):
    return {p.relative_to(folder): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


def test_version_and_help():
    assert run("--version").stdout.startswith("qexport, version 0.")
    for name in COMMANDS:
        result = run(name, "--help")
        assert result.code == 0
        assert "Example" in result.stdout


def test_wrong_usage_is_2(tmp_path):
    assert run("gguf", tmp_path).code == 2
    assert run("nothing").code == 2


def test_a_model_that_is_not_there(tmp_path):
    result = run("inspect", tmp_path / "absent")
    assert result.code in (2, 3)
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("Error: ")


def test_inspect_json_is_one_document(zoo):
    result = run("inspect", zoo("qwen3_5_text"), "--json")
    assert result.code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["family"] == "qwen3_5"
    assert {"mtp.none"} <= {finding["id"] for finding in document["findings"]}
    formats = {entry["format"] for entry in document["formats"]}
    assert {"GGUF Q4_K_M", "MLX 6-bit", "FP8 block 128", "NVFP4 W4A16 (MLP)"} <= formats


def test_dry_run_states_exact_sizes_and_writes_nothing(zoo, tmp_path):
    words = ("gguf", zoo("qwen3_5"), "-q", "Q4_K_M", "-q", "BF16", "-o", tmp_path / "out")
    result = run(*words, "--dry-run", "--json")
    assert result.code == 0, result.stderr
    assert not (tmp_path / "out").exists()
    planned = {
        file["name"]: file["bytes"]
        for plan in json.loads(result.stdout)["artifacts"]
        for file in plan["files"]
    }
    result = run(*words, "--no-verify", "--json")
    assert result.code == 0, result.stderr
    written = {path.name: path.stat().st_size for path in (tmp_path / "out").glob("*.gguf")}
    assert written == planned
    assert set(written) == {"qwen3_5-Q4_K_M.gguf", "qwen3_5-BF16.gguf", "mmproj-BF16.gguf"}


def test_the_receipt_names_no_host_path_and_owns_up(zoo, tmp_path):
    out = tmp_path / "out"
    assert run("gguf", zoo("qwen3"), "-q", "Q8_0", "-o", out, "--no-verify").code == 0
    text = (out / "qexport.json").read_text()
    assert str(tmp_path) not in text
    receipt = json.loads(text)
    (artifact,) = receipt["artifacts"]
    assert artifact["state"] == "not run"
    assert artifact["files"][0]["bytes"] == (out / "qwen3-Q8_0.gguf").stat().st_size


def test_files_are_not_replaced_unasked(zoo, tmp_path):
    words = ("gguf", zoo("qwen3"), "-q", "Q8_0", "-o", tmp_path, "--no-verify")
    assert run(*words).code == 0
    before = contents(tmp_path)
    other = ("gguf", zoo("qwen3"), "-q", "Q8_0", "-o", tmp_path, "--no-verify", "--quantized-by", "me")
    result = run(*other)
    assert result.code == 2
    assert "--overwrite" in result.stderr
    assert contents(tmp_path) == before
    assert run(*other, "--overwrite").code == 0


def test_what_is_there_already_is_not_written_again(zoo_copy, tmp_path):
    source, out = zoo_copy("qwen3"), tmp_path / "out"
    words = ("gguf", source, "-q", "Q8_0", "-o", out, "--no-verify")
    assert run(*words).code == 0
    (path,) = out.glob("*.gguf")
    made = path.stat().st_mtime_ns
    again = run(*words, "--json")
    assert again.code == 0
    assert "is there, from the same source and options" in again.stderr
    assert json.loads(again.stdout)["artifacts"][0]["files"][0]["name"] == path.name
    assert path.stat().st_mtime_ns == made
    weights = next(source.glob("*.safetensors"))
    os.utime(weights, ns=(1, 1))  # other weights, for all we know
    assert run(*words).code == 2
    assert run(*words, "--overwrite").code == 0
    assert path.stat().st_mtime_ns != made


def test_fix_writes_a_checkpoint_that_needs_no_fixing(zoo_copy, tmp_path):
    source = zoo_copy("qwen3_5_text")
    before = contents(source)
    result = run("fix", source, "-o", tmp_path / "fixed", "--json")
    assert result.code == 0, result.stderr
    assert contents(source) == before
    again = json.loads(run("inspect", tmp_path / "fixed", "--json").stdout)
    assert [f for f in again["findings"] if f["severity"] != "note"] == []


def test_fix_again_makes_nothing_anew(zoo, tmp_path):
    words = ("fix", zoo("smollm"), "-o", tmp_path / "fixed")
    assert run(*words).code == 0
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "fixed").glob("*.safetensors")}
    again = run(*words)
    assert again.code == 0
    assert "fixed is there, from the same source and options" in again.stderr
    for name, stamp in stamps.items():
        assert (tmp_path / "fixed" / name).stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    "words",
    [
        ("fix",),
        ("gguf", "-q", "Q8_0", "--no-verify"),
        ("gguf", "-q", "Q4_K_M", "--no-verify", "--calib-tokens", 64, "--imatrix"),
        ("imatrix", "--calib-tokens", 64),
    ],
)
def test_a_damaged_receipt_is_set_aside_with_a_word(zoo, tmp_path, words):
    (tmp_path / "qexport.json").write_text('{"schema": 2, "artifacts": 5}')
    command, *more = words
    small = ("--calib-chunk", 32) if "--calib-tokens" in more else ()
    out = tmp_path / "m.gguf_file" if command == "imatrix" else tmp_path
    ran = run(command, zoo("smollm"), *small, "-o", out, *more)
    assert ran.code == 0, ran.stderr
    assert "qexport.json.set-aside" in ran.stderr
    assert json.loads((tmp_path / "qexport.json").read_text())["artifacts"]


def test_fix_does_not_write_into_its_source(zoo_copy):
    source = zoo_copy("qwen3")
    result = run("fix", source, "-o", source, "--overwrite")
    assert result.code == 2


@pytest.mark.parametrize("plant", sorted(BAD))
def test_bad_input_is_refused_and_leaves_nothing(zoo_copy, tmp_path, plant):
    source = zoo_copy(BASE[plant])
    PLANTS[plant](source)
    before = contents(source)
    out = tmp_path / "out"
    result = run("gguf", source, "-q", "Q8_0", "-o", out, "--no-verify")
    assert result.code == 3, (result.code, result.stderr)
    assert "Traceback" not in result.stderr
    assert contents(source) == before
    assert not out.exists() or list(out.iterdir()) == []


CARD = """---
license: apache-2.0
base_model: Qwen/Qwen3.5-9B
tags: [code]
language: [en]
---
# Mine
"""


def test_licence_and_lineage_of_the_model_card_are_in_the_file(zoo_copy, tmp_path):
    source = zoo_copy("qwen3_5")
    (source / "README.md").write_text(CARD)
    assert run("gguf", source, "-q", "Q8_0", "-o", tmp_path / "out", "--no-verify").code == 0
    projector, path = sorted((tmp_path / "out").glob("*.gguf"))
    fields = {name: field.contents() for name, field in gguf.GGUFReader(projector).fields.items()}
    assert (fields["general.type"], fields["general.license"]) == ("mmproj", "apache-2.0")
    fields = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
    assert fields["general.license"] == "apache-2.0"
    assert fields["general.base_model.0.repo_url"] == "https://huggingface.co/Qwen/Qwen3.5-9B"
    assert fields["general.tags"] == ["code"]
    assert fields["general.languages"] == ["en"]


def test_a_run_that_is_told_to_stop_goes_on_when_told_again(zoo, tmp_path):
    """Ctrl-C in the middle of the pass."""
    out = tmp_path / "out"
    code = (
        "import os, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background ignores it
        "from qexport.onepass.writer import FileWriter\n"
        "write = FileWriter._write\n"
        "def stop(self, offset, data):\n"
        "    write(self, offset, data)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "FileWriter._write = stop\n"
        "from qexport.cli.main import main\n"
        "main()\n"
    )
    words = ("gguf", str(zoo("qwen3")), "-q", "BF16", "-o", str(out), "--no-verify")
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert result.returncode == 130, result.stderr
    assert "Stopped" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(out.glob("*.gguf"))
    assert run(*words).code == 0
    assert sorted(path.name for path in out.iterdir()) == ["qexport.json", "qwen3-BF16.gguf"]


def test_wrong_usage_with_json_is_one_document_too(zoo):
    result = run("gguf", zoo("qwen3"), "--json")
    assert result.code == 2
    assert json.loads(result.stdout)["exit_code"] == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 2**31),
        ("max_position_embeddings", "many"),
        ("rms_norm_eps", 1e400),
        ("rope_parameters", [1]),
        ("head_dim", "64"),
        ("eos_token_id", {"a": 1}),
    ],
)
def test_absurd_values_in_config_are_refused_quickly(zoo_copy, tmp_path, key, value):
    source = zoo_copy("qwen3")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, key: value}))
    result = apart("gguf", source, "-q", "Q8_0", "-o", tmp_path / "out", "--no-verify")
    assert "Traceback" not in result.stderr
    assert result.returncode in (0, 3), result.stderr  # some readers can do without the key


def test_a_moe_with_dense_layers_is_not_written_as_gguf(zoo_copy, tmp_path):
    """llama.cpp has no tensors for them: nothing could load the file."""
    source = zoo_copy("qwen3_moe")
    tensors = {}
    for path in source.glob("*.safetensors"):
        tensors |= load_file(path)
    dense = {name: t for name, t in tensors.items() if not name.startswith("model.layers.1.mlp.")}
    hidden = tensors["model.norm.weight"].shape[0]
    for name, shape in (("gate", (512, hidden)), ("up", (512, hidden)), ("down", (hidden, 512))):
        dense[f"model.layers.1.mlp.{name}_proj.weight"] = torch.zeros(shape, dtype=torch.bfloat16)
    for path in source.glob("*.safetensors*"):
        path.unlink()
    save_file(dense, source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(
        json.dumps({**config, "mlp_only_layers": [1], "intermediate_size": 512})
    )
    result = run("gguf", source, "-q", "Q8_0", "-o", tmp_path / "out", "--no-verify")
    assert result.code == 3
    assert "layers without experts" in result.stderr
