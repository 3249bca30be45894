"""`push --recipe`, which is also what `run --push` and the workflow do."""

import pytest
import yaml
from exported_folders import VERIFIED, entry, export, gguf
from in_process import ok, run

from qexport.errors import InputError, UsageProblem
from qexport.publishing import push as push_module
from qexport.recipe.load import load_recipe
from qexport.recipe.publication import pushes
from qexport.recipe.select import select

RECIPE = """
source: {model: alice/Tuned}
artifacts:
  - gguf: {types: [Q4_K_M, Q8_0]}
  - mlx: {bits: 6}
publish:
  repo: "alice/{folder}"
  private: false
  card: {base_model: alice/Base, quantized_by: alice & co, license: mit, tags: [fast], language: [en]}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def out(tmp_path):
    made = tmp_path / "out"
    files = {"config.json": b"{}", "model.safetensors": b"w" * 9000}
    export(made / "Tuned-GGUF", [gguf("Q4_K_M"), gguf("Q8_0")])
    export(made / "Tuned-MLX-6bit", [(entry("6bit", files, kind="mlx"), files)])
    drafts = {"check": "mtp_head", "status": "pass", "summary": "60 % of 1020 drafts"}
    proven = {**VERIFIED, "findings": [*VERIFIED["findings"], drafts]}
    head = entry("6bit-MTP", files, kind="mlx-drafter", verification=proven)
    export(made / "Tuned-MLX-6bit-MTP", [(head, files)])
    return made


def matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_everything_goes_where_the_recipe_says_with_its_card(hub, out, recipe):
    ran = ok("push", out, "--recipe", recipe, "--json")
    wanted = ["alice/Tuned-GGUF", "alice/Tuned-MLX-6bit", "alice/Tuned-MLX-6bit-MTP"]
    assert [each["repo"] for each in ran.json()] == wanted
    assert set(hub.pushed) == set(wanted)
    for repo in wanted:
        assert not hub.pushed[repo].private
        found = matter(hub.pushed[repo].tree()["README.md"].decode())
        assert (found["base_model"], found["quantized_by"], found["license"]) == (
            "alice/Base",
            "alice & co",
            "mit",
        )
        assert "fast" in found["tags"]
        assert found["language"] == ["en"]


def test_run_and_push_have_one_way(recipe, out):
    loaded = load_recipe(recipe)
    made = pushes(loaded, select(loaded, ["gguf"]), out)
    assert [(each.folder, each.repo, each.public) for each in made] == [
        (out / "Tuned-GGUF", "alice/Tuned-GGUF", True)
    ]
    assert made[0].base_model == "alice/Base"


def test_a_part_of_it(hub, out, recipe):
    ok("push", out, "--recipe", recipe, "--only", "gguf:Q4_K_M")
    assert set(hub.pushed) == {"alice/Tuned-GGUF"}


def test_what_may_not_go_holds_up_no_other(hub, out, recipe):
    export(out / "Tuned-GGUF", [gguf("Q4_K_M", verification=None)])
    (out / "Tuned-GGUF" / "Tuned-Q8_0.gguf").unlink()
    ran = run("push", out, "--recipe", recipe)
    assert ran.code == 6
    assert "alice/Tuned-GGUF: not published" in ran.stderr
    assert set(hub.pushed) == {"alice/Tuned-MLX-6bit", "alice/Tuned-MLX-6bit-MTP"}


def test_the_command_line_has_the_last_word(hub, out, recipe):
    ok(
        "push",
        out,
        "--recipe",
        recipe,
        "--set",
        "publish.private=true",
        "--base-model",
        "bob/Other",
        "--only",
        "mlx",
    )
    found = matter(hub.pushed["alice/Tuned-MLX-6bit"].tree()["README.md"].decode())
    assert found["base_model"] == "bob/Other"
    assert hub.pushed["alice/Tuned-MLX-6bit"].private


def test_what_is_missing_is_said(out, recipe, tmp_path):
    loaded = load_recipe(recipe)
    with pytest.raises(InputError, match="no folder Tuned-GGUF"):
        pushes(loaded, select(loaded, []), tmp_path / "elsewhere")
    with pytest.raises(UsageProblem, match="does not say where to publish"):
        pushes(load_recipe(recipe, ["publish="]), select(loaded, []), out)


@pytest.mark.parametrize("words", [(), ("alice/x", "--recipe", "demo")])
def test_a_repository_or_a_recipe(out, words):
    assert run("push", out, *words).code == 2


def test_run_asks_for_repository_and_token_before_the_work(recipe, tmp_path, monkeypatch):
    """And not after hours of writing."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(push_module, "_secrets", lambda: ())
    opened = []
    monkeypatch.setattr("qexport.run.model.examine", lambda *_, **__: opened.append(1))
    assert run("run", recipe, "--push").code == 6
    assert run("run", recipe, "--push-dry-run", "--set", "publish=").code == 2
    assert not opened
