"""Seeded damage to every kind of file that comes from outside, and what reads it.

A case is a kind and a number: the same damage on every machine. Whatever it is, the reader gives a value or
raises a QexportError; anything else, a case that takes long, or a file that appears beside the damaged one is
a fault. The suite runs some of each kind; thousands of each:

    python tests/fuzz/mutations.py header 6000 [FIRST]
"""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import re
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for folder in ("", "verify", "publish"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))

import zoo
from exported_folders import export, gguf
from verify_fakes import write_llama

from qexport.artifacts.layout import OnDisk
from qexport.doctor.explain import explain
from qexport.errors import QexportError
from qexport.evidence.imatrix_file import read_imatrix
from qexport.formats.gguf.reading import describe_gguf, open_gguf
from qexport.formats.weights import weights_of
from qexport.publishing.card import CardOptions, render_card
from qexport.receipt.folder import known_in
from qexport.receipt.store import read_receipt
from qexport.recipe.choice import ModelChoice
from qexport.recipe.load import load_recipe
from qexport.report.gather import gather
from qexport.report.write import html, lay_out
from qexport.run.model import examine
from qexport.run.receipts import entry_of
from qexport.verification.stored_numbers import check_numbers

SLOW = 10.0
"""Seconds of processor time that no case may take."""
# Written into the text afterwards: no parser of ours could make them.
_RAW = {
    "@BIG@": "9" * 5000,
    "@NEG@": "-" + "9" * 30,
    "@NAN@": "NaN",
    "@INF@": "-Infinity",
    "@DEEP@": "[" * 20_000 + "]" * 20_000,
    "@DEEPER@": '{"a":' * 5_000 + "1" + "}" * 5_000,
    "@FLOAT@": "1e400",
    "@HALF@": '"\\ud800"',
}
_ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 2**31, 2**31 - 1, -(2**31), 2**32, 2**53, 2**63, 2**64, 10**30,
    0.5, -0.0, 1e-5, 1e308, "", "x", "0", "1e-05", "4096.0", "\x00", "\x1b[31m", "../x", "/etc/passwd",
    "a" * 5000, "é\u202e", [], {}, [[]], [None], [0] * 70, [1.5, "x"], {"a": 1}, {"": None}, *_RAW,
)  # fmt: skip


def damaged_json(data: bytes, rng: random.Random) -> bytes:
    """Some values of a document replaced, removed, moved, repeated; or its text damaged."""
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        value = _damaged_value(value, rng)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.9)
    for word, raw in _RAW.items():
        text = text.replace(f'"{word}"', raw)
    chance = rng.random()
    if chance < 0.06:  # a key twice
        places = [match.end() for match in re.finditer(r"\{(?=\")", text)]
        keys = re.findall(r'"[a-z_]+":', text)
        if places and keys:
            at = rng.choice(places)
            text = f"{text[:at]}{rng.choice(keys)} 1,{text[at:]}"
    if chance > 0.94:
        other = text.encode("utf-16"), b"\xef\xbb\xbf" + text.encode(), text.encode("latin-1", "replace")
        return rng.choice(other)
    found = text.encode("utf-8", "surrogatepass")
    return damaged_bytes(found, rng) if 0.06 < chance < 0.12 else found


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place; of long lists only the ends, which else would be all there is."""
    yield path
    if isinstance(value, dict):
        keys = list(value)
        for key in keys if len(keys) < 100 else keys[:20] + keys[-20:]:
            yield from _paths(value[key], (*path, key))
    elif isinstance(value, list):
        for at in range(len(value)) if len(value) < 40 else (0, 1, len(value) - 1):
            yield from _paths(value[at], (*path, at))


def _damaged_value(value: Any, rng: random.Random) -> Any:
    paths = list(_paths(value))
    path = rng.choice(paths)
    if not path:
        return rng.choice(_ODD) if rng.random() < 0.3 else value
    holder = value
    for step in path[:-1]:
        holder = holder[step]
    last, action = path[-1], rng.random()
    if action < 0.2:
        del holder[last]
    elif action < 0.3:
        other: Any = value
        for step in rng.choice(paths):
            if not isinstance(other, dict | list) or (isinstance(other, dict) and step not in other):
                break
            other = other[step]
        holder[last] = json.loads(json.dumps(other))
    elif action < 0.36 and isinstance(holder, dict):
        holder[rng.choice(("", "x", "model_type", "../y", "a" * 300, str(last).upper()))] = holder.pop(last)
    elif action < 0.42 and isinstance(holder[last], list):
        holder[last] = (holder[last] * rng.choice((0, 2, 3)))[:5000]
    elif action < 0.5 and isinstance(holder[last], int | float):
        number = holder[last]
        holder[last] = rng.choice(
            (str(number), number + 1, number - 1, number * 1000, -number, float(number))
        )
    else:
        holder[last] = rng.choice(_ODD)
    return value


_SIZES = 0, 1, 64, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bits turned, a piece removed, repeated or put in, the end cut off."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(found) + 1)
        action = rng.randrange(6)
        if action == 0 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            found[at:at] = rng.choice((b"\0", b"\xff" * 8, b"\n", b"\x00\x00\x00\x80", rng.randbytes(9)))
        elif action == 2:
            del found[at : at + rng.choice((1, 8, 100))]
        elif action == 3:
            found[at:at] = found[at : at + rng.choice((4, 32, 200))]
        elif action == 4 and len(found) > 8:
            at = rng.randrange(len(found) - 7)
            found[at : at + 8] = struct.pack("<Q", rng.choice(_SIZES))
        elif action == 5 and rng.random() < 0.3:
            del found[at:]
    return bytes(found)


_WORDS = (
    "*a", "&a [*a]", "!!python/name:os.system", "{", "[" * 60, "- x", ": :", "<<: {a: 1}", "2026-02-31",
    "1:30:00", "0o777", "9" * 5000, "'", '"\\UFFFFFFFF"', '"\\0"', "\t", "@x", "%x", "`", "{a: 1, a: 2}",
    "---", "...", "~", "null", "../../x", "🙂", "\ufeff", "\x07", ".nan", "1e400", "!<x> y", "|9", "? x",
)  # fmt: skip


def damaged_text(data: bytes, rng: random.Random) -> bytes:
    """Lines removed, repeated, put deeper, or with odd words in place of theirs."""
    lines = data.decode().splitlines()
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, action = rng.randrange(max(1, len(lines))), rng.random()
        if not lines:
            break
        if action < 0.15:
            del lines[at]
        elif action < 0.3:
            lines.insert(rng.randrange(len(lines)), lines[at])
        elif action < 0.4:
            lines[at] = " " * rng.choice((1, 2, 3)) + lines[at]
        elif action < 0.8:
            head, colon, _ = lines[at].partition(":")
            lines[at] = f"{head}{colon} {rng.choice(_WORDS)}"
        else:
            lines.insert(at, rng.choice(_WORDS))
    found = "\n".join(lines).encode("utf-8", "surrogatepass")
    return damaged_bytes(found, rng) if rng.random() < 0.2 else found


@dataclass(frozen=True)
class Kind:
    """``damage`` makes a file's bytes from a healthy one's; ``read`` is told the folder."""

    file: str
    damage: Callable[[bytes, random.Random], bytes]
    read: Callable[[Path], object]
    base: Callable[[Path], object]
    rounds: int
    """Cases in the suite."""


def _model(name: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        zoo.build(name, folder)
        for file in folder.glob("*.safetensors"):
            _hollow(file)
        (folder / "README.md").write_bytes(_CARD)

    return make


def _hollow(file: Path) -> None:
    """The header alone; what stands behind it is a hole, so that a copy costs nothing."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = opened.read(length)
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", length) + header)
        opened.truncate(size)


def _plan(folder: Path) -> None:
    diagnosis = examine(ModelChoice(str(folder)), download=False)
    json.dumps(explain(diagnosis).to_json())
    weights_of(diagnosis)


def _header(data: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    if rng.random() < 0.4:
        return damaged_bytes(data[: 8 + length], rng) + data[8 + length :]
    header = damaged_json(data[8 : 8 + length], rng)
    return (
        struct.pack("<Q", len(header) + rng.choice((0, 0, 0, 0, 1, -1, 2**40))) + header + data[8 + length :]
    )


def _gguf(data: bytes, rng: random.Random) -> bytes:
    head = 4096 if rng.random() < 0.8 else len(data)
    return damaged_bytes(data[:head], rng) + data[head:]


def _read_gguf(folder: Path) -> None:
    path = folder / "model.gguf"
    check_numbers(describe_gguf(OnDisk(path)).numbers())
    open_gguf(OnDisk(path, _like()))


_LIKE: list[Any] = []


def _like() -> Any:
    """The model that GGUFs are held against."""
    if not _LIKE:
        folder = Path(tempfile.mkdtemp())
        zoo.build("llama", folder)
        _LIKE.append(examine(ModelChoice(str(folder)), download=False).repaired.view())
    return _LIKE[0]


def _receipt(folder: Path) -> None:
    read_receipt(folder)
    entry_of(folder, "0" * 64)
    artifacts = known_in(folder).artifacts
    render_card(artifacts, CardOptions(repo="a/b"))
    html(lay_out(gather([folder])))


def _recipe(folder: Path) -> None:
    load_recipe(folder / "r.yaml")


def _index(folder: Path) -> None:
    zoo.build("llama", folder, shards=3)


_CARD = b"""---
license: apache-2.0
base_model:
- org/Base
- org/Other
language: [en, no, de]
tags:
- merge
- text-generation
datasets: [a/b]
model-index:
- name: x
  results: [{task: {type: t}, metrics: [{type: acc, value: 0.5}]}]
pipeline_tag: text-generation
---
# A model
"""
_RECIPE = b"""source: {model: org/Model, revision: main, name: Tuned}
compare: {model: org/Base}
mtp: {mode: auto, base: org/Base}
calibration:
  tokens: 4096
  chunk: 512
verify: {prompts: [Hello], n_predict: 16}
measure: 0
gates: &gates
  min_acceptance: 0.4
artifacts:
  - gguf:
      types: [Q4_K_M, Q8_0]
      tensor_types: {attn: Q6_K}
      split_max_size: 2G
    gates:
      max_mean_kld: {Q4_K_M: 0.03}
  - mlx: {bits: 6}
    gates: *gates
  - nvfp4:
  - fp8:
    verify: false
publish:
  repo: me/{folder}
  card: {license: mit, tags: [a]}
"""


def _exported(folder: Path) -> None:
    export(folder, [gguf("Q4_K_M", 3000), gguf("Q8_0", 5000)])


def _matrix(folder: Path) -> None:
    golden = Path(__file__).parents[1] / "evidence" / "golden" / "llama.gguf.gz"
    (folder / "model.gguf").write_bytes(gzip.decompress(golden.read_bytes()))


KINDS: dict[str, Kind] = {
    "header": Kind("*.safetensors", _header, _plan, _model("llama"), 200),
    "config": Kind("config.json", damaged_json, _plan, _model("qwen3_5"), 150),
    "moe_config": Kind("config.json", damaged_json, _plan, _model("qwen3_moe"), 60),
    "tokenizer": Kind("tokenizer.json", damaged_json, _plan, _model("qwen3"), 60),
    "tokenizer_config": Kind("tokenizer_config.json", damaged_json, _plan, _model("qwen3"), 60),
    "generation": Kind("generation_config.json", damaged_json, _plan, _model("qwen3"), 60),
    "index": Kind("model.safetensors.index.json", damaged_json, _plan, _index, 100),
    "readme": Kind("README.md", damaged_text, _plan, _model("llama"), 100),
    "gguf": Kind("model.gguf", _gguf, _read_gguf, lambda f: write_llama(f / "model.gguf"), 200),
    "imatrix": Kind("model.gguf", _gguf, lambda f: read_imatrix(f / "model.gguf"), _matrix, 200),
    "receipt": Kind("qexport.json", damaged_json, _receipt, _exported, 200),
    "recipe": Kind("r.yaml", damaged_text, _recipe, lambda f: (f / "r.yaml").write_bytes(_RECIPE), 200),
}  # fmt: skip


def faults(name: str, numbers: Iterator[int] | range, work: Path) -> list[str]:
    """What went wrong, a traceback for each."""
    kind, folder = KINDS[name], work / "model"
    folder.mkdir(parents=True)
    kind.base(folder)
    file = next(folder.glob(kind.file))
    healthy = file.read_bytes()
    kind.read(folder)  # a base that is refused would prove nothing
    names = {path.name for path in folder.rglob("*")}
    found: list[str] = []
    for number in numbers:
        file.write_bytes(kind.damage(healthy, random.Random(f"{name} {number}")))
        begun = time.process_time()
        try:
            with warnings.catch_warnings(), contextlib.redirect_stderr(None):
                warnings.simplefilter("ignore")
                kind.read(folder)
        except QexportError as error:
            if not error.message.strip():
                found.append(f"{name} {number}: refused without a word")
        except Exception:  # noqa: BLE001
            found.append(f"{name} {number}: {traceback.format_exc()}")
        took = time.process_time() - begun
        if took > SLOW:
            found.append(f"{name} {number}: {took:.1f} s")
        if {path.name for path in folder.rglob("*")} != names:
            found.append(f"{name} {number}: something was written")
            names = {path.name for path in folder.rglob("*")}
    return found


def main() -> None:
    """``KIND COUNT [FIRST]``."""
    name, count = sys.argv[1], int(sys.argv[2])
    first = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    with tempfile.TemporaryDirectory() as work:
        found = faults(name, range(first, first + count), Path(work))
    places: dict[str, list[str]] = {}
    for each in found:
        lines = each.strip().splitlines()
        places.setdefault(f"{lines[-1][:150]} <- {lines[-3].strip() if len(lines) > 2 else ''}", []).append(
            each
        )
    for place, cases in sorted(places.items(), key=lambda item: -len(item[1])):
        print(f"{len(cases)} x {place}\n{cases[0]}\n")
    print(f"{name}: {count} cases, {len(found)} faults")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
