"""What is seen: pictures, their preparation, towers in llama.cpp and in folders, faults planted into them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from qexport.artifacts.layout import OnDisk
from qexport.checkpoint.opening import open_checkpoint
from qexport.children.failure import Failure, RuntimeFailure
from qexport.container.gguf_file import read_gguf
from qexport.doctor.diagnose import diagnose
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.opening import layout_of
from qexport.formats.registry import FORMATS
from qexport.onepass.execute import execute
from qexport.publishing.card import CardOptions, render_card
from qexport.receipt.tables import IMAGES
from qexport.receipt.types import Artifact, File, Source
from qexport.receipt.verification import OF_IMAGES, Check, Status, Verdict, Verification
from qexport.receipt.words import glossary
from qexport.verification.images import images_for, judge_embeddings, judge_frames
from qexport.verification.options import VerifyOptions
from qexport.verification.pictures import Picture, png
from qexport.verification.reference import reference_from_view
from qexport.verification.run import verify
from qexport.verification.runtime import Settings
from qexport.verification.runtimes import Xllamacpp
from qexport.verification.sight import PICTURES, Seen, SourceSight, optics

SETTINGS = Settings(threads=1, time_limit=120)
PICTURE = 2_489_625_406
KINDS = ("weight", "bias")
FRAMES = ("v.patch_embd.weight", "v.patch_embd.weight.1")


def view_of(folder):
    return diagnose(open_checkpoint(str(folder))).repaired.view()


@pytest.fixture(scope="module")
def seeing(zoo, tmp_path_factory):
    """A view, its GGUF in BF16 with all kinds of towers beside it, and what its source makes of pictures."""
    return made_of(zoo("qwen3_5"), tmp_path_factory.mktemp("seeing"), "F32", "F16", "BF16", "Q8_0")


@pytest.fixture(scope="module")
def deepstacked(zoo, tmp_path_factory):
    """The same of a model into whose first layers two of the tower's blocks go, with one tower."""
    return made_of(zoo("qwen3_vl"), tmp_path_factory.mktemp("deepstacked"), "F16")


def made_of(source, out, *towers):
    from qexport.formats.gguf.mmproj import plan_mmproj
    from qexport.formats.gguf.plan import plan_gguf

    view, options = view_of(source), GgufOptions(types=("BF16",), mmproj=towers)
    execute([*plan_gguf(view, options.types, options), *plan_mmproj(view, options)], out)
    return view, out, SourceSight(view)


def model_of(folder):
    (found,) = (path for path in folder.glob("*.gguf") if "mmproj" not in path.name)
    return found


def rows_of(model, tower, sight):
    """What llama.cpp's own encoder makes of the pictures."""
    with Xllamacpp().open_tower(model, replace(SETTINGS, projector=tower)) as session:
        return [session.embed(Seen(picture.pixels(sight.optics.side), {})) for picture in PICTURES]


def judged(folder, tower, sight):
    rows = {tower.name: rows_of(model_of(folder), tower, sight)}
    return judge_embeddings(rows, sight.embeddings, {tower.name: 0.014})


def test_pictures_are_the_same_bytes_everywhere():
    import zlib

    pixels = Picture("7", "blue", "yellow", x=0.55, y=0.45).pixels(64)
    assert pixels.shape == (64, 64, 3)
    assert zlib.crc32(pixels.tobytes()) == PICTURE
    assert {tuple(map(int, colour)) for colour in pixels.reshape(-1, 3)} == {(38, 84, 200), (240, 200, 8)}
    file = png(pixels)
    assert file[:8] == b"\x89PNG\r\n\x1a\n"
    start = file.index(b"IDAT") + 4
    rows = zlib.decompress(file[start : start + int.from_bytes(file[start - 8 : start - 4], "big")])
    assert rows == b"".join(b"\0" + row.tobytes() for row in pixels)


def test_a_picture_is_prepared_as_transformers_processor_does(zoo):
    """Its class needs Pillow even to be imported; what it does to pixels does not."""
    view = view_of(zoo("qwen3_5"))
    found = replace(optics(view), mean=(0.5, 0.4, 0.3), deviation=(0.2, 0.5, 0.6))
    pixels = PICTURES[0].pixels(found.side)
    mine = found.prepare(pixels)
    theirs = by_transformers(pixels, found)
    assert mine["image_grid_thw"].tolist() == theirs["image_grid_thw"].tolist()
    np.testing.assert_allclose(mine["pixel_values"], theirs["pixel_values"], atol=1e-6)


PROCESSOR = """
import json, sys
import numpy as np
try:
    import PIL
except ImportError:
    from enum import IntEnum
    import transformers.image_utils as utils
    utils.PILImageResampling = IntEnum("PILImageResampling", ["BOX", "BILINEAR", "BICUBIC", "LANCZOS"])
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
given = json.load(sys.stdin)
cut = Qwen2VLImageProcessorPil._preprocess
made = object.__new__(Qwen2VLImageProcessorPil)
image = np.array(given.pop("pixels"), dtype=np.uint8).transpose(2, 0, 1)
found = cut(made, [image], do_resize=False, size=None, resample=None, do_rescale=True, do_normalize=True,
            rescale_factor=1 / 255, return_tensors="np", **given)
print(json.dumps({name: values.tolist() for name, values in found.items()}))
"""


def by_transformers(pixels, found):
    """In a process of its own, whose transformers is told of an enumeration that it lacks without Pillow."""
    given = {"image_mean": found.mean, "image_std": found.deviation, "patch_size": found.patch}
    given |= {"temporal_patch_size": found.frames, "merge_size": found.merge, "pixels": pixels.tolist()}
    ran = subprocess.run(
        [sys.executable, "-c", PROCESSOR],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return {name: np.array(values) for name, values in json.loads(ran.stdout.splitlines()[-1]).items()}


def test_every_type_of_tower_makes_what_the_source_makes(seeing):
    _, folder, sight = seeing
    for kind, most in (("F32", 0.005), ("F16", 0.005), ("BF16", 0.014), ("Q8_0", 0.042)):
        found = judged(folder, folder / f"mmproj-{kind}.gguf", sight)
        (figures,) = found.data["towers"].values()
        assert figures["error"] < most, kind


def rewritten(tower, out, change):
    """A copy of the file whose tensors ``change`` has had its way with: name to bytes."""
    raw = bytearray(tower.read_bytes())
    entries = read_gguf(tower).entries
    before = {name: bytes(raw[each.start : each.stop]) for name, each in entries.items()}
    for name, data in change(before, {name: each.shape for name, each in entries.items()}).items():
        raw[entries[name].start : entries[name].stop] = data
    path = out / tower.name
    path.write_bytes(raw)
    return path


def of_blue_green_red(tensors, shapes):
    def turn(name):
        values = np.frombuffer(tensors[name], "<f4").reshape(shapes[name])
        return values[:, ::-1].tobytes()

    return {name: turn(name) for name in FRAMES}


def without_a_block(tensors, _):
    parts = ("attn_out", "ffn_down")
    names = [f"v.blk.1.{part}.{kind}" for part in parts for kind in KINDS]
    return {name: bytes(len(tensors[name])) for name in names}


def with_shifted_positions(tensors, shapes):
    name = "v.position_embd.weight"
    return {name: np.roll(np.frombuffer(tensors[name], "<f4").reshape(shapes[name]), 1, axis=0).tobytes()}


def frames_exchanged(tensors, _):
    return {FRAMES[0]: tensors[FRAMES[1]], FRAMES[1]: tensors[FRAMES[0]]}


@pytest.mark.parametrize("fault", [of_blue_green_red, without_a_block, with_shifted_positions])
def test_a_fault_in_the_tower_is_seen_in_what_it_makes(seeing, tmp_path, fault):
    _, folder, sight = seeing
    broken = rewritten(folder / "mmproj-BF16.gguf", tmp_path, fault)
    found = judged(folder, broken, sight)
    assert found.status is Status.FAIL
    assert "at most 1.4% expected" in found.summary


def without_a_deepstack_layer(tensors, _):
    return {f"v.deepstack.3.fc2.{kind}": bytes(len(tensors[f"v.deepstack.3.fc2.{kind}"])) for kind in KINDS}


def deepstack_layers_exchanged(tensors, _):
    stems = [f"{part}.{kind}" for part in ("norm", "fc1", "fc2") for kind in KINDS]
    return {
        f"v.deepstack.{one}.{stem}": tensors[f"v.deepstack.{other}.{stem}"]
        for one, other in ((1, 3), (3, 1))
        for stem in stems
    }


@pytest.mark.parametrize("fault", [without_a_deepstack_layer, deepstack_layers_exchanged])
def test_a_missing_deepstack_layer_is_seen(deepstacked, tmp_path, fault):
    _, folder, sight = deepstacked
    tower = folder / "mmproj-F16.gguf"
    sound = judged(folder, tower, sight)
    assert sound.status is Status.PASS
    assert sound.data["towers"][tower.name]["error"] < 0.005
    rows = {tower.name: rows_of(model_of(folder), rewritten(tower, tmp_path, fault), sight)}
    assert judge_embeddings(rows, sight.embeddings, {tower.name: 0.1}).status is Status.FAIL


def test_a_model_file_that_takes_no_deepstack_is_refused_with_the_tower(deepstacked, zoo):
    """As made by a converter that knew nothing of it: rows are three times too wide for that model."""
    from qexport.formats.gguf.plan import plan_gguf

    view, folder, sight = deepstacked
    text = replace(view, config={**view.config, "vision_config": None}, vision=None)
    blind = folder / "blind"
    execute(plan_gguf(text, ("BF16",), GgufOptions(types=("BF16",))), blind)
    with pytest.raises(RuntimeFailure) as caught:
        rows_of(model_of(blind), folder / "mmproj-F16.gguf", sight)
    assert caught.value.kind in (Failure.REFUSED, Failure.DIED)


@pytest.mark.parametrize("changed", [{"image_mean": [0.4, 0.5, 0.5]}, {"image_std": [0.5, 0.5, 0.3]}])
def test_another_mean_or_deviation_is_seen(seeing, tmp_path, changed):
    from qexport.formats.gguf.mmproj import plan_mmproj

    view, folder, sight = seeing
    name = "preprocessor_config.json"
    files = {**view.files, name: json.dumps(json.loads(view.files[name]) | changed).encode()}
    execute(plan_mmproj(replace(view, files=files), GgufOptions(mmproj=("F32",))), tmp_path)
    assert judged(folder, tmp_path / "mmproj-F32.gguf", sight).status is Status.FAIL


def test_frames_in_another_order_are_seen_in_the_file(seeing, tmp_path):
    """A picture is both frames, so that nothing shows in what the tower makes of it."""
    _, folder, sight = seeing
    towers = [folder / f"mmproj-{kind}.gguf" for kind in ("F32", "F16", "BF16", "Q8_0")]
    assert judge_frames(towers, sight.frames).status is Status.PASS
    broken = rewritten(folder / "mmproj-BF16.gguf", tmp_path, frames_exchanged)
    assert judged(folder, broken, sight).status is Status.PASS
    found = judge_frames([broken], sight.frames)
    assert found.status is Status.FAIL
    assert found.summary == "mmproj-BF16.gguf: v.patch_embd.weight is not the source's"


def test_rows_of_another_size_fail():
    rows = np.ones((4, 8), dtype=np.float32)
    found = judge_embeddings({"x": [rows]}, [np.ones((4, 6), dtype=np.float32)], {"x": 1.0})
    assert found.status is Status.FAIL
    assert found.summary == "x makes 4 rows of 8 numbers, the source 4 rows of 6 numbers"
    nan = judge_embeddings({"x": [rows * np.nan]}, [rows], {"x": 1.0})
    assert nan.status is Status.FAIL


def test_a_tower_of_another_model_is_refused(seeing, zoo, tmp_path):
    from qexport.formats.gguf.mmproj import plan_mmproj

    _, folder, sight = seeing
    execute(plan_mmproj(view_of(zoo("qwen3_5_tied")), GgufOptions()), tmp_path)
    with pytest.raises(RuntimeFailure) as caught:
        rows_of(model_of(folder), tmp_path / "mmproj-BF16.gguf", sight)
    assert caught.value.kind in (Failure.REFUSED, Failure.DIED)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ((), ""),
        ((("loads", Status.PASS, ""),), ""),
        ((("image_loads", Status.PASS, ""),), "not run"),
        ((("image_embeddings", Status.PASS, ""), ("image_text", Status.PASS, "")), "passed"),
        ((("image_embeddings", Status.FAIL, ""), ("image_text", Status.PASS, "")), "failed"),
        ((("image_embeddings", Status.PASS, ""), ("image_text", Status.SKIPPED, "why")), "not run: why"),
    ],
)
def test_images_in_a_word_for_receipts_and_cards(found, words):
    report = Verification(findings=tuple(Verdict(Check(name), *more) for name, *more in found))
    assert report.images == words
    assert report.to_json().get("images", "") == words
    artifact = Artifact("gguf", "Q8_0", (File("x-Q8_0.gguf", 1, 64 * "0"),), verification=report)
    assert IMAGES.value(artifact) == words.partition(":")[0]
    assert ("Images" in glossary([artifact])) == bool(words)


def test_a_card_says_how_pictures_are_shown():
    made = [
        Artifact("gguf", "Q8_0", (File("x-Q8_0.gguf", 1, 64 * "0"),)),
        Artifact("mmproj", "mmproj-BF16", (File("mmproj-BF16.gguf", 1, 64 * "0"),)),
    ]
    card = render_card(made, CardOptions("bob/x-GGUF"))
    assert "hf download bob/x-GGUF x-Q8_0.gguf mmproj-BF16.gguf --local-dir ." in card
    assert "llama-mtmd-cli -m x-Q8_0.gguf --mmproj mmproj-BF16.gguf --image PICTURE.png -p " in card
    assert "mtmd" not in render_card(made[:1], CardOptions("bob/x-GGUF"))
    folder = Artifact(
        "fp8", "FP8", (File("model.safetensors", 1, 64 * "0"),), source=Source("bob/x", vision=True)
    )
    card = render_card([folder], CardOptions("bob/x-FP8"))
    assert '"image_url": {"url": "https://example.org/PICTURE.png"}' in card
    assert 'pipeline("image-text-to-text", "bob/x-FP8")' in card


CHEAP = VerifyOptions(n_predict=12, threads=1, context=512, time_limit=120)


def found_of(report):
    return {finding.check: finding for finding in report.findings if finding.check in OF_IMAGES}


@pytest.mark.slow
def test_a_file_and_its_towers_are_verified_with_pictures(seeing, tmp_path):
    """Text with a picture, drafted, too; every tower's embeddings; and a tower that is not the source's."""
    view, folder, _ = seeing
    model = model_of(folder)
    reference = reference_from_view(view)
    found = found_of(verify(model, view=view, options=CHEAP, reference=reference))
    assert set(found) == set(OF_IMAGES)
    assert {each.status for each in found.values()} == {Status.PASS}
    assert set(found[Check.IMAGE_EMBEDDINGS].data["towers"]) == {p.name for p in folder.glob("mmproj*")}
    assert found[Check.IMAGE_MTP].data["drafted"] > 0
    assert found[Check.IMAGE_TEXT].data["tokens"] == 24

    alone = shutil.copy(model, tmp_path)
    (only,) = found_of(verify(Path(alone), view=view, options=CHEAP, reference=reference)).values()
    assert (only.check, only.status) == (Check.IMAGE_LOADS, Status.SKIPPED)
    assert only.summary.endswith("no file of one is beside this one: it takes text alone")
    assert Verification(findings=(only,)).images == f"text alone: {only.summary}"

    rewritten(folder / "mmproj-F32.gguf", tmp_path, of_blue_green_red)
    report = verify(Path(alone), view=view, options=CHEAP, reference=reference)
    assert report.verdict.startswith("failed: ")
    assert {Check.IMAGE_FRAMES, Check.IMAGE_EMBEDDINGS} <= {each.check for each in report.failures}

    (tmp_path / "mmproj-F32.gguf").write_bytes(b"GGUF, but no more than that")
    report = verify(Path(alone), view=view, options=CHEAP, reference=reference)
    assert report.verdict == "failed: image_loads"  # the model is not blamed
    assert report.finding(Check.LOADS).status is Status.PASS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_vl_moe"])
def test_deepstack_goes_through_the_whole_proof(zoo, tmp_path, name):
    """The reference of text is Qwen3, which is lent to Qwen3-VL for pictures."""
    folder = tmp_path
    view, _, _ = made_of(zoo(name), folder, "BF16")
    found = found_of(verify(model_of(folder), view=view, options=CHEAP))
    assert set(found) == {check for check in OF_IMAGES if check is not Check.IMAGE_MTP}
    assert {each.status for each in found.values()} == {Status.PASS}
    assert found[Check.IMAGE_TEXT].data["tokens"] == 24


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "broken"),
    [("qwen3_5", "blocks.1.attn.proj.weight"), ("qwen3_vl", "deepstack_merger_list.1.linear_fc2.weight")],
)
def test_a_folder_is_verified_with_pictures(zoo, tmp_path, name, broken):
    """transformers loads the tower from the folder: its numbers are the source's, or it is said."""
    view = view_of(zoo(name))
    folder, reference = tmp_path / "fp8", reference_from_view(view)
    execute(FORMATS["fp8"].plan(diagnose(open_checkpoint(str(zoo(name)))), Fp8Options()), folder)

    def found():
        return found_of(verify(folder, view=view, options=CHEAP, reference=reference))

    sound = found()
    assert sound[Check.IMAGE_EMBEDDINGS].status is Status.PASS
    assert sound[Check.IMAGE_EMBEDDINGS].data["towers"]["fp8"]["error"] < 1e-4
    assert Check.IMAGE_TEXT in sound
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    tensors[f"model.visual.{broken}"] *= 0
    save_file(tensors, weights, metadata={"format": "pt"})
    assert found()[Check.IMAGE_EMBEDDINGS].status is Status.FAIL


def test_a_folder_is_shown_pictures_by_its_own_processor(zoo, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(zoo("qwen3_5"), folder, copy_function=shutil.copyfile)
    view, config = view_of(zoo("qwen3_5")), folder / "preprocessor_config.json"

    def shown():
        found = OnDisk(folder)
        return images_for(layout_of(found).describe(found), view, CHEAP)

    before = shown().shown[0].inputs["pixel_values"]
    np.testing.assert_array_equal(before, optics(view).prepare(shown().shown[0].pixels)["pixel_values"])
    config.write_text(json.dumps(json.loads(config.read_text()) | {"image_mean": [0.4, 0.5, 0.5]}))
    assert abs(shown().shown[0].inputs["pixel_values"] - before).max() > 0.1
    config.unlink()
    assert shown().status is Status.SKIPPED
    assert shown().summary == "no preprocessor_config.json gives image_mean and image_std"
