"""Conversations through the templates of the zoo's families, and through templates that refuse."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import zoo_tokenizers

from qexport.errors import InputError
from qexport.evidence import chat as chat_module
from qexport.evidence.chat import ChatRenderer
from qexport.evidence.corpus import builtin_corpus
from qexport.evidence.records import Chat

USER = {"role": "user", "content": "How many sacks?"}
ANSWER = {"role": "assistant", "content": "Eleven."}
SYSTEM = {"role": "system", "content": "You keep the books.\nBe exact."}
TOOL = {"type": "function", "function": {"name": "count_sacks", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "count_sacks", "arguments": {"day": "Monday"}}}
CALLING = Chat(
    (
        SYSTEM,
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"sacks": 11}'},
        ANSWER,
    ),
    (TOOL,),
)
THINKING = Chat((USER, {**ANSWER, "reasoning_content": "Six and five."}))

# As Qwen's templates treat them: reasoning of the answer, tools declared, calls and results in tags.
FULL = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}"
    "{% for k, v in c.function.arguments | items %} {{ k }}={{ v }}{% endfor %}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}"
)
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
)


def renderer(template: str, *, thinks: bool = False, **config: object) -> ChatRenderer:
    files = {"chat_template.jinja": template.encode(), "tokenizer_config.json": json.dumps(config).encode()}
    return ChatRenderer(files, thinks=thinks, label="mill")


@pytest.mark.parametrize("style", ["published", "saved"])
@pytest.mark.parametrize("kind", zoo_tokenizers.KINDS)
def test_zoo_templates(tmp_path: Path, kind: str, style: str) -> None:
    zoo_tokenizers.write(kind, tmp_path, style)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    made = ChatRenderer(files, thinks=False, label=kind)
    expected = {
        "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHow many sacks?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nEleven.<|eot_id|>",
        "llama2": "<s>[INST] How many sacks? [/INST] Eleven.</s>",
        "gemma": "<bos><start_of_turn>user\nHow many sacks?<end_of_turn>\n"
        "<start_of_turn>model\nEleven.<end_of_turn>\n",
        "glm": "[gMASK]<sop><|user|>\nHow many sacks?<|assistant|>\nEleven.",
    }
    chatml = "<|im_start|>user\nHow many sacks?<|im_end|>\n<|im_start|>assistant\nEleven.<|im_end|>\n"
    assert made.render(Chat((USER, ANSWER))) == (expected.get(kind, chatml), "template")


def test_tools_calls_and_reasoning() -> None:
    made = renderer(FULL, thinks=True)
    text, how = made.render(CALLING)
    assert how == "template"
    assert '"name": "count_sacks"' in text
    assert "<tool_call>count_sacks day=Monday</tool_call>" in text
    assert made.render(THINKING)[0].count("<think>\nSix and five.\n</think>\n\nEleven.") == 1
    assert made.counts == {"template": 2, "simplified": 0, "plain": 0}


def test_reasoning_that_a_template_leaves_out() -> None:
    plain = renderer(zoo_tokenizers.CHATML)
    assert "Six and five" not in plain.render(THINKING)[0]
    thinking = renderer(zoo_tokenizers.CHATML, thinks=True)
    assert "assistant\n<think>\nSix and five.\n</think>\n\nEleven.<|im_end|>" in thinking.render(THINKING)[0]


def test_tools_that_a_template_leaves_out_in_silence() -> None:
    made = renderer(zoo_tokenizers.CHATML)
    text, how = made.render(CALLING)
    assert how == "simplified"
    assert made.reason == "the template leaves out 'count_sacks'"
    assert [part.split("\n")[0] for part in text.split("<|im_start|>")[1:]] == ["user", "assistant"] * 2
    for word in (
        "You keep the books.\nBe exact.",
        '"name": "count_sacks"',
        '"day": "Monday"',
        '{"sacks": 11}',
    ):
        assert text.count(word) >= 1


def test_calls_that_a_template_leaves_out_though_it_declares_tools() -> None:
    made = renderer("{% if tools %}{{ tools | tojson }}{% endif %}" + zoo_tokenizers.CHATML)
    assert made.render(CALLING)[1] == "simplified"


def test_system_turn_refused() -> None:
    made = renderer(STRICT)
    text, how = made.render(Chat((SYSTEM, USER, USER, ANSWER)))
    assert how == "simplified"
    assert text == (
        "[user]You keep the books.\nBe exact.\n\nHow many sacks?\n\nHow many sacks?[assistant]Eleven."
    )
    assert made.reason == "the template refuses it: roles must alternate"


@pytest.mark.parametrize(
    "template",
    [
        "{% for %}",
        "{{ raise_exception('no') }}",
        "{{ 1 + 'a' }}",
        "{{ missing.attribute }}",
        "{{ messages[9].role }}",
    ],
)
def test_templates_that_refuse_everything(template: str) -> None:
    made = renderer(template)
    text, how = made.render(Chat((SYSTEM, *THINKING.messages)))
    assert how == "plain"
    assert text == "You keep the books.\nBe exact.\n\nHow many sacks?\n\nSix and five.\n\nEleven."
    assert made.reason.startswith("the template refuses it: ")


def test_no_template() -> None:
    made = ChatRenderer({}, thinks=False, label="mill")
    assert made.render(Chat((USER, ANSWER))) == ("How many sacks?\n\nEleven.", "plain")
    assert made.reason == "the model has no chat template"


def test_special_words_and_a_fixed_date() -> None:
    template = (
        "{{ bos_token }}{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    made = renderer(template, bos_token={"content": "<s>", "lstrip": False})
    assert made.render(Chat((USER,)))[0] == "<s>01 Jan 2026How many sacks?"


def test_ids_for_templates_that_want_them() -> None:
    template = (
        "{{ tools[0].function.name }}{% for m in messages %}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<{{ c.function.name }} {{ c.id }}>{% endfor %}"
        "{% if m.role == 'tool' %}<{{ m.tool_call_id }}>{% endif %}{% endfor %}"
    )
    text, how = renderer(template).render(CALLING)
    assert how == "template"
    assert "<count_sacks call00001>" in text
    assert '{"sacks": 11}<call00001>' in text


def test_template_for_tools() -> None:
    rows = [
        {"name": "default", "template": "D{{ messages[0].content }}"},
        {"name": "tool_use", "template": "T" + FULL},
    ]
    files = {"tokenizer_config.json": json.dumps({"chat_template": rows}).encode()}
    made = ChatRenderer(files, thinks=False, label="mill")
    assert made.render(Chat((USER,)))[0] == "DHow many sacks?"
    assert made.render(CALLING)[0].startswith("T<|im_start|>tools")


def test_the_conversation_is_left_alone() -> None:
    before = json.dumps(CALLING.as_json())
    renderer("{% for m in messages %}{% set _ = m.update({'content': 'x'}) %}{% endfor %}").render(CALLING)
    renderer(zoo_tokenizers.CHATML).render(CALLING)
    assert json.dumps(CALLING.as_json()) == before


def test_every_built_in_conversation_fits_a_full_template() -> None:
    made = renderer(FULL, thinks=True)
    for record in builtin_corpus().records:
        if isinstance(record.content, Chat):
            assert made.render(record.content)[1] == "template", record.content


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"chat_template.jinja": b"\xff"}, r"mill: chat_template\.jinja is not UTF-8"),
        ({"chat_template.json": b"{"}, r"mill: chat_template\.json is not JSON"),
        ({"tokenizer_config.json": b"[]"}, r"mill: tokenizer_config\.json holds a JSON list"),
    ],
)
def test_damaged_files(files: dict[str, bytes], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ChatRenderer(files, thinks=False, label="mill")


HOSTILE = {
    "endless": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "long": "{% set x = 'a' * 10**10 %}{{ x | length }}",
    "doubled": "{% set n = namespace(s='a') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "wide": "{{ '%10000000000d' % 1 }}",
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "deep": "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}",
    "escape": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "change": "{{ messages.append(1) }}",
    "much": "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "nested": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_bounded_and_reported(monkeypatch, name):
    monkeypatch.setattr(chat_module, "_PATIENCE_S", 3.0)
    monkeypatch.setattr(chat_module, "_MEMORY", 1 << 28)
    made = renderer(HOSTILE[name])
    started = time.monotonic()
    for _ in range(3):
        text, how = made.render(Chat(({"role": "user", "content": "hello"},)))
        assert (text, how) == ("hello", "plain")
    assert time.monotonic() - started < 25
    assert made.reason
    if name in ("endless", "long", "doubled"):
        assert "killed" in made.reason


def test_a_rendering_is_that_of_transformers():
    """Loop controls, generation blocks, tojson, the words and the whitespace rules."""
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    template = (
        "{{ bos_token }}\n{%- if tools %}\n  {{ tools | tojson(indent=2) }}\n{% endif %}\n"
        "{% for m in messages %}\n  {% if m.role == 'skip' %}{% continue %}{% endif %}\n"
        "{% generation %}<{{ m.role }}>{{ m | tojson }} é\n{% endgeneration %}\n{% endfor %}"
        "{{ strftime_now('%d %b %Y') }}{% if add_generation_prompt %}no{% endif %}"
    )
    messages = ({"role": "user", "content": "ü <&> \n"}, {"role": "assistant", "content": "x"})
    tools = ({"type": "function", "function": {"name": "f", "parameters": {"z": 1, "a": [2.5, None]}}},)
    made = renderer(template, bos_token="<s>")
    text = made._through_template(Chat(messages, tools))
    (expected,), _ = utils.render_jinja_template(
        conversations=[list(messages)],
        tools=list(tools),
        chat_template=template,
        strftime_now=datetime(2026, 1, 1, tzinfo=UTC).strftime,
        bos_token="<s>",
    )
    assert text == expected
