"""AutoAWQ's and GPTQ's folders: read as others read them, adopted, and caught in what they say wrongly."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import packed_folders as folders
import pytest
import torch
from safetensors.torch import load_file, save_file
from zoo_types import Zoo

from qexport.artifacts import qweight
from qexport.artifacts.layout import OnDisk
from qexport.checkpoint.local import LocalCheckpoint
from qexport.doctor import diagnose
from qexport.errors import InputError
from qexport.formats.opening import layout_of, open_artifact
from qexport.onepass.rows import read_rows
from qexport.receipt.verification import Check, Status, Verdict
from qexport.run.adopt import Adoption, write_adopted
from qexport.verification.readers import check_readers
from qexport.verification.source_weights import check_weights
from qexport.verification.stored_form import check_stored_form

SMALL = {"hidden": 128, "intermediate": 256, "layers": 4}
Change = Callable[[folders.Packed], None]
KINDS: dict[str, Callable[[Path], folders.Packed]] = {
    "awq": folders.awq_folder,
    "gptq": folders.gptq_folder,
    "gptq v2": lambda source: folders.gptq_folder(source, less_one=False),
    "gptq, points": lambda source: folders.gptq_folder(source, sym=False),
    "gptq, 8 bits": lambda source: folders.gptq_folder(source, sym=False, bits=8),
}
READS = {
    "awq": ("compressed-tensors", "compressed_tensors"),
    "gptq": ("auto-round", "auto_round_extension"),
}


def declared(packed: folders.Packed) -> dict[str, Any]:
    found: dict[str, Any] = packed.config["quantization_config"]
    return found


def form(folder: Path) -> dict[Check, Verdict]:
    return {each.check: each for each in check_stored_form(open_artifact(folder))}


def weights(folder: Path, source: Path) -> Verdict:
    view = diagnose(LocalCheckpoint(source)).repaired.view()
    found = check_weights(open_artifact(folder), view)
    assert found is not None
    return found


def readers(folder: Path) -> Verdict:
    found = OnDisk(folder)
    verdict = check_readers(layout_of(found).describe(found).packed())
    assert verdict is not None
    return verdict


def of_kind(kind: str) -> pytest.MarkDecorator:
    name, module = READS[kind.partition(" ")[0].rstrip(",")]
    return pytest.mark.skipif(not find_spec(module), reason=f"{name} is not installed")


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=of_kind(kind)) for kind in KINDS])
def test_another_library_reads_the_same_numbers(zoo: Zoo, tmp_path: Path, kind: str) -> None:
    folder = KINDS[kind](zoo("qwen3_5", **SMALL)).write(tmp_path / "out")
    found = readers(folder)
    assert found.status is Status.PASS, found
    assert READS[kind.partition(" ")[0].rstrip(",")][0] in found.summary


@of_kind("gptq")
def test_also_where_groups_do_not_lie_side_by_side(zoo: Zoo, tmp_path: Path) -> None:
    packed = folders.gptq_folder(zoo("qwen3_5", **SMALL), sym=False, reorder=True)
    assert readers(packed.write(tmp_path / "out")).status is Status.PASS


@of_kind("awq")
def test_an_order_that_we_have_wrong_is_found(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders.awq_folder(zoo("qwen3_5", **SMALL)).write(tmp_path / "out")
    monkeypatch.setattr(qweight, "_PLACES", tuple(range(8)))
    assert readers(folder).status is Status.FAIL


@of_kind("gptq")
def test_a_zero_point_that_we_have_wrong_is_found(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders.gptq_folder(zoo("qwen3_5", **SMALL), sym=False).write(tmp_path / "out")
    stored = qweight.QWeight.zeros
    monkeypatch.setattr(qweight.QWeight, "zeros", lambda self, start, stop: stored(self, start, stop) - 1)
    assert readers(folder).status is Status.FAIL


def each(packed: folders.Packed, ending: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for name, tensor in packed.tensors.items():
        if name.endswith(ending):
            packed.tensors[name] = change(tensor)


def other_order(packed: folders.Packed) -> None:
    """As if AutoAWQ had packed its words as GPTQ packs them."""
    each(packed, ".qweight", lambda words: folders.in_words(unpacked(words, folders.AWQ_ORDER), 4))


def unpacked(words: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    codes = (words[..., None] >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15
    return codes[..., [order.index(place) for place in range(8)]].flatten(1)


def other_format(packed: folders.Packed) -> None:
    now = declared(packed)["checkpoint_format"]
    declared(packed)["checkpoint_format"] = {"gptq": "gptq_v2", "gptq_v2": "gptq"}[now]


def exchanged(packed: folders.Packed) -> None:
    each(packed, ".scales", lambda scales: scales.roll(1, 0).contiguous())


def exchanged_codes(packed: folders.Packed) -> None:
    each(packed, ".qweight", lambda words: words.roll(len(words) // 2, 0).contiguous())


def exchanged_places(packed: folders.Packed) -> None:
    each(packed, ".g_idx", lambda places: places.roll(32).contiguous())


def even(source: Path, out: Path) -> Path:
    """Its linear layers without rows or columns that stand out, as trained ones hardly have them: what scales
    of other groups make of such is least."""
    shutil.copytree(source, out)
    generator = torch.Generator().manual_seed(0)
    for file in out.glob("*.safetensors"):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if folders.LINEAR.search(name):
                tensors[name] = torch.randn(tensor.shape, generator=generator).mul_(0.02).to(tensor.dtype)
        save_file(tensors, file, metadata={"format": "pt"})
    return out


@pytest.mark.parametrize(
    ("kind", "plant", "words"),
    [
        ("awq", other_order, "is off by "),
        ("awq", exchanged, "by groups: scales are others'"),
        ("awq", exchanged_codes, "is off by "),
        ("gptq", exchanged, "by groups: scales are others'"),
        ("gptq, points", other_format, "nearly all of it the same way: zero points are others"),
        ("gptq, 8 bits", other_format, "nearly all of it the same way: zero points are others"),
        ("gptq, points", exchanged_codes, "is off by "),
        ("gptq, points", exchanged_places, "is off by "),
    ],
)
def test_what_is_packed_wrongly_is_not_the_sources(
    zoo: Zoo, tmp_path: Path, kind: str, plant: Change, words: str
) -> None:
    source = even(zoo("qwen3_5", **SMALL), tmp_path / "source")
    packed = KINDS[kind](source)
    sound = weights(packed.write(tmp_path / "sound"), source)
    assert sound.status is Status.PASS, sound
    plant(packed)
    found = weights(packed.write(tmp_path / "out"), source)
    assert found.status is Status.FAIL
    assert words in found.summary
    packed_ones = sum(name.endswith(".qweight") for name in packed.tensors)
    assert len([fault for fault in found.data["faults"] if words in fault]) == min(20, packed_ones)


def unlisted(packed: folders.Packed) -> None:
    for key in ("modules_to_not_convert", "dynamic"):
        kept = declared(packed).get(key)
        if isinstance(kept, dict):
            kept.pop("-:.*mtp.*")
        elif kept:
            kept.remove("mtp")


def empty(packed: folders.Packed) -> None:
    """vLLM then lists ``linear_attn`` for its ``A_log``, and all that is packed inside."""
    declared(packed)["modules_to_not_convert"] = []


def by_the_head(packed: folders.Packed) -> None:
    declared(packed)["modules_in_block_to_quantize"] = [["self_attn.q_proj"], ["mlp.up_proj"]]


def in_vllm_alone(packed: folders.Packed) -> None:
    declared(packed)["modules_to_not_convert"].remove("model.visual.")


def under_one_name(packed: folders.Packed) -> None:
    rules = declared(packed)["dynamic"]
    del rules["-:.*in_proj_(a|b|ba)$"]
    rules["-:.*in_proj_[ab]$"] = {}


@pytest.mark.parametrize(
    ("kind", "lie", "words"),
    [
        ("awq", unlisted, "mtp.fc is stored as 16-bit floats, but the config promises int of 4 bits"),
        ("awq", empty, "linear_attn.in_proj_a: modules_to_not_convert excludes it for vLLM and not"),
        ("awq", in_vllm_alone, "blocks.0.attn.qkv: modules_to_not_convert excludes it for vLLM and not"),
        ("gptq", unlisted, "mtp.layers.0.mlp.down_proj: vLLM takes it for floats, and readers that go by"),
        ("gptq", by_the_head, "in_proj_qkv: vLLM takes it for floats"),
        ("gptq", under_one_name, "in_proj_a: dynamic has other rules for it under the names that vLLM"),
        (
            "gptq",
            other_format,
            "sym is true, by which readers take zero points to be others",
        ),
        ("gptq v2", other_format, "sym is true, by which readers take zero points to be others"),
        ("gptq", exchanged_places, "g_idx is not in order, and by desc_act vLLM takes it to be"),
    ],
)
def test_what_the_config_says_wrongly_is_found(
    zoo: Zoo, tmp_path: Path, kind: str, lie: Change, words: str
) -> None:
    packed = KINDS[kind](zoo("qwen3_5", **SMALL))
    lie(packed)
    found = form(packed.write(tmp_path / "out"))
    assert [check for check in found if found[check].status is Status.FAIL] == [Check.DECLARED]
    assert any(words in problem for problem in found[Check.DECLARED].data["problems"])


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("awq", {"version": "gemv_fast"}, "AWQ of version 'gemv_fast' and 4 bits is not read"),
        ("awq", {"modules_to_not_convert": ["*visual"]}, "which is no expression to transformers"),
        ("gptq", {"bits": 3}, "GPTQ of format 'gptq' and 3 bits is not read"),
        ("gptq", {"checkpoint_format": "marlin"}, "GPTQ of format 'marlin' and 4 bits is not read"),
        ("gptq", {"dynamic": {"-:*mtp": {}}}, "which is no expression"),
        ("gptq", {"dynamic": ["mtp"]}, "no table of expressions"),
    ],
)
def test_what_cannot_be_read_is_refused(
    zoo: Zoo, tmp_path: Path, kind: str, changes: dict[str, Any], words: str
) -> None:
    packed = KINDS[kind](zoo("qwen3_5", **SMALL))
    declared(packed).update(changes)
    with pytest.raises(InputError, match=words):
        open_artifact(packed.write(tmp_path / "out"))


@pytest.mark.parametrize(
    ("kind", "part", "planted"),
    [
        ("awq", "qzeros", torch.zeros(1, 8, dtype=torch.int32)),
        ("gptq", "scales", torch.zeros(3, 256, dtype=torch.float16)),
        ("gptq", "qweight", torch.zeros(16, 8, dtype=torch.int32)),
        ("gptq", "qzeros", None),
    ],
)
def test_parts_that_do_not_fit_are_named(
    zoo: Zoo, tmp_path: Path, kind: str, part: str, planted: torch.Tensor | None
) -> None:
    packed = KINDS[kind](zoo("qwen3_5", **SMALL))
    name = f"model.language_model.layers.0.mlp.up_proj.{part}"
    del packed.tensors[name]
    if planted is not None:
        packed.tensors[name] = planted
    found = form(packed.write(tmp_path / "out"))[Check.STORED]
    assert found.status is Status.FAIL
    assert found.data["count"] == 1
    assert "layers.0.mlp.up_proj" in found.summary


@pytest.mark.parametrize("model", ["qwen3_5", "qwen3_5_moe", "llama"])
@pytest.mark.parametrize("kind", ["awq", "gptq"])
def test_adopting_gives_head_tower_and_lists(zoo: Zoo, tmp_path: Path, kind: str, model: str) -> None:
    """Also where nothing was listed at all; and the lists are those that are asked for in the dialect."""
    base = zoo(model) if model == "llama" else zoo(model, **SMALL)
    packed = KINDS[kind](base) if model != "llama" else bare(kind, base)
    if model != "llama":
        packed.drop(r"^mtp\.|^model\.visual\.")
        del packed.config["vision_config"]
        declared(packed).pop("modules_to_not_convert", None)
        declared(packed).pop("dynamic", None)
    folder = packed.write(tmp_path / "lost")
    wanted = Adoption(folder, tmp_path / "out", str(base))
    write_adopted(wanted)
    found = form(tmp_path / "out")
    assert [check for check in found if found[check].status is not Status.PASS] == []
    made = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    if model == "llama":
        assert not wanted.planned.listed
        return
    heads = {
        name: tensor.dtype
        for file in (tmp_path / "out").glob("*.safetensors")
        for name, tensor in load_file(file).items()
        if name.startswith(("mtp.", "model.visual."))
    }
    assert any(name.startswith("model.visual.") for name in heads)
    assert set(heads.values()) == {torch.bfloat16}
    if kind == "awq":
        assert {"lm_head", "mtp.", "visual", "model.visual."} <= set(made["modules_to_not_convert"])
    else:
        assert {"-:.*mtp.*", "-:.*visual.*"} <= set(made["dynamic"])
        at = r"\.layers\.0\.linear_attn\."
        assert rf"-:.*({at}in_proj_a|{at}in_proj_ba)$" in made["dynamic"]


def bare(kind: str, base: Path) -> folders.Packed:
    """A text model all of whose linear layers are packed."""
    packed = folders.Packed(base)
    packed.pack(lambda name: bool(folders.LINEAR.search(name)), folders.turned(kind, points=kind == "awq"))
    packed.config["quantization_config"] = {
        "quant_method": kind,
        "bits": 4,
        "group_size": 32,
        **({"zero_point": True, "version": "GEMM"} if kind == "awq" else {"sym": True, "desc_act": False}),
    }
    return packed


def test_rules_that_are_there_come_after_what_is_excluded(zoo: Zoo, tmp_path: Path) -> None:
    """The first that fits counts: a rule for everything would take the head for packed."""
    base = zoo("qwen3_5", **SMALL)
    packed = folders.gptq_folder(base)
    declared(packed)["dynamic"] = {"+:.*": {"bits": 4}, **declared(packed)["dynamic"]}
    write_adopted(Adoption(packed.write(tmp_path / "folder"), tmp_path / "out"))
    assert all(each.status is Status.PASS for each in form(tmp_path / "out").values())


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"sym": False}, "sym is false: vLLM refuses"),
        ({"sym": False, "reorder": True}, "desc_act is true: vLLM refuses"),
    ],
)
def test_what_vllm_refuses_is_said(zoo: Zoo, tmp_path: Path, how: dict[str, bool], words: str) -> None:
    packed = folders.gptq_folder(zoo("qwen3_5", **SMALL), **how)
    planned = Adoption(packed.write(tmp_path / "folder"), tmp_path / "out").planned
    assert any(note.startswith(words) for note in planned.plan.notes)
    sound = folders.gptq_folder(zoo("qwen3_5", **SMALL)).write(tmp_path / "sound")
    assert not Adoption(sound, tmp_path / "out").planned.plan.notes


def test_a_matrix_is_read_once_however_few_rows_are_asked_for(zoo: Zoo, tmp_path: Path) -> None:
    folder = folders.awq_folder(zoo("qwen3_5", **SMALL)).write(tmp_path / "out")
    found = OnDisk(folder)
    seen: Counter[str] = Counter()
    found.folder.on_read = lambda name, start, stop: seen.update({name: stop - start})
    view = layout_of(found).open(found).view()
    (tensor,) = (each for each in view if each.name == "model.layers.0.mlp.up_proj.weight")
    for start in range(0, 256, 16):
        read_rows(tensor.data, start, start + 16)
    at = "model.language_model.layers.0.mlp.up_proj."
    assert seen == {f"{at}qweight": 128, f"{at}qzeros": 4, f"{at}scales": 4}
