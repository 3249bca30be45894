"""The one reader: what anybody may have written into qexport.json, and what is left of it."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from receipts_made import FULL, PASSED, artifact, fill

from qexport.errors import InputError
from qexport.receipt.state import State
from qexport.receipt.store import parse_receipt, read_receipt, receipt_bytes, settle, write_receipt
from qexport.receipt.types import Receipt
from receipt_schema import schema_text

GOOD = json.loads(receipt_bytes(Receipt((FULL,))))


def parsed(value: object) -> tuple[object, tuple[str, ...]]:
    read = parse_receipt(json.dumps(value).encode())
    return read.receipt.artifacts, read.notes


def changed(*path: object, to: object) -> object:
    made = json.loads(json.dumps(GOOD))
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return made


def test_what_is_written_is_read():
    read = parse_receipt(receipt_bytes(Receipt((FULL, artifact("imatrix", "imatrix", "i.gguf")))))
    assert not read.notes
    first = read.receipt.artifacts[0]
    # A report that is read says how it ended; one that is made follows from its findings.
    assert first.verification is not None
    assert first.verification.said is State.PASSED
    assert replace(first, verification=replace(first.verification, said=None)) == FULL


def test_figures_of_a_head_have_as_many_depths_each():
    drafting = ("artifacts", 0, "verification", "measures", "head")
    (kept,), notes = parsed(changed(*drafting, "argmax", to=[{"value": 1.5}]))
    assert kept.verification.measures.head is None
    assert "no figures of a head" in notes[0]
    (kept,), notes = parsed(changed(*drafting, "domains", "code", "acceptance", to=[]))
    assert set(kept.verification.measures.head.domains) == {"prose"}
    assert kept.verification.measures.source_head.usual.value == 2.0
    assert kept.verification.measures.source_head.usual_sampled.value == 2.3


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"3", b"null", b"\xff\xfe{}", b"\x00" * 9, b'{"schema": 2}', b'{"schema": "2"}',
        b'{"schema": 2, "artifacts": 5}', b'{"schema": 1, "artifacts": {"a": 1}}',
        b'{"schema": -1, "artifacts": []}',
        b'{"schema": 2, "artifacts": ' + b"[" * 100_000,
        b'{"schema": 2, "artifacts": ' + b"[" * 40 + b"]" * 40 + b"}",
        b'{"schema": 2, "artifacts": [' + b'{"a":' * 40 + b"1" + b"}" * 40 + b"]}",
    ],
)  # fmt: skip
def test_what_is_no_receipt(data, tmp_path):
    assert parse_receipt(data).damaged
    (tmp_path / "qexport.json").write_bytes(data)
    assert read_receipt(tmp_path).damaged
    said: list[str] = []
    settle(tmp_path, said.append)
    assert (tmp_path / "qexport.json.set-aside").read_bytes() == data
    assert "set aside as qexport.json.set-aside" in said[-1]
    assert write_receipt(fill(tmp_path, FULL), [FULL], said.append)
    assert [made.label for made in read_receipt(tmp_path).receipt.artifacts] == ["Q8_0"]


def test_a_later_qexports_receipt_is_left_alone(tmp_path):
    (tmp_path / "qexport.json").write_text('{"schema": 3, "artifacts": []}')
    with pytest.raises(InputError, match="later qexport"):
        settle(tmp_path, pytest.fail)
    assert (tmp_path / "qexport.json").is_file()


@pytest.mark.parametrize(
    "name",
    ["../up", "/etc/passwd", "a//b", "a/./b", "a/../b", "a\\b", "a\nb", "\x1b[2J", "", ".", "C:x", "\ud800"],
)
def test_names_that_leave_the_folder_or_mislead(name):
    found, notes = parsed(changed("artifacts", 0, "files", 0, "name", to=name))
    assert found == ()
    assert notes


@pytest.mark.parametrize("to", [None, 5, [], {}, "x", True, -1, 2**70, 1e400, [3], {"a": [1]}])
@pytest.mark.parametrize("key", sorted(GOOD["artifacts"][0]))
def test_a_value_of_another_type_is_left_out(key, to):
    found, _ = parsed(changed("artifacts", 0, key, to=to))
    for made in found:
        assert made.files == FULL.files
        assert isinstance(made.state, State)
        receipt_bytes(Receipt((made,))).decode("utf-8")


def test_one_bad_entry_does_not_take_the_others_along():
    value = {**GOOD, "artifacts": [*GOOD["artifacts"], 3, {}, {"kind": "gguf", "label": "x", "files": []}]}
    found, notes = parsed(value)
    assert [made.label for made in found] == ["Q8_0"]
    assert len(notes) == 3


def test_text_is_text_and_numbers_are_numbers():
    escape = "\x1b]0;owned\x07\ud800"
    found, _ = parsed(changed("artifacts", 0, "label", to=escape))
    assert found[0].label.isprintable()
    found[0].label.encode("utf-8")
    data = receipt_bytes(Receipt((FULL,))).replace(b'"bytes": 3', b'"bytes": NaN')
    assert parse_receipt(data).receipt.artifacts == ()
    for number in (b"1e999", b"NaN", b"9" * 6000, b"-3", b"true"):
        data = receipt_bytes(Receipt((FULL,))).replace(b'"positions": 1020', b'"positions": ' + number)
        (made,) = parse_receipt(data).receipt.artifacts
        assert made.measures.positions is None


def test_a_verdict_is_never_better_than_its_findings():
    findings = [{"check": "text", "status": "fail", "summary": "x"}]
    found, _ = parsed(changed("artifacts", 0, "verification", "findings", to=findings))
    assert found[0].state is State.FAILED
    found, _ = parsed(changed("artifacts", 0, "verification", to={"findings": []}))
    assert found[0].state is State.NOT_RUN


def test_links_pipes_and_folders_are_no_receipts(tmp_path):
    outside = tmp_path / "outside.json"
    outside.write_bytes(receipt_bytes(Receipt((FULL,))))
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "qexport.json"
    path.symlink_to(outside)
    assert "link" in read_receipt(folder).damaged
    (folder / ".qexport.json.part").symlink_to(outside)
    before = outside.read_bytes()
    write_receipt(fill(folder, FULL), [FULL], print)
    assert outside.read_bytes() == before
    assert not path.is_symlink()
    path.unlink()
    os.mkfifo(path)
    assert read_receipt(folder).damaged
    path.unlink()
    path.mkdir()
    assert read_receipt(folder).damaged
    settle(folder, print)
    assert not read_receipt(folder).damaged


def test_a_hub_caches_snapshot_is_read(tmp_path):
    blob = tmp_path / "models--a--b" / "blobs" / ("01" * 32)
    snapshot = tmp_path / "models--a--b" / "snapshots" / "89ab"
    blob.parent.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    blob.write_bytes(receipt_bytes(Receipt((FULL,))))
    (snapshot / "qexport.json").symlink_to(Path("../../blobs") / blob.name)
    assert read_receipt(snapshot).receipt.artifacts


def test_2000_mutations_leave_values_of_their_types():
    """Bytes flipped, cut out, doubled: never a traceback, and what is left can be written again."""
    data = receipt_bytes(Receipt((FULL, replace(FULL, verification=PASSED, bench=None))))
    junk = [
        b"null",
        b"-1",
        b"[]",
        b"{}",
        b'"\\ud800"',
        b"1e999",
        b"99999999999999999999999",
        b'"\\u001b"',
        b"[",
    ]
    dice = random.Random(11)
    for _ in range(2000):
        made = bytearray(data)
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(made))
            match dice.randrange(3):
                case 0:
                    made[at] = dice.randrange(256)
                case 1:
                    del made[at : at + dice.randrange(40)]
                case _:
                    start = made.find(b":", at) + 1
                    stop = min(
                        (i for i in (made.find(b",", start), made.find(b"\n", start)) if i > 0), default=start
                    )
                    made[start:stop] = dice.choice(junk)
        try:
            read = parse_receipt(bytes(made))
        except InputError:
            continue
        for artifact_ in read.receipt.artifacts:
            assert artifact_.verdict
            assert artifact_.size >= 0
            assert all(".." not in file.name.split("/") for file in artifact_.files)
        receipt_bytes(read.receipt).decode("utf-8")


def test_the_schema_is_published_and_holds_what_is_written():
    docs = Path(__file__).parents[2] / "docs" / "receipt.schema.json"
    assert docs.read_text() == schema_text()
    schema = json.loads(schema_text())
    assert holds(schema, schema, GOOD)
    for path, junk in (
        (("schema",), 1),
        (("artifacts", 0, "files"), 5),
        (("artifacts", 0, "files", 0, "bytes"), -1),
        (("artifacts", 0, "label"), None),
        (("artifacts", 0, "verification", "findings", 0, "status"), "good"),
        (("artifacts", 0, "verification", "measures", "kld", "mean"), "0.1"),
    ):
        assert not holds(schema, schema, changed(*path, to=junk)), path


TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
}


def holds(root: dict, schema: dict, value: object) -> bool:
    """The part of JSON Schema that ours uses."""
    if "$ref" in schema:
        return holds(root, root["$defs"][schema["$ref"].rpartition("/")[2]], value)
    if "anyOf" in schema:
        return any(holds(root, each, value) for each in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return value in schema.get("enum", [schema.get("const")])
    if schema.get("type") == "null":
        return value is None
    if "type" in schema and not isinstance(value, TYPES[schema["type"]]):
        return False
    if isinstance(value, dict):
        rest = schema.get("additionalProperties", {})
        known = schema.get("properties", {})
        inner = all(holds(root, known.get(key, rest), each) for key, each in value.items())
        return inner and set(schema.get("required", ())) <= set(value)
    if isinstance(value, list):
        return all(holds(root, schema.get("items", {}), each) for each in value)
    return not isinstance(value, int) or value >= schema.get("minimum", value)
