"""The trunk's own text, written by a runtime that its users have.

A head is tuned to what its trunk says of text that the trunk itself would write; no corpus has that. So a
runtime is asked: llama.cpp with a Q8_0 of the model, or any server that speaks OpenAI's protocol. Sampling is
what the model's ``generation_config.json`` recommends, since that is how it will be used; greedy text ends in
loops, which a head learns.

Each line of the result is one answer, with its prompt and where that ends (``prompt_tokens``); ids where the
runtime gives them, a conversation where it does not. Lines are written as they come: who is stopped and
called again goes on.
"""

from __future__ import annotations

import glob
import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.checkpoint.config import parse_json
from qexport.errors import EnvironmentProblem, InputError
from qexport.evidence.tokenizer import TextTokenizer
from qexport.headtune.prompts import Prompt, seed_of
from qexport.onepass.files import temporary_name

if TYPE_CHECKING:
    from qexport.progress import Progress


_TEMPERATURE = 0.7
"""Where the model recommends nothing."""
_NAMES = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}
_LEAST = 4  # tokens of an answer that is worth a line
_ROUNDS = 64  # answers to one prompt, at most
_HTTP_S = 600.0


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    temperature: float = _TEMPERATURE
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0

    def llama(self) -> dict[str, Any]:
        """In llama.cpp's words, and its order of the samplers."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repeat_penalty": self.repeat_penalty,
            "samplers": ["penalties", "top_k", "top_p", "min_p", "temperature"],
        }

    def openai(self) -> dict[str, Any]:
        """In OpenAI's words, and those that servers add to them where they say anything."""
        found: dict[str, Any] = {"temperature": self.temperature, "top_p": self.top_p}
        if self.top_k:
            found["top_k"] = self.top_k
        if self.min_p:
            found["min_p"] = self.min_p
        if self.repeat_penalty != 1:
            found["repetition_penalty"] = self.repeat_penalty
        return found


def recommended(files: Mapping[str, bytes], label: str) -> Sampling:
    """What ``generation_config.json`` says; a temperature of 0.7 and nothing else where it says nothing."""
    name = "generation_config.json"
    said = parse_json(files[name], f"{label}: {name}") if name in files else {}
    known = {"temperature": float, "top_p": float, "top_k": int, "min_p": float}
    found: dict[str, Any] = {
        key: kind(said[key])
        for key, kind in known.items()
        if isinstance(said.get(key), int | float) and not isinstance(said[key], bool)
    }
    if isinstance(said.get("repetition_penalty"), int | float):
        found["repeat_penalty"] = float(said["repetition_penalty"])
    return Sampling(**found) if found.get("temperature", _TEMPERATURE) > 0 else Sampling()


@dataclass(frozen=True)
class Answer:
    """A line of the result, and how many tokens of an answer it has."""

    row: Mapping[str, Any]
    tokens: int


Ask = Callable[[Prompt, int], Answer]
"""One answer to a prompt, with this seed."""


def asks_server(
    url: str, model: str | None, key: str | None, tokenizer: TextTokenizer, sampling: Sampling, most: int
) -> Ask:
    """A server that speaks OpenAI's protocol; ``model`` is its first one where none is named."""
    base = url.rstrip("/").removesuffix("/v1") + "/v1"
    name = model or str(_called(f"{base}/models", key)["data"][0]["id"])

    def ask(prompt: Prompt, seed: int) -> Answer:
        body = {"model": name, "max_tokens": most, "seed": seed, **sampling.openai()}
        if prompt.messages:
            given = prompt.turns
            choice = _called(f"{base}/chat/completions", key, {**body, "messages": given})["choices"][0]
            said = choice["message"]
            answer = {"role": "assistant", "content": said.get("content") or ""}
            if reasoning := said.get("reasoning_content") or said.get("reasoning"):
                answer["reasoning_content"] = reasoning
            count = len(tokenizer.chat("".join((answer.get("reasoning_content", ""), answer["content"]))))
            return Answer({"messages": [*given, answer]}, count)
        text = str(_called(f"{base}/completions", key, {**body, "prompt": prompt.text})["choices"][0]["text"])
        before, whole = list(tokenizer.text(prompt.text)), list(tokenizer.text(prompt.text + text))
        same = 0
        while same < min(len(before), len(whole)) and before[same] == whole[same]:
            same += 1
        return Answer({"input_ids": whole, "prompt_tokens": same, "answer": text}, len(whole) - same)

    return ask


def generate(
    prompts: Sequence[Prompt],
    ask: Ask,
    out: Path,
    *,
    tokens: int,
    seed: int = 0,
    parallel: int = 1,
    progress: Progress | None = None,
    asked: str = "",
) -> dict[str, Any]:
    """Ask until there are so many tokens; returns how many answers, tokens and domains there are.

    Every prompt is answered before any is answered again.

    Args:
        asked: who is asked, and how: what was written for another one is not gone on with.

    Raises:
        InputError: answers are empty.
        EnvironmentProblem: the file cannot be written.
    """
    known = json.dumps([asked, seed, [asdict(prompt) for prompt in prompts]], sort_keys=True, default=str)
    key = hashlib.sha256(known.encode()).hexdigest()[:16]
    part = out.with_name(temporary_name(f"{out.name}.{key}"))
    rows = _rows(part)
    done = {(row["prompt"], row["sample"]) for row in rows}
    made = sum(row["answer_tokens"] for row in rows)
    if progress is not None:
        progress.advance(min(made, tokens))
    turns = ((number, sample) for sample in range(_ROUNDS) for number in range(len(prompts)))
    waiting = (turn for turn in turns if turn not in done)

    def answered(turn: tuple[int, int]) -> dict[str, Any]:
        number, sample = turn
        found = ask(prompts[number], seed_of(seed, number, sample))
        known = {"domain": prompts[number].domain, "prompt": number, "sample": sample}
        return {**found.row, **known, "answer_tokens": found.tokens}

    empty = 0
    try:
        with part.open("a", encoding="utf-8") as file, ThreadPoolExecutor(parallel) as pool:
            while made < tokens:
                batch = list(islice(waiting, parallel))
                if not batch:
                    break
                for row in pool.map(answered, batch):
                    if row["answer_tokens"] < _LEAST:
                        empty += 1
                        continue
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    rows.append(row)
                    made += row["answer_tokens"]
                    if progress is not None:
                        progress.advance(row["answer_tokens"])
                file.flush()
                if empty > 8 * parallel + len(rows):
                    raise InputError(
                        "the model answers with next to nothing",
                        hint="Look at what it says: the chat template may not be the one it was tuned with.",
                    )
        part.replace(out)
        for stale in out.parent.glob(glob.escape(f".{out.name}.") + "*.part"):
            stale.unlink()
    except OSError as error:
        raise EnvironmentProblem(f"{out.name} cannot be written: {error.strerror or error}") from error
    domains: dict[str, int] = {}
    for row in rows:
        domains[row["domain"]] = domains.get(row["domain"], 0) + row["answer_tokens"]
    return {"file": out.name, "answers": len(rows), "tokens": made, "domains": domains, "left_out": empty}


def _rows(part: Path) -> list[dict[str, Any]]:
    """What a stopped run has written; a line that was cut off is gone."""
    if not part.is_file():
        return []
    good: list[str] = []
    rows = []
    for line in part.read_text(encoding="utf-8").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        good.append(line)
        rows.append(row)
    part.write_text("".join(f"{line}\n" for line in good), encoding="utf-8")
    return rows


def _called(url: str, key: str | None, body: Mapping[str, Any] | None = None) -> Any:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(url, data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=_HTTP_S) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        words = error.read(500).decode(errors="replace")
        raise EnvironmentProblem(f"the server refuses {url}: {error.code} {words}") from error
    except (OSError, ValueError) as error:
        raise EnvironmentProblem(
            f"the server does not answer {url}: {error}", hint="Is it running, and is this its address?"
        ) from error
