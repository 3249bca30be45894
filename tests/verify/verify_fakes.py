"""A runtime and a reference that say what a test tells them to, and small GGUF files written here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qexport.children.failure import RuntimeFailure
from qexport.verification.reference import Scored
from qexport.verification.runtime import Generation, Predicted, Settings

VOCABULARY = 320


def steps(tokens: Sequence[int], logprob: float = -0.5) -> tuple[Predicted, ...]:
    """Each token with a clear alternative one nat behind it."""
    return tuple(Predicted(t, logprob, ((t, logprob), (t + 1000, logprob - 1.0))) for t in tokens)


def generation(
    tokens: Sequence[int] = tuple(range(24)), text: str = "A sensible answer.", **fields
) -> Generation:
    given = {"prompt_ids": (1, 2), "steps": steps(tokens), "text": text, "stop": "limit", **fields}
    return Generation(**given)


def scored(tokens: Sequence[int], logprob: float = -0.5, gap: float = 0.0) -> tuple[Scored, ...]:
    """The reference's view: it would have chosen each token, or another ``gap`` nats likelier."""
    return tuple(Scored(t, logprob, t if gap == 0 else t + 1000, logprob + gap) for t in tokens)


@dataclass
class FakeSession:
    answers: list[Generation]
    failure: RuntimeFailure | None = None
    version: str = "1.0"
    load_s: float = 0.5
    facts: dict = field(default_factory=dict)
    stops: frozenset | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def render_chat(self, messages):
        return f"<user>{messages[0]['content']}<assistant>"

    def tokenize(self, text, *, add_special):
        return tuple(text.encode()[:20])

    def source_ids(self, folder, texts, *, add_special):
        return None

    def ends(self):
        return self.stops

    def generate(self, prompt_ids, *, n_predict, n_probs):
        if self.failure is not None:
            raise self.failure
        return self.answers.pop(0)


@dataclass
class FakeRuntime:
    """Answers in order; the speed run takes one more of each kind."""

    plain: list[Generation] = field(default_factory=list)
    mtp: list[Generation] = field(default_factory=list)
    refuse: RuntimeFailure | None = None
    failure: RuntimeFailure | None = None
    name: str = "fake"
    drafts: bool = True
    facts: dict = field(default_factory=dict)
    opened: list[Settings] = field(default_factory=list)
    stops: frozenset | None = None
    ends_by_text: frozenset = frozenset()
    seer: FakeRuntime | None = None
    towers: tuple[Path, ...] = ()

    def open(self, model: Path, settings: Settings) -> FakeSession:
        self.opened.append(settings)
        if self.refuse is not None:
            raise self.refuse
        answers = list(self.mtp if settings.draft_max else self.plain)
        return FakeSession(answers, self.failure, facts=self.facts, stops=self.stops)


@dataclass
class FakeReference:
    gap: float = 0.0
    logprob: float = -0.5
    label: str = "source"
    noise: float = 0.0

    def score(self, ids, start, *, top=8):
        return scored(ids[start:], self.logprob, self.gap)


def byte_vocabulary() -> list[str]:
    """GPT-2's 256 byte tokens (every byte as a printable character), a few merges and end of text."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = {byte: chr(byte) for byte in visible}
    extra = (byte for byte in range(256) if byte not in names)
    names.update({byte: chr(256 + n) for n, byte in enumerate(extra)})
    merged = ["he", "ll", "in", "th"]
    tokens = [names[byte] for byte in range(256)] + merged
    tokens += [f"<|spare_{n}|>" for n in range(VOCABULARY - len(tokens) - 1)]
    return [*tokens, "<|end|>"]


def write_llama(
    path: Path,
    *,
    layers: int = 2,
    seed: int = 0,
    nextn: int = 0,
    context_length: int = 512,
    strings: Sequence[str] = (),
    head: bool | None = None,
    nan: bool = False,
    template: str = "",
    eos: int | None = VOCABULARY - 1,
) -> Path:
    """A random llama of a few hundred kB that llama.cpp loads and runs.

    ``nextn`` declares an MTP head, of which one tensor is there unless ``head`` is False;
    ``strings`` are metadata keys that say "many".
    """
    import gguf

    hidden, heads, inner = 64, 4, 128
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(context_length)
    for key in strings:
        writer.add_string(key, "many")
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    tokens = byte_vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (VOCABULARY - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["h e", "l l", "i n", "t h"])
    if eos is not None:
        writer.add_eos_token_id(eos)
    if template:
        writer.add_chat_template(template)
    if nextn:
        writer.add_uint32("llama.nextn_predict_layers", nextn)

    def add(name: str, *shape: int) -> None:
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.3)
        if len(shape) == 1:
            values = np.ones(shape, dtype=np.float32)
        if nan and name == "blk.0.attn_norm.weight":
            values[0] = np.nan
        writer.add_tensor(name, values)

    add("token_embd.weight", VOCABULARY, hidden)
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}.weight", hidden, hidden)
        add(f"blk.{layer}.ffn_gate.weight", inner, hidden)
        add(f"blk.{layer}.ffn_up.weight", inner, hidden)
        add(f"blk.{layer}.ffn_down.weight", hidden, inner)
        add(f"blk.{layer}.attn_norm.weight", hidden)
        add(f"blk.{layer}.ffn_norm.weight", hidden)
    if nextn and head is not False:
        add(f"blk.{layers}.nextn.eh_proj.weight", hidden, 2 * hidden)
    add("output_norm.weight", hidden)
    add("output.weight", VOCABULARY, hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokenizer_json() -> bytes:
    """The same vocabulary as ``write_llama``'s, as the source's tokenizer.json (Qwen2's pre-tokenizer)."""
    pattern = (
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
        "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
    )
    names = byte_vocabulary()
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    document = {
        "version": "1.0",
        "added_tokens": [{"id": VOCABULARY - 1, "content": "<|end|>", **added}],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "decoder": level,
        "model": {
            "type": "BPE",
            "vocab": {name: at for at, name in enumerate(names)},
            "merges": [["h", "e"], ["l", "l"], ["i", "n"], ["t", "h"]],
        },
    }
    return json.dumps(document).encode()
