"""The corpus that is shipped: valid, varied, nothing twice, nothing that does not belong there."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import pytest

import qexport.evidence.corpus as corpus_module
from qexport.evidence.corpus import (
    BUILTIN_CATEGORIES,
    BUILTIN_LABEL,
    Corpus,
    builtin_corpus,
    heldout_corpus,
)
from qexport.evidence.records import Chat, Record, Text

FOLDER = Path(__file__).parents[2] / "calib"
NAMES = (*BUILTIN_CATEGORIES, "heldout")
LANGUAGES = {"en", "zh", "de", "fr", "es", "ja", "ru", "ar", "hi", "ko", "pt", "it"}
SHINGLE = 60
SECRETS = re.compile(
    r"(?i:api[_-]?key|secret|password)\s*[=:]\s*[\"'][^\"']{8,}|hf_\w{20}|sk-\w{20}|BEGIN [A-Z ]*KEY"
)


def rows(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def strings(value: object) -> list[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


def words(record: Record) -> str:
    if isinstance(record.content, Text):
        return record.content.text
    assert isinstance(record.content, Chat)
    parts = [
        part for turn in record.content.messages for part in (turn.get("reasoning_content"), turn["content"])
    ]
    return "\n".join(part for part in parts if part)


def shingles(corpus: Corpus) -> Counter[str]:
    """Every stretch of letters of a certain length, beginning at each word; once per record."""
    found: Counter[str] = Counter()
    for record in corpus.records:
        text = re.sub(r"\s+", " ", words(record))
        starts = [0, *(match.end() for match in re.finditer(r"[ ，。、]", text))]
        found.update({text[at : at + SHINGLE] for at in starts if at + SHINGLE <= len(text)})
    return found


def test_files_and_readme() -> None:
    assert {path.stem for path in FOLDER.glob("*.jsonl")} == set(NAMES)
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "Apache-2.0" in readme
    for name in NAMES:
        size = (FOLDER / f"{name}.jsonl").stat().st_size
        records = len(rows(name))
        assert re.search(rf"\| `{name}\.jsonl` \| {records} \| {round(size / 1000)} \|", readme), (
            name,
            records,
            size,
        )


@pytest.mark.parametrize("name", NAMES)
def test_rows_have_one_form(name: str) -> None:
    for row in rows(name):
        fields = {"lang", "topic"} | ({"domain"} if name == "heldout" else set())
        assert set(row) - {"tools"} in (fields | {"text"}, fields | {"messages"}), row
        assert row.get("domain", name) in NAMES, row
        assert row["topic"]
        assert re.fullmatch(r"[a-z]{2,3}(-[A-Z][a-z]{3})?", str(row["lang"]))


def test_conversations_make_sense() -> None:
    for corpus in (builtin_corpus(), heldout_corpus()):
        for record in corpus.records:
            if not isinstance(record.content, Chat):
                continue
            turns = record.content.messages
            roles = [turn["role"] for turn in turns if turn["role"] != "system"]
            assert roles[0] == "user", record
            assert turns[-1]["role"] == "assistant", record
            assert turns[-1]["content"], record
            assert not turns[-1].get("tool_calls"), record
            for before, after in itertools.pairwise(roles):
                allowed = {
                    "user": {"assistant"},
                    "assistant": {"user", "tool"},
                    "tool": {"tool", "assistant"},
                }
                assert after in allowed[before], record
            declared = {
                tool["function"]["name"]: tool["function"]["parameters"] for tool in record.content.tools
            }
            waiting: list[str] = []
            for turn in turns:
                for call in turn.get("tool_calls", ()):
                    schema = declared[call["function"]["name"]]
                    given = set(call["function"]["arguments"])
                    assert set(schema["required"]) <= given <= set(schema["properties"]), call
                    waiting.append(call["function"]["name"])
                if turn["role"] == "tool":
                    assert turn["name"] == waiting.pop(0), record
            assert not waiting, record


def test_amount_and_variety() -> None:
    per_file = {name: (FOLDER / f"{name}.jsonl").stat().st_size for name in NAMES}
    assert sum(per_file[name] for name in BUILTIN_CATEGORIES) > 300_000
    assert per_file["heldout"] > 45_000
    assert min(per_file.values()) > 20_000
    lengths = sorted(len(words(record)) for record in builtin_corpus().records)
    assert lengths[0] < 500
    assert lengths[-5] > 2500
    for names in (BUILTIN_CATEGORIES, ("heldout",)):
        languages = Counter(row["lang"] for name in names for row in rows(name))
        assert set(languages) >= (LANGUAGES if len(names) > 1 else LANGUAGES - {"pt", "it"})
        assert languages["zh"] >= 3
    topics = [row["topic"] for name in NAMES for row in rows(name) if row["lang"] == "en"]
    assert len(set(topics)) == len(topics)
    thinking = [r for r in builtin_corpus().records if "reasoning_content" in json.dumps(r.content.as_json())]
    assert len(thinking) > 20


def test_nothing_is_there_twice() -> None:
    ours, held_out = shingles(builtin_corpus()), shingles(heldout_corpus())
    assert [text for text, count in (ours + held_out).items() if count > 1] == []


def test_nothing_that_does_not_belong() -> None:
    for name in NAMES:
        text = "\n".join(strings(rows(name)))
        assert "\ufffd" not in text
        hosts = set(re.findall(r"https?://([^\s/\"'`)\\:$]+)", text)) - {
            "localhost",
            "127.0.0.1",
            "api",
            "backend",
        }
        assert hosts == set()
        assert re.findall(r"[\w.+-]+@[\w-]+\.[a-z]{2,}", text) == []
        assert re.findall(r"/home/(?!mira)\w+|/Users/|/work/|C:\\\\", text) == []
        assert SECRETS.findall(text) == []
        special = re.findall(r"<\|[a-z_]+\|>|<think>|</think>|<tool_call>|\[INST\]|<s>", text)
        assert special == [], "templates write these"


def test_labels_and_categories() -> None:
    corpus = builtin_corpus()
    assert (corpus.label, corpus.kind) == (BUILTIN_LABEL, "built-in")
    assert {record.category for record in corpus.records} == set(BUILTIN_CATEGORIES)
    assert corpus == builtin_corpus()
    assert corpus.sha256 != heldout_corpus().sha256


def test_inside_the_package_when_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel has the files in qexport/evidence/data; those are then read."""
    (tmp_path / "data").mkdir()
    for name in NAMES:
        (tmp_path / "data" / f"{name}.jsonl").write_text('{"text": "installed"}\n', encoding="utf-8")
    monkeypatch.setattr(corpus_module.resources, "files", lambda package: tmp_path)
    assert {record.content for record in builtin_corpus().records} == {Text("installed")}
