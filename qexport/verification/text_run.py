"""A text sent through a model layer by layer, and what is kept of it: the hidden states behind the last norm.

Everything that is judged without a runtime starts here: how far an artifact's predictions are from the
source's, how often the MTP head guesses what the model then says. Two models are run one after the other, so
memory is that of two layers of one of them, whatever is compared; states beyond half of the free memory go to
a file without a name.

Numbers are float32 unless the caller says otherwise: then every difference is the artifact's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qexport.evidence.activations import HiddenStates
from qexport.evidence.corpus import heldout_corpus
from qexport.evidence.options import StreamOptions
from qexport.evidence.tokens import tokenize

if TYPE_CHECKING:
    import numpy as np
    import torch

    from qexport.families.view import ModelView
    from qexport.progress import Progress


EXACT = StreamOptions(precision="float32")


@dataclass(frozen=True)
class TextRun:
    """One model's states over a text.

    Attributes:
        tokens: ids, integers ``(chunks, chunk)``.
        final: float32 ``(chunks, chunk, width)``, after the trunk's final norm.
        draft: float32 ``(chunks, chunk - 1, width)``, after the MTP head's; ``None`` without a head.
        device: where products are done.
        routes: for each layer of experts, those that each token is sent to, ``(chunks, chunk, chosen)``, in
            ascending order; empty where there are none.
    """

    view: ModelView
    tokens: np.ndarray
    final: HiddenStates
    draft: HiddenStates | None
    device: str = "cpu"
    routes: Mapping[int, np.ndarray] = field(default_factory=dict, repr=False)


@contextmanager
def run_text(
    view: ModelView,
    tokens: np.ndarray,
    options: StreamOptions | None = None,
    progress: Progress | None = None,
) -> Iterator[TextRun]:
    """Send ``tokens`` through the model; its states last as long as the context.

    Args:
        view: of a source or of an artifact.
        tokens: ids, integers ``(chunks, chunk)``; every chunk is a text of its own.

    Raises:
        InputError: ids beyond the vocabulary, weights that are missing or damaged.
        EnvironmentProblem: transformers is missing, or memory or disk are too small.
    """
    from qexport.evidence.observe import Routes
    from qexport.evidence.stream import LayerStream

    options = options or EXACT
    stream = LayerStream(view, options)
    chunks, chunk = tokens.shape
    width = int(view.text["hidden_size"])
    limit, folder = stream.state_limit // 3, options.spill_folder
    heads = chunks if view.mtp_layers else 0
    with (
        closing(HiddenStates((chunks, chunk, width), limit=limit, folder=folder)) as final,
        closing(HiddenStates((heads, chunk - 1, width), limit=limit, folder=folder)) as draft,
    ):
        seen = Routes()
        stream.run(tokens, seen, progress=progress, final=_keeper(final), draft=_keeper(draft))
        del stream
        routes = {
            layer: chosen.reshape(chunks, chunk, -1)
            for layer, chosen in seen.layers.items()
            if layer < view.layers
        }
        yield TextRun(view, tokens, final, draft if heads else None, options.device, routes)


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


def _keeper(states: HiddenStates) -> Callable[[int, torch.Tensor], None]:
    return lambda start, hidden: states.write(start, hidden)
