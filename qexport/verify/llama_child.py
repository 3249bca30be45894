"""The child process that holds llama.cpp: ``python -m qexport.verify.llama_child``.

One JSON line in (model, context, threads, draft_max), JSON lines out: ``ready`` with the loopback address
that xllamacpp's server listens on, or ``refused`` / ``missing`` with a reason. It loads and serves until its
input ends, so it goes when its parent goes, even by kill -9. llama.cpp writes to both standard streams; ours
is moved away first so that no log line can be taken for an answer.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

__all__ = ["main"]


def main() -> None:
    """Load the model, say where it answers, and wait for the end of standard input."""
    request: dict[str, Any] = json.loads(sys.stdin.readline())
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(event: str, **fields: Any) -> None:
        answers.write(json.dumps({"event": event, **fields}) + "\n")
        answers.flush()

    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        import xllamacpp
    except ImportError as error:
        tell("missing", reason=str(error))
        return
    started = time.monotonic()
    try:
        server = xllamacpp.Server(_params(xllamacpp, request))
    except RuntimeError as error:
        tell("refused", reason=str(error))
        return
    load_s = time.monotonic() - started  # without the import, which the file is not to blame for
    tell("ready", address=server.listening_address, version=str(xllamacpp.__version__), load_s=load_s)
    threading.Event().wait()


def _leave_with_parent() -> None:
    """End the process, in whatever it is, when standard input ends: the parent is done, or gone.

    Read from the descriptor: a lock on ``sys.stdin`` would be in the way of an orderly end.
    xllamacpp loads without letting other threads run: until that is done only the tether (Linux) ends us.
    """
    while os.read(0, 4096):
        pass
    # Whether loading or serving: no need to wait for llama.cpp to put its memory back.
    os._exit(0)


def _params(xllamacpp: Any, request: dict[str, Any]) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = request["model"]
    params.n_ctx = request["context"]
    params.n_parallel = 1
    params.warmup = False
    # Prompts are not kept (cache_prompt false), and the cache would be allowed 8 GiB.
    params.cache_ram_mib = 0
    if request["threads"]:
        params.cpuparams.n_threads = request["threads"]
    if request["draft_max"]:
        params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_MTP]
        params.speculative.draft.n_max = request["draft_max"]
        params.load_mtp = True
    return params


if __name__ == "__main__":
    main()
