"""Every command ends with the next one, to be copied as it stands; several types are one word."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest
from in_process import Ran, ok, run

from qexport.formats.gguf.file_types import PRESETS, file_type, file_types

if TYPE_CHECKING:
    from pathlib import Path

    from zoo_types import Zoo


def following(ran: Ran) -> list[str]:
    (line,) = (line for line in ran.stderr.splitlines() if line.startswith("Next: "))
    command, *words = shlex.split(line.removeprefix("Next: "))
    assert command == "qexport"
    return words


def test_from_a_merge_to_the_hub(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    merged, base, out = zoo("qwen3_5_text"), zoo("qwen3_5"), tmp_path / "my model"
    words = following(ok("inspect", merged, "--base", base))
    assert words == ["gguf", str(merged), "--base", str(base), "-q", "standard", "--imatrix"]
    fixed = tmp_path / "whole; one"
    words = following(ok("fix", merged, "--mtp-from", base, "-o", fixed))
    assert words == ["gguf", str(fixed), "-q", "standard", "--imatrix"]
    written = ok(*words[:2], "-q", "q8_0,F16", "-o", out, "--no-verify")
    assert {path.name for path in out.glob("whole*")} == {"whole-one-Q8_0.gguf", "whole-one-F16.gguf"}
    assert following(written) == ["verify", str(out)]
    assert following(ok("report", out)) == ["verify", str(out)]


def test_nothing_follows_what_failed_or_is_read_by_a_program(zoo: Zoo, tmp_path: Path) -> None:
    refused = run("gguf", zoo("qwen3_5"), "-q", "Q9", "-o", tmp_path)
    assert refused.code != 0
    assert "Next:" not in refused.stderr
    assert "Next:" not in ok("inspect", zoo("qwen3_5"), "--json").stderr


def test_lists_and_presets() -> None:
    assert file_types(["Q8_0,Q4_K_M", "standard"]) == ("Q8_0", "Q4_K_M", "Q5_K_M", "Q6_K")
    assert file_types(["Standard"]) == PRESETS["standard"]
    assert file_types(["q4_k_m, ", "Q4_K_M"]) == ("q4_k_m", "Q4_K_M")  # named as it was asked for
    assert file_types([]) == ()
    for types in PRESETS.values():
        assert [file_type(name).name for name in types] == list(types)
