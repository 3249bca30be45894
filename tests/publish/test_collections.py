"""Repositories in collections: made once, added once, a slug taken as it is."""

import pytest
from exported_folders import export, gguf
from in_process import ok, run


def items(hub, slug):
    return [item["id"] for item in hub.collections[slug]["items"]]


def test_a_title_is_made_once_and_a_repository_added_once(hub, folder, tmp_path):
    words = ("push", folder, "alice/Tuned-GGUF", "--collection", "My Tunes")
    rehearsed = ok(*words, "--dry-run")
    assert "Would be added to the collection My Tunes." in rehearsed.stdout
    assert hub.collections == {}
    said = ok(*words).stderr
    (slug,) = hub.collections
    assert f"in the collection My Tunes: {hub.endpoint}/collections/{slug}" in said
    assert hub.collections[slug]["private"] is True
    ok(*words)
    other = export(tmp_path / "Other-GGUF", [gguf("Q8_0")])
    ok("push", other, "alice/Other-GGUF", "--collection", slug)
    assert items(hub, slug) == ["alice/Tuned-GGUF", "alice/Other-GGUF"]
    assert len(hub.collections) == 1


def test_a_recipe_names_it(hub, tmp_path):
    export(tmp_path / "out" / "Tuned-GGUF", [gguf("Q4_K_M")])
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "source: {model: alice/Tuned}\nartifacts: [{gguf: {types: [Q4_K_M]}}]\n"
        "publish: {repo: 'alice/{folder}', collection: 'All of {name}'}\n"
    )
    ok("push", tmp_path / "out", "--recipe", recipe)
    assert items(hub, "alice/all-of-tuned-0123abcd") == ["alice/Tuned-GGUF"]


@pytest.mark.parametrize("slug", ["alice/gone-0123abcd"])
def test_a_collection_that_is_not_there_is_said_after_the_push(hub, folder, slug):
    ran = run("push", folder, "alice/Tuned-GGUF", "--collection", slug)
    assert ran.code in (3, 6)
    assert "is in no collection yet" in ran.stderr
    assert hub.pushed["alice/Tuned-GGUF"].tree()
