"""Where llama.cpp ends a reply: at three ids that a file can name, and at tokens that it knows by their text.

A byte-level BPE file that names no eos gets token 11 from llama.cpp, a comma in most vocabularies, and every
reply ends there. What is known by text needs no id, and cannot be taken back by one
(``llama_vocab::impl::load`` in https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qexport.errors import InputError

if TYPE_CHECKING:
    from qexport.formats.gguf.special_tokens import SpecialTokens
    from qexport.formats.gguf.vocabulary import Vocabulary


KNOWN_BY_TEXT = frozenset(
    (
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
        "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
        "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
        "<｜end▁of▁sentence｜>", "[e~[",
        # Tokens of filling in the middle: padding, repository, file.
        "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>",
        "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
    )
)  # fmt: skip
# In a SentencePiece file that names none, llama.cpp takes this token.
_SPM_EOS, _SPM_EOS_TEXT = 2, "</s>"


def complete_ends(special: SpecialTokens, ends: Sequence[int], vocabulary: Vocabulary, label: str) -> None:
    """Give the file every id at which the source ends a reply.

    Args:
        special: what the tokenizer's own files name; completed here.
        ends: ids at which the source ends one, the most important first.

    Raises:
        InputError: there is no end of text, or more of them than a file can name.
    """
    tokens = vocabulary.tokens
    if "eos" not in special.ids and ends:
        special.ids["eos"] = ends[0]
    if "eos" not in special.ids and (
        vocabulary.scores is None or tokens[_SPM_EOS : _SPM_EOS + 1] != [_SPM_EOS_TEXT]
    ):
        raise InputError(
            f"{label}: no file says which token ends a text, and llama.cpp would guess one",
            hint="Name it: eos_token (a token of tokenizer.json) in tokenizer_config.json, or eos_token_id "
            "in generation_config.json.",
        )
    more = [end for end in ends if end not in special.ids.values() and tokens[end] not in KNOWN_BY_TEXT]
    free = [kind for kind in ("eot", "eom") if kind not in special.ids]
    if len(more) > len(free):
        lost = ", ".join(f"{tokens[end]} ({end})" for end in more[len(free) :])
        raise InputError(
            f"{label}: a reply ends at more tokens than a GGUF can name, beyond what llama.cpp knows: {lost}",
            hint="Take those that are no ends out of eos_token_id in generation_config.json.",
        )
    special.ids.update(zip(free, more, strict=False))
