"""Heads of other families through the same commands: judged and tuned, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from head_texts import EXACT, ids_file, tiny, view_of
from zoo_types import Zoo, ZooCopy

from qexport.cli.main import cli
from qexport.errors import InputError, UsageProblem
from qexport.evidence.corpus import read_corpus
from qexport.headtune.options import ScoreOptions, TrainOptions, TuneOptions
from qexport.headtune.score import score
from qexport.recipe.choice import ModelChoice
from qexport.run.head import HeadRequest, tuned_head
from qexport.run.model import examine
from qexport.run.watcher import Watcher


def values_of(folder: Path, head: Path | None = None) -> dict[str, torch.Tensor]:
    """Every tensor of a model's head, as stored."""
    found = {}
    for tensor in view_of(folder, head):
        if tensor.block.value == "mtp":
            rows = tensor.data.rows(0, tensor.data.matrix_shape[0])
            parts = [p.checkpoint.read_rows(p.name, p.start, p.stop) for p in rows]
            found[tensor.name] = torch.cat(parts)
    return found


def test_the_layer_behind_glm_s_trunk_is_tuned(zoo: Zoo, tmp_path: Path) -> None:
    """It has an embedding and an output matrix of its own, which stay; so does the router."""
    base, out = tiny(zoo, "glm4_moe", experts=4), tmp_path / "head"
    trunk = tiny(zoo, "glm4_moe", experts=4, seed=5)
    text = ids_file(tmp_path / "own.jsonl", 60, 224, 200)
    train = TrainOptions("sampling", steps=16, rate=3e-3, batch_tokens=512)
    request = HeadRequest(text, out, TuneOptions(train, generic=0.0, chunk=64), EXACT)
    choice = ModelChoice(str(trunk), mtp="graft", mtp_from=str(base))
    document = tuned_head(choice, examine(choice, download=False), request, Watcher())
    assert document["result"] == "tuned", document["reason"]
    before, after = values_of(trunk, base), values_of(trunk, out)
    assert before.keys() == after.keys()
    same = {name.split(".", 2)[-1] for name in before if torch.equal(before[name], after[name])}
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(moved) > 8
    assert any("embed_tokens" in name for name in same)
    assert any("shared_head.head" in name or name.endswith("lm_head.weight") for name in same)
    assert any(name.endswith("gate.weight") for name in same)
    corpus = read_corpus(text)
    one, other = (score(view_of(trunk, head), corpus, ScoreOptions(4096, 64), EXACT) for head in (base, out))
    assert other.drafts.drawn(3).value > one.drafts.drawn(3).value


def test_a_family_without_heads_is_refused(zoo: Zoo, tmp_path: Path) -> None:
    corpus = read_corpus(ids_file(tmp_path / "a.jsonl", 3, 70, 200))
    with pytest.raises(UsageProblem, match="the family llama has no MTP head"):
        score(view_of(zoo("llama3", layers=2)), corpus, ScoreOptions(chunk=32), EXACT)


def test_a_model_that_has_lost_its_head_is_told_where_to_get_one(zoo: Zoo, tmp_path: Path) -> None:
    corpus = read_corpus(ids_file(tmp_path / "a.jsonl", 3, 70, 200))
    with pytest.raises(InputError, match="has no MTP head") as refused:
        score(view_of(tiny(zoo, mtp=False)), corpus, ScoreOptions(chunk=32), EXACT)
    assert "--mtp-from BASE" in str(refused.value.hint)


@pytest.mark.parametrize("command", ["score", "tune"])
def test_a_family_that_is_not_known_is_refused_by_name(
    zoo_copy: ZooCopy, tmp_path: Path, command: str
) -> None:
    """Qwen3-Next has a head, and its layers are known to nobody here."""
    folder = zoo_copy("qwen3_5")
    config = json.loads((folder / "config.json").read_text())
    config = {**config["text_config"], "model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    text = ids_file(tmp_path / "a.jsonl", 3, 70, 200)
    words = ["mtp", command, str(folder), "--text", str(text)]
    result = CliRunner().invoke(cli, [*words, *(["-o", str(tmp_path / "h")] if command == "tune" else [])])
    assert isinstance(result.exception, InputError)
    assert "qwen3_next" in result.exception.message.lower()
