"""A runtime behind JSON lines: ``python -I child.py ENGINE.py [FIRST.py ...]``.

One line in (model, context, threads, draft_max, parallel), one out: ``ready`` with version, load_s and what
the engine says of the loading, ``refused`` (the model could not be loaded) or ``missing`` (the runtime could
not be imported), both with a reason. Then calls, ``{"id", "do", "with"}``, and for each a line
``{"id", "result"}`` or ``{"id", "error"}``. NaN and infinities are written as Python's json writes them.

It leaves when its input ends, in whatever it is. Runtimes print to standard output: ours is moved away first,
so that no log line can be taken for an answer. Files named after the engine are run before it is loaded.

The engine is a file with a class ``Loaded``, made of the request, with ``version``, ``facts`` and the methods
that calls name; a true ``EXPLAINS`` says that its runtime logs why it refuses a model. What engines would do
alike is done here (``_SHARED``): an engine with a ``tokenizer`` of transformers' kind has its text, one that
computes a token at a time (``tokens``, ``logprobs``, ``likeliest``, ``ends``) its greedy answers and scores.
One that is shown pictures says ``sees`` in its ``facts``; its ``tokens`` takes one and the token of its rows.

Only the standard library is used here, and nothing younger than Python 3.10.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Load the model, say so, and answer calls until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    request = json.loads(lines.get())
    try:
        engine = [_run(path, number) for number, path in enumerate([*sys.argv[2:], sys.argv[1]])][-1]
    except Exception as error:  # noqa: BLE001 whatever stops an import is the environment's problem
        traceback.print_exc()
        tell(event="missing", reason=_words(error))
        return
    started = time.monotonic()
    try:
        held = engine.Loaded(request)
    except Exception as error:  # noqa: BLE001 runtimes refuse files with every kind of exception
        if not getattr(engine, "EXPLAINS", False):
            traceback.print_exc()
        # A package that only this kind of model needs, or the model's fault?
        tell(event="missing" if isinstance(error, ImportError) else "refused", reason=_words(error))
        return
    tell(event="ready", version=held.version, load_s=time.monotonic() - started, facts=held.facts)
    while True:
        call = json.loads(lines.get())
        try:
            own: Any = getattr(held, call["do"], None)
            result = own(**call["with"]) if own else _SHARED[call["do"]](held, **call["with"])
        except Exception as error:  # noqa: BLE001 as above
            traceback.print_exc()
            tell(id=call["id"], error=_words(error))
        else:
            tell(id=call["id"], result=result)


def _render_chat(held: Any, messages: list[dict[str, str]]) -> str:
    return str(held.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def _tokenize(held: Any, text: str, add_special: bool) -> list[int]:
    return [int(token) for token in held.tokenizer.encode(text, add_special_tokens=add_special)]


def _tokenize_with(held: Any, folder: str, texts: list[str], add_special: bool) -> list[list[int]]:
    """Ids by the tokenizer of another folder, in the engine's own library, to compare with."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return [list(map(int, tokenizer.encode(text, add_special_tokens=add_special))) for text in texts]


def _generate(held: Any, ids: list[int], n_predict: int, n_probs: int, **seen: Any) -> dict[str, Any]:
    steps: list[Any] = []
    started = first = time.monotonic()
    stop = "limit"
    for token, logprobs in held.tokens(ids, n_predict, **seen):
        if not steps:
            first = time.monotonic()
        steps.append([token, *(held.likeliest(logprobs, token, n_probs) if n_probs else [None, []])])
        if token in held.ends:
            stop = "eos"
            break
    done = time.monotonic()
    tokens = [step[0] for step in steps]
    return {
        "steps": steps,
        "text": held.tokenizer.decode(tokens[:-1] if stop == "eos" else tokens),
        "stop": stop,
        "prompt_tok_s": len(ids) / max(first - started, 1e-9),
        "tok_s": (len(steps) - 1) / max(done - first, 1e-9),
    }


def _score(held: Any, ids: list[int], start: int, top: int) -> list[Any]:
    each = held.logprobs(ids, start)
    return [[token, *held.likeliest(each[at], token, top)] for at, token in enumerate(ids[start:])]


_SHARED: dict[str, Callable[..., Any]] = {
    "render_chat": _render_chat,
    "tokenize": _tokenize,
    "tokenize_with": _tokenize_with,
    "generate": _generate,
    "score": _score,
}


def _run(path: str, number: int) -> Any:
    spec = importlib.util.spec_from_file_location(f"qexport_child_{number}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _listen(lines: queue.SimpleQueue[str]) -> None:
    """Whole lines of standard input; the process ends with it: the parent is done, or gone."""
    rest = b""
    while part := os.read(0, 65536):
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            lines.put(line.decode())
    os._exit(0)


def _words(error: Exception) -> str:
    """The first lines of a message: runtimes put whole tensors, or lists of a thousand names, into them."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:600]}"


if __name__ == "__main__":
    main()
