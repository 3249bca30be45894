"""The steps that every verification takes with a runtime, whatever the artifact is: run it, then judge.

Order matters for memory: the plain run, then the run with MTP, each in a process that is gone before the next
thing starts, and the bf16 reference last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qexport.children.failure import Failure, RuntimeFailure
from qexport.children.redact import redact
from qexport.errors import EnvironmentProblem, InputError, UsageProblem
from qexport.formats.registry import tolerance
from qexport.receipt.measures import Drafts, Measures
from qexport.receipt.names import is_made_here
from qexport.receipt.speeds import RuntimeVersion
from qexport.receipt.verification import Check, Status, Verdict, Verification
from qexport.sizes import counted
from qexport.verification.conversation import judge_ends, source_ends
from qexport.verification.images import Images, images_for
from qexport.verification.judge import (
    failed,
    judge_acceptance,
    judge_agreement,
    judge_finite,
    judge_mtp_text,
    judge_text,
    judge_tokens,
    skipped,
)
from qexport.verification.memory import fit
from qexport.verification.own_numbers import or_by_own_numbers, own_reference
from qexport.verification.prompts import CHAT_PROMPTS, RAW_PROMPTS, ids_by_file, probes
from qexport.verification.reference import (
    Reference,
    Scored,
    TransformersReference,
    reference_from_view,
)
from qexport.verification.runtime import Generation, Runtime, Session, Settings
from qexport.verification.source_tokenizer import ids_by_class, ids_in_runtime

if TYPE_CHECKING:
    from qexport.artifacts.description import Description
    from qexport.families.view import ModelView
    from qexport.formats.tolerance import Tolerance
    from qexport.verification.options import VerifyOptions


Say = Callable[[str], None]

_TEMPLATE_TOKENS = 1024


@dataclass
class Steps:
    """One artifact in one runtime, and what has been found so far."""

    about: Description
    view: ModelView | None
    options: VerifyOptions
    progress: Say
    runtime: Runtime | None = None
    findings: list[Verdict] = field(default_factory=list)
    answers: list[Generation] = field(default_factory=list)
    asked: tuple[str, ...] = ()
    as_source: tuple[bool, ...] = ()
    mtp_answers: list[Generation] = field(default_factory=list)
    images: Images | None = None
    version: str = ""
    load_s: float = 0.0
    _by_own: TransformersReference | None = None

    @property
    def name(self) -> str:
        """Of the file, or of the folder."""
        return self.about.path.absolute().name

    @property
    def size(self) -> int:
        """Bytes of all files that belong to it: weights, configs, tokenizer."""
        return sum(size for name, size in self.about.files.items() if not is_made_here(name))

    def add(self, finding: Verdict) -> None:
        """Note a finding and say it."""
        self.findings.append(finding)
        self.progress(f"{self.name}: {finding.check.value}: {finding.status.value}: {finding.summary}")

    def run(self, runtime: Runtime) -> None:
        """Without MTP, then with it, pictures in both. Raises EnvironmentProblem where the runtime is not
        there."""
        about = replace(self.about, towers=runtime.towers or self.about.towers)
        images = images_for(about, self.view, self.options)
        if isinstance(images, Images) and not runtime.sees:
            images = skipped(Check.IMAGE_LOADS, f"{runtime.name} has the language model alone")
        if isinstance(images, Verdict):
            self.add(images)
        else:
            self.images = images
        self._plain(runtime)
        self.runtime = runtime
        self._mtp(runtime)
        if self.images is not None and self.answers:
            if runtime.seer is not None:
                self._pictures(self.images, runtime.seer)
            self.progress(f"{self.name}: embedding pictures")
            self._note(self.images.embed(runtime, self._settings(0)))

    def _pictures(self, images: Images, seer: Runtime) -> None:
        """Those that another runtime is shown than text."""
        self.progress(f"{self.name}: loading into {seer.name} for pictures")
        try:
            with seer.open(self.about.path, self._settings(0)) as session:
                words = f"loaded by {seer.name} {session.version}, nothing missing and nothing left over"
                data = {"runtime": seer.name, "version": session.version}
                self.add(Verdict(Check.IMAGE_LOADS, Status.PASS, words, data))
                self._note(images.show(session))
        except RuntimeFailure as failure:
            self.add(failed(Check.IMAGE_LOADS, failure))
        except EnvironmentProblem as problem:
            self.add(skipped(Check.IMAGE_LOADS, f"{redact(problem.message)} ({problem.hint})"))

    def _note(self, finding: Verdict | None) -> None:
        if finding is not None:
            self.add(finding)

    def _open(self, runtime: Runtime, draft_max: int) -> Session:
        """With the vision tower's file, if there is one: a model is not blamed for a file beside it."""
        settings = self._settings(draft_max)
        if self.images is None or self.images.projector is None:
            return runtime.open(self.about.path, settings)
        tower = self.images.projector
        try:
            session = runtime.open(self.about.path, replace(settings, projector=tower))
        except RuntimeFailure as failure:
            session = runtime.open(self.about.path, settings)
            self.images = None
            self.add(failed(Check.IMAGE_LOADS, failure, about=tower.name))
            return session
        if not draft_max:
            self.add(Verdict(Check.IMAGE_LOADS, Status.PASS, f"loaded with {tower.name}"))
        return session

    def _plain(self, runtime: Runtime) -> None:
        """Without MTP: tokens, template, answers with log-probabilities."""
        self.progress(f"{self.name}: loading into {runtime.name}")
        stage = Check.LOADS
        try:
            with self._open(runtime, 0) as session:
                self.version, self.load_s = session.version, session.load_s
                self.add(Verdict(stage, Status.PASS, f"loaded in {self.load_s:.1f} s"))
                if session.facts.get("strict"):
                    words = "by the runtime's own account nothing was missing and nothing left over"
                    self.add(Verdict(Check.USED, Status.PASS, words, dict(session.facts)))
                stage = Check.TOKENS
                self.add(self._tokens(session))
                stage = Check.ENDS
                self.add(self._ends(session, runtime))
                stage = Check.GENERATES
                for ids in self._prompts(session):
                    self.answers.append(self._generate(session, ids, n_probs=self.options.n_probs))
                count = sum(len(answer.tokens) for answer in self.answers)
                words = f"{counted(count, 'token')} for {counted(len(self.answers), 'prompt')}"
                self.add(
                    Verdict(stage, Status.PASS, words, {"prompts": [len(a.prompt_ids) for a in self.answers]})
                )
                if self.images is not None and runtime.seer is None:
                    self._note(self.images.show(session))
        except RuntimeFailure as failure:
            self.add(failed(stage, failure))

    def _mtp(self, runtime: Runtime) -> None:
        """The same prompts again with the MTP head drafting, where there is a head."""
        if not self.about.drafts:
            return
        if not self.options.mtp or not self.options.draft_max:
            self.add(skipped(Check.MTP_LOADS, "not asked for"))
            return
        if not runtime.drafts:
            self.add(skipped(Check.MTP_LOADS, f"{runtime.name} has no MTP"))
            return
        if not self.answers:
            self.add(skipped(Check.MTP_LOADS, "the file does not run without MTP either"))
            return
        self.progress(f"{self.name}: loading again with MTP")
        stage = Check.MTP_LOADS
        try:
            with self._open(runtime, self.options.draft_max) as session:
                self.add(Verdict(stage, Status.PASS, f"loaded with MTP in {session.load_s:.1f} s"))
                stage = Check.MTP_TEXT
                if reason := session.facts.get("no_drafts"):
                    self.add(skipped(stage, str(reason)))
                    return
                for answer in self.answers:
                    self.mtp_answers.append(self._generate(session, answer.prompt_ids, n_probs=0))
                if self.images is not None and self.images.answers:
                    self._note(self.images.show(session, drafting=True))
        except RuntimeFailure as failure:
            self.mtp_answers.clear()
            self.add(failed(stage, failure))

    def judge(self, reference: Reference | None) -> Reference | None:
        """Everything that can be said about the answers. Returns the reference, built here if need be."""
        if not self.answers:
            return reference
        limits = self.options.limits or tolerance(self.about.file_type)
        self.add(judge_finite(self.answers))
        scored = self._score(reference)
        scores = scored[1] if isinstance(scored, tuple) else None
        self.add(judge_text(self.answers, scores, near_tie=limits.near_tie))
        if isinstance(scored, Verdict):
            self.add(scored)
        else:
            reference = scored[0]
            self.as_source = tuple(all(token.gap == 0 for token in answer) for answer in scored[1])
            found = self._agreement(reference, limits, scored[1])
            self.add(or_by_own_numbers(found, limits, self._own, self._agreement))
        if self.mtp_answers:
            self.add(judge_mtp_text(self.answers, self.mtp_answers, tie=self.options.mtp_tie))
            self.add(judge_acceptance(self.mtp_answers))
        for finding in self.images.judge(reference, self._own) if self.images is not None else ():
            self.add(finding)
        return reference

    def _agreement(
        self, reference: Reference, limits: Tolerance, scores: Sequence[Sequence[Scored]] | None = None
    ) -> Verdict:
        return judge_agreement(
            self.answers,
            scores or self._scores(reference),
            limits,
            file_type=self.about.file_type or "unknown type",
            source=reference.label,
            noise=reference.noise,
        )

    def _own(self) -> TransformersReference | None:
        """The artifact's own numbers to judge by, where its matrices are the source's."""
        sound = any(each.check is Check.WEIGHTS and each.status is Status.PASS for each in self.findings)
        if self._by_own is None and sound and self.view is not None:
            self._by_own = own_reference(self.about, self.view)
        return self._by_own

    def report(self) -> Verification:
        """All of it, frozen."""
        drafting = self.mtp_answers
        drafted = sum(answer.draft_n for answer in drafting)
        accepted = sum(answer.draft_accepted for answer in drafting)
        agreed = next((found.data for found in self.findings if found.check is Check.AGREEMENT), {})
        order = list(Check)
        return Verification(
            artifact=self.name,
            engine=RuntimeVersion("none" if self.runtime is None else self.runtime.name, self.version),
            findings=tuple(sorted(self.findings, key=lambda finding: order.index(finding.check))),
            prompts=self.asked if self.answers else (),
            texts=tuple(answer.text for answer in self.answers),
            as_source=self.as_source,
            file_type=self.about.file_type,
            size=self.size,
            bits_per_weight=self.about.bits_per_weight,
            load_s=self.load_s,
            drafts=Drafts(drafted, accepted, len(drafting)) if drafting else None,
            measures=Measures(agreement=agreed.get("agreement"), agreement_tokens=agreed.get("tokens")),
        )

    def _settings(self, draft_max: int) -> Settings:
        options = self.options
        drafter = self.about.drafter if draft_max else None
        return Settings(draft_max, self._context(), options.threads, options.time_limit, drafter=drafter)

    def _context(self) -> int:
        """Tokens of context: as asked for, more where the prompts may need it and the model has it."""
        # A token is a byte at least; what the chat template adds is not known before the file is loaded.
        longest = max(
            len(prompt.encode()) for prompt in self.options.prompts or (*CHAT_PROMPTS, *RAW_PROMPTS)
        )
        wanted = -(-(longest + _TEMPLATE_TOKENS + self.options.n_predict) // 256) * 256
        return max(self.options.context, min(wanted, self.about.context))

    def _generate(self, session: Session, ids: Sequence[int], *, n_probs: int) -> Generation:
        return session.generate(ids, n_predict=self.options.n_predict, n_probs=n_probs)

    def _tokens(self, session: Session) -> Verdict:
        if self.view is None:
            return skipped(Check.TOKENS, "no source was given to compare with")
        files = self.view.files
        try:
            asked = probes(files)
            by_file = ids_by_file(files, asked)
            by_class = ids_in_runtime(session, self.view, asked)
        except InputError as error:
            return skipped(Check.TOKENS, redact(error.message))
        expected = by_class or by_file
        if expected is None:
            return skipped(Check.TOKENS, "the source has no tokenizer.json")
        cut = [session.tokenize(one.text, add_special=one.prompt) for one in asked]
        texts = [one.text for one in asked]
        found = judge_tokens(list(zip(texts, expected, cut, strict=True)))
        if by_class is None and found.status is Status.FAIL and (other := ids_by_class(self.view, asked)):
            # What the file does not say the class may: a runtime that reads the settings follows that.
            either = [c if c == ours else f for f, c, ours in zip(expected, other, cut, strict=True)]
            found, by_class = judge_tokens(list(zip(texts, either, cut, strict=True))), other
        apart = sum(one != other for one, other in zip(by_class or (), by_file or (), strict=False))
        if not apart:
            return found
        words = f"{found.summary}; the source's class cuts {apart} of them otherwise than its tokenizer.json"
        return replace(found, summary=words, data={**found.data, "class_differs": apart})

    def _ends(self, session: Session, runtime: Runtime) -> Verdict:
        try:
            source = None if self.view is None else source_ends(self.view)
        except InputError as error:
            return skipped(Check.ENDS, redact(error.message))
        prompts = [session.tokenize(text, add_special=True) for text in RAW_PROMPTS]
        return judge_ends(source, session.ends(), prompts, by_text=runtime.ends_by_text)

    def _prompts(self, session: Session) -> list[tuple[int, ...]]:
        """Prompt ids: through the artifact's chat template where it has one, else as they are."""
        texts = self._chats(session) if self.about.chats else None
        add_special = texts is None or not self.about.complete_chats
        self.asked = tuple(self.options.prompts or (RAW_PROMPTS if texts is None else CHAT_PROMPTS))
        if texts is None:
            texts = list(self.asked)
        prompts = [session.tokenize(text, add_special=add_special) for text in texts]
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
                self.add(failed(Check.TEMPLATE, failure))
                return None
            if prompt.strip() not in text:  # many templates trim it
                self.add(Verdict(Check.TEMPLATE, Status.FAIL, "the chat template loses the user's message"))
                return None
            texts.append(text)
        self.add(Verdict(Check.TEMPLATE, Status.PASS, "the file's chat template was applied by the runtime"))
        return texts

    def _score(self, reference: Reference | None) -> tuple[Reference, list[tuple[Scored, ...]]] | Verdict:
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
            self.progress(f"{self.name}: loading the source as {size.dtype}")
            try:
                reference = reference_from_view(self.view, dtype=size.dtype)
            except (EnvironmentProblem, InputError) as error:
                return skipped(Check.AGREEMENT, redact(error.message))
        self.progress(f"{self.name}: comparing with {reference.label}")
        rows = self.view.text.get("vocab_size") if self.view is not None else None
        highest = max(max((*answer.prompt_ids, *answer.tokens)) for answer in self.answers)
        if rows is not None and highest >= rows:
            words = f"token {highest} is beyond the source's vocabulary of {rows}: a file of another model"
            return Verdict(Check.AGREEMENT, Status.FAIL, words, {"token": highest, "vocabulary": rows})
        return reference, self._scores(reference)

    def _scores(self, reference: Reference) -> list[tuple[Scored, ...]]:
        return [
            reference.score(
                [*answer.prompt_ids, *answer.tokens], len(answer.prompt_ids), top=self.options.n_probs
            )
            for answer in self.answers
        ]
