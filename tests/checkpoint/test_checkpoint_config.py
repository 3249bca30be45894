"""JSON files of a checkpoint, and where the language model's settings are."""

import pytest
from checkpoint_folders import some_tensors, write_folder

from qexport.checkpoint.config import read_json, text_config
from qexport.checkpoint.local import LocalCheckpoint
from qexport.errors import InputError


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "m", [some_tensors()])


def test_an_object(folder):
    (folder / "x.json").write_text('{"a": [1, Infinity], "é": null}', encoding="utf-8")
    assert read_json(LocalCheckpoint(folder), "x.json") == {"a": [1, float("inf")], "é": None}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "m: x.json is not JSON: Expecting value (line 1, column 1)."),
        (b'{"a":\n 1,}', "m: x.json is not JSON: "),
        (b"[1]", "m: x.json holds a JSON list, not an object."),
        (b"3", "m: x.json holds a JSON int, not an object."),
        (b'{"a": "\xff"}', "m: x.json is not UTF-8 (byte 7)."),
        (b"\xef\xbb\xbf{}", "m: x.json starts with a byte order mark."),
        ("{}".encode("utf-16"), "m: x.json starts with a byte order mark."),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "m: x.json is a Git LFS pointer, not the file itself.",
        ),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "number too long"),
    ],
)
def test_what_is_refused(folder, data, message):
    (folder / "x.json").write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_json(LocalCheckpoint(folder), "x.json")
    assert message in caught.value.message


def test_a_file_that_is_not_there(folder):
    with pytest.raises(InputError, match=r"m has no file chat_template\.jinja") as caught:
        read_json(LocalCheckpoint(folder), "chat_template.jinja")
    assert "config.json, tokenizer.json" in caught.value.hint


def test_text_config():
    assert text_config({"a": 1}) == {"a": 1}
    assert text_config({"text_config": {"b": 2}}) == {"b": 2}
    assert text_config({"text_config": None, "llm_config": {"c": 3}}) == {"c": 3}
    with pytest.raises(InputError, match="text_config is not an object"):
        text_config({"text_config": [1]})
