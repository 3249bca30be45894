"""No host paths in what is published."""

from __future__ import annotations

from pathlib import Path

import pytest

from qexport.children.failure import Failure, RuntimeFailure
from qexport.children.redact import redact

ASSERT = "/home/alice/llama.cpp/ggml/src/ggml.c:123: GGML_ASSERT"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (ASSERT, "ggml.c:123: GGML_ASSERT"),
        (f"failed: {ASSERT}(x) failed", "failed: ggml.c:123: GGML_ASSERT(x) failed"),
        ("open '/home/alice b/my models/x y.gguf' failed", "open 'x y.gguf' failed"),
        ("(/opt/a/b.c:1), path=/mnt/data/x.gguf.", "(b.c:1), path=x.gguf."),
        ("-I/home/alice/include", "-Iinclude"),
        ("file:///home/alice/m/x.gguf", "x.gguf"),
        ("in /home/alice: no such folder", "in ~: no such folder"),
        ("/Users/alice/", "~"),
        ("'/home/alice' is no file, nor is \"/home/alice/x.c\"", "'~' is no file, nor is \"x.c\""),
        (r"C:\Users\alice\llama.cpp\ggml.c:123: GGML_ASSERT", "ggml.c:123: GGML_ASSERT"),
        ("D:/a/llama.cpp/ggml.c(12)", "ggml.c(12)"),
        (r"'C:\\Program Files\\x\\y.dll'", "'y.dll'"),
        (r"E:\model.gguf", "model.gguf"),
        (r"\\server\share\alice\x.gguf", "x.gguf"),
    ],
)
def test_of_a_path_its_last_part_is_kept(said, kept):
    assert redact(said) == kept
    assert redact(kept) == kept


@pytest.mark.parametrize(
    "said",
    [
        "llama.cpp refused /apply-template: no (HTTP 400)",
        "http://127.0.0.1:8080/v1/models",
        "12.5 tok/s, 3/4 layers, and/or",
        "ggml/src/ggml.c:12, ../a/b.c, ./x/y",
        r"regex '\\p{L}+|\\s' <think></think>",
    ],
)
def test_what_is_no_host_path_stays(said):
    assert redact(said) == said


def test_folders_with_spaces_that_are_known(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/alice of wonder"))
    assert redact("bad /home/alice of wonder/src/x.c:1") == "bad x.c:1"


def test_a_failure_has_no_host_paths():
    failure = RuntimeFailure(Failure.REFUSED, f"refused: {ASSERT}", log=[ASSERT])
    assert str(failure) == "refused: ggml.c:123: GGML_ASSERT"
    assert failure.log == ("ggml.c:123: GGML_ASSERT",)
