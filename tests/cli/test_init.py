"""`qexport init`, and the recipes that come with qexport: each dry-runs from headers as it stands."""

import re
import shutil

import pytest
import yaml
from in_process import ok, run

from qexport.recipe.load import load_recipe
from qexport.recipe.named import shipped_recipes

FAMILIES = ("qwen3_5", "llama3", "qwen3_moe", "qwen3_vl", "gemma3")
OF = {
    "llama": "llama3",
    "mistral": "mistral",
    "qwen2.5": "qwen2",
    "qwen3": "qwen3",
    "qwen3-30b-a3b": "qwen3_moe",
    "qwen3-vl-8b": "qwen3_vl",
    "gemma3": "gemma3",
    "glm-4.5-air": "glm4_moe",
    "qwen3.5-9b": "qwen3_5",
    "qwen3.6-27b": "qwen3_5",
    "qwen3.6-35b-a3b": "qwen3_5_moe",
    "demo": None,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_first_recipe_is_valid_and_dry_runs_at_once(zoo, tmp_path, family):
    path = tmp_path / "sub" / "first.yaml"
    ran = ok("init", zoo(family), "-o", path, "--owner", "me")
    assert ran.stderr.rstrip().endswith(f"Next: qexport run {path} --dry-run")
    text = path.read_text()
    recipe = load_recipe(path)
    left_out = set(re.findall(r"^  # not (\w+): ", text, re.MULTILINE))
    written = {each.kind for each in recipe.artifacts}
    assert written | left_out == {"gguf", "mlx", "fp8", "nvfp4"}
    assert recipe.subjects[0].choice.model == str(zoo(family).resolve())
    (job,) = ok("run", path, "--dry-run", "--json").json()
    assert job["exact"]
    # The sizes in its comments are those of the plan.
    sizes = re.findall(r"([\d.]+) (kB|MB)", text.split("artifacts:")[1].split("publish:")[0])
    assert len(sizes) >= len(written)


def test_what_is_lost_is_dropped_with_the_way_out_beside_it(zoo, tmp_path):
    path = tmp_path / "lost.yaml"
    model = tmp_path / "lost"
    shutil.copytree(zoo("qwen3_5_text"), model)
    config = model / "config.json"
    config.write_text(config.read_text().replace("{", '{"mtp_num_hidden_layers": 1, ', 1))
    said = ok("init", model, "-o", path)
    assert "has lost its MTP head" in said.stderr
    assert yaml.safe_load(path.read_text())["mtp"] == {"mode": "drop"}
    assert "mode: graft" in path.read_text()
    ok("run", path, "--dry-run")
    assert run("init", model, "-o", path).code == 2
    ok("init", model, "--base", zoo("qwen3_5"), "-o", path, "--overwrite")
    assert load_recipe(path).subjects[0].choice.base == str(zoo("qwen3_5").resolve())
    assert "mtp" in yaml.safe_load(path.read_text())
    ok("run", path, "--dry-run")


@pytest.mark.parametrize("name", ["tunéd 模型", "a+b", "two--dashes", "it's #1", "x" * 120])
def test_a_model_of_any_name_has_a_recipe(zoo, tmp_path, name):
    model, path = tmp_path / name, tmp_path / "first.yaml"
    shutil.copytree(zoo("llama3"), model)
    ok("init", model, "-o", path)
    ok("run", path, "--dry-run")


@pytest.mark.parametrize("owner", ["a/b c", "a/b", "", "-x", "é"])
def test_an_owner_that_the_hub_does_not_take_is_refused_before_anything_is_written(zoo, tmp_path, owner):
    path = tmp_path / "sub" / "first.yaml"
    refused = run("init", zoo("llama3"), "-o", path, f"--owner={owner}")
    assert refused.code == 2
    assert "--owner" in refused.stderr
    assert not path.parent.exists()


def test_a_recipe_that_would_not_load_is_not_written(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr("qexport.recipe.first.first_recipe", lambda *_: "publish: {repo: nobody}\n")
    assert run("init", zoo("llama3"), "-o", tmp_path / "first.yaml").code == 2
    assert not (tmp_path / "first.yaml").exists()


def test_every_family_has_a_recipe():
    assert set(OF) == set(shipped_recipes())


@pytest.mark.parametrize("name", sorted(OF))
def test_a_shipped_recipe_dry_runs_from_headers(zoo, name):
    """With a tiny model of its family in place of the one named; bases stay out of it."""
    sets = []
    if OF[name] is not None:
        given = yaml.safe_load(shipped_recipes()[name].read_text())
        sets = ["--set", f"source.model={zoo(OF[name])}"]
        for key in ("compare", "mtp"):
            sets += ["--set", f"{key}="] if key in given else []
    jobs = ok("run", name, "--dry-run", "--json", *sets).json()
    assert all(job["exact"] and job["output_bytes"] > 0 for job in jobs)
