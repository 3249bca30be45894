"""``fix --form`` writes either form, and says why where it cannot."""

from __future__ import annotations

import json

from in_process import ok, run


def form(folder):
    return "multimodal" if "vision_config" in json.loads((folder / "config.json").read_text()) else "text"


def test_either_form(zoo, tmp_path):
    base, merged = zoo("qwen3_5"), zoo("qwen3_5_text")
    done = ok("fix", merged, "--form", "multimodal", "--mtp-from", base, "-o", tmp_path / "whole", "--json")
    assert done.json()["vision"] == "grafted from qwen3_5"
    assert form(tmp_path / "whole") == "multimodal"
    source = json.loads((tmp_path / "whole" / "qexport.json").read_text())["artifacts"][0]["source"]
    assert (source["vision"], source["tower"]) == (True, "grafted from qwen3_5")
    done = ok("fix", tmp_path / "whole", "--form", "text", "-o", tmp_path / "text")
    assert "vision tower: dropped" in done.stdout
    assert form(tmp_path / "text") == "text"


def test_a_form_that_cannot_be(zoo, tmp_path):
    refused = run("fix", zoo("qwen3_5_text"), "--form", "multimodal", "-o", tmp_path / "out")
    assert refused.code == 3
    assert "there is no vision tower" in refused.stderr
    assert "--vision-from BASE" in refused.stderr
    both = run("fix", zoo("qwen3_5"), "--form", "text", "--vision", "keep", "-o", tmp_path / "out")
    assert both.code == 2
    assert "contradict" in both.stderr
    assert not (tmp_path / "out").exists()
