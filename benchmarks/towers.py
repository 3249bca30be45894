"""Towers of real widths, random weights: what llama.cpp and mlx-vlm make of pictures, beside transformers.

    python benchmarks/towers.py [qwen3_5-9b qwen3_5-27b qwen3_vl-4b gemma3] [--mlx-vlm PYTHON] [--work FOLDER]

A checkpoint has the whole tower (all blocks, all widths) and a language model of its width that is otherwise
tiny; of Gemma 3 the picture is a quarter as wide, which leaves 256 of 4096 patches. Each line is one file or
folder: its error as verification computes it, and what verification allows. The files are made in a temporary
folder (about 5 GB), in FOLDER if that is given.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import zoo

from qexport.artifacts.layout import OnDisk
from qexport.checkpoint.opening import open_checkpoint
from qexport.doctor.diagnose import diagnose
from qexport.formats.gguf.mmproj import plan_mmproj
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.mlx.plan import plan_mlx
from qexport.formats.opening import layout_of
from qexport.onepass.execute import execute
from qexport.verification.folder_runtimes import folder_runtime
from qexport.verification.images import Images, images_for, judge_embeddings
from qexport.verification.options import VerifyOptions
from qexport.verification.runtime import Settings
from qexport.verification.runtimes import Xllamacpp
from qexport.verification.sight import SourceSight

TYPES = ("F32", "F16", "BF16", "Q8_0")
WIDE = {"hidden_size": 1152, "num_heads": 16, "num_position_embeddings": 2304}
# By name: the zoo's model, its options, and sizes of the tower that the zoo has beside them.
TOWERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen3_5-9b": ("qwen3_5", {"hidden": 4096, "vision_depth": 27, "vision_intermediate": 4304}, WIDE),
    "qwen3_5-27b": ("qwen3_5", {"hidden": 5120, "vision_depth": 27, "vision_intermediate": 4304}, WIDE),
    "qwen3_vl-4b": (
        "qwen3_vl",
        {"hidden": 2560, "vision_depth": 24, "vision_intermediate": 4096, "deepstack": (5, 11, 17)},
        {**WIDE, "hidden_size": 1024},
    ),
    "gemma3": (
        "gemma3",
        {"form": "wrapper", "vision": True, "hidden": 2560},
        {
            "hidden_size": 1152,
            "image_size": 224,  # of 896
            "intermediate_size": 4304,
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "patch_size": 14,
        },
    ),
}


def towers_of(name: str, work: Path, mlx_vlm: Path | None) -> Iterator[tuple[str, float, float]]:
    """Each file or folder with its error and its limit."""
    model, options, sizes = TOWERS[name]
    (zoo.SIGLIP if model == "gemma3" else zoo.VISION).update(sizes)
    diagnosis = diagnose(open_checkpoint(str(zoo.build(model, work / "source", **options))))
    view = diagnosis.repaired.view()
    types = GgufOptions(types=("BF16",), mmproj=TYPES)
    execute([*plan_gguf(view, types.types, types), *plan_mmproj(view, types)], work / "gguf")
    (file,) = (path for path in (work / "gguf").glob("*.gguf") if "mmproj" not in path.name)
    source = SourceSight(view).embeddings
    settings = Settings(threads=1, time_limit=3600)

    def shown(path: Path) -> Images:
        found = OnDisk(path)
        images = images_for(layout_of(found).describe(found), view, VerifyOptions())
        assert isinstance(images, Images)
        return images

    images = shown(file)
    for tower in images.towers:
        with Xllamacpp().open_tower(file, replace(settings, projector=tower)) as session:
            yield judged(tower.name, [session.embed(seen) for seen in images.shown], source, images)
    if mlx_vlm is not None:
        execute(plan_mlx(diagnosis.repaired, MlxOptions())[:1], work / "mlx")
        images = shown(work / "mlx")
        with folder_runtime("mlx-vlm", mlx_vlm).open(work / "mlx", settings) as session:
            yield judged("mlx", [session.embed(seen) for seen in images.shown], source, images)


def judged(
    name: str, rows: list[np.ndarray], source: tuple[np.ndarray, ...], images: Images
) -> tuple[str, float, float]:
    verdict = judge_embeddings({name: rows}, source, images.limits)
    found = verdict.data["towers"][name]
    return name, found["error"], found["limit"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="TOWER", help=f"of {', '.join(TOWERS)}")
    parser.add_argument("--mlx-vlm", metavar="PYTHON", type=Path, help="an interpreter that has mlx-vlm")
    parser.add_argument("--work", metavar="FOLDER", type=Path)
    args = parser.parse_args()
    print("| tower | file | error | at most |\n|---|---|---|---|")
    for name in args.names or TOWERS:
        with tempfile.TemporaryDirectory(dir=args.work) as work:
            for file, error, limit in towers_of(name, Path(work), args.mlx_vlm):
                print(f"| {name} | {file} | {error:.3%} | {limit:.2%} |", flush=True)


if __name__ == "__main__":
    main()
