"""Jobs on the Hub: what the real client sends, and what nobody may see."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from recipe_texts import SMALL, load

from qexport.errors import EnvironmentProblem, InputError, UsageProblem
from qexport.run.hf_jobs import HfJobs, calls_for, submit
from qexport.run.jobs import Job

TOKEN = "hf_a_secret_for_tests"
SECRET = "swordfish"
JOB = Job("Model-1of2", ("gguf:Q4_K_M", "mlx"), 1, 2, 3, 4.0, exact=True)
PUBLISHED = SMALL + "publish: {repo: 'me/{folder}'}\n"


class _Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen, self.status, self.reason = [], 200, ""

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer({"name": "me", "type": "user"})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, self.headers["Authorization"], body))
        owner = {"id": "1", "name": "me", "type": "user"}
        self._answer({"id": "j1", "owner": owner, "status": {"stage": "SCHEDULING"}})

    def _answer(self, value):
        data = json.dumps(value).encode()
        self.send_response(self.server.status)
        if self.server.reason:
            self.send_header("X-Error-Message", self.server.reason)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch):
    server = _Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("OTHER", SECRET)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def one_call(tmp_path, *, text=PUBLISHED, overrides=(), **options):
    recipe = load(tmp_path, text)
    (call,) = calls_for(recipe, text, [JOB], HfJobs(**{"install": "qexport", **options}), overrides)
    return call


def test_what_the_client_sends(tmp_path, hub):
    call = one_call(
        tmp_path,
        overrides=("source.model=a/b c",),
        bucket="me/results",
        flavor="cpu-xl",
        secrets=("HF_TOKEN", "OTHER"),
    )
    done = submit(call, endpoint=hub.endpoint)
    assert (done.name, done.id, done.url) == ("Model-1of2", "j1", f"{hub.endpoint}/jobs/me/j1")
    ((path, token, body),) = hub.seen
    assert (path, token) == ("/api/jobs/me", f"Bearer {TOKEN}")
    assert body["secrets"] == {"HF_TOKEN": TOKEN, "OTHER": SECRET}
    assert body["environment"]["QEXPORT_RECIPE"] == PUBLISHED
    assert (body["flavor"], body["timeoutSeconds"], body["dockerImage"]) == (
        "cpu-xl",
        6 * 3600,
        "python:3.12",
    )
    assert body["labels"] == {"qexport": "r", "name": "Model-1of2"}
    assert body["volumes"] == [
        {"type": "bucket", "source": "me/results", "mountPath": "/out", "path": "r/Model-1of2"}
    ]
    assert body["command"][3:] == [
        "r.yaml", "--only", "gguf:Q4_K_M", "--only", "mlx", "--set", "source.model=a/b c", "--out", "/out",
    ]  # fmt: skip


def test_the_command_hands_its_words_on_as_they_are(tmp_path):
    """Run as a job would, with stand-ins for pip and qexport."""
    command = one_call(tmp_path, overrides=("a.b='x y' $HOME",)).arguments["command"]
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("pip", "qexport"):
        tool = tools / name
        tool.write_text(
            f"#!{sys.executable}\nimport json, sys\nprint(json.dumps([{name!r}, *sys.argv[1:]]))\n"
        )
        tool.chmod(0o755)
    environment = {
        "PATH": f"{tools}:/usr/bin:/bin",
        "QEXPORT_RECIPE": "a: 'b'\n$c\n",
        "QEXPORT_INSTALL": "x y",
    }
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True)
    pip, qexport = (json.loads(line) for line in ran.stdout.splitlines())
    assert pip == ["pip", "install", "--quiet", "x y"]
    assert qexport[:3] == ["qexport", "run", "r.yaml"]
    assert qexport[-3:] == ["a.b='x y' $HOME", "--out", "/out"]
    assert (tmp_path / "r.yaml").read_text() == "a: 'b'\n$c\n"


def test_a_rehearsal_names_secrets_and_shows_none(tmp_path, hub):
    call = one_call(tmp_path, secrets=("HF_TOKEN", "OTHER"))
    text = json.dumps(call.to_json())
    assert TOKEN not in text
    assert SECRET not in text
    assert call.to_json()["run_job"]["secrets"].keys() == {"HF_TOKEN", "OTHER"}
    assert hub.seen == []


def test_a_secret_that_is_not_set(tmp_path, hub):
    with pytest.raises(UsageProblem, match="the secret NOT_SET is not set here"):
        submit(one_call(tmp_path, secrets=("NOT_SET",)), endpoint=hub.endpoint)
    assert hub.seen == []


@pytest.mark.parametrize(
    ("status", "reason", "kind", "said"),
    [
        (
            402,
            f"no credits for {SECRET}",
            EnvironmentProblem,
            r"not take the job .*no credits for \*\*\*",
        ),
        (401, "", InputError, "not open to this account"),
        (503, "", EnvironmentProblem, "HTTP 503"),
    ],
)
def test_refusals(tmp_path, hub, status, reason, kind, said):
    call = one_call(tmp_path, namespace="org", secrets=("HF_TOKEN", "OTHER"))
    hub.status, hub.reason = status, reason
    with pytest.raises(kind, match=said) as caught:
        submit(call, endpoint=hub.endpoint)
    assert TOKEN not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_nobody_there(tmp_path, hub):
    with pytest.raises(EnvironmentProblem, match="cannot be reached"):
        submit(one_call(tmp_path, namespace="org"), endpoint="http://127.0.0.1:9")


@pytest.mark.parametrize(
    "text",
    [
        PUBLISHED.replace("org/Model", "./here"),
        PUBLISHED + "calibration: {corpus: c.jsonl}\n",
        PUBLISHED + "mtp: {base: ../base}\n",
    ],
)
def test_what_only_this_machine_has(tmp_path, text):
    with pytest.raises(UsageProblem, match="on this machine"):
        one_call(tmp_path, text=text)


def test_results_must_go_somewhere(tmp_path):
    with pytest.raises(UsageProblem, match="would be gone with the job"):
        one_call(tmp_path, text=SMALL)
    assert one_call(tmp_path, text=SMALL, bucket="me/x").arguments["volumes"]
    assert Path(one_call(tmp_path).arguments["command"][3]).name == "r.yaml"
