"""The table of pre-tokenizer rules: how ``tokenizer.json`` writes them, and llama.cpp's names for them.

Left: the regexes as the models' publishers wrote them (checked against Hugging Face files, and against the
regexes that llama.cpp gives to ``unicode_regex_split`` in
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp, which cannot say ``(?i:...)`` or
``\\p{Lu}`` and paraphrases them). Right: the names that cut so, the usual one first, with what else they
imply.

To add one, append a :class:`Rule`. A rule belongs here only when llama.cpp's regex cuts the same pieces.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """One of llama.cpp's names, and what it implies beyond the cuts; ``None`` where it does not matter."""

    name: str
    ignore_merges: bool | None = None
    clean_spaces: bool | None = None
    nfc: bool | None = None


@dataclass(frozen=True)
class Rule:
    """Spellings of one way to cut, each a tuple of canonical steps, and the names that cut so."""

    spellings: tuple[tuple[str, ...], ...]
    candidates: tuple[Candidate, ...]


def canonical_regex(regex: str) -> str:
    r"""One spelling for regexes that say the same.

    Line ends may stand escaped or bare, English contractions in either order, and possessive quantifiers
    may guard what cannot backtrack anyway (the classes before and after share no character).

    >>> canonical_regex("'(?i:[sdmt]|ll|ve|re)|[^\r\n\\p{L}\\p{N}]?+\\p{L}+")
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"
    """
    contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    regex = regex.replace("\r", r"\r").replace("\n", r"\n")
    regex = regex.replace("'(?i:[sdmt]|ll|ve|re)", contractions)
    regex = regex.replace("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", contractions)
    regex = regex.replace(r"\p{N}]?+\p{L}+", r"\p{N}]?\p{L}+").replace(r"\p{N}]++[\r\n]*", r"\p{N}]+[\r\n]*")
    regex = regex.replace(r"\p{N}{1}|", r"\p{N}|")
    # `\s*` takes line ends too and gives back one: the last. A `+` after it finds nothing more.
    return regex.replace(r"\s*[\r\n]|", r"\s*[\r\n]+|")


GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_OTHERS}|{_TAIL}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_TAIL}"
)
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_OTHERS}|{_TAIL}"
_MINICPM5 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}+|{_OTHERS}|{_TAIL}"
_NO_CONTRACTIONS = rf"{_WORD}|\p{{N}}|{_OTHERS}|{_TAIL}"
_SEED_CODER = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_TAIL}"
_JAIS2 = (
    rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_OTHERS}|\s*[\r\n]+"
    + "".join(rf"|\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
    + r"|\s{1,2}(?!\S)|\s{1}"
)
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)
_DEEPSEEK_CJK = "[一-龥぀-ゟ゠-ヿ]+"
_DEEPSEEK_WORD = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"""|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
)
_DEEPSEEK_V3 = rf"{_DEEPSEEK_WORD}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_TAIL}"
_SPARK25 = rf"{_DEEPSEEK_WORD}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+"
# Letters whose Unicode normal form is another letter stand escaped: no editor may normalise them.
_DEEPSEEK_LATIN = (
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ"
    "-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126"
    "ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
    "]+"
)
_DEEPSEEK_LLM = (
    r"[\r\n]",
    _DEEPSEEK_LATIN,
    "\\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    "[一-龥ࠀ-一가-퟿]+",
    r"\p{N}",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")
_BLOOM = " ?[^(\\s|[.,!?…。，、।۔،])]+"

RULES: tuple[Rule, ...] = (
    Rule(((_QWEN2,),), (Candidate("qwen2"),)),
    Rule(((_QWEN35,),), (Candidate("qwen35"),)),
    # A Llama 3 tokenizer re-saved without ignore_merges merges its way to every token, as smaug-bpe does.
    Rule(
        ((_LLAMA3,),),
        (
            Candidate("llama-bpe", ignore_merges=True),
            Candidate("smaug-bpe", ignore_merges=False),
            Candidate("glm4", ignore_merges=True),  # as llama-bpe, but no text begins with a bos
        ),
    ),
    Rule(((_TEKKEN,),), (Candidate("tekken"),)),
    Rule(((_GPT4O,),), (Candidate("gpt-4o"),)),
    Rule(
        ((GPT2_SPLIT,),),
        (Candidate("gpt-2", nfc=False), Candidate("olmo", nfc=True)),
    ),
    # Digits one by one, then GPT-2's words.
    Rule(
        ((r"\p{N}", GPT2_SPLIT),),
        (
            Candidate("smollm", clean_spaces=False, nfc=False),
            Candidate("command-r", clean_spaces=False, nfc=True),
            Candidate("starcoder", clean_spaces=True, nfc=False),
        ),
    ),
    Rule(((r"\p{N}{1,3}", _DEEPSEEK_CJK, _DEEPSEEK_V3),), (Candidate("deepseek-v3"),)),
    Rule(((r"\p{N}{1,3}", _DEEPSEEK_CJK, _SPARK25, r"\p{N}"),), (Candidate("spark2_5"),)),
    # llama.cpp leaves digits together here; no vocabulary of these models has a token of two digits.
    Rule((_DEEPSEEK_LLM,), (Candidate("deepseek-llm"),)),
    Rule((_DEEPSEEK_CODER,), (Candidate("deepseek-coder"),)),
    Rule((("<punctuation runs>", GPT2_SPLIT, r"\p{N}+", "[0-9][0-9][0-9]"),), (Candidate("falcon"),)),
    Rule(((_BLOOM,),), (Candidate("bloom", clean_spaces=True), Candidate("poro-chat", clean_spaces=False))),
    Rule(((_BLOOM, r"\p{N}"),), (Candidate("viking"),)),
    Rule(((r"\p{N}{1,3}", _MINICPM5),), (Candidate("minicpm5"),)),
    Rule(((_SEED_CODER,),), (Candidate("seed-coder"),)),
    Rule(((_JAIS2,),), (Candidate("jais-2"),)),
    Rule(((_NO_CONTRACTIONS,),), (Candidate("ufakzeka"),)),
    # SentencePiece-style BPE: spaces become U+2581 and nothing is cut but at line ends.
    Rule(
        (
            ("<spaces to U+2581>", "<byte fallback>", "<after each space>"),
            ("<spaces to U+2581>", "<byte fallback>"),
        ),
        (Candidate("gemma4"),),
    ),
)

# Every value of tokenizer.ggml.pre that src/llama-vocab.cpp accepts for BPE; a test reads them there.
KNOWN_NAMES: frozenset[str] = frozenset(
    {
        "a.x-4.0", "afmoe", "bailingmoe", "bailingmoe2", "bloom", "chameleon", "chatglm-bpe", "codeshell",
        "cohere2moe", "command-r", "dbrx", "deepseek-coder", "deepseek-llm", "deepseek-r1-qwen",
        "deepseek-v3", "default", "exaone", "exaone-moe", "exaone4", "f2llmv2", "falcon", "falcon-h1",
        "falcon3", "gemma4", "gigachat", "glm4", "glm5", "gpt-2", "gpt-4o", "gpt3-finnish",
        "granite-docling", "granite-embed-multi-311m", "granite-embed-multi-97m", "grok-2", "hunyuan",
        "hunyuan-dense", "hy_v4", "jais", "jais-2", "jina-de", "jina-es", "jina-v1-en", "jina-v2-code",
        "jina-v2-de", "jina-v2-es", "jina-v5-nano", "joyai-llm", "kanana2", "kimi-k2", "kormo", "laguna",
        "lfm2", "llada-moe", "llama-bpe", "llama-v3", "llama3", "llama4", "megrez", "mellum", "mellum2",
        "midm-2.0", "minerva-7b", "minicpm5", "minimax-m2", "mmbert", "modern-bert", "mpt", "olmo", "phi-2",
        "pixtral", "poro-chat", "qwen2", "qwen35", "refact", "roberta-bpe", "sarvam-moe", "seed-coder",
        "smaug-bpe", "smollm", "solar-open", "spark2_5", "stablelm2", "starcoder", "superbpe", "talkie",
        "tekken", "tiny_aya", "trillion", "ufakzeka", "viking", "whitespace", "youtu",
    }
)  # fmt: skip
