"""A head that is broken is caught in every format: by running it, or by what the folder says of it.

The demo's trained model goes through the pipeline, once sound and once with each break planted in the
checkpoint before the export. A break of the numbers cannot be seen in what is stored, so it has to show when
the head runs beside the source's; a head that is listed wrongly or gone shows in the stored form, or, where
config and files agree that there is none, in the comparison.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from quirks_planted import change_tensors
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qexport.artifacts.layout import OnDisk
from qexport.checkpoint.local import LocalCheckpoint
from qexport.container.gguf_file import read_gguf
from qexport.demo import MODEL
from qexport.doctor import Diagnosis, diagnose
from qexport.families.view import ModelView
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.opening import layout_of, open_artifact
from qexport.receipt.verification import Check, Status, Verdict, Verification
from qexport.run import steps
from qexport.run.measure import Measure, measuring
from qexport.run.target import Item, Target, plan
from qexport.verification.stored_form import check_stored_form
from qexport.verification.stored_numbers import check_numbers

pytestmark = pytest.mark.slow

Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]
TOKENS = 512
FOLDERS: Mapping[str, Any] = {
    "mlx": MlxOptions(bits=6),
    "mlx-packed-drafter": MlxOptions(bits=6, mtp_bits=6),
    "mlx-mtplx": MlxOptions(bits=6, mtp=("mtplx",)),
    "mlx-embedded": MlxOptions(bits=6, mtp=("embedded",), mtp_bits=8),
    "fp8": Fp8Options(),
    "fp8-bf16-head": Fp8Options(mtp_bf16=True),
    "fp8-ct": Fp8Options(layout="compressed-tensors"),
    "nvfp4": Nvfp4Options(),
    "nvfp4-ct": Nvfp4Options(layout="compressed-tensors"),
}
FORMATS = ("gguf", *FOLDERS)


def _shifted_twice(tensors: Tensors) -> Tensors:
    """Every norm of the head with its 1 added: the reader adds it again."""
    return {n: t + 1 if n.startswith("mtp.") and "norm" in n else t for n, t in tensors.items()}


def _wrong_order(tensors: Tensors) -> Tensors:
    """Hidden state before embedding, where fc has them the other way round."""
    return {n: torch.cat(t.chunk(2, 1)[::-1], 1) if n == "mtp.fc.weight" else t for n, t in tensors.items()}


def _zeroed(tensors: Tensors) -> Tensors:
    """A matrix that was never filled."""
    return {n: torch.zeros_like(t) if n == "mtp.fc.weight" else t for n, t in tensors.items()}


BREAKS: Mapping[str, Callable[[Tensors], Tensors]] = {
    "norms shifted twice": _shifted_twice,
    "fc in the wrong order": _wrong_order,
    "fc of zeros": _zeroed,
}


def _diagnosis(folder: Path) -> Diagnosis:
    return diagnose(LocalCheckpoint(folder))


def _export(diagnosis: Diagnosis, root: Path) -> dict[str, Path]:
    """Every format from one pass, by name; a drafter lies beside its trunk."""
    targets = [
        Target(GgufOptions(("Q8_0",), no_mmproj=True), root / "gguf", verify=None),
        *(Target(asked, root / name, verify=None) for name, asked in FOLDERS.items()),
    ]
    written = steps.write(plan(targets, diagnosis), diagnosis, threads=2)
    return {item.target.out.name: item.path for item in written if item.plan.kind != "mlx-drafter"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Path]]:
    """``exported(break)``: every format of the model with that break; ``sound`` for none."""
    made: dict[str, dict[str, Path]] = {}

    def get(name: str) -> dict[str, Path]:
        if name not in made:
            root = tmp_path_factory.mktemp("heads")
            shutil.copytree(MODEL, root / "Model", copy_function=shutil.copyfile)
            change_tensors(root / "Model", BREAKS.get(name, lambda tensors: tensors))
            made[name] = _export(_diagnosis(root / "Model"), root)
        return made[name]

    return get


@pytest.fixture(scope="module")
def view() -> ModelView:
    return _diagnosis(MODEL).repaired.view()


@pytest.fixture(scope="module")
def source(view: ModelView) -> Iterator[Measure]:
    """The good model, sent through once for the whole module."""
    with measuring(view, lambda _: None, tokens=TOKENS) as measure:
        yield measure


def measured(source: Measure, path: Path) -> dict[Check, Verdict]:
    """What the pipeline adds to the report of an artifact."""
    report = source.add_to(Verification(path.name), path)
    return {finding.check: finding for finding in report.findings}


def stored(path: Path, view: ModelView) -> dict[Check, Verdict]:
    return {finding.check: finding for finding in check_stored_form(open_artifact(path, like=view))}


def failed(found: Mapping[Check, Verdict]) -> set[Check]:
    return {check for check, finding in found.items() if finding.status is Status.FAIL}


# --- numbers that are wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_a_sound_head_passes(
    name: str, exported: Callable[[str], dict[str, Path]], source: Measure, view: ModelView
) -> None:
    path = exported("sound")[name]
    assert {finding.status for finding in stored(path, view).values()} == {Status.PASS}
    found = measured(source, path)
    assert found[Check.DIVERGENCE].status is Status.PASS
    assert found[Check.MTP_HEAD].status is Status.PASS, found[Check.MTP_HEAD].summary
    assert found[Check.MTP_HEAD].data["acceptance"] > 0.3


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("broken", BREAKS)
def test_a_head_that_was_broken_before_the_export(
    name: str, broken: str, exported: Callable[[str], dict[str, Path]], source: Measure, view: ModelView
) -> None:
    """Nothing else is wrong with it: it is stored as declared, and its trunk is as good as the sound one."""
    path = exported(broken)[name]
    assert failed(stored(path, view)) == set()
    found = measured(source, path)
    assert failed(found) == {Check.MTP_HEAD}
    assert "in the source" in found[Check.MTP_HEAD].summary


# --- numbers that are none ----------------------------------------------------------------------------------


def _numbers(path: Path) -> Verdict:
    found = OnDisk(path)
    return check_numbers(layout_of(found).describe(found).numbers())


@pytest.mark.parametrize("name", FORMATS)
def test_every_number_of_what_we_write_is_looked_at(
    name: str, exported: Callable[[str], dict[str, Path]]
) -> None:
    found = _numbers(exported("sound")[name])
    assert found.status is Status.PASS, found.summary
    assert found.data["not_looked_at"] == []


def test_one_scale_that_is_no_number_is_a_failure_and_not_a_gap(
    exported: Callable[[str], dict[str, Path]], source: Measure, tmp_path: Path
) -> None:
    path = tmp_path / "spoiled.gguf"
    data = bytearray(exported("sound")["gguf"].read_bytes())
    entry = read_gguf(exported("sound")["gguf"]).entries["blk.0.ffn_up.weight"]
    data[entry.start + 3 * 34 + 1] = 0x7E  # the fourth block's float16 becomes NaN
    path.write_bytes(data)
    numbers = _numbers(path)
    assert numbers.status is Status.FAIL
    assert "blk.0.ffn_up.weight" in numbers.summary
    assert "block 3," in numbers.summary
    found = measured(source, path)[Check.DIVERGENCE]
    assert found.status is Status.FAIL
    assert "not finite" in found.summary


# --- a head that is listed wrongly, or not at all -----------------------------------------------------------


def _edit(folder: Path, change: Callable[[Config], None], file: str = "config.json") -> None:
    path = folder / file
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def _lists(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Where the modules that are no codes are listed: file, block, key."""
    for file, block, keys in (
        ("config.json", "quantization_config", ("modules_to_not_convert", "ignore")),
        ("hf_quant_config.json", "quantization", ("exclude_modules",)),
    ):
        if (folder / file).is_file():
            inner = json.loads((folder / file).read_text()).get(block, {})
            yield from ((file, block, key) for key in keys if key in inner)


def _relist(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    """What is listed of the head, changed wherever it is listed; the rest stays."""

    def lie(folder: Path) -> None:
        places = list(_lists(folder))
        assert places
        for file, block, key in places:

            def put(value: Config, block: str = block, key: str = key) -> None:
                head = [name for name in value[block][key] if "mtp" in name]
                assert head
                rest = [name for name in value[block][key] if name not in head]
                value[block][key] = rest + change(head)

            _edit(folder, put, file)

    return lie


def _in_one_file_only(folder: Path) -> None:
    def put(value: Config) -> None:
        names = value["quantization"]["exclude_modules"]
        value["quantization"]["exclude_modules"] = [name for name in names if "mtp" not in name]

    _edit(folder, put, "hf_quant_config.json")


def _no_override(folder: Path) -> None:
    """The head's own bits, and its settings taken for the trunk's."""

    def put(value: Config) -> None:
        for block in ("quantization", "quantization_config"):
            for name in [name for name in value[block] if ".mtp." in name]:
                del value[block][name]

    _edit(folder, put)


def _drafter(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-MTP")


def _drafters_bits(folder: Path) -> None:
    _edit(_drafter(folder), lambda value: value["quantization"].update(bits=4))


LISTED_WRONGLY: list[tuple[str, Callable[[Path], None]]] = [
    ("fp8", _relist(lambda names: [])),
    ("fp8", _relist(lambda names: ["fc"])),
    ("fp8", _relist(lambda names: [f"model.{name}" for name in names])),
    ("fp8", _relist(lambda names: [*names, "mtp.layers.0.self_attn.q_proj"])),
    ("fp8-bf16-head", _relist(lambda names: [])),
    ("fp8-bf16-head", _relist(lambda names: ["mtp"])),
    ("fp8-bf16-head", _relist(lambda names: ["mtp.fc"])),
    ("fp8-bf16-head", _relist(lambda names: [f"model.{name}" for name in names])),
    *(
        (name, _relist(change))
        for name in ("fp8-ct", "nvfp4-ct")
        for change in (
            lambda names: [],
            lambda names: ["mtp"],
            lambda names: ["re:.*\\.mtp\\..*"],
            lambda names: ["re:.*mtp\\.layers.*"],
        )
    ),
    ("nvfp4", _relist(lambda names: [])),
    ("nvfp4", _relist(lambda names: ["mtp.fc"])),
    ("nvfp4", _in_one_file_only),
    ("mlx-embedded", _no_override),
    ("mlx-packed-drafter", _drafters_bits),
]


@pytest.fixture
def copied(exported: Callable[[str], dict[str, Path]], tmp_path: Path) -> Callable[[str], Path]:
    """A sound artifact of one's own, and what lies beside it."""

    def get(name: str) -> Path:
        path = exported("sound")[name]
        folder = path.parent if path.is_file() else path
        for each in (folder, _drafter(folder)):
            if each.is_dir():
                shutil.copytree(each, tmp_path / each.name)
        return tmp_path / path.relative_to(folder.parent)

    return get


@pytest.mark.parametrize(("name", "lie"), LISTED_WRONGLY)
def test_a_head_that_is_listed_wrongly(
    name: str, lie: Callable[[Path], None], copied: Callable[[str], Path], view: ModelView
) -> None:
    path = copied(name)
    lie(path)
    found = stored(path, view)
    assert failed(found) == {Check.DECLARED}
    assert any("mtp" in problem for problem in found[Check.DECLARED].data["problems"])


def _count(value: Config, layers: int) -> None:
    for part in (value, value.get("text_config", {})):
        for key in ("mtp_num_hidden_layers", "num_nextn_predict_layers"):
            if key in part:
                part[key] = layers


INSIDE = [name for name in FOLDERS if not name.startswith("mlx") or name == "mlx-embedded"]


@pytest.mark.parametrize("name", INSIDE)
def test_a_head_that_is_not_declared(name: str, copied: Callable[[str], Path], view: ModelView) -> None:
    path = copied(name)
    _edit(path, lambda value: _count(value, 0))
    assert failed(stored(path, view)) == {Check.MTP_DECLARED}


# --- a head that is missing --------------------------------------------------------------------------------


def _drop(folder: Path, *, only: str = "mtp.") -> None:
    """The tensors with this in their name are gone, from files and index."""
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        tensors = load_file(file)
        kept = {name: tensor for name, tensor in tensors.items() if only not in name}
        if len(kept) < len(tensors):
            file.unlink()
            if kept:
                save_file(kept, file, metadata=metadata)
    if (folder / "model.safetensors.index.json").is_file():

        def put(value: Config) -> None:
            value["weight_map"] = {n: f for n, f in value["weight_map"].items() if only not in n}

        _edit(folder, put, "model.safetensors.index.json")


DECLARED_INSIDE = [*INSIDE, "mlx-mtplx"]


@pytest.mark.parametrize("name", DECLARED_INSIDE)
def test_a_head_that_is_declared_and_missing(
    name: str, copied: Callable[[str], Path], source: Measure, view: ModelView
) -> None:
    path = copied(name)
    _drop(path)
    assert failed(stored(path, view)) == {Check.MTP_DECLARED}
    assert failed(measured(source, path)) == {Check.MTP_HEAD}


@pytest.mark.parametrize("name", DECLARED_INSIDE)
def test_a_head_that_is_missing_and_not_declared(
    name: str, copied: Callable[[str], Path], source: Measure, view: ModelView
) -> None:
    """The folder agrees with itself; only beside its source does it show."""
    path = copied(name)
    _drop(path)
    _edit(path, lambda value: _count(value, 0))
    assert failed(stored(path, view)) == set()
    found = measured(source, path)
    assert failed(found) == {Check.MTP_HEAD}
    assert found[Check.MTP_HEAD].summary == "the source has an MTP head, the artifact has none"


@pytest.mark.parametrize("name", DECLARED_INSIDE)
def test_a_head_of_which_one_matrix_is_missing(
    name: str, copied: Callable[[str], Path], view: ModelView
) -> None:
    path = copied(name)
    _drop(path, only="mtp.fc.")
    found = stored(path, view)
    assert failed(found) == {Check.TENSORS}
    assert found[Check.TENSORS].data["problems"] == ["mtp.fc.weight is missing"]


def _gone(folder: Path) -> None:
    shutil.rmtree(_drafter(folder))


def _renamed(folder: Path) -> None:
    _drafter(folder).rename(folder.with_name("Drafter"))


@pytest.mark.parametrize("name", ["mlx", "mlx-packed-drafter"])
@pytest.mark.parametrize("lose", [_gone, _renamed], ids=lambda lose: lose.__name__)
def test_a_drafter_that_is_missing(
    name: str, lose: Callable[[Path], None], copied: Callable[[str], Path], source: Measure, view: ModelView
) -> None:
    path = copied(name)
    lose(path)
    assert failed(stored(path, view)) == set()
    assert failed(measured(source, path)) == {Check.MTP_HEAD}
    # As mlx-lm leaves it: the trunk alone, whose config still promises a head.
    _edit(path, lambda value: _count(value, 1))
    assert failed(stored(path, view)) == {Check.MTP_DECLARED}


@pytest.mark.parametrize("only", ["fc.", "self_attn.q_norm"])
def test_a_drafter_without_one_tensor(only: str, copied: Callable[[str], Path], view: ModelView) -> None:
    path = copied("mlx")
    _drop(_drafter(path), only=only)
    assert failed(stored(path, view)) == {Check.TENSORS}


def test_a_gguf_whose_head_is_not_found(copied: Callable[[str], Path], view: ModelView) -> None:
    """Its tensors under names that nobody asks for, and metadata that promises them."""
    path = copied("gguf")
    data = path.read_bytes()
    assert b".nextn.eh_proj" in data
    path.write_bytes(data.replace(b".nextn.", b".nextm."))
    assert failed(stored(path, view)) == {Check.TENSORS, Check.MTP_DECLARED}


def test_a_gguf_that_does_not_declare_its_head(copied: Callable[[str], Path], view: ModelView) -> None:
    path = copied("gguf")
    key = b".nextn_predict_layers"
    data = path.read_bytes()
    at = data.index(key) + len(key) + 4  # a number of the file's own, after its type
    assert data[at : at + 4] == (1).to_bytes(4, "little")
    path.write_bytes(data[:at] + bytes(4) + data[at + 4 :])
    assert failed(stored(path, view)) == {Check.MTP_DECLARED}


def test_a_gguf_without_a_head(source: Measure, tmp_path: Path) -> None:
    diagnosis = diagnose(LocalCheckpoint(MODEL), mtp="drop")
    target = Target(GgufOptions(("Q8_0",), no_mmproj=True), tmp_path, verify=None)
    (item,) = steps.write(plan([target], diagnosis), diagnosis, threads=2)
    assert failed(measured(source, item.path)) == {Check.MTP_HEAD}


def _nothing_run(target: Target, items: Sequence[Item], *_: object) -> list[Item]:
    """Reports without a runtime having run."""
    return [replace(item, report=Verification(item.name)) for item in items]


def test_a_head_that_was_not_asked_for_is_not_missed(
    source: Measure, view: ModelView, tmp_path: Path
) -> None:
    """``--mtp-layout none``: no failure of the export; of a folder that was found somewhere it is one."""
    target = Target(MlxOptions(bits=6, mtp=("none",)), tmp_path / "out", verify=None)
    diagnosis = _diagnosis(MODEL)
    (item,) = steps.write(plan([target], diagnosis), diagnosis, threads=2)
    (proven,), _ = steps.prove([item], diagnosis, measure=TOKENS, run=_nothing_run)
    assert proven.report is not None
    assert proven.report.finding(Check.MTP_HEAD) is None
    assert not proven.report.failures
    assert failed(stored(item.path, view)) == set()
    assert failed(measured(source, item.path)) == {Check.MTP_HEAD}
