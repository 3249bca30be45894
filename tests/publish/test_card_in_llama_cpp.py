"""What cards and docs say of llama.cpp, done: commands as they stand there, against a Hub on this machine.

Of a model with its MTP head inside, and of the same with the head in a file of its own: in Q8_0 both are the
same numbers, so they draft the same tokens, whatever command has brought them together.
"""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from hub_server import HubServer
from in_process import ok
from oracle import toolchain

from qexport.demo import MODEL
from qexport.publishing.card import CardOptions, render_card
from qexport.publishing.presets import presets
from qexport.receipt.folder import known_in
from qexport.verification.pictures import Picture, png

pytestmark = [
    pytest.mark.toolchain,
    pytest.mark.skipif(
        not toolchain.has_tool("llama-server"), reason="no llama-server (make test-toolchain COMPILE=1)"
    ),
]
REPO = "alice/Model-GGUF"
PROMPTS = ("Once upon a time there was a little girl", "The capital of Japan", "1, 2, 3, 4, 5,")


@dataclass(frozen=True)
class Published:
    """A repository, and what its card says to type.

    Attributes:
        here: a folder to type it in.
    """

    hub: HubServer
    here: Path
    commands: tuple[tuple[str, ...], ...]

    def served_by(self, *more: str) -> list[tuple[str, ...]]:
        """The card's commands for llama-server with these words among them."""
        return [each for each in self.commands if each[0] == "llama-server" and set(more) <= set(each)]

    @contextmanager
    def running(self, *words: str) -> Iterator[str]:
        """llama-server, called with these words; gives its address."""
        port = _free_port()
        command = [str(toolchain.tool("llama-server")), *words, "--host", "127.0.0.1", "--port", str(port)]
        log = self.here / "server.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [*command, "-t", "1"],
                cwd=self.here,
                env=self.hub.environment(self.here / "cache"),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                _wait(f"http://127.0.0.1:{port}", process, log)
                yield f"http://127.0.0.1:{port}"
            finally:
                process.terminate()
                process.wait(60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            if asked(address, "/health") == {"status": "ok"}:
                return
        except (URLError, ConnectionError):
            time.sleep(0.1)
    pytest.fail(log.read_text()[-2000:])


def asked(address: str, path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(address + path, data, {"Content-Type": "application/json"}), timeout=120) as answer:
        return json.load(answer)


def answers(address: str, model: str = REPO) -> list[tuple[str, int, int]]:
    """Texts, how many tokens were drafted for them and how many of those were taken."""
    found = []
    for prompt in PROMPTS:
        body = {"model": model, "prompt": prompt, "n_predict": 32, "temperature": 0, "ignore_eos": True}
        answer = asked(address, "/completion", body)
        timings = answer["timings"]
        found.append((answer["content"], timings.get("draft_n", 0), timings.get("draft_n_accepted", 0)))
    return found


@pytest.fixture(scope="module", params=["embedded", "drafter"])
def published(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Published]:
    root = tmp_path_factory.mktemp(request.param)
    folder = root / "Model-GGUF"
    ok("gguf", MODEL, "-q", "Q8_0", "--mtp-layout", request.param, "--no-verify", "-o", folder)
    known = known_in(folder).artifacts
    card = render_card(known, CardOptions(REPO))
    (folder / "README.md").write_text(card)
    made = presets(known, REPO)
    assert made is not None
    (folder / "models.ini").write_bytes(made)
    block = re.search(r"### llama\.cpp\n+```sh\n(.*?)```", card, re.DOTALL)
    assert block is not None
    lines = [line for line in block[1].splitlines() if line and not line.startswith("#")]
    here = root / "here"
    here.mkdir()
    with HubServer() as hub:
        hub.add(REPO, folder)
        yield Published(hub, here, tuple(tuple(shlex.split(line)) for line in lines))


@pytest.fixture(scope="module")
def downloaded(published: Published) -> Published:
    """After the card's `hf download`."""
    (fetch,) = (each for each in published.commands if each[0] == "hf")
    command = [str(Path(sys.executable).with_name("hf")), *fetch[1:]]
    environment = published.hub.environment(published.here / "cache")
    subprocess.run(command, cwd=published.here, env=environment, check=True, capture_output=True)
    return published


FOUND: dict[str, list[tuple[str, int, int]]] = {}
"""What was drafted first, of whatever: all others draft the same."""


def same(found: Sequence[tuple[str, int, int]]) -> None:
    assert all(drafted > 0 for _, drafted, _ in found)
    assert sum(taken for _, _, taken in found) > 0
    assert list(found) == FOUND.setdefault("drafted", list(found))


def test_servers_answer_and_draft_as_the_card_says(downloaded: Published) -> None:
    drafting = downloaded.served_by("draft-mtp")
    plain = [each for each in downloaded.served_by() if each not in drafting]
    assert (len(plain), len(drafting)) == (1, 2 if any("-md" in each for each in drafting) else 1)
    with downloaded.running(*plain[0][1:]) as address:
        alone = answers(address)
        chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
        assert asked(address, "/v1/chat/completions", chat)["choices"][0]["message"]["content"]
    assert {drafted for _, drafted, _ in alone} == {0}
    for words in drafting:
        with downloaded.running(*words[1:]) as address:
            found = answers(address)
        same(found)
        assert [text for text, _, _ in found] == [text for text, _, _ in alone]
    # What the head is unsure of is left out.
    with downloaded.running(*drafting[0][1:], "--spec-draft-p-min", "0.75") as address:
        assert sum(drafted for _, drafted, _ in answers(address)) < sum(drafted for _, drafted, _ in found)


def test_models_ini_serves_every_file_with_its_head_and_sampling(published: Published) -> None:
    with published.running(
        "--models-preset", str(published.hub.repos[REPO].folder / "models.ini")
    ) as address:
        (name,) = (each["id"] for each in asked(address, "/v1/models")["data"])
        assert name == f"{REPO}:Q8_0"
        same(answers(address, name))
        settings = asked(address, f"/props?model={name}")["default_generation_settings"]["params"]
    assert (settings["temperature"], settings["top_k"]) == (pytest.approx(0.7), 20)


def test_a_folder_under_models_dir_takes_its_head_along(published: Published, tmp_path: Path) -> None:
    (tmp_path / "Model").symlink_to(published.hub.repos[REPO].folder)
    with published.running("--models-dir", str(tmp_path), "--spec-type", "draft-mtp") as address:
        assert "Model" in {each["id"] for each in asked(address, "/v1/models")["data"]}
        same(answers(address, "Model"))


@pytest.mark.parametrize("program", ["llama-cli", "llama-mtmd-cli"])
def test_programs_answer(downloaded: Published, program: str) -> None:
    """The one chats, the other is shown a picture."""
    if not toolchain.has_tool(program):
        pytest.skip(f"no {program} (make test-toolchain COMPILE=1)")
    (words,) = (each for each in downloaded.commands if each[0] == program)
    (downloaded.here / "PICTURE.png").write_bytes(png(Picture("7", "blue", "yellow").pixels(64)))
    command = [str(toolchain.tool(program)), *words[1:], "-t", "1", "-n", "8"]
    ran = subprocess.run(
        command, cwd=downloaded.here, input="Hello\n/exit\n", capture_output=True, text=True, timeout=120,
        check=True,
    )  # fmt: skip
    assert re.search(r"> Hello\n\w+" if program == "llama-cli" else r"\w", ran.stdout), ran.stdout
