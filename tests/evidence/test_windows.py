"""A text tokenized in windows has the ids that it has as a whole, and takes no memory by its length."""

import random

import pytest

from qexport.checkpoint.opening import open_checkpoint
from qexport.evidence import tokenizer as tokenizer_module
from qexport.evidence.tokenizer import model_tokenizer, tokens_of


def a_text(characters: int, seed: int = 1) -> str:
    luck = random.Random(seed)
    words = [
        "the",
        "Wasserrad",
        "  ",
        "\n\n",
        "1234567",
        "naïve",
        "é",
        "🦀🦀",
        "日本語の文",
        "don't",
        "   x",
        "<s>",
        "\t",
    ]
    parts = [luck.choice(words) + luck.choice(["", " ", ", ", "\n", ". "]) for _ in range(characters)]
    return "".join(parts)[:characters]


@pytest.mark.parametrize("name", ["qwen3", "llama3", "gemma3", "mistral", "llama", "smollm"])
def test_the_same_ids_as_from_the_whole(zoo, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    checkpoint = open_checkpoint(str(zoo(name)))
    files = {file: checkpoint.read_file(file) for file in checkpoint.files}
    tokenizer = model_tokenizer(files, name)
    text = a_text(60_000)
    whole = list(tokenizer.text(text))
    monkeypatch.setattr(tokenizer_module, "WINDOW", 3000)
    calls = []

    def small(text, encode, **_):
        def counted(part):
            calls.append(len(part))
            return encode(part)

        return tokens_of(text, counted, window=3000, overlap=1000)

    monkeypatch.setattr(tokenizer_module, "tokens_of", small)
    assert list(tokenizer.text(text)) == whole
    assert len(calls) > 10
    assert max(calls) < len(text) // 4


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_what_is_not_wanted_is_not_found_out(zoo, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    checkpoint = open_checkpoint(str(zoo(name)))
    files = {file: checkpoint.read_file(file) for file in checkpoint.files}
    tokenizer = model_tokenizer(files, name)
    text, at_most = a_text(300_000), 2_000
    monkeypatch.setattr(tokenizer_module, "WINDOW", 1 << 20)
    whole, seen = list(tokenizer.text(text)), []
    plain = type(tokenizer)._tokens
    monkeypatch.setattr(
        type(tokenizer), "_tokens", lambda self, part: (seen.append(len(part)), plain(self, part))[1]
    )
    some = list(tokenizer.text(text, at_most))
    assert at_most <= len(some) < len(whole)
    assert some[:at_most] == whole[:at_most]
    assert sum(seen) < len(text) // 2
    assert list(tokenizer.text(text, len(whole) + 1)) == whole


def pairs(text: str) -> list[tuple[int, int, int]]:
    """A tokenizer whose tokens go two and two from the beginning: no window ever agrees with another one by
    luck, unless it begins at an even place."""
    return [(hash(text[at : at + 2]) & 0xFFFF, at, min(at + 2, len(text))) for at in range(0, len(text), 2)]


@pytest.mark.parametrize("overlap", [256, 257])
def test_windows_that_never_agree_become_one(overlap: int) -> None:
    text = a_text(9001)
    ids = tokens_of(text, pairs, window=1000, overlap=overlap)
    assert list(ids) == [token[0] for token in pairs(text)]


def test_a_run_of_one_letter() -> None:
    def greedy(text: str) -> list[tuple[int, int, int]]:
        return [
            (8 if at + 8 <= len(text) else 1, at, min(at + 8, len(text))) for at in range(0, len(text), 8)
        ]

    text = "a" * 10_001
    assert list(tokens_of(text, greedy, window=1000, overlap=400)) == [token[0] for token in greedy(text)]


def test_no_more_than_a_window_at_a_time() -> None:
    most = 0

    def letters(text: str) -> list[tuple[int, int, int]]:
        nonlocal most
        most = max(most, len(text))
        return [(ord(letter), at, at + 1) for at, letter in enumerate(text)]

    text = a_text(60_000)
    assert list(tokens_of(text, letters, window=4096, overlap=1024)) == [ord(letter) for letter in text]
    assert most == 4096
