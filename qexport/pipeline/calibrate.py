"""An importance matrix, from a corpus or from a file: what ``qexport imatrix`` and ``gguf --imatrix`` share.

Everything that can be refused is refused before the pass: the corpus is read and tokenized first, and a
matrix of ones with the names, sizes and metadata of the real one lets files be planned to the byte.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

from qexport import __version__
from qexport.errors import InputError
from qexport.evidence.corpus import builtin_corpus, read_corpus
from qexport.evidence.imatrix_file import read_imatrix, sealed
from qexport.evidence.imatrix_sums import merged
from qexport.evidence.kinds import kind_of
from qexport.evidence.modules import import_transformers
from qexport.evidence.options import StreamOptions
from qexport.evidence.tokens import tokenize
from qexport.families.roles import Role
from qexport.formats.gguf.file_name import matrix_name
from qexport.formats.gguf.importance import gguf_importance, uncollected

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from qexport.evidence.imatrix_file import ImportanceMatrix
    from qexport.evidence.stream import LayerStream, Progress
    from qexport.evidence.tokens import Chunks
    from qexport.families.view import ModelView


@dataclass(frozen=True)
class CalibrationJob:
    """What to calibrate with, and how.

    Attributes:
        corpus: a text or records (see ``evidence.corpus``); ``None`` for the built-in corpus.
        tokens: the most to read; ``None``: all of a file, a default amount of the built-in corpus.
        chunk: tokens in a chunk; every chunk is a text of its own.
        seed: order of records.
        merge: matrices that are added to the result.
        stream: how the pass is run.
    """

    corpus: Path | None = None
    tokens: int | None = None
    chunk: int = 512
    seed: int = 0
    merge: Sequence[Path] = ()
    stream: StreamOptions = field(default_factory=StreamOptions)


@dataclass(frozen=True)
class Prepared:
    """A calibration whose text is in the model's tokens: all that can be refused has been.

    ``label`` is the name of the matrix's file.
    """

    job: CalibrationJob
    chunks: Chunks
    label: str


@dataclass(frozen=True)
class Collected:
    """A matrix that was collected here, and how: ``facts`` go into receipts."""

    matrix: ImportanceMatrix
    facts: dict[str, Any] = field(default_factory=dict)


def imatrix_name(view: ModelView, name: str | None = None) -> str:
    """The file name of a model's matrix: ``Name-imatrix.gguf_file``."""
    return matrix_name(name or view.label)


def prepare(job: CalibrationJob, view: ModelView, label: str) -> Prepared:
    """Read the corpus and tokenize it, and see that the pass can run here.

    Raises:
        InputError: the corpus is empty, too short, not text, or its columns are not known.
        EnvironmentProblem: transformers is missing, or there is no such device.
    """
    from qexport.evidence.stream import device_of  # brings torch

    import_transformers()
    device_of(job.stream.device)
    if job.corpus is not None and kind_of(job.corpus) == "imatrix":
        raise InputError(
            f"{job.corpus.name} is an importance matrix, not a corpus",
            hint="To add to it, give it with --merge.",
        )
    corpus = builtin_corpus() if job.corpus is None else read_corpus(job.corpus)
    embedding = view.find(Role.TOKEN_EMBD)
    chunks = tokenize(
        corpus,
        view.files,
        tokens=job.tokens,
        chunk=job.chunk,
        seed=job.seed,
        vocab_size=embedding.shape[0] if embedding is not None else None,
        model=view.label,
    )
    return Prepared(job, chunks, label)


def expected(prepared: Prepared, view: ModelView) -> ImportanceMatrix:
    """A matrix like the one that will be collected, but for its numbers."""
    sums, counts = uncollected(view)
    # As many tokens as every matrix of the trunk sees: merging counts chunks by them.
    return _matrix(
        prepared, view, sums, {name: ones * prepared.chunks.tokens for name, ones in counts.items()}
    )


def matrix_key(prepared: Prepared, view: ModelView) -> str:
    """What the collected matrix follows from, as a hash: weights, text, precision, matrices merged."""
    job = prepared.job
    sources = {id(p.checkpoint): p.checkpoint for tensor in view for p in tensor.data.pieces}
    value = [
        __version__,
        [[source.label, source.identity()] for source in sources.values()],
        _facts(prepared.chunks),
        [job.stream.precision, job.stream.device],
        [hashlib.sha256(path.read_bytes()).hexdigest() for path in job.merge],
    ]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def stream_of(prepared: Prepared, view: ModelView) -> LayerStream:
    """The pass, ready to run. Raises EnvironmentProblem: no transformers, no such device."""
    from qexport.evidence.stream import LayerStream  # brings torch

    return LayerStream(view, prepared.job.stream)


def collect(prepared: Prepared, stream: LayerStream, progress: Progress | None) -> Collected:
    """Run the pass and make the matrix.

    Raises:
        InputError: damaged weights; a matrix to merge belongs to another model.
        EnvironmentProblem: no room for activations.
    """
    from qexport.evidence.observe import InputSquares  # brings torch

    squares, chunks = InputSquares(), prepared.chunks
    begun = monotonic()
    stream.run(chunks.ids, squares, progress=progress)
    seconds = monotonic() - begun
    matrix = _matrix(prepared, stream.view, squares.sums, squares.counts)
    facts = {
        **_facts(chunks),
        "device": stream.options.device,
        "precision": stream.precision,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(chunks.tokens / max(seconds, 1e-9), 1),
    }
    return Collected(matrix, facts)


def _matrix(
    prepared: Prepared, view: ModelView, sums: Mapping[str, np.ndarray], counts: Mapping[str, np.ndarray]
) -> ImportanceMatrix:
    chunks = prepared.chunks
    fresh = gguf_importance(
        view,
        sums,
        counts,
        datasets=[chunks.dataset],
        chunk_count=len(chunks.ids),
        chunk_size=chunks.size,
        label=prepared.label,
    )
    if not prepared.job.merge:
        return fresh
    others = [read_imatrix(path) for path in prepared.job.merge]
    for other in others:
        if not set(other.sums) & set(fresh.sums):
            raise InputError(
                f"{other.label} names none of this model's tensors: it was made for another model",
                hint="Leave it out of --merge.",
            )
    return sealed(merged([fresh, *others], prepared.label, chunks.size))


def _facts(chunks: Chunks) -> dict[str, Any]:
    return {
        "corpus": chunks.label,
        "corpus_sha256": chunks.corpus_sha256,
        "tokens": chunks.tokens,
        "chunk": chunks.size,
        "seed": chunks.seed,
        "bos": chunks.bos,
        "tokens_sha256": chunks.sha256,
        "chats": {str(how): count for how, count in chunks.chats.items()},
        "chat_fallback": chunks.fallback_reason or None,
    }
