"""A head tuned to its trunk, never worse than it was: text, states, training, both heads judged.

The trunk is run once, a layer in memory at a time, and its states are kept. Then only the head is trained,
on the ``train`` split; when to stop is seen on ``select``; whether the new head is taken is decided on
``judge``, which nothing has looked at before. Where it is not taken, the old head is what is written, bit for
bit, and the result says ``kept``.

What would teach a head nonsense is refused before it costs anything: text that repeats itself, too little of
it, and text that the trunk would never write.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qexport.errors import InputError
from qexport.evidence.corpus import builtin_corpus
from qexport.evidence.options import StreamOptions
from qexport.headtune.drafts import DEPTH
from qexport.headtune.text import SPLITS, Chunked, balanced, chunked, divided, documents_of

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from qexport.evidence.chained import HeadStream
    from qexport.evidence.corpus import Corpus
    from qexport.families.view import ModelView
    from qexport.headtune.drafts import HeadDrafts
    from qexport.headtune.figures import HeadVerdict
    from qexport.headtune.logits import Logits
    from qexport.headtune.options import TuneOptions
    from qexport.headtune.states import States
    from qexport.headtune.train import Trained


LEAST_TOKENS = 8192
"""Of answers, in the training split: heads tuned to fewer were no better than before, or worse."""
_LOOPS = 0.2  # share of documents that may repeat themselves; they are left out
_SURPRISE = 1.5  # nats a token by which text may be less likely than what the trunk would write itself
_SELECTED = 32  # chunks by which training is watched
_SURPRISED = 16  # chunks that are looked at for it
_NEXT = "`qexport mtp generate MODEL -o own.jsonl` writes text of the model's own."


@dataclass(frozen=True)
class DividedText:
    """The text, divided.

    Attributes:
        own: domains of the user's text; on these a gain is decided.
        loops: documents that were left out because they repeat themselves.
        tokens: of answers, by split, of the user's text alone.
    """

    label: str
    sha256: str
    text: Chunked = field(repr=False)
    own: tuple[str, ...]
    loops: int
    documents: Mapping[str, int]
    tokens: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "sha256": self.sha256,
            "chunks_sha256": self.text.sha256,
            "tokens": int(self.text.ids.size),
            "own_tokens": dict(self.tokens),
            "documents": dict(self.documents),
            "loops_left_out": self.loops,
        }


@dataclass(frozen=True)
class Tuned:
    """What came of it.

    Attributes:
        result: ``tuned`` or ``kept``; ``reason`` says why the old head was kept.
        weights: the head that is to be used, float32 by canonical name.
        base_sha256: of the old head; ``states_sha256`` of the trunk's states.
        before, after: drafts on the judge split; ``after`` is ``None`` where training came to nothing.
    """

    result: str
    reason: str
    weights: Mapping[str, torch.Tensor] = field(repr=False)
    dtypes: Mapping[str, torch.dtype] = field(repr=False)
    base_sha256: str
    states_sha256: str
    prepared: DividedText
    before: HeadDrafts
    after: HeadDrafts | None
    trained: Trained | None
    verdict: HeadVerdict | None


def prepare(corpus: Corpus, view: ModelView, options: TuneOptions) -> DividedText:
    """Documents of both texts, divided; refuses what no head should be tuned to.

    Raises:
        InputError: the text repeats itself, or there is too little of it.
    """
    from qexport.evidence.corpus import BUILTIN_CATEGORIES

    given = documents_of(corpus, view, at_most=options.tokens)
    # The package's own text has domains of these names; what the user's says is his.
    mine = [
        replace(each, domain=f"own {each.domain}") if each.domain in BUILTIN_CATEGORIES else each
        for each in given
    ]
    kept = [document for document in mine if not document.loops]
    loops = len(mine) - len(kept)
    if loops > _LOOPS * len(mine):
        raise InputError(
            f"{corpus.label}: {loops} of {len(mine)} documents repeat themselves over and over; a head tuned "
            "to them learns to repeat",
            hint=f"Sample with a temperature of 0.7 or more. {_NEXT}",
        )
    splits = divided(kept, options.train.seed)
    tokens = {split: sum(len(each.answer) for each in splits[split]) for split in SPLITS}
    if tokens["train"] < LEAST_TOKENS or not all(splits[split] for split in SPLITS):
        raise InputError(
            f"{corpus.label} has {tokens['train']} tokens to tune with, in {len(splits['train'])} documents; "
            f"at least {LEAST_TOKENS} are needed, and documents to select and to judge by besides",
            hint=f"100 000 tokens in some hundred documents are usual. {_NEXT}",
        )
    own = tuple(sorted({document.domain for document in kept}))
    if options.generic:
        wanted = options.generic / (1 - options.generic) * sum(len(each.ids) for each in kept)
        generic = divided(documents_of(builtin_corpus(), view), options.train.seed)
        # Each domain is judged alone, so it takes more to judge by than its share of what is trained on.
        shares = {"train": 0.7 * wanted, "select": 0.1 * wanted, "judge": wanted}
        splits = {split: [*splits[split], *balanced(generic[split], shares[split])] for split in SPLITS}
    documents = {split: len(splits[split]) for split in SPLITS}
    text = chunked(splits, options.chunk)
    return DividedText(corpus.label, corpus.sha256, text, own, loops, documents, tokens)


def tune(
    view: ModelView,
    prepared: DividedText,
    options: TuneOptions,
    stream_options: StreamOptions | None = None,
    *,
    spill: Path,
    bars: Any = None,
    say: Any = lambda _: None,
) -> Tuned:
    """Tune the head of ``view`` to its trunk.

    Args:
        spill: the folder for states and checkpoints; who comes again finds them there.
        bars: called with ``"drafting"`` or ``"tuning"`` and a number of steps, gives a context with progress.
        say: told what is seen on the way.

    Raises:
        InputError: there is no head, the trunk is damaged, or the text is none that it would write.
        EnvironmentProblem: no transformers, no memory, no disk.
    """
    from qexport.evidence.chained import HeadStream
    from qexport.evidence.stream import threads
    from qexport.headtune.states import states_of

    stream_options = stream_options or StreamOptions()
    bars = bars or _no_bar
    stream = HeadStream(view, stream_options)
    ids = prepared.text.ids
    with threads(stream_options.threads):
        with bars("drafting", stream.trunk_units(ids)) as progress:
            states = states_of(stream, ids, spill, progress)
        return _Tuning(stream, prepared, options, states, spill, bars, say).run()


class _Tuning:
    """One head, one text, from the states on."""

    def __init__(
        self,
        stream: HeadStream,
        prepared: DividedText,
        options: TuneOptions,
        states: States,
        spill: Path,
        bars: Any,
        say: Any,
    ) -> None:
        from qexport.headtune.logits import Logits

        self.stream, self.prepared, self.options = stream, prepared, options
        self.states, self.spill, self.bars, self.say = states, spill, bars, say
        exact = stream.precision == "float32"
        self.vocabulary = Logits(stream.view, stream.device, exact=exact)
        self.chain = stream.head(prepared.text.ids.shape[1])
        self.embedded = stream.embedded(prepared.text.ids)

    def run(self) -> Tuned:
        """Refuse, train, judge."""
        from qexport.headtune.figures import aim_of, judged
        from qexport.headtune.train import Trainer, TrainingLost

        prepared, train = self.prepared, self.options.train
        self._check_text()
        before = self._drafts(prepared.text.part("judge"), DEPTH)
        dtypes = self._dtypes()
        watched = prepared.text.part("select")
        watched = slice(watched.start, min(watched.stop, watched.start + _SELECTED))
        trainer = Trainer(
            self.chain,
            self.vocabulary,
            prepared.text,
            self.states,
            self.embedded,
            train,
            judge=lambda: aim_of(self._drafts(watched, train.depth), train.mode, train.depth),
            checkpoint=self.spill / "training.pt",
            rounded=self.stream.precision == "bfloat16" or self.stream.device.type == "cuda",
            say=self.say,
        )
        base, states = trainer.base_sha256, self.states.sha256
        known = Tuned(
            "kept", "", self.chain.weights(), dtypes, base, states, prepared, before, None, None, None
        )
        try:
            with self.bars("tuning", trainer.steps) as progress:
                trained = trainer.run(progress)
        except TrainingLost as problem:
            return replace(known, reason=f"the training came to no numbers: {problem}")
        weights = {name: values.to(dtypes[name]).float() for name, values in trained.weights.items()}
        if not all(math.isfinite(float(values.abs().max())) for values in weights.values()):
            return replace(known, reason="the new head is not finite")
        self.chain.load(weights)
        after = self._drafts(prepared.text.part("judge"), DEPTH)
        verdict = judged(before, after, train.mode, train.depth, prepared.own)
        found = replace(known, after=after, trained=trained, verdict=verdict, reason=verdict.reason)
        return replace(found, result="tuned", weights=weights) if verdict.accepted else found

    def _drafts(self, part: slice, depth: int) -> HeadDrafts:
        from qexport.headtune.drafts import drafts_of

        return drafts_of(
            self.chain,
            self.vocabulary,
            self.prepared.text,
            self.states,
            self.embedded,
            part=part,
            depth=depth,
            temperature=self.options.temperature,
        )

    def _dtypes(self) -> dict[str, torch.dtype]:
        from qexport.checkpoint.tensors import torch_dtype
        from qexport.evidence.modules import parameter_of
        from qexport.families.roles import Block

        found = {}
        for tensor in self.stream.view:
            if tensor.block is Block.MTP:
                found[parameter_of(tensor)[0]] = torch_dtype(tensor.data.dtype)
        return found

    def _check_text(self) -> None:
        """Refuse text that the trunk would never write: its states teach what no runtime comes to."""
        gap = surprise(self.prepared, self.states, self.vocabulary)
        if gap > _SURPRISE:
            raise InputError(
                f"{self.prepared.label} is no text of {self.stream.view.label}: each token is {gap:.1f} nats "
                "less likely than what it would write itself",
                hint=_NEXT,
            )


def surprise(prepared: DividedText, states: States, vocabulary: Logits) -> float:
    """By how many nats a token of the user's text is less likely, to the trunk, than one of its own."""
    import numpy as np
    import torch

    text = prepared.text
    own = np.array([domain in prepared.own for domain in text.domains], bool)
    mine = (own[text.document] & text.counts)[:, 1:]
    total, count = 0.0, 0
    chunks = [int(each) for each in np.flatnonzero(mine.any(axis=1))]
    for chunk in chunks[:: max(1, len(chunks) // _SURPRISED)]:
        final = states.of([chunk], vocabulary.device)[0, :-1]
        following = torch.from_numpy(text.ids[chunk, 1:].astype(np.int64)).to(final.device)
        for start, stop in vocabulary.slices(len(final)):
            likely = vocabulary.logits(final[start:stop]).log_softmax(-1)
            said = likely.gather(-1, following[start:stop, None])[:, 0]
            expected = (likely.exp() * likely).sum(-1)
            wanted = torch.from_numpy(mine[chunk, start:stop]).to(final.device)
            total += float((expected - said)[wanted].sum())
            count += int(wanted.sum())
    return total / count if count else 0.0


def _no_bar(_: str, __: int) -> Any:
    from contextlib import nullcontext

    return nullcontext()
