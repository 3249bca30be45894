"""What contradicts tokenizer.json is written from it; what tokenizer.json says in two ways is refused."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doctor_bench import ids, opened, repair
from quirks_planted import change_json
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from zoo_types import Zoo, ZooCopy

from qexport.doctor import diagnose
from qexport.errors import QexportError
from qexport.families.tokenizer import library_ids
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf

Json = dict[str, Any]


def document_of(folder: Path) -> Json:
    found: Json = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return found


def settings(folder: Path, **changed: Any) -> None:
    change_json(folder, "tokenizer_config.json", lambda c: {**c, **changed})


def header(folder: Path) -> bytes:
    return plan_gguf(diagnose(opened(folder)).repaired.view(), ["BF16"], GgufOptions())[0].files[0].header


def listed(folder: Path) -> dict[str, Json]:
    rows = document_of(folder)["added_tokens"]
    return {str(row["id"]): {k: v for k, v in row.items() if k != "id"} for row in rows}


# --- stale copies -------------------------------------------------------------------------------------------


def renamed(table: dict[str, Json]) -> None:
    """A reserved token that got a name in tokenizer.json after the decoder was written."""
    table[max(table)]["content"] = "<|reserved_7|>"


def shifted(table: dict[str, Json]) -> None:
    """All tokens under ids of another vocabulary."""
    moved = {str(int(number) + 50_000): entry for number, entry in table.items()}
    table.clear()
    table.update(moved)


def swapped(table: dict[str, Json]) -> None:
    """Two ids the other way round."""
    first, second = sorted(table)[:2]
    table[first], table[second] = table[second], table[first]


def partly(table: dict[str, Json]) -> None:
    """Three of the tokens, one of them under its old name."""
    for number in sorted(table)[3:]:
        del table[number]
    table[sorted(table)[1]]["content"] = "<|old|>"


def beyond(table: dict[str, Json]) -> None:
    """A token that tokenizer.json has lost, under an id that it would not get again."""
    table["70000"] = {**table[min(table)], "content": "<|lost|>"}


def not_a_table(table: dict[str, Json]) -> None:
    """An id that is none."""
    table["last"] = table.pop(max(table))


def flagged(table: dict[str, Json]) -> None:
    """A marker that is no longer special, and takes the blanks before it along."""
    last = table[max(table)]
    last |= {"special": not last["special"], "lstrip": True}


STALE = (renamed, shifted, swapped, partly, beyond, not_a_table, flagged)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5", "llama3", "gemma3"])
@pytest.mark.parametrize("change", STALE, ids=lambda change: change.__name__)
def test_stale_decoder(
    zoo: Zoo, zoo_copy: ZooCopy, tmp_path: Path, name: str, change: Callable[[dict[str, Json]], None]
) -> None:
    folder = zoo_copy(name)
    table = copy.deepcopy(listed(folder))
    change(table)
    settings(folder, added_tokens_decoder=table)
    diagnosis, out = repair(folder, tmp_path / "out")
    assert "tokenizer.stale_decoder" in ids(diagnosis, "repaired")
    written = json.loads((out / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert written == listed(folder)
    assert not ids(diagnose(opened(out)), "repaired", "error")
    # GGUF is what the clean tokenizer makes.
    clean = zoo_copy(name)
    settings(clean, added_tokens_decoder=listed(clean))
    assert header(folder) == header(clean)


def test_decoder_that_agrees_stays(zoo_copy: ZooCopy) -> None:
    """Entries for tokens of the vocabulary itself, and a part of the added ones, contradict nothing."""
    folder = zoo_copy("qwen3")
    table = dict(list(listed(folder).items())[:2])
    word, number = next(iter(document_of(folder)["model"]["vocab"].items()))
    table[str(number)] = {**next(iter(table.values())), "content": word}
    settings(folder, added_tokens_decoder=table)
    assert not {f for f in ids(diagnose(opened(folder))) if f.startswith("tokenizer.stale")}


def test_partial_decoder_beside_a_sentencepiece_model(zoo_copy: ZooCopy, tmp_path: Path) -> None:
    folder = zoo_copy("gemma3")
    table = dict(list(listed(folder).items())[:-2])
    settings(folder, added_tokens_decoder=table)
    diagnosis, out = repair(folder, tmp_path / "out")
    assert "tokenizer.added_unlisted" in ids(diagnosis, "repaired")
    assert json.loads((out / "tokenizer_config.json").read_text())["added_tokens_decoder"] == listed(folder)


@pytest.mark.parametrize("name", ["qwen3_5", "gemma3"])
def test_stale_added_tokens_file(zoo_copy: ZooCopy, tmp_path: Path, name: str) -> None:
    folder = zoo_copy(name)
    rows = document_of(folder)["added_tokens"]
    stale = {row["content"]: row["id"] - 7 for row in rows}
    (folder / "added_tokens.json").write_text(json.dumps(stale))
    diagnosis, out = repair(folder, tmp_path / "out")
    assert "tokenizer.stale_added" in ids(diagnosis, "repaired")
    right = {row["content"]: row["id"] for row in rows}
    assert json.loads((out / "added_tokens.json").read_text()) == right
    assert not ids(diagnose(opened(out)), "repaired", "error")


def test_stale_special_tokens_map(zoo_copy: ZooCopy, tmp_path: Path) -> None:
    folder = zoo_copy("qwen3_5")
    names = {
        "eos_token": {"content": "<|endoftext|>"},
        "unk_token": "<nowhere>",
        "pad_token": "<|endoftext|>",
    }
    settings(folder, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    diagnosis, out = repair(folder, tmp_path / "out")
    assert "tokenizer.stale_map" in ids(diagnosis, "repaired")
    written = json.loads((out / "special_tokens_map.json").read_text())
    assert written == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def test_truncation_and_padding_stay_behind(zoo: Zoo, zoo_copy: ZooCopy, tmp_path: Path) -> None:
    folder = zoo_copy("qwen3_5")
    document = document_of(folder)
    document["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    document["padding"] = {
        "strategy": {"Fixed": 8},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "a",
    }
    (folder / "tokenizer.json").write_text(json.dumps(document))
    before = header(folder)
    diagnosis, out = repair(folder, tmp_path / "out")
    assert "tokenizer.batching" in ids(diagnosis, "repaired")
    assert (
        len(Tokenizer.from_file(str(out / "tokenizer.json")).encode("the river runs past the mill").ids) > 8
    )
    assert document_of(out) == document_of(zoo("qwen3_5"))
    assert before == header(zoo_copy("qwen3_5"))


# --- ids ----------------------------------------------------------------------------------------------------


def gap(document: Json) -> None:
    """The vocabulary grew around the added tokens, which kept their ids."""
    vocab = document["model"]["vocab"]
    last = max(*vocab.values(), *(row["id"] for row in document["added_tokens"]))
    vocab.update({f"zq{n}": last + 1 + n for n in range(4)})


def test_ids_of_the_file_win_over_the_librarys(zoo_copy: ZooCopy, tmp_path: Path) -> None:
    folder = zoo_copy("qwen3_5")
    change_json(folder, "tokenizer.json", lambda document: gap(document))
    document = document_of(folder)
    right = {row["content"]: row["id"] for row in document["added_tokens"]}
    # What the repair is for: the library numbers them otherwise, two tokens under one id.
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert {text: plain.token_to_id(text) for text in right} != right
    diagnosis, out = repair(folder, tmp_path / "out")
    assert "tokenizer.numbered" in ids(diagnosis, "repaired")
    for reader in (Tokenizer.from_file(str(out / "tokenizer.json")), AutoTokenizer.from_pretrained(out)):
        assert {text: reader.get_vocab()[text] for text in right} == right
        for text, number in right.items():
            found = reader.encode(text, add_special_tokens=False)
            assert getattr(found, "ids", found) == [number]
    tokens = diagnosis.repaired.view().files["tokenizer.json"]
    assert json.loads(tokens)["added_tokens"] == document["added_tokens"]
    assert not ids(diagnose(opened(out)), "repaired", "error")


def twice_in_vocabulary(document: Json) -> None:
    vocab = document["model"]["vocab"]
    vocab["zq"] = next(iter(vocab.values()))


def added_over_vocabulary(document: Json) -> None:
    document["added_tokens"][-1]["id"] = 5


def two_added(document: Json) -> None:
    document["added_tokens"].append({**document["added_tokens"][-1], "content": "<other>"})


def one_token_two_ids(document: Json) -> None:
    last = document["added_tokens"][-1]
    document["added_tokens"].append({**last, "id": last["id"] + 1})


def in_both_with_other_ids(document: Json) -> None:
    word = next(word for word in document["model"]["vocab"] if len(word) > 3)
    last = document["added_tokens"][-1]
    document["added_tokens"].append({**last, "content": word, "id": last["id"] + 1})


def with_other_flags(document: Json) -> None:
    last = document["added_tokens"][-1]
    document["added_tokens"].append({**last, "special": not last["special"]})


AMBIGUOUS = (
    twice_in_vocabulary,
    added_over_vocabulary,
    two_added,
    one_token_two_ids,
    in_both_with_other_ids,
    with_other_flags,
)


@pytest.mark.parametrize("change", AMBIGUOUS, ids=lambda change: change.__name__)
def test_ambiguous_ids_are_refused(zoo_copy: ZooCopy, change: Callable[[Json], None]) -> None:
    folder = zoo_copy("qwen3_5")
    change_json(folder, "tokenizer.json", lambda document: change(document))
    diagnosis = diagnose(opened(folder))
    assert ids(diagnosis, "error") == {"tokenizer.ambiguous"}
    (found,) = diagnosis.errors
    assert "id" in found.what
    assert "base model" in found.repair


def test_a_key_twice_is_refused(zoo_copy: ZooCopy) -> None:
    folder = zoo_copy("qwen3_5")
    text = (folder / "tokenizer.json").read_text()
    word = json.dumps(next(iter(document_of(folder)["model"]["vocab"])))
    at = text.index('"vocab"')
    text = text[:at] + text[at:].replace("{", "{" + word + ": 300,", 1)
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(QexportError, match="twice"):
        diagnose(opened(folder))


def test_the_same_row_twice_is_no_contradiction(zoo_copy: ZooCopy) -> None:
    folder = zoo_copy("qwen3_5")
    before = header(folder)
    change_json(folder, "tokenizer.json", lambda d: d["added_tokens"].append(dict(d["added_tokens"][-1])))
    assert header(folder) == before


def test_library_ids_are_the_librarys() -> None:
    rng = random.Random(3)
    for _ in range(200):
        words = [chr(97 + n) for n in range(8)]
        vocab = dict(zip(rng.sample(words, 5), rng.sample(range(12), 5), strict=True))
        added = [rng.choice([*words, "<s>", "<t>", "<u>"]) for _ in range(rng.randint(0, 6))]
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        rows = [{"id": rng.randint(0, 20), "content": text, "special": True, **flags} for text in added]
        model = {"type": "BPE", "vocab": vocab, "merges": []}
        reader = Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": rows, "model": model}))
        assert {text: reader.token_to_id(text) for text in added} == library_ids(vocab, added)


def test_merges_in_both_spellings(zoo_copy: ZooCopy) -> None:
    folder = zoo_copy("qwen3_5")
    before = header(folder)

    def spell(document: Json) -> None:
        merges = document["model"]["merges"]
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        lists = isinstance(merges[0], list)
        document["model"]["merges"] = [" ".join(pair) if lists else pair for pair in pairs]

    change_json(folder, "tokenizer.json", lambda document: spell(document))
    assert header(folder) == before


@pytest.mark.parametrize("merge", ["ab", ["a", 1], ["a", "zz"], "a b c", {"a": "b"}])
def test_merges_that_are_none(zoo_copy: ZooCopy, merge: Any) -> None:
    folder = zoo_copy("qwen3_5")
    change_json(folder, "tokenizer.json", lambda d: d["model"]["merges"].append(merge))
    with pytest.raises(QexportError, match="a merge"):
        header(folder)


# --- the same bytes, and never a traceback ------------------------------------------------------------------


def test_hash_seeds_do_not_show(zoo_copy: ZooCopy) -> None:
    folder = zoo_copy("qwen3_5")
    settings(folder, extra_special_tokens=["<one>", "<two>", "<three>"], pad_token="<pad>")
    code = (
        "import hashlib, sys\n"
        "from qexport.checkpoint.local import LocalCheckpoint\n"
        "from qexport.doctor import diagnose\n"
        "from qexport.formats.gguf.options import GgufOptions\n"
        "from qexport.formats.gguf.plan import plan_gguf\n"
        "view = diagnose(LocalCheckpoint(sys.argv[1])).repaired.view()\n"
        "plan = plan_gguf(view, ['BF16'], GgufOptions())[0]\n"
        "print(hashlib.sha256(plan.files[0].header + b''.join(view.files.values())).hexdigest())\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code, str(folder)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_half_a_surrogate_pair(zoo_copy: ZooCopy) -> None:
    folder = zoo_copy("qwen3_5")
    settings(folder, chat_template="<half>")
    file = folder / "tokenizer_config.json"
    file.write_text(file.read_text().replace("<half>", "\\ud800"))
    with pytest.raises(QexportError):
        header(folder)


def mutated(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """``value`` with something in it changed, dropped, doubled or of another kind."""
    odd = [None, True, -1, 1 << 70, 0.5, "", "\ud800", [], {}, [[]], "a b", float("nan")]
    if depth > 6 or rng.random() < 0.12 or not isinstance(value, dict | list) or not value:
        return rng.choice(odd)
    if isinstance(value, dict):
        key = rng.choice(list(value))
        match rng.randrange(4):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {**value, rng.choice(["", "type", "zq", "id"]): value[key]}
            case _:
                return {**value, key: mutated(rng, value[key], depth + 1)}
    at = rng.randrange(len(value))
    match rng.randrange(4):
        case 0:
            return value[:at] + value[at + 1 :]
        case 1:
            return [*value, value[at]]
        case _:
            return [*value[:at], mutated(rng, value[at], depth + 1), *value[at + 1 :]]


def sweep(zoo: Zoo, folder: Path, name: str, count: int, seed: int) -> dict[str, int]:
    """Diagnose and plan ``count`` mutations of a tokenizer; how each ended."""
    rng = random.Random(seed)
    found: dict[str, int] = {}
    names = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")
    whole = {n: json.loads((zoo(name) / n).read_text()) for n in names if (zoo(name) / n).exists()}
    whole.setdefault("added_tokens.json", {"<x>": 9})
    whole.setdefault("special_tokens_map.json", {"eos_token": "<|im_end|>"})
    for _ in range(count):
        file = rng.choices(list(whole), [6, *[2] * (len(whole) - 1)])[0]
        changed = whole[file]
        for _ in range(rng.randint(1, 3)):
            changed = mutated(rng, changed)
        (folder / file).write_text(json.dumps(changed))
        try:
            header(folder)
            end = "planned"
        except QexportError:
            end = "refused"
        finally:
            (folder / file).write_text(json.dumps(whole[file]))
        found[end] = found.get(end, 0) + 1
    return found


@pytest.mark.parametrize(("name", "seed"), [("qwen3_5", 1), ("llama3", 2), ("gemma3", 3)])
def test_mutated_tokenizers_never_crash(zoo: Zoo, zoo_copy: ZooCopy, name: str, seed: int) -> None:
    found = sweep(zoo, zoo_copy(name), name, 60, seed)
    assert set(found) == {"planned", "refused"}


# --- the older spelling of the vocabulary -------------------------------------------------------------------


def older_spelling(folder: Path) -> tuple[Json, list[str]]:
    model = document_of(folder)["model"]
    return dict(model["vocab"]), [" ".join(pair) for pair in model["merges"]]


def write_older(folder: Path, vocab: Json, merges: list[str], first: str = "#version: 0.2") -> None:
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join([first, *merges, ""]), encoding="utf-8")


def test_the_older_spelling_that_agrees_is_carried(zoo_copy: ZooCopy, tmp_path: Path) -> None:
    folder = zoo_copy("qwen3_5")
    vocab, merges = older_spelling(folder)
    with_added = {**vocab, **{row["content"]: row["id"] for row in document_of(folder)["added_tokens"]}}
    for n, (words, first) in enumerate(((vocab, "#version: 0.2"), (with_added, ""))):
        write_older(folder, words, merges, first)
        diagnosis, out = repair(folder, tmp_path / str(n))
        assert "tokenizer.stale_vocab" not in ids(diagnosis)
        for name in ("vocab.json", "merges.txt"):
            assert (out / name).read_bytes() == (folder / name).read_bytes()


def other_id(vocab: Json, _: list[str]) -> str:
    first, second = sorted(vocab)[:2]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    one, other = vocab[first], vocab[second]
    both = ((first, one, other), (second, other, one))
    clauses = [f"{word!r} is {there} there and {own} in tokenizer.json" for word, there, own in both]
    return f"vocab.json is stale: {'; '.join(clauses)}"


def lost_word(vocab: Json, _: list[str]) -> str:
    word = max(vocab, key=len)
    del vocab[word]
    return f"vocab.json is stale: {word!r} is missing there"


def unknown_word(vocab: Json, _: list[str]) -> str:
    vocab["neverheardof"] = "seven"
    return "vocab.json is stale: 'neverheardof' is 'seven' there and no token in tokenizer.json"


def other_order(_: Json, merges: list[str]) -> str:
    merges[0], merges[1] = merges[1], merges[0]
    return f"merges.txt is stale: merge 1 is {merges[0]!r} there and {merges[1]!r} in tokenizer.json"


def fewer_merges(_: Json, merges: list[str]) -> str:
    count = len(merges)
    del merges[-3:]
    return f"merges.txt is stale: it has {count - 3} merges, tokenizer.json {count}"


def of_another_model(vocab: Json, merges: list[str]) -> str:
    return f"{lost_word(vocab, merges)}, and {fewer_merges(vocab, merges)}"


OLDER = (other_id, lost_word, unknown_word, other_order, fewer_merges, of_another_model)


@pytest.mark.parametrize("change", OLDER, ids=lambda change: change.__name__)
def test_the_older_spelling_that_disagrees_is_left_out(
    zoo: Zoo, zoo_copy: ZooCopy, tmp_path: Path, change: Callable[[Json, list[str]], str]
) -> None:
    folder = zoo_copy("qwen3_5")
    vocab, merges = older_spelling(folder)
    what = change(vocab, merges)
    write_older(folder, vocab, merges)
    diagnosis, out = repair(folder, tmp_path / "out")
    (found,) = [finding for finding in diagnosis.findings if finding.severity != "note"]
    assert (found.id, found.severity, found.what) == ("tokenizer.stale_vocab", "repaired", what)
    assert not {"vocab.json", "merges.txt"} & {path.name for path in out.iterdir()}
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    text = "Two words, 12345 and नमस्ते"
    ours, theirs = (AutoTokenizer.from_pretrained(each)(text).input_ids for each in (out, zoo("qwen3_5")))
    assert ours == theirs
    assert "tokenizer.stale_vocab" not in ids(diagnose(opened(out)))


@pytest.mark.parametrize("damaged", [b"{", b"[1]", b"\xff"])
def test_an_older_spelling_that_cannot_be_read_is_left_out(
    zoo_copy: ZooCopy, tmp_path: Path, damaged: bytes
) -> None:
    folder = zoo_copy("qwen3_5")
    (folder / "vocab.json").write_bytes(damaged)
    diagnosis, out = repair(folder, tmp_path / "out")
    (found,) = [finding for finding in diagnosis.findings if finding.id == "tokenizer.stale_vocab"]
    assert found.what.startswith("vocab.json ")
    assert not (out / "vocab.json").exists()
