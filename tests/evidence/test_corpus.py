"""Corpora in every form that is understood, and everything that is not one."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import gguf
import pytest

from qexport.errors import InputError
from qexport.evidence import corpus as corpus_module
from qexport.evidence import imatrix_file as imatrix_module
from qexport.evidence.corpus import Corpus, kept_apart, read_corpus
from qexport.evidence.kinds import kind_of
from qexport.evidence.records import Chat, Ids, Text


def saved(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def lines(path: Path, *rows: Any) -> Path:
    return saved(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def only(corpus: Corpus) -> Any:
    (record,) = corpus.records
    return record.content


TURNS = [{"role": "user", "content": "Wie geht's?"}, {"role": "assistant", "content": "Gut."}]


def test_plain_text_is_one_document(tmp_path: Path) -> None:
    data = "\ufeffeins\r\nzwei\u2028drei\n\n".encode()
    corpus = read_corpus(saved(tmp_path / "wiki.txt", data))
    assert only(corpus) == Text(
        "\ufeffeins\r\nzwei\u2028drei\n"
    )  # one line end less, as llama-imatrix reads it
    assert (corpus.kind, corpus.label) == ("text", "wiki.txt")
    assert corpus.sha256 == hashlib.sha256(data).hexdigest()
    assert str(tmp_path) not in repr(corpus)


def test_json_in_a_text_file_is_text(tmp_path: Path) -> None:
    assert only(read_corpus(lines(tmp_path / "a.txt", {"text": "x"}))) == Text('{"text": "x"}')


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "a\u2028b", "source": 3}, Text("a\u2028b")),
        ({"content": "c"}, Text("c")),
        ({"messages": TURNS}, Chat(tuple(TURNS))),
        (
            {
                "conversations": [
                    {"from": "system", "value": "Kurz."},
                    {"from": "human", "value": "?"},
                    {"from": "gpt", "value": "!"},
                ]
            },
            Chat(
                (
                    {"role": "system", "content": "Kurz."},
                    {"role": "user", "content": "?"},
                    {"role": "assistant", "content": "!"},
                )
            ),
        ),
        ({"prompt": "Wie geht's?", "completion": "Gut."}, Chat(tuple(TURNS))),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, Chat(tuple(TURNS))),
        ({"question": "Wie geht's?", "answer": "Gut."}, Chat(tuple(TURNS))),
        ({"instruction": "Wie geht's?", "input": "", "output": "Gut."}, Chat(tuple(TURNS))),
        (
            {"instruction": "Add.", "input": "1, 2", "output": "3", "text": "not this"},
            Chat(({"role": "user", "content": "Add.\n\n1, 2"}, {"role": "assistant", "content": "3"})),
        ),
        (
            {"system": "S", "messages": TURNS},
            Chat(({"role": "system", "content": "S"}, *TURNS)),
        ),
    ],
)
def test_columns(tmp_path: Path, row: dict[str, Any], expected: object) -> None:
    corpus = read_corpus(lines(tmp_path / "a.jsonl", row))
    assert only(corpus) == expected
    assert corpus.kind == "jsonl"


def test_ids(tmp_path: Path) -> None:
    corpus = read_corpus(
        lines(tmp_path / "a.jsonl", {"input_ids": [1, 2]}, {"input_ids": [[3]], "text": "x"})
    )
    assert [record.content.as_json() for record in corpus.records] == [
        {"input_ids": [1, 2]},
        {"input_ids": [3]},
    ]
    assert all(isinstance(record.content, Ids) for record in corpus.records)


def test_messages_in_their_variants(tmp_path: Path) -> None:
    schema = {"name": "add", "parameters": {"type": "object"}}
    call = {"id": "x1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    row = {
        "tools": json.dumps([schema]),
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "1"}, {"type": "text", "text": "+1"}]},
            {"role": "assistant", "content": None, "thinking": "easy", "tool_calls": [call], "weight": 0},
            {"role": "tool", "content": "2", "tool_call_id": "x1", "name": "add"},
        ],
    }
    chat = only(read_corpus(lines(tmp_path / "a.jsonl", row)))
    assert chat.tools == ({"type": "function", "function": schema},)
    assert list(chat.messages) == [
        {"role": "user", "content": "1+1"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "easy",
            "tool_calls": [
                {"id": "x1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
            ],
        },
        {"role": "tool", "content": "2", "tool_call_id": "x1", "name": "add"},
    ]


def test_sharegpt_calls(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "time?"},
        {"from": "function_call", "value": '{"name": "clock", "arguments": {}}'},
        {"from": "observation", "value": "12:00"},
        {"from": "gpt", "value": "Noon."},
    ]
    chat = only(read_corpus(lines(tmp_path / "a.jsonl", {"conversations": turns})))
    assert [turn["role"] for turn in chat.messages] == ["user", "assistant", "tool", "assistant"]
    assert chat.messages[1]["tool_calls"][0]["function"]["name"] == "clock"


def test_same_content_same_hash(tmp_path: Path) -> None:
    one = lines(tmp_path / "a.jsonl", {"messages": TURNS}, {"text": "x"})
    other = saved(
        tmp_path / "b.json",
        "\ufeff" + json.dumps([{"question": "Wie geht's?", "answer": "Gut."}, {"content": "x"}], indent=1),
    )
    swapped = lines(tmp_path / "c.jsonl", {"text": "x"}, {"messages": TURNS})
    assert read_corpus(one).sha256 == read_corpus(other).sha256 != read_corpus(swapped).sha256


@pytest.mark.parametrize(
    "text", ['{"text": "a"}', '{\n "text": "a"\n}', '[{"text": "a"}]', '\n\n{"text": "a"}\r\n']
)
def test_json_layouts(tmp_path: Path, text: str) -> None:
    assert only(read_corpus(saved(tmp_path / "a.json", text))) == Text("a")


BAD_LINES = {
    "not json": ("{'text': 1}", r"line 2 is not JSON .*column 2"),
    "cut": ('{"text": "a', r"line 2 is not JSON"),
    "list": ('["a"]', r"line 2 is a JSON list, not an object"),
    "number": ("7", r"line 2 is a JSON number"),
    "columns": ('{"chosen": "a", "id": 4}', r"line 2 has no column that can be used \(found: chosen, id\)"),
    "no columns": ("{}", r"found: none"),
    "empty text": ('{"text": ""}', r"line 2 has an empty text"),
    "text of the wrong kind": ('{"text": 5}', r"found: text"),
    "no turns": ('{"messages": []}', r"line 2 has messages that is not a list of messages, or an empty one"),
    "no role": ('{"messages": [{"content": "x"}]}', r"line 2 has messages of which no\. 1 has no role"),
    "no content": ('{"messages": [{"role": "user"}]}', r"no\. 1 has no content"),
    "image": (
        '{"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}',
        r"no\. 1 has content that is not text",
    ),
    "not a message": ('{"messages": ["hi"]}', r"no\. 1 is a JSON string, not a message"),
    "unknown speaker": ('{"conversations": [{"from": "cat", "value": "x"}]}', r"is from 'cat'"),
    "no value": ('{"conversations": [{"from": "human"}]}', r"no\. 1 has no value"),
    "call is no json": (
        '{"conversations": [{"from": "function_call", "value": "x"}]}',
        r"function_call that is not",
    ),
    "nameless call": (
        '{"messages": [{"role": "assistant", "tool_calls": [{"arguments": {}}]}]}',
        r"tool call without a name",
    ),
    "calls": (
        '{"messages": [{"role": "assistant", "content": "", "tool_calls": 3}]}',
        r"tool_calls that are not",
    ),
    "arguments": (
        '{"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]}',
        r"arguments are not JSON",
    ),
    "argument list": (
        '{"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}]}',
        r"arguments are not an object",
    ),
    "tools": ('{"text": "x", "tools": "{"}', r"line 2 has tools that are not JSON"),
    "tool list": ('{"text": "x", "tools": {"name": "f"}}', r"tools that are not a list"),
    "nameless tool": ('{"text": "x", "tools": [{"function": {}}]}', r"a tool without a name"),
    "pair": (
        '{"question": "x", "answer": 3}',
        r"question and answer of the wrong kind \(string and number\)",
    ),
    "negative id": ('{"input_ids": [1, -1]}', r"input_ids with '-1'"),
    "true id": ('{"input_ids": [true]}', r"input_ids with 'True'"),
    "huge id": ('{"input_ids": [2147483648]}', r"input_ids with '2147483648'"),
    "ids": ('{"input_ids": "1 2"}', r"input_ids that is not a list of ids"),
    "no ids": ('{"input_ids": []}', r"or an empty one"),
    "half a pair": ('{"text": "\\ud83d"}', r"line 2 holds half of a surrogate pair"),
    "deep": ('{"text": ' + "[" * 200_000, r"line 2"),
    "long number": ('{"input_ids": [' + "1" * 5000 + "]}", r"line 2"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_lines_are_named(tmp_path: Path, case: str) -> None:
    line, message = BAD_LINES[case]
    path = saved(tmp_path / "a.jsonl", '{"text": "fine"}\n' + line + "\n")
    with pytest.raises(InputError, match=rf"^a\.jsonl: .*{message}") as caught:
        read_corpus(path)
    assert str(tmp_path) not in str(caught.value)


def test_bad_record_of_a_document(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.json", json.dumps([{"text": "x"}, {"nothing": 1}], indent=2))
    with pytest.raises(InputError, match=r"a\.json: record 2 has no column"):
        read_corpus(path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
@pytest.mark.parametrize("data", [b"", b" \n\n", b"\n"])
def test_empty(tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(InputError, match="is empty"):
        read_corpus(saved(tmp_path / name, data))


def test_no_records(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no records"):
        read_corpus(saved(tmp_path / "a.json", "[]"))


def test_latin_1(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.txt", "erste\nzweite\nGröße".encode("latin-1"))
    with pytest.raises(
        InputError, match=r"a\.txt, line 3: not UTF-8 \(byte 15 of the file is 0xf6\)"
    ) as caught:
        read_corpus(path)
    assert "iconv" in str(caught.value)


def test_zero_bytes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.txt, line 2: a zero byte"):
        read_corpus(saved(tmp_path / "a.txt", b"abcdefgh\nab\0c"))


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot (read|be read).*No such file"):
        read_corpus(tmp_path / "a.txt")
    with pytest.raises(InputError, match="is a folder"):
        kind_of(tmp_path)


LEGACY = struct.pack("<ii", 1, 19) + b"blk.0.attn_q.weight" + struct.pack("<iif", 1, 1, 2.0)
OTHER_FILES = {
    "m.gguf": (b"GGUF" + bytes(60), "is a GGUF file or an importance matrix"),
    "imatrix.dat": (LEGACY, "is a GGUF file or an importance matrix"),
    "model.safetensors": (struct.pack("<Q", 40) + b'{"x": ' + b" " * 40, "safetensors weights"),
    "model.bin": (b"PK\x03\x04" + bytes(40), "zip archive"),
    "a.jsonl.gz": (b"\x1f\x8b\x08" + bytes(40), "compressed with gzip"),
    "a.jsonl.zst": (b"\x28\xb5\x2f\xfd" + bytes(40), "compressed with zstd"),
    "a.parquet": (b"PAR1" + bytes(40), "Parquet"),
    "a.arrow": (b"ARROW1" + bytes(40), "Arrow"),
    "ids.npy": (b"\x93NUMPY" + bytes(40), "NumPy"),
    "a.pdf": (b"%PDF-1.7\n", "PDF"),
    "a.txt": ("\ufeffabc".encode("utf-16-le"), "UTF-16"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_files_that_are_something_else(tmp_path: Path, name: str) -> None:
    data, message = OTHER_FILES[name]
    path = saved(tmp_path / name, data)
    with pytest.raises(InputError, match=message) as caught:
        read_corpus(path)
    assert caught.value.hint


def test_kind_by_content(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "named.txt", "")
    writer.add_type("imatrix")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert kind_of(tmp_path / "named.txt") == "imatrix"
    assert kind_of(saved(tmp_path / "named.jsonl", LEGACY)) == "imatrix"
    for data in (b"", b"x", b"GGU", b"plain text, quite long", b'{"text": "x"}', "数据".encode()):
        assert kind_of(saved(tmp_path / "imatrix.dat", data)) == "corpus"


def test_a_corpus_or_a_matrix_is_a_regular_file_of_bounded_size(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "a.txt").write_text("word " * 10)
    monkeypatch.setattr(corpus_module, "_MAX_BYTES", 49)
    monkeypatch.setattr(imatrix_module, "_MAX_BYTES", 49)
    for read in (read_corpus, imatrix_module.read_imatrix):
        with pytest.raises(InputError, match=r"pipe\.txt is not a regular file"):
            read(tmp_path / "pipe.txt")
        with pytest.raises(InputError, match=r"a\.txt is larger than 49 bytes"):
            read(tmp_path / "a.txt")


def test_a_tenth_is_kept_apart_and_neither_part_has_what_is_in_the_other(tmp_path: Path) -> None:
    rows = [{"text": f"record {number}"} for number in range(40)]
    corpus = read_corpus(lines(tmp_path / "a.jsonl", *rows))
    parts = kept_apart(corpus, seed=3)
    assert parts is not None
    rest, kept = parts
    assert len(kept.records) == 4
    assert {r.canonical() for r in rest.records} | {r.canonical() for r in kept.records} == {
        r.canonical() for r in corpus.records
    }
    assert len(rest.records) + len(kept.records) == 40
    assert [r.content for r in rest.records] == [
        r.content for r in corpus.records if r in rest.records
    ]  # in their order
    assert len({corpus.sha256, rest.sha256, kept.sha256}) == 3
    assert {rest.label, kept.label} == {"a.jsonl"}
    again, other = kept_apart(corpus, seed=3), kept_apart(corpus, seed=4)
    assert again is not None
    assert other is not None
    assert again[1].sha256 == kept.sha256 != other[1].sha256


def test_of_a_text_the_last_lines_are_kept_apart(tmp_path: Path) -> None:
    text = "\n".join(f"line {number:03}" for number in range(100))
    parts = kept_apart(read_corpus(saved(tmp_path / "a.txt", text)))
    assert parts is not None
    rest, kept = (only(part).text for part in parts)
    assert f"{rest}\n{kept}" == text
    assert kept.startswith("line 09")
    assert 0.08 < len(kept) / len(text) < 0.11


@pytest.mark.parametrize(
    ("name", "data"), [("a.txt", "one line"), ("b.jsonl", '{"text": "x"}\n' * 9), ("c.txt", "x" * 99 + "\n")]
)
def test_nothing_is_kept_apart_of_too_little(tmp_path: Path, name: str, data: str) -> None:
    assert kept_apart(read_corpus(saved(tmp_path / name, data))) is None
