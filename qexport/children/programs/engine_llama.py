"""llama.cpp as the ``xllamacpp`` wheel carries it: loads a GGUF and serves it on the loopback.

``facts`` have the address; what is asked goes there, in llama.cpp's own protocol.
"""

from __future__ import annotations

from typing import Any

import xllamacpp

EXPLAINS = True


class Loaded:
    """A server with the file ``request["model"]``, with its MTP head where ``draft_max`` is not 0."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.version = str(xllamacpp.__version__)
        self._server = xllamacpp.Server(_params(request))
        self.facts = {"address": self._server.listening_address}


def _params(request: dict[str, Any]) -> Any:
    params: Any = xllamacpp.CommonParams()
    params.model.path = request["model"]
    params.mmproj.path = request.get("projector", "")
    params.n_parallel = request.get("parallel", 1)
    params.n_ctx = request["context"] * params.n_parallel
    params.warmup = False
    # Prompts are not kept (cache_prompt false), and the cache would be allowed 8 GiB.
    params.cache_ram_mib = 0
    if request["threads"]:
        params.cpuparams.n_threads = request["threads"]
    if request["draft_max"]:
        params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_MTP]
        params.speculative.draft.n_max = request["draft_max"]
        params.speculative.draft.mparams.path = request.get("drafter", "")
        params.load_mtp = True
    return params
