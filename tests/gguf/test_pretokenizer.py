"""Rules are recognised however they are written; what cuts differently is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import zoo_tokenizers
from oracle import toolchain
from tokenizers import Regex as Pattern
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from qexport.errors import InputError, UsageProblem
from qexport.formats.gguf.pretokenizer import check_name, recognise
from qexport.formats.gguf.pretokenizer_rules import GPT2_SPLIT, KNOWN_NAMES, RULES

LLAMA3 = zoo_tokenizers.LLAMA3_SPLIT
QWEN2 = zoo_tokenizers.QWEN2_SPLIT
QWEN35 = zoo_tokenizers.QWEN35_SPLIT


def tokenizer_json(
    *steps: Any, normalizer: Any = None, ignore_merges: bool = False, byte_fallback: bool = False
) -> dict[str, Any]:
    """What `tokenizers` itself writes for these steps."""
    model = models.BPE({"a": 0}, [], ignore_merges=ignore_merges, byte_fallback=byte_fallback)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(steps)) if len(steps) != 1 else steps[0]
    return json.loads(tokenizer.to_str())


def split(regex: str, behavior: str = "isolated", invert: bool = False) -> Any:
    return pre_tokenizers.Split(Pattern(regex), behavior, invert)


def byte_level(use_regex: bool = False, add_prefix_space: bool = False) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex)


def name_of(*steps: Any, clean: bool | None = None, **options: Any) -> str:
    return recognise(tokenizer_json(*steps, **options), cleans_up_spaces=clean, label="x")


DIGITS = pre_tokenizers.Digits(individual_digits=True)
UP, LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UP}*{LOW}+|[^\r\n\p{{L}}\p{{N}}]?{UP}+{LOW}*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{TAIL}"
)
SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UP}*{LOW}+{SHORT}?|[^\r\n\p{{L}}\p{{N}}]?{UP}+{LOW}*{SHORT}?|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{TAIL}"
)
DEEPSEEK = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)


def test_published_rules() -> None:
    nfc = normalizers.NFC()
    assert name_of(split(QWEN2), byte_level(), normalizer=nfc) == "qwen2"
    assert name_of(split(QWEN35), byte_level(), normalizer=nfc) == "qwen35"
    assert name_of(split(LLAMA3), byte_level(), ignore_merges=True) == "llama-bpe"
    assert name_of(split(LLAMA3), byte_level()) == "smaug-bpe"
    assert name_of(split(TEKKEN), byte_level()) == "tekken"
    assert name_of(split(GPT4O), byte_level()) == "gpt-4o"
    assert name_of(DIGITS, byte_level(use_regex=True)) == "smollm"
    assert name_of(DIGITS, byte_level(use_regex=True), clean=True) == "starcoder"
    assert name_of(DIGITS, byte_level(use_regex=True), clean=False, normalizer=nfc) == "command-r"
    assert name_of(byte_level(use_regex=True)) == "gpt-2"
    assert name_of(byte_level(use_regex=True), normalizer=nfc) == "olmo"
    assert (
        name_of(
            split(r"\p{N}{1,3}"),
            split("[一-龥぀-ゟ゠-ヿ]+"),
            split(DEEPSEEK),
            byte_level(),
            normalizer=normalizers.Sequence([]),
        )
        == "deepseek-v3"
    )
    falcon = (
        pre_tokenizers.Punctuation("contiguous"),
        byte_level(use_regex=True),
        pre_tokenizers.Digits(individual_digits=False),
        split("[0-9][0-9][0-9]"),
    )
    assert name_of(*falcon) == "falcon"
    spaces = normalizers.Replace(" ", "▁")
    gemma = pre_tokenizers.Split(" ", "merged_with_previous")
    assert name_of(gemma, normalizer=spaces, byte_fallback=True) == "gemma4"


def test_equal_rules_written_otherwise() -> None:
    assert name_of(split(LLAMA3, "removed", True), byte_level(), ignore_merges=True) == "llama-bpe"
    assert name_of(split(GPT2_SPLIT), byte_level()) == "gpt-2"
    assert name_of(split(r"\p{N}"), byte_level(use_regex=True)) == "smollm"
    assert name_of(split(QWEN2.replace(r"\r\n", "\r\n")), byte_level()) == "qwen2"
    possessive = QWEN2.replace(r"\p{N}]?\p{L}", r"\p{N}]?+\p{L}").replace(r"\p{N}]+[", r"\p{N}]++[")
    possessive = possessive.replace(SHORT, "'(?i:[sdmt]|ll|ve|re)").replace(r"\s*[\r\n]+", r"\s*[\r\n]")
    assert name_of(split(possessive), byte_level()) == "qwen2"
    nested = pre_tokenizers.Sequence([pre_tokenizers.Sequence([split(QWEN35)]), byte_level()])
    assert name_of(nested) == "qwen35"


@pytest.mark.parametrize(
    "steps",
    [
        (split(QWEN2, "merged_with_next"), byte_level()),
        (split(QWEN2, "removed", False), byte_level()),
        (split(QWEN2), byte_level(add_prefix_space=True)),
        (split(QWEN2), byte_level(use_regex=True)),
        (split(QWEN2),),
        (split(QWEN2.replace("{L}+", "{L}*")), byte_level()),
        (pre_tokenizers.Whitespace(), byte_level()),
        (pre_tokenizers.Metaspace(),),
    ],
)
def test_other_rules_are_refused(steps: tuple[Any, ...]) -> None:
    with pytest.raises(InputError, match=r"no pre-tokenizer of llama\.cpp") as caught:
        name_of(*steps)
    assert "--pre-tokenizer" in str(caught.value)
    assert "pre-tokenizer: {'type': " in caught.value.message


def test_normalizers_that_change_text_are_refused() -> None:
    for normalizer in (normalizers.Lowercase(), normalizers.NFKC(), normalizers.Replace("a", "b")):
        with pytest.raises(InputError):
            name_of(split(QWEN2), byte_level(), normalizer=normalizer)


TEXTS = [
    "I've 3 33 333 3333 I'LL  do\n\n it 3.14!!\t x  \r\n end  ",
    "Ünïcödé ñandú কান্তে नमस्ते 我想在apple工作1314 한국어 ''''``` \"\"\"...... 🚀😶‍🌫️ é",
    "def f(x):\n    return x**2  # ok\n\n\n\t\tif a != b: pass/\n/\r",
]


def test_removed_and_possessive_cut_the_same() -> None:
    """The equalities that `canonical_regex` and `_step` claim, seen by `tokenizers`."""
    possessive = QWEN2.replace(r"\p{N}]?\p{L}", r"\p{N}]?+\p{L}").replace(r"\p{N}]+[", r"\p{N}]++[")
    possessive = possessive.replace(SHORT, "'(?i:[sdmt]|ll|ve|re)").replace(r"\s*[\r\n]+", r"\s*[\r\n]")
    pairs = [
        (split(QWEN2), split(possessive)),
        (split(QWEN2), split(QWEN2, "removed", True)),
        (split(GPT4O), split(GPT4O, "removed", True)),
        (split(r"\p{N}"), DIGITS),
        (pre_tokenizers.Sequence([split(GPT2_SPLIT), byte_level()]), byte_level(use_regex=True)),
    ]
    for text in TEXTS:
        for one, other in pairs:
            assert one.pre_tokenize_str(text) == other.pre_tokenize_str(text)


def test_names() -> None:
    assert {c.name for rule in RULES for c in rule.candidates} <= KNOWN_NAMES
    assert check_name("qwen35") == "qwen35"
    with pytest.raises(UsageProblem, match="no pre-tokenizer named 'qwen99'"):
        check_name("qwen99")
    spellings = [spelling for rule in RULES for spelling in rule.spellings]
    assert len(spellings) == len(set(spellings))


@pytest.mark.toolchain
@pytest.mark.skipif(not toolchain.has_tree(), reason=toolchain.NO_TREE)
def test_names_are_llama_cpps() -> None:
    source = (toolchain.tree() / "src" / "llama-vocab.cpp").read_text(encoding="utf-8")
    assert set(re.findall(r'tokenizer_pre == "([^"]+)"', source)) == set(KNOWN_NAMES)


@pytest.mark.toolchain
@pytest.mark.skipif(not toolchain.has_tree(), reason=toolchain.NO_TREE)
def test_deepseek_llm_has_llama_cpps_letters() -> None:
    """The one regex that names its letters one by one."""
    source = (toolchain.tree() / "src" / "llama-vocab.cpp").read_text(encoding="utf-8")
    (rule,) = (rule for rule in RULES if rule.candidates[0].name == "deepseek-llm")
    assert rule.spellings[0][1].replace("\\", "\\\\") in source
    assert name_of(*map(split, rule.spellings[0][:-1]), DIGITS, byte_level()) == "deepseek-llm"
