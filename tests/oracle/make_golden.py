"""Write `golden/<zoo name>/<variant>.json` anew: `python tests/oracle/make_golden.py [zoo name ...]`.

A variant is a type, with what else was asked for after it: `Q4_K_M`, `Q4_K_M.imatrix` (with the made-up
importance matrix of `imatrix.py`), `Q2_K_S.imatrix-full` (with one that lacks nothing), `BF16.no-mtp`,
`BF16.mtp` (head only), `Q4_K_M.no-mtp`. Types that llama-quantize makes are made from the float type the
checkpoint itself has ("via"), so nothing is rounded twice.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zoo import ZOO, build

from oracle import imatrix, toolchain
from oracle.summary import source_digest, summarize

GOLDEN = Path(__file__).parent / "golden"
TOWERS = Path(__file__).parent / "golden_mmproj"
MMPROJ: dict[str, dict[str, Any]] = {
    "qwen3_5": {"vision_intermediate": 72},  # no whole number of Q8_0 blocks
    "qwen3_5_moe": {},
    "qwen3_vl": {},
    "qwen3_vl_moe": {},
    "gemma3": {"form": "wrapper", "vision": True},
}
"""Towers that the converter writes with --mmproj, each in four types."""
FLOATS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
TOWER_TYPES = ("F32", "F16", "BF16", "Q8_0")
NATIVE = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}

EVERY = ("BF16", "F16", "Q8_0", "Q4_K_M", "Q6_K")
RICH = (
    "F32", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_0", "Q4_1", "Q4_K_S", "Q5_0", "Q5_1", "Q5_K_S", "Q5_K_M",
    "IQ4_NL", "IQ4_XS",
)  # fmt: skip
WEIGHTED = (
    "Q2_K.imatrix", "Q2_K_S.imatrix-full", "Q3_K_M.imatrix", "Q4_0.imatrix", "Q4_1.imatrix", "Q4_K_M.imatrix",
    "Q5_0.imatrix", "Q5_1.imatrix", "Q5_K_M.imatrix", "Q6_K.imatrix", "Q8_0.imatrix", "IQ4_NL.imatrix",
    "IQ4_XS.imatrix",
)  # fmt: skip
HEADS = ("BF16.mtp", "F16.mtp", "Q8_0.mtp", "Q4_K_M.mtp")
EXTRA: dict[str, tuple[str, ...]] = {
    "qwen3_5": (*RICH, *WEIGHTED, "BF16.no-mtp", "Q4_K_M.no-mtp", *HEADS),
    "qwen3_5_moe": ("Q2_K", "Q3_K_M", "Q4_K_S", "Q5_K_M", "IQ4_XS", *WEIGHTED, *HEADS[2:3]),
    "qwen3_5_tied": ("Q2_K", "Q3_K_M", "Q4_K_S", "Q5_K_M", "IQ4_NL", "IQ4_XS", "Q4_K_M.imatrix", *HEADS[2:3]),
    "smollm": (*RICH, "Q4_K_M.imatrix"),
    "qwen3_moe": ("Q2_K", "Q3_K_M", "Q4_K_S", "Q5_K_M", "IQ4_XS"),
    "llama3": (*RICH, "Q2_K_S.imatrix-full", "Q4_K_M.imatrix"),
    "mistral": ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q5_K_S", "Q5_K_M", "IQ4_XS"),
    "gemma3": ("Q3_K_L", "Q5_K_M"),
    "glm4_moe": (
        *RICH[:2], "Q3_K_M", "Q4_K_S", "Q5_K_M", "IQ4_XS", "Q4_K_M.imatrix", "BF16.no-mtp", *HEADS[::2],
    ),
}  # fmt: skip


def variants_of(name: str) -> tuple[str, ...]:
    """All golden variants of a zoo entry, float types first."""
    return (*EVERY, *EXTRA.get(name, ()))


def path_of(name: str, variant: str) -> Path:
    """Where a golden is kept."""
    return GOLDEN / name / f"{variant}.json"


def load(name: str, variant: str) -> dict[str, Any]:
    """A golden from the repository; a missing one is an error, never made on the fly."""
    golden: dict[str, Any] = json.loads(path_of(name, variant).read_text(encoding="utf-8"))
    return golden


def dump(path: Path, golden: dict[str, Any]) -> None:
    """JSON with one line per key and per tensor."""
    head = {k: v for k, v in golden.items() if k not in ("kv", "tensors")}
    lines = [f" {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}," for k, v in head.items()]
    kv = [f"  {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in golden["kv"].items()]
    tensors = [f"  {json.dumps(line)}" for line in golden["tensors"]]
    text = [
        "{",
        *lines,
        ' "kv": {',
        ",\n".join(kv),
        " },",
        ' "tensors": [',
        ",\n".join(tensors),
        " ]",
        "}",
        "",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(text), encoding="utf-8")


def make(name: str, work: Path) -> int:
    """Make all goldens of one entry; returns how many."""
    entry = ZOO[name]
    model = build(name, work / name)
    digest = source_digest(model)
    native = NATIVE[entry.options.dtype]
    made: dict[str, Path] = {}

    def floats(kind: str, extra: str) -> Path:
        key = f"{kind}.{extra}" if extra else kind
        if key not in made:
            flags = (*entry.convert_flags, *((f"--{extra}",) if extra else ()))
            out = work / f"{key}.gguf"
            made[key] = toolchain.convert(model, out, FLOATS[kind], pre=entry.pre, flags=flags)
        return made[key]

    shutil.rmtree(GOLDEN / name, ignore_errors=True)
    for variant in variants_of(name):
        kind, _, extra = variant.partition(".")
        about: dict[str, Any] = {"source": digest, "llama.cpp": toolchain.commit()[:12]}
        weighted = extra.startswith("imatrix")
        part = "" if weighted else extra
        if kind in FLOATS:
            path = floats(kind, part)
        else:
            about["via"] = native
            source = floats(native, part)
            matrix = None
            if weighted:
                lines = summarize(source)["tensors"]
                matrix = imatrix.write(work / "imatrix.gguf", lines, full=extra.endswith("-full"))
            path = work / "quantized.gguf"
            path.unlink(missing_ok=True)
            toolchain.quantize(source, path, kind, imatrix=matrix)
        dump(path_of(name, variant), {**about, **summarize(path)})
    return len(variants_of(name))


def make_towers(name: str, work: Path) -> None:
    """The goldens of a vision tower; their hash is of the whole file."""
    model = build(name, work / name, **MMPROJ[name])
    for kind in TOWER_TYPES:
        path = toolchain.convert(model, work / f"{kind}.gguf", kind.lower(), flags=("--mmproj",))
        about = {
            "source": source_digest(model),
            "llama.cpp": toolchain.commit()[:12],
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        dump(TOWERS / name / f"{kind}.json", {**about, **summarize(path)})


def main() -> None:
    """Regenerate the named entries, or all; behind `mmproj` the vision towers'."""
    if sys.argv[1:2] == ["mmproj"]:
        for name in sys.argv[2:] or MMPROJ:
            with tempfile.TemporaryDirectory(prefix="qexport-golden-") as work:
                make_towers(name, Path(work))
        return
    for name in sys.argv[1:] or ZOO:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="qexport-golden-") as work:
            count = make(name, Path(work))
        print(f"{name}: {count} goldens in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
