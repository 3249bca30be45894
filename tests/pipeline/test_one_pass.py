"""GGUF, MLX, FP8 and NVFP4 of one model from one read, each the same as if it had been written alone."""

import json
import threading

import numpy as np
import pytest

from qexport.checkpoint import open_checkpoint
from qexport.checkpoint.local import LocalCheckpoint
from qexport.checkpoint.tensors import matrix_shape
from qexport.doctor.diagnose import diagnose
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.pipeline import export
from qexport.pipeline.folders import FolderTarget
from qexport.pipeline.gguf import GgufTarget


def targets(root):
    return [
        GgufTarget(("Q4_K_M", "Q6_K", "Q8_0"), root / "gguf", verify=None),
        FolderTarget(MlxOptions(bits=6), root / "mlx", verify=None),
        FolderTarget(Fp8Options(), root / "fp8", verify=None),
        FolderTarget(Fp8Options(layout="compressed-tensors"), root / "fp8-ct", verify=None),
        FolderTarget(Nvfp4Options(scope="all-linear"), root / "nvfp4", verify=None),
        FolderTarget(Nvfp4Options(layout="compressed-tensors"), root / "nvfp4-ct", verify=None),
    ]


class Loads:
    """How often each row was loaded: read when it was not in memory, or no longer."""

    def __init__(self, checkpoint, monkeypatch):
        shapes = {name: matrix_shape(tensor.shape)[0] for name, tensor in checkpoint.tensors.items()}
        self.count = {name: np.zeros(rows, int) for name, rows in shapes.items()}
        self._held = {name: np.zeros(rows, int) for name, rows in shapes.items()}
        self._lock = threading.Lock()
        checkpoint.on_read = self._read
        release = LocalCheckpoint.release

        def given_back(mine, name, start, stop):
            if mine is checkpoint:
                with self._lock:
                    self._held[name][start:stop] = 0
            release(mine, name, start, stop)

        monkeypatch.setattr(LocalCheckpoint, "release", given_back)

    def _read(self, name, start, stop):
        with self._lock:
            self.count[name][start:stop] += 1 - self._held[name][start:stop]
            self._held[name][start:stop] = 1


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe", "llama3"])
def test_every_row_is_loaded_once_for_all_formats(zoo, tmp_path, monkeypatch, name):
    diagnosis = diagnose(open_checkpoint(str(zoo(name))))
    source = diagnosis.subject.checkpoint
    loads = Loads(source, monkeypatch)
    together = tmp_path / "together"
    written = export.write(export.plan(targets(together), diagnosis), diagnosis, threads=3)
    assert {item.plan.kind for item in written} >= {"gguf", "mlx", "fp8", "nvfp4"}
    assert {int(count.max()) for count in loads.count.values()} <= {0, 1}
    needed = {piece.name for item in written for t in item.plan.tensors for piece in t.source.pieces}
    assert all(loads.count[name].min() == 1 for name in needed & set(loads.count))
    assert {name for name, count in loads.count.items() if not count.any()} == set(source.tensors) - needed

    alone = tmp_path / "alone"
    for target in targets(alone):
        export.write(export.plan([target], diagnosis), diagnosis, threads=1)
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
