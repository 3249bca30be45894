"""Links in a model's folder lead to a place inside it, or into the blobs of the Hub cache that it lies in."""

import os

import pytest
from checkpoint_folders import some_tensors, write_folder

from qexport.checkpoint.local import LocalCheckpoint
from qexport.checkpoint.opening import open_checkpoint
from qexport.checkpoint.paths import leads_out
from qexport.doctor.diagnose import diagnose
from qexport.errors import InputError

HASH = "0a" * 20


def linked(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def test_where_a_link_may_lead(tmp_path):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_text("a")
    (tmp_path / "secret").write_text("s")
    (tmp_path / "model-2").mkdir()
    (tmp_path / "model-2" / "a").write_text("a")
    assert not leads_out(folder, folder / "a")
    assert not leads_out(folder, linked(folder / "inside", "a"))
    assert not leads_out(folder, linked(folder / "sub" / "up", "../a"))
    assert not leads_out(folder, linked(folder / "absolute", folder / "a"))
    assert leads_out(folder, linked(folder / "out", "../secret"))
    assert leads_out(folder, linked(folder / "twice", "out"))
    assert leads_out(folder, linked(folder / "sibling", "../model-2/a"))
    linked(folder / "elsewhere", tmp_path)
    assert leads_out(folder, folder / "elsewhere" / "secret")
    assert not leads_out(linked(tmp_path / "name", "model"), tmp_path / "name" / "inside")


def test_a_snapshot_leads_into_its_own_blobs_alone(tmp_path):
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "abc"
    for blobs in (repository / "blobs", tmp_path / "models--org--other" / "blobs"):
        blobs.mkdir(parents=True)
        for name in (HASH, "secret"):
            (blobs / name).write_text("x")
    assert not leads_out(snapshot, linked(snapshot / "a", f"../../blobs/{HASH}"))
    assert not leads_out(snapshot, linked(snapshot / "sub" / "b", f"../../../blobs/{HASH}"))
    assert leads_out(snapshot, linked(snapshot / "c", "../../blobs/secret"))
    assert leads_out(snapshot, linked(snapshot / "d", f"../../../models--org--other/blobs/{HASH}"))
    plain = tmp_path / "plain" / "snapshots" / "abc"
    (tmp_path / "plain" / "blobs").mkdir(parents=True)
    (tmp_path / "plain" / "blobs" / HASH).write_text("x")
    assert leads_out(plain, linked(plain / "a", f"../../blobs/{HASH}"))


def test_what_leads_out_is_left_out_and_named(zoo, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("{{ secret }}")
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "rag.jinja").write_text("{{ secret }}")
    folder = tmp_path / "model"
    folder.mkdir()
    for path in zoo("qwen3").iterdir():
        (folder / path.name).hardlink_to(path)  # a hard link is the file itself
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    for name in ("NOTICE", "chat_template.jinja"):
        linked(folder / name, secret)
    linked(folder / "additional_chat_templates", tmp_path / "templates")
    checkpoint = open_checkpoint(str(folder))
    out = ("NOTICE", "additional_chat_templates/rag.jinja", "chat_template.jinja")
    assert checkpoint.led_out == out
    assert not set(out) & set(checkpoint.files)
    (finding,) = [f for f in diagnose(checkpoint).findings if f.id == "files.led_out"]
    assert all(name in finding.what for name in out)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_weights_and_config_from_elsewhere_are_refused(tmp_path, name):
    folder = write_folder(tmp_path / "model", [some_tensors()])
    (folder / "tokenizer.json").write_text("{}")
    (folder / name).rename(tmp_path / "real")
    linked(folder / name, "../real")
    with pytest.raises(InputError, match=f"^model: {name} is a link that leads out of the folder"):
        LocalCheckpoint(folder)


@pytest.mark.parametrize("name", ["extra.safetensors", "additional_chat_templates/rag.jinja"])
def test_names_that_no_receipt_can_hold(tmp_path, name):
    folder = write_folder(tmp_path / "model", [some_tensors()])
    stray = folder / os.fsdecode(b"holiday\xff.png")
    stray.write_text("x")
    checkpoint = LocalCheckpoint(folder)
    assert stray.name not in checkpoint.files
    assert not checkpoint.unused
    odd = folder / os.fsdecode(name.encode().replace(b".", b"\xff."))
    odd.parent.mkdir(exist_ok=True)
    odd.write_text("x")
    with pytest.raises(InputError, match=r"udcff.*name is not text in UTF-8") as caught:
        LocalCheckpoint(folder)
    assert caught.value.hint


def test_a_config_that_no_model_has(tmp_path):
    folder = write_folder(tmp_path / "model", [some_tensors()])
    with (folder / "config.json").open("a") as file:
        file.write(" " * (8 << 20))
    with pytest.raises(InputError, match=r"config\.json is larger than 8 MiB"):
        LocalCheckpoint(folder)
