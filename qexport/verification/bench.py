"""Tokens a second in the real runtime: bare, then with the MTP head drafting 1, 2, 3 ... tokens at a time.

Each setting loads the artifact anew, in a process of its own, answers once uncounted, then answers all
prompts several times. The figure of a repeat is the tokens of all its answers over the time they took, so
that a long answer weighs more than a short one; the median of the repeats counts, the slowest and the
fastest are kept. Reading a prompt is measured on one of a few hundred tokens.

Greedy, one request at a time: what a person at a chat sees. Left out: batches, long contexts, sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.children.failure import Failure, RuntimeFailure
from qexport.errors import UsageProblem
from qexport.receipt.speeds import Bench, Range, RuntimeVersion, Speed
from qexport.verification.machine import this_machine
from qexport.verification.prompts import BENCH_PROMPTS, BENCH_TEXT
from qexport.verification.runtime import Settings

if TYPE_CHECKING:
    from qexport.artifacts.description import Description
    from qexport.verification.runtime import Generation, Runtime, Session


Say = Callable[[str], None]


@dataclass(frozen=True)
class BenchOptions:
    """How to measure.

    Attributes:
        n_max: the most tokens that the MTP head drafts at a time; every number from 1 on is measured.
        prompts: instead of the built-in ones; through the artifact's chat template where it has one.
        n_predict: most tokens of an answer.
        repeats: counted rounds over all prompts.
        prompt_tokens: tokens of the prompt that reading is measured on.
        threads: of the runtime; 0 lets it choose.
        time_limit: seconds for each setting.
    """

    n_max: int = 4
    prompts: tuple[str, ...] = ()
    n_predict: int = 128
    repeats: int = 3
    prompt_tokens: int = 512
    threads: int = 0
    time_limit: float = 1800.0


@dataclass(frozen=True)
class Benched:
    """The figures, and the runtime's failures with MTP on: they are findings, the other figures stand."""

    bench: Bench
    failures: tuple[RuntimeFailure, ...] = ()


def bench(about: Description, runtime: Runtime, options: BenchOptions, say: Say) -> Benched:
    """Measure the artifact, which says ``about`` itself whether it has a chat template, context, MTP head.

    Raises:
        RuntimeFailure: it does not run without MTP.
        UsageProblem: the answers do not fit into the model's context.
        EnvironmentProblem: the runtime is not there.
    """
    notes: list[str] = []
    if options.n_max and not about.drafts:
        notes.append("without MTP only: there is no MTP head")
    elif options.n_max and not runtime.drafts:
        notes.append(f"without MTP only: {runtime.name} does not run MTP heads")
    last = 0 if notes else options.n_max
    run = _Run(about, runtime, options, say)
    speeds: list[Speed] = []
    failures: list[RuntimeFailure] = []
    for n_max in range(last + 1):
        try:
            found = run.measure(n_max)
        except RuntimeFailure as failure:
            if n_max == 0:
                raise
            failures.append(failure)
            notes.append(f"n-max {n_max}: {failure.message}")
            continue
        if isinstance(found, str):
            notes.append(found)
            break
        speeds.append(found)
    made = Bench(
        engine=RuntimeVersion(runtime.name, run.version),
        machine=this_machine(),
        threads=options.threads,
        prompts=len(options.prompts or BENCH_PROMPTS),
        n_predict=options.n_predict,
        repeats=options.repeats,
        prompt_tokens=run.read,
        speeds=tuple(speeds),
        notes=tuple(notes),
    )
    return Benched(made, tuple(failures))


class _Run:
    """One artifact in one runtime; notes the runtime's version and how long the long prompt was."""

    def __init__(self, about: Description, runtime: Runtime, options: BenchOptions, say: Say) -> None:
        self._about = about
        self._runtime = runtime
        self._options = options
        self._say = say
        self.version = ""
        self.read = 0

    def measure(self, n_max: int) -> Speed | str:
        """One setting; words where the runtime has loaded the head and cannot draft with it."""
        options = self._options
        how = f"n-max {n_max}" if n_max else "without MTP"
        self._say(f"{self._about.path.name}: {how}: loading into {self._runtime.name}")
        drafter = self._about.drafter if n_max else None
        settings = Settings(n_max, self._context(), options.threads, options.time_limit, drafter=drafter)
        with self._runtime.open(self._about.path, settings) as session:
            self.version = session.version
            if n_max and (reason := session.facts.get("no_drafts")):
                return str(reason)
            prompts = self._prompts(session)
            long = self._long(session)
            self._answer(session, prompts[0])  # warm-up: pages, caches, clocks
            rounds: list[float] = []
            reads: list[float] = []
            drafted = accepted = 0
            for _ in range(options.repeats):
                answers = [self._answer(session, prompt) for prompt in prompts]
                rounds.append(_rate(answers))
                drafted += sum(answer.draft_n for answer in answers)
                accepted += sum(answer.draft_accepted for answer in answers)
                reads.append(session.generate(long, n_predict=1, n_probs=0).prompt_tok_s)
        if not all(rounds):
            raise RuntimeFailure(Failure.NONSENSE, "the answers are too short to be timed")
        prompt = Range.of(reads) if all(reads) else None
        speed = Speed(n_max, Range.of(rounds), prompt, drafted, accepted)
        self._say(f"{self._about.path.name}: {how}: {_words(speed)}")
        return speed

    def _answer(self, session: Session, prompt: Sequence[int]) -> Generation:
        return session.generate(prompt, n_predict=self._options.n_predict, n_probs=0)

    def _prompts(self, session: Session) -> list[tuple[int, ...]]:
        texts = list(self._options.prompts or BENCH_PROMPTS)
        about = self._about
        if about.chats:
            texts = [session.render_chat([{"role": "user", "content": text}]) for text in texts]
        special = not (about.chats and about.complete_chats)
        prompts = [session.tokenize(text, add_special=special) for text in texts]
        longest = max(len(prompt) for prompt in prompts)
        if longest + self._options.n_predict > self._context():
            raise UsageProblem(
                f"a prompt of {longest} tokens and {self._options.n_predict} to generate do not fit into a "
                f"context of {self._context()}",
                hint="Use a shorter --prompt, or fewer --tokens.",
            )
        return prompts

    def _long(self, session: Session) -> tuple[int, ...]:
        wanted = max(1, min(self._options.prompt_tokens, self._context() - 8))
        ids = session.tokenize(BENCH_TEXT, add_special=False) or (0,)
        self.read = wanted
        return (ids * (-(-wanted // len(ids))))[:wanted]

    def _context(self) -> int:
        """Room for the long prompt and for every answer, as far as the model has it."""
        options = self._options
        longest = max(len(text.encode()) for text in options.prompts or BENCH_PROMPTS)
        wanted = max(options.prompt_tokens + 8, longest + options.n_predict + _TEMPLATE_TOKENS)
        wanted = -(-wanted // 256) * 256
        return min(wanted, self._about.context) if self._about.context else wanted


_TEMPLATE_TOKENS = 512  # what a chat template may add


def _rate(answers: Sequence[Generation]) -> float:
    """Tokens of all answers over their time; 0 where there is nothing to divide."""
    timed = [answer for answer in answers if answer.tok_s > 0]
    seconds = sum(len(answer.tokens) / answer.tok_s for answer in timed)
    return sum(len(answer.tokens) for answer in timed) / seconds if seconds else 0.0


def _words(speed: Speed) -> str:
    words = f"{speed.tok_s.median:.1f} tok/s"
    share = speed.acceptance
    return words if share is None else f"{words}, {share:.0%} of drafts accepted"
