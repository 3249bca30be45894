"""A text sent through a model layer by layer, and what is kept of it: the hidden states behind the last norm.

Everything that is judged without a runtime starts here: how far an artifact's predictions are from the
source's, how often the MTP head guesses what the model then says. Two models are run one after the other, so
memory is that of two layers of one of them, whatever is compared; states beyond half of the free memory go to
a file without a name. The head is run when it is asked for, once, on the states that are there: for it alone
its weights and the output matrix are in memory, in float32.

The held-out text has two parts: the windows that predictions are compared over, which are of few documents,
and for models with a head excerpts of many, of all domains. A text that is not divided serves for both.

Numbers are float32 unless the caller says otherwise: then every difference is the artifact's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from qexport.errors import InputError
from qexport.evidence.activations import HiddenStates
from qexport.evidence.corpus import heldout_corpus
from qexport.evidence.options import StreamOptions
from qexport.evidence.tokens import tokenize
from qexport.headtune.text import OWN, Chunked, chunked, documents_of, excerpts

if TYPE_CHECKING:
    import numpy as np

    from qexport.families.view import ModelView
    from qexport.headtune.drafts import HeadDrafts
    from qexport.progress import Progress


EXACT = StreamOptions(precision="float32")
COMPARED, DRAFTED = "compared", "drafted"
"""The parts of a text: windows that predictions are compared over, and excerpts that heads are judged on."""
_EXCERPTS = 2048  # tokens of them, at most
_FOR_A_DRAFT = 4  # tokens of a window for each draft of a chain


@dataclass(frozen=True)
class HeadRun:
    """What an MTP head makes of a text.

    Attributes:
        tokens: ids that it is judged on, integers ``(chunks, chunk)``.
        draft: float32 ``(chunks, anchors, width)``: what it gives, after its norm, for the drafts one token
            ahead.
        drafts: all that it drafts.
    """

    tokens: np.ndarray
    draft: HiddenStates
    drafts: HeadDrafts


@dataclass(frozen=True)
class TextRun:
    """One model's states over a text.

    Attributes:
        text: all of it.
        states: float32 ``(chunks, chunk, width)``, after the trunk's final norm.
        routes: for each layer of experts, those that each token of what is compared is sent to,
            ``(chunks, chunk, chosen)``, in ascending order; empty where there are none.
        inputs: scales of those inputs that were rounded, by canonical name, ``(matrices,)``.
        largest: of these matrices, the largest that entered, likewise.
        options: how it was run.
        stack: what lasts as long as the run.
    """

    view: ModelView
    text: Chunked
    states: HiddenStates
    routes: Mapping[int, np.ndarray] = field(repr=False)
    inputs: Mapping[str, np.ndarray] = field(repr=False)
    largest: Mapping[str, np.ndarray] = field(repr=False)
    options: StreamOptions
    stack: ExitStack = field(repr=False)

    @property
    def tokens(self) -> np.ndarray:
        """Ids of what is compared, integers ``(chunks, chunk)``."""
        return self.text.ids[self.text.part(COMPARED)]

    @property
    def final(self) -> HiddenStates:
        """The states of what is compared."""
        return self.states.front(len(self.tokens))

    @property
    def device(self) -> str:
        """Where products are done."""
        return self.options.device

    @cached_property
    def head(self) -> HeadRun | None:
        """What the head makes of it; ``None`` where there is none. It is run when this is asked for first."""
        from qexport.evidence.chained import HeadStream
        from qexport.evidence.stream import threads
        from qexport.headtune.drafts import DEPTH, drafts_of
        from qexport.headtune.logits import Logits

        if not self.view.mtp_layers:
            return None
        _, chunk, width = self.states.shape
        depth = min(DEPTH, chunk // _FOR_A_DRAFT)
        if chunk < 2 * _FOR_A_DRAFT:
            raise InputError(f"a window of {chunk} tokens is too short to judge an MTP head on")
        part = self.text.part(DRAFTED if self.text.ids[self.text.part(DRAFTED)].size else COMPARED)
        tokens = self.text.ids[part]
        limit, folder = 0 if self.states.spilled else self.states.nbytes, self.options.spill_folder
        draft = HiddenStates((len(tokens), chunk - depth, width), limit=limit, folder=folder)
        self.stack.enter_context(closing(draft))
        stream = HeadStream(self.view, self.options)
        with threads(self.options.threads):
            drafts = drafts_of(
                stream.head(chunk),
                Logits(self.view, stream.device, exact=stream.precision == "float32"),
                self.text,
                self.states,
                stream.embedded(self.text.ids),
                part=part,
                depth=depth,
                first=lambda start, states: draft.write(start - part.start, states),
            )
        return HeadRun(tokens, draft, drafts.by_blocks())


@contextmanager
def run_text(
    view: ModelView,
    text: np.ndarray | Chunked,
    options: StreamOptions | None = None,
    progress: Progress | None = None,
    inputs: Mapping[str, np.ndarray] | None = None,
) -> Iterator[TextRun]:
    """Send a text through the model; its states last as long as the context.

    Args:
        view: of a source or of an artifact.
        text: of :func:`heldout_text`; or ids, integers ``(chunks, chunk)``. Every chunk is a text of its own.
        inputs: scales of those inputs that are rounded to NVFP4 (:func:`qexport.artifacts.input_scales`).

    Raises:
        InputError: ids beyond the vocabulary, weights that are missing or damaged.
        EnvironmentProblem: transformers is missing, or memory or disk are too small.
    """
    from qexport.evidence.largest_inputs import LargestInputs
    from qexport.evidence.observe import Routes
    from qexport.evidence.stream import LayerStream

    options = options or EXACT
    stream = LayerStream(view, options, inputs)
    text = text if isinstance(text, Chunked) else plain(text)
    chunks, chunk = text.ids.shape
    width = int(view.text["hidden_size"])
    limit, folder = stream.state_limit // 3, options.spill_folder
    with (
        closing(HiddenStates((chunks, chunk, width), limit=limit, folder=folder)) as states,
        ExitStack() as stack,
    ):
        seen = Routes()
        entered = LargestInputs(seen)
        entered.follow(inputs or (), experts=False)
        stream.trunk(text.ids, entered, progress=progress, final=states.write)
        del stream
        compared = text.part(COMPARED)
        routes = {
            layer: chosen.reshape(chunks, chunk, -1)[compared]
            for layer, chosen in seen.layers.items()
            if layer < view.layers
        }
        yield TextRun(view, text, states, routes, inputs or {}, entered.tables, options, stack)


def plain(tokens: np.ndarray) -> Chunked:
    """Ids alone, every chunk a document."""
    import numpy as np

    rows = np.arange(len(tokens))
    document = np.broadcast_to(rows[:, None], tokens.shape)
    domains = (OWN,) * len(tokens)
    return Chunked(tokens, document, np.ones(tokens.shape, bool), domains, {COMPARED: (0, len(tokens))})


def heldout_text(view: ModelView, *, tokens: int = 8192, chunk: int = 512) -> Chunked:
    """Text that is never calibrated with: :func:`heldout_tokens` to compare over, and for a model with a head
    excerpts of other documents, as much again, but 2048 tokens at most.

    Raises:
        InputError: the model has no usable tokenizer.
    """
    import numpy as np

    ids = heldout_tokens(view, tokens=tokens, chunk=chunk)
    if not view.mtp_layers:
        return plain(ids)
    documents = documents_of(heldout_corpus(), view)
    begun = 1 + np.searchsorted(np.cumsum([len(each.ids) for each in documents]), ids.size)
    short = excerpts(documents[begun:], min(_EXCERPTS, ids.size))
    text = chunked({COMPARED: documents, DRAFTED: short}, chunk)
    kept = np.r_[0 : len(ids), text.part(DRAFTED)]
    parts = {COMPARED: (0, len(ids)), DRAFTED: (len(ids), len(kept))}
    # The same tokens but for the one that some models begin every text with.
    whole = np.concatenate([ids, text.ids[text.part(DRAFTED)]])
    return replace(text, ids=whole, document=text.document[kept], counts=text.counts[kept], splits=parts)


def heldout_tokens(view: ModelView, *, tokens: int = 8192, chunk: int = 512) -> np.ndarray:
    """Ids of text that is never calibrated with, int32 ``(chunks, chunk)``, by the model's own tokenizer.

    Raises:
        InputError: the model has no usable tokenizer.
    """
    vocabulary = int(view.text["vocab_size"])
    return tokenize(
        heldout_corpus(), view.files, tokens=tokens, chunk=chunk, vocab_size=vocabulary, model=view.label
    ).ids


def scored(tokens: np.ndarray) -> int:
    """How many predictions are compared over ``tokens``: the second half of each chunk but for its last."""
    chunks, chunk = tokens.shape
    return int(chunks * (chunk - 1 - chunk // 2))
