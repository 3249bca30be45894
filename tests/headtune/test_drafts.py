"""What drafts come to, by hand and against a decoder that is written out."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from head_texts import EXACT, ids_file, tiny, view_of
from safetensors.torch import load_file, save_file
from zoo_types import Zoo

from qexport.errors import InputError
from qexport.evidence.chained import HeadStream
from qexport.evidence.corpus import read_corpus
from qexport.headtune.drafts import HeadDrafts, drafts_of
from qexport.headtune.figures import OWN, figures, judged, table
from qexport.headtune.logits import Logits
from qexport.headtune.options import ScoreOptions
from qexport.headtune.score import score
from qexport.headtune.states import states_of
from qexport.headtune.text import Document, chunked


def drafts(accepted: list[int], overlap: float = 0.5, fine: list[int] | None = None) -> HeadDrafts:
    """One chunk, with so many right first drafts of three at each anchor."""
    right = np.array([[[ahead < count for ahead in range(3)] for count in accepted]])
    where = np.ones((1, len(accepted)), bool) if fine is None else np.array([fine], bool)
    document = np.zeros((1, len(accepted)), int)
    shared = np.full(right.shape, overlap, np.float32)
    return HeadDrafts(where, document, document, right, ~right, shared, ("a",))


def test_a_decoder_walks() -> None:
    # At 0 one draft is right: two tokens, on to 2; nothing: on to 3; all three: four tokens, past the end.
    walked = drafts([1, 3, 0, 3, 0]).walked(3)
    assert (walked.above.tolist(), walked.below.tolist()) == ([7], [3])
    assert drafts([1, 3, 0, 3, 0]).walked(1).value == 5 / 3  # at 0, 2 and 3


def test_who_walks_leaves_out_what_does_not_count() -> None:
    walked = drafts([1, 3, 0, 3, 0], fine=[0, 1, 1, 1, 0]).walked(3)
    assert (walked.above.tolist(), walked.below.tolist()) == ([4], [1])


def test_drafts_that_are_drawn() -> None:
    assert drafts([0, 0]).drawn(3).value == pytest.approx(1 + 0.5 + 0.25 + 0.125)
    assert drafts([0, 0]).drawn(1).value == pytest.approx(1.5)


def of_documents(shares: list[float], before: float = 0.0) -> tuple[HeadDrafts, HeadDrafts]:
    """Documents of 100 anchors, so many of which have a right draft, and the same worse by ``before``."""
    found = []
    for less in (0.0, before):
        right = np.zeros((len(shares), 100, 4), bool)
        for number, share in enumerate(shares):
            right[number, : round(100 * (share - less))] = True
        document = np.repeat(np.arange(len(shares))[:, None], 100, axis=1)
        domains = tuple("code" if number % 2 else "prose" for number in range(len(shares)))
        overlap = right.astype(np.float32)
        every = np.ones(right.shape[:2], bool)
        found.append(HeadDrafts(every, document, document, right, right, overlap, domains))
    return found[0], found[1]


def test_errors_come_from_documents() -> None:
    found, _ = of_documents([0.2, 0.4, 0.6, 0.8])
    shares = np.array([0.2, 0.4, 0.6, 0.8])
    assert found.acceptance(1).value == pytest.approx(0.5)
    assert found.acceptance(1).error == pytest.approx(shares.std(ddof=1) / 2)
    one, _ = of_documents([0.5])
    assert one.acceptance(1).error is None


def test_two_heads_are_compared_document_by_document() -> None:
    after, before = of_documents([0.2, 0.4, 0.6, 0.8], before=0.1)
    gain, error = after.acceptance(1).gain(before.acceptance(1))
    assert gain == pytest.approx(0.1)
    assert error == pytest.approx(0, abs=1e-9)  # though the documents differ widely


def test_a_head_that_gains_is_taken_and_one_that_does_not_is_not() -> None:
    after, before = of_documents([0.5, 0.4, 0.6, 0.5], before=0.1)
    assert judged(before, after, "argmax", 3, ("code",)).accepted
    same = judged(before, before, "argmax", 3, ("code",))
    assert not same.accepted
    assert "standard errors" in same.reason
    assert not judged(after, before, "sampling", 3, ("code", "prose")).accepted


def test_a_head_that_loses_a_domain_is_not_taken() -> None:
    after, before = of_documents([0.5, 0.4, 0.6, 0.5], before=0.1)
    greedy = np.where(after.document[..., None] % 2, after.greedy, before.greedy & False)
    lost = replace(after, greedy=greedy)
    verdict = judged(before, lost, "argmax", 3, ("code",))
    assert not verdict.accepted
    assert "prose" in verdict.reason


def test_drafts_are_a_naive_decoder_s(zoo: Zoo, tmp_path: Path) -> None:
    """Logits of everything at once; slices and the mask must not change anything."""
    view = view_of(tiny(zoo))
    stream = HeadStream(view, EXACT)
    random = np.random.default_rng(1)
    documents = [
        Document(tuple(random.integers(0, 200, 40).tolist()), prompt, "a", str(prompt))
        for prompt in (0, 9, 5)
    ]
    text = chunked({"judge": documents}, 32)
    states = states_of(stream, text.ids, tmp_path)
    chain, embedded = stream.head(32), stream.embedded(text.ids)
    vocabulary = Logits(view, stream.device, exact=True, at_once=7 * 300)
    found = drafts_of(chain, vocabulary, text, states, embedded, part=text.part("judge"))
    final = states.of(range(len(text.ids)))
    with torch.no_grad():
        heads = list(chain.unrolled(final, embedded.of(range(len(text.ids))), 4))
        trunk = vocabulary.logits(final.flatten(0, 1)).view(*final.shape[:2], -1)
        for ahead, head in enumerate(heads):
            said = vocabulary.logits(head.flatten(0, 1), head=True).view(*head.shape[:2], -1)[:, :27]
            told = trunk[:, ahead + 1 : ahead + 28]
            under = torch.minimum(told.softmax(-1), said.softmax(-1)).sum(-1).numpy()
            where = found.fine
            np.testing.assert_allclose(found.overlap[..., ahead][where], under[where], atol=1e-5)
            assert (found.greedy[..., ahead] == (said.argmax(-1) == told.argmax(-1)).numpy())[where].all()
            actual = text.ids[:, ahead + 2 : ahead + 29]
            assert (found.own[..., ahead] == (said.argmax(-1).numpy() == actual))[where].all()
    assert 0 < found.positions < found.fine.size


@pytest.mark.parametrize("name", ["qwen3_5", "glm4_moe"])
def test_a_score_by_domain(zoo: Zoo, tmp_path: Path, name: str) -> None:
    view = view_of(tiny(zoo, name, **({"experts": 4} if "moe" in name else {})))
    corpus = read_corpus(ids_file(tmp_path / "a.jsonl", 6, 70, 200, domain="ids"))
    found = score(view, corpus, ScoreOptions(chunk=32), EXACT)
    rows = figures(found.drafts)
    assert set(rows) == {"all", "ids"}
    assert rows["all"]["documents"] == 6
    assert len(rows["ids"]["acceptance"]) == 4
    per = rows["all"]["tokens_per_verification"]
    assert all(1 <= per[way]["value"] <= 4 for way in ("argmax", "own", "sampled"))
    assert math.isfinite(per["sampled"]["error"])


def test_a_head_with_a_damaged_weight_gets_no_figures(zoo: Zoo, tmp_path: Path) -> None:
    shutil.copytree(tiny(zoo), tmp_path / "damaged")
    (file,) = [
        each for each in (tmp_path / "damaged").glob("*.safetensors") if "mtp.fc.weight" in load_file(each)
    ]
    tensors = load_file(file)
    tensors["mtp.fc.weight"][0, 0] = math.nan
    save_file(tensors, file, metadata={"format": "pt"})
    corpus = read_corpus(ids_file(tmp_path / "a.jsonl", 2, 70, 200, domain="ids"))
    with pytest.raises(InputError, match="what leaves its MTP head is not finite"):
        score(view_of(tmp_path / "damaged"), corpus, ScoreOptions(chunk=32), EXACT)


def test_one_text_is_one_row() -> None:
    row = figures(drafts([1, 0, 2, 3]))["all"]
    one = {"all": row, OWN: row, "text": row}
    assert [cells[0] for cells in table(one)[1]] == ["all", OWN]
    other = {**row, "positions": row["positions"] + 1}
    assert [cells[0] for cells in table({**one, "text": other})[1]] == ["all", OWN, "text"]
