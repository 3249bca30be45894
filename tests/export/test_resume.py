"""A run that is killed anywhere ends, when it is started again, with the bytes of one that was not.

The runs are processes of their own, killed (SIGKILL) at a chosen write, fsync or rename.
"""

import json
import os
import random
import shutil
import signal

import pytest
from forked import Forked

from qexport.checkpoint.opening import open_checkpoint
from qexport.doctor.diagnose import diagnose
from qexport.errors import EnvironmentProblem
from qexport.formats.gguf.options import GgufOptions
from qexport.onepass.ledger import LEDGER_NAME, Entry, Ledger
from qexport.onepass.locks import LOCK_NAME, locked
from qexport.run import steps
from qexport.run.target import Target, plan

KILLS = int(os.environ.get("QEXPORT_KILLS", "4"))  # each takes two more runs

# Arguments: model, folder, the number of the event to die at (0: none; below 0: counted from where all bytes
# are on disk and only names are missing). Prints how many events there were before and after that. How often
# files are synced before it is the threads' chance; after it nothing is.
CHILD = """
import os, signal, sys, threading
from pathlib import Path
from qexport.checkpoint.opening import open_checkpoint
from qexport.doctor.diagnose import diagnose
from qexport.codecs.engines import NUMBA
from qexport.onepass.ledger import Ledger
from qexport.onepass.resume import Resume
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.run import steps
from qexport.run.target import Target, plan
object.__setattr__(NUMBA, "run_values", 1 << 14)
Ledger.due = lambda self: True  # an entry after every step
def export(model, out):
    diagnosis = diagnose(open_checkpoint(model))
    targets = [
        Target(GgufOptions(("Q4_0", "BF16")), out / "a", verify=None),
        Target(MlxOptions(bits=6), out / "b", verify=None),
        Target(Fp8Options(), out / "c", verify=None),
        Target(Nvfp4Options(), out / "d", verify=None),
    ]
    items = plan(targets, diagnosis)
    done, todo = steps.finished(items, home=out)
    if todo:
        steps.check(todo, overwrite=False, home=out)
        steps.write(todo, diagnosis, home=out, threads=2)
def main(model, out, die_at):
    out, die_at = Path(out), int(die_at)
    counts, after, lock = [0, 0], [], threading.Lock()
    def counted(function):
        def call(*args, **kwargs):
            with lock:
                counts[bool(after)] += 1
                if die_at and (sum(counts) == die_at or (after and counts[1] == -die_at)):
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call
    finished = Resume.finished
    def complete(*args, **kwargs):
        finished(*args, **kwargs)
        after.append(True)
    Resume.finished = complete
    os.pwrite, os.fsync = counted(os.pwrite), counted(lambda fd: None)  # which is for lost power
    Path.replace, Path.unlink = counted(Path.replace), counted(Path.unlink)
    export(model, out)
    print(*counts)
"""


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def files_of(folder):
    """What was made, receipts without the time they were written at, no lock that a killed run has left."""
    found = {name: data for name, data in contents(folder).items() if not name.endswith(LOCK_NAME)}
    for name in [name for name in found if name.endswith("qexport.json")]:
        receipt = json.loads(found[name])
        for artifact in receipt["artifacts"]:
            artifact.pop("written")
        found[name] = receipt
    return found


@pytest.mark.slow
def test_killed_anywhere_it_ends_with_the_same_bytes(zoo, tmp_path):
    model = zoo("qwen3_5")
    # Kernels, and all that is imported late.
    ready = f"export({str(model)!r}, Path({str(tmp_path / 'first')!r}))"
    with Forked(CHILD + ready) as child:
        kill_anywhere(child, model, tmp_path)
    assert files_of(tmp_path / "first") == files_of(tmp_path / "whole")


def kill_anywhere(child, model, tmp_path):
    whole = child(model, tmp_path / "whole", 0)
    assert whole.returncode == 0, whole.stderr
    writing, naming = map(int, whole.stdout.split())
    expected = files_of(tmp_path / "whole")
    assert {name.split("/")[0] for name in expected} == {"a", "b", "b-MTP", "c", "d"}
    assert not any(part.startswith(".") for name in contents(tmp_path / "whole") for part in name.split("/"))
    luck = random.Random(4)
    early = luck.sample(range(1, writing * 9 // 10), KILLS - KILLS // 2)
    moments = [*early, *luck.sample(range(-naming, 0), KILLS // 2)]
    for number, die_at in enumerate(moments):
        out = tmp_path / str(number)
        killed = child(model, out, die_at)
        assert killed.returncode == -signal.SIGKILL, (die_at, killed.stderr)
        if number % 2:
            child(model, out, luck.randrange(1, writing))  # perhaps killed once more
        done = child(model, out, 0)
        assert done.returncode == 0, (die_at, done.stderr)
        assert files_of(out) == expected, die_at


@pytest.fixture
def diagnosis(zoo):
    return diagnose(open_checkpoint(str(zoo("qwen3"))))


def stopped(items, diagnosis, home, monkeypatch):
    """A run that Ctrl-C stops once a few steps are done; the ledger's entry says how many."""
    monkeypatch.setattr(Ledger, "due", lambda self: True)
    record = Ledger.write

    def write(self, entry):
        record(self, entry)
        if entry.steps >= 3:  # writers may come to several between two entries
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "write", write)
        with pytest.raises(KeyboardInterrupt):
            steps.write(items, diagnosis, home=home, threads=1)
    return Ledger(home).read()


def test_only_what_is_missing_is_read_again(diagnosis, tmp_path, monkeypatch):
    source = diagnosis.subject.checkpoint
    items = plan([Target(GgufOptions(("Q8_0",)), tmp_path, verify=None)], diagnosis)
    entry = stopped(items, diagnosis, tmp_path, monkeypatch)
    assert 0 < entry.steps < len(source.tensors)
    read = set()
    source.on_read = lambda name, start, stop: read.add(name)
    ((item),) = steps.write(items, diagnosis, home=tmp_path)
    first = {piece.name for tensor in item.plan.tensors[: entry.steps] for piece in tensor.source.pieces}
    assert not read & first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["qexport.json", item.written[0].name]


def test_what_an_interrupted_run_left_is_of_no_use_to_another_export(diagnosis, tmp_path, monkeypatch):
    stopped(
        plan([Target(GgufOptions(("Q8_0",)), tmp_path, verify=None)], diagnosis),
        diagnosis,
        tmp_path,
        monkeypatch,
    )
    assert any(path.name.endswith(".part") for path in tmp_path.iterdir())
    items = plan([Target(GgufOptions(("BF16",)), tmp_path, verify=None)], diagnosis)
    steps.write(items, diagnosis, home=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["qexport.json", "qwen3-BF16.gguf"]


def test_a_disk_that_is_full_is_met_again_where_it_was(diagnosis, tmp_path, monkeypatch):
    items = plan([Target(GgufOptions(("Q8_0",)), tmp_path, verify=None)], diagnosis)
    pwrite, room = os.pwrite, [12]

    def full(fd, data, offset):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(28, "No space left on device")
        return pwrite(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(EnvironmentProblem, match="disk is full"):
            steps.write(items, diagnosis, home=tmp_path)
    entry = Ledger(tmp_path).read()
    assert entry is not None
    assert not list(tmp_path.glob("*.gguf"))
    (item,) = steps.write(items, diagnosis, home=tmp_path)
    other = tmp_path / "other"
    (fresh,) = steps.write(
        plan([Target(GgufOptions(("Q8_0",)), other, verify=None)], diagnosis), diagnosis, home=other
    )
    assert item.written == fresh.written


@pytest.mark.parametrize("at", [0, 10])
def test_a_source_that_shrinks_during_the_pass(zoo, tmp_path, monkeypatch, at):
    """It ends with an error, not with the process. A file that was put back may be another one: none of what
    was written before is gone on from."""
    model = shutil.copytree(zoo("qwen3"), tmp_path / "model")
    (file,) = model.glob("*.safetensors")
    data, times = file.read_bytes(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    out, seen = tmp_path / "out", []
    diagnosis = diagnose(open_checkpoint(str(model)))
    monkeypatch.setattr(Ledger, "due", lambda self: True)

    def shrink(name, start, stop):
        seen.append(name)
        if len(seen) == at + 1:
            os.truncate(file, len(data) // 8)

    diagnosis.subject.checkpoint.on_read = shrink
    items = plan([Target(GgufOptions(("Q8_0",)), out, verify=None)], diagnosis)
    with pytest.raises(EnvironmentProblem, match=f"{file.name} (became shorter|changed) while it was in use"):
        steps.write(items, diagnosis, home=out, threads=1)
    assert not list(out.glob("*.gguf"))
    assert Ledger(out).read() is not None or at == 0
    file.write_bytes(data)
    os.utime(file, ns=times)
    again = diagnose(open_checkpoint(str(model)))
    seen.clear()
    again.subject.checkpoint.on_read = lambda name, start, stop: seen.append(name)
    steps.write(plan([Target(GgufOptions(("Q8_0",)), out, verify=None)], again), again, home=out)
    assert {*seen} == {*again.subject.checkpoint.tensors}
    whole = tmp_path / "whole"
    steps.write(plan([Target(GgufOptions(("Q8_0",)), whole, verify=None)], again), again, home=whole)
    assert files_of(out) == files_of(whole)


def test_two_runs_into_one_folder(tmp_path):
    link = tmp_path.with_name(f"{tmp_path.name}-link")
    link.symlink_to(tmp_path)
    with locked([tmp_path, link]):  # one folder, so no run is in its own way
        for name in (tmp_path, link):
            with pytest.raises(EnvironmentProblem, match="another run"), locked([name]):
                pass
    with locked([link]):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_comes_back_as_it_was(tmp_path):
    entry = Entry(
        "print",
        {"a.bin": 5, "../b/c\udcff.bin": 6},
        3,
        dict.fromkeys(("a.bin", "../b/c\udcff.bin"), "0" * 64),
    )
    Ledger(tmp_path).write(entry)
    assert Ledger(tmp_path).read() == entry
    assert [path.name for path in tmp_path.iterdir()] == [LEDGER_NAME]
