"""Sampling defaults for Ollama: of the model's own settings, in the repository and its sums."""

import json

from exported_folders import export, gguf
from in_process import ok

SAMPLING = {"temperature": 0.7, "top_k": 20.0, "top_p": 0.8, "repetition_penalty": 1.05}


def told(folder, sampling):
    path = folder / "qexport.json"
    receipt = json.loads(path.read_text())
    for artifact in receipt["artifacts"]:
        artifact["source"]["about"] = {"sampling": sampling}
    path.write_text(json.dumps(receipt))


def test_what_the_model_recommends_goes_along_if_asked_for(hub, tmp_path):
    folder = export(tmp_path / "Tuned-GGUF", [gguf("Q4_K_M")])
    told(folder, SAMPLING)
    ok("push", folder, "alice/Plain-GGUF")
    assert "params" not in hub.pushed["alice/Plain-GGUF"].tree()
    ok("push", folder, "alice/Tuned-GGUF", "--ollama")
    files = hub.pushed["alice/Tuned-GGUF"].tree()
    assert json.loads(files["params"]) == {
        "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repeat_penalty": 1.05,
    }  # fmt: skip
    assert b'top_k": 20,\n' in files["params"]
    assert "  params" in files["SHA256SUMS"].decode()
    assert "already holds all of it" in ok("push", folder, "alice/Tuned-GGUF", "--ollama").stdout


def test_nothing_where_nothing_is_recommended(hub, tmp_path):
    folder = export(tmp_path / "Tuned-GGUF", [gguf("Q4_K_M")])
    ok("push", folder, "alice/Tuned-GGUF", "--ollama")
    assert "params" not in hub.pushed["alice/Tuned-GGUF"].tree()
