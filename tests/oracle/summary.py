"""A GGUF file as a page of JSON, and two such pages compared.

    {"size": bytes, "kv": {key: [type, value]}, "tensors": ["name TYPE 256x512 0123456789abcdef", ...]}

Shapes are in GGUF order (row length first); the last word is the start of the sha256 of the tensor's bytes.
Strings over 120 characters and arrays over 16 elements are given as length and hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors import safe_open

LONG_STRING = 120
LONG_ARRAY = 16


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _value(value: Any) -> Any:
    if isinstance(value, list) and len(value) > LONG_ARRAY:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        return {"length": len(value), "sha": _hash(text.encode())}
    if isinstance(value, str) and len(value) > LONG_STRING:
        return {"length": len(value), "sha": _hash(value.encode())}
    return value


def summarize(path: Path) -> dict[str, Any]:
    """Every key, every tensor and the size of a GGUF file."""
    reader = gguf.GGUFReader(path)
    kv: dict[str, Any] = {}
    for key, entry in reader.fields.items():
        if key.startswith("GGUF."):
            continue
        kind = "/".join(t.name for t in entry.types)
        kv[key] = [kind, _value(entry.contents())]
    tensors = [
        " ".join(
            (
                tensor.name,
                tensor.tensor_type.name,
                "x".join(str(int(n)) for n in tensor.shape),
                _hash(tensor.data.tobytes()),
            )
        )
        for tensor in reader.tensors
    ]
    return {"size": path.stat().st_size, "kv": kv, "tensors": tensors}


def compare(
    ours: Path, golden: dict[str, Any], *, ignore_kv: Collection[str] = (), source: Path | None = None
) -> list[str]:
    """What differs between a file and a golden summary, one sentence each; empty when nothing does.

    The converter makes ``ssm_a`` with torch's exp, whose last bit depends on the processor (MKL's vector
    functions): it would write other bytes here than where the golden was made. With ``source``, the
    checkpoint, values that are an exponential to its last bit are as good as the golden's.
    """
    mine = summarize(ours)
    found: list[str] = []
    for key in sorted(mine["kv"].keys() | golden["kv"].keys()):
        if key in ignore_kv:
            continue
        have, want = mine["kv"].get(key), golden["kv"].get(key)
        if have is None:
            found.append(f"key {key} is missing; the toolchain writes {want[0]} {want[1]!r}")
        elif want is None:
            found.append(f"key {key} is ours alone: {have[0]} {have[1]!r}")
        elif have != want:
            found.append(f"key {key} is {have[0]} {have[1]!r}; the toolchain writes {want[0]} {want[1]!r}")
    left = {line.split(" ", 1)[0]: line.split(" ")[1:] for line in mine["tensors"]}
    right = {line.split(" ", 1)[0]: line.split(" ")[1:] for line in golden["tensors"]}
    found.extend(f"tensor {name} is missing" for name in right if name not in left)
    found.extend(f"tensor {name} is ours alone" for name in left if name not in right)
    for name in (name for name in right if name in left):
        for what, have, want in zip(("type", "shape", "bytes hash"), left[name], right[name], strict=True):
            if have != want:
                if what == "bytes hash" and source is not None and _is_exponential(ours, name, source):
                    break
                found.append(f"tensor {name}: {what} is {have}; the toolchain writes {want}")
                break
    if not found:
        if list(left) != list(right):
            n, at = next((n, p) for n, p in enumerate(zip(left, right, strict=True)) if p[0] != p[1])
            found.append(f"tensor {n} in the file is {at[0]}; the toolchain puts {at[1]} there")
        elif not ignore_kv and list(mine["kv"]) != list(golden["kv"]):
            found.append("the keys are the same but in another order")
        elif not ignore_kv and mine["size"] != golden["size"]:
            found.append(f"the file has {mine['size']} bytes; the toolchain's has {golden['size']}")
    return found


def _is_exponential(ours: Path, name: str, source: Path) -> bool:
    """Whether the tensor holds -exp(A_log) of its layer, in any order, to one unit in the last place.

    The order is that of ``ssm_dt.bias``, whose bytes have to be the golden's.
    """
    if not name.endswith(".ssm_a"):
        return False
    layer = name.split(".")[1]
    (tensor,) = (each for each in gguf.GGUFReader(ours).tensors if each.name == name)
    (logs,) = (
        file.get_tensor(key).double().numpy()
        for path in sorted(source.glob("*.safetensors"))
        for file in [safe_open(path, "pt")]
        for key in file.keys()  # noqa: SIM118  # no mapping
        if key.endswith(f"layers.{layer}.linear_attn.A_log")
    )
    exact = np.sort(-np.exp(logs).astype(np.float32))
    return bool((np.abs(np.sort(tensor.data) - exact) <= np.spacing(np.abs(exact))).all())


def source_digest(folder: Path) -> str:
    """Hash of a checkpoint folder: file names and bytes. A golden holds for one digest only."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        total.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:16]
