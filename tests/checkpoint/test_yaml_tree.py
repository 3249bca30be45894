"""YAML from strangers: bounded, without tags, every fault at its line and column, nothing that is made up."""

import time

import pytest
import yaml

from qexport.checkpoint.front_matter import read_front_matter
from qexport.checkpoint.yaml_tree import MOST_CHARACTERS, Place, parse_yaml, place_of, plain

LAUGHS = 'a: &a [x, x, x, x, x, x, x, x, x]\n' + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)  # fmt: skip


def read(text, source="f"):
    """The values, and what was wrong as ``line:column: message``."""
    found = []
    root = parse_yaml(text, source, lambda place, message: found.append(f"{place}: {message}"))
    return plain(root), found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [\n", "f:2:1: this is not YAML: "),
        ("a: b: c\n", "f:1:5: this is not YAML: mapping values"),
        ("a: 1\nb: 2\na: 3\n", "f:3:1: 'a' is there twice; the first is in line 1"),
        ("a: 1\n'a': 3\n", "f:2:1: 'a' is there twice"),
        ("b: {x: 1,\n    x: 2}\n", "f:2:5: 'x' is there twice; the first is in line 1"),
        ("a:\n  - !!python/object/apply:os.system [ls]\n", "f:2:5: tags such as"),
        ("a: !!binary aGk=\n", "f:1:4: tags such as"),
        ("a: ! b\n", "f:1:4: tags such as"),
        ("a: &a [*a]\n", "f:1:8: this is not YAML that can be read: the alias *a holds itself"),
        ("a: &a {b: {c: *a}}\n", "f:1:15: this is not YAML that can be read: the alias *a holds itself"),
        ("a: *b\n", "f:1:4: this is not YAML that can be read: there is no anchor &b"),
        ("a: &a {b: 1}\nc:\n  <<: *a\n", "f:3:3: merge keys"),
        ("[1, 2]: 3\n", "f:1:1: a key must be a word"),
        ("? {a: b}\n: 3\n", "f:1:3: a key must be a word"),
        ("? \n: 3\n", "f:1:2: a key must be a word"),
        ("a: 1\n---\nb: 2\n", "f:2:1: this is not YAML that can be read: a second document"),
        ("a: \x07\n", "f:1:4: this is not YAML: the character U+0007"),
        ("a: 1\nb: x\0y\n", "f:2:5: this is not YAML: the character U+0000"),
        ("a: \ud800\n", "f:1:4: this is not YAML: the character U+D800"),
        ('a: "\\0"\n', "f:1:4: a value may not hold the character U+0000"),
        ('a: "\\e[31m"\n', "f:1:4: a value may not hold the character U+001B"),
        ('a: "\\ud800"\n', "f:1:"),
        ('a: "\\UFFFFFFFF"\n', "f:1:"),
        ("a: " + "[" * 40 + "]" * 40 + "\n", "f:1:35: this is not YAML that can be read: nested too deeply"),
        ("- " * 100_000, "f:1:65: this is not YAML that can be read: nested too deeply"),
        ("{" * 100_000, "f:1:33: this is not YAML that can be read: nested too deeply"),
        ("a: " + "x" * MOST_CHARACTERS, "f: this has 1,048,579 characters; 1,048,576 are read at most"),
        (LAUGHS, "f:5:32: this is not YAML that can be read: more than 50,000 values"),
        ("a: [" + "1," * 60_000 + "]", "f:1:"),
        ("%YAML 2.0\n---\na: 1\n", "f:1:1: this is not YAML: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line_and_column(text, said):
    begun = time.process_time()
    _, found = read(text)
    assert any(line.startswith(said) for line in found), found
    assert time.process_time() - begun < 5


def test_without_libyaml_the_same_is_refused(monkeypatch):
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    for text in ('a: "\\UFFFFFFFF"\n', 'a: "\\ud800"\n', "{" * 5000, LAUGHS, "a: [\n", "a: 1\na: 2\n"):
        assert read(text)[1], text
    assert read("a: {b: [1, x]}\n") == ({"a": {"b": [1, "x"]}}, [])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 2026-02-31", {"a": "2026-02-31"}),  # PyYAML makes dates, and fails where there is none
        ("a: 2026-02-28", {"a": "2026-02-28"}),
        ("a: 1:30:00", {"a": "1:30:00"}),  # in base 60 to YAML 1.1
        ("a: 0o777", {"a": "0o777"}),
        ("a: 0777", {"a": "0777"}),
        ("a: 0x1F", {"a": "0x1F"}),
        ("a: 1_000", {"a": "1_000"}),
        ("a: " + "9" * 5000, {"a": "9" * 5000}),  # int() refuses so many digits
        ("a: 1e999", {"a": "1e999"}),
        ("a: .nan", {"a": ".nan"}),
        ("a: .inf", {"a": ".inf"}),
        ("a: 0777.5", {"a": "0777.5"}),
        ("language: [no, yes, on, off, y]", {"language": ["no", "yes", "on", "off", "y"]}),
        ("[true, 'true', 3, '3', -0.5, 1e3, ~, '', null]", [True, "true", 3, "3", -0.5, 1e3, None, "", None]),
        ("a: &x {b: 1}\nc: *x\n", {"a": {"b": 1}, "c": {"b": 1}}),
        ("a: =\nb: <<\n", {"a": "=", "b": "<<"}),
        ("\ufeffa: 1\n", {"a": 1}),
        ("", None),
        ("# nothing\n", None),
    ],
)  # fmt: skip
def test_values_are_what_stands_there(text, value):
    assert read(text) == (value, [])


def test_the_place_of_a_path():
    root = parse_yaml("a:\n  - b: 1\n  -\n    c: [x,\n     y]\n", "f", lambda *_: None)
    nowhere = Place("f", 9, 9)
    assert place_of(root, ("a", 0, "b"), nowhere) == Place("f", 2, 8)
    assert place_of(root, ("a", 0, "b"), nowhere, key=True) == Place("f", 2, 5)
    assert place_of(root, ("a", 1, "c"), nowhere) == Place("f", 4, 5)
    assert place_of(root, ("a", 1, "c", 1), nowhere) == Place("f", 5, 6)
    assert place_of(root, ("a", 1, "missing"), nowhere) == Place("f", 4, 5)
    assert place_of(None, ("a",), nowhere) == nowhere


@pytest.mark.parametrize(
    ("readme", "found", "said"),
    [
        (None, {}, None),
        (b"# A model\n", {}, None),
        (b"---\nlicense: mit\n---\n# text: [\n", {"license": "mit"}, None),
        (b"\xef\xbb\xbf---\r\nlicense: mit\r\n---\r\n", {"license": "mit"}, None),
        (b"---\nlanguage:\n- no\n- en\n---\n", {"language": ["no", "en"]}, None),
        (b"---\ndate: 2026-02-31\n---\n", {"date": "2026-02-31"}, None),
        (b"---\ntags:\n\t- a\n---\n", {"tags": ["a"]}, None),
        (b"---\nlicense: mit\nlicense: gpl\n---\n", {}, "README.md:3:1: 'license' is there twice"),
        (b"---\na: [\n---\n", {}, "README.md:"),
        (b"---\n- a\n---\n", {}, "README.md:2: its front matter is not a mapping"),
        (b"---\na: b\n", {}, "README.md: the front matter that its first line opens is not closed"),
        (b"---\na: \xff\n---\n", {"a": "\ufffd"}, None),
        (b"---\n" + LAUGHS.encode() + b"---\n", {}, "README.md:6:32: "),
    ],
)  # fmt: skip
def test_front_matter_is_read_or_noted(readme, found, said):
    notes = []
    assert read_front_matter(readme, notes) == found
    assert len(notes) == (said is not None)
    assert said is None or notes[0].startswith(said), notes
