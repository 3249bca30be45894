"""No way of writing over what is read, and no artifact of a source that changed meanwhile."""

import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from qexport.checkpoint.local import LocalCheckpoint
from qexport.checkpoint.opening import open_checkpoint
from qexport.cli.main import cli
from qexport.doctor.diagnose import diagnose
from qexport.errors import InputError, UsageProblem
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.merged.format import MergedOptions
from qexport.onepass.disk import make_folder
from qexport.onepass.files import replace_file
from qexport.onepass.ledger import Ledger
from qexport.onepass.sources import Sources
from qexport.run import imatrix as matrix_module
from qexport.run import steps
from qexport.run.target import Target, plan


def contents(*folders):
    return {
        path: (path.read_bytes(), path.stat().st_ino)
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }


def run(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def spellings(source, elsewhere):
    """Ways to name a folder, or a place in it."""
    link, part = elsewhere / "link", elsewhere / "sub"
    link.symlink_to(source)
    part.mkdir()
    (part / "deep").symlink_to(source / "inner", target_is_directory=True)
    return {
        "itself": source,
        "relative": Path(os.path.relpath(source)),
        "dots": source / ".." / source.name / ".",
        "link": link,
        "below": source / "new" / "folder",
        "below a link": link / "new",
        "a folder of it by a link": part / "deep",
    }


WAYS = ("itself", "relative", "dots", "link", "below", "below a link", "a folder of it by a link")
COMMANDS = {
    "gguf": ("-q", "Q8_0", "--no-verify"),
    "mlx": ("--no-verify",),
    "fp8": ("--no-verify",),
    "nvfp4": ("--no-verify",),
    "fix": (),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("command", [*COMMANDS, "imatrix"])
def test_no_command_writes_into_its_model(zoo_copy, tmp_path, command, way):
    source = zoo_copy("qwen3")
    (source / "inner").mkdir()
    (source / "inner" / "notes.txt").write_text("mine")
    out, before = spellings(source, tmp_path)[way], contents(source)
    if command == "imatrix":
        words = (source, "-o", out / "model.safetensors", "--calib-tokens", 64, "--calib-chunk", 32)
    else:
        words = (source, "-o", out, *COMMANDS[command])
    for more in ((), ("--dry-run",)) if way == "itself" else ((),):
        result = run(command, *words, "--overwrite", *more)
        assert isinstance(result.exception, UsageProblem), (result.output, result.exception)
        assert "which is read from" in result.exception.message
    assert contents(source) == before
    assert not (source / "new").exists()


@pytest.mark.parametrize("kind", ["link", "hardlink"])
@pytest.mark.parametrize("name", ["config.json", ".config.json.part"])
def test_names_that_are_files_of_the_model(zoo_copy, tmp_path, kind, name):
    source, out = zoo_copy("qwen3"), tmp_path / "out"
    out.mkdir()
    (out / name).symlink_to(source / "config.json") if kind == "link" else (out / name).hardlink_to(
        source / "config.json"
    )
    before = contents(source)
    result = run("fp8", source, "-o", out, "--overwrite", "--no-verify")
    assert isinstance(result.exception, UsageProblem)
    assert "config.json, which is read from" in result.exception.message
    assert contents(source) == before


def test_a_folder_of_the_output_that_leads_into_the_model_or_away(zoo_copy, tmp_path):
    source, out, away = zoo_copy("qwen3"), tmp_path / "out", tmp_path / "away"
    for folder in (source / "additional_chat_templates", out, away):
        folder.mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    for target in (source / "additional_chat_templates", away):
        (out / "additional_chat_templates").symlink_to(target)
        result = run("fp8", source, "-o", out, "--overwrite", "--no-verify")
        assert isinstance(result.exception, UsageProblem), (result.output, result.exception)
        (out / "additional_chat_templates").unlink()
    assert list(away.iterdir()) == []


def test_the_base_of_the_head_is_a_source(zoo_copy):
    source, base = zoo_copy("qwen3_5", mtp=False), zoo_copy("qwen3_5")
    before = contents(source, base)
    for command, words in COMMANDS.items():
        for out in (base, base / "new"):
            result = run(command, source, "--mtp-from", base, "-o", out, *words, "--overwrite")
            assert isinstance(result.exception, UsageProblem), (command, result.output, result.exception)
    assert contents(source, base) == before


def test_corpora_and_matrices_are_sources(zoo_copy, tmp_path, monkeypatch):
    source = zoo_copy("qwen3")
    corpus, matrix = tmp_path / "corpus.txt", tmp_path / "m.gguf"
    corpus.write_text("the quick brown fox " * 200)
    few = ("--calib-tokens", 64, "--calib-chunk", 32)
    assert run("imatrix", source, "-o", matrix, "--corpus", corpus, *few).exit_code == 0
    before = corpus.read_bytes(), matrix.read_bytes()
    (tmp_path / "link.gguf").hardlink_to(corpus)
    for words in (
        ("imatrix", source, "-o", corpus, "--corpus", corpus, *few),
        ("imatrix", source, "-o", tmp_path / "link.gguf", "--corpus", corpus, *few),
        ("imatrix", source, "-o", matrix, "--merge", matrix, *few),
        ("gguf", source, "-q", "Q4_0", "--imatrix", matrix, "--file-name", "m.gguf", "-o", tmp_path),
    ):
        result = run(*words, "--overwrite")
        assert isinstance(result.exception, UsageProblem), (words, result.output, result.exception)
        assert "which is read from" in result.exception.message
    assert (corpus.read_bytes(), matrix.read_bytes()) == before


def test_everything_that_a_recipe_names_is_a_source(zoo_copy, tmp_path):
    model, other = zoo_copy("qwen3"), zoo_copy("qwen3")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"source: {{model: {model}, name: tuned}}\ncompare: {{model: {other}, name: base}}\n"
        "artifacts: [{fp8: {}}]\n"
    )
    before = contents(model, other)
    for out in (model, other, model / "new"):
        result = run("run", recipe, "-o", out, "--overwrite", "--no-verify")
        assert isinstance(result.exception, UsageProblem), (result.output, result.exception)
    (tmp_path / "tuned-FP8").symlink_to(other)
    result = run("run", recipe, "-o", tmp_path, "--overwrite", "--no-verify")
    assert isinstance(result.exception, UsageProblem), (result.output, result.exception)
    recipe = recipe.rename(tmp_path / "report.json")  # where the report goes
    result = run("run", recipe, "-o", tmp_path, "--overwrite", "--no-verify", "--only", "compare/fp8")
    assert "report.json would be written over report.json" in str(result.exception), result.output
    assert contents(model, other) == before


def test_the_hubs_cache_is_nobodys_output(zoo, tmp_path):
    repo = tmp_path / "models--org--name"
    snapshot = repo / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    (repo / "blobs").mkdir()
    shutil.copytree(zoo("qwen3"), snapshot)
    for out in (snapshot, repo / "blobs", repo / "snapshots" / ("b" * 40), repo):
        with pytest.raises(UsageProblem, match="Hub's cache"):
            Sources().refuse(out, ["x"])
        result = run("fp8", zoo("qwen3"), "-o", out, "--overwrite", "--no-verify")
        assert isinstance(result.exception, UsageProblem)
    for write in (lambda: replace_file(snapshot / "qexport.json", b""), lambda: make_folder(snapshot / "x")):
        with pytest.raises(UsageProblem, match="Hub's cache"):
            write()
    blob = repo / "blobs" / ("c" * 64)
    (snapshot / "config.json").rename(blob)
    (snapshot / "config.json").symlink_to(blob)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").symlink_to(blob)
    with pytest.raises(UsageProblem, match=r"config\.json, which is read from"):
        Sources((LocalCheckpoint(snapshot),)).refuse(tmp_path / "out", ["config.json"])


def test_removing_a_folder_that_holds_a_source(tmp_path):
    (tmp_path / "out" / "deep").mkdir(parents=True)
    corpus = tmp_path / "out" / "deep" / "corpus.txt"
    corpus.write_text("text")
    with pytest.raises(UsageProblem, match="would be removed"):
        Sources(given=(corpus,)).refuse_removal(tmp_path / "out")
    Sources(given=(corpus,)).refuse_removal(tmp_path / "other")


def test_the_demo_removes_only_what_a_demo_has_made(zoo_copy, tmp_path):
    pytest.importorskip("transformers")
    source, out = zoo_copy("qwen3"), tmp_path / "out"
    out.mkdir()
    for put in (lambda path: path.symlink_to(source), lambda path: shutil.copytree(source, path)):
        put(out / "Demo-Tuned")
        before = contents(source, out)
        result = run("demo", "-o", out, "--overwrite")
        assert isinstance(result.exception, UsageProblem), (result.output, result.exception)
        assert contents(source, out) == before
        (out / "Demo-Tuned").unlink() if (out / "Demo-Tuned").is_symlink() else None


def test_beside_the_model_is_no_source(zoo_copy, tmp_path):
    source = zoo_copy("qwen3")
    (source / "up").symlink_to("..")  # a link in the model's folder makes nothing else a source
    diagnosis = diagnose(open_checkpoint(str(source)))
    (item,) = plan([Target(Fp8Options(), source.parent / "out", None)], diagnosis)
    steps.write([item], diagnosis)
    assert (source.parent / "out" / "config.json").exists()


def flip(path, *, set_back=False):
    """Another last byte, in place; the time of writing as before, if asked for."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        (last,) = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + (0 if set_back else 1)))


def longer(path):
    with path.open("a") as file:
        file.write("\n")


WEIGHTS = "model.safetensors"
CHANGES = {
    "weights": lambda folder: flip(folder / WEIGHTS),
    "weights, time set back": lambda folder: flip(folder / WEIGHTS, set_back=True),
    "another file by that name": lambda folder: Path(shutil.copy2(folder / WEIGHTS, folder / "new")).replace(
        folder / WEIGHTS
    ),
    "config": lambda folder: longer(folder / "config.json"),
    "tokenizer": lambda folder: longer(folder / "tokenizer.json"),
    "gone": lambda folder: (folder / "tokenizer_config.json").unlink(),
}


@pytest.fixture
def source(zoo_copy):
    folder = zoo_copy("qwen3")
    for file in folder.iterdir():
        file.chmod(0o644)
    assert (folder / "model.safetensors").exists()
    return folder


@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_during_the_pass_has_no_artifact(source, tmp_path, change, monkeypatch):
    diagnosis = diagnose(open_checkpoint(str(source)))
    targets = [
        Target(GgufOptions(("Q8_0",)), tmp_path / "out" / "a", verify=None),
        Target(Fp8Options(), tmp_path / "out" / "b", None),
    ]
    items = plan(targets, diagnosis)
    once = []
    seen = diagnosis.subject.checkpoint

    def changing(name, start, stop):
        if not once:
            once.append(CHANGES[change](source))

    seen.on_read = changing
    with pytest.raises(InputError, match="changed while it was read"):
        steps.write(items, diagnosis, home=tmp_path / "out", threads=1)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_fix_and_a_matrix_of_a_source_that_changed(source, tmp_path, monkeypatch):
    diagnosis = diagnose(open_checkpoint(str(source)))
    items = plan([Target(MergedOptions(), tmp_path / "out", verify=None)], diagnosis)
    CHANGES["tokenizer"](source)
    with pytest.raises(InputError, match="changed while it was read"):
        steps.write(items, diagnosis, threads=1)
    assert list((tmp_path / "out").iterdir()) == []

    collect = matrix_module.collect

    def collecting(*args):
        CHANGES["weights, time set back"](source)
        return collect(*args)

    monkeypatch.setattr(matrix_module, "collect", collecting)
    words = ("--calib-tokens", 64, "--calib-chunk", 32)
    result = run("imatrix", source, "-o", tmp_path / "m.gguf", *words)
    assert isinstance(result.exception, InputError), (result.output, result.exception)
    assert not list(tmp_path.glob("*m.gguf*"))
    assert not (tmp_path / "qexport.json").exists()


@pytest.mark.parametrize("change", ["weights", "weights, time set back"])
def test_what_was_made_of_another_source_is_not_gone_on_with(source, tmp_path, change, monkeypatch):
    out = tmp_path / "out"

    def items():
        diagnosis = diagnose(open_checkpoint(str(source)))
        return plan([Target(GgufOptions(("Q8_0",)), out, verify=None)], diagnosis), diagnosis

    record = Ledger.write

    def stop(self, entry):
        record(self, entry)
        if entry.steps >= 3:  # writers may come to several between two entries
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "due", lambda self: True)
        patch.setattr(Ledger, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            steps.write(*items(), threads=1)
    assert Ledger(out).read().steps >= 3
    CHANGES[change](source)
    (item,) = steps.write(*items())
    fresh = tmp_path / "fresh"
    diagnosis = diagnose(open_checkpoint(str(source)))
    (other,) = steps.write(plan([Target(GgufOptions(("Q8_0",)), fresh, verify=None)], diagnosis), diagnosis)
    assert item.written == other.written
    assert steps.finished(items()[0])[1] == []
    CHANGES[change](source)
    assert steps.finished(items()[0])[0] == []


def test_a_new_mode_or_a_second_name_is_no_change(source, tmp_path):
    found = LocalCheckpoint(source)
    (source / "model.safetensors").chmod(0o600)
    (tmp_path / "second").hardlink_to(source / "config.json")
    assert found.changed() == []
    (source / "config.json").write_text("{}")
    assert found.changed() == ["config.json"]
