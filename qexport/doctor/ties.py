"""Whether the output head is the embedding: what the flags say, and what the weights say.

The flag may stand at the root, in ``text_config``, or in both; readers differ in which they look at. Small
Qwen3.5 models tie (2B, 4B), larger ones do not. Where flag and weights disagree, the weights are right: a
trained ``lm_head`` that a flag hides is lost without a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from qexport.doctor.subject import EMBEDDING, HEAD, Subject


class Tie(Enum):
    """What there is to say about flags and head."""

    FINE = auto()
    FLAGS = auto()
    REPEATS = auto()
    DIFFERS = auto()
    UNCHECKED = auto()
    FLAG_MISSING = auto()
    HEAD_MISSING = auto()


@dataclass(frozen=True)
class TieState:
    """``tied``: how the repaired checkpoint is to be; ``what``: the finding's sentence."""

    state: Tie
    tied: bool
    what: str = ""


def tie_of(subject: Subject) -> TieState:
    """Flags and weights weighed against each other."""
    default = bool(subject.family.defaults.get("tie_word_embeddings", False))
    parts = (subject.config, subject.text) if subject.nested else (subject.config,)
    given = [part.get("tie_word_embeddings") for part in parts]
    flags = {default if flag is None else bool(flag) for flag in given}
    explicit = [bool(flag) for flag in given if flag is not None]
    shown = f"tie_word_embeddings is {' and '.join(str(flag) for flag in given)} (root, text_config)"
    if HEAD not in subject.tensors:
        return _without_head(explicit, flags, shown, default=default)
    if True not in flags:
        return TieState(Tie.FINE, tied=False)
    same = subject.head_equals_embedding
    head, embedding = subject.tensors[HEAD].pieces[0].name, subject.tensors.get(EMBEDDING)
    if embedding is None:
        return TieState(Tie.FINE, tied=False)
    if len(flags) == 2:
        # Without the data, keeping the head is the choice that loses nothing.
        tied = same is True
        return TieState(Tie.FLAGS, tied, f"{shown}, and {head} {_verdict(same)}")
    if same is None:
        return TieState(
            Tie.UNCHECKED, True, f"the flag says tied, but {head} is there: not compared without the data"
        )
    if same:
        return TieState(Tie.REPEATS, True, f"the flag says tied, and {head} repeats the embedding")
    return TieState(Tie.DIFFERS, False, f"the flag says tied, but {head} differs from the embedding")


def _without_head(explicit: list[bool], flags: set[bool], shown: str, *, default: bool) -> TieState:
    if not explicit and not default:
        return TieState(
            Tie.FLAG_MISSING, True, "there is no lm_head and no tie_word_embeddings: the model is tied"
        )
    if True in flags and len(flags) == 2:
        return TieState(Tie.FLAGS, True, f"{shown}, and there is no lm_head")
    if True in flags:
        return TieState(Tie.FINE, tied=True)
    return TieState(Tie.HEAD_MISSING, False, "tie_word_embeddings is false, but there is no lm_head.weight")


def _verdict(same: bool | None) -> str:
    if same is None:
        return "could not be compared with the embedding without the data"
    return "repeats the embedding" if same else "differs from the embedding"
