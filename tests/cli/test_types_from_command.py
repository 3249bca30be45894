"""``--types-from`` as it is typed, and as a recipe spells it."""

from collections import Counter

from in_process import run

from qexport.formats.fp8.options import Fp8Options
from qexport.recipe.load import load_recipe


def test_a_printed_plan_is_given_back(zoo, tmp_path):
    plan = tmp_path / "plan.json"
    words = ("gguf", zoo("llama"), "-q", "Q4_K_M")
    printed = run(*words, "--tensor-type", "attn=Q5_1", "--dry-run", "--json")
    assert printed.code == 0, printed.stderr
    plan.write_text(printed.stdout)
    again = run(*words, "--types-from", plan, "--dry-run", "--json")
    assert again.code == 0, again.stderr
    assert again.json()["artifacts"] == printed.json()["artifacts"]
    assert Counter(again.json()["artifacts"][0]["assignment"]["types"].values())["Q5_1"] > 10
    for command in ("mlx", "fp8", "nvfp4"):
        refused = run(command, zoo("llama"), "--types-from", plan, "--dry-run")
        assert refused.code == 3
        assert f"plan.json holds types for gguf, not for {command}" in refused.stderr


def test_a_recipe_names_it_beside_itself(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "source:\n  model: ./merged\n  name: X\nartifacts:\n"
        "  - gguf: {types: [Q4_K_M], types_from: plan.json}\n  - fp8: {types_from: ./other.json}\n"
    )
    first, second = load_recipe(recipe).artifacts
    assert first.options.types_from == tmp_path / "plan.json"
    assert second.options == Fp8Options(types_from=tmp_path / "other.json")
