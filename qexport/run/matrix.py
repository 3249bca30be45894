"""The importance matrix of a run: wanted, expected to the byte, there already, collected, written.

Everything that can be refused is refused before the pass: the corpus is read and tokenized first, and a
matrix of ones with the names, sizes and metadata of the real one lets files be planned to the byte.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Any

from qexport import __version__
from qexport.checkpoint.tensors import checkpoints_of
from qexport.errors import InputError, QexportError, UsageProblem
from qexport.evidence.corpus import builtin_corpus, read_corpus
from qexport.evidence.imatrix_file import read_imatrix
from qexport.evidence.imatrix_sums import merged
from qexport.evidence.kinds import kind_of
from qexport.evidence.modules import import_transformers
from qexport.evidence.ranks import ALONE
from qexport.evidence.tokens import tokenize
from qexport.families.roles import Role
from qexport.formats.gguf.file_name import matrix_name
from qexport.formats.gguf.importance import gguf_importance, plan_imatrix, uncollected, unfelt
from qexport.onepass.execute import execute
from qexport.receipt.store import write_receipt
from qexport.run.model import sources_of
from qexport.run.receipts import entry_for, entry_of
from qexport.run.watcher import Phase
from qexport.sizes import counted, size_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from qexport.doctor.diagnose import Diagnosis
    from qexport.evidence.corpus import Corpus
    from qexport.evidence.imatrix_file import ImportanceMatrix
    from qexport.evidence.options import StreamOptions
    from qexport.evidence.ranks import Ranks
    from qexport.evidence.sensitivity import Sensitivity
    from qexport.evidence.tokens import Chunks
    from qexport.families.view import ModelView
    from qexport.formats.plan import ArtifactPlan
    from qexport.onepass.sink import WrittenFile
    from qexport.recipe.recipe import Calibration
    from qexport.run.watcher import Watcher


MATRIX_WAITS = 600.0
"""Seconds that a matrix, which may have taken hours, waits for another run in its folder."""


@dataclass(frozen=True)
class Matrix:
    """An importance matrix; ``facts`` say how it was collected, for receipts: ``None`` where it was not."""

    values: ImportanceMatrix
    facts: Mapping[str, Any] | None = None

    def plan(self, name: str) -> ArtifactPlan:
        """It as a file of that name."""
        return plan_imatrix(self.values, name, self.facts)


@dataclass(frozen=True)
class Wanted:
    """A matrix that is to be collected: its text is in the model's tokens, all that can be refused has been.

    Attributes:
        how: corpus, amounts, precision, matrices to be added.
        stream: how the pass is run on this machine.
        out: the folder that its file, ``name``, goes to: who runs again need not collect it again.
    """

    how: Calibration
    stream: StreamOptions
    chunks: Chunks
    out: Path
    name: str

    def expected(self, view: ModelView) -> Matrix:
        """One like that which will be collected, but for its numbers."""
        sums, counts = uncollected(view)
        # As many tokens as every matrix of the trunk sees: merging counts chunks by them.
        counts = {name: ones * self.chunks.tokens for name, ones in counts.items()}
        felt = None
        if self.how.sensitivity:
            felt = unfelt(view, 1, 1, (f"{self.chunks.sha256} seed {self.how.seed}",))
        return Matrix(replace(_matrix(self, view, sums, counts, sums, felt), to_come=True))

    def key(self, view: ModelView) -> str:
        """What the collected matrix follows from, as a hash: weights, text, precision, matrices merged."""
        value = [
            __version__,
            [[source.label, source.identity()] for source in checkpoints_of(tensor.data for tensor in view)],
            chunk_facts(self.chunks),
            [self.stream.precision, self.stream.device],
            [hashlib.sha256(path.read_bytes()).hexdigest() for path in self.how.merge],
            *([self.how.sensitivity_tokens] if self.how.sensitivity else []),
        ]
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

    def there(self, view: ModelView) -> Matrix | None:
        """What an earlier run has collected in the same way from the same weights, if it is there."""
        entry = entry_of(self.out, self.key(view))
        if entry is None:
            return None
        path = self.out / entry.files[0].name  # an earlier version gave it another name
        try:
            values = read_imatrix(path)
        except QexportError:
            return None
        # What the plan adds of itself is no fact of the collecting: with it, finished files would seem
        # others.
        added = plan_imatrix(values, path.name).details
        return Matrix(values, {key: value for key, value in entry.details.items() if key not in added})


def matrix_label(view: ModelView, name: str | None = None) -> str:
    """The file name of a model's matrix: ``Name-imatrix.gguf_file``."""
    return matrix_name(name or view.label)


def corpus_of(how: Calibration) -> Corpus:
    """The text to calibrate with. Raises InputError: it is empty, not text, or its columns are not known."""
    if how.corpus is not None and kind_of(how.corpus) == "imatrix":
        raise InputError(
            f"{how.corpus.name} is an importance matrix, not a corpus",
            hint="To add to it, give it with --merge.",
        )
    return builtin_corpus() if how.corpus is None else read_corpus(how.corpus)


def want(
    how: Calibration,
    stream: StreamOptions,
    view: ModelView,
    out: Path,
    name: str,
    corpus: Corpus | None = None,
) -> Wanted:
    """Read the corpus and tokenize it, and see that the pass can run here.

    Args:
        corpus: instead of all of that which ``how`` names.

    Raises:
        InputError: the corpus is empty, too short, not text, or its columns are not known.
        EnvironmentProblem: transformers is missing, or there is no such device.
    """
    from qexport.evidence.stream import device_of  # brings torch

    import_transformers()
    device_of(stream.device)
    chunks = chunks_of(how, view, corpus or corpus_of(how))
    return Wanted(how, replace(stream, precision=how.precision), chunks, out, name)


def chunks_of(how: Calibration, view: ModelView, corpus: Corpus) -> Chunks:
    """A corpus in the model's tokens. Raises InputError: it is too short."""
    embedding = view.find(Role.TOKEN_EMBD)
    return tokenize(
        corpus,
        view.files,
        tokens=how.tokens,
        chunk=how.chunk,
        seed=how.seed,
        vocab_size=embedding.shape[0] if embedding is not None else None,
        model=view.label,
    )


def collect(wanted: Wanted, view: ModelView, watcher: Watcher, ranks: Ranks = ALONE) -> Matrix:
    """Run the pass and make the matrix, saying what is read and how fast it went.

    Args:
        ranks: which of several processes this is; all of them get the matrix.

    Raises:
        InputError: damaged weights; a matrix to merge belongs to another model.
        UsageProblem: there are more processes than chunks.
        EnvironmentProblem: no room for activations.
    """
    from qexport.evidence.backward import TwoWayStream  # brings torch
    from qexport.evidence.observe import Inputs, InputSquares, Meeting
    from qexport.evidence.stream import LayerStream

    how, inputs, chunks = wanted.how, Inputs(), wanted.chunks
    squares = InputSquares(inputs=inputs)
    if len(chunks.ids) < ranks.count:
        raise UsageProblem(
            f"{len(chunks.ids)} chunks cannot be divided over {ranks.count} processes",
            hint="Start fewer processes, or give more tokens (--calib-tokens).",
        )
    ids, options = ranks.share(chunks.ids), ranks.options(wanted.stream)
    states = ids.size * int(view.text["hidden_size"]) * 4
    back, stream = None, LayerStream(view, options)
    if how.sensitivity:
        stream = back = TwoWayStream(
            view, options, at_most=how.sensitivity_tokens, seed=how.seed, ranks=ranks
        )
        states += back.kept_bytes(ids)
    watcher.say(
        f"importance matrix: {chunks.dataset}, {counted(len(chunks.ids), 'chunk')} of {chunks.size}, "
        f"{stream.precision} on {wanted.stream.device}, {size_text(states)} of hidden states"
        f"{' in a temporary file' if states > stream.state_limit else ''}"
        f"{f' in each of {ranks.count} processes' if ranks.count > 1 else ''}"
    )
    if chunks.fallback_reason:
        counts = ", ".join(f"{count} {how}" for how, count in chunks.chats.items() if count)
        watcher.say(f"  conversations: {counts}; the first that was not as it is: {chunks.fallback_reason}")
    begun = monotonic()
    felt = None
    told = Meeting(squares, ranks.meet)
    with watcher.phase(Phase.COLLECTING, stream.units(ids)) as progress:
        if back is None:
            stream.run(ids, told, progress=progress)
        else:
            felt = back.run_both(ids, told, text=chunks.sha256, progress=progress).sensitivity
    sums = ranks.added(squares.sums, options.device)
    seen = ranks.added(squares.counts, options.device)
    totals = ranks.added(inputs.sums, options.device)
    seconds = monotonic() - begun
    facts = {
        **chunk_facts(chunks),
        "device": wanted.stream.device,
        "precision": stream.precision,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(chunks.tokens / max(seconds, 1e-9), 1),
        **({} if felt is None else {"sensitivity_tokens": felt.tokens}),
        **({} if ranks.count == 1 else {"processes": ranks.count}),
    }
    watcher.say(f"  collected in {facts['seconds']} s, {facts['tokens_per_second']} tokens/s")
    return Matrix(_matrix(wanted, view, sums, seen, totals, felt), facts)


def write_matrix(
    wanted: Wanted,
    matrix: Matrix,
    diagnosis: Diagnosis,
    watcher: Watcher,
    *,
    options: Mapping[str, Any],
    given: Sequence[Path] = (),
) -> tuple[WrittenFile, Path, tuple[str, ...]]:
    """Write a matrix as a file, and its receipt.

    Args:
        options: what its entry in the receipt says of them.
        given: what is read besides the model and what ``wanted`` names.

    Returns:
        the file, the receipt's path, and what a user should know about it.
    """
    plan = matrix.plan(wanted.name)
    sources = sources_of(diagnosis, wanted.how, tuple(given))
    ((written,),) = execute([plan], wanted.out, sources=sources, wait=MATRIX_WAITS)
    key = wanted.key(diagnosis.repaired.view())
    entry = entry_for(diagnosis, plan, [written], None, options, key)
    return written, write_receipt(wanted.out, [entry], watcher.say), tuple(plan.notes)


def _matrix(
    wanted: Wanted,
    view: ModelView,
    sums: Mapping[str, np.ndarray],
    counts: Mapping[str, np.ndarray],
    totals: Mapping[str, np.ndarray],
    sensitivity: Sensitivity | None,
) -> ImportanceMatrix:
    chunks = wanted.chunks
    fresh = gguf_importance(
        view,
        sums,
        counts,
        datasets=[chunks.dataset],
        chunk_count=len(chunks.ids),
        chunk_size=chunks.size,
        label=wanted.name,
        totals=totals,
        sensitivity=sensitivity,
    )
    if not wanted.how.merge:
        return fresh
    others = [read_imatrix(path) for path in wanted.how.merge]
    for other in others:
        if not set(other.sums) & set(fresh.sums):
            raise InputError(
                f"{other.label} names none of this model's tensors: it was made for another model",
                hint="Leave it out of --merge.",
            )
    return merged([fresh, *others], wanted.name, chunks.size)


def chunk_facts(chunks: Chunks) -> dict[str, Any]:
    """Of a text, what receipts say."""
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
