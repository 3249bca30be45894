"""Folders: what is read is what the official library reads, and every refusal has its own sentence."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from checkpoint_folders import bits, fingerprint, some_tensors, two_shards, write_folder, write_index
from safetensors.torch import load_file, save_file

from qexport.checkpoint.local import LocalCheckpoint
from qexport.checkpoint.tensors import matrix_shape
from qexport.errors import EnvironmentProblem, InputError


def all_rows(checkpoint):
    found = {}
    for name, stored in checkpoint.tensors.items():
        rows = checkpoint.read_rows(name, 0, matrix_shape(stored.shape)[0])
        found[name] = bits(rows.reshape(stored.shape))
    return found


def official(folder):
    loaded = {}
    for path in folder.glob("*.safetensors"):
        loaded |= load_file(path)
    return {name: bits(tensor) for name, tensor in loaded.items()}


@pytest.mark.parametrize("shards", [[some_tensors()], two_shards()], ids=["single", "sharded"])
def test_values_are_the_official_librarys(tmp_path, shards):
    folder = write_folder(tmp_path / "model", shards)
    before = fingerprint(folder)
    checkpoint = LocalCheckpoint(folder)
    assert all_rows(checkpoint) == official(folder)
    assert checkpoint.label == "model"
    assert dict(checkpoint.files) == {
        "config.json": len(checkpoint.read_file("config.json")),
        "tokenizer.json": 2,
    }
    order = [(t.file, t.start) for t in checkpoint.tensors.values()]
    assert order == sorted(order)
    assert fingerprint(folder) == before


def test_rows_are_the_callers_to_change(tmp_path):
    folder = write_folder(tmp_path / "model", [some_tensors()])
    before = fingerprint(folder)
    checkpoint = LocalCheckpoint(folder)
    whole = checkpoint.read_rows("embed.weight", 0, 16)
    part = checkpoint.read_rows("embed.weight", 3, 5)
    assert part.shape == (2, 8)
    assert bits(part) == bits(whole[3:5])
    assert checkpoint.read_rows("layer.0.norm", 0, 1).shape == (1, 8)
    assert checkpoint.read_rows("layer.0.scale", 0, 1).shape == (1, 1)
    assert checkpoint.read_rows("layer.0.conv", 1, 4).shape == (3, 3)
    assert checkpoint.read_rows("layer.1.none", 0, 0).shape == (0, 8)
    whole.zero_()
    assert fingerprint(folder) == before


def test_rows_that_are_not_there(tmp_path):
    checkpoint = LocalCheckpoint(write_folder(tmp_path / "model", [some_tensors()]))
    with pytest.raises(InputError, match="model has no tensor 'absent'"):
        checkpoint.read_rows("absent", 0, 1)
    for start, stop in ((-1, 1), (0, 17), (2, 1)):
        with pytest.raises(ValueError, match=r"embed\.weight, which has 16"):
            checkpoint.read_rows("embed.weight", start, stop)


def test_every_read_is_seen(tmp_path):
    checkpoint = LocalCheckpoint(write_folder(tmp_path / "model", [some_tensors()]))
    seen = []
    checkpoint.on_read = lambda name, start, stop: seen.append((name, start, stop))
    checkpoint.read_rows("embed.weight", 0, 4)
    checkpoint.read_rows("embed.weight", 4, 16)
    assert seen == [("embed.weight", 0, 4), ("embed.weight", 4, 16)]


def test_many_threads(tmp_path):
    folder = write_folder(tmp_path / "model", two_shards())
    checkpoint = LocalCheckpoint(folder)
    expected = official(folder)
    barrier = threading.Barrier(8)

    def work(_):
        barrier.wait(10)
        for _ in range(20):
            assert all_rows(checkpoint) == expected

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_a_file_without_padding(tmp_path):
    """Old writers did not align the header: values then start at odd addresses."""
    folder = write_folder(tmp_path / "model", [some_tensors()])
    raw = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    text = raw[8 : 8 + length].rstrip(b" ")
    text += b" " * (1 - len(text) % 2)  # odd
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    checkpoint = LocalCheckpoint(folder)
    assert checkpoint.tensors["embed.weight"].start % 2 == 1
    assert all_rows(checkpoint) == official(folder)
    assert checkpoint.read_rows("embed.weight", 1, 2).data_ptr() % 2 == 0


def test_the_cache_of_the_hub_is_made_of_symlinks(tmp_path):
    folder = write_folder(tmp_path / "plain", two_shards())
    repository = tmp_path / "models--org--name"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / f"{number:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040x}")
    checkpoint = LocalCheckpoint(snapshot, label="org/name@abc")
    assert checkpoint.label == "org/name@abc"
    assert all_rows(checkpoint) == official(snapshot)


def test_a_symlink_keeps_its_own_name(tmp_path):
    write_folder(tmp_path / "real", [some_tensors()])
    (tmp_path / "nice-name").symlink_to("real")
    assert LocalCheckpoint(tmp_path / "nice-name").label == "nice-name"


def test_a_folder_named_by_a_dot(tmp_path, monkeypatch):
    monkeypatch.chdir(write_folder(tmp_path / "model", [some_tensors()]))
    assert LocalCheckpoint(".").label == "model"


def test_a_name_of_its_own(tmp_path):
    folder = write_folder(tmp_path / "model", [some_tensors()])
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert all_rows(LocalCheckpoint(folder)) == official(folder)


def test_shards_without_an_index(tmp_path):
    folder = write_folder(tmp_path / "model", two_shards(), index=False)
    assert all_rows(LocalCheckpoint(folder)) == official(folder)


def test_other_copies_are_unused(tmp_path):
    folder = write_folder(tmp_path / "model", [some_tensors()])
    for name in ("consolidated.safetensors", "adapter_model.safetensors"):
        save_file({"w": torch.ones(1)}, folder / name)
    checkpoint = LocalCheckpoint(folder)
    assert checkpoint.unused == ("adapter_model.safetensors", "consolidated.safetensors")
    assert "w" not in checkpoint.tensors


def test_small_files(tmp_path):
    folder = write_folder(tmp_path / "model", two_shards())
    for name in ("README.md", "merges.txt", "x.gguf", "training_args.bin", ".hidden", "optimizer.pt"):
        (folder / name).write_text("text")
    for name in ("additional_chat_templates/rag.jinja", "additional_chat_templates/.x", "onnx/config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("text")
    checkpoint = LocalCheckpoint(folder)
    expected = [
        "README.md",
        "additional_chat_templates/rag.jinja",
        "config.json",
        "merges.txt",
        "tokenizer.json",
    ]
    assert list(checkpoint.files) == expected
    assert checkpoint.read_file("additional_chat_templates/rag.jinja") == b"text"
    for name in ("model.safetensors.index.json", "../model/config.json", "onnx/config.json", ".hidden"):
        with pytest.raises(InputError, match="has no file"):
            checkpoint.read_file(name)


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


def mistrals_own(folder):
    only(folder, "consolidated.safetensors", "params.json", "tekken.json")
    (folder / "config.json").unlink(missing_ok=True)


def only(folder, *names):
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    for name in names:
        (folder / name).write_text("x")


def no_config(folder):
    (folder / "config.json").unlink()


def missing_shard(folder):
    (folder / "model-00002-of-00002.safetensors").unlink()


def missing_shard_without_index(folder):
    missing_shard(folder)
    (folder / "model.safetensors.index.json").unlink()


def truncated(folder):
    path = folder / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def index_to(file):
    def change(folder):
        weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        write_index(folder, {**weight_map, "embed.weight": file})

    return change


def index_lists(*names):
    def change(folder):
        weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        write_index(folder, {**weight_map, **dict.fromkeys(names, "model-00001-of-00002.safetensors")})

    return change


def index_forgets(folder):
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    del weight_map["layer.0.norm"]
    write_index(folder, weight_map)


def index_swaps(folder):
    index_to("model-00002-of-00002.safetensors")(folder)


def index_without_a_shard(folder):
    save_file({"w": torch.ones(1)}, folder / "model-00003-of-00002.safetensors")


def both_kinds(folder):
    save_file({"w": torch.ones(1)}, folder / "model.safetensors")


def twice(folder):
    save_file(some_tensors(), folder / "model-00002-of-00002.safetensors")


def several(folder):
    only(folder)
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"w": torch.ones(1)}, folder / name)


def no_tensors(folder):
    only(folder)
    save_file({}, folder / "model.safetensors")


def config(**extra):
    def change(folder):
        (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", **extra}))

    return change


def tensors(**named):
    def change(folder):
        only(folder)
        save_file(
            {name.replace("__", "."): tensor for name, tensor in named.items()}, folder / "model.safetensors"
        )

    return change


def with_file(name):
    return lambda folder: (folder / name).write_text("{}")


INT = torch.zeros(2, 2, dtype=torch.int32)
FP8 = torch.zeros(2, 2).to(torch.float8_e4m3fn)


def packed_and(change):
    """Packed weights, and a declaration of them."""

    def both(folder):
        tensors(a__qweight=INT)(folder)
        change(folder)

    return both


REFUSED = {
    "no files": (empty, "has no files in it", "config.json"),
    "no config": (no_config, "model has weights but no config.json", "base model"),
    "no weights": (only, "model has no weights", "*.safetensors"),
    "trainer's files": (
        lambda f: only(f, "optimizer.pt", "training_args.bin"),
        "has no weights",
        "*.safetensors",
    ),
    "pickles": (
        lambda f: only(f, "pytorch_model-00001-of-00002.bin"),
        "as pickles only",
        "convert with safetensors",
    ),
    "pickles of Meta": (
        lambda f: only(f, "consolidated.00.pth"),
        "(consolidated.00.pth)",
        "convert_llama_weights_to_hf.py",
    ),
    "Mistral's own": (
        mistrals_own,
        "(consolidated.safetensors)",
        "convert_mistral_weights_to_hf.py",
    ),
    "an adapter of mlx": (
        lambda f: only(f, "adapters.safetensors", "0000100_adapters.safetensors", "adapter_config.json"),
        "LoRA adapter",
        "mlx_lm.fuse",
    ),
    "parts of ZeRO": (
        lambda f: only(f, "zero_to_fp32.py", "latest"),
        "DeepSpeed's training",
        "zero_to_fp32.py",
    ),
    "ZeRO, gathered into a pickle": (
        lambda f: only(f, "zero_to_fp32.py", "pytorch_model.bin"),
        "pickles only (pytorch_model.bin)",
        "save_pretrained",
    ),
    "parts of FSDP": (lambda f: only(f, "__0_0.distcp", ".metadata"), "FSDP's training", "merge-weights"),
    "pickles in shards": (
        lambda f: only(f, "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"),
        "pickles only",
        "save_pretrained",
    ),
    "adapter": (
        lambda f: only(f, "adapter_config.json", "adapter_model.safetensors"),
        "LoRA adapter",
        "merge_and_unload",
    ),
    "gguf": (lambda f: only(f, "model-Q4_K_M.gguf"), "GGUF files only", "safetensors checkpoint"),
    "missing shard": (missing_shard, "1 of 2 shard is missing: model-00002-of-00002.safetensors", "Download"),
    "missing, no index": (
        missing_shard_without_index,
        "missing: model-00002-of-00002.safetensors",
        "Download",
    ),
    "truncated": (truncated, "model-00001-of-00002.safetensors is cut short", "Get the file again"),
    "index climbs": (
        index_to("../x.safetensors"),
        "'../x.safetensors', which is not the plain name",
        "save_pretrained",
    ),
    "index absolute": (
        index_to("/etc/x.safetensors"),
        "not the plain name of a safetensors file",
        "save_pretrained",
    ),
    "index of Windows": (index_to("..\\x.safetensors"), "not the plain name", "save_pretrained"),
    "index of a pickle": (index_to("pytorch_model.bin"), "not the plain name", "save_pretrained"),
    "index not text": (index_to(3), "puts tensor 'embed.weight' in 3", "save_pretrained"),
    "index empty": (lambda f: write_index(f, {}), "no weight_map with tensors", "save_pretrained"),
    "index a list": (lambda f: write_index(f, ["a"]), "no weight_map with tensors", "save_pretrained"),
    "index not JSON": (
        lambda f: (f / "model.safetensors.index.json").write_text("{"),
        "index.json is not JSON",
        "",
    ),
    "index lists more": (
        index_lists("x", "y"),
        "lists tensors that are in no file: x (model-00001",
        "save_pretrained",
    ),
    "index forgets": (
        index_forgets,
        "tensor 'layer.0.norm' is in model-00001-of-00002.safetensors, but",
        "save_pre",
    ),
    "index swaps": (index_swaps, "puts tensor 'embed.weight' in model-00002", "save_pretrained"),
    "index forgets a shard": (
        index_without_a_shard,
        "does not name model-00003-of-00002",
        "names every shard",
    ),
    "tensor twice": (twice, "is in two files", "save_pretrained"),
    "single and sharded": (both_kinds, "has both model.safetensors and an index", "Remove model.safetensors"),
    "several": (several, "several safetensors files and no", "Keep the files of one model"),
    "no tensors": (no_tensors, "hold no tensors", "merged model again"),
    "quantization_config": (
        packed_and(config(quantization_config={"quant_method": "gptq"})),
        "(quant_method: gptq)",
        "bf16 source",
    ),
    "mlx": (packed_and(config(quantization={"bits": 4})), "has quantization (bits: 4)", "bf16 source"),
    "nested": (
        packed_and(config(text_config={"quantization_config": {"quant_method": "fp8"}})),
        "quant_method: fp8",
        "bf16",
    ),
    "compression_config": (
        packed_and(config(compression_config={"format": "x"})),
        "has compression_config",
        "bf16 source",
    ),
    "modelopt": (
        packed_and(with_file("hf_quant_config.json")),
        "it has a hf_quant_config.json",
        "bf16 source",
    ),
    "autogptq": (
        packed_and(with_file("quantize_config.json")),
        "has a quantize_config.json",
        "bf16 source",
    ),
    "qweight": (tensors(a__qweight=INT), "already quantized: a.qweight is I32", "bf16 source"),
    "packed": (tensors(a__weight_packed=INT.to(torch.uint8)), "a.weight_packed is U8", "bf16 source"),
    "fp8": (tensors(a__weight=FP8), "already quantized: a.weight is F8_E4M3", "bf16 source"),
    "integers": (
        tensors(position_ids=INT.long(), a=torch.ones(1)),
        "not BF16, F16 or F32: position_ids (I64)",
        "bfloat16",
    ),
    "float64": (tensors(a__weight=torch.ones(1, dtype=torch.float64)), "F32: a.weight (F64)", "bfloat16"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case, tmp_path):
    change, message, hint = REFUSED[case]
    folder = write_folder(tmp_path / "model", two_shards())
    change(folder)
    before = fingerprint(folder)
    with pytest.raises(InputError) as caught:
        LocalCheckpoint(folder)
    text = caught.value.message.replace(str(folder), "")  # what the user typed may be repeated
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    assert caught.value.hint
    assert str(tmp_path) not in text + caught.value.hint
    assert fingerprint(folder) == before


@pytest.mark.parametrize("key", ["quantization_config", "quantization", "compression_config"])
@pytest.mark.parametrize("method", ["fp8", "mxfp4", "compressed-tensors", "bitsandbytes", "gptq", "awq"])
def test_a_declaration_alone_decides_nothing(key, method, tmp_path):
    declared = {key: {"quant_method": method}}
    for number, said in enumerate((declared, {"text_config": declared}, {"vision_config": declared})):
        folder = write_folder(tmp_path / str(number), [some_tensors()], config=said)
        (folder / "hf_quant_config.json").write_text("{}")
        assert LocalCheckpoint(folder).tensors


def test_scales_stored_as_floats_are_told(tmp_path):
    folder = write_folder(tmp_path / "m", [{"a.weight": torch.ones(2, 2), "a.weight_scale": torch.ones(2)}])
    config(quantization_config={"quant_method": "compressed-tensors"})(folder)
    with pytest.raises(InputError, match=r"compressed-tensors.*a\.weight_scale"):
        LocalCheckpoint(folder)


def test_null_quantization_is_none(tmp_path):
    folder = write_folder(
        tmp_path / "model", [some_tensors()], config={"quantization_config": None, "text_config": {}}
    )
    assert LocalCheckpoint(folder).tensors


def test_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^There is no folder models/x\."):
        LocalCheckpoint("models/x")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"^a\.gguf is a GGUF file"):
        LocalCheckpoint("a.gguf")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"^model\.safetensors is a file, not a folder"):
        LocalCheckpoint("model.safetensors")
    write_folder(tmp_path / "runs" / "checkpoint-500", [some_tensors()])
    with pytest.raises(InputError) as caught:
        LocalCheckpoint("runs")
    assert "Did you mean runs/checkpoint-500?" in caught.value.hint


def test_a_file_that_changes_underneath(tmp_path):
    folder = write_folder(tmp_path / "model", [some_tensors()])
    checkpoint = LocalCheckpoint(folder)
    with (folder / "model.safetensors").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(EnvironmentProblem, match="changed while it was in use"):
        checkpoint.read_rows("embed.weight", 0, 1)
    (folder / "model.safetensors").unlink()
    with pytest.raises(EnvironmentProblem, match=r"model\.safetensors is gone"):
        checkpoint.read_rows("embed.weight", 0, 1)
