"""What a receipt says of a model: from its config and small files, whoever wrote those."""

from __future__ import annotations

import json
import shutil

import pytest
import zoo

from qexport.demo import MODEL
from qexport.evidence.prompt_format import one_turn
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.registry import FORMATS
from qexport.receipt.about import PROMPT, SYSTEM, About
from qexport.receipt.source_card import description_of
from qexport.receipt.typed import as_json, fit
from qexport.recipe.choice import ModelChoice
from qexport.run.about import about_of, parts_of
from qexport.run.model import examine


def diagnosed(path, **choice):
    return examine(ModelChoice(str(path), **choice), download=False)


@pytest.fixture(scope="module")
def demo():
    return diagnosed(MODEL)


def test_of_the_demos_model(demo):
    found = about_of(demo)
    assert found.sampling == {"temperature": 0.7, "top_k": 20, "top_p": 0.8}
    assert found.chat.prompt.endswith(f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n")
    assert SYSTEM in found.chat.prompt
    assert found.chat.thinking == ""
    assert found.description.startswith("A Qwen3.5-style hybrid of 4.0 million weights")
    assert (found.cache.most, len(found.cache.head)) == (4096, 1)
    notes = []
    assert fit(About, json.loads(json.dumps(as_json(found))), "about", notes) == found
    assert notes == []


def test_parts_hold_all_that_is_multiplied_with(demo):
    (plan,) = FORMATS["gguf"].plan(demo, GgufOptions(("Q4_K_M",)))
    parts = parts_of(demo, plan)
    assert set(parts) == {"embeddings", "attention", "linear attention", "MLP", "MTP head"}
    assert set(parts["MTP head"]) == {"Q6_K", "F32"}
    known = sum(size for kinds in parts.values() for size in kinds.values())
    assert 0.98 * plan.data_size < known <= plan.data_size


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>"
UNTHINKING = "{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}"
SWITCHED = {
    "off": f"{TEMPLATE}{{% if enable_thinking %}}<think>{{% endif %}}{{% endif %}}",
    "on": f"{TEMPLATE}{UNTHINKING}{{% endif %}}",
    "": f"{TEMPLATE}{{% endif %}}",
}


@pytest.mark.parametrize(("thinking", "template"), SWITCHED.items())
def test_whether_it_thinks_is_found_by_asking_the_template(thinking, template):
    text, found = one_turn({"chat_template.jinja": template.encode()}, "M", "S", "P")
    assert (text, found) == ("<system>S<user>P<a>", thinking)


def test_a_template_without_system_turns_is_shown_without():
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + SWITCHED[""]
    assert one_turn({"chat_template.jinja": refuses.encode()}, "M", "S", "P") == ("<user>P<a>", "")
    assert one_turn({}, "M", "S", "P") == ("", "")
    assert one_turn({"chat_template.jinja": b"{% broken"}, "M", "S", "P") == ("", "")


@pytest.mark.parametrize(
    ("config", "readme", "adapter", "base"),
    [
        ({"_name_or_path": "org/Base"}, None, None, "org/Base"),
        ({"_name_or_path": "/home/alice/base"}, None, None, ""),
        ({"_name_or_path": "./out"}, None, {"base_model_name_or_path": "org/B"}, "org/B"),
        ({"_name_or_path": "org/Old"}, "---\nbase_model:\n- org/Card\n---\n", None, "org/Card"),
        ({"_name_or_path": 3}, "---\nbase_model: [a/b, c/d]\n---\n", {"base_model_name_or_path": []}, ""),
    ],
)
def test_what_it_was_tuned_from(tmp_path, config, readme, adapter, base):
    source = zoo.build("qwen3", tmp_path / "M")
    path = source / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    if readme is not None:
        (source / "README.md").write_text(readme)
    if adapter is not None:
        (source / "adapter_config.json").write_text(json.dumps(adapter))
    assert about_of(diagnosed(source)).base == base


@pytest.mark.parametrize(
    ("readme", "words"),
    [
        (None, ""),
        (b"---\ndescription: Short and good.\n---\n\nA long paragraph about others.", "Short and good."),
        (b"# T\n\n- a list of things\n\n| a | table |\n\n```\ncode\n```\n\nIt explains things well.",
         "It explains things well."),
        (b"[A link](http://x) with **bold** text in <b>it</b>, and more.",
         "A link with bold text in it, and more."),
        (b"It was trained in /home/alice/run3 on many texts.", ""),
        (b"![badge](x) [![other](y)](z)\n\n<div>hidden things in here</div>", ""),
        (b"\xff\xfe broken bytes", ""),
    ],
)  # fmt: skip
def test_the_first_words_of_its_card(readme, words):
    assert description_of(readme) == words


def test_a_long_description_ends_with_a_sentence():
    found = description_of(("It is good at explaining things to people. " * 30).encode())
    assert len(found) <= 400
    assert found.endswith("people.")


def test_files_that_cannot_be_read_are_no_reason_to_fail(tmp_path):
    source = shutil.copytree(MODEL, tmp_path / "M")
    (source / "generation_config.json").write_text('{"temperature": true, "top_p": "x", "top_k": 1e9}')
    assert about_of(diagnosed(source)).sampling == {}
