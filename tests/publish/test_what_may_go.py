"""What a push refuses before it asks the Hub: unknown, changed, leaking, broken."""

import hashlib
import importlib
import json
import os
import subprocess

import pytest
from exported_folders import VERIFIED, entry, export, gguf, parsed
from in_process import ok, run

from qexport.errors import InputError
from qexport.publishing.leaks import check_text
from qexport.receipt.folder import known_in
from qexport.receipt.state import State
from qexport.receipt.store import parse_receipt

REPO = "alice/Tuned-GGUF"


def left_out(ran):
    return {left["name"]: left["why"] for left in ran.json()["left_out"]}


def test_files_that_no_receipt_knows(hub, folder):
    (folder / "notes.txt").write_text("draft")
    (folder / "deep").mkdir()
    (folder / "deep" / "plot.png").write_bytes(b"png")
    ran = run("push", folder, REPO)
    assert ran.code == 3
    assert "  deep/plot.png\n  notes.txt\n" in ran.stderr
    assert not hub.requests
    ok("push", folder, REPO, "--include", "notes.txt", "--include", "deep/*.png")
    tree = hub.pushed[REPO].tree()
    assert (tree["notes.txt"], tree["deep/plot.png"]) == (b"draft", b"png")
    assert f"{hashlib.sha256(b'draft').hexdigest()}  notes.txt\n" in tree["SHA256SUMS"].decode()
    assert "- `notes.txt`\n" in tree["README.md"].decode()


def test_a_pattern_that_matches_nothing(hub, folder):
    assert run("push", folder, REPO, "--include", "*.pdf").code == 2


def test_unfinished_and_hidden_files_never_go(hub, folder):
    names = ["x.gguf.part", ".hidden", ".cache/state", "run.ledger", "qexport-ledger.json", "a.incomplete"]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    ran = ok("push", folder, REPO, "--include", "*", "--json")
    assert set(left_out(ran)) == set(names)
    assert not set(names) & set(hub.pushed[REPO].tree())


def test_a_link_to_a_folder_is_unknown(hub, folder, tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text("k")
    (folder / "link").symlink_to(tmp_path / "private")
    assert "  link\n" in run("push", folder, REPO).stderr


@pytest.mark.parametrize("name", ["Tuned-Q8_0.gguf", "NOTICE"])
def test_a_link_out_of_the_folder_is_not_followed(hub, folder, tmp_path, name):
    """Whether a receipt knows it or --include names it."""
    secret = tmp_path / "key"
    secret.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"secret")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    ran = run("push", folder, REPO, "--include", "NOTICE*" if name == "NOTICE" else "*")
    assert ran.code == 3
    assert f"{name} is a link that leads out of" in ran.stderr
    assert not hub.requests


def test_a_pipe_is_not_waited_for(hub, folder):
    os.mkfifo(folder / "NOTICE")
    assert "NOTICE is not a regular file" in run("push", folder, REPO, "--include", "NOTICE").stderr


def test_a_head_or_a_tower_beside_files_of_two_models(tmp_path):
    """llama.cpp takes it for whichever file is asked for."""
    other = {**entry("", {})["source"], "label": "alice/Other@4567cdef"}
    head = {"mtp-Tuned-Q8_0.gguf": b"head"}
    two = [gguf("Q8_0"), gguf("Q4_K_M", source=other)]
    beside = [*two, (entry("mtp-Q8_0", head, kind="mtp", verification=None), head)]
    ran = run("push", export(tmp_path / "both", beside), REPO)
    assert ran.code == 2
    assert "mtp-Tuned-Q8_0.gguf is of one model" in ran.stderr
    assert "alice/Tuned@0123abcd, alice/Other@4567cdef" in ran.stderr
    assert "a repository of its own" in ran.stderr


def test_a_file_that_is_missing_or_cut(hub, folder):
    path = folder / "Tuned-Q8_0.gguf"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert "Tuned-Q8_0.gguf: changed since it was written" in run("push", folder, REPO).stderr
    path.unlink()
    (other := folder / "Tuned-Q4_K_M.gguf").rename(folder / "kept")
    for how in ([], ["--dry-run"], ["--allow-unverified", "--allow-failed"]):
        ran = run("push", folder, REPO, *how)
        assert ran.code == 3
        assert f"{other.name}: not there any more\n" in ran.stderr
        assert f"{path.name}: not there any more\n" in ran.stderr
    (folder / "kept").rename(other)
    assert not hub.requests
    ok("push", folder, REPO, "--only", "Q4_K_M")


def flip(path, *, later):
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    moment = stat.st_mtime + (60 if later else 0)
    os.utime(path, (moment, moment))


def test_a_file_changed_after_its_receipt_is_read_again(hub, folder):
    flip(folder / "Tuned-Q8_0.gguf", later=True)
    ran = run("push", folder, REPO)
    assert ran.code == 3
    assert "Tuned-Q8_0.gguf is not the file that was exported" in ran.stderr
    assert REPO not in hub.pushed


def test_a_file_only_touched_goes(hub, folder):
    path = folder / "Tuned-Q8_0.gguf"
    os.utime(path, (path.stat().st_mtime + 60,) * 2)
    ok("push", folder, REPO)


@pytest.mark.parametrize("words", [(), ("--rehash",), ("--dry-run", "--rehash")])
def test_a_push_finds_what_the_clock_does_not_show(hub, folder, words):
    """Another file of the same size and time: its receipt's hash is not its own."""
    flip(folder / "Tuned-Q8_0.gguf", later=False)
    ran = run("push", folder, REPO, *words)
    assert ran.code == 3
    assert "Tuned-Q8_0.gguf is not the file that was exported" in ran.stderr
    assert REPO not in hub.pushed


def test_a_rehearsal_says_what_it_did_not_read(hub, folder):
    flip(folder / "Tuned-Q8_0.gguf", later=False)
    ran = ok("push", folder, REPO, "--dry-run", "--json")
    assert ran.json()["not_hashed"] == ["Tuned-Q4_K_M.gguf", "Tuned-Q8_0.gguf"]
    assert "2 files were not read" in ok("push", folder, REPO, "--dry-run").stdout
    os.utime(folder / "Tuned-Q4_K_M.gguf", (2e9, 2e9))
    assert ok("push", folder, REPO, "--dry-run", "--json").json()["not_hashed"] == ["Tuned-Q8_0.gguf"]


@pytest.mark.parametrize("when", ["read", "sent"])
@pytest.mark.parametrize("how", ["flip", "remove", "replace"])
def test_a_file_that_changes_meanwhile_is_not_committed(hub, folder, monkeypatch, when, how):
    """Between the hash and the commit, with its size and time of change put back."""
    path = folder / "Tuned-Q8_0.gguf"

    def harm():
        if how == "flip":
            flip(path, later=False)
        elif how == "remove":
            path.unlink()
        else:
            copy = path.with_suffix(".new")
            copy.write_bytes(path.read_bytes()[::-1])
            os.utime(copy, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
            copy.replace(path)

    module, name = {
        "read": ("qexport.publishing.plan", "check_hashes"),
        "sent": ("qexport.publishing.push", "upload"),
    }[when]
    changed = importlib.import_module(module)
    plain = getattr(changed, name)

    def harmed(*words, **more):
        plain(*words, **more)
        harm()

    monkeypatch.setattr(changed, name, harmed)
    ran = run("push", folder, REPO)
    assert ran.code == 3
    assert "Tuned-Q8_0.gguf changed while it was being published" in ran.stderr
    assert REPO not in hub.pushed or "Tuned-Q8_0.gguf" not in hub.pushed[REPO].tree()


def test_a_link_stays_inside_the_folder(hub, folder, tmp_path):
    path = folder / "Tuned-Q8_0.gguf"
    (tmp_path / "elsewhere").mkdir()
    path.rename(tmp_path / "elsewhere" / path.name)
    path.symlink_to(tmp_path / "elsewhere" / path.name)
    ran = run("push", folder, REPO)
    assert ran.code == 3
    assert "Tuned-Q8_0.gguf is a link that leads out of" in ran.stderr
    path.unlink()
    (tmp_path / "elsewhere" / path.name).rename(folder / ".blob")
    path.symlink_to(".blob")
    ok("push", folder, REPO)


def test_an_included_link_stays_inside_too(hub, folder, tmp_path):
    (tmp_path / "secret").write_text("s")
    (folder / "NOTICE").symlink_to(tmp_path / "secret")
    assert run("push", folder, REPO, "--include", "NOTICE").code == 3
    assert REPO not in hub.pushed


def test_a_file_that_was_replaced_on_the_hub_is_not_listed_with_its_old_hash(hub, folder):
    ok("push", folder, REPO)
    repo = hub.pushed[REPO]
    repo.record(
        {**repo.tree(), "Tuned-Q4_K_M.gguf": b"x" * (folder / "Tuned-Q4_K_M.gguf").stat().st_size}, "main"
    )
    ok("push", folder, REPO, "--only", "Q8_0")
    assert "Tuned-Q4_K_M" not in repo.tree()["SHA256SUMS"].decode()


def test_sums_are_what_sha256sum_reads(hub, folder, tmp_path):
    ok("push", folder, REPO)
    out = tmp_path / "download"
    out.mkdir()
    for name, data in hub.pushed[REPO].tree().items():
        (out / name).write_bytes(data)
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=out, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.count(": OK") == 3


@pytest.mark.parametrize("path", ["/home/alice/run3", "/mnt/disk/run/merged", "./outputs/merged"])
def test_a_config_that_says_where_it_was_made(hub, tmp_path, path):
    files = {"config.json": json.dumps({"_name_or_path": path}).encode(), "model.safetensors": b"w" * 9000}
    made = export(tmp_path, [(entry("8bit", files, kind="mlx"), files)])
    ran = run("push", made, REPO)
    assert ran.code == 3
    assert "config.json holds a path" in ran.stderr
    assert REPO not in hub.pushed


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", '{"model": {"vocab": {"/home/alice/x": 1}}}'),
        ("chat_template.jinja", "cd /home/alice/project"),
        ("tokenizer_config.json", '{"chat_template": "cd /home/alice/project", "model_max_length": 1}'),
        ("qexport.json", '{"texts": ["open(\'/home/alice/x\')"], "reference": "https://x.y/home/alice/z"}'),
        ("config.json", '{"a": "qwen/tokenizer", "b": "1/2", "c": "</s>", "d": "."}'),
        ("notes.md", "See https://example.org/home/alice/ and /usr/bin."),
    ],
)
def test_text_that_is_meant(name, text):
    check_text(name, text.encode())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("notes.md", "I ran it in /home/alice/run3."),
        ("recipe.yaml", "source: C:\\Users\\alice\\model"),
        ("sub/config.json", '{"x": [{"y": "~/models/a"}]}'),
        ("broken.json", "{/home/alice/x"),
    ],
)
def test_text_that_tells_too_much(name, text):
    with pytest.raises(InputError, match="a path of some machine"):
        check_text(name, text.encode())


def test_a_token_in_a_file_is_found_and_not_repeated():
    token = "hf_" + "Ab1" * 11
    for prose in (True, False):
        with pytest.raises(InputError) as caught:
            check_text("notes.md", f"login with {token}".encode(), prose=prose)
        assert token not in str(caught.value)
    with pytest.raises(InputError, match="access token"):
        check_text("tokenizer.json", b'"short-secret"', secrets=["short-secret"])


def test_this_machines_own_folders_are_found_even_in_prose(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="a path of some machine"):
        check_text("README.md", f"made in {tmp_path}/x".encode(), prose=True)


def test_a_folder_without_a_receipt(hub, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"x")
    ran = run("push", tmp_path, REPO)
    assert ran.code == 3
    assert "holds no qexport.json" in ran.stderr


@pytest.mark.parametrize(
    "receipt",
    [
        "{",
        "[]",
        '{"schema": 99, "artifacts": []}',
        '{"schema": 1, "artifacts": [{}]}',
        '{"schema": 1, "artifacts": [3]}',
        '{"schema": 1, "artifacts": "x"}',
    ],
)
def test_a_receipt_that_cannot_be_used(hub, tmp_path, receipt):
    (tmp_path / "qexport.json").write_text(receipt)
    ran = run("push", tmp_path, REPO)
    assert ran.code == 3, ran.stderr
    assert not hub.requests


@pytest.mark.parametrize("name", ["../up.gguf", "/etc/passwd", "a//b", "a/./b", "a\\b", "a\nb", ""])
def test_names_that_leave_the_folder(name):
    value = entry("Q8_0", {"x.gguf": b"x"})
    value["files"][0]["name"] = name
    read = parse_receipt(json.dumps({"schema": 1, "artifacts": [value]}).encode())
    assert not read.receipt.artifacts
    assert "names no files" in read.notes[-1]


@pytest.mark.parametrize(
    ("verification", "state"),
    [
        (VERIFIED, State.PASSED),
        (None, State.NOT_RUN),
        ({"passed": "yes"}, State.NOT_RUN),
        ({}, State.NOT_RUN),
        (3, State.NOT_RUN),
        ({**VERIFIED, "passed": False, "verdict": "not verified"}, State.NOT_RUN),
        ({**VERIFIED, "findings": [{"check": "text", "status": "fail", "summary": "x"}]}, State.FAILED),
    ],
)
def test_only_a_report_that_passed_is_a_proof(verification, state):
    value = {**entry("Q8_0", {"x.gguf": b"x"}), "verification": verification, "verified": True}
    assert parsed(value).state is state


def test_receipts_in_subfolders_and_above(tmp_path):
    out = tmp_path / "out"
    (out / "gguf").mkdir(parents=True)
    export(out / "gguf", [gguf("Q8_0")])
    files = {"mlx/config.json": b"{}", "mlx/model.safetensors": b"w" * 100}
    export(out, [(entry("6bit", files, kind="mlx"), files)])
    names = {f.name for a in known_in(out).artifacts for f in a.files}
    assert names == {"gguf/Tuned-Q8_0.gguf", *files}
    # The folder of one format, whose receipt lies one level up.
    (artifact,) = known_in(out / "mlx").artifacts
    assert [f.name for f in artifact.files] == ["config.json", "model.safetensors"]


def test_an_unknown_label(hub, folder):
    ran = run("push", folder, REPO, "--only", "Q3_K_M")
    assert ran.code == 2
    assert "There are: Q4_K_M, Q8_0." in ran.stderr
