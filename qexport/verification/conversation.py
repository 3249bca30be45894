"""What makes a conversation of a model, held against the source: its chat template, and where a reply ends.

A file that has lost its template runs: llama.cpp takes ChatML instead, and the model answers in a form that
it was never trained in. Nothing in a log-probability shows it, so the texts are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qexport.checkpoint.chat_templates import DEFAULT, ChatTemplates, read_templates
from qexport.checkpoint.config import parse_json
from qexport.checkpoint.special_tokens import end_ids, special_names
from qexport.errors import InputError
from qexport.families.tokenizer import tokenizer_json
from qexport.receipt.verification import Check, Status, Verdict
from qexport.verification.judge import skipped

if TYPE_CHECKING:
    from qexport.families.view import ModelView

_GENERATION, _TOKENIZER = "generation_config.json", "tokenizer.json"


@dataclass(frozen=True)
class Ends:
    """Where a source ends a reply.

    Attributes:
        required: ids at which generation stops.
        allowed: others that some file of it calls an end.
        texts: of every token, by id.
    """

    required: frozenset[int]
    allowed: frozenset[int]
    texts: Mapping[int, str]

    def words(self, ids: Iterable[int]) -> str:
        return ", ".join(f"{self.texts.get(one, 'a token without a text')!r} ({one})" for one in sorted(ids))


def template_kept(
    view: ModelView | None, templates: Callable[[ChatTemplates | None], Mapping[str, str]]
) -> Verdict | None:
    """An artifact's chat templates beside the source's; ``None`` where there is nothing to say of any.

    Args:
        view: the repaired source, if there is one.
        templates: as a :class:`~qexport.artifacts.description.Description` has them.
    """
    source = None if view is None else read_templates(view.files, view.label)
    try:
        return judge_template(source, templates(source))
    except InputError as error:
        return Verdict(Check.TEMPLATE_KEPT, Status.FAIL, error.message)


def judge_template(source: ChatTemplates | None, kept: Mapping[str, str]) -> Verdict | None:
    """Chat templates by name beside the source's; ``None`` where neither has any.

    Args:
        source: the source's; ``None``: there is no source.
        kept: the artifact's, the one that is used where none is named as ``default``.
    """
    check = Check.TEMPLATE_KEPT
    if source is None:
        return skipped(check, "no source was given to compare with") if kept else None
    if source.default is None:
        return skipped(check, "there is a chat template, and none in the source") if kept else None
    wanted = {**source.named, DEFAULT: source.default}
    data = {"source": sorted(wanted), "kept": sorted(kept)}
    if DEFAULT not in kept:
        return Verdict(check, Status.FAIL, "the source has a chat template, and here is none", data)
    # A template's own last line end is dropped by jinja.
    other = [name for name, text in wanted.items() if kept.get(name, "").rstrip("\n") != text.rstrip("\n")]
    if other:
        lost = ", ".join(name if name in kept else f"{name} (missing)" for name in other)
        return Verdict(check, Status.FAIL, f"chat templates that are not the source's: {lost}", data)
    words = "the source's chat template" if len(wanted) == 1 else f"the source's {len(wanted)} chat templates"
    return Verdict(check, Status.PASS, words, data)


def source_ends(view: ModelView) -> Ends:
    """Where the repaired source ends a reply.

    Raises:
        InputError: one of its files cannot be read.
    """
    files, label = view.files, view.label
    settings, mapped, generation = (
        parse_json(files[name], f"{label}: {name}") if name in files else {}
        for name in ("tokenizer_config.json", "special_tokens_map.json", _GENERATION)
    )
    parsed = tokenizer_json(files[_TOKENIZER], f"{label}: {_TOKENIZER}") if _TOKENIZER in files else None
    try:
        ids = parsed.ids if parsed is not None else {}
    except ValueError as error:
        raise InputError(f"{label}: {_TOKENIZER}: {error}") from None
    named = ids.get(special_names(settings, mapped).get("eos_token", ""))
    required = frozenset(end_ids(generation, view.config))
    others = {*end_ids({}, view.config), *([] if named is None else [named])}
    return Ends(required, required | others, {number: text for text, number in ids.items()})


def folder_ends(files: Mapping[str, bytes], config: Mapping[str, Any]) -> frozenset[int]:
    """Where readers of a folder end a reply, by its own files."""
    name = _GENERATION
    generation = parse_json(files[name], name) if name in files else {}
    return frozenset(end_ids(generation, config))


def judge_ends(
    source: Ends | None,
    ends: Iterable[int] | None,
    prompts: Iterable[Sequence[int]] = (),
    *,
    by_text: frozenset[str] = frozenset(),
) -> Verdict:
    """Where the artifact ends a reply, beside its source; and that no prompt is over before the reply.

    Args:
        source: ``None``: there is no source.
        ends: ids at which the runtime ends one; ``None``: it does not say.
        prompts: ids of texts as the runtime gives them to the model, with what it puts around them.
        by_text: tokens at which it stops whatever a file says.
    """
    check = Check.ENDS
    known = frozenset(ends or ()) | (source.allowed if source is not None else frozenset())
    if closed := sorted({prompt[-1] for prompt in prompts if len(prompt) > 1 and prompt[-1] in known}):
        word = source.words(closed) if source is not None else str(closed)
        return Verdict(check, Status.FAIL, f"an end of text is put behind every prompt: {word}")
    if source is None:
        return skipped(check, "no source was given to compare with")
    if ends is None:
        return skipped(check, "the runtime does not say where it ends a reply")
    if not source.required:
        return skipped(check, "the source does not say where it ends a reply")
    found = frozenset(ends)
    data = {"source": sorted(source.required), "runtime": sorted(found)}
    if missing := source.required - found:
        words = f"no end at {source.words(missing)}, where the source ends a reply"
        return Verdict(check, Status.FAIL, words, data)
    strange = {one for one in found - source.allowed if source.texts.get(one) not in by_text}
    if strange:
        words = f"a reply ends at {source.words(strange)}, which ends nothing in the source"
        return Verdict(check, Status.FAIL, words, data)
    return Verdict(
        check, Status.PASS, f"a reply ends where the source's does: {source.words(source.required)}", data
    )
