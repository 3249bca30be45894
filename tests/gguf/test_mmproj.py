"""The vision tower's own file: the converter's bytes, and what the program makes of it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
from oracle import make_golden
from oracle.summary import compare, source_digest, summarize

import qexport
from qexport.checkpoint.opening import open_checkpoint
from qexport.container.gguf_file import read_gguf
from qexport.doctor.diagnose import diagnose
from qexport.errors import InputError, UsageProblem
from qexport.formats.gguf.file_name import found_by_tag, is_model_name
from qexport.formats.gguf.mmproj import TYPES, plan_mmproj, sight_notes
from qexport.formats.gguf.options import GgufOptions
from qexport.onepass.execute import execute
from qexport.recipe.select import units_of
from qexport.run.in_folder import artifacts_in, refuse_tower
from qexport.run.job import plan_run, run
from qexport.run.local import Local
from qexport.run.watcher import Watcher


def view_of(folder, **options):
    return diagnose(open_checkpoint(str(folder)), **options).repaired.view()


def written(view, out, types):
    plans = plan_mmproj(view, GgufOptions(mmproj=tuple(types)))
    execute(plans, out)
    return {plan.details["file_type"]: out / plan.files[0].name for plan in plans}


@pytest.mark.parametrize("name", make_golden.MMPROJ)
def test_files_are_the_converter_s_byte_for_byte(zoo, tmp_path, name):
    folder = zoo(name, **make_golden.MMPROJ[name])
    files = written(view_of(folder), tmp_path, TYPES)
    assert sorted(files) == sorted(make_golden.TOWER_TYPES)
    for kind, path in files.items():
        golden = json.loads((make_golden.TOWERS / name / f"{kind}.json").read_text())
        assert source_digest(folder) == golden["source"]
        assert compare(path, golden) == [], kind
        assert list(summarize(path)["kv"]) == list(golden["kv"]), kind
        assert hashlib.sha256(path.read_bytes()).hexdigest() == golden["sha256"], kind


def test_a_grafted_tower_is_the_base_s(zoo, tmp_path):
    base, merged = zoo("qwen3_5"), zoo("qwen3_5_text")
    view = view_of(merged, vision_from=open_checkpoint(str(base)))
    (mine,) = written(view, tmp_path / "mine", ["BF16"]).values()
    (theirs,) = written(view_of(base), tmp_path / "theirs", ["BF16"]).values()
    assert summarize(mine)["tensors"] == summarize(theirs)["tensors"]
    assert read_gguf(mine).architecture == "clip"


def test_what_is_asked_for(zoo):
    view = view_of(zoo("qwen3_5"))

    def labels(**options):
        return [plan.label for plan in plan_mmproj(view, GgufOptions(**options))]

    assert labels() == ["mmproj-BF16"]
    assert labels(mmproj=("q8_0", "f16", "F16")) == ["mmproj-Q8_0", "mmproj-F16"]
    assert labels(no_mmproj=True) == []
    with pytest.raises(UsageProblem, match="stored as F32, F16, BF16, Q8_0"):
        labels(mmproj=("Q4_K_M",))
    text = view_of(zoo("qwen3_5_text"))
    assert plan_mmproj(text, GgufOptions()) == ()
    assert sight_notes(text, GgufOptions()) == []
    with pytest.raises(UsageProblem, match="has no vision tower"):
        plan_mmproj(text, GgufOptions(mmproj=("BF16",)))


def test_the_note_says_where_the_tower_is(zoo):
    view = view_of(zoo("qwen3_5"))
    (note,) = sight_notes(view, GgufOptions(mmproj=("BF16", "Q8_0")))
    assert "goes into mmproj-BF16.gguf and mmproj-Q8_0.gguf" in note
    (note,) = sight_notes(view, GgufOptions(no_mmproj=True))
    assert "is left out" in note


def test_what_llama_cpp_cannot_have(zoo_copy):
    folder = zoo_copy("qwen3_5")
    (folder / "preprocessor_config.json").unlink()
    view = view_of(folder)
    assert plan_mmproj(view, GgufOptions()) == ()
    (note,) = sight_notes(view, GgufOptions())
    assert "the file takes text alone; no mmproj file can be written: there is no preprocessor_config" in note
    with pytest.raises(InputError, match="image_mean and image_std"):
        plan_mmproj(view, GgufOptions(mmproj=("BF16",)))
    (folder / "processor_config.json").write_text(
        json.dumps({"image_processor": {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}})
    )
    (plan,) = plan_mmproj(view_of(folder), GgufOptions())
    assert plan.label == "mmproj-BF16"
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "silu"
    (folder / "config.json").write_text(json.dumps(config))
    assert "llama.cpp has GELU" in sight_notes(view_of(folder), GgufOptions())[0]


def test_readers_take_it_for_what_it_is():
    assert not is_model_name("mmproj-BF16.gguf")
    assert found_by_tag(["mmproj-BF16.gguf", "Tuned-BF16.gguf"], "BF16") == "Tuned-BF16.gguf"


class Told(Watcher):
    def __init__(self):
        self.lines = []

    def say(self, message):
        self.lines.append(message)


def test_it_is_written_from_the_same_read_and_is_no_model_by_itself(zoo, tmp_path):
    recipe = qexport.recipe_for(zoo("qwen3_5"), [GgufOptions(types=("Q8_0",))], name="Tiny", proven=False)
    told, local = Told(), Local(out=tmp_path)
    outcome = run(recipe, local, told)
    (folder,) = {item.folder for item in outcome.artifacts}
    assert {path.name for path in folder.glob("*.gguf")} == {"Tiny-Q8_0.gguf", "mmproj-BF16.gguf"}
    receipt = json.loads((folder / "qexport.json").read_text())
    assert {(a["kind"], a["label"]) for a in receipt["artifacts"]} == {
        ("gguf", "Q8_0"),
        ("mmproj", "mmproj-BF16"),
    }
    assert outcome.problem is None
    assert [found.name for found in artifacts_in(folder)] == ["Tiny-Q8_0.gguf"]
    tower = (folder / "mmproj-BF16.gguf").rename(folder / "tower.gguf")
    with pytest.raises(UsageProblem, match=r"tower\.gguf is a vision tower"):
        refuse_tower(tower)
    tower.rename(folder / "mmproj-BF16.gguf")
    refuse_tower(folder / "Tiny-Q8_0.gguf")
    before = (folder / "mmproj-BF16.gguf").stat().st_mtime_ns
    run(recipe, local, told)
    assert (folder / "mmproj-BF16.gguf").stat().st_mtime_ns == before
    assert "mmproj-BF16.gguf is there, from the same source and options" in told.lines


def test_files_of_a_later_run_use_the_same(zoo, tmp_path):
    """Another type beside the first, or two entries in one folder: the tower is written once."""
    folder = zoo("qwen3_5")
    for kind in ("Q8_0", "F16"):
        formats = [GgufOptions(types=(kind,))]
        run(qexport.recipe_for(folder, formats, name="Tiny", proven=False), Local(out=tmp_path))
    both = [GgufOptions(types=("Q8_0",)), GgufOptions(types=("F16",), mmproj=("BF16", "Q8_0"))]
    recipe = qexport.recipe_for(folder, both, name="Two", proven=False)
    items = plan_run(recipe, Local(out=tmp_path), Watcher(), units_of(recipe))[0].items
    assert [item.plan.label for item in items] == ["Q8_0", "mmproj-BF16", "F16", "mmproj-Q8_0"]


SEE = """
import base64, json, struct, sys, zlib
import xllamacpp
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
head = struct.pack(">IIBBBBB", 128, 128, 8, 2, 0, 0, 0)
rows = zlib.compress(b"".join(bytes([0, *[255, 0, 0] * 128]) for _ in range(128)))
png = bytes([137]) + b"PNG" + bytes([13, 10, 26, 10])
png += chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
params = xllamacpp.CommonParams()
params.model.path, params.mmproj.path = sys.argv[1:3]
params.n_ctx, params.cpuparams.n_threads = 512, 1
server = xllamacpp.Server(params)
url = "data:image/png;base64," + base64.b64encode(png).decode()
text = {"type": "text", "text": "hi"}
image = {"type": "image_url", "image_url": {"url": url}}
for content in ([text], [image, text]):
    asked = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
    print("prompt:", server.handle_chat_completions(asked)["usage"]["prompt_tokens"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_vl"])
def test_llama_cpp_sees_with_it(zoo, tmp_path, name):
    """A picture of 128 by 128 is 16 tokens between two that say where it begins and ends."""
    recipe = qexport.recipe_for(zoo(name), [GgufOptions(types=("Q8_0",))], name="Tiny", proven=False)
    (folder,) = {item.folder for item in run(recipe, Local(out=tmp_path)).artifacts}
    script = tmp_path / "see.py"
    script.write_text(SEE)
    words = [sys.executable, script, folder / "Tiny-Q8_0.gguf", folder / "mmproj-BF16.gguf"]
    ran = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=300, check=False)
    lines = [line for line in ran.stdout.splitlines() if line.startswith("prompt:")]
    assert len(lines) == 2, ran.stderr[-2000:]
    without, seeing = (int(line.split()[1]) for line in lines)
    assert seeing == without + 18
