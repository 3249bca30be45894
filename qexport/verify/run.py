"""Verify one GGUF: ask what it says of itself, run it, and judge what came out.

Order matters for memory: the plain run, then the run with MTP, each in a process that is gone before the next
thing starts, and the bf16 reference last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.artifacts.gguf_file import GgufInfo, read_gguf, shard_paths
from qexport.errors import EnvironmentProblem, InputError, UsageProblem
from qexport.verify.judge import (
    ACCEPTANCE_FLOOR,
    MTP_TIE,
    judge_acceptance,
    judge_agreement,
    judge_finite,
    judge_mtp_text,
    judge_text,
    judge_tokens,
    skipped,
)
from qexport.verify.memory import fit
from qexport.verify.prompts import CHAT_PROMPTS, RAW_PROMPTS, source_probes
from qexport.verify.redact import redact
from qexport.verify.reference import Reference, Scored, reference_from_view
from qexport.verify.report import Check, Finding, Report, Status
from qexport.verify.runtime import Failure, Generation, Runtime, RuntimeFailure, Session, Settings
from qexport.verify.runtimes import LlamaServer, Xllamacpp
from qexport.verify.thresholds import Tolerance, tolerance

if TYPE_CHECKING:
    from qexport.families.view import ModelView

__all__ = ["VerifyOptions", "verify_gguf"]

Progress = Callable[[str], None]

_TEMPLATE_TOKENS = 1024


@dataclass(frozen=True)
class VerifyOptions:
    """How to verify.

    Attributes:
        prompts: asked instead of the default ones; through the file's chat template where it has one.
        n_predict: tokens generated for each prompt.
        n_probs: alternatives asked for at each token.
        mtp: also run with the MTP head, where the file has one.
        draft_max: tokens the head drafts at a time (llama.cpp's own default).
        acceptance_floor: least share of drafts that must be accepted.
        mtp_tie: nats between two tokens below which MTP may choose the other.
        limits: instead of the table's limits for the file's type.
        reference: compare with the bf16 source, where a view is given and fits into memory.
        context: tokens of context, at least; more where the prompts may need it and the model has it.
        threads: threads of the runtime; 0 lets it choose.
        time_limit: seconds for each of the two runs.
        llama_server: the user's own llama-server instead of xllamacpp.
    """

    prompts: tuple[str, ...] = ()
    n_predict: int = 48
    n_probs: int = 8
    mtp: bool = True
    draft_max: int = 3
    acceptance_floor: float = ACCEPTANCE_FLOOR
    mtp_tie: float = MTP_TIE
    limits: Tolerance | None = None
    reference: bool = True
    context: int = 2048
    threads: int = 0
    time_limit: float = 900.0
    llama_server: Path | None = None


def verify_gguf(
    path: Path,
    *,
    view: ModelView | None,
    options: VerifyOptions | None = None,
    runtime: Runtime | None = None,
    reference: Reference | None = None,
    progress: Progress | None = None,
) -> Report:
    """Run the GGUF at ``path`` (any of its shards) and judge it.

    Args:
        view: the repaired source; without it neither tokens nor agreement can be judged.
        runtime: instead of what ``options`` choose.
        reference: instead of building one from ``view``; build it once for all files of one model.
        progress: told in words what is being done.

    Raises:
        InputError: there is no such file.
        UsageProblem: a prompt fits neither into the context asked for nor into the model's own.
        EnvironmentProblem: the runtime is not installed or cannot be started.
    """
    options = options or VerifyOptions()
    if not path.is_file():
        raise InputError(f"{path.name}: no such file", hint="Name a .gguf file.")
    if runtime is None:
        runtime = Xllamacpp() if options.llama_server is None else LlamaServer(options.llama_server)
    run = _Run(shard_paths(path)[0], view, options, runtime, progress or (lambda _: None))
    run.read_file()
    if run.info is not None and run.info.head_only:
        run.add(
            skipped(Check.LOADS, "an MTP head alone: it drafts for another file and cannot answer itself")
        )
        return run.report()
    run.plain()
    run.mtp()
    run.judge(reference)
    return run.report()


@dataclass
class _Run:
    """What has been found so far."""

    path: Path
    view: ModelView | None
    options: VerifyOptions
    runtime: Runtime
    progress: Progress
    info: GgufInfo | None = None
    findings: list[Finding] = field(default_factory=list)
    answers: list[Generation] = field(default_factory=list)
    mtp_answers: list[Generation] = field(default_factory=list)
    version: str = ""
    load_s: float = 0.0
    tok_s: float = 0.0
    mtp_tok_s: float = 0.0

    def add(self, finding: Finding) -> None:
        """Note a finding and say it."""
        self.findings.append(finding)
        self.progress(f"{self.path.name}: {finding.check.value}: {finding.status.value}: {finding.summary}")

    def read_file(self) -> None:
        """The file about itself. A broken one is still given to the runtime: what do users see?"""
        try:
            self.info = read_gguf(self.path)
        except InputError as error:
            self.add(Finding(Check.FILE, Status.FAIL, redact(error.message)))
            return
        info = self.info
        if info.nextn_layers and not info.head_tensors:
            words = f"it declares {info.nextn_layers} MTP layer(s) and holds none of their tensors"
            self.add(Finding(Check.FILE, Status.FAIL, words))
            return
        words = f"{info.architecture} {info.file_type}, {len(info.tensors)} tensors"
        words += f", {info.bits_per_weight:.2f} bits/weight"
        data = {
            "architecture": info.architecture,
            "file_type": info.file_type,
            "tensors": len(info.tensors),
            "size": info.size,
            "shards": info.shards,
            "nextn_layers": info.nextn_layers,
            "chat_template": info.chat_template,
        }
        self.add(Finding(Check.FILE, Status.PASS, words, data))

    def plain(self) -> None:
        """Without MTP: tokens, template, answers with log-probabilities, then one answer for its speed."""
        self.progress(f"{self.path.name}: loading into {self.runtime.name}")
        stage = Check.LOADS
        try:
            with self.runtime.open(self.path, self._settings(0)) as session:
                self.version, self.load_s = session.version, session.load_s
                self.add(Finding(stage, Status.PASS, f"loaded in {self.load_s:.1f} s"))
                stage = Check.TOKENS
                self.add(self._tokens(session))
                stage = Check.GENERATES
                for ids in self._prompts(session):
                    self.answers.append(self._generate(session, ids, n_probs=self.options.n_probs))
                # Log-probabilities cost a sort of the vocabulary for each token: speed is measured without.
                self.tok_s = self._generate(session, self.answers[0].prompt_ids, n_probs=0).tok_s
                count = sum(len(answer.tokens) for answer in self.answers)
                words = f"{count} tokens for {len(self.answers)} prompts"
                self.add(
                    Finding(stage, Status.PASS, words, {"prompts": [len(a.prompt_ids) for a in self.answers]})
                )
        except RuntimeFailure as failure:
            self.add(_failed(stage, failure))

    def mtp(self) -> None:
        """The same prompts again with the MTP head drafting."""
        if self.info is None or not self.info.nextn_layers:
            if self.info is not None and self.view is not None and self.view.mtp_layers:
                self.add(skipped(Check.MTP_LOADS, "the source has an MTP head, the file has none"))
            return
        if not self.options.mtp or not self.options.draft_max:
            self.add(skipped(Check.MTP_LOADS, "not asked for"))
            return
        if not self.answers:
            self.add(skipped(Check.MTP_LOADS, "the file does not run without MTP either"))
            return
        self.progress(f"{self.path.name}: loading again with MTP")
        stage = Check.MTP_LOADS
        try:
            with self.runtime.open(self.path, self._settings(self.options.draft_max)) as session:
                self.add(Finding(stage, Status.PASS, f"loaded with MTP in {session.load_s:.1f} s"))
                stage = Check.MTP_TEXT
                for answer in self.answers:
                    self.mtp_answers.append(self._generate(session, answer.prompt_ids, n_probs=0))
                self.mtp_tok_s = self._generate(session, self.answers[0].prompt_ids, n_probs=0).tok_s
        except RuntimeFailure as failure:
            self.mtp_answers.clear()
            self.add(_failed(stage, failure))

    def judge(self, reference: Reference | None) -> None:
        """Everything that can be said about the answers."""
        if not self.answers:
            return
        limits = self.options.limits or tolerance(self.info.file_type if self.info else "")
        self.add(judge_finite(self.answers))
        scored = self._score(reference)
        scores = scored[1] if isinstance(scored, tuple) else None
        self.add(judge_text(self.answers, scores, near_tie=limits.near_tie))
        if isinstance(scored, Finding):
            self.add(scored)
        else:
            self.add(self._agreement(*scored, limits))
        if self.mtp_answers:
            self.add(judge_mtp_text(self.answers, self.mtp_answers, tie=self.options.mtp_tie))
            self.add(judge_acceptance(self.mtp_answers, floor=self.options.acceptance_floor))

    def report(self) -> Report:
        """All of it, frozen."""
        info = self.info
        drafted = sum(answer.draft_n for answer in self.mtp_answers)
        accepted = sum(answer.draft_accepted for answer in self.mtp_answers)
        order = list(Check)
        return Report(
            artifact=self.path.name,
            runtime=self.runtime.name,
            runtime_version=self.version,
            findings=tuple(sorted(self.findings, key=lambda finding: order.index(finding.check))),
            texts=tuple(answer.text for answer in self.answers),
            file_type=info.file_type if info else "",
            size=info.size if info else self.path.stat().st_size,
            bits_per_weight=info.bits_per_weight if info else 0.0,
            load_s=self.load_s,
            tok_s=self.tok_s,
            mtp_tok_s=self.mtp_tok_s,
            acceptance=accepted / drafted if drafted else None,
        )

    def _settings(self, draft_max: int) -> Settings:
        options = self.options
        return Settings(draft_max, self._context(), options.threads, options.time_limit)

    def _context(self) -> int:
        """Tokens of context: as asked for, more where the prompts may need it and the model has it."""
        asked = self.options.context
        limit = self.info.context_length if self.info is not None else 0
        # A token is a byte at least; what the chat template adds is not known before the file is loaded.
        longest = max(
            len(prompt.encode()) for prompt in self.options.prompts or (*CHAT_PROMPTS, *RAW_PROMPTS)
        )
        wanted = -(-(longest + _TEMPLATE_TOKENS + self.options.n_predict) // 256) * 256
        return max(asked, min(wanted, limit))

    def _generate(self, session: Session, ids: Sequence[int], *, n_probs: int) -> Generation:
        return session.generate(ids, n_predict=self.options.n_predict, n_probs=n_probs)

    def _tokens(self, session: Session) -> Finding:
        if self.view is None:
            return skipped(Check.TOKENS, "no source was given to compare with")
        try:
            probes = source_probes(self.view.files)
        except InputError as error:
            return skipped(Check.TOKENS, redact(error.message))
        if not probes:
            return skipped(Check.TOKENS, "the source has no tokenizer.json")
        cut = [(text, ids, session.tokenize(text, add_special=False)) for text, ids in probes]
        return judge_tokens(cut)

    def _prompts(self, session: Session) -> list[tuple[int, ...]]:
        """Prompt ids: through the file's chat template where it has one, else as they are."""
        texts = self._chats(session) if self.info is not None and self.info.chat_template else None
        if texts is None:
            texts = list(self.options.prompts or RAW_PROMPTS)
        prompts = [session.tokenize(text, add_special=True) for text in texts]
        longest = max(len(ids) for ids in prompts)
        context = self._context()
        if longest + self.options.n_predict > context:
            raise UsageProblem(
                f"a prompt of {longest} tokens and {self.options.n_predict} to generate do not fit "
                f"into a context of {context}",
                hint="Use a shorter prompt, or generate fewer tokens.",
            )
        if not all(prompts):
            raise RuntimeFailure(Failure.NONSENSE, "a prompt became no tokens at all")
        return prompts

    def _chats(self, session: Session) -> list[str] | None:
        texts: list[str] = []
        for prompt in self.options.prompts or CHAT_PROMPTS:
            try:
                text = session.render_chat([{"role": "user", "content": prompt}])
            except RuntimeFailure as failure:
                if failure.kind is not Failure.REFUSED:
                    raise
                self.add(_failed(Check.TEMPLATE, failure))
                return None
            if prompt.strip() not in text:  # many templates trim it
                self.add(Finding(Check.TEMPLATE, Status.FAIL, "the chat template loses the user's message"))
                return None
            texts.append(text)
        self.add(Finding(Check.TEMPLATE, Status.PASS, "the file's chat template was applied by the runtime"))
        return texts

    def _score(self, reference: Reference | None) -> tuple[Reference, list[tuple[Scored, ...]]] | Finding:
        """The source's scores of every answer, or why there are none."""
        if not self.options.reference:
            return skipped(Check.AGREEMENT, "not asked for")
        if reference is None:
            if self.view is None:
                return skipped(Check.AGREEMENT, "no source was given to compare with")
            size = fit(self.view)
            if not size.ok:
                words = f"the source needs about {size.needed / 1e9:.1f} GB in bf16"
                words += f", {size.available / 1e9:.1f} GB are free"
                return skipped(Check.AGREEMENT, words, needed=size.needed, available=size.available)
            self.progress(f"{self.path.name}: loading the source as {size.dtype}")
            try:
                reference = reference_from_view(self.view, dtype=size.dtype)
            except (EnvironmentProblem, InputError) as error:
                return skipped(Check.AGREEMENT, redact(error.message))
        self.progress(f"{self.path.name}: comparing with {reference.label}")
        rows = self.view.text.get("vocab_size") if self.view is not None else None
        highest = max(max((*answer.prompt_ids, *answer.tokens)) for answer in self.answers)
        if rows is not None and highest >= rows:
            words = f"token {highest} is beyond the source's vocabulary of {rows}: a file of another model"
            return Finding(Check.AGREEMENT, Status.FAIL, words, {"token": highest, "vocabulary": rows})
        scores = [
            reference.score(
                [*answer.prompt_ids, *answer.tokens], len(answer.prompt_ids), top=self.options.n_probs
            )
            for answer in self.answers
        ]
        return reference, scores

    def _agreement(
        self, reference: Reference, scores: Sequence[Sequence[Scored]], limits: Tolerance
    ) -> Finding:
        return judge_agreement(
            self.answers,
            scores,
            limits,
            file_type=self.info.file_type if self.info else "unknown type",
            source=reference.label,
            noise=reference.noise,
        )


def _failed(check: Check, failure: RuntimeFailure) -> Finding:
    data = {"kind": failure.kind.value, "log": list(failure.log)}
    return Finding(check, Status.FAIL, failure.message, data)
