"""What is a name and what is a path."""

from __future__ import annotations

import pytest

from qexport.formats.gguf.host_paths import holds_host_path, is_local


@pytest.mark.parametrize(
    "name",
    [
        "./out",
        "../x",
        "/x",
        "~/m",
        "outputs/merged",
        "a/b/c",
        "C:\\models\\x",
        "me/checkpoint-500",
        "checkpoint-12",
    ],
)
def test_paths(name: str) -> None:
    assert is_local(name)


@pytest.mark.parametrize("name", ["Qwen/Qwen3.5-9B", "gpt2", "meta-llama/Llama-3.2-1B", "tiiuae/falcon-7b"])
def test_names(name: str) -> None:
    assert not is_local(name)


def test_in_text() -> None:
    assert not is_local("https://huggingface.co/Qwen/Qwen3.5-9B/blob/main/LICENSE")
    for text in ("see /home/me", "base:/mnt/x", "file:///x", "from ./run3", "D:/models"):
        assert holds_host_path(text)
    for text in ("and/or", "https://a.org/home/x", "w/ care", "v1.0/2.0", "en: good. /think"):
        assert not holds_host_path(text)
