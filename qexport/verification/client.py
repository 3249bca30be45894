"""llama.cpp's server protocol over the loopback: one session for every runtime that speaks it.

Endpoints and fields: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
(`/apply-template`, `/tokenize`, `/completion`). Three things its answers do not say plainly:

- a log-probability that is not a number arrives as ``null``, one of minus infinity as the lowest float;
- ``completion_probabilities`` leaves out tokens that end inside a UTF-8 character, so it can be shorter than
  ``tokens`` and is matched to them by id;
- drafted tokens that were accepted carry no probabilities at all (an empty ``top_logprobs`` and 0.0).
"""

from __future__ import annotations

import base64
import http.client
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from qexport.children.failure import Failure, RuntimeFailure
from qexport.children.redact import redact
from qexport.verification.pictures import png
from qexport.verification.runtime import Generation, Predicted, Session

if TYPE_CHECKING:
    from pathlib import Path

    from qexport.children.process import ChildProcess
    from qexport.verification.sight import Seen

Answer = TypeVar("Answer")


_LOWEST_FLOAT = -3.0e38
_OK = 200
_MARK = "<__media__>"  # of builds that do not say theirs
_SEED = 1
# Everything that a file's metadata (general.sampling.*) or a server's defaults could change about the choice.
# The sampler chain and mirostat would do for llama.cpp of today; builds of many months are asked.
_GREEDY: Mapping[str, Any] = {
    "temperature": 0,
    "top_k": 1,
    "seed": _SEED,
    "samplers": ["top_k"],
    "min_p": 0,
    "repeat_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "dry_multiplier": 0,
    "xtc_probability": 0,
    "mirostat": 0,
}


class HttpSession(Session):
    """A running llama.cpp server, ours to kill.

    Args:
        version: what to call the runtime's version, where the server's build number is not it.
        load_s: seconds it took to load, where the time since the process was started is not it.
    """

    def __init__(
        self, process: ChildProcess, host: str, port: int, *, version: str = "", load_s: float = 0.0
    ) -> None:
        super().__init__(process, version, load_s)
        self._host = host
        self._port = port
        self._mark = _MARK

    def ready(self) -> None:
        """Wait until the model is loaded, then note how long it took and who is answering."""
        self.process.wait_until(lambda: True if self._healthy() else None)
        self.load_s = self.load_s or self.process.time_limit - self.process.remaining
        props = self._call("GET", "/props", None, _mapping)
        # A wheel has its own version and often no build number; a binary has only the latter.
        self.version = self.version or str(props.get("build_info", ""))
        self._mark = str(props.get("media_marker") or _MARK)

    def render_chat(self, messages: Sequence[dict[str, str]]) -> str:
        body = {"messages": list(messages)}
        return self._call("POST", "/apply-template", body, lambda answer: str(_mapping(answer)["prompt"]))

    def tokenize(self, text: str, *, add_special: bool) -> tuple[int, ...]:
        body = {"content": text, "add_special": add_special, "parse_special": True}
        return self._call("POST", "/tokenize", body, lambda answer: _ids(_mapping(answer)["tokens"]))

    def source_ids(
        self, folder: Path, texts: Sequence[str], *, add_special: bool
    ) -> list[tuple[int, ...]] | None:
        """llama.cpp reads no folders."""
        return None

    def ends(self) -> frozenset[int] | None:
        """llama.cpp's own list: what it would keep from being chosen if told to ignore the end of a text."""
        body = {"prompt": [0], "n_predict": 1, "ignore_eos": True, "cache_prompt": False, **_GREEDY}
        return self._call("POST", "/completion", body, _forbidden)

    def generate(self, prompt_ids: Sequence[int], *, n_predict: int, n_probs: int) -> Generation:
        return self._completed(list(prompt_ids), prompt_ids, n_predict, n_probs, _GREEDY)

    def sample(self, prompt_ids: Sequence[int], *, n_predict: int, how: Mapping[str, Any]) -> Generation:
        """A continuation drawn as ``how`` says, in llama.cpp's words; nothing else changes the choice."""
        return self._completed(list(prompt_ids), prompt_ids, n_predict, 0, {**_GREEDY, **how})

    def see(self, seen: Seen, *, n_predict: int, n_probs: int) -> Generation:
        """llama.cpp puts the tokens around a picture, and those that stand for it, where the mark is."""
        picture = base64.b64encode(png(seen.pixels)).decode()
        prompt = {"prompt_string": seen.before + self._mark + seen.after, "multimodal_data": [picture]}
        return self._completed(prompt, seen.ids, n_predict, n_probs, _GREEDY)

    def _completed(
        self, prompt: Any, prompt_ids: Sequence[int], n_predict: int, n_probs: int, how: Mapping[str, Any]
    ) -> Generation:
        body = {
            "prompt": prompt,
            "n_predict": n_predict,
            "n_probs": n_probs,
            "return_tokens": True,
            "cache_prompt": False,
            **how,
        }
        return self._call("POST", "/completion", body, lambda answer: parse_generation(prompt_ids, answer))

    def score(self, ids: Sequence[int], start: int, *, top: int = 8) -> tuple[Predicted, ...]:
        """llama.cpp's server gives no log-probabilities for a prompt's tokens."""
        raise RuntimeFailure(Failure.REFUSED, f"{self.process.what} does not score a prompt's tokens")

    def _healthy(self) -> bool:
        try:
            status, _ = self._request("GET", "/health", None, timeout=2.0)
        except (OSError, http.client.HTTPException):
            return False
        return status == _OK

    def _call(self, method: str, path: str, body: Any, read: Callable[[Any], Answer]) -> Answer:
        """One request; every way for it to go wrong is a RuntimeFailure."""
        if self.process.remaining <= 0:
            raise self.process.timed_out()
        try:
            status, raw = self._request(method, path, body, timeout=self.process.remaining)
        except TimeoutError as error:
            raise self.process.timed_out() from error
        except (OSError, http.client.HTTPException) as error:
            raise self.process.failure() from error
        if status != _OK:
            reason = f"{self.process.what} refused {path}: {_reason(status, raw)}"
            raise RuntimeFailure(Failure.REFUSED, reason, log=self.process.log_tail())
        try:
            return read(json.loads(raw))
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{self.process.what} answered {path} with something else: {error!r}"
            raise RuntimeFailure(Failure.NONSENSE, reason, log=self.process.log_tail()) from error

    def _request(self, method: str, path: str, body: Any, *, timeout: float) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=max(0.1, timeout))
        try:
            payload = None if body is None else json.dumps(body).encode()
            connection.request(method, path, payload, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def parse_generation(prompt_ids: Sequence[int], answer: Any) -> Generation:
    """The answer of ``/completion`` as a Generation.

    Raises:
        KeyError, TypeError, ValueError: a promised field is missing or of another kind.
    """
    fields = _mapping(answer)
    timings = _mapping(fields["timings"])
    return Generation(
        prompt_ids=tuple(prompt_ids),
        steps=_align(_ids(fields["tokens"]), fields.get("completion_probabilities", [])),
        text=str(fields["content"]),
        stop=str(fields["stop_type"]),
        prompt_tok_s=_speed(timings.get("prompt_per_second")),
        tok_s=_speed(timings.get("predicted_per_second")),
        draft_n=int(timings.get("draft_n", 0)),
        draft_accepted=int(timings.get("draft_n_accepted", 0)),
    )


def _forbidden(answer: Any) -> frozenset[int] | None:
    """The tokens that a request's settings forbid; ``None`` from a build that does not give them back."""
    settings = _mapping(answer).get("generation_settings")
    biases = settings.get("logit_bias") if isinstance(settings, Mapping) else None
    return None if biases is None else frozenset(int(_mapping(bias)["token"]) for bias in biases)


def _align(tokens: Sequence[int], probabilities: Iterable[Any]) -> tuple[Predicted, ...]:
    """Each token with the next unused probabilities that carry its id."""
    waiting = [_mapping(entry) for entry in probabilities]
    at = 0
    steps: list[Predicted] = []
    for token in tokens:
        if at < len(waiting) and waiting[at]["id"] == token:
            entry, at = waiting[at], at + 1
            top = tuple((int(other["id"]), _logprob(other["logprob"])) for other in entry["top_logprobs"])
            steps.append(Predicted(token, _logprob(entry["logprob"]) if top else None, top))
        else:
            steps.append(Predicted(token))
    return tuple(steps)


def _reason(status: int, raw: bytes) -> str:
    """llama.cpp's own words for an HTTP error where it sends them."""
    try:
        return redact(f"{_mapping(_mapping(json.loads(raw))['error'])['message']} (HTTP {status})")
    except (KeyError, TypeError, ValueError):
        return f"HTTP {status}"


def _logprob(value: Any) -> float:
    if value is None:
        return math.nan
    return float(value) if value > _LOWEST_FLOAT else -math.inf


def _speed(value: Any) -> float:
    # One predicted token has no time between tokens; llama.cpp then divides by zero and JSON says null.
    return float(value) if value is not None and math.isfinite(value) else 0.0


def _ids(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"expected an object, got {type(value).__name__}")
    return value
