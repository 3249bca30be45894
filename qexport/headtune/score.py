"""How well a head guesses its trunk: the trunk is run a layer at a time, the head in chains behind it."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.errors import InputError
from qexport.evidence.options import StreamOptions
from qexport.headtune.drafts import DEPTH
from qexport.headtune.figures import figures
from qexport.headtune.options import ScoreOptions
from qexport.headtune.text import Document, chunked, documents_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.evidence.corpus import Corpus
    from qexport.families.view import ModelView
    from qexport.headtune.drafts import HeadDrafts


@dataclass(frozen=True)
class HeadFigures:
    """What was found.

    Attributes:
        label: what the text is called; ``sha256`` its hash.
        drafts: everything of it.
    """

    label: str
    sha256: str
    tokens: int
    documents: int
    drafts: HeadDrafts
    depth: int

    def to_json(self) -> dict[str, Any]:
        text = {
            "label": self.label,
            "sha256": self.sha256,
            "tokens": self.tokens,
            "documents": self.documents,
        }
        return {"text": text, "domains": figures(self.drafts, depth=self.depth)}


def text_of(corpus: Corpus, view: ModelView, options: ScoreOptions) -> list[Document]:
    """The documents that are judged."""
    return documents_of(corpus, view, at_most=options.tokens)


def score(
    view: ModelView,
    corpus: Corpus,
    options: ScoreOptions | None = None,
    stream_options: StreamOptions | None = None,
    bar: Any = None,
    documents: Sequence[Document] | None = None,
) -> HeadFigures:
    """Judge the head of ``view`` over a text.

    Args:
        view: of a model, or of an artifact.
        bar: called with the number of steps, gives a context with their progress.
        documents: those of the corpus, where they are known already.

    Raises:
        InputError: there is no head, what it gives is not finite, or the text cannot be used.
        EnvironmentProblem: no transformers, no memory, no disk.
    """
    import numpy as np

    from qexport.evidence.chained import HeadStream
    from qexport.evidence.stream import threads
    from qexport.headtune.drafts import drafts_of
    from qexport.headtune.logits import Logits
    from qexport.headtune.states import states_of

    options, stream_options = options or ScoreOptions(), stream_options or StreamOptions()
    stream = HeadStream(view, stream_options)
    found = documents if documents is not None else text_of(corpus, view, options)
    text = chunked({"judge": found}, options.chunk)
    units = stream.trunk_units(text.ids) + len(text.ids)
    with (
        tempfile.TemporaryDirectory(prefix="qexport-", dir=stream_options.spill_folder) as folder,
        bar(units) if bar is not None else nullcontext() as progress,
        threads(stream_options.threads),
    ):
        states = states_of(stream, text.ids, Path(folder), progress)
        exact = stream.precision == "float32"
        vocabulary = Logits(view, stream.device, exact=exact)
        chain, embedded = stream.head(options.chunk), stream.embedded(text.ids)
        drafts = drafts_of(
            chain,
            vocabulary,
            text,
            states,
            embedded,
            part=text.part("judge"),
            depth=max(DEPTH, options.depth),
            temperature=options.temperature,
            progress=progress,
        )
    if not np.isfinite(drafts.overlap[drafts.fine]).all():
        raise InputError(
            f"{view.label}: what leaves its MTP head is not finite; the head's weights are damaged",
            hint="Take the base's: `--mtp graft --mtp-from BASE`.",
        )
    return HeadFigures(
        corpus.label, corpus.sha256, int(text.ids.size), len(text.domains), drafts, options.depth
    )
