"""report.html and report.md: well-formed, harmless, complete on their own."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from receipts_by_hand import FAILED, bench, gguf, large_ladder, measures, of_base, receipt

from qexport.report import Gate, gather, write_report
from qexport.report.write import html, lay_out

VOID = {"meta", "br", "hr", "img", "link", "input"}
NASTY = "<script>alert(1)</script>|`&\"'\n<img src=x onerror=alert(1)>"


class Checker(HTMLParser):
    """Tags must close in order; collects tags, attributes and text."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def check(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    return checker


def everything(folder, label="Q4_K_M"):
    """Every section there is, with ``label`` in every place that takes text."""
    name = label.replace("/", "").replace("\n", "")  # what cannot be a file's name is refused before
    ours = gguf(label, 16_550_000_000, measures=measures(0.0169, 0.6, bench=bench(37.0, cpu=label)))
    ours["files"][0]["name"] = f"{name}.gguf"
    failed = gguf("Q2_K", 10_000_000_000, verification={**FAILED, "verdict": f"fail: {label}"})
    failed["findings"] = [{"id": label, "severity": "repaired", "what": label}]
    failed["source"] = {**ours["source"], "label": label, "mtp": f"grafted from {label}"}
    failed["options"] = {"imatrix": {"file": label, "datasets": [label]}, "model_name": label}
    theirs = of_base({**ours, "options": {"output_type": label}})
    gates = [Gate(label, label, 0.5, 0.4, False)]
    return (
        gather([receipt(folder / "t", ours, failed)], gates=gates, compare=[receipt(folder / "b", theirs)]),
        gates,
    )


@pytest.fixture
def page(tmp_path):
    return html(lay_out(everything(tmp_path)[0]))


def test_tags_are_balanced_in_every_form(tmp_path, page):
    check(page)
    check(html(lay_out(gather(large_ladder(tmp_path / "l")))))
    check(html(lay_out(gather([receipt(tmp_path / "bare", gguf("Q8_0", 10, verification=None))]))))


def test_nothing_is_loaded_from_anywhere(page):
    checker = check(page)
    assert not re.search(r"https?:|//|@import|url\(|data:|javascript:", page)
    assert {tag for tag, _ in checker.tags}.isdisjoint({"script", "link", "img", "iframe", "object", "image"})
    for _, attributes in checker.tags:
        assert not {name for name in attributes if name.startswith("on") or name in ("src", "href")}
    policies = [a["content"] for tag, a in checker.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_what_a_receipt_says_is_text_and_nothing_else(tmp_path):
    report, gates = everything(tmp_path, NASTY)
    text = html(lay_out(report))
    checker = check(text)
    tags = {tag for tag, _ in checker.tags}
    assert not tags & {"script", "img"}
    assert not any(name.startswith("on") for _, attributes in checker.tags for name in attributes)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 10  # it is shown, as it is
    assert NASTY.split("|")[0] in "".join(checker.words)
    paths = write_report([tmp_path / "t"], tmp_path / "out", gates, [tmp_path / "b"])
    markdown = paths.markdown.read_text()
    assert "<script" not in markdown
    assert "<img" not in markdown


def test_every_table_has_as_many_cells_as_columns(page):
    rows = re.findall(r"<table>.*?</table>", page, re.DOTALL)
    assert len(rows) > 5
    for table in rows:
        counts = {
            len(re.findall(r"<t[hd][ >]", row)) for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
        }
        assert len(counts) == 1


def test_a_screen_reader_is_told_what_pictures_show(page):
    pictures = [a for tag, a in check(page).tags if tag == "svg" and a.get("aria-hidden") != "true"]
    assert len(pictures) == 6  # three, in two widths
    for picture in pictures:
        assert picture["role"] == "img"
        assert "Q4_K_M" in picture["aria-label"]


def test_figures_in_pictures_are_text(page):
    picture = re.search(r'<svg [^>]*aria-label="Speed.*?</svg>', page, re.DOTALL)
    assert picture is not None
    assert "53.6 (1.45 ×, 70 %)" in check(picture[0]).words


def test_light_dark_print_and_phone(page):
    style = page[page.index("<style>") : page.index("</style>")]
    for query in ("prefers-color-scheme: dark", "@media print", "max-width: 740px"):
        assert query in style
    assert 'name="viewport"' in page
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", style)) - {"--colour"}
    for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL):
        assert used <= set(re.findall(r"(--[a-z0-9]+):", block))


def test_classes_in_pictures_have_a_look(page):
    style = page[page.index("<style>") : page.index("</style>")]
    drawn = {
        word
        for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)
        for classes in re.findall(r'class="([^"]*)"', svg)
        for word in classes.split()
    }
    plain = {"point", "tail", "row"}  # groups
    assert {word for word in drawn - plain if f".{word}" not in style} == set()


def markdown_tables(text: str) -> list[list[list[str]]]:
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")
            found[-1].append(re.split(r"(?<!\\)\|", line)[1:-1])
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


@pytest.mark.parametrize("label", ["Q4_K_M", NASTY])
def test_markdown_tables_are_tables(tmp_path, label):
    _, gates = everything(tmp_path, label)
    text = write_report([tmp_path / "t"], tmp_path / "out", gates, [tmp_path / "b"]).markdown.read_text()
    tables = markdown_tables(text)
    assert len(tables) >= 8
    for head, line, *body in tables:
        assert all(re.fullmatch(r"-{3}:?", mark) for mark in line)
        assert body
        assert {len(row) for row in (line, *body)} == {len(head)}


def test_markdown_and_html_hold_the_same_figures(tmp_path):
    folders = large_ladder(tmp_path)
    report = gather(folders)
    paths = write_report(folders, tmp_path / "out")
    words = set(check(paths.html.read_text()).words)
    for part in lay_out(report).parts:
        for table in (*part.tables, part.files):
            for value in (cell for row in table.rows for cell in row if cell):
                assert value in words
    text = paths.markdown.read_text()
    for row in report.models[0].artifacts:
        assert row.label in text
        assert row.files[0].sha256 in text
