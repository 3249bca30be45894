"""Quirks of embedding and output head: whether they are one, and whether there are as many rows as tokens.

Whether the head is the embedding is said by a flag, which may stand at the root, in ``text_config``, or in
both; readers differ in which they look at. Small Qwen3.5 models tie (2B, 4B), larger ones do not. Where flag
and weights disagree, the weights are right: a trained ``lm_head`` that a flag hides is lost without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qexport.doctor.draft import Draft
from qexport.doctor.quirk import Quirk
from qexport.doctor.subject import EMBEDDING, HEAD, Subject
from qexport.doctor.tokens import token_ids


@dataclass(frozen=True)
class _Tie:
    """How the repaired checkpoint is to be; the quirk that flags and head have, if any, and its sentence."""

    tied: bool
    quirk: str = ""
    what: str = ""


def _tie(subject: Subject) -> _Tie:
    """Flags and weights weighed against each other."""
    default = bool(subject.family.defaults.get("tie_word_embeddings", False))
    parts = (subject.config, subject.text) if subject.nested else (subject.config,)
    given = [part.get("tie_word_embeddings") for part in parts]
    flags = {default if flag is None else bool(flag) for flag in given}
    shown = f"tie_word_embeddings is {' and '.join(str(flag) for flag in given)} (root, text_config)"
    if HEAD not in subject.tensors:
        if given.count(None) == len(given) and not default:
            what = "there is no lm_head and no tie_word_embeddings: the model is tied"
            return _Tie(True, "tie.flag_missing", what)
        if len(flags) == 2:
            return _Tie(True, "tie.flags", f"{shown}, and there is no lm_head")
        if True in flags:
            return _Tie(True)
        what = "tie_word_embeddings is false, but there is no lm_head.weight"
        return _Tie(False, "tie.head_missing", what)
    if True not in flags or EMBEDDING not in subject.tensors:
        return _Tie(False)
    same, head = subject.head_equals_embedding, subject.tensors[HEAD].pieces[0].name
    verdict = f"{'repeats' if same else 'differs from'} the embedding"
    if len(flags) == 2:
        if same is None:
            verdict = "could not be compared with the embedding without the data"
        # Without the data, keeping the head is the choice that loses nothing.
        return _Tie(same is True, "tie.flags", f"{shown}, and {head} {verdict}")
    if same is None:
        what = f"the flag says tied, but {head} is there: not compared without the data"
        return _Tie(True, "tie.unchecked", what)
    if same:
        return _Tie(True, "tie.head_repeats", f"the flag says tied, and {head} {verdict}")
    return _Tie(False, "tie.head_differs", f"the flag says tied, but {head} {verdict}")


def _is(quirk: str) -> Callable[[Subject], str | None]:
    return lambda subject: tie.what if (tie := _tie(subject)).quirk == quirk else None


def _settle_tie(draft: Draft) -> None:
    """Write the same flag in both places, and drop a head that repeats the embedding."""
    tied = _tie(draft.subject).tied
    if tied:
        draft.tensors.pop(HEAD, None)
    draft.config["tie_word_embeddings"] = tied
    draft.text["tie_word_embeddings"] = tied


def _rows(subject: Subject, name: str = EMBEDDING) -> int | None:
    tensor = subject.tensors.get(name)
    return None if tensor is None else tensor.shape[0]


def _vocabulary(subject: Subject) -> str | None:
    rows, size = _rows(subject), subject.text.get("vocab_size", subject.family.defaults.get("vocab_size"))
    if not isinstance(size, int) or rows in (None, size):
        return None
    return f"vocab_size is {size}, but the embedding has {rows} rows"


def _count_rows(draft: Draft) -> None:
    rows = draft.tensors[EMBEDDING].shape[0]
    draft.text["vocab_size"] = rows
    if "vocab_size" in draft.config:
        draft.config["vocab_size"] = rows


def _head_rows(subject: Subject) -> str | None:
    rows, head = _rows(subject), _rows(subject, HEAD)
    return None if None in (rows, head) or rows == head else f"the embedding has {rows} rows, lm_head {head}"


def _more_tokens(subject: Subject) -> str | None:
    rows, ids = _rows(subject), token_ids(subject)
    over = [] if rows is None else [token for token, number in ids.items() if number >= rows]
    if not over:
        return None
    return f"the tokenizer has {len(over)} tokens beyond the {rows} rows of the embedding: {over[:3]}"


VOCABULARY_QUIRKS = (
    Quirk(
        "tie.flags",
        "tie_word_embeddings differs between the root and text_config",
        see=_is("tie.flags"),
        fix=_settle_tie,
        repair="The flag that fits the weights is written in both places.",
        breaks={
            "vLLM, SGLang, rtp-llm": 'repeated tokens or "!!!!": the head is not the one that was trained'
        },
        reference="https://github.com/vllm-project/vllm/pull/51063",
    ),
    Quirk(
        "tie.head_repeats",
        "tied, and the embedding stored again as lm_head",
        see=_is("tie.head_repeats"),
        fix=_settle_tie,
        repair="lm_head.weight is left out.",
        breaks={"any": "files larger than they need be"},
    ),
    Quirk(
        "tie.head_differs",
        "tied by flag, with an lm_head of its own",
        see=_is("tie.head_differs"),
        fix=_settle_tie,
        repair="The weights win: tie_word_embeddings becomes false in both places.",
        breaks={
            "transformers, llama.cpp": (
                "the trained lm_head is dropped silently and the embedding used instead"
            )
        },
    ),
    Quirk(
        "tie.unchecked",
        "tied by flag, with an lm_head that could not be compared",
        see=_is("tie.unchecked"),
        repair="Taken as tied until the data is at hand; an export compares the two.",
    ),
    Quirk(
        "tie.flag_missing",
        "no lm_head and no flag",
        see=_is("tie.flag_missing"),
        fix=_settle_tie,
        repair="tie_word_embeddings: true is written.",
        breaks={"transformers": "lm_head.weight is newly initialized", "vLLM": "repeated tokens"},
    ),
    Quirk(
        "tie.head_missing",
        "untied by flag, and no lm_head",
        error=True,
        see=_is("tie.head_missing"),
        repair=(
            "If the base ties them, set tie_word_embeddings to true in config.json; if not, lm_head was "
            "lost in saving: save the merged model again, or copy it from the base."
        ),
        breaks={
            "transformers": "lm_head.weight is newly initialized",
            "vLLM": "ValueError: Following weights were not initialized from checkpoint: {'lm_head.weight'}",
        },
        reference="https://github.com/vllm-project/vllm/issues/33359",
    ),
    Quirk(
        "vocab.rows",
        "vocab_size is not the number of embedding rows",
        see=_vocabulary,
        fix=_count_rows,
        repair="vocab_size becomes the number of rows.",
        breaks={
            "transformers": "size mismatch for model.embed_tokens.weight",
            "llama.cpp": "check_tensor_dims: tensor 'token_embd.weight' has wrong shape",
        },
    ),
    Quirk(
        "vocab.head_rows",
        "embedding and lm_head of different heights",
        error=True,
        see=_head_rows,
        repair="Resize both with `model.resize_token_embeddings(n)` where you merge, and save again.",
        breaks={"transformers": "size mismatch for lm_head.weight"},
    ),
    Quirk(
        "vocab.tokens",
        "more tokens than embedding rows",
        error=True,
        see=_more_tokens,
        repair="Copy the tokenizer that the model was trained with, or resize the embedding and train it.",
        breaks={"any": "IndexError: index out of range in self, on the first prompt with such a token"},
    ),
)
