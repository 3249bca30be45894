"""The one pass, with an encoder and a checkpoint small enough to see through."""

import hashlib
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qexport.checkpoint.memory import MemoryCheckpoint
from qexport.checkpoint.tensors import LogicalTensor, Piece, stack_rows
from qexport.codecs.contract import Packed, StoredType
from qexport.codecs.engines import Engine
from qexport.errors import EnvironmentProblem, InputError
from qexport.evidence.store import Evidence, Kind, Need
from qexport.formats.plan import Arrangement, ArtifactPlan, PlannedFile, PlannedTensor, Region
from qexport.onepass import runs as runs_module
from qexport.onepass.crew import Crew
from qexport.onepass.execute import execute as pass_over
from qexport.onepass.locks import locked
from qexport.onepass.needs import Needs
from qexport.onepass.rows import arranged_rows
from qexport.onepass.sink import Sink
from qexport.onepass.steps import merge_steps


@dataclass(frozen=True)
class Plain(StoredType):
    """Values as they are, in float32."""

    name: str = "F32"

    def encode(self, rows, known):
        return Packed((rows.float().contiguous().numpy(),))


def engines(run_values=1 << 21):
    """One that knows these types, which encode themselves."""
    return [Engine("test", lambda stored: type(stored).encode, run_values)]


def execute(*args, run_values=1 << 21, **kwargs):
    return pass_over(*args, engines=engines(run_values), **kwargs)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class CountingCheckpoint(MemoryCheckpoint):
    """Counts how often each row was read."""

    def __init__(self, label, tensors):
        super().__init__(label, tensors)
        self.reads = {
            name: np.zeros(max(1, t.numel() // max(1, t.shape[-1])), int) for name, t in tensors.items()
        }
        self._lock = threading.Lock()

    def read_rows(self, name, start, stop):
        with self._lock:
            self.reads[name][start:stop] += 1
        return super().read_rows(name, start, stop)


def plan_of(tensors, *, file="out.bin", header=b"HEAD", arrangement=None, gap=0):
    planned, at = [], len(header)
    for tensor in tensors:
        how = arrangement or Arrangement()
        shape = how.shape or tensor.shape
        size = 4 * int(np.prod(shape))
        planned.append(PlannedTensor(tensor.name, shape, tensor, how, Plain(), ((Region(0, at, size),),)))
        at += size + gap
    return ArtifactPlan("test", file, (PlannedFile(file, at, header),), tuple(planned))


def checkpoint(**shapes):
    generator = torch.Generator().manual_seed(7)
    return CountingCheckpoint(
        "made", {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    )


def test_bytes_offsets_and_hash(tmp_path):
    source = checkpoint(a=(3, 4), b=(5,))
    plan = plan_of([source.logical("a"), source.logical("b")], gap=3)
    ((file,),) = execute([plan], tmp_path)
    data = (tmp_path / "out.bin").read_bytes()
    a, b = source._data["a"].numpy().tobytes(), source._data["b"].numpy().tobytes()
    assert data == b"HEAD" + a + b"\0" * 3 + b + b"\0" * 3
    assert file.sha256 == hashlib.sha256(data).hexdigest()
    assert file.size == len(data)
    assert names(tmp_path) == ["out.bin"]


def test_every_row_is_read_once_for_all_artifacts(tmp_path, monkeypatch):
    source = checkpoint(a=(40, 8), b=(7, 8), c=(3,))
    tensors = [source.logical(name) for name in "abc"]
    execute([plan_of(tensors, file=f"{i}.bin") for i in range(3)], tmp_path, run_values=16)
    for name, counts in source.reads.items():
        assert (counts == 1).all(), name
    assert len({(tmp_path / f"{i}.bin").read_bytes() for i in range(3)}) == 1


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_bytes_do_not_depend_on_threads(tmp_path, monkeypatch, threads):
    source = checkpoint(a=(100, 8), b=(9, 16))
    plan = plan_of([source.logical("a"), source.logical("b")])
    ((file,),) = execute([plan], tmp_path, threads=threads, run_values=32)
    expected = b"HEAD" + b"".join(source._data[name].numpy().tobytes() for name in "ab")
    assert file.sha256 == hashlib.sha256(expected).hexdigest()


def test_nan_and_infinity_are_named_counted_and_leave_nothing(tmp_path, monkeypatch):
    source = checkpoint(good=(10, 4), first=(6, 4), second=(3,))
    source._data["first"][1, 2] = float("nan")
    source._data["first"][5, 0] = float("inf")
    source._data["second"][0] = float("-inf")
    plan = plan_of([source.logical(name) for name in ("good", "first", "second")])
    with pytest.raises(InputError) as caught:
        execute([plan], tmp_path, run_values=8)
    assert "3 weights" in str(caught.value)
    assert "first: 2 values" in str(caught.value)
    assert "second: 1 value" in str(caught.value)
    assert names(tmp_path) == []


def test_disk_full_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    source = checkpoint(a=(64, 64))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(EnvironmentProblem, match="disk is full"):
        execute([plan_of([source.logical("a")])], tmp_path)
    assert names(tmp_path) == []


def test_an_error_in_an_encoder_leaves_nothing(tmp_path):
    @dataclass(frozen=True)
    class Broken(Plain):
        def encode(self, rows, first_row):
            raise RuntimeError("boom")

    source = checkpoint(a=(4, 4))
    plan = plan_of([source.logical("a")])
    broken = ArtifactPlan(
        "test",
        "x",
        plan.files,
        tuple(PlannedTensor(**{**vars(t), "stored": Broken()}) for t in plan.tensors),
    )
    with pytest.raises(RuntimeError, match="boom"):
        execute([broken], tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("late", [False, True])
def test_an_error_after_writing_a_run_is_no_success_and_no_hang(tmp_path, monkeypatch, late):
    """It is met in the thread that writes, and must be heard of, early or at the end."""
    seen, written = [], runs_module.Landed.written

    def fail(landed):
        seen.append(landed)
        if not late or len(seen) == 200:
            raise OSError(5, "input/output error")
        written(landed)

    monkeypatch.setattr(runs_module.Landed, "written", fail)
    with pytest.raises(EnvironmentProblem):
        execute([plan_of([checkpoint(a=(400, 4)).logical("a")])], tmp_path, threads=2, run_values=8)
    assert names(tmp_path) == []


def test_a_file_that_lacks_bytes_is_never_complete(tmp_path):
    plan = plan_of([checkpoint(a=(64, 64)).logical("a")])
    with Crew() as crew:
        sink = Sink(plan, tmp_path, crew)
        sink.write(0, 4, b"x" * 100, lambda: None)
        with pytest.raises(ValueError, match="104 of 16388 bytes"):
            sink.finish()
        with pytest.raises(ValueError, match="not complete"):
            sink.commit()
        sink.abort()
    assert names(tmp_path) == []


def test_two_runs_do_not_weave_one_file(tmp_path):
    plan = plan_of([checkpoint(a=(4, 4)).logical("a")])
    with locked([tmp_path]), pytest.raises(EnvironmentProblem, match="another run"):
        execute([plan], tmp_path)
    execute([plan], tmp_path)
    assert names(tmp_path) == ["out.bin"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EnvironmentProblem, match="cannot be made"):
        execute([plan_of([checkpoint(a=(4, 4)).logical("a")])], tmp_path / "file" / "x")


def test_an_existing_file_stays_until_its_successor_is_complete(tmp_path):
    (tmp_path / "out.bin").write_bytes(b"old")
    source = checkpoint(a=(4, 4))
    source._data["a"][0, 0] = float("nan")
    with pytest.raises(InputError):
        execute([plan_of([source.logical("a")])], tmp_path)
    assert (tmp_path / "out.bin").read_bytes() == b"old"


def test_steps_of_two_plans_meet():
    source = checkpoint(a=(1,), b=(1,), c=(1,), d=(1,))
    first = plan_of([source.logical(n) for n in "acd"])
    second = plan_of([source.logical(n) for n in "abd"])
    steps = merge_steps([first, second])
    assert [step.source.name for step in steps] == ["a", "c", "b", "d"]
    assert [[number for number, _ in step.outputs] for step in steps] == [[0, 1], [0], [1], [0, 1]]


def test_contradicting_orders_are_written_and_hashed_all_the_same(tmp_path, monkeypatch):
    """The second file gets its bytes back to front; each row is read once for both."""
    source = checkpoint(a=(64, 3), b=(5, 4), c=(7,))
    orders = ("abc", "cba")
    plans = [plan_of([source.logical(n) for n in order], file=order, gap=5) for order in orders]
    for order, (file,) in zip(orders, execute(plans, tmp_path, run_values=8), strict=True):
        data = (tmp_path / order).read_bytes()
        assert data == b"HEAD" + b"".join(source._data[n].numpy().tobytes() + b"\0" * 5 for n in order)
        assert file.sha256 == hashlib.sha256(data).hexdigest()
    assert all((count == 1).all() for count in source.reads.values())


@dataclass(frozen=True)
class Tiled(StoredType):
    """Values, and the sum of each tile of 4 rows: two streams."""

    rows_together = 4
    name: str = "TILED"

    def encode(self, rows, known):
        assert len(rows) % 4 == 0
        sums = rows.float().view(-1, 4 * rows.shape[1]).sum(1)
        return Packed((rows.float().contiguous().numpy(), sums.numpy()))


def tiled_plan(tensor, stored=None, *, pieces=1):
    """Sums first in the file, then the values; each stream cut into ``pieces`` regions, with gaps."""
    rows, columns = tensor.matrix_shape
    sizes = (rows * columns * 4, rows)
    regions, at = {}, 4
    for stream in (1, 0):
        size = sizes[stream] // pieces
        regions[stream] = tuple(Region(0, at + i * (size + 3), size) for i in range(pieces))
        at += pieces * (size + 3)
    planned = PlannedTensor(
        tensor.name, tensor.shape, tensor, Arrangement(), stored or Tiled(), (regions[0], regions[1])
    )
    return ArtifactPlan("test", "tiled", (PlannedFile("tiled.bin", at, b"HEAD"),), (planned,))


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("run", [1, 100, 1 << 21])
def test_streams_fill_their_regions_in_order(tmp_path, monkeypatch, pieces, run):
    source = checkpoint(a=(96, 5))
    plan = tiled_plan(source.logical("a"), pieces=pieces)
    ((file,),) = execute([plan], tmp_path, threads=3, run_values=run)
    data = (tmp_path / "tiled.bin").read_bytes()
    assert file.sha256 == hashlib.sha256(data).hexdigest()
    (planned,) = plan.tensors
    values, sums = (
        b"".join(data[r.offset : r.offset + r.nbytes] for r in stream) for stream in planned.streams
    )
    assert values == source._data["a"].numpy().tobytes()
    assert np.frombuffer(sums, np.float32) == pytest.approx(
        source._data["a"].view(24, 20).sum(1).numpy(), abs=1e-5
    )


def test_an_encoder_that_gives_too_much_is_a_defect(tmp_path):
    class Generous(Tiled):
        def encode(self, rows, known):
            values, sums = super().encode(rows, known).streams
            return Packed((values, np.concatenate([sums, sums[:1]])))

    with pytest.raises(ValueError, match="more than the plan has room for"):
        execute([tiled_plan(checkpoint(a=(8, 2)).logical("a"), Generous())], tmp_path)
    assert names(tmp_path) == []


@dataclass(frozen=True)
class Scaled(Plain):
    """Values over the largest of all that share it."""

    def encode(self, rows, known):
        return Packed(((rows.float() / known.largest).contiguous().numpy(),))


def needing(plan, names, kind=Kind.LARGEST, stored=None):
    """The plan with tensors that need something of each other."""
    need = (Need(kind, tuple(names)),)
    stored = stored or Scaled()
    return replace(
        plan,
        tensors=tuple(replace(t, stored=stored, needs=need) if t.name in names else t for t in plan.tensors),
    )


def test_the_largest_of_fused_tensors_is_known_before_one_is_encoded(tmp_path):
    source = checkpoint(a=(64, 3), b=(9, 4), c=(70, 2))
    source._data["c"][69, 1] = -50.0
    plans = [plan_of([source.logical(n) for n in "abc"], file=name) for name in ("one", "two")]
    execute([needing(plan, "ac") for plan in plans], tmp_path, threads=3, run_values=8)
    a, b, c = (source._data[n].numpy().ravel() for n in "abc")
    for name in ("one", "two"):
        values = np.frombuffer((tmp_path / name).read_bytes()[4:], np.float32)
        assert np.array_equal(values, np.concatenate([a / np.float32(50), b, c / np.float32(50)]))
    # Looked at once for both plans, and read right after it for encoding.
    assert (source.reads["a"] == 2).all()
    assert (source.reads["c"] == 2).all()
    assert (source.reads["b"] == 1).all()


def test_what_is_known_is_let_go_after_the_last_step_that_needs_it():
    source = checkpoint(a=(8, 3), b=(9, 4), c=(7, 2))
    plan = needing(plan_of([source.logical(n) for n in "abc"]), "ac")
    steps = merge_steps([plan])
    needs = Needs([plan], steps)
    kept = []
    with ThreadPoolExecutor(1) as pool:
        for number, step in enumerate(steps):
            needs.survey(step, lambda lane: [(0, lane.outputs[0][1].matrix_shape[0])], pool)
            needs.release(step, number)
            kept.append(sorted(needs.largest))
    assert kept == [["a", "c"], ["a", "c"], []]


def test_experts_have_a_largest_of_their_own_and_fused_ones_share_it(tmp_path):
    source = checkpoint(gate=(3, 5, 4), up=(3, 5, 4))
    plan = needing(plan_of([source.logical(n) for n in ("gate", "up")]), ("gate", "up"))
    execute([plan], tmp_path, run_values=12)
    gate, up = (source._data[n] for n in ("gate", "up"))
    top = torch.maximum(gate.abs().amax((1, 2)), up.abs().amax((1, 2)))[:, None, None]
    expected = torch.cat([gate / top, up / top]).numpy().ravel()
    assert np.array_equal(np.frombuffer((tmp_path / "out.bin").read_bytes()[4:], np.float32), expected)


def test_importance_is_arranged_as_the_columns_are(tmp_path):
    class Weighted(Plain):
        def encode(self, rows, known):
            return Packed((rows.float().numpy() * known.importance,))

    source, order = checkpoint(a=(6, 4)), np.array([2, 0, 3, 1])
    squares = np.arange(4, dtype=np.float32)[None] + 1
    plan = plan_of([source.logical("a")], arrangement=Arrangement(column_order=order))
    plan = replace(
        needing(plan, "a", Kind.INPUT_SQUARES, Weighted()),
        evidence=Evidence({Kind.INPUT_SQUARES: {"a": squares}}),
    )
    execute([plan], tmp_path)
    expected = (source._data["a"].numpy() * squares)[:, order]
    found = np.frombuffer((tmp_path / "out.bin").read_bytes()[4:], np.float32)
    assert np.array_equal(found, expected.ravel())


def test_two_orders_of_one_tensor_are_two_walks(tmp_path, monkeypatch):
    source = checkpoint(a=(64, 3))
    backwards = Arrangement(row_order=np.arange(63, -1, -1))
    half = Arrangement(shape=(32, 3), row_order=np.arange(32))
    plans = [
        plan_of([source.logical("a")], file="one"),
        plan_of([source.logical("a")], file="two", arrangement=backwards),
        plan_of([source.logical("a")], file="three", arrangement=half),
    ]
    execute(plans, tmp_path, threads=2, run_values=8)
    whole = source._data["a"].numpy()
    for name, expected in {"one": whole, "two": whole[::-1], "three": whole[:32]}.items():
        assert (tmp_path / name).read_bytes() == b"HEAD" + expected.tobytes()
    assert source.reads["a"].max() == 3


def test_a_folder_for_each_plan(tmp_path):
    source = checkpoint(a=(4, 4))
    plans = [plan_of([source.logical("a")]) for _ in range(2)]
    execute(plans, [tmp_path / "x", tmp_path / "y"])
    assert (tmp_path / "x" / "out.bin").read_bytes() == (tmp_path / "y" / "out.bin").read_bytes()
    assert all((count == 1).all() for count in source.reads.values())


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_file_written_in_any_order_has_its_bytes_and_its_hash(data):
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=8))
    gaps = data.draw(st.lists(st.integers(0, 3), min_size=len(sizes), max_size=len(sizes)))
    regions, at, content = [], 2, b"hd"
    for number, (size, gap) in enumerate(zip(sizes, gaps, strict=True)):
        regions.append((Region(0, at, size), bytes([65 + number]) * size))
        content += regions[-1][1] + b"\0" * gap
        at += size + gap
    tensor = checkpoint(a=(1,)).logical("a")
    planned = tuple(
        PlannedTensor(f"t{i}", (r.nbytes,), tensor, Arrangement(), Plain(), ((r,),))
        for i, (r, _) in enumerate(regions)
    )
    plan = ArtifactPlan("test", "t", (PlannedFile("f", at, b"hd"),), planned)
    with tempfile.TemporaryDirectory() as name, Crew(1) as crew:
        sink = Sink(plan, Path(name), crew)
        for region, text in data.draw(st.permutations(regions)):
            cut = data.draw(st.integers(0, region.nbytes))
            for low, high in data.draw(st.permutations([(0, cut), (cut, region.nbytes)])):
                sink.write(0, region.offset + low, text[low:high], lambda: None)
        sink.finish()
        (file,) = sink.commit()
        assert (Path(name) / "f").read_bytes() == content
        assert file.sha256 == hashlib.sha256(content).hexdigest()


def test_bytes_twice_in_one_place_are_a_defect(tmp_path):
    plan = plan_of([checkpoint(a=(64, 64)).logical("a")])
    with Crew() as crew:
        sink = Sink(plan, tmp_path, crew)
        sink.write(0, 100, b"x" * 100, lambda: None)
        sink.write(0, 150, b"x" * 10, lambda: None)
        with pytest.raises(ValueError, match=r"bytes for 150\.\.160"):
            sink.finish()
        sink.abort()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_arranged_runs_equal_the_whole(data):
    """Any split into runs, of any stack of pieces, under any order, equals arranging the whole tensor."""
    columns = data.draw(st.integers(1, 6))
    counts = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    source = checkpoint(**{f"t{i}": (n + 2, columns) for i, n in enumerate(counts)})
    parts = [
        LogicalTensor(f"t{i}", (n, columns), "F32", (Piece(source, f"t{i}", 1, n + 1),))
        for i, n in enumerate(counts)
    ]
    rows = sum(counts)
    tensor = stack_rows("all", (rows, columns), parts)
    whole = torch.cat([source._data[f"t{i}"][1 : n + 1] for i, n in enumerate(counts)])
    order = np.array(data.draw(st.permutations(range(rows))))
    across = np.array(data.draw(st.permutations(range(columns))))
    op = data.draw(st.sampled_from(["none", "add_one", "neg_exp"]))
    arrangement = Arrangement(row_order=order, column_order=across, op=op)
    expected = whole[order][:, across]
    expected = {"none": expected, "add_one": expected + 1, "neg_exp": -torch.exp(expected)}[op]
    cut = data.draw(st.integers(0, rows))
    got = [arranged_rows(tensor, arrangement, a, b) for a, b in ((0, cut), (cut, rows)) if a < b]
    assert torch.equal(torch.cat(got), expected)


def test_half_precision_arithmetic_stays_half_as_the_converter_does():
    source = MemoryCheckpoint("made", {"w": torch.tensor([0.0003], dtype=torch.float16)})
    (row,) = arranged_rows(source.logical("w"), Arrangement(op="add_one"), 0, 1)
    assert row.dtype == torch.float16


def test_parent_folders_are_made(tmp_path: Path):
    source = checkpoint(a=(2, 2))
    execute([plan_of([source.logical("a")])], tmp_path / "x" / "y")
    assert (tmp_path / "x" / "y" / "out.bin").exists()
