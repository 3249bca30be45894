"""Templates that are lost and ends that are wrong: each fails, and what is as in the source passes."""

from __future__ import annotations

import json

import pytest
from verify_fakes import FakeReference, FakeRuntime, generation, tokenizer_json, write_llama

from qexport.artifacts.description import folder_templates
from qexport.checkpoint.chat_templates import ChatTemplates
from qexport.families.view import ModelView
from qexport.formats.gguf.ends import KNOWN_BY_TEXT
from qexport.receipt.verification import Check, Status
from qexport.verification.conversation import (
    Ends,
    folder_ends,
    judge_ends,
    judge_template,
    source_ends,
    template_kept,
)
from qexport.verification.options import VerifyOptions
from qexport.verification.run import verify
from qexport.verification.runtime import Settings

ONE, OTHER = "{{ messages }}", "{{ messages[0] }}"
ANSWERS = [generation(range(24)), generation(range(30, 54)), generation()]


def view(**files) -> ModelView:
    given = {
        "tokenizer.json": tokenizer_json(),
        **{name.replace("__", "."): data for name, data in files.items()},
    }
    return ModelView("llama", "tiny", {}, {}, (), layers=2, mtp_layers=0, files=given)


def stopping(*ids: int, **more) -> ModelView:
    return view(generation_config__json=json.dumps({"eos_token_id": list(ids)}).encode(), **more)


# --- templates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "kept", "status"),
    [
        ({"default": ONE}, {"default": ONE}, Status.PASS),
        ({"default": ONE}, {"default": ONE + "\n"}, Status.PASS),
        ({"default": ONE}, {"default": OTHER}, Status.FAIL),
        ({"default": ONE}, {}, Status.FAIL),
        ({"default": ONE, "tool_use": OTHER}, {"default": ONE, "tool_use": OTHER}, Status.PASS),
        ({"default": ONE, "tool_use": OTHER}, {"default": ONE}, Status.FAIL),
        ({"default": ONE, "tool_use": OTHER}, {"tool_use": OTHER}, Status.FAIL),
        ({"chat": ONE}, {"default": ONE, "chat": ONE}, Status.PASS),
        ({}, {"default": ONE}, Status.SKIPPED),
    ],
)
def test_a_template_is_the_sources(source, kept, status):
    templates = ChatTemplates({"chat_template.jinja": source} if source else {})
    assert judge_template(templates, kept).status is status


def test_what_is_not_there_is_not_judged():
    assert judge_template(ChatTemplates({}), {}) is None
    assert judge_template(None, {}) is None
    assert judge_template(None, {"default": ONE}).status is Status.SKIPPED


def test_a_null_that_hides_a_template_hides_nothing_here():
    files = {"chat_template.jinja": ONE.encode(), "tokenizer_config.json": b'{"chat_template": null}'}
    source = view(chat_template__jinja=ONE.encode(), tokenizer_config__json=b'{"chat_template": null}')
    assert template_kept(source, lambda _: folder_templates(files)).status is Status.PASS
    hidden = {"tokenizer_config.json": b'{"chat_template": null}'}
    found = template_kept(source, lambda _: folder_templates(hidden))
    assert found.status is Status.FAIL
    assert "here is none" in found.summary


@pytest.mark.parametrize("template", ["", OTHER])
def test_a_gguf_that_lost_its_template_fails(tmp_path, template):
    path = write_llama(tmp_path / "tiny.gguf", template=template)
    runtime = FakeRuntime(list(ANSWERS), stops=frozenset({319}))
    source = stopping(319, chat_template__jinja=ONE.encode())
    options = VerifyOptions(reference=False)
    report = verify(path, view=source, runtime=runtime, options=options)
    assert report.finding(Check.TEMPLATE_KEPT).status is Status.FAIL
    assert not report.passed


# --- ends ---------------------------------------------------------------------------------------------------

SOURCE = Ends(
    frozenset({319}), frozenset({319, 318}), {319: "<|end|>", 318: "<|spare_58|>", 11: ",", 5: "<eos>"}
)


@pytest.mark.parametrize(
    ("ends", "status", "words"),
    [
        ({319}, Status.PASS, "<|end|>"),
        ({319, 318}, Status.PASS, ""),
        ({319, 5}, Status.PASS, ""),
        ({318}, Status.FAIL, "no end at '<|end|>' (319)"),
        (set(), Status.FAIL, "no end at"),
        ({319, 11}, Status.FAIL, "a reply ends at ',' (11), which ends nothing"),
        ({319, 400}, Status.FAIL, "a token without a text"),
        (None, Status.SKIPPED, "does not say"),
    ],
)
def test_ends_are_the_sources(ends, status, words):
    found = judge_ends(SOURCE, ends, by_text=KNOWN_BY_TEXT)
    assert found.status is status
    assert words in found.summary


def test_a_token_that_is_no_end_of_text_by_name_is_strange_where_names_do_not_count():
    assert judge_ends(SOURCE, {319, 5}).status is Status.FAIL


@pytest.mark.parametrize("source", [SOURCE, None])
def test_no_prompt_is_over_before_the_reply(source):
    found = judge_ends(source, {319}, [(1, 2, 3), (1, 2, 319)])
    assert found.status is Status.FAIL
    assert "behind every prompt" in found.summary
    begun = judge_ends(source, {319}, [(319, 2, 3), (319,)])  # a text may begin with it, and be nothing else
    assert begun.status is (Status.PASS if source else Status.SKIPPED)


def test_where_a_source_ends_a_reply():
    settings = json.dumps({"eos_token": "<|end|>"}).encode()
    found = source_ends(stopping(317, 318, tokenizer_config__json=settings))
    assert (found.required, found.allowed) == ({317, 318}, {317, 318, 319})
    assert found.texts[319] == "<|end|>"


def test_a_folders_own_files_are_asked_for_want_of_a_runtime():
    assert folder_ends({}, {"text_config": {"eos_token_id": 7}}) == {7}
    generation_config = {"generation_config.json": b'{"eos_token_id": [1, 106]}'}
    assert folder_ends(generation_config, {"eos_token_id": 7}) == {1, 106}


def test_the_runtimes_word_is_what_counts(tmp_path):
    path = write_llama(tmp_path / "tiny.gguf")
    options = VerifyOptions(reference=False)
    for stops, status in (({319}, Status.PASS), ({11}, Status.FAIL), (None, Status.SKIPPED)):
        ends = None if stops is None else frozenset(stops)
        report = verify(
            path, view=stopping(319), runtime=FakeRuntime(list(ANSWERS), stops=ends), options=options
        )
        assert report.finding(Check.ENDS).status is status


@pytest.mark.slow
@pytest.mark.parametrize(("eos", "status"), [(319, Status.PASS), (None, Status.FAIL), (7, Status.FAIL)])
def test_llama_cpp_says_where_it_ends_a_reply(tmp_path, eos, status):
    """Without an eos it takes token 11, whatever that is."""
    pytest.importorskip("xllamacpp")
    from qexport.verification.runtimes import Xllamacpp

    path = write_llama(tmp_path / "tiny.gguf", eos=eos)
    with Xllamacpp().open(path, Settings(threads=1, context=256, time_limit=120)) as session:
        assert session.ends() == {319, {None: 11}.get(eos, eos)}  # <|end|> is known by its text
    options = VerifyOptions(threads=1, n_predict=4, time_limit=120, reference=False)
    report = verify(path, view=stopping(319), options=options, reference=FakeReference())
    found = report.finding(Check.ENDS)
    assert found.status is status, found.summary
