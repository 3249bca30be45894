"""What may lie in a folder that is written into: nothing there is believed, written through, or lost."""

import json
import os
import stat
import threading
from pathlib import Path

import pytest
from test_execute import checkpoint, execute, names, plan_of

from qexport.checkpoint.opening import open_checkpoint
from qexport.doctor.diagnose import diagnose
from qexport.errors import EnvironmentProblem, UsageProblem
from qexport.formats.gguf.options import GgufOptions
from qexport.onepass import ledger as ledger_module
from qexport.onepass.disk import check_collisions, make_folder
from qexport.onepass.files import read_plain, replace_file
from qexport.onepass.ledger import LEDGER_NAME, Entry, Ledger
from qexport.onepass.locks import LOCK_NAME, locked
from qexport.run import steps
from qexport.run.target import Target, plan

GOOD = {"schema": 2, "fingerprint": "x", "files": {"a.bin": 5}, "steps": 1, "hashes": None}


def put(kind, path, victim):
    """Something that is no file of ours, under a name that is ours."""
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "dangling":
        path.symlink_to(path.parent / "nowhere")
    elif kind == "hardlink":
        path.hardlink_to(victim)
    elif kind == "folder":
        path.mkdir()
        (path / "inside").write_bytes(b"mine")
    elif kind == "pipe":
        os.mkfifo(path)
    return path.lstat().st_ino


KINDS = ("link", "dangling", "hardlink", "folder", "pipe")


@pytest.fixture
def victim(tmp_path):
    path = tmp_path / "victim"
    path.write_bytes(b"precious")
    yield path
    assert path.read_bytes() == b"precious"
    assert not (tmp_path / "out" / "nowhere").exists()


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [".out.bin.part", LOCK_NAME])
def test_what_has_a_name_of_ours_is_set_aside_and_never_written_through(out, victim, kind, name):
    number = put(kind, out / name, victim)
    plan, said = plan_of([checkpoint(a=(4, 4)).logical("a")]), []
    execute([plan], out, say=said.append)
    kept = out / f"{name}.set-aside"
    assert kept.lstat().st_ino == number
    assert names(out) == sorted(["out.bin", kept.name])
    assert said == [f"{name} was none of ours: it is set aside as {kept.name}"]


@pytest.mark.parametrize("kind", ["link", "dangling", "hardlink"])
def test_a_final_name_that_leads_elsewhere_is_replaced_not_written_through(out, victim, kind):
    put(kind, out / "out.bin", victim)
    with pytest.raises(UsageProblem, match="already in"):
        check_collisions(["out.bin"], out, overwrite=False)
    check_collisions(["out.bin"], out, overwrite=True)
    execute([plan_of([checkpoint(a=(4, 4)).logical("a")])], out)
    assert stat.S_ISREG((out / "out.bin").lstat().st_mode)


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_folders_and_pipes_are_not_replaced(out, victim, kind):
    put(kind, out / "out.bin", victim)
    with pytest.raises(UsageProblem, match="is a"):
        check_collisions(["out.bin"], out, overwrite=True)


@pytest.mark.parametrize("kind", KINDS)
def test_small_files_are_put_into_place_the_same_way(out, victim, kind):
    put(kind, out / ".r.json.part", victim)
    if kind not in ("folder", "pipe"):
        put(kind, out / "r.json", victim)
    replace_file(out / "r.json", b"{}")
    assert read_plain(out / "r.json", 100) == b"{}"


@pytest.mark.parametrize("kind", ["file", "dangling"])
def test_an_output_folder_that_is_none(tmp_path, kind):
    path = tmp_path / "out"
    if kind == "file":
        path.write_bytes(b"")
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageProblem, match="out is not a folder"):
        check_collisions(["a.bin"], path, overwrite=True)
    with pytest.raises(EnvironmentProblem, match="cannot be made"):
        make_folder(path)
    with pytest.raises(EnvironmentProblem, match="cannot be made"):
        execute([plan_of([checkpoint(a=(4, 4)).logical("a")])], path)


def test_names_that_are_too_long(out):
    with pytest.raises(UsageProblem, match="too long"):
        check_collisions(["x" * 252 + ".bin"], out, overwrite=True)
    with pytest.raises(EnvironmentProblem, match="could not be written"):
        execute([plan_of([checkpoint(a=(4, 4)).logical("a")], file="x" * 252)], out)
    assert names(out) == []


def damaged():
    yield from ("", "{}", "[]", "null", '{"schema": 9}', '{"schema": 2}', "[" * 100_000, "9" * 10_000)
    for key, value in (
        ("fingerprint", 5),
        ("files", 5),
        ("files", ["a.bin"]),
        ("files", {"a.bin": "5"}),
        ("files", {"": 5}),
        ("files", {"a\0b": 5}),
        ("steps", True),
        ("steps", 1.5),
        ("steps", "1"),
        ("hashes", 5),
        ("hashes", {}),
        ("hashes", {"a.bin": 5}),
        ("hashes", {"a.bin": "x" * 64}),
    ):
        yield json.dumps({**GOOD, key: value})
    for key in ("schema", "fingerprint", "files", "steps"):
        yield json.dumps({each: GOOD[each] for each in GOOD if each != key})


@pytest.mark.parametrize("text", tuple(damaged()))
def test_a_damaged_ledger_is_set_aside(out, text):
    (out / LEDGER_NAME).write_text(text)
    said = []
    assert Ledger(out).read() is None
    assert Ledger(out).take(said.append) is None
    assert (out / f"{LEDGER_NAME}.set-aside").read_text() == text
    assert LEDGER_NAME in said[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_ledger_that_is_no_file(out, victim, kind):
    put(kind, out / LEDGER_NAME, victim)
    assert Ledger(out).read() is None
    assert Ledger(out).take() is None
    assert names(out) == [f"{LEDGER_NAME}.set-aside"]


def test_a_ledger_without_bounds_or_text(out, monkeypatch):
    (out / LEDGER_NAME).write_bytes(b"\xff\xfe\x00")
    assert Ledger(out).read() is None
    (out / LEDGER_NAME).write_text(json.dumps(GOOD))
    assert Ledger(out).read() is not None
    monkeypatch.setattr(ledger_module, "_MOST_BYTES", 10)
    assert Ledger(out).read() is None


@pytest.mark.parametrize("number", [1, None])
@pytest.mark.parametrize(
    "name", ["../victim", "{tmp}/victim", "sub/victim", "link/victim", "./x/../../victim"]
)
def test_a_ledger_from_elsewhere_deletes_nothing(zoo, tmp_path, out, name, number):
    """Neither by names that lead out of the folder, nor by names in it that it cannot know the inodes of."""
    kept = []
    for folder in (tmp_path, out / "sub", out / "x", tmp_path / "far"):
        folder.mkdir(exist_ok=True)
        for each in ("victim", ".victim.part"):
            (folder / each).write_bytes(b"precious")
            kept.append(folder / each)
    (out / "link").symlink_to(tmp_path / "far")
    name = name.format(tmp=tmp_path)
    if number is None:  # the right one, where the name leads out of the folder all the same
        number = (out / name).with_name(".victim.part").stat().st_ino if not name.startswith("sub") else 1
    ledger = {**GOOD, "files": {name: number}}
    (out / LEDGER_NAME).write_text(json.dumps(ledger))
    diagnosis = diagnose(open_checkpoint(str(zoo("qwen3"))))
    items = plan([Target(GgufOptions(("Q8_0",)), out, verify=None)], diagnosis)
    steps.check(items, overwrite=False)
    steps.write(items, diagnosis)
    assert all(path.read_bytes() == b"precious" for path in kept)
    assert not (out / LEDGER_NAME).exists()


def test_a_ledger_does_not_make_files_replaceable(zoo, out):
    diagnosis = diagnose(open_checkpoint(str(zoo("qwen3"))))
    items = plan([Target(GgufOptions(("Q8_0",)), out, verify=None)], diagnosis)
    file = out / items[0].plan.files[0].name
    file.write_bytes(b"precious")
    (out / LEDGER_NAME).write_text(json.dumps({**GOOD, "files": {file.name: 1}}))
    with pytest.raises(UsageProblem, match="already in"):
        steps.check(items, overwrite=False)


def test_threads_and_descriptors_do_not_grow_with_the_files(tmp_path, monkeypatch):
    """A hundred artifacts in one run: the most of both at any write is what ten take."""
    source = checkpoint(a=(64, 8), b=(9, 16))
    tensors = [source.logical(name) for name in "ab"]
    pwrite, most, fds = os.pwrite, {}, Path("/proc/self/fd")

    def watched(fd, data, offset):
        most["threads"] = max(most.get("threads", 0), threading.active_count())
        most["descriptors"] = max(most.get("descriptors", 0), len(list(fds.iterdir())))
        return pwrite(fd, data, offset)

    if not fds.is_dir():
        pytest.skip("no /proc here to count descriptors in")
    monkeypatch.setattr(os, "pwrite", watched)
    before = threading.active_count(), len(list(fds.iterdir()))
    seen = []
    for count in (60, 200):
        most.clear()
        plans = [plan_of(tensors, file=f"{number}.bin", gap=3) for number in range(count)]
        execute(plans, tmp_path / str(count), threads=2)
        seen.append(dict(most))
        assert len({path.read_bytes() for path in (tmp_path / str(count)).iterdir()}) == 1
    for most in seen:  # how many of them were at work at once is chance
        assert most["threads"] - before[0] < 12
        assert most["descriptors"] - before[1] < 70


@pytest.mark.parametrize("call", ["pwrite", "ftruncate", "fsync"])
@pytest.mark.parametrize("code", [28, 122, 27, 5, 30])
def test_a_disk_that_does_not_take_it(tmp_path, monkeypatch, call, code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    plan = plan_of([checkpoint(a=(64, 64)).logical("a")])
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(EnvironmentProblem, match="disk is full" if code in (28, 122) else "could not be"):
            execute([plan], tmp_path)
    assert names(tmp_path) == []


def test_a_file_put_in_the_place_of_a_part_is_not_taken_for_it(tmp_path, monkeypatch):
    plan = plan_of([checkpoint(a=(64, 64)).logical("a")])
    fsync = os.fsync

    def swapped(fd):
        fsync(fd)
        part = tmp_path / ".out.bin.part"
        if part.exists() and not part.is_symlink():
            part.rename(tmp_path / "gone")
            part.symlink_to("/dev/null")

    monkeypatch.setattr(os, "fsync", swapped)
    with pytest.raises(EnvironmentProblem, match="another file"):
        execute([plan], tmp_path)
    assert not (tmp_path / "out.bin").exists()


def test_a_matrix_waits_for_another_run(out):
    """What took hours to collect is not lost because a short run is at work in the same folder."""
    with locked([out]):
        plan = plan_of([checkpoint(a=(4, 4)).logical("a")])
        writing = threading.Thread(target=execute, args=([plan], out), kwargs={"wait": 60})
        writing.start()
        writing.join(0.2)
        assert writing.is_alive()
    writing.join(60)
    assert names(out) == ["out.bin"]


def test_a_second_run_waits_for_no_lock(out):
    with locked([out]), pytest.raises(EnvironmentProblem, match="another run"):
        execute([plan_of([checkpoint(a=(4, 4)).logical("a")])], out)
    assert names(out) == []


def test_names_of_nothing_follow_no_links(tmp_path, monkeypatch):
    followed = []
    monkeypatch.setattr(Ledger, "_is_below", lambda self, name: followed.append(name))
    (tmp_path / ".there.part").write_text("x")
    number = (tmp_path / ".there.part").stat().st_ino
    Ledger(tmp_path).discard(Entry("x", {"there": number, **{f"f{n}": n for n in range(1000)}}))
    assert followed == ["there"]
