"""The head trained on the trunk's states: steps, checkpoints, and the best of what was seen on the way.

AdamW on float32 weights (products in bf16 where the machine multiplies it), clipped gradients, a short
warm-up, a cosine. The learning rate is probed: a few steps with each candidate, from the head as it is. At
regular steps the selection split is judged, and the weights with the most tokens per verification are what is
kept; where they stop getting better, training stops.

Everything follows from the seed: batches are drawn by the number of the epoch, not by a generator that has a
past. A checkpoint holds weights, moments and history; who is killed and called again goes on from there to
the same bits.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qexport.headtune.loss import sliced
from qexport.onepass.files import temporary_name

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from qexport.evidence.chained import Embedded, HeadChain
    from qexport.headtune.logits import Logits
    from qexport.headtune.options import TrainOptions
    from qexport.headtune.states import States
    from qexport.headtune.text import Chunked
    from qexport.progress import Progress


_BETAS = (0.9, 0.95)
_CLIP = 1.0
_WARM_UP = 0.05
_LOWEST = 0.05  # of the learning rate, at the end of the cosine
_LEAST_STEPS = 200  # steps count, not tokens: a short text is read more often
_PROBED = 20  # one part in so many of all steps, with each learning rate
_JUDGED = 10  # times that the selection split is judged
_PATIENCE = 4  # of them in a row that are no better
_SMALL = 10_000_000  # weights, below which a head wants larger steps
_RATES = {True: (5e-4, 1e-3, 2e-3), False: (1e-4, 2e-4, 5e-4)}


# What torch says of a file that is not there, or not whole.
_TORN = (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, pickle.UnpicklingError)


class TrainingLost(Exception):
    """The loss or its gradient is no number any more."""


@dataclass(frozen=True)
class Point:
    """What was seen at a step: the loss since the last one, tokens per verification on the selection
    split."""

    step: int
    loss: float
    tokens_per_verification: float


@dataclass(frozen=True)
class Trained:
    """What came of it.

    Attributes:
        weights: the best ones, by canonical name.
        rate: the learning rate that was taken; ``probes`` are what each came to.
        curve: from step 0 on; ``best`` is the step of the weights.
        steps: that were made.
    """

    weights: Mapping[str, torch.Tensor] = field(repr=False)
    rate: float
    probes: Mapping[str, float]
    curve: tuple[Point, ...]
    best: int
    steps: int


class Trainer:
    """Trains one head on the ``train`` split of a text.

    Args:
        judge: tokens per verification on the selection split, with the weights that the chain has then.
        checkpoint: the file that is written beside, and read if it is there and of the same training.
        rounded: products in bf16.
        say: told what was seen.

    Attributes:
        base_sha256: of the head as it was.
    """

    def __init__(
        self,
        chain: HeadChain,
        vocabulary: Logits,
        text: Chunked,
        states: States,
        embedded: Embedded,
        options: TrainOptions,
        *,
        judge: Callable[[], float],
        checkpoint: Path,
        rounded: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._chain, self._vocabulary, self._text = chain, vocabulary, text
        self._states, self._embedded, self._options = states, embedded, options
        self._judge, self._checkpoint, self._say = judge, checkpoint, say
        self._rounded = rounded
        self._parameters = chain.trained()
        self._counts = text.counted(options.depth)
        self._batch = max(1, options.batch_tokens // int(text.ids.shape[1]))
        self._base = chain.weights()
        self.base_sha256 = head_sha256_of(self._base)
        known = {"options": asdict(options), "text": text.sha256, "states": states.path.name}
        known["base"] = self.base_sha256
        self._key = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

    @property
    def steps(self) -> int:
        """How many are to be made."""
        options = self._options
        if options.steps is not None:
            return options.steps
        return max(_LEAST_STEPS, options.epochs * self._epoch)

    @property
    def _epoch(self) -> int:
        chunks = self._text.part("train")
        return math.ceil(int(chunks.stop - chunks.start) / self._batch)

    def run(self, progress: Progress | None = None) -> Trained:
        """Train to the end, or on from the checkpoint.

        Raises:
            TrainingLost: the head is lost; what was best before is not given either.
        """
        saved = self._read()
        probes: dict[str, float] = saved.get("probes", {})
        rate = self._options.rate or self._probed(probes)
        run = _Run(self, rate, self.steps)
        if "run" in saved:
            run.resume(saved["run"])
        else:
            run.begin()
            self._say(f"step 0 of {run.steps}: {run.curve[0].tokens_per_verification:.3f} {_FIGURE}")
        every = max(1, run.steps // _JUDGED)
        if progress is not None:
            progress.advance(run.step)
        while run.step < run.steps and not run.exhausted:
            run.advance()
            if progress is not None:
                progress.advance(1)
            if run.step % every == 0 or run.step == run.steps:
                point = run.look()
                words = f"{point.tokens_per_verification:.3f} {_FIGURE}"
                self._say(
                    f"step {point.step} of {run.steps}: {words} "
                    f"({run.curve[0].tokens_per_verification:.3f} before), loss {point.loss:.4f}"
                )
                self._write({"probes": probes, "run": run.state()})
        return Trained(run.weights, rate, probes, tuple(run.curve), run.best, run.step)

    def _probed(self, probes: dict[str, float]) -> float:
        small = sum(each.numel() for each in self._parameters.values()) < _SMALL
        rates = _RATES[small]
        for rate in rates:
            word = f"{rate:g}"
            if word in probes:
                continue
            self._chain.load(self._base)
            run = _Run(self, rate, max(8, self.steps // _PROBED))
            try:
                while run.step < run.steps:
                    run.advance()
                probes[word] = self._judge()
            except TrainingLost:
                probes[word] = -math.inf
            self._say(f"learning rate {word}: {probes[word]:.3f} {_FIGURE} after {run.steps} steps")
            self._write({"probes": probes})
        self._chain.load(self._base)
        return max(rates, key=lambda rate: (probes[f"{rate:g}"], -rate))

    def batch(self, step: int) -> list[int]:
        """The chunks of a step: all of the text in an order of each epoch's own."""
        import numpy as np

        epoch, at = divmod(step, self._epoch)
        part = self._text.part("train")
        order = np.random.default_rng([self._options.seed, epoch]).permutation(part.stop - part.start)
        return [part.start + int(each) for each in order[at * self._batch : (at + 1) * self._batch]]

    def gradients(self, chunks: list[int], *, late: bool = False) -> float:
        """The loss of a batch; gradients are added to those of the parameters."""
        chain, options = self._chain, self._options
        final = self._states.of(chunks, chain.device)
        counts = torch.from_numpy(self._counts[chunks]).to(chain.device).float()
        counts /= counts.sum(dim=(0, 2), keepdim=True).clamp_min(1)
        with self._arithmetic():
            unrolled = chain.unrolled(final, self._embedded.of(chunks), options.depth)
            heads = [head[:, : counts.shape[2]] for head in unrolled]
            with torch.enable_grad():
                loss, gradients = sliced(options.mode, late, self._vocabulary, final, heads, counts)
        torch.autograd.backward(heads, gradients)
        return loss

    def _arithmetic(self) -> AbstractContextManager[Any]:
        if not self._rounded:
            return nullcontext()
        return torch.autocast(self._chain.device.type, dtype=torch.bfloat16)

    def _read(self) -> dict[str, Any]:
        try:
            saved = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
        except _TORN:
            return {}
        fits = isinstance(saved, dict) and saved.get("key") == self._key
        return saved if fits else {}

    def _write(self, values: dict[str, Any]) -> None:
        part = self._checkpoint.with_name(temporary_name(self._checkpoint.name))
        torch.save({"key": self._key, **values}, part)
        part.replace(self._checkpoint)


_FIGURE = "tokens per verification"


class _Run:
    """One training, from the weights that the chain has."""

    def __init__(self, trainer: Trainer, rate: float, steps: int) -> None:
        self.trainer, self.rate, self.steps = trainer, rate, steps
        self.parameters = list(trainer._parameters.values())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=rate, betas=_BETAS, weight_decay=0.0, foreach=False
        )
        self.step = 0
        self.curve: list[Point] = []
        self.weights: Mapping[str, torch.Tensor] = {}
        self.best = 0
        self._losses: list[float] = []

    @property
    def exhausted(self) -> bool:
        """Whether it has not been getting better for some time."""
        since = [point for point in self.curve if point.step > self.best]
        return len(since) >= _PATIENCE

    def begin(self) -> None:
        """The head as it is, judged."""
        self.weights = self.trainer._chain.weights()
        self.curve.append(Point(0, math.nan, self.trainer._judge()))

    def advance(self) -> None:
        """One step."""
        done = self.step / self.steps
        warm = min(1.0, (self.step + 1) / max(1.0, _WARM_UP * self.steps))
        cosine = _LOWEST + (1 - _LOWEST) * 0.5 * (1 + math.cos(math.pi * done))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * warm * cosine
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.trainer.gradients(self.trainer.batch(self.step), late=2 * self.step >= self.steps)
        length = torch.nn.utils.clip_grad_norm_(self.parameters, _CLIP, foreach=False)
        if not math.isfinite(loss) or not bool(torch.isfinite(length)):
            raise TrainingLost(f"at step {self.step + 1} the loss is {loss}")
        self.optimizer.step()
        self.step += 1
        self._losses.append(loss)

    def look(self) -> Point:
        """Judge the weights as they are now, and keep them if none were better."""
        found = self.trainer._judge()
        point = Point(self.step, sum(self._losses) / max(1, len(self._losses)), found)
        if found > max(each.tokens_per_verification for each in self.curve):
            self.weights, self.best = self.trainer._chain.weights(), self.step
        self.curve.append(point)
        self._losses = []
        return point

    def state(self) -> dict[str, Any]:
        """All that is needed to go on."""
        return {
            "step": self.step,
            "curve": [asdict(point) for point in self.curve],
            "best": self.best,
            "weights": dict(self.weights),
            "now": self.trainer._chain.weights(),
            "optimizer": self.optimizer.state_dict(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.trainer._chain.load(state["now"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best, self.weights = state["step"], state["best"], state["weights"]
        self.curve = [Point(**point) for point in state["curve"]]


def head_sha256_of(weights: Mapping[str, torch.Tensor]) -> str:
    """Of the values in float32, by name; so the same head has one hash however it is stored."""
    digest = hashlib.sha256()
    for name, values in sorted(weights.items()):
        digest.update(name.encode() + values.float().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
