"""Documents, their prompts, and which drafts count."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from head_texts import tiny, view_of
from zoo_types import Zoo

from qexport.errors import InputError
from qexport.evidence.corpus import read_corpus
from qexport.headtune.text import SPLITS, Document, chunked, divided, documents_of


def document(*ids: int, prompt: int = 0, domain: str = "a") -> Document:
    return Document(ids, prompt, domain, repr(ids[:prompt] or ids))


def test_which_anchors_count() -> None:
    """Two documents in one chunk: the first has a prompt of two tokens."""
    text = chunked({"judge": [document(1, 2, 3, 4, 5, 6, prompt=2), document(7, 8, 9, 10)]}, 10)
    assert text.counts[0].tolist() == [False, False] + [True] * 8
    assert text.document[0].tolist() == [0] * 6 + [1] * 4
    # The draft at anchor t is for token t + 2: of the answer, and of the same document.
    assert np.flatnonzero(text.anchors(1)[0]).tolist() == [0, 1, 2, 3, 6, 7]
    assert np.flatnonzero(text.anchors(2)[0]).tolist() == [0, 1, 2, 6]
    late = chunked({"judge": [document(1, 2, 3, 4, 5, 6, prompt=4)]}, 6)
    assert np.flatnonzero(late.anchors(1)[0]).tolist() == [2, 3]


def test_a_split_is_of_whole_prompts() -> None:
    documents = [document(number, 1000, sample, prompt=2) for number in range(40) for sample in range(3)]
    splits = divided(documents)
    keys = {split: {each.key for each in splits[split]} for split in SPLITS}
    assert [len(keys[split]) for split in SPLITS] == [28, 4, 8]
    assert not keys["train"] & keys["judge"]
    assert sum(map(len, splits.values())) == 120
    assert divided(documents)["judge"] == splits["judge"]
    assert divided(documents, seed=1)["judge"] != splits["judge"]
    alone = divided([document(1, 2, domain="b"), *documents])
    assert any(each.domain == "b" for each in alone["judge"])


def test_a_short_text_is_filled_up() -> None:
    text = chunked({"train": [document(*range(5))], "judge": []}, 8)
    assert text.ids.shape == (1, 8)
    assert text.splits == {"train": (0, 1), "judge": (1, 1)}
    assert text.anchors(1)[0].tolist() == [True, True, True, False, False, False]
    with pytest.raises(InputError, match="empty"):
        chunked({"train": []}, 8)


def test_loops_are_seen() -> None:
    random = np.random.default_rng(0)
    said = random.integers(0, 50, 300).tolist()
    assert not document(*said).loops
    assert document(*said[:40], *([1, 2, 3, 4, 5] * 40)).loops
    assert not document(*([1] * 20)).loops  # too short to tell


def test_a_record_says_its_prompt_and_its_domain(zoo: Zoo, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    turns = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"}]
    rows = [
        {"input_ids": [1, 2, 3, 4], "prompt_tokens": 3, "domain": "code"},
        {"input_ids": [1, 2, 3, 4]},
        {"messages": turns},
    ]
    path.write_text("\n".join(map(json.dumps, [*rows, rows[0]])))
    found = documents_of(read_corpus(path), view_of(tiny(zoo)))
    assert {(each.domain, each.prompt) for each in found if len(each.ids) == 4} <= {("code", 3), ("text", 0)}
    chats = [each for each in found if len(each.ids) > 4]
    assert len(chats) == 1
    assert 0 < chats[0].prompt < len(chats[0].ids)
    path.write_text(json.dumps({"input_ids": [5, 10**6]}))
    with pytest.raises(InputError, match="token id"):
        documents_of(read_corpus(path), view_of(tiny(zoo)))
