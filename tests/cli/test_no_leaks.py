"""Nothing of the machine that exports is in what it exports: every file is searched for what was planted."""

import json

from in_process import ok
from quirks_planted import change_config, change_json

TOKEN = "hf_plantedPlantedPlanted"
HOME = "/home/planted-user/work"


def test_every_file_of_a_recipe(zoo_copy, tmp_path, monkeypatch):
    """Written by every format, without a runtime: those are searched with the demo's files."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("PLANTED_API_KEY", TOKEN[::-1])
    folder = zoo_copy("qwen3")
    change_config(folder, lambda c: {**c, "_name_or_path": f"{HOME}/base"})
    change_json(folder, "tokenizer_config.json", lambda c: {**c, "name_or_path": f"{HOME}/base"})
    (folder / "README.md").write_text(
        f"---\nbase_model: {HOME}/base\ndatasets: [{HOME}/data.jsonl]\ntags: ['x:{HOME}/y']\n---\n# Mine\n"
    )
    (tmp_path / "recipe.yaml").write_text(
        f"source: {{model: {folder}, name: Tuned}}\n"
        "artifacts:\n  - gguf: {types: [Q8_0]}\n  - mlx: {bits: 6}\n  - fp8:\n  - nvfp4:\n"
        "publish: {repo: 'me/{folder}'}\n"
    )
    out = tmp_path / "out"
    ran = ok("run", tmp_path / "recipe.yaml", "-o", out, "--no-verify", "--json")
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {".gguf", ".json", ".safetensors", ".html", ".md"} <= {path.suffix for path in files}
    planted = (TOKEN, TOKEN[::-1], HOME, "planted-user", str(tmp_path), str(folder))
    for path in files:
        data = path.read_bytes()
        if path.name == "README.md" and data.endswith(b"# Mine\n"):
            continue  # somebody's prose, as it was; a push puts a card in its place
        assert [word for word in planted if word.encode() in data] == [], path
    assert json.loads(ran.stdout)
    assert not [word for word in planted[:2] if word in ran.stdout + ran.stderr]
