"""``qexport mtp``: how well an MTP head guesses its trunk, text of the trunk's own, a head tuned to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qexport.cli._export import chosen
from qexport.cli._options import (
    COUNT,
    DEVICE,
    FILE,
    JSON,
    LLAMA_SERVER,
    OVERWRITE,
    THREADS,
    Finite,
    Whole,
    head_base,
    model_argument,
    together,
)
from qexport.cli._output import Output
from qexport.errors import UsageProblem
from qexport.sizes import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qexport.doctor.diagnose import Diagnosis
    from qexport.evidence.corpus import Corpus
    from qexport.evidence.options import StreamOptions
    from qexport.recipe.choice import ModelChoice


_head_options = together(
    head_base(
        "Take the head of this model, a folder or a Hub id, also where MODEL has one.  [default: MODEL's own]"
    ),
    model_argument,
)
_stream_options = together(
    THREADS,
    click.option(
        "--precision",
        type=click.Choice(["auto", "mixed", "bfloat16", "float32"]),
        default="auto",
        show_default=True,
        help="Arithmetic of the trunk's pass, as for `qexport imatrix`.",
    ),
    DEVICE,
)
_CHUNK = click.option(
    "--chunk",
    type=Whole(16, 1 << 20),
    default=512,
    show_default=True,
    help="Tokens in a chunk; every chunk is read as a text of its own.",
)
_DEPTH = click.option(
    "--depth",
    type=Whole(1, 4),
    default=3,
    show_default=True,
    help="Most drafts of a verification (n-max).",
)
_TEMPERATURE = click.option(
    "--temperature",
    type=Finite(0.01, 10),
    default=1.0,
    show_default=True,
    help="Of trunk and head, where drafts are sampled.",
)
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would be done; run and write nothing.")


@click.group("mtp")
def command() -> None:
    """What an MTP head is worth, and how it is made worth more.

    \b
    Examples:
      qexport mtp score ./merged --mtp-from Qwen/Qwen3.5-9B
      qexport mtp generate ./merged -o own.jsonl
      qexport mtp tune ./merged --mtp-from Qwen/Qwen3.5-9B --text own.jsonl -o tuned-head
      qexport gguf ./merged --mtp-from ./tuned-head -q Q4_K_M
    """


@command.command("score", short_help="How often the head's drafts are what MODEL says.")
@_head_options
@click.option(
    "--text",
    type=FILE,
    help="Text, or JSON lines with messages, text or input_ids; `domain` says what a line counts to.  "
    "[default: the corpus inside the package]",
)
@click.option(
    "--tokens",
    type=Whole(16, COUNT),
    default=32768,
    show_default=True,
    help="The most tokens to read; whole documents, drawn by lot.",
)
@_CHUNK
@_DEPTH
@_TEMPERATURE
@_stream_options
@_DRY_RUN
@JSON
def score(**given: Any) -> None:
    """Judge the MTP head of MODEL: how often its drafts, one to four tokens ahead, are what the trunk says.

    The model is never in memory as a whole: the text goes through the trunk a layer at a time, then the head
    drafts behind every token in chains, as a runtime has it. Tokens per verification are what a decoder gets
    that walks over the text with --depth drafts at a time: of the head's first choices (llama.cpp, greedy),
    of the same on the text itself (text that MODEL has sampled), and of drafts that are sampled and tested
    (vLLM, SGLang).

    \b
    Examples:
      qexport mtp score ./merged --mtp-from Qwen/Qwen3.5-9B
      qexport mtp score ./merged --mtp-from ./tuned-head --text own.jsonl --json
    """
    from qexport.headtune.figures import table
    from qexport.headtune.options import ScoreOptions
    from qexport.headtune.score import score as judge
    from qexport.headtune.score import text_of
    from qexport.run.model import fetched
    from qexport.run.watcher import Phase

    output = Output(as_json=given["as_json"])
    choice, diagnosis = _examined(output, given)
    view = diagnosis.repaired.view()
    corpus, options = _corpus(given["text"]), ScoreOptions(**chosen(ScoreOptions, given))
    documents = text_of(corpus, view, options)
    tokens = sum(len(document.ids) for document in documents)
    if given["dry_run"]:
        known = {"label": corpus.label, "sha256": corpus.sha256, "documents": len(documents)}
        output.document({"text": {**known, "tokens": tokens}, "head": diagnosis.repaired.mtp_origin})
        said = counted(len(documents), "document")
        output.text(f"{said} of {corpus.label}, {tokens} tokens; {_head_words(diagnosis)}")
        return
    view = fetched(choice, diagnosis).repaired.view()
    found = judge(
        view,
        corpus,
        options,
        _stream(given),
        bar=lambda total: output.phase(Phase.DRAFTING, total),
        documents=documents,
    )
    document = found.to_json()
    output.document({**document, "head": diagnosis.repaired.mtp_origin})
    columns, rows = table(document["domains"])
    title = f"{_head_words(diagnosis)}: drafts that are the trunk's own choice (%), tokens per verification"
    output.table(columns, rows, title=title)
    output.text(f"at most {options.depth} drafts; ± is one standard error, from {found.documents} documents")


def _examined(output: Output, given: dict[str, Any]) -> tuple[ModelChoice, Diagnosis]:
    """The model with the head that was asked for; refused without one, before any text is read."""
    from qexport.families.view import needs_head
    from qexport.recipe.choice import ModelChoice
    from qexport.run.model import examine

    mode = "graft" if given["mtp_from"] is not None else "auto"
    choice = ModelChoice(
        given["model"],
        given["revision"],
        mode,  # type: ignore[arg-type]
        given["mtp_from"],
        given["mtp_from_revision"],
        vision="drop",
    )
    diagnosis = examine(choice, download=False)
    output.diagnosed(diagnosis)
    needs_head(diagnosis.repaired.view())
    return choice, diagnosis


def _head_words(diagnosis: Diagnosis) -> str:
    origin = diagnosis.repaired.mtp_origin
    label = diagnosis.repaired.label
    return f"{label} with its own head" if origin == "own" else f"{label} with the head {origin}"


def _corpus(path: Path | None) -> Corpus:
    from qexport.evidence.corpus import builtin_corpus, read_corpus

    return builtin_corpus() if path is None else read_corpus(path)


def _stream(given: dict[str, Any]) -> StreamOptions:
    from qexport.evidence.options import StreamOptions

    return StreamOptions(**chosen(StreamOptions, given))


@command.command("generate", short_help="Have MODEL write text of its own, to tune by.")
@model_argument
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The file of answers, JSON lines.",
)
@click.option(
    "--prompts",
    type=FILE,
    help="Conversations (their last answer is left out) or texts (their first words are gone on with).  "
    "[default: the corpus inside the package]",
)
@click.option(
    "--gguf",
    type=FILE,
    metavar="FILE",
    help="A GGUF of MODEL, Q8_0 or better.  [default: a Q8_0 is written, and removed afterwards]",
)
@click.option(
    "--server",
    metavar="URL",
    help="Ask this server, which speaks OpenAI's protocol, instead of llama.cpp; a key is taken from "
    "OPENAI_API_KEY.",
)
@click.option("--server-model", metavar="NAME", help="What the server calls MODEL.  [default: its first one]")
@LLAMA_SERVER
@click.option(
    "--tokens",
    type=Whole(1, COUNT),
    default=131072,
    show_default=True,
    help="Tokens of answers in all; prompts are answered again until there are so many.",
)
@click.option(
    "--answer",
    type=Whole(16, 1 << 20),
    default=512,
    show_default=True,
    help="The most tokens of an answer.",
)
@click.option("--temperature", type=Finite(0.01, 10), help="[default: the model's recommendation, or 0.7]")
@click.option("--top-p", type=Finite(0, 1, min_open=True), help="[default: the model's recommendation]")
@click.option("--top-k", type=Whole(0, 1 << 20), help="[default: the model's recommendation]")
@click.option("--min-p", type=Finite(0, 1), help="[default: the model's recommendation]")
@click.option("--seed", type=Whole(0, 1 << 31), default=0, show_default=True, help="Of the answers.")
@click.option(
    "--parallel",
    type=Whole(1, 1024),
    default=8,
    show_default=True,
    help="Answers that are written at a time.",
)
@THREADS
@OVERWRITE
@JSON
def generate(**given: Any) -> None:
    """Have MODEL write text of its own, for `qexport mtp tune`.

    A head is tuned best to what its trunk would write itself, sampled as its users sample. llama.cpp writes
    it, from a Q8_0 of MODEL, or any server with OpenAI's protocol (vLLM, SGLang, llama-server). Each line has
    the prompt and the answer, and where one ends. A stopped run goes on where it was.

    \b
    Examples:
      qexport mtp generate ./merged -o own.jsonl
      qexport mtp generate ./merged --prompts mine.jsonl --gguf merged-Q8_0.gguf -o own.jsonl
      qexport mtp generate org/merged --server http://127.0.0.1:8000 --parallel 64 -o own.jsonl
    """
    from qexport.recipe.choice import ModelChoice
    from qexport.run.own_text import TextRequest, own_text

    output = Output(as_json=given["as_json"])
    said = {name: given.pop(name) for name in ("temperature", "top_p", "top_k", "min_p")}
    said = {name: value for name, value in said.items() if value is not None}
    if given["server"] is not None and (given["gguf"] or given["llama_server"]):
        raise UsageProblem("--server and a GGUF: which of them shall write?", hint="Name one.")
    request = TextRequest(**chosen(TextRequest, given), sampling=said)
    choice = ModelChoice(given["model"], given["revision"])
    document = own_text(choice, request, output)
    output.document(document)
    domains = ", ".join(f"{domain} {count}" for domain, count in sorted(document["domains"].items()))
    answers = counted(document["answers"], "answer")
    output.text(f"{given['out']}: {answers}, {document['tokens']} tokens ({domains})")
    output.next(
        "mtp", "tune", given["model"], "--mtp-from", "BASE", "--text", given["out"], "-o", "tuned-head"
    )


@command.command("tune", short_help="Tune the head to MODEL, and keep it if better.")
@_head_options
@click.option(
    "--text",
    type=FILE,
    required=True,
    help="Text that MODEL has written: JSON lines of `qexport mtp generate`, or conversations; prompts are "
    "read and not learned.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for the head; it goes wherever --mtp-from goes.",
)
@click.option(
    "--for",
    "mode",
    type=click.Choice(["argmax", "sampling", "both"]),
    default="argmax",
    show_default=True,
    help="How the runtime drafts: the head's first choice (llama.cpp), or sampled from it and tested "
    "(vLLM, SGLang).",
)
@_DEPTH
@click.option(
    "--epochs",
    type=Whole(1, 1000),
    default=4,
    show_default=True,
    help="Times that the text is read; at least 200 steps in all.",
)
@click.option("--steps", type=Whole(1, 1 << 30), help="Exactly so many steps.")
@click.option(
    "--batch-tokens",
    type=Whole(16, 1 << 24),
    default=2048,
    show_default=True,
    help="Tokens of a step.",
)
@click.option(
    "--rate", type=Finite(0, 1, min_open=True), help="Learning rate.  [default: probed with a few steps each]"
)
@click.option(
    "--generic",
    type=Finite(0, 0.9),
    default=0.25,
    show_default=True,
    help="Share of the text that is taken from the corpus inside the package, so that other domains are kept "
    "and judged.",
)
@click.option("--tokens", type=Whole(16, COUNT), help="The most tokens of the text.  [default: all]")
@_CHUNK
@_TEMPERATURE
@click.option("--seed", type=Whole(0, 1 << 31), default=0, show_default=True, help="Same seed, same bits.")
@click.option(
    "--spill",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the trunk's states and checkpoints, which is kept.  [default: beside --out, removed at "
    "the end]",
)
@_stream_options
@OVERWRITE
@_DRY_RUN
@JSON
def tune(**given: Any) -> None:
    """Tune the MTP head of MODEL to its own trunk, and write it only if it is better.

    The text goes through the trunk once, a layer in memory at a time; then only the head is trained, to say
    what the trunk says, three drafts ahead. Documents are divided into three: to train, to stop in time, to
    judge. The new head is taken if it gains more than two standard errors of tokens per verification on
    documents that nothing has seen, and loses no more than a point of acceptance in any domain; else the old
    one is written, and the result says `kept`. A stopped run goes on where it was.

    \b
    Examples:
      qexport mtp tune ./merged --mtp-from Qwen/Qwen3.5-9B --text own.jsonl -o tuned-head
      qexport mtp tune ./merged --mtp-from ./base --text own.jsonl --for sampling --device cuda -o tuned-head
    """
    from qexport.headtune.options import TrainOptions, TuneOptions
    from qexport.run.head import HeadRequest, tuned_head

    output = Output(as_json=given["as_json"])
    choice, diagnosis = _examined(output, given)
    how = TuneOptions(TrainOptions(**chosen(TrainOptions, given)), **chosen(TuneOptions, given))
    request = HeadRequest(**chosen(HeadRequest, given), options=how, stream=_stream(given))
    if given["dry_run"]:
        prepared = request.prepare(diagnosis.repaired.view())
        output.document({"text": prepared.to_json(), "head": diagnosis.repaired.mtp_origin})
        words = ", ".join(f"{count} to {split}" for split, count in prepared.documents.items())
        output.text(f"{prepared.text.ids.size} tokens; documents: {words}; {_head_words(diagnosis)}")
        return
    document = tuned_head(choice, diagnosis, request, output)
    output.document(document)
    show_tuned(output, document, given["out"])
    if document["result"] == "tuned":
        output.next("gguf", given["model"], "--mtp-from", given["out"], "-q", "Q4_K_M")


def show_tuned(output: Output, document: Mapping[str, Any], out: Path) -> None:
    """Both heads by domain, and which of them was written, by the folder's receipt."""
    from qexport.headtune.figures import table

    for words, key in (("before", "before"), ("after", "after")):
        if document[key] is not None:
            columns, rows = table(document[key])
            output.table(columns, rows, title=f"{words}, on documents that were not trained on")
    if document["result"] == "tuned":
        output.text(f"tuned: {out} has the new head; `--mtp-from {out}` takes it")
    else:
        output.text(f"kept: {out} has the old head; {document['reason']}")
