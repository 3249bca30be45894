"""Pushes against a Hub that works, through the command line and the real client."""

import hashlib
import json

import pytest
from exported_folders import FAILED, VERIFIED, entry, export, gguf, noise
from in_process import ok, run
from push_server import TOKEN, Fault

from qexport.receipt.store import parse_receipt, read_receipt

REPO = "alice/Tuned-GGUF"


def sums(text):
    return dict(reversed(line.split("  ")) for line in text.decode().splitlines())


def test_a_push_to_a_new_repository(hub, folder):
    ran = ok("push", folder, REPO)
    repo = hub.pushed[REPO]
    tree = repo.tree()
    for path in folder.glob("*.gguf"):
        assert tree[path.name] == path.read_bytes()
    assert set(tree) == {
        ".gitattributes", "README.md", "SHA256SUMS", "qexport.json", *(p.name for p in folder.glob("*.gguf"))
    }  # fmt: skip
    assert repo.private
    # One commit: the Hub's own first one, the repository's, and ours.
    assert len(hub.sent("POST", "/commit/")) == 1
    for name, sha256 in sums(tree["SHA256SUMS"]).items():
        assert hashlib.sha256(tree[name]).hexdigest() == sha256
    assert set(sums(tree["SHA256SUMS"])) == set(tree) - {".gitattributes", "README.md", "SHA256SUMS"}
    assert parse_receipt(tree["qexport.json"]) == read_receipt(folder)
    assert ran.stdout == (
        f"Pushed 5 files, {_human(folder, tree)}: {hub.endpoint}/{REPO} (private)\n"
        f"Commit {repo.branches['main']}\n"
    )
    # What was pushed lies here as before: nothing is written into the folder.
    assert {path.name for path in folder.iterdir()} == {
        "qexport.json", "Tuned-Q4_K_M.gguf", "Tuned-Q8_0.gguf"
    }  # fmt: skip


def _human(folder, tree):
    size = sum(len(data) for name, data in tree.items() if name != ".gitattributes")
    return f"{size / 1000:.3g} kB"


def test_no_large_file_is_read_for_its_hash(hub, folder, monkeypatch):
    """Receipts have the hashes; the client would otherwise compute them."""
    from huggingface_hub import lfs

    monkeypatch.setattr(lfs, "sha_fileobj", lambda *_: pytest.fail("hashed"))
    ok("push", folder, REPO)


def test_large_files_go_in_parts_and_small_ones_whole(hub, tmp_path):
    made = export(tmp_path, [gguf("Q2_K", 20_000), gguf("Q8_0", 3 * hub.part_size + 1)])
    ok("push", made, REPO)
    assert len(hub.sent("PUT", r"/storage/[0-9a-f]+\?")) == 1
    assert len(hub.sent("PUT", r"/storage/[0-9a-f]+/\d")) == 4


def test_pushing_again_changes_nothing(hub, folder):
    ok("push", folder, REPO)
    hub.requests.clear()
    ran = ok("push", folder, REPO, "--json")
    assert not hub.sent("PUT")
    assert not hub.sent("POST", "/commit/")
    assert ran.json()["changed"] is False
    assert "already holds all of it" in ok("push", folder, REPO).stdout


def test_a_later_push_keeps_what_is_there(hub, folder, tmp_path):
    ok("push", folder, REPO)
    more = tmp_path / "more"
    more.mkdir()
    ok("push", export(more, [gguf("Q6_K")]), REPO)
    tree = hub.pushed[REPO].tree()
    labels = [a["label"] for a in json.loads(tree["qexport.json"])["artifacts"]]
    assert labels == ["Q4_K_M", "Q8_0", "Q6_K"]
    assert {"Tuned-Q4_K_M.gguf", "Tuned-Q6_K.gguf"} <= set(sums(tree["SHA256SUMS"]))
    card = tree["README.md"].decode()
    assert card.index("| Q4_K_M |") < card.index("| Q6_K |") < card.index("| Q8_0 |")


def test_artifacts_whose_files_left_the_repository_leave_the_card(hub, folder, tmp_path):
    ok("push", folder, REPO)
    repo = hub.pushed[REPO]
    repo.record({k: v for k, v in repo.tree().items() if k != "Tuned-Q8_0.gguf"}, "main")
    more = tmp_path / "more"
    more.mkdir()
    ok("push", export(more, [gguf("Q6_K")]), REPO)
    assert "Q8_0" not in repo.tree()["README.md"].decode()


def test_a_dry_run_sends_nothing(hub, folder):
    hub.make(REPO)
    before = hub.pushed[REPO].branches["main"]
    ran = ok("push", folder, REPO, "--dry-run")
    assert {request.method for request in hub.requests} == {"GET"}
    assert hub.pushed[REPO].branches["main"] == before
    for path in folder.glob("*.gguf"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in ran.stdout
    assert "base_model: alice/Tuned\n" in ran.stdout
    assert "nothing has been sent" in ran.stdout
    assert f"{REPO} (public)" in ran.stdout


def test_a_dry_run_says_what_the_push_then_does(hub, folder):
    planned = ok("push", folder, REPO, "--dry-run", "--json").json()
    done = ok("push", folder, REPO, "--json").json()
    assert planned["files"] == done["files"]
    tree = hub.pushed[REPO].tree()
    assert {f["name"]: f["sha256"] for f in planned["files"]} == {
        name: hashlib.sha256(data).hexdigest() for name, data in tree.items() if name != ".gitattributes"
    }
    assert planned["card"].encode() == tree["README.md"]
    assert str(folder.parent) not in json.dumps(planned)


def test_a_dry_run_without_a_network(hub, folder, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    ran = ok("push", folder, REPO, "--dry-run", "--json")
    assert ran.json()["repository"] == {"exists": False, "private": None, "commit": None}
    assert "ConnectionRefusedError" in ran.json()["not_asked"]


def test_a_repository_is_made_public_after_the_commit(hub, folder):
    ok("push", folder, REPO, "--public")
    assert not hub.pushed[REPO].private
    order = [r.path for r in hub.requests if "/commit/" in r.path or "/settings" in r.path]
    assert ["/settings" in path for path in order] == [False, True]


@pytest.mark.parametrize("verification", [None, FAILED])
def test_what_has_not_passed_is_refused(hub, tmp_path, verification):
    made = export(tmp_path, [gguf("Q4_K_M"), gguf("Q2_K", verification=verification)])
    ran = run("push", made, REPO)
    assert ran.code == (6 if verification is None else 4)
    assert "Q2_K (Tuned-Q2_K.gguf)" in ran.stderr
    assert not hub.requests
    # What passed goes without it.
    ok("push", made, REPO, "--only", "q4_k_m")
    assert "Tuned-Q2_K.gguf" not in hub.pushed[REPO].tree()


def test_unverified_on_request_and_the_card_says_so(hub, tmp_path):
    made = export(tmp_path, [gguf("Q4_K_M"), gguf("Q2_K", verification=FAILED)])
    assert run("push", made, REPO, "--allow-unverified").code == 4  # it has failed, which is another matter
    ok("push", made, REPO, "--allow-failed")
    card = hub.pushed[REPO].tree()["README.md"].decode()
    assert "> **1 of 2 exports here have not passed verification:**\n> - Q2_K: failed: comparing" in card
    assert "| failed: comparing answers |" in card
    ran = run("push", made, REPO, "--allow-failed", "--public")
    assert ran.code == 4
    assert hub.pushed[REPO].private


def test_earlier_unverified_artifacts_keep_a_repository_private(hub, folder, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    ok("push", export(bad, [gguf("Q2_K", verification=None)]), REPO, "--allow-unverified")
    ran = run("push", folder, REPO, "--public")
    assert ran.code == 6
    assert hub.pushed[REPO].private


def test_the_visibility_of_what_exists_is_left_alone(hub, folder):
    hub.make(REPO, private=False)
    ok("push", folder, REPO)
    assert not hub.pushed[REPO].private


def test_text_between_the_markers_is_kept(hub, folder):
    ok("push", folder, REPO)
    repo = hub.pushed[REPO]
    card = repo.tree()["README.md"].decode()
    mine = "Made for *fox stories*.\n\n| a | b |\n|---|---|\n| /home/fox/den | 2 |"
    edited = card.replace("<!-- qexport:keep -->\n", f"<!-- qexport:keep -->\n{mine}\n")
    edited = edited.replace("tags:\n", "thumbnail: fox.png\nlicense: mit\ntags:\n- foxes\n")
    repo.add({"README.md": edited.encode()})
    for path in folder.glob("*Q8_0*"):
        path.unlink()
    ok("push", folder, REPO, "--only", "Q4_K_M")
    again = repo.tree()["README.md"].decode()
    assert f"<!-- qexport:keep -->\n\n{mine}\n\n<!-- /qexport:keep -->" in again
    assert "thumbnail: fox.png\n" in again
    assert "license: mit\n" in again
    assert "- foxes\n" in again
    head = repo.branches["main"]
    ok("push", folder, REPO, "--only", "Q4_K_M")
    assert repo.branches["main"] == head


def test_a_card_of_somebody_elses_is_not_replaced(hub, folder):
    repo = hub.make(REPO, {"README.md": b"# Mine\n"})
    ran = run("push", folder, REPO)
    assert ran.code == 2
    assert "--replace-card" in ran.stderr
    assert not hub.sent("PUT")
    ok("push", folder, REPO, "--replace-card")
    assert b"# Mine" not in repo.tree()["README.md"]


def test_a_branch_is_made(hub, folder):
    repo = hub.make(REPO)
    ok("push", folder, REPO, "--branch", "v2", "-m", "Second try")
    assert "Tuned-Q8_0.gguf" in repo.tree("v2")
    assert set(repo.tree("main")) == {".gitattributes"}


def test_a_pull_request(hub, folder):
    repo = hub.make(REPO)
    ran = ok("push", folder, REPO, "--create-pr")
    assert ran.stdout == f"Offered as a pull request: {hub.endpoint}/{REPO}/discussions/1\n"
    assert set(repo.tree("main")) == {".gitattributes"}
    assert run("push", folder, "alice/Nothing", "--create-pr").code == 3


@pytest.mark.parametrize("repo", ["Tuned-GGUF", "a/b/c", "alice/..", "-x/y"])
def test_names_that_are_no_repository(hub, folder, repo):
    assert run("push", folder, "--", repo).code == 2
    assert not hub.requests


def test_without_a_token(hub, folder, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    ran = run("push", folder, REPO)
    assert ran.code == 6
    assert "hf auth login" in ran.stderr
    assert not hub.requests


def test_folders_of_a_format_are_pushed_with_their_names(hub, tmp_path):
    files = {
        "config.json": b'{"quantization": {"bits": 6}}',
        "model.safetensors": noise(50_000, 1),
        "README.md": b"a card that came along",
    }
    made = export(tmp_path, [(entry("6bit", files, kind="mlx"), files)])
    ran = ok("push", made, REPO, "--json")
    assert {"name": "README.md", "why": "the card is made from receipts"} in ran.json()["left_out"]
    tree = hub.pushed[REPO].tree()
    assert tree["config.json"] == files["config.json"]
    assert b"mlx_lm.generate --model alice/Tuned-GGUF" in tree["README.md"]
    assert "README.md" not in sums(tree["SHA256SUMS"])


def test_the_token_stays_where_it_is(hub, folder, caplog):
    hub.faults.append(Fault("PUT", "/storage/", ("status", 503), times=2))
    ran = ok("push", folder, REPO, "--json")
    everything = (
        ran.stdout
        + ran.stderr
        + caplog.text
        + "".join(
            data.decode("latin-1")
            for name, data in hub.pushed[REPO].tree().items()
            if not name.endswith(".gguf")
        )
    )
    assert TOKEN not in everything
    assert "verysecretsignature" not in everything
    assert "503" in ran.stderr


def test_a_tower_that_a_later_push_replaces_takes_the_verdict_on_pictures_along(hub, tmp_path):
    """The file that an earlier push left there was shown pictures through the tower that was there then."""

    def pushed(label, base):
        seen = [{"check": check, "status": "pass"} for check in ("loads", "image_embeddings", "image_text")]
        made, files = gguf(label, verification={**VERIFIED, "findings": seen})
        tower = noise(5000, len(base))
        beside = entry("mmproj-BF16", {"mmproj-BF16.gguf": tower}, kind="mmproj", verification=None)
        for each in (made, beside):
            each["source"] |= {"vision": True, "tower": f"grafted from {base}"}
        folder = export(tmp_path / label, [(made, files), (beside, {"mmproj-BF16.gguf": tower})])
        ok("push", folder, REPO)
        card = hub.pushed[REPO].tree()["README.md"].decode()
        return "It was shown pictures" in card, "another tower than is here now" in card

    assert pushed("Q8_0", "org/A@01234567") == (True, False)
    assert pushed("Q4_K_M", "org/Another@89abcdef") == (True, True)
