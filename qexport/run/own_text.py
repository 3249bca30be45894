"""A model's own text, from the model that is named to a file of answers."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.checkpoint.chat_templates import read_templates
from qexport.errors import UsageProblem
from qexport.evidence.corpus import builtin_corpus, read_corpus
from qexport.evidence.tokenizer import model_tokenizer
from qexport.formats.gguf.options import GgufOptions
from qexport.headtune.generate import Answer, Sampling, asks_server, generate, recommended
from qexport.headtune.prompts import prompts_of
from qexport.run import steps
from qexport.run.model import examine, fetched, sources_of
from qexport.run.target import Target, plan
from qexport.run.watcher import Phase
from qexport.sizes import counted
from qexport.verification.client import HttpSession
from qexport.verification.runtime import Settings
from qexport.verification.runtimes import llama_cpp

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from qexport.doctor.diagnose import Diagnosis
    from qexport.headtune.generate import Ask
    from qexport.headtune.prompts import Prompt
    from qexport.recipe.choice import ModelChoice
    from qexport.run.watcher import Watcher


_CONTEXT_BESIDE = 4096  # tokens of a prompt that there is room for
_KEY = "OPENAI_API_KEY"


@dataclass(frozen=True)
class TextRequest:
    """What is asked for.

    Attributes:
        out: the file of answers.
        prompts: conversations or texts; the corpus inside the package where none is named.
        gguf: a file of the model that is there; made for the time being where none is named.
        server: the address of a server instead; ``server_model`` is what it calls the model.
        tokens: how many are to be written; ``answer`` the most of one answer.
        sampling: what is said against the model's own recommendation, by field.
        parallel: answers at a time.
    """

    out: Path
    prompts: Path | None = None
    gguf: Path | None = None
    server: str | None = None
    server_model: str | None = None
    llama_server: Path | None = None
    tokens: int = 131072
    answer: int = 512
    sampling: Mapping[str, Any] | None = None
    seed: int = 0
    parallel: int = 8
    threads: int | None = None
    overwrite: bool = False


def own_text(choice: ModelChoice, request: TextRequest, watcher: Watcher) -> dict[str, Any]:
    """Have the model write; returns what was written, in figures.

    Raises:
        UsageProblem: the file is there.
        InputError: there are no prompts, or the model answers with nothing.
        RuntimeFailure, EnvironmentProblem: the runtime.
    """
    choice = replace(choice, mtp="drop", vision="drop", mtp_from=None, mtp_from_revision=None)
    diagnosis = examine(choice, download=False)
    given = [path for path in (request.prompts, request.gguf) if path is not None]
    sources_of(diagnosis, given).refuse(request.out.parent, [request.out.name])
    if os.path.lexists(request.out) and not request.overwrite:
        raise UsageProblem(
            f"{request.out} is already there", hint="Add --overwrite, or choose another --out."
        )
    view = diagnosis.repaired.view()
    corpus = builtin_corpus() if request.prompts is None else read_corpus(request.prompts)
    chats = read_templates(view.files, view.label).default is not None
    prompts = prompts_of(corpus, view, chats=chats)
    sampling = replace(recommended(view.files, view.label), **(request.sampling or {}))
    request.out.parent.mkdir(parents=True, exist_ok=True)
    watcher.say(f"{counted(len(prompts), 'prompt')} of {corpus.label}; {_words(sampling)}")
    who: list[object] = [view.label, request.server, *diagnosis.subject.checkpoint.identity()]
    if request.server is not None:
        tokenizer = model_tokenizer(view.files, view.label)
        key = os.environ.get(_KEY)
        ask = asks_server(request.server, request.server_model, key, tokenizer, sampling, request.answer)
        return _written(prompts, ask, request, watcher, sampling, who)
    with _gguf(choice, diagnosis, request, watcher) as file:
        longest = max((len(prompt.ids) for prompt in prompts), default=0)
        context = max(longest, _CONTEXT_BESIDE) + request.answer
        limit = int(view.text.get("max_position_embeddings") or context)
        settings = Settings(0, min(context, limit), request.threads or 0, 1e7, parallel=request.parallel)
        watcher.say(f"{file.name}: loading into llama.cpp")
        with llama_cpp(request.llama_server).open(file, settings) as session:
            assert isinstance(session, HttpSession)
            ask = asks_llama(session, sampling, request.answer)
            return _written(prompts, ask, request, watcher, sampling, who)


def asks_llama(session: HttpSession, sampling: Sampling, most: int) -> Ask:
    """A running llama.cpp."""

    def ask(prompt: Prompt, seed: int) -> Answer:
        ids = prompt.ids
        if prompt.messages:
            ids = session.tokenize(session.render_chat(prompt.turns), add_special=False)
        found = session.sample(ids, n_predict=most, how={**sampling.llama(), "seed": seed})
        row = {"input_ids": [*ids, *found.tokens], "prompt_tokens": len(ids), "answer": found.text}
        return Answer(row, len(found.tokens))

    return ask


def _written(
    prompts: list[Prompt],
    ask: Any,
    request: TextRequest,
    watcher: Watcher,
    sampling: Sampling,
    who: list[object],
) -> dict[str, Any]:
    with watcher.phase(Phase.ANSWERING, request.tokens) as progress:
        found = generate(
            prompts,
            ask,
            request.out,
            tokens=request.tokens,
            seed=request.seed,
            parallel=request.parallel,
            progress=progress,
            asked=json.dumps([who, asdict(sampling), request.answer], default=str),
        )
    return {**found, "sampling": asdict(sampling)}


@contextmanager
def _gguf(
    choice: ModelChoice, diagnosis: Diagnosis, request: TextRequest, watcher: Watcher
) -> Iterator[Path]:
    """The file that is named, or one that is gone afterwards."""
    if request.gguf is not None:
        yield request.gguf
        return
    diagnosis = fetched(choice, diagnosis)
    with tempfile.TemporaryDirectory(prefix="qexport-") as folder:
        items = plan([Target(GgufOptions(("Q8_0",)), Path(folder), verify=None)], diagnosis)
        plans = [item.plan for item in items]
        watcher.say("writing a Q8_0 for llama.cpp, for the time being")
        steps.check(items, overwrite=False)
        steps.ready_kernels(plans, watcher.say)
        with watcher.phase(Phase.WRITING, sum(each.size for each in plans)) as progress:
            (item,) = steps.write(items, diagnosis, threads=request.threads, progress=progress)
        yield item.path


def _words(sampling: Sampling) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in asdict(sampling).items() if value)
