"""A family is one value: nothing else in the package has to know it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from quirks_planted import tensors_in
from zoo import build, write_json, write_tensors

from qexport.checkpoint.opening import open_checkpoint
from qexport.doctor.diagnose import diagnose
from qexport.families.family import Arch, Dialect, Family, Tower
from qexport.families.known import FAMILIES
from qexport.families.layers import ATTENTION, MLP, PLAIN, PRE_NORMS
from qexport.families.names import heads_beside
from qexport.families.roles import Block, Role
from qexport.formats.fp8.listing import listed_modules
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.fp8.scope import scope_of
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.mlx.plan import plan_mlx

PACKAGE = Path(__file__).parents[2] / "qexport"
HEAD = FAMILIES["qwen3_5"].head
assert HEAD is not None
TOY = Family(
    name="toy",
    causal_arch="ToyForCausalLM",
    text_model_type="toy",
    layers={"full": (*PRE_NORMS, *ATTENTION, *MLP)},
    defaults={**PLAIN, "vocab_size": 100, "max_position_embeddings": 64, "intermediate_size": 64},
    head=Tower(
        Block.MTP,
        prefix="draft.",
        layer_prefix="draft.blocks.{n}.",
        layers={"full": (*PRE_NORMS, *ATTENTION, *MLP)},
        count="num_draft_layers",
        first=HEAD.first,
    ),
    arch=Arch(
        "toyarch",
        names={Role.FFN_NORM: "toy_norm.weight"},
        keys=lambda hyper, head: {"heads": head},
        vocabulary="llama",
    ),
    dialect=Dialect(prefix="toy."),
)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Mistral of the zoo under the toy's name, with a head that is the toy's."""
    monkeypatch.setitem(FAMILIES, "toy", TOY)
    heads_beside.cache_clear()
    folder = build("mistral", tmp_path / "toy", layers=2)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "toy", "architectures": ["ToyForCausalLM"], "num_draft_layers": 1}
    write_json(folder / "config.json", config)
    tensors = tensors_in(folder)
    hidden = config["hidden_size"]
    head = {
        n.replace("model.layers.0.", "draft.blocks.0."): t for n, t in tensors.items() if ".layers.0." in n
    }
    norm = tensors["model.norm.weight"]
    head |= {f"draft.{n}.weight": norm for n in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")}
    head["draft.fc.weight"] = tensors["lm_head.weight"].repeat(1, 2)[:hidden].repeat(2, 1)[:hidden]
    write_tensors(folder, {n: t.clone() for n, t in {**tensors, **head}.items()})
    yield folder
    heads_beside.cache_clear()


def test_a_family_of_the_test_goes_through(toy: Path) -> None:
    repaired = diagnose(open_checkpoint(str(toy))).repaired
    view = repaired.view()
    assert (view.family, view.mtp_layers, repaired.mtp_origin) == ("toy", 1, "own")
    (plan,) = plan_gguf(view, ["Q8_0"], GgufOptions())
    names = {tensor.name for tensor in plan.tensors}
    assert {"blk.0.toy_norm.weight", "blk.2.toy_norm.weight", "blk.2.nextn.eh_proj.weight"} <= names
    assert plan.details["architecture"] == "toyarch"
    (trunk,) = plan_mlx(repaired, MlxOptions())
    assert {tensor.name.split(".")[0] for tensor in trunk.tensors} == {"toy"}
    assert any("no MLX runtime reads that of toy" in note for note in trunk.notes)
    options = Fp8Options()
    assert "draft.fc" in listed_modules(repaired, view, scope_of(repaired, view, options))


def test_a_lost_head_is_named_as_the_family_names_it(toy: Path) -> None:
    write_tensors(toy, {n: t for n, t in tensors_in(toy).items() if not n.startswith("draft.")})
    (error,) = diagnose(open_checkpoint(str(toy))).errors
    assert (error.id, error.what) == (
        "mtp.lost",
        "config.json declares an MTP head (num_draft_layers: 1), but there are no draft.* tensors",
    )


# File names of MLX runtimes, findings' ids, what is merged away in the demo, and prose.
_ALLOWED = re.compile(
    r"``[^`]*``|mtp\.safetensors|mtp\.(lost|none|several|incomplete|undeclared|dropped|misfit|grafted|vocabulary"
    r"|own_embeddings)|each\.mtp\.base|mtp\.(mode|tower_mode|tuning|base|revision|layers,|origin,|startswith|removeprefix)|\bmtp\.py"
)


def test_names_of_heads_come_from_families() -> None:
    """No code outside families/ spells a head's prefix or the key that counts its layers."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.is_relative_to(PACKAGE / "families") or path.is_relative_to(PACKAGE / "demo"):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(r"[\"'.` ]mtp\.(?!\w+\()|mtp_num_hidden_layers", _ALLOWED.sub("", line)):
                found.append(f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}")
    assert found == []


def test_no_family_is_named_in_the_readers_of_names() -> None:
    """Formats, evidence and artifacts ask the family, they do not ask which it is."""
    for floor in ("formats", "evidence", "artifacts", "verify"):
        for path in (PACKAGE / floor).rglob("*.py"):
            assert not re.search(
                r"(view\.family|family\.name) (==|!=|in) |family\.startswith", path.read_text()
            ), path
