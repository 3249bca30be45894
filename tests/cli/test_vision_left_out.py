"""A vision tower that a format leaves out is said when planning, when writing and in the receipt."""

import json

import pytest
from in_process import ok


@pytest.mark.parametrize(
    ("words", "model", "had", "noted"),
    [
        (("gguf", "-q", "Q8_0", "--no-mmproj"), "qwen3_5", True, True),
        (("mlx", "--text-only"), "qwen3_5", True, True),
        (("mlx",), "qwen3_5", True, False),
        (("fp8",), "qwen3_5", True, False),
        (("gguf", "-q", "Q8_0"), "qwen3_5_text", False, False),
    ],
)
def test_a_vision_tower_that_is_left_out_is_said_before_and_in_the_receipt(
    zoo, tmp_path, words, model, had, noted
):
    command, *rest = words
    dry = ok(command, zoo(model), *rest, "--dry-run", "--json").json()
    ran = ok(command, zoo(model), *rest, "-o", tmp_path / "out", "--no-verify")
    (entry,) = [
        each
        for each in json.loads((tmp_path / "out" / "qexport.json").read_text())["artifacts"]
        if each["kind"] == command
    ]
    assert entry["source"]["vision"] is had
    for notes in (dry["artifacts"][0]["notes"], entry.get("notes", [])):
        assert any("vision tower" in note for note in notes) is noted
    assert ("the vision tower is left out" in ran.stderr) is noted
