"""GGUF, MLX, FP8 and NVFP4 of one model from one read, each the same as if it had been written alone."""

import itertools
import json
import threading
from collections import Counter

import numpy as np
import pytest

from qexport.checkpoint.opening import open_checkpoint
from qexport.checkpoint.tensors import matrix_shape
from qexport.doctor.diagnose import diagnose
from qexport.evidence.store import Kind
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.onepass.steps import merge_steps
from qexport.run import steps
from qexport.run.target import Target, plan


def targets(root, mtp="embedded"):
    return [
        Target(GgufOptions(("Q4_K_M", "Q6_K", "Q8_0")), root / "gguf", verify=None),
        Target(GgufOptions(("Q8_0",), mtp=mtp), root / "gguf-head", verify=None),
        Target(MlxOptions(bits=6), root / "mlx", verify=None),
        Target(Fp8Options(), root / "fp8", verify=None),
        Target(Fp8Options(layout="compressed-tensors"), root / "fp8-ct", verify=None),
        Target(Nvfp4Options(scope="all-linear"), root / "nvfp4", verify=None),
        Target(Nvfp4Options(layout="compressed-tensors"), root / "nvfp4-ct", verify=None),
    ]


class Reads:
    """How often each row was read."""

    def __init__(self, checkpoint):
        shapes = {name: matrix_shape(tensor.shape)[0] for name, tensor in checkpoint.tensors.items()}
        self.count = {name: np.zeros(rows, int) for name, rows in shapes.items()}
        self._lock = threading.Lock()
        checkpoint.on_read = self._read

    def _read(self, name, start, stop):
        with self._lock:
            self.count[name][start:stop] += 1


def walks(plans):
    """How often a stored tensor may be read, by name: for each order that its rows are wanted in and each
    thing that is computed of them (norms plus one), twice where all are looked at before."""
    found = Counter()
    for step in merge_steps(plans):
        for lane in step.lanes:
            ways = [tensor.arrangement for _, tensor in lane.outputs]
            times = 1 + sum(one != other for one, other in itertools.pairwise(ways))
            times += any(tensor.need(Kind.LARGEST) for _, tensor in lane.outputs)
            found.update({piece.name: times for piece in step.source.pieces})
    return found


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe", "llama3"])
def test_every_row_is_read_once_for_all_formats(zoo, tmp_path, name):
    diagnosis = diagnose(open_checkpoint(str(zoo(name))))
    source = diagnosis.subject.checkpoint
    reads = Reads(source)
    together = tmp_path / "together"
    mtp = "drafter" if diagnosis.repaired.view().mtp_layers else "embedded"
    written = steps.write(plan(targets(together, mtp), diagnosis), diagnosis, threads=3)
    assert {item.plan.kind for item in written} >= {"gguf", "mlx", "fp8", "nvfp4"}
    expected = walks([item.plan for item in written])
    assert min(expected.values()) == 1
    for tensor, count in reads.count.items():
        assert count.max(initial=0) <= expected[tensor], tensor
        assert count.min(initial=1) >= (tensor in expected), tensor

    alone = tmp_path / "alone"
    for target in targets(alone, mtp):
        steps.write(plan([target], diagnosis), diagnosis, threads=1)
    one, other = contents(together), contents(alone)
    assert set(one) == set(other)
    for file in sorted(one):
        if file.endswith("qexport.json"):
            hashes = [
                {f["name"]: f["sha256"] for a in json.loads(x)["artifacts"] for f in a["files"]}
                for x in (one[file], other[file])
            ]
            assert hashes[0] == hashes[1]
        else:
            assert one[file] == other[file], file
