"""Pushes against a Hub that fails: resumed, or stopped with nothing to be seen."""

import os
import subprocess
import sys

import pytest
from exported_folders import export, gguf
from in_process import ok, run
from push_server import TOKEN, Fault

REPO = "alice/Tuned-GGUF"
# Every kind of request that a push makes.
STEPS = [
    ("POST", "/api/repos/create"),
    ("GET", "/api/models/"),
    ("POST", "/validate-yaml"),
    ("POST", "/preupload/"),
    ("POST", "/objects/batch"),
    ("PUT", r"/storage/\w+/2"),
    ("POST", "/complete/"),
    ("POST", "/lfs/verify"),
    ("POST", "/commit/"),
]


def check_whole(hub, folder):
    tree = hub.pushed[REPO].tree()
    assert {"README.md", "SHA256SUMS", "qexport.json"} < set(tree)
    for path in folder.glob("*.gguf"):
        assert tree[path.name] == path.read_bytes()


def nothing_visible(hub):
    repo = hub.pushed.get(REPO)
    return repo is None or set(repo.tree()) == {".gitattributes"}


@pytest.mark.parametrize(("method", "pattern"), STEPS)
@pytest.mark.parametrize(
    "do",
    [("status", 503), ("status", 500), ("status", 429), ("cut", 0), ("lost",)],
    ids=lambda do: "-".join(map(str, do)),
)
def test_what_passes_by_itself(hub, folder, method, pattern, do):
    hub.faults.append(Fault(method, pattern, do))
    ok("push", folder, REPO)
    assert hub.faults[0].times == 0
    check_whole(hub, folder)
    # However the commit failed, there is one: the answer that was lost was looked for.
    commits = [sha for sha, tree in hub.pushed[REPO].commits.items() if "qexport.json" in tree]
    assert len(commits) == 1


@pytest.mark.parametrize(("method", "pattern"), STEPS)
def test_a_silent_server_is_left(hub, folder, method, pattern):
    hub.faults.append(Fault(method, pattern, ("stall",)))
    ok("push", folder, REPO, "--timeout", 0.3)
    assert hub.faults[0].times == 0
    check_whole(hub, folder)


def test_a_connection_cut_in_the_middle_of_a_part(hub, folder):
    hub.faults.append(Fault("PUT", "/storage/", ("cut", 30_000), times=2))
    ok("push", folder, REPO)
    check_whole(hub, folder)


@pytest.mark.parametrize(("method", "pattern"), [s for s in STEPS if s[0] != "GET" and s[1] != "/lfs/verify"])
def test_a_hub_that_stays_down(hub, folder, method, pattern):
    hub.faults.append(Fault(method, pattern, ("status", 502), times=1000))
    ran = run("push", folder, REPO)
    assert ran.code == 6, ran.stderr
    assert "HTTP 502" in ran.stderr or "connection" in ran.stderr
    assert "Nothing of this push is visible on the Hub." in ran.stderr
    assert "Traceback" not in ran.stderr
    assert nothing_visible(hub)


@pytest.mark.parametrize("pattern", ["/preupload/", "/objects/batch", "/lfs/verify", "/commit/"])
def test_a_token_that_expires_half_way(hub, folder, pattern):
    hub.faults.append(Fault("POST", pattern, ("expire",)))
    ran = run("push", folder, REPO)
    assert ran.code == 6, ran.stderr
    assert "no longer accepts the access token (HTTP 401" in ran.stderr
    assert "Nothing of this push is visible on the Hub." in ran.stderr
    assert "hf auth login" in ran.stderr
    assert TOKEN not in ran.stderr
    assert nothing_visible(hub)
    # With a token again, what had arrived is not sent a second time.
    hub.tokens.add(TOKEN)
    whole = {oid for oid, _ in hub.puts if oid in hub.objects}
    hub.puts.clear()
    ok("push", folder, REPO)
    assert not whole & {oid for oid, _ in hub.puts}
    check_whole(hub, folder)


def test_a_second_run_sends_only_what_is_missing(hub, tmp_path):
    made = export(tmp_path, [gguf("Q4_K_M"), gguf("Q6_K"), gguf("Q8_0")])
    # Two of three arrive; the third's storage is down for good.
    first = made / "Tuned-Q8_0.gguf"
    import hashlib

    oid = hashlib.sha256(first.read_bytes()).hexdigest()
    hub.faults.append(Fault("PUT", f"/storage/{oid}", ("status", 500), times=1000))
    assert run("push", made, REPO, "--workers", 1).code == 6
    assert len(hub.objects) == 2
    assert nothing_visible(hub)
    hub.faults.clear()
    hub.puts.clear()
    ok("push", made, REPO)
    assert {sent for sent, _ in hub.puts} == {oid}
    assert sum(size for _, size in hub.puts) == first.stat().st_size
    check_whole(hub, made)


@pytest.mark.parametrize("status", [401, 403])
def test_no_right_to_write(hub, folder, status):
    hub.make(REPO)
    hub.faults.append(Fault("POST", "/commit/", ("status", status), times=100))
    ran = run("push", folder, REPO)
    assert ran.code == 6
    assert f"HTTP {status}" in ran.stderr
    assert nothing_visible(hub)


def test_a_signed_address_that_ran_out(hub, folder):
    """Storage says 403 then; a new one is asked for, and the token has nothing to do with it."""
    hub.faults.append(Fault("PUT", "/storage/", ("status", 403), times=2))
    ok("push", folder, REPO)
    check_whole(hub, folder)


def test_somebody_else_pushes_meanwhile(hub, folder):
    repo = hub.make(REPO)
    hub.faults.append(Fault("POST", "/commit/", ("call", lambda: repo.add({"theirs.txt": b"x"}))))
    ran = run("push", folder, REPO)
    assert ran.code == 6
    assert "Somebody else changed alice/Tuned-GGUF while this push ran." in ran.stderr
    assert set(repo.tree()) == {".gitattributes", "theirs.txt"}
    ok("push", folder, REPO)
    assert repo.tree()["theirs.txt"] == b"x"
    check_whole(hub, folder)


def test_somebody_else_pushes_while_the_answer_is_lost(hub, folder):
    """Their commit on top of ours: ours is there, and is not made again."""
    repo = hub.make(REPO)
    hub.faults.append(Fault("POST", "/commit/", ("lost",)))
    hub.faults.append(Fault("GET", "/api/models/", ("call", lambda: repo.add({"theirs.txt": b"x"})), skip=1))
    ok("push", folder, REPO)
    assert repo.tree()["theirs.txt"] == b"x"
    assert len(hub.sent("POST", "/commit/")) == 1


def test_a_lost_answer_to_a_pull_request_is_not_repeated(hub, folder):
    hub.make(REPO)
    hub.faults.append(Fault("POST", "/commit/", ("lost",)))
    assert run("push", folder, REPO, "--create-pr").code == 6
    assert len(hub.sent("POST", "/commit/")) == 1


def test_public_fails_after_the_commit(hub, folder):
    hub.faults.append(Fault("PUT", "/settings", ("status", 403), times=100))
    ran = run("push", folder, REPO, "--public")
    assert ran.code == 6
    assert "Everything has been pushed; the repository is still private." in ran.stderr
    assert hub.pushed[REPO].private
    check_whole(hub, folder)


@pytest.mark.parametrize(("status", "says"), [(401, "no longer accepts"), (403, "may not write")])
def test_xet_that_is_refused(hub, folder, status, says):
    """Where hf_xet is used, it asks the Hub for a token of its own; its errors are words only.

    In a process of its own: hf_xet's session belongs to the process, and one that failed is not always new.
    """
    hub.faults.append(Fault("GET", "/xet-write-token/", ("status", status), times=100))
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "0"}
    words = [sys.executable, "-m", "qexport", "push", str(folder), REPO]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment)
    assert len(hub.sent("GET", "/xet-write-token/")) == 1
    assert ran.returncode == 6, ran.stderr
    assert says in ran.stderr
    assert TOKEN not in ran.stderr
    assert nothing_visible(hub)


def test_an_answer_that_is_no_hubs(hub, folder):
    """A proxy's page with status 200, again and again."""
    hub.make(REPO)
    hub.faults.append(Fault("POST", "/preupload/", ("page", b"<html>sign in</html>"), times=100))
    ran = run("push", folder, REPO)
    assert ran.code == 6
    assert "Traceback" not in ran.stderr
    assert nothing_visible(hub)
