"""What is shown or pasted from a card or a report is safe, whoever wrote the receipt and named the model.

Every text of an entry is replaced in turn and all together; the rendered page must have the very structure
that plain words give it, no links but to the web, no tags but ours, and commands that a shell reads as one.
"""

import ast
import copy
import json
import re
import shlex
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from exported_folders import FAILED, entry, export, gguf, parsed
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import run
from markdown_it import MarkdownIt

sys.path.insert(0, str(Path(__file__).parents[1] / "recipe"))
from recipe_texts import SMALL, load

from qexport.errors import InputError, UsageProblem
from qexport.publishing.card import CardOptions, render_card
from qexport.publishing.kept import KEEP_END, KEEP_START, read_kept
from qexport.receipt.safe_text import cell, code, hub_link, visible, without_hidden
from qexport.receipt.source_card import source_card
from qexport.recipe.arrived import look, markdown
from qexport.recipe.select import units_of
from qexport.report import write_report

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</details></summary><h1>x",
    "[click](javascript:alert(1))",
    "![x](http://evil/x.png)",
    "<https://evil>",
    "[a]: javascript:x",
    "a | b | c",
    "a\n\n# Heading\n\n```sh\nrm -rf ~\n```",
    "```",
    "`rm -rf`",
    "``` ` ``",
    "a\r\n- b\u2028c\u2029d\x0be\x85f",
    "\x1b]8;;http://evil\x07x\x1b[0m",
    "safe\u202egpj.exe\u202c \u2066x\u2069 \u200b\u200e\ufeff",
    "**bold** _em_ ~~gone~~ $x$ \\",
    "# one",
    "> [!WARNING]",
    "- - -",
    "1. x",
    "===",
    "&lt;b&gt; &#106;avascript: &amp;",
    "{{ 7*7 }}{% for x in y %}",
    "'; rm -rf ~ #",
    '"$(reboot)" `reboot` && x',
    "<!-- /qexport:keep -->",
    "---\nlicense: evil\n---",
    "\ud800x",
    "e\u0301\U0001f600",
]
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
PROGRAMS = ("llama-server", "llama-cli", "hf", "pip", "vllm", "python")
PROGRAMS += ("mlx_lm.generate", "mlx_lm.server", "mlx_vlm.generate", "ollama", "lms")
OUR_TAGS = re.compile(r"<!--[^<>]*-->|</?details>|</?summary>|</?b>")
# Words that mean something to the program: everything else of an entry may say what it likes.
FIXED = {"kind", "label", "name", "sha256", "severity", "status", "check", "written", "path"}


def entries():
    files = {"mlx/config.json": b"{}", "mlx/model.safetensors": b"w" * 9}
    facts = {"file": "m.gguf_file", "datasets": ["calib"], "calibration": {"tokens": 12}}
    card = {
        "license": "other",
        "license_name": "name",
        "license_link": "https://example.org/x",
        "language": ["en"],
    }
    source = {
        "label": "alice/Tuned@0123abcd",
        "revision": "0123",
        "files": {},
        "mtp": "grafted from a/b",
        "card": card,
        "about": {
            "cache": {"keys": [{"layers": 1, "values": 512}], "most": 4096},
            "chat": {"prompt": "<s>{prompt}", "thinking": "on"},
            "sampling": {"top_k": 20},
            "description": "It explains.",
            "base": "org/Base",
        },
    }
    return [
        gguf("Q4_K_M", options={"imatrix": facts}, source=source)[0],
        gguf("Q8_0", verification={**FAILED, "verdict": "fail: words"}, source={**source, "label": "local"})[
            0
        ],
        entry("6bit", files, kind="mlx"),
        entry("imatrix", {"m.gguf_file": b"m"}, kind="imatrix", verification=None),
    ]


def places(value, path=()):
    """Every place of a text that may be anything."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in FIXED:
                yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from places(inner, (*path, at))
    elif isinstance(value, str):
        yield path


def planted(text, where=None):
    made = copy.deepcopy(entries())
    for path in list(places(made)):
        if where is None or path == where:
            at = made
            for step in path[:-1]:
                at = at[step]
            at[path[-1]] = text
    return made


def rendered(made, **options):
    return render_card([parsed(each) for each in made], CardOptions("bob/Tuned-GGUF", **options))


def structure(text):
    """The kinds of all blocks, without what is in their lines."""
    return [(token.type, token.tag) for token in MARKDOWN.parse(text) if token.type != "inline"]


def check_markdown(text):
    """No tags but ours, links to the web or to files beside, nothing that is not seen."""
    assert not [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs")]
    for block in MARKDOWN.parse(text):
        for token in (block, *(block.children or ())):
            if token.type in ("html_block", "html_inline"):
                assert "<" not in OUR_TAGS.sub("", token.content), token.content
            assert token.type != "image"
            if token.type == "link_open":
                assert re.match(r"https?://[\w.-]+/|\./|#verification$", token.attrs["href"]), token.attrs
            if token.type == "fence" and token.info == "sh":
                check_commands(token.content)
            if token.type == "fence" and token.info == "python":
                check_python(token.content)


def check_commands(text):
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            assert words[0] in PROGRAMS
            assert not re.search(r"[;&|`$<>]", re.sub(r"'[^']*'|\"[^\"$`]*\"", "", line)), line


def check_python(text):
    """Nothing is called but what the card itself writes: all else are literals."""
    called = {ast.unparse(each.func) for each in ast.walk(ast.parse(text)) if isinstance(each, ast.Call)}
    assert called <= {"Llama.from_pretrained", "print", "llm.create_chat_completion", "pipeline", "see"}


def halves(card):
    """The front matter and the rest, as the Hub divides them."""
    assert card.startswith("---\n")
    end = card.index("\n---\n", 3)
    return card[4:end], card[end + 5 :]


def check_card(text, *, alike):
    matter, body = halves(text)
    values = yaml.safe_load(matter)
    assert isinstance(values, dict)
    assert set(values) <= set(yaml.safe_load(halves(alike)[0]))
    assert all(without_hidden(word) == word.replace("\n", " ") for word in json_words(values))
    check_markdown(body)
    return values, body


def json_words(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from json_words(each)
    elif isinstance(value, str):
        yield value


WORD = "word"
PLAIN = rendered(planted(WORD))


@pytest.mark.parametrize("text", HOSTILE)
def test_a_card_of_hostile_words_has_the_structure_of_a_plain_one(text):
    values, body = check_card(rendered(planted(text)), alike=rendered(entries()))
    assert "license_link" not in values
    assert structure(body) == structure(halves(PLAIN)[1])


def test_each_place_by_itself():
    mixed = "a|b\n\n<script>x</script>[y](javascript:z)`\u202e"
    for path in places(entries()):
        check_card(rendered(planted(mixed, path)), alike=rendered(entries()))


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec=None), max_size=40).filter(lambda text: visible(text)))
def test_any_words(text):
    _, body = check_card(rendered(planted(text)), alike=rendered(entries()))
    assert structure(body) == structure(halves(PLAIN)[1])


@pytest.mark.parametrize("text", HOSTILE)
def test_files_and_included_names(text):
    """A name that could break out of a line is refused; any other is quoted wherever it stands."""
    name = f"{text}.gguf".replace("/", "_").strip("-")
    try:
        value = parsed(entry("Q4_K_M", {name: b"x" * 9}))
    except InputError:
        assert visible(text) != text or "\\" in text
        return
    card = render_card([value], CardOptions("bob/x", included=(text,)))
    _, body = check_card(card, alike=card)
    fence = next(token.content for token in MARKDOWN.parse(body) if token.type == "fence")
    assert name in [word for line in fence.splitlines() for word in shlex.split(line, comments=True)]


@pytest.mark.parametrize(
    "name", ["-rf.gguf", "a/-x.gguf", "a\x1b[2J.gguf", "\u202ex.gguf", "a\u2028b.gguf", "a\tb.gguf"]
)
def test_names_that_no_command_can_take(name):
    with pytest.raises(InputError, match="is not a name inside the folder"):
        parsed(entry("Q4_K_M", {name: b"x"}))


@pytest.mark.parametrize("label", ["a b", "<b>", "-x", "a\nb", "$(x)", "", "x" * 97, "a|b"])
@pytest.mark.parametrize("field", ["label", "kind"])
def test_labels_and_kinds_follow_a_pattern_before_they_are_published(tmp_path, label, field):
    made, files = gguf("Q4_K_M")
    ran = run("push", export(tmp_path / "x", [({**made, field: label}, files)]), "alice/x", "--dry-run")
    assert ran.code == 3
    assert "no label of an artifact" in ran.stderr


@pytest.mark.parametrize(
    ("link", "stays"),
    [
        ("https://example.org/licence", True),
        ("http://example.org", True),
        ("LICENSE", True),
        ("LICENSE.md", True),
        ("javascript:alert(1)", False),
        ("data:text/html,x", False),
        ("//evil.org", False),
        ("https://", False),
        ("https://a b", False),
        ("https://a/\u202e", False),
        ("../x", False),
        ("file:///etc/passwd", False),
    ],
)
def test_links_of_a_licence_lead_to_the_web(link, stays):
    readme = yaml.safe_dump({"license": "other", "license_link": link})
    assert ("license_link" in source_card(f"---\n{readme}---\n".encode())) == stays
    made = entries()
    made[0]["source"]["card"]["license_link"] = link  # a receipt that somebody else wrote
    assert ("license_link" in yaml.safe_load(halves(rendered(made))[0])) == stays


@pytest.mark.parametrize("text", HOSTILE)
def test_an_earlier_card_says_nothing_but_words(text):
    """Of its front matter; what stands between the markers is a person's own text."""
    matter = yaml.safe_dump({"base_model": text, "x": [text], "license": text})
    try:
        kept = read_kept(f"---\n{matter}---\n{KEEP_START}\nmine\n{KEEP_END}\n", "x")
    except UsageProblem:  # the reader of front matter takes no such characters, and the push ends there
        return
    made = entries()
    for each in made:
        each["source"]["label"] = "local"
    card = rendered(made, kept=kept)
    check_card(card, alike=card)


@pytest.mark.parametrize("text", HOSTILE)
def test_reports_and_step_summaries(tmp_path, text):
    made = planted(text.replace("\ud800", ""))
    made[0]["measures"] = {"kld": {"mean": 0.1}, "same_top1": 0.9}
    folder = tmp_path / "out" / "Model-GGUF"
    folder.mkdir(parents=True)
    (folder / "qexport.json").write_text(json.dumps({"schema": 1, "artifacts": made}))
    paths = write_report([folder], tmp_path / "report")
    check_markdown(paths.markdown.read_text())
    page = paths.html.read_text()
    assert not [c for c in page if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs")]

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attrs):
            assert tag not in ("script", "img", "iframe", "a", "h1x")
            assert not [name for name, _ in attrs if name.startswith("on") or name in ("src", "href")]

    Tags().feed(page)
    summary = markdown([*look(load(tmp_path, SMALL), units_of(load(tmp_path, SMALL)), tmp_path / "out")])
    rows = [token for token in MARKDOWN.parse(summary) if token.type == "tr_open"]
    assert len(rows) == 4
    check_markdown(summary)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec=None), max_size=60))
def test_one_cell_is_one_cell_and_its_own_text(text):
    table = f"| a | b |\n|---|---|\n| {cell(text)} | x |\n"
    tokens = MARKDOWN.parse(table)
    cells = [token for token in tokens if token.type == "inline"]
    assert len(cells) == 4
    assert {child.type for token in cells for child in token.children} <= {"text", "text_special", "entity"}
    assert "".join(child.content for child in cells[2].children) == visible(text)
    (inline,) = [token for token in MARKDOWN.parse(f"x {code(text)} y") if token.type == "inline"]
    assert [child.type for child in inline.children] == ["text", "code_inline", "text"]
    check_markdown(f"{hub_link(text)}\n")
