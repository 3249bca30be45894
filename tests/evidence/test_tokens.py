"""Chunks: what is cut where, in which order, with which bos token; the same every time."""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import zoo_tokenizers
from tokenizers import Tokenizer

from qexport.errors import EnvironmentProblem, InputError, UsageProblem
from qexport.evidence.corpus import BUILTIN_CATEGORIES, Corpus, builtin_corpus, read_corpus
from qexport.evidence.records import Chat, Ids, Record, Text
from qexport.evidence.tokenizer import model_tokenizer
from qexport.evidence.tokens import BUILTIN_TOKENS, Chunks, tokenize

PINNED = [1, 47, 32, 35, 16, 24, 20, 38]
Files = Mapping[str, bytes]
BOS = {
    "qwen35": None,
    "qwen2": None,
    "llama3": "<|begin_of_text|>",
    "smollm": None,
    "llama2": "<s>",
    "gemma": "<bos>",
    "glm": None,
}


@pytest.fixture(scope="module")
def files_of(tmp_path_factory: pytest.TempPathFactory):
    made: dict[str, dict[str, bytes]] = {}

    def get(kind: str) -> dict[str, bytes]:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            zoo_tokenizers.write(kind, folder)
            made[kind] = {file.name: file.read_bytes() for file in folder.iterdir()}
        return dict(made[kind])

    return get


def text_corpus(path: Path, text: str) -> Corpus:
    path.write_bytes(text.encode())
    return read_corpus(path)


def jsonl(path: Path, *rows: object) -> Corpus:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_corpus(path)


def edited(files: Files, name: str, **changes: object) -> dict[str, bytes]:
    document = json.loads(files[name]) | changes
    return {**files, name: json.dumps(document).encode()}


@pytest.mark.parametrize("kind", zoo_tokenizers.KINDS)
def test_plain_text_is_tokenized_whole_and_cut(tmp_path: Path, files_of, kind: str) -> None:
    files = files_of(kind)
    chunks = tokenize(text_corpus(tmp_path / "mill.txt", zoo_tokenizers.TEXT), files, chunk=50)
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    whole = tokenizer.encode(zoo_tokenizers.TEXT[:-1]).ids
    expected = np.array(whole[: len(whole) // 50 * 50]).reshape(-1, 50)
    if BOS[kind] is not None:
        expected[:, 0] = tokenizer.token_to_id(BOS[kind])
    assert chunks.ids.tolist() == expected.tolist()
    assert chunks.ids.dtype == np.int32
    assert chunks.available == len(whole)
    assert chunks.bos == (None if BOS[kind] is None else tokenizer.token_to_id(BOS[kind]))
    assert (chunks.seed, chunks.tokens, chunks.size, chunks.chats) == (None, expected.size, 50, {})


def test_limit_takes_the_first_whole_chunks(tmp_path: Path, files_of) -> None:
    corpus = text_corpus(tmp_path / "mill.txt", zoo_tokenizers.TEXT)
    everything = tokenize(corpus, files_of("qwen2"), chunk=64)
    some = tokenize(corpus, files_of("qwen2"), chunk=64, tokens=200)
    assert some.ids.tolist() == everything.ids[:3].tolist()
    assert len(everything.ids) > 3


@pytest.mark.parametrize("kind", ["qwen35", "llama3", "gemma", "llama2"])
def test_special_tokens_are_text_in_text_and_tokens_in_chats(tmp_path: Path, files_of, kind: str) -> None:
    files = files_of(kind)
    word = {"qwen35": "<|im_start|>", "llama3": "<|eot_id|>", "gemma": "<start_of_turn>", "llama2": "</s>"}[
        kind
    ]
    special = Tokenizer.from_str(files["tokenizer.json"].decode()).token_to_id(word)
    text = tokenize(text_corpus(tmp_path / "a.txt", f"a {word}b" * 9), files, chunk=8)
    assert special not in text.ids
    turns = [{"role": "user", "content": "the mill"}, {"role": "assistant", "content": "the wheel"}]
    chat = tokenize(jsonl(tmp_path / "a.jsonl", *[{"messages": turns}] * 9), files, chunk=8)
    assert special in chat.ids
    assert chat.chats == {"template": 9, "simplified": 0, "plain": 0}
    assert chat.fallback_reason == ""


def test_without_a_template_conversations_are_plain_text(tmp_path: Path, files_of) -> None:
    files = {name: data for name, data in files_of("qwen2").items() if name == "tokenizer.json"}
    turns = [{"role": "user", "content": "<|im_start|>"}, {"role": "assistant", "content": "the wheel"}]
    chunks = tokenize(jsonl(tmp_path / "a.jsonl", {"messages": turns}), files, chunk=4)
    assert chunks.chats == {"template": 0, "simplified": 0, "plain": 1}
    assert chunks.fallback_reason == "the model has no chat template"
    assert Tokenizer.from_str(files["tokenizer.json"].decode()).token_to_id("<|im_start|>") not in chunks.ids


def test_records_of_text_begin_with_bos(tmp_path: Path, files_of) -> None:
    files = files_of("llama3")
    chunks = tokenize(jsonl(tmp_path / "a.jsonl", *[{"text": "abc"}] * 40), files, chunk=10)
    bos = chunks.bos
    whole = Tokenizer.from_str(files["tokenizer.json"].decode()).encode("abc").ids * 40
    expected = np.array(whole[: len(whole) // 10 * 10]).reshape(-1, 10)
    expected[:, 0] = bos
    assert chunks.ids.tolist() == expected.tolist()


def test_ids_are_used_as_they_are(tmp_path: Path, files_of) -> None:
    rows = [{"input_ids": [n] * 4} for n in range(6)]
    chunks = tokenize(jsonl(tmp_path / "a.jsonl", *rows), files_of("llama3"), chunk=4)
    assert sorted(chunks.ids.tolist()) == [[n] * 4 for n in range(6)]
    assert chunks.bos is None
    assert tokenize(jsonl(tmp_path / "a.jsonl", *rows), {}, chunk=4).ids.tolist() == chunks.ids.tolist()


def test_seed_orders_records_and_nothing_else(tmp_path: Path, files_of) -> None:
    corpus = jsonl(tmp_path / "a.jsonl", *[{"input_ids": [n, n]} for n in range(50)])
    one, again, other = (tokenize(corpus, {}, chunk=2, seed=seed) for seed in (1, 1, 2))
    assert one.ids.tolist() == again.ids.tolist() != other.ids.tolist()
    assert one.sha256 == again.sha256 != other.sha256
    assert np.unique(one.ids).tolist() == np.unique(other.ids).tolist() == list(range(50))
    # Pinned: the order must not change with Python or NumPy.
    assert one.ids[:8, 0].tolist() == PINNED


def test_built_in_categories_take_turns(files_of) -> None:
    corpus, files = builtin_corpus(), files_of("qwen35")
    chunks = tokenize(corpus, files, tokens=48_000, chunk=512)
    assert chunks.ids.shape == (93, 512)
    assert set(chunks.categories) == set(BUILTIN_CATEGORIES)
    assert sum(chunks.categories.values()) == chunks.available
    everything = tokenize(corpus, files, tokens=10**9).categories
    # Taking turns leaves them no further apart than one record; in this vocabulary a token is a byte or more.
    longest = max(len(record.canonical()) for record in corpus.records)
    assert spread(everything) > longest > spread(chunks.categories)


def spread(shares: Mapping[str, int]) -> int:
    return max(shares.values()) - min(shares.values())


def test_built_in_default_is_bounded(files_of) -> None:
    corpus = builtin_corpus()
    many = Corpus(corpus.records * 4, corpus.label, corpus.sha256, "built-in")
    assert tokenize(many, files_of("qwen2")).tokens == BUILTIN_TOKENS


def test_categories_by_turns_until_they_end() -> None:
    records = tuple(
        Record(content, category)
        for category, count in (("a", 2), ("b", 6))
        for content in [Ids(array("i", [ord(category)] * 2))] * count
    )
    chunks = tokenize(Corpus(records, "x", "0" * 64, "built-in"), {}, chunk=2)
    assert "".join(map(chr, chunks.ids[:, 0])) == "ababbbbb"


def test_name_of_the_data(files_of) -> None:
    chunks = tokenize(builtin_corpus(), files_of("qwen2"), tokens=65536)
    digest = builtin_corpus().sha256[:16]
    assert chunks.dataset == f"qexport-calib-1 sha256:{digest} 65536 tokens"
    for label in ("x" * 300, "文" * 100, "a\nb " * 50):
        long = Chunks(chunks.ids, label, "f" * 64, 0, 0, None, {}, {})
        assert len(long.dataset.encode()) <= 127
        assert long.dataset.endswith(" sha256:ffffffffffffffff 65536 tokens")
        assert "\n" not in long.dataset


def test_limits_left_in_the_tokenizer_are_ignored(tmp_path: Path, files_of) -> None:
    files = files_of("qwen2")
    limited = edited(
        files,
        "tokenizer.json",
        truncation={"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 4096},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "!",
        },
    )
    corpus = text_corpus(tmp_path / "mill.txt", zoo_tokenizers.TEXT)
    assert tokenize(corpus, limited, chunk=64).sha256 == tokenize(corpus, files, chunk=64).sha256


def test_bos_that_only_the_config_asks_for(tmp_path: Path, files_of) -> None:
    files = edited(files_of("smollm"), "tokenizer_config.json", add_bos_token=True)
    chunks = tokenize(text_corpus(tmp_path / "a.txt", "the river" * 30), files, chunk=8)
    assert set(chunks.ids[:, 0].tolist()) == {zoo_tokenizers.SMOLLM_SPECIALS.index("<|im_start|>")}
    without = tokenize(text_corpus(tmp_path / "a.txt", "the river" * 30), files_of("smollm"), chunk=8)
    assert without.bos is None
    assert chunks.available == without.available + 1


@pytest.mark.parametrize("kind", ["llama2", "gemma"])
def test_sentencepiece_alone(tmp_path: Path, files_of, kind: str) -> None:
    """tokenizer.model gives what tokenizer.json gives, where that is all there is."""
    files = files_of(kind)
    alone = {name: data for name, data in files.items() if name != "tokenizer.json"}
    text = "the river runs past the mill <s> <eos>"
    ours, truth = model_tokenizer(alone, kind), model_tokenizer(files, kind)
    assert ours.text(text) == truth.text(text)
    assert ours.bos == truth.bos
    turn = "<s>" if kind == "llama2" else "<start_of_turn>"
    assert ours.chat(f"{turn}the mill")[0] == truth.chat(f"{turn}the mill")[0] == truth.id_of(turn)
    assert ours.id_of(turn) == truth.id_of(turn)
    assert ours.id_of("no such token") is None


def test_too_short(tmp_path: Path, files_of) -> None:
    corpus = text_corpus(tmp_path / "a.txt", "the river")
    with pytest.raises(InputError, match=r"^a\.txt has \d tokens, less than one chunk of 512") as caught:
        tokenize(corpus, files_of("qwen2"))
    assert "longer text" in str(caught.value.hint)


def test_exactly_one_chunk(tmp_path: Path) -> None:
    corpus = jsonl(tmp_path / "a.jsonl", {"input_ids": [1, 2, 3, 4]})
    assert tokenize(corpus, {}, chunk=4).ids.tolist() == [[1, 2, 3, 4]]
    with pytest.raises(InputError, match="has 4 tokens"):
        tokenize(corpus, {}, chunk=5)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"tokens": 100}, "less than one chunk"), ({"chunk": 1}, "too short")]
)
def test_amounts_that_make_no_sense(files_of, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(UsageProblem, match=message):
        tokenize(builtin_corpus(), files_of("qwen2"), **arguments)


def test_ids_beyond_the_vocabulary(tmp_path: Path, files_of) -> None:
    corpus = jsonl(tmp_path / "a.jsonl", {"input_ids": [1, 2, 3, 90_000]})
    with pytest.raises(InputError, match=r"a\.jsonl has the token id 90000; the vocabulary of mill has \d+"):
        tokenize(corpus, files_of("qwen2"), chunk=4, model="mill")
    with pytest.raises(InputError, match="the vocabulary of mill has 90000"):
        tokenize(corpus, {}, chunk=4, vocab_size=90_000, model="mill")
    assert tokenize(corpus, {}, chunk=4, vocab_size=90_001).tokens == 4


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^mill has no tokenizer"):
        tokenize(text_corpus(tmp_path / "a.txt", "text"), {}, model="mill")


@pytest.mark.parametrize(
    ("name", "data"), [("tokenizer.json", b"{}"), ("tokenizer.json", b"\xff"), ("tokenizer.model", b"junk")]
)
def test_damaged_tokenizers(tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(InputError, match=rf"mill: {name} cannot be read"):
        tokenize(text_corpus(tmp_path / "a.txt", "text"), {name: data}, model="mill")


def test_missing_packages(tmp_path: Path, files_of, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    files = files_of("llama2")
    del files["tokenizer.json"]
    with pytest.raises(EnvironmentProblem, match="needs sentencepiece"):
        tokenize(text_corpus(tmp_path / "a.txt", "text"), files)


def test_chat_is_what_the_corpus_has() -> None:
    """The shares that the other tests lean on."""
    kinds = [type(record.content) for record in builtin_corpus().records]
    assert kinds.count(Chat) > 60
    assert kinds.count(Text) > 40
