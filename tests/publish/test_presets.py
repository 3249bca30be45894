"""models.ini: read by llama.cpp's grammar, for every GGUF file of a repository."""

import re
from dataclasses import replace

from exported_folders import export, gguf
from in_process import ok
from test_ollama import SAMPLING, told

from qexport.publishing.presets import presets
from qexport.receipt.folder import known_in

# common/preset.cpp: a line is a header, a key with a value, or empty; comments begin with ; or #.
LINE = re.compile(
    r"\[[ \t]*(?P<section>[^\]]+?)[ \t]*\]|(?P<key>[a-zA-Z_][a-zA-Z0-9_.-]*)[ \t]*=[ \t]*(?P<value>[^;#\n]*)|"
)


def read(data):
    sections, name = {}, ""
    for line in data.decode().splitlines():
        match = LINE.fullmatch(line)
        assert match, line
        if match["section"]:
            name = match["section"]
        elif match["key"]:
            sections.setdefault(name, {})[match["key"]] = match["value"]
    return sections


def test_every_file_has_a_section(hub, tmp_path):
    folder = export(tmp_path / "Tuned-GGUF", [gguf("Q4_K_M"), gguf("Q8_0")])
    told(folder, SAMPLING)
    ok("push", folder, "alice/Plain-GGUF")
    assert "models.ini" not in hub.pushed["alice/Plain-GGUF"].tree()
    ok("push", folder, "alice/Tuned-GGUF", "--presets", "--ollama")
    files = hub.pushed["alice/Tuned-GGUF"].tree()
    found = read(files["models.ini"])
    assert found.pop("") == {"version": "1"}
    assert list(found) == ["alice/Tuned-GGUF:Q4_K_M", "alice/Tuned-GGUF:Q8_0"]
    for name, keys in found.items():
        assert keys["hf-repo"] == name
        assert (keys["temp"], keys["top-k"], keys["top-p"], keys["repeat-penalty"]) == (
            "0.7",
            "20",
            "0.8",
            "1.05",
        )
    assert "preset.ini" not in files
    assert "  models.ini" in files["SHA256SUMS"].decode()


def test_drafting_where_there_is_a_head(tmp_path):
    (known,) = known_in(export(tmp_path / "x", [gguf("Q4_K_M")])).artifacts
    bare, own = (replace(known, source=replace(known.source, mtp=mtp)) for mtp in ("none", "own"))
    head = replace(
        known, kind="mtp", label="mtp-Q8_0", files=(replace(known.files[0], name="mtp-x-Q8_0.gguf"),)
    )
    beside = replace(own, mtp_layouts=("drafter",), details={"mtp_file": "mtp-x-Q8_0.gguf"})
    for artifacts, drafts in (([bare], False), ([own], True), ([beside, head], True), ([beside], False)):
        said = read(presets(artifacts, "alice/X"))["alice/X:Q4_K_M"]
        assert said.get("spec-type") == ("draft-mtp" if drafts else None)


def test_files_of_one_type_have_sections_of_their_own(tmp_path):
    (known,) = known_in(export(tmp_path / "x", [gguf("Q4_K_M")])).artifacts
    other = replace(known, files=(replace(known.files[0], name="Other-Q4_K_M.gguf"),))
    found = read(presets([known, other], "alice/X"))
    assert [keys["hf-repo"] for name, keys in found.items() if name == "alice/X:Q4_K_M"] == ["alice/X:Q4_K_M"]
    (rest,) = (keys for name, keys in found.items() if name not in ("", "alice/X:Q4_K_M"))
    assert rest["hf-repo"] == "alice/X"
    assert rest["hf-file"] in (known.name, other.name)


def test_nothing_without_files():
    assert presets([], "alice/X") is None
