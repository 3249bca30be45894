"""The recipes in recipes/ are right, and say what their names promise."""

import re
from pathlib import Path

import pytest

from qexport.checkpoint.opening import open_checkpoint
from qexport.recipe.load import load_recipe
from qexport.recipe.named import shipped_recipes
from qexport.recipe.select import units_of
from qexport.run.hf_jobs import check_portable
from qexport.run.jobs import MachineLimits, plan_jobs
from qexport.run.weigh import guess

FOLDER = Path(__file__).parents[2] / "recipes"
NAMES = sorted(path.name for path in FOLDER.glob("*.yaml"))


def test_the_example_of_the_documentation_is_right(tmp_path):
    text = (FOLDER.parent / "docs" / "recipes.md").read_text()
    example = tmp_path / "example.yaml"
    example.write_text(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    recipe = load_recipe(example)
    kinds = [artifact.kind for artifact in recipe.artifacts]
    assert kinds == ["gguf", "gguf", "mlx", "fp8", "nvfp4", "merged"]
    assert len(recipe.subjects) == 2


def test_they_are_all_here():
    assert sorted(f"{name}.yaml" for name in shipped_recipes()) == NAMES
    assert {name.partition(".")[0].partition("-")[0] for name in NAMES} == {
        *("demo", "llama", "mistral", "gemma3", "glm"),
        *("qwen2", "qwen3"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_right_and_fits_a_machine(name):
    recipe = load_recipe(FOLDER / name)
    burdens = [
        guess(recipe, each, 27e9, [unit for unit in units_of(recipe) if unit.subject == each.key])
        for each in recipe.subjects
    ]
    jobs = plan_jobs(recipe, burdens, MachineLimits(disk=150 * 10**9, memory=64 * 10**9))
    assert jobs
    sizes = {each.unit.short: each.nbytes for burden in burdens for each in burden.units}
    for artifact in recipe.artifacts:  # limits get looser as files get smaller
        largest_first = sorted(artifact.types, key=lambda t: -sizes[f"{artifact.name}:{t}"])
        limits = [artifact.gates.of(t).max_mean_kld for t in largest_first]
        assert limits == sorted(limits, key=lambda limit: limit or 0)
    if name != "demo.yaml":
        check_portable(recipe)


def test_the_base_is_exported_beside_the_tuned_model():
    recipe = load_recipe(FOLDER / "qwen3.5-9b.yaml")
    assert [subject.key for subject in recipe.subjects] == ["model", "compare"]


def test_the_demo_has_every_kind_and_its_model_is_here():
    recipe = load_recipe(FOLDER / "demo.yaml")
    assert {a.kind for a in recipe.artifacts} == {"gguf", "mlx", "fp8", "nvfp4", "merged"}
    assert (Path(recipe.subject("model").choice.model) / "config.json").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_at_the_head_of_a_recipe_work(name, zoo):
    """With a folder in the place of the model, as the comments say."""
    text = (FOLDER / name).read_text()
    path, word = re.escape(f"recipes/{name}"), re.escape(name.removesuffix(".yaml"))
    assert re.search(rf"qexport run ({path}|{word})[ `]", text)
    recipe = load_recipe(FOLDER / name, [f"source.model={zoo('qwen3_5')}", "source.name=Mine"])
    model = recipe.subject("model")
    assert open_checkpoint(model.choice.model, revision=model.choice.revision).tensors
