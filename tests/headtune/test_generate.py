"""The trunk's own text: how it is asked for, what is written, and that a stopped run goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from document_types import misfits
from head_texts import tiny, view_of
from zoo_types import Zoo

from qexport.cli._documents import OwnTextDocument
from qexport.cli.main import cli
from qexport.errors import EnvironmentProblem, InputError
from qexport.evidence.corpus import builtin_corpus, read_corpus
from qexport.evidence.tokenizer import model_tokenizer
from qexport.headtune.generate import Answer, Sampling, asks_server, generate, recommended
from qexport.headtune.prompts import Prompt, prompts_of, seed_of
from qexport.headtune.text import documents_of

PROMPTS = [Prompt("code", ids=(1, 2, 3)), Prompt("prose", ids=(4, 5))]


def told(prompt: Prompt, seed: int) -> Answer:
    words = [seed % 50 + at for at in range(20)]
    return Answer({"input_ids": [*prompt.ids, *words], "prompt_tokens": len(prompt.ids)}, 20)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_prompt_is_answered_before_any_is_answered_again(tmp_path: Path) -> None:
    out = tmp_path / "own.jsonl"
    found = generate(PROMPTS, told, out, tokens=95)
    assert (found["answers"], found["tokens"]) == (5, 100)
    assert found["domains"] == {"code": 60, "prose": 40}
    assert [(row["prompt"], row["sample"]) for row in rows(out)] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]
    assert rows(out)[0]["prompt_tokens"] == 3
    assert rows(out)[0] != rows(out)[2]


def test_who_is_stopped_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "own.jsonl"
    generate(PROMPTS, told, tmp_path / "whole.jsonl", tokens=95)
    asked = 0

    def stops(prompt: Prompt, seed: int) -> Answer:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise KeyboardInterrupt
        return told(prompt, seed)

    with pytest.raises(KeyboardInterrupt):
        generate(PROMPTS, stops, out, tokens=95)
    assert not out.exists()
    (part,) = tmp_path.glob(".own.jsonl.*.part")
    with part.open("a") as file:
        file.write('{"input_ids": [1, 2')  # cut off
    other = tmp_path / "other"
    other.mkdir()
    (other / part.name).write_bytes(part.read_bytes())
    generate(PROMPTS, told, out, tokens=95)
    assert rows(out) == rows(tmp_path / "whole.jsonl")
    generate(PROMPTS, told, other / out.name, tokens=95, asked="another model")
    assert [path.name for path in other.iterdir()] == [out.name]
    asked = -10
    generate(PROMPTS, stops, other / "third.jsonl", tokens=95, seed=1)
    assert asked == -5


def test_a_model_that_says_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="next to nothing"):
        generate(PROMPTS, lambda *_: Answer({}, 1), tmp_path / "own.jsonl", tokens=95)


def test_seeds_are_of_prompt_and_sample() -> None:
    assert len({seed_of(0, number, sample) for number in range(20) for sample in range(20)}) == 400
    assert 0 <= seed_of(1, 2, 3) < 1 << 31


def test_sampling_is_what_the_model_recommends() -> None:
    said = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.05, "do_sample": True}
    found = recommended({"generation_config.json": json.dumps(said).encode()}, "model")
    assert found == Sampling(0.6, 0.95, 20, 0.0, 1.05)
    assert found.openai()["repetition_penalty"] == 1.05
    assert recommended({}, "model").llama()["temperature"] == 0.7


def test_prompts_of_conversations_and_of_texts(zoo: Zoo) -> None:
    view = view_of(tiny(zoo))
    chats = prompts_of(builtin_corpus(), view, chats=True)
    asked = [prompt for prompt in chats if prompt.messages]
    assert asked
    assert all(prompt.messages[-1]["role"] != "assistant" for prompt in asked)
    assert {"code", "prose", "reasoning"} <= {prompt.domain for prompt in chats}
    texts = prompts_of(builtin_corpus(), view, chats=False)
    assert all(len(prompt.ids) == 48 for prompt in texts)


@contextmanager
def server(refuse: bool = False) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Speaks OpenAI's protocol, and remembers what it was asked."""
    asked: list[dict[str, Any]] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.say({"data": [{"id": "the-model"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
            if refuse:
                self.send_error(400, "no")
            elif self.path.endswith("/chat/completions"):
                self.say({"choices": [{"message": {"role": "assistant", "content": "an answer " * 20}}]})
            else:
                self.say({"choices": [{"text": " and so on" * 20}]})

        def say(self, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}", asked
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


def test_any_server_can_be_asked(zoo: Zoo, tmp_path: Path) -> None:
    view = view_of(tiny(zoo))
    tokenizer = model_tokenizer(view.files, view.label)
    prompts = [
        Prompt("chat", messages=({"role": "user", "content": "a question"},)),
        Prompt("prose", ids=(1, 2), text="It was a dark and stormy night"),
    ]
    out = tmp_path / "own.jsonl"
    with server() as (url, asked):
        ask = asks_server(url, None, "a-key", tokenizer, Sampling(top_k=20), 64)
        generate(prompts, ask, out, tokens=1000, seed=3)
    assert [each["path"] for each in asked[:2]] == ["/v1/chat/completions", "/v1/completions"]
    assert asked[0]["model"] == "the-model"
    assert (asked[0]["key"], asked[0]["top_k"], asked[0]["seed"]) == ("Bearer a-key", 20, seed_of(3, 0, 0))
    documents = documents_of(read_corpus(out), view)
    assert {document.domain for document in documents} == {"chat", "prose"}
    assert all(0 < document.prompt < len(document.ids) for document in documents)


def test_the_command_says_what_was_written(zoo: Zoo, tmp_path: Path) -> None:
    out = tmp_path / "own.jsonl"
    with server() as (url, _):
        words = ["mtp", "generate", str(tiny(zoo)), "--server", url, "--tokens", "900", "--json"]
        done = CliRunner().invoke(cli, [*words, "-o", str(out)])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert misfits(OwnTextDocument, document) == []
    assert document["answers"] == len(rows(out))
    assert document["tokens"] == sum(document["domains"].values()) >= 900


def test_a_server_that_refuses_is_quoted(zoo: Zoo) -> None:
    view = view_of(tiny(zoo))
    with server(refuse=True) as (url, _):
        ask = asks_server(f"{url}/v1", "m", None, model_tokenizer(view.files, view.label), Sampling(), 64)
        with pytest.raises(EnvironmentProblem, match="400"):
            ask(Prompt("a", ids=(1,), text="x"), 1)
    with pytest.raises(EnvironmentProblem, match="does not answer"):
        ask(Prompt("a", ids=(1,), text="x"), 1)
