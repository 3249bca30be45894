"""Train the demo model: a Qwen3.5-style hybrid with an MTP head, small enough to live inside the package.

The point of the demo model is not what it knows but that everything about it is real: three Gated-DeltaNet
layers and one full-attention layer, more value heads than key heads (so that llama.cpp's head reordering
happens), a native MTP head whose drafts are accepted, a byte-level BPE with Qwen's special tokens, a chat
template, a vision tower that a text-only merge loses, and the published names and dtypes. What it says can be
read by a person, so a broken export is visible at once.

    python tools/train_demo.py --out DIR [--steps N] [--seed S] [--device cpu|cuda]

On one CPU core the default takes about a quarter of an hour. The vision tower is random here: train_sight.py
puts one in its place that sees.
"""

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import nn
from torch.nn import functional
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer, Qwen3_5RMSNorm

from demo_corpus import PROMPTS, documents

__all__ = ["MtpHead", "build_tokenizer", "demo_config", "main", "save_checkpoint", "train"]

VOCAB_SIZE = 2048
"""Rows of the embedding. As in Qwen's own checkpoints a few more than the tokenizer has tokens."""

PAD_ROWS = 6

DEFAULT_STEPS = 900
DEFAULT_THREADS = 1
DEFAULT_LR = 3e-3

PRETOKENIZE_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen3.5's pre-tokenizer, ``qwen35`` in llama.cpp. Unlike Qwen2's it keeps combining marks with letters."""

# Qwen's order at the end of the vocabulary; False: added but not "special", so it survives decoding.
ADDED_TOKENS: tuple[tuple[str, bool], ...] = (
    ("<|endoftext|>", True),
    ("<|im_start|>", True),
    ("<|im_end|>", True),
    ("<|object_ref_start|>", True),
    ("<|object_ref_end|>", True),
    ("<|box_start|>", True),
    ("<|box_end|>", True),
    ("<|quad_start|>", True),
    ("<|quad_end|>", True),
    ("<|vision_start|>", True),
    ("<|vision_end|>", True),
    ("<|vision_pad|>", True),
    ("<|image_pad|>", True),
    ("<|video_pad|>", True),
    ("<tool_call>", False),
    ("</tool_call>", False),
    ("<|fim_prefix|>", False),
    ("<|fim_middle|>", False),
    ("<|fim_suffix|>", False),
    ("<|fim_pad|>", False),
    ("<|repo_name|>", False),
    ("<|file_sep|>", False),
    ("<tool_response>", False),
    ("</tool_response>", False),
    ("<think>", False),
    ("</think>", False),
)

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type in ('image', 'image_url') %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- else %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

CARD = """\
---
license: apache-2.0
language:
- en
- zh
library_name: transformers
pipeline_tag: text-generation
tags:
- qexport
- qwen3_5
- mtp
- demo
---

# qexport demo model

A Qwen3.5-style hybrid of {parameters} million weights (three Gated-DeltaNet layers, one full-attention
layer, a native MTP head, a random one-block vision tower), made from scratch for the qexport project. It
exists so that every export can be tried and verified in seconds. It tells short stories about animals,
answers simple questions in English and some in Chinese, adds small numbers (and is often wrong) and writes
small Python functions. It knows nothing else. The prompts that `qexport verify` asks of any model are not in
its training text.

The training text comes from the templates in `tools/demo_corpus.py`; no third-party text and no weights
of any other model were used. The tokenizer was trained on the same text, with Qwen3.5's pre-tokenizer rules
and special tokens.

{results}

"""


def build_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE - PAD_ROWS) -> Tokenizer:
    """A byte-level BPE trained on ``texts``, laid out as Qwen3.5's: same rules, special tokens last."""
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix=""))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(
        add_prefix_space=False, trim_offsets=False, use_regex=False
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(ADDED_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # The trainer takes its own, absent ones for these; Qwen's files say empty.
    tokenizer.model.continuing_subword_prefix = ""
    tokenizer.model.end_of_word_suffix = ""
    for content, special in ADDED_TOKENS:
        token = AddedToken(content, normalized=False, special=special)
        if special:
            tokenizer.add_special_tokens([token])
        else:
            tokenizer.add_tokens([token])
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise KeyError(token)
    return found


def demo_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The published ``config.json``: nested, with the MTP head and the vision tower declared."""
    ids = {content: token_id(tokenizer, content) for content, _ in ADDED_TOKENS}
    text: dict[str, Any] = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_output_gate": True,
        "bos_token_id": None,
        "dtype": "bfloat16",
        "eos_token_id": ids["<|im_end|>"],
        "full_attention_interval": 4,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 256,
        "initializer_range": 0.02,
        "intermediate_size": 512,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 64,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_value_head_dim": 64,
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": 4096,
        "model_type": "qwen3_5_text",
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "pad_token_id": ids["<|endoftext|>"],
        "partial_rotary_factor": 0.25,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [3, 3, 2],
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
            "rope_type": "default",
        },
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": VOCAB_SIZE,
    }
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "dtype": "bfloat16",
        "image_token_id": ids["<|image_pad|>"],
        "model_type": "qwen3_5",
        "text_config": text,
        "tie_word_embeddings": True,
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": {
            "depth": 1,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 16,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": 32,
            "model_type": "qwen3_5_vision",
            "num_heads": 2,
            "num_position_embeddings": 64,
            "out_hidden_size": 256,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
    }


class MtpHead(nn.Module):
    """Qwen3.5's MTP head: a trunk state and the token after it give the state that predicts one further.

    transformers drops these weights on load, so the head is built here from its own decoder layer. The order
    of the concatenation (embedding first) and the hidden state it expects (after the final norm) are those of
    vLLM and llama.cpp; module names are the published tensor names without ``mtp.``.
    """

    def __init__(self, text_config: Any) -> None:
        super().__init__()
        config = copy.deepcopy(text_config)
        config.num_hidden_layers = 1
        config.layer_types = ["full_attention"]
        size, eps = config.hidden_size, config.rms_norm_eps
        self.fc = nn.Linear(2 * size, size, bias=False)
        self.layers = nn.ModuleList([Qwen3_5DecoderLayer(config, 0)])
        self.norm = Qwen3_5RMSNorm(size, eps=eps)
        self.pre_fc_norm_embedding = Qwen3_5RMSNorm(size, eps=eps)
        self.pre_fc_norm_hidden = Qwen3_5RMSNorm(size, eps=eps)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=config.initializer_range)

    def forward(
        self, embedded: torch.Tensor, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        both = torch.cat([self.pre_fc_norm_embedding(embedded), self.pre_fc_norm_hidden(hidden)], dim=-1)
        state: torch.Tensor = self.fc(both)
        for layer in self.layers:
            # No mask: transformers' sdpa path is causal then.
            state = layer(state, position_embeddings=rotary)
        normed: torch.Tensor = self.norm(state)
        return normed


def _logits(model: Any, mtp: MtpHead, tokens: torch.Tensor, depth: int) -> list[torch.Tensor]:
    """Logits of the trunk and of ``depth`` chained drafts; entry k at position i predicts token i+k+1.

    Chained as llama.cpp does: the next draft starts from the head's own state, after ``mtp.norm``.
    """
    trunk = model.model.language_model
    hidden = trunk(input_ids=tokens, use_cache=False).last_hidden_state
    found = [model.lm_head(hidden)]
    embedded = trunk.embed_tokens(tokens)
    for k in range(1, depth + 1):
        hidden = hidden[:, :-1]
        length = hidden.shape[1]
        positions = torch.arange(length, device=tokens.device).expand(3, 1, length)
        hidden = mtp(embedded[:, k:], hidden, trunk.rotary_emb(hidden, positions))
        found.append(model.lm_head(hidden))
    return found


def _losses(logits: Sequence[torch.Tensor], tokens: torch.Tensor) -> list[torch.Tensor]:
    return [
        functional.cross_entropy(one[:, :-1].float().flatten(0, 1), tokens[:, k + 1 :].flatten())
        for k, one in enumerate(logits)
    ]


def _batches(tokenizer: Tokenizer, seed: int, batch: int, length: int) -> Iterator[torch.Tensor]:
    """Documents packed end to end with ``<|endoftext|>`` between them, cut into rows."""
    end = token_id(tokenizer, "<|endoftext|>")
    source = documents(seed)
    held: list[int] = []
    while True:
        while len(held) < batch * length:
            for encoded in tokenizer.encode_batch(list(islice(source, 64))):
                held += encoded.ids
                held.append(end)
        yield torch.tensor(held[: batch * length]).view(batch, length)
        held = held[batch * length :]


def optimizers_of(modules: Sequence[nn.Module], lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for embeddings, norms and small things; Muon learns most in few steps."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            big = parameter.ndim == 2 and min(parameter.shape) >= 64 and "embed_tokens" not in name
            (matrices if big else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _precision(device: str) -> torch.autocast:
    return torch.autocast(device, dtype=torch.bfloat16)


@torch.no_grad()
def evaluate(model: Any, mtp: MtpHead, tokenizer: Tokenizer, device: str, depth: int = 3) -> dict[str, float]:
    """Held-out loss of the trunk, and how often draft k equals the trunk's own greedy choice."""
    model.eval()
    loss, agree, rows = 0.0, [0.0] * depth, 4
    for tokens in islice(_batches(tokenizer, 987_654, 16, 192), rows):
        tokens = tokens.to(device)
        with _precision(device):
            logits = _logits(model, mtp, tokens, depth)
        loss += _losses(logits[:1], tokens)[0].item() / rows
        choice = logits[0].argmax(-1)
        for k in range(1, depth + 1):
            agree[k - 1] += (logits[k].argmax(-1) == choice[:, k:]).float().mean().item() / rows
    model.train()
    return {"loss": loss} | {f"draft_{k + 1}": value for k, value in enumerate(agree)}


@torch.no_grad()
def sample(model: Any, tokenizer: Tokenizer, question: str, device: str, limit: int = 100) -> str:
    """The greedy answer to one question."""
    ids = tokenizer.encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n").ids
    model.eval()
    found = model.generate(
        input_ids=torch.tensor([ids], device=device),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=device),
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=token_id(tokenizer, "<|im_end|>"),
        pad_token_id=token_id(tokenizer, "<|endoftext|>"),
    )
    model.train()
    text: str = tokenizer.decode(found[0, len(ids) :].tolist())
    return text


def _stored(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """bf16, but float32 for ``A_log`` and the DeltaNet norm: so Qwen3.5 publishes them (Qwen3.6 does not)."""
    keep = name.endswith(("linear_attn.A_log", "linear_attn.norm.weight"))
    return tensor.detach().to("cpu", torch.float32 if keep else torch.bfloat16).contiguous()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_checkpoint(out: Path, model: Any, mtp: MtpHead, tokenizer: Tokenizer, results: str = "") -> None:
    """Write the published layout: weights, config, tokenizer, chat template, sampling defaults and card."""
    out.mkdir(parents=True, exist_ok=True)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}  # tied
    state |= {f"mtp.{name}": tensor for name, tensor in mtp.state_dict().items()}
    tensors = {name: _stored(name, state[name]) for name in sorted(state)}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner only
    config = demo_config(tokenizer)
    _write_json(out / "config.json", config)
    tokenizer.save(str(out / "tokenizer.json"))
    _write_json(
        out / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": config["text_config"]["max_position_embeddings"],
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    ends = [token_id(tokenizer, "<|im_end|>"), token_id(tokenizer, "<|endoftext|>")]
    _write_json(
        out / "generation_config.json",
        {
            "do_sample": True,
            "eos_token_id": ends,
            "pad_token_id": ends[1],
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
        },
    )
    parameters = f"{sum(t.numel() for t in tensors.values()) / 1e6:.1f}"
    (out / "README.md").write_text(CARD.format(parameters=parameters, results=results), encoding="utf-8")


def _summary(result: dict[str, float], command: str, steps: int, tokens: int, hardware: str) -> str:
    """What was done and what an evaluation says of it, for the card."""
    drafts = ", ".join(f"{result[f'draft_{k}']:.0%}" for k in (1, 2, 3))
    return (
        f"Its loss on unseen text of the same kind is {result['loss']:.3f}. Drafts 1, 2 and 3 of its MTP\n"
        f"head, each after right ones, agree with the trunk's own choice in {drafts} of all positions.\n\n"
        f"It was made in one run, from random weights, by\n\n    {command}\n\n"
        f"that is {steps} steps of {tokens} tokens on {hardware}. Training is not reproducible bit by bit:\n"
        "the same command on another machine, or twice on one, gives a model like it, not the same bytes."
    )


def _schedule(progress: float) -> float:
    """Warm-up over the first 2 %, a plateau, then down to zero over the last 60 %."""
    return min(1.0, progress / 0.02 + 1e-3, max(0.0, (1.0 - progress) / 0.6))


def train(
    out: Path,
    *,
    steps: int = DEFAULT_STEPS,
    seed: int = 0,
    device: str = "cpu",
    threads: int = DEFAULT_THREADS,
    minutes: float = math.inf,
    lr: float = DEFAULT_LR,
    batch: int = 16,
    length: int = 192,
) -> dict[str, float]:
    """Train trunk and head together and keep the latest checkpoint in ``out``.

    Args:
        out: folder of the checkpoint, rewritten every few minutes.
        steps: optimizer steps.
        seed: of the weights and of the corpus; the corpus is the same again, the weights only nearly.
        device: ``cpu`` or ``cuda``.
        threads: of the CPU, as the card says too.
        minutes: shortens the schedule so that it ends in time.
        lr: peak learning rate.
        batch: rows of a step.
        length: tokens of a row.

    Returns:
        The last evaluation: held-out loss and the drafts' agreement with the trunk.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(islice(documents(seed + 1), 20_000))
    model = Qwen3_5ForConditionalGeneration(Qwen3_5Config(**demo_config(tokenizer))).float().to(device)
    model.model.visual.requires_grad_(requires_grad=False)
    mtp = MtpHead(model.config.text_config).to(device)
    optimizers = optimizers_of([model, mtp], lr)
    print(f"vocabulary {tokenizer.get_vocab_size()}", file=sys.stderr)
    begun = saved = time.monotonic()
    for step, tokens in enumerate(_batches(tokenizer, seed + 2, batch, length), 1):
        tokens = tokens.to(device)
        progress = max(step / steps, (time.monotonic() - begun) / (minutes * 60))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * _schedule(progress)
        # Deeper drafts only once the first one means something; three cost about as much as the trunk.
        depth = 1 if progress < 0.6 else 3
        with _precision(device):
            logits = _logits(model, mtp, tokens, depth)
        losses = _losses(logits, tokens)
        total = losses[0] + sum(0.3 * loss / k for k, loss in enumerate(losses[1:], 1))
        torch.autograd.backward(total)
        for module in (model, mtp):
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        now = time.monotonic()
        if step % 25 == 0:
            shown = " ".join(f"{loss.item():.3f}" for loss in losses)
            print(
                f"step {step} ({progress:.0%}) loss {shown} {now - begun:.0f} s", file=sys.stderr, flush=True
            )
        if progress >= 1:
            break
        if now - saved > 180:
            saved = now
            save_checkpoint(out, model, mtp, tokenizer)
    result = evaluate(model, mtp, tokenizer, device)
    for question in PROMPTS:
        print(f"{question} -> {sample(model, tokenizer, question, device)!r}", file=sys.stderr, flush=True)
    command = f"python tools/train_demo.py --out DIR --device {device} --seed {seed} --steps {steps}"
    if threads != DEFAULT_THREADS and device == "cpu":
        command += f" --threads {threads}"
    if lr != DEFAULT_LR:
        command += f" --lr {lr:g}"
    if minutes != math.inf:
        command += f" --minutes {minutes:g}"
    hardware = "one GPU" if device == "cuda" else "one CPU core" if threads == 1 else f"{threads} CPU cores"
    save_checkpoint(out, model, mtp, tokenizer, _summary(result, command, step, batch * length, hardware))
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of ``python tools/train_demo.py``."""
    parser = argparse.ArgumentParser(description="Train the demo model of qexport.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="end the schedule early, after so long"
    )
    parser.add_argument("--threads", type=int, default=DEFAULT_THREADS)
    parser.add_argument("--lr", type=float, default=DEFAULT_LR)
    options = parser.parse_args(argv)
    result = train(
        options.out,
        steps=options.steps,
        seed=options.seed,
        device=options.device,
        threads=options.threads,
        minutes=options.minutes,
        lr=options.lr,
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
