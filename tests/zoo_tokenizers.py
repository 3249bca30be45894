"""Tiny tokenizers, made the same on every machine.

A trained tokenizer depends on the trainer's version, so nothing here calls one: a page of our own text is
merged by the few lines of byte-pair encoding below, and the result is laid out as each family's publisher
lays it out (normaliser, pre-tokeniser, special tokens, template, files). `write(kind, folder)` puts the files
down and returns what a config needs to know: the number of tokens and the ids of bos, eos and pad.

The SentencePiece files are protobuf messages written by hand; `tokenizer.json` beside them holds the same
pieces.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXT = """
The river runs past the mill, and the mill grinds the grain that the farmers bring in the autumn.
When the water is low the miller waits; when the water is high she opens the gate and lets it run
around the wheel. Her daughter keeps the books: how many sacks came, how many went, what was paid
and what is still owed. She writes the numbers in a small, even hand, and at the end of every month
she adds them up twice, because the first sum and the second sum must agree.
def total(sacks, price):
    return sum(sack * price for sack in sacks)
for name, owed in ledger.items():
    if owed > 0:
        print(name, owed)
El río pasa junto al molino y el molino muele el grano. Der Fluss fließt an der Mühle
vorbei, und die Mühle mahlt das Korn. La rivière passe devant le moulin, et le moulin moud
le grain. Река течёт мимо мельницы. 河水流过磨坊。水车转动。 The question is simple: what happens to
the water after the wheel? It goes on to the sea, as it would have gone without the wheel,
only a little later and a little warmer. The answer is that nothing is lost except the
time that it took.
"""

CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
QWEN35_TEMPLATE = (
    "{%- if tools %}{{- '<|im_start|>system\\n# Tools\\n' }}"
    "{%- for tool in tools %}{{- tool | tojson }}{{- '\\n' }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- else %}{{- '<think>\\n' }}{%- endif %}{%- endif %}"
)
LLAMA3_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{- message['content'] + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
INST_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{- '[INST] ' + message['content'] + ' [/INST]' }}"
    "{%- else %}{{- ' ' + message['content'] + eos_token }}{%- endif %}{%- endfor %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{%- for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}"
    "{{ message['content'] | trim }}{{ '<end_of_turn>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{%- endif %}"
)

# Split rules, as published.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN35_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class TokenizerInfo:
    """What a model config has to know about its tokenizer."""

    size: int
    bos: int | None
    eos: int
    pad: int | None
    ids: dict[str, int]
    pre: str | None
    """llama.cpp's name for the pre-tokeniser (`tokenizer.ggml.pre`), None for SentencePiece."""


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {b: chr(b) for b in plain}
    others = [b for b in range(256) if b not in table]
    table.update({b: chr(256 + n) for n, b in enumerate(others)})
    return table


def _merges(words: Counter[tuple[str, ...]], count: int) -> list[tuple[str, str]]:
    """The `count` most frequent pairs, merged one after the other; ties go to the smaller pair."""
    table = dict(words)
    found: list[tuple[str, str]] = []
    while len(found) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, n in table.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += n
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        found.append(best)
        merged: dict[tuple[str, ...], int] = {}
        for word, n in table.items():
            out: list[str] = []
            i = 0
            while i < len(word):
                if word[i : i + 2] == best:
                    out.append(word[i] + word[i + 1])
                    i += 2
                else:
                    out.append(word[i])
                    i += 1
            merged[tuple(out)] = merged.get(tuple(out), 0) + n
        table = merged
    return found


def _words() -> list[str]:
    """Runs of letters with the space before them: merges inside these fit every split rule above."""
    words: list[str] = []
    for line in TEXT.split("\n"):
        word = ""
        for char in line:
            if char.isalpha():
                word += char
                continue
            if word.strip():
                words.append(word)
            word = " " if char == " " else ""
        if word.strip():
            words.append(word)
    return words


def _byte_level(merges: int) -> tuple[dict[str, int], list[list[str]]]:
    """Vocabulary (256 bytes, then one token per merge) and merges of a byte-level BPE."""
    table = _byte_alphabet()
    words: Counter[tuple[str, ...]] = Counter(tuple(table[b] for b in w.encode()) for w in _words())
    pairs = _merges(words, merges)
    vocab: dict[str, int] = {}
    for token in [*sorted(table.values()), *(a + b for a, b in pairs)]:
        vocab.setdefault(token, len(vocab))
    return vocab, [list(pair) for pair in pairs]


def _added(tokens: dict[str, int], plain: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    return [
        {
            "id": i,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": text not in plain,
        }
        for text, i in sorted(tokens.items(), key=lambda item: item[1])
    ]


def _decoder_table(added: list[dict[str, Any]]) -> dict[str, Any]:
    """`added_tokens_decoder`, as transformers 4 wrote it into tokenizer_config.json."""
    return {str(row["id"]): {k: v for k, v in row.items() if k != "id"} for row in added}


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _tokenizer_json(
    model: dict[str, Any],
    added: list[dict[str, Any]],
    *,
    normalizer: dict[str, Any] | None,
    pre_tokenizer: dict[str, Any] | None,
    post_processor: dict[str, Any] | None,
    decoder: dict[str, Any],
) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": decoder,
        "model": model,
    }


def _bpe(vocab: dict[str, int], merges: list[list[str]], **changes: Any) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **changes,
        "vocab": vocab,
        "merges": merges,
    }


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
BYTE_DECODER = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def _template(token: str, number: int) -> dict[str, Any]:
    """The post-processor that puts one token in front."""
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    second = {"SpecialToken": {"id": token, "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            first,
            {"Sequence": {"id": "A", "type_id": 0}},
            second,
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


# --- Qwen ------------------------------------------------------------------------------------------------

QWEN_SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
    "<think>", "</think>",
)  # fmt: skip
QWEN_PLAIN = QWEN_SPECIALS[7:]
"""Added, but not marked special in the published files."""


def _write_qwen(out: Path, *, split: str, template: str, style: str, pre: str) -> TokenizerInfo:
    vocab, merges = _byte_level(128)
    ids = {text: len(vocab) + n for n, text in enumerate(QWEN_SPECIALS)}
    saved = style == "saved"
    added = _added(ids, QWEN_PLAIN)
    trivial = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }
    document = _tokenizer_json(
        _bpe(vocab, merges),
        added,
        normalizer={"type": "NFC"},
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [_split(split), {**BYTE_LEVEL, "trim_offsets": saved}],
        },
        post_processor=trivial if saved else BYTE_LEVEL,
        decoder=BYTE_DECODER if saved else BYTE_LEVEL,
    )
    _dump(out / "tokenizer.json", document)
    config: dict[str, Any]
    if saved:
        config = {
            "backend": "tokenizers",
            "eos_token": "<|im_end|>",
            "model_max_length": 1000000000000000019884624838656,
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "TokenizersBackend",
        }
        (out / "chat_template.jinja").write_text(template, encoding="utf-8")
    else:
        config = {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": _decoder_table(added),
            "bos_token": None,
            "chat_template": template,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 131072,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        }
        _dump(out / "vocab.json", vocab)
        lines = "\n".join(" ".join(pair) for pair in merges)
        (out / "merges.txt").write_text(f"#version: 0.2\n{lines}\n", encoding="utf-8")
    _dump(out / "tokenizer_config.json", config)
    return TokenizerInfo(
        size=len(vocab) + len(ids),
        bos=None,
        eos=ids["<|im_end|>"],
        pad=ids["<|endoftext|>"],
        ids=ids,
        pre=pre,
    )


# --- Llama 3 and SmolLM ----------------------------------------------------------------------------------

LLAMA3_SPECIALS = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
    "<|python_tag|>",
)  # fmt: skip


def _write_llama3(out: Path, style: str) -> TokenizerInfo:
    vocab, merges = _byte_level(110)
    ids = {text: len(vocab) + n for n, text in enumerate(LLAMA3_SPECIALS)}
    bos = "<|begin_of_text|>"
    added = _added(ids)
    document = _tokenizer_json(
        _bpe(vocab, merges, ignore_merges=True),
        added,
        normalizer=None,
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [_split(LLAMA3_SPLIT), {**BYTE_LEVEL, "trim_offsets": True}],
        },
        post_processor={
            "type": "Sequence",
            "processors": [{**BYTE_LEVEL, "trim_offsets": True, "use_regex": True}, _template(bos, ids[bos])],
        },
        decoder=BYTE_DECODER,
    )
    _dump(out / "tokenizer.json", document)
    config: dict[str, Any] = {
        "bos_token": bos,
        "clean_up_tokenization_spaces": True,
        "eos_token": "<|eot_id|>",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 131072,
    }
    if style == "saved":
        config |= {"backend": "tokenizers", "tokenizer_class": "TokenizersBackend"}
        (out / "chat_template.jinja").write_text(LLAMA3_TEMPLATE, encoding="utf-8")
    else:
        config |= {
            "added_tokens_decoder": _decoder_table(added),
            "chat_template": LLAMA3_TEMPLATE,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        _dump(out / "special_tokens_map.json", {"bos_token": bos, "eos_token": "<|eot_id|>"})
    _dump(out / "tokenizer_config.json", config)
    return TokenizerInfo(
        size=len(vocab) + len(ids), bos=ids[bos], eos=ids["<|eot_id|>"], pad=None, ids=ids, pre="llama-bpe"
    )


GLM_SPECIALS = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>",
    "<|assistant|>", "<|observation|>", "<think>", "</think>",
)  # fmt: skip
GLM_PLAIN = GLM_SPECIALS[10:]
GLM_TEMPLATE = (
    "[gMASK]<sop>{%- for message in messages %}"
    "{{- '<|' + message['role'] + '|>\\n' + message['content'] }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"
)


def _write_glm(out: Path, style: str) -> TokenizerInfo:
    """Llama 3's way to cut; texts begin with two tokens that the template writes, replies end at three."""
    vocab, merges = _byte_level(116)
    ids = {text: len(vocab) + n for n, text in enumerate(GLM_SPECIALS)}
    added = _added(ids, GLM_PLAIN)
    document = _tokenizer_json(
        _bpe(vocab, merges, ignore_merges=True),
        added,
        normalizer=None,
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [_split(LLAMA3_SPLIT), {**BYTE_LEVEL, "trim_offsets": True}],
        },
        post_processor={**BYTE_LEVEL, "trim_offsets": True, "use_regex": True},
        decoder=BYTE_DECODER,
    )
    _dump(out / "tokenizer.json", document)
    config: dict[str, Any] = {
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "model_max_length": 128000,
        "pad_token": "<|endoftext|>",
    }
    (out / "chat_template.jinja").write_text(GLM_TEMPLATE, encoding="utf-8")
    if style == "saved":
        config |= {"backend": "tokenizers", "tokenizer_class": "TokenizersBackend"}
    else:
        config |= {
            "added_tokens_decoder": _decoder_table(added),
            "do_lower_case": False,
            "padding_side": "left",
            "remove_space": False,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
    _dump(out / "tokenizer_config.json", config)
    end = ids["<|endoftext|>"]
    return TokenizerInfo(size=len(vocab) + len(ids), bos=None, eos=end, pad=end, ids=ids, pre="glm4")


SMOLLM_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>")


def _write_smollm(out: Path, style: str) -> TokenizerInfo:
    """GPT-2 byte-level BPE whose special tokens come first and are also part of the vocabulary."""
    base, merges = _byte_level(90)
    ids = {text: n for n, text in enumerate(SMOLLM_SPECIALS)}
    vocab = {**ids, **{token: n + len(ids) for token, n in base.items()}}
    added = _added(ids)
    document = _tokenizer_json(
        _bpe(vocab, merges),
        added,
        normalizer=None,
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {**BYTE_LEVEL, "trim_offsets": True, "use_regex": True},
            ],
        },
        post_processor=None,
        decoder=BYTE_DECODER,
    )
    _dump(out / "tokenizer.json", document)
    config: dict[str, Any] = {
        "add_prefix_space": False,
        "bos_token": "<|im_start|>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 8192,
        "pad_token": "<|im_end|>",
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": "<|endoftext|>",
        "vocab_size": len(vocab),
    }
    if style == "saved":
        config |= {"backend": "tokenizers", "tokenizer_class": "TokenizersBackend"}
        (out / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    else:
        config |= {
            "added_tokens_decoder": _decoder_table(added),
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "chat_template": CHATML,
        }
        _dump(out / "vocab.json", vocab)
        lines = "\n".join(" ".join(pair) for pair in merges)
        (out / "merges.txt").write_text(f"#version: 0.2\n{lines}\n", encoding="utf-8")
    _dump(out / "tokenizer_config.json", config)
    return TokenizerInfo(
        size=len(vocab),
        bos=ids["<|im_start|>"],
        eos=ids["<|im_end|>"],
        pad=ids["<|im_end|>"],
        ids=ids,
        pre="smollm",
    )


# --- SentencePiece ---------------------------------------------------------------------------------------

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"


def _varint(n: int) -> bytes:
    out = b""
    while n > 0x7F:
        out += bytes([n & 0x7F | 0x80])
        n >>= 7
    return out + bytes([n])


def _field(number: int, value: int | bytes | float) -> bytes:
    """One protobuf field: an integer as varint, a float as fixed32, bytes with their length."""
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(value & 0xFFFFFFFFFFFFFFFF)


def _model_proto(pieces: list[tuple[str, float, int]], special: dict[str, int], dummy_prefix: bool) -> bytes:
    """A `ModelProto`: pieces, trainer_spec (BPE with byte fallback), normalizer_spec (identity)."""
    body = b""
    for text, score, kind in pieces:
        piece = _field(1, text.encode()) + _field(2, score)
        body += _field(1, piece if kind == NORMAL else piece + _field(3, kind))
    trainer = _field(3, 2) + _field(4, len(pieces)) + _field(35, 1)
    for number, name in ((40, "unk"), (41, "bos"), (42, "eos"), (43, "pad")):
        trainer += _field(number, special.get(name, -1))
    for number, name in ((45, "unk"), (46, "bos"), (47, "eos"), (48, "pad")):
        if name in special:
            trainer += _field(number, pieces[special[name]][0].encode())
    normalizer = (
        _field(1, b"identity") + _field(2, b"") + _field(3, int(dummy_prefix)) + _field(4, 0) + _field(5, 1)
    )
    return body + _field(2, trainer) + _field(3, normalizer)


def _pieces(count: int) -> tuple[list[str], list[str]]:
    """Merged pieces, best first, and the single characters, most frequent first."""
    words = Counter(tuple(word.replace(" ", SPACE)) for word in _words())
    merged: list[str] = []
    for a, b in _merges(words, count):
        if a + b not in merged:
            merged.append(a + b)
    chars = Counter(TEXT.replace(" ", SPACE).replace("\n", ""))
    return merged, sorted(chars, key=lambda char: (-chars[char], char))[:80]


def _all_merges(vocab: dict[str, int], merged: list[str]) -> list[list[str]]:
    """Every way to put a merged piece together from two others, as transformers' converter lists them."""
    merges: list[list[str]] = []
    for piece in merged:
        ways = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        ways = [way for way in ways if way[0] in vocab and way[1] in vocab]
        merges.extend(list(way) for way in sorted(ways, key=lambda way: (vocab[way[0]], vocab[way[1]])))
    return merges


SPM_DECODER = [
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]


def _write_llama2(out: Path, style: str) -> TokenizerInfo:
    """Llama 2 and Mistral: <unk>, <s>, </s>, 256 bytes, merged pieces, characters; a space goes in front."""
    merged, chars = _pieces(80)
    pieces: list[tuple[str, float, int]] = [
        ("<unk>", 0.0, UNKNOWN),
        ("<s>", 0.0, CONTROL),
        ("</s>", 0.0, CONTROL),
    ]
    pieces += [(f"<0x{b:02X}>", 0.0, BYTE) for b in range(256)]
    pieces += [(text, -float(n), NORMAL) for n, text in enumerate([*merged, *chars])]
    vocab = {text: n for n, (text, _, _) in enumerate(pieces)}
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2}
    added = _added(ids)
    (out / "tokenizer.model").write_bytes(
        _model_proto(pieces, {"unk": 0, "bos": 1, "eos": 2}, dummy_prefix=True)
    )
    document = _tokenizer_json(
        _bpe(vocab, _all_merges(vocab, merged), unk_token="<unk>", fuse_unk=True, byte_fallback=True),
        added,
        normalizer={
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        pre_tokenizer=None,
        post_processor=_template("<s>", 1),
        decoder={
            "type": "Sequence",
            "decoders": [*SPM_DECODER, {"type": "Strip", "content": " ", "start": 1, "stop": 0}],
        },
    )
    _dump(out / "tokenizer.json", document)
    config: dict[str, Any] = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": False,
        "model_max_length": 4096,
        "pad_token": None,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
    }
    if style == "saved":
        config |= {"backend": "tokenizers"}
        (out / "chat_template.jinja").write_text(INST_TEMPLATE, encoding="utf-8")
    else:
        config |= {"added_tokens_decoder": _decoder_table(added), "chat_template": INST_TEMPLATE}
        _dump(
            out / "special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        )
    _dump(out / "tokenizer_config.json", config)
    return TokenizerInfo(size=len(pieces), bos=1, eos=2, pad=None, ids=ids, pre=None)


def _write_gemma(out: Path, style: str) -> TokenizerInfo:
    """Gemma: <pad>, <eos>, <bos>, <unk>, user-defined pieces (turns, newlines), bytes; no space in front."""
    merged, chars = _pieces(80)
    pieces: list[tuple[str, float, int]] = [
        ("<pad>", 0.0, CONTROL), ("<eos>", 0.0, CONTROL), ("<bos>", 0.0, CONTROL), ("<unk>", 0.0, UNKNOWN),
        ("<mask>", 0.0, USER_DEFINED), ("<unused0>", 0.0, USER_DEFINED), ("<unused1>", 0.0, USER_DEFINED),
        ("<start_of_turn>", 0.0, USER_DEFINED), ("<end_of_turn>", 0.0, USER_DEFINED),
        ("\n", 0.0, USER_DEFINED), ("\n\n", 0.0, USER_DEFINED), (SPACE * 2, 0.0, USER_DEFINED),
    ]  # fmt: skip
    user = len(pieces)
    pieces += [(f"<0x{b:02X}>", 0.0, BYTE) for b in range(256)]
    pieces += [(text, -float(n), NORMAL) for n, text in enumerate([*merged, *chars])]
    vocab = {text: n for n, (text, _, _) in enumerate(pieces)}
    ids = {text: n for n, (text, _, _) in enumerate(pieces[:user])}
    added = _added(ids, ("<mask>", "<unused0>", "<unused1>", "\n", "\n\n", SPACE * 2))
    special = {"unk": 3, "bos": 2, "eos": 1, "pad": 0}
    (out / "tokenizer.model").write_bytes(_model_proto(pieces, special, dummy_prefix=False))
    document = _tokenizer_json(
        _bpe(
            vocab,
            [[SPACE, SPACE], *_all_merges(vocab, merged)],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        ),
        added,
        normalizer={"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        pre_tokenizer={
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        post_processor=_template("<bos>", 2),
        decoder={"type": "Sequence", "decoders": SPM_DECODER},
    )
    _dump(out / "tokenizer.json", document)
    config: dict[str, Any] = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<bos>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<eos>",
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": "<pad>",
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": "<unk>",
    }
    if style == "saved":
        config |= {"backend": "tokenizers"}
        (out / "chat_template.jinja").write_text(GEMMA_TEMPLATE, encoding="utf-8")
    else:
        config |= {"added_tokens_decoder": _decoder_table(added), "chat_template": GEMMA_TEMPLATE}
        names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
        _dump(out / "special_tokens_map.json", names)
    _dump(out / "tokenizer_config.json", config)
    return TokenizerInfo(size=len(pieces), bos=2, eos=1, pad=0, ids=ids, pre=None)


KINDS = ("qwen35", "qwen2", "llama3", "smollm", "llama2", "glm", "gemma")


def write(kind: str, out: Path, style: str = "published") -> TokenizerInfo:
    """Write one tokenizer's files; `style` is "published" (as the author did) or "saved" (transformers 5)."""
    out.mkdir(parents=True, exist_ok=True)
    match kind:
        case "qwen35":
            return _write_qwen(out, split=QWEN35_SPLIT, template=QWEN35_TEMPLATE, style=style, pre="qwen35")
        case "qwen2":
            return _write_qwen(out, split=QWEN2_SPLIT, template=CHATML, style=style, pre="qwen2")
        case "llama3":
            return _write_llama3(out, style)
        case "smollm":
            return _write_smollm(out, style)
        case "glm":
            return _write_glm(out, style)
        case "llama2":
            return _write_llama2(out, style)
        case "gemma":
            return _write_gemma(out, style)
        case _:
            raise ValueError(f"no tokenizer {kind!r}; there are {', '.join(KINDS)}")
