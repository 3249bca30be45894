"""A vocabulary as large as Qwen3.5's is parsed once in a run, whatever the number of types, and nothing heavy
is loaded to plan for it."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from in_process import run
from quirks_planted import change_config
from zoo_types import ZooCopy

from qexport.families import tokenizer as shared

TOKENS = 248_320
LARGE = 1_000_000
TYPES = ("-q", "Q4_K_M", "-q", "Q5_K_M", "-q", "Q6_K", "-q", "Q8_0")


def grow(folder: Path, *, gap: bool) -> None:
    """The tokenizer and the embedding with ``TOKENS`` rows; the new ones are zeros, and holes on disk.

    With ``gap`` the added tokens keep their ids, and the vocabulary goes on behind them.
    """
    document = json.loads((folder / "tokenizer.json").read_text())
    vocab, merges, added = document["model"]["vocab"], document["model"]["merges"], document["added_tokens"]
    own = list(vocab)
    ids = (n for n in range(TOKENS) if n not in {row["id"] for row in added} or not gap)
    room = TOKENS - len(added)
    numbers = {word: next(ids) for word in own}
    for left in own:
        for right in own:
            if len(numbers) >= room:
                break
            if (whole := left + right) not in numbers:
                numbers[whole] = next(ids)
                merges.append([left, right] if isinstance(merges[0], list) else f"{left} {right}")
    document["model"]["vocab"] = numbers
    if not gap:
        for n, row in enumerate(added):
            row["id"] = room + n
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False))
    change_config(folder, lambda config: config.update(vocab_size=TOKENS))
    file = folder / "model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    at = 0
    for name, entry in header.items():
        if name != "__metadata__":
            if name in ("model.embed_tokens.weight", "lm_head.weight"):
                entry["shape"][0] = TOKENS
            size = math.prod(entry["shape"]) * {"BF16": 2, "F32": 4}[entry["dtype"]]
            entry["data_offsets"] = [at, at + size]
            at += size
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(8 + len(text) + at)


@pytest.fixture(params=["plain", "gap"])
def large(request: pytest.FixtureRequest, zoo_copy: ZooCopy) -> Path:
    folder = zoo_copy("qwen3_5_text", hidden=64, intermediate=64, layers=4)
    grow(folder, gap=request.param == "gap")
    return folder


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who parsed something large."""
    found: list[str] = []
    decode, plain = json.JSONDecoder.decode, tokenizers.Tokenizer

    def counted(self: json.JSONDecoder, text: str, *rest: Any) -> Any:
        if len(text) > LARGE:
            found.append("json")
        return decode(self, text, *rest)

    class Counted:
        @staticmethod
        def from_str(text: str) -> tokenizers.Tokenizer:
            if len(text) > LARGE:
                found.append("tokenizers")
            return plain.from_str(text)

    monkeypatch.setattr(json.JSONDecoder, "decode", counted)
    monkeypatch.setattr(tokenizers, "Tokenizer", Counted)
    monkeypatch.setattr(shared, "_KEPT", {})
    return found


def test_once(large: Path, parsed: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run("inspect", large).code == 0
    assert parsed == ["json"]
    for more in ((*TYPES, "--dry-run"), ("-q", "Q8_0", "-q", "BF16", "--no-verify")):
        parsed.clear()
        monkeypatch.setattr(shared, "_KEPT", {})
        ran = run("gguf", large, *more, "-o", tmp_path / "out")
        assert ran.code == 0, ran.stderr
        assert parsed == ["json"]


def test_planning_loads_neither_torch_nor_numba(zoo_copy: ZooCopy, tmp_path: Path) -> None:
    folder = zoo_copy("qwen3_5_text")
    code = (
        "import sys\n"
        "from qexport.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "print(sorted({'torch', 'numba', 'transformers', 'huggingface_hub'} & set(sys.modules)))\n"
        "assert sys.argv[1] != 'inspect' or 'pydantic' not in sys.modules\n"  # it reads no recipe
    )
    for words in (("inspect", folder), ("gguf", folder, *TYPES, "--dry-run", "-o", tmp_path)):
        ran = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.splitlines()[-1] == "[]"
