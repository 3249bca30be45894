"""Checkpoints whose metadata is compared with llama.cpp's converter: the zoo, and what goes wrong in the
field."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qexport.families.view import ModelView


@dataclass(frozen=True)
class Case:
    """A zoo checkpoint, changed by ``edit``; ``pre`` answers for the converter, which knows tokenizers by
    hash."""

    zoo: str
    options: dict[str, Any] = field(default_factory=dict)
    edit: Callable[[Path], None] | None = None
    pre: str | None = None
    mtp: bool = True


def edit_json(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / name
    value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    change(value)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def config(**changes: Any) -> Callable[[Path], None]:
    """Set keys of config.json; ``None`` removes one."""

    def change(value: dict[str, Any]) -> None:
        for key, new in changes.items():
            if new is None:
                value.pop(key, None)
            else:
                value[key] = new

    return lambda folder: edit_json(folder, "config.json", change)


CARD = """---
license: other
license_name: tongyi-qianwen
license_link: https://huggingface.co/Qwen/Qwen2.5-7B/blob/main/LICENSE
base_model:
- Qwen/Qwen2.5-7B-Instruct
- https://huggingface.co/mistralai/Mistral-7B-v0.3
datasets:
- allenai/tulu-3-sft-mixture
- https://example.org/data
tags:
- chat
- code
pipeline_tag: text-generation
language:
- en
- no
- de
model_creator: Somebody
---
# Title
"""


def card(folder: Path) -> None:
    (folder / "README.md").write_text(CARD, encoding="utf-8")


def generation(folder: Path) -> None:
    edit_json(
        folder,
        "generation_config.json",
        lambda v: v.update(temperature=0.7, top_p=0.8, top_k=20, min_p=0, repetition_penalty=1.05),
    )


def card_and_sampling(folder: Path) -> None:
    card(folder)
    generation(folder)


def templates(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("main {{ messages }}", encoding="utf-8")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools", encoding="utf-8")
    edit_json(folder, "tokenizer_config.json", lambda v: v.pop("chat_template", None))


def template_json(folder: Path) -> None:
    edit_json(folder, "tokenizer_config.json", lambda v: v.pop("chat_template", None))
    edit_json(folder, "chat_template.json", lambda v: v.update(chat_template="from json"))


def template_list(folder: Path) -> None:
    entries = [{"name": "default", "template": "d"}, {"name": "rag-x", "template": "r"}]
    edit_json(folder, "tokenizer_config.json", lambda v: v.update(chat_template=entries))


def no_sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()


def user_tokens(folder: Path) -> None:
    """Added tokens that are not special, normalised or not, plain or with a space, and new ids in the
    holes."""

    def grow(value: dict[str, Any]) -> None:
        size = max([*value["model"]["vocab"].values(), *(t["id"] for t in value["added_tokens"])]) + 1
        for n, (text, normalized, special) in enumerate(
            [
                ("tool call", True, False),
                (" two  spaces ", False, False),
                ("▁under", False, False),
                ("é£", False, True),
            ]
        ):
            value["added_tokens"].append(
                {
                    "id": size + n,
                    "content": text,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": normalized,
                    "special": special,
                }
            )

    edit_json(folder, "tokenizer.json", grow)


def user_tokens_everywhere(folder: Path) -> None:
    """The same, said in tokenizer_config.json too, as transformers 4 saved it."""
    user_tokens(folder)
    tokens = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    table = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in tokens}
    edit_json(folder, "tokenizer_config.json", lambda v: v.update(added_tokens_decoder=table))


def old_merges(folder: Path) -> None:
    edit_json(
        folder,
        "tokenizer.json",
        lambda v: v["model"].update(merges=[" ".join(m) for m in v["model"]["merges"]]),
    )


def mismatched_names(folder: Path) -> None:
    """A post-processor that ends texts with another token than tokenizer_config.json's eos."""

    def change(value: dict[str, Any]) -> None:
        token = {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}
        a, b = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
        ids = {t["content"]: t["id"] for t in value["added_tokens"]}
        value["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [a, token],
            "pair": [a, token, b, token],
            "special_tokens": {
                "<|im_end|>": {"id": "<|im_end|>", "ids": [ids["<|im_end|>"]], "tokens": ["<|im_end|>"]}
            },
        }

    edit_json(folder, "tokenizer.json", change)
    edit_json(
        folder, "tokenizer_config.json", lambda v: v.update(eos_token="<|endoftext|>", add_bos_token=False)
    )


def added_tokens(folder: Path) -> None:
    """Fine-tunes of Llama 2: added_tokens.json and added_tokens_decoder, holes after them."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    size = len(model["vocab"])
    edit_json(folder, "added_tokens.json", lambda v: v.update({"<tool>": size, "<far>": 9999}))
    table = {"content": "▁two", "special": False}, {"content": "<|im_end|>", "special": False}
    edit_json(
        folder,
        "tokenizer_config.json",
        lambda v: v["added_tokens_decoder"].update({str(size + 1 + n): t for n, t in enumerate(table)}),
    )


def prefix_space(folder: Path) -> None:
    edit_json(folder, "tokenizer_config.json", lambda v: v.update(add_prefix_space=False))


def named_pad(folder: Path) -> None:
    """A pad token that only tokenizer_config.json knows gets a new id."""
    edit_json(folder, "tokenizer_config.json", lambda v: v.update(pad_token="[PAD]", tokenizer_class="X"))


YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32768,
    "attention_factor": 1.2,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}

CASES: dict[str, Case] = {
    "qwen3_5": Case("qwen3_5", pre="qwen35"),
    "qwen3_5_saved": Case("qwen3_5", {"style": "saved", "form": "flat", "vision": False}, pre="qwen35"),
    "qwen3_5_text": Case("qwen3_5_text", pre="qwen35", mtp=False),
    "qwen3_5_moe": Case("qwen3_5_moe", pre="qwen35"),
    "qwen3_5_moe_text": Case("qwen3_5_moe_text", pre="qwen35", mtp=False),
    "llama": Case("llama"),
    "llama_hf": Case("llama", edit=no_sentencepiece),
    "llama3": Case("llama3", pre="llama-bpe"),
    "llama3_published": Case("llama3", {"style": "published"}, pre="llama-bpe"),
    "smollm": Case("smollm", pre="smollm"),
    "smollm_saved": Case("smollm", {"style": "saved"}, pre="smollm"),
    "mistral": Case("mistral"),
    "qwen2": Case("qwen2", pre="qwen2"),
    "qwen2_yarn": Case("qwen2", edit=config(rope_scaling=YARN, rope_parameters=None), pre="qwen2"),
    "qwen2_linear": Case(
        "qwen2",
        edit=config(rope_scaling={"type": "linear", "factor": 2.0}, rope_parameters=None),
        pre="qwen2",
    ),
    "qwen2_card": Case("qwen2", edit=card_and_sampling, pre="qwen2"),
    "qwen2_templates": Case("qwen2", edit=templates, pre="qwen2"),
    "qwen2_template_json": Case("qwen2", edit=template_json, pre="qwen2"),
    "qwen2_template_list": Case("qwen2", edit=template_list, pre="qwen2"),
    "qwen2_user_tokens": Case("qwen2", {"vocab": 448}, edit=user_tokens_everywhere, pre="qwen2"),
    "qwen3_user_tokens": Case("qwen3", {"vocab": 448}, edit=user_tokens, pre="qwen2"),
    "llama_user_tokens": Case("llama", {"vocab": 448}, edit=added_tokens),
    "llama_add_prefix_space": Case("llama", edit=prefix_space),
    "llama_defaults": Case(
        "llama", edit=config(rope_theta=None, num_key_value_heads=None, rms_norm_eps=None)
    ),
    "gemma3_scaled": Case(
        "gemma3",
        edit=config(rope_scaling={"rope_type": "linear", "factor": 8.0}, rope_parameters=None, head_dim=None),
    ),
    "qwen2_pad": Case("qwen2", {"vocab": 448}, edit=named_pad, pre="qwen2"),
    "qwen2_old_merges": Case("qwen2", edit=old_merges, pre="qwen2"),
    "qwen2_mismatch": Case("qwen2", edit=mismatched_names, pre="qwen2"),
    "qwen2_named": Case(
        "qwen2", edit=config(_name_or_path="Qwen/Qwen2.5-7B-Instruct-1M", eot_token_id=3), pre="qwen2"
    ),
    "qwen3": Case("qwen3", pre="qwen2"),
    "qwen3_published": Case("qwen3", {"style": "published"}, pre="qwen2"),
    "qwen3_moe": Case("qwen3_moe", pre="qwen2"),
    "gemma3": Case("gemma3"),
    "gemma3_saved": Case("gemma3", {"style": "saved"}),
    "gemma3_no_model": Case("gemma3", edit=no_sentencepiece, pre="gemma4"),
}


def family_of(name: str) -> str:
    model_type = str(name)
    for suffix in ("_text",):
        model_type = model_type.removesuffix(suffix)
    return model_type


def view_of(folder: Path, *, mtp: bool, label: str | None = None) -> ModelView:
    """A view with no tensors: metadata needs none."""
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = values.get("text_config", values)
    layers = text["num_hidden_layers"]
    return ModelView(
        family=family_of(values["model_type"]),
        label=label or folder.name,
        config=values,
        text=text,
        tensors=(),
        layers=layers,
        mtp_layers=int(text.get("mtp_num_hidden_layers") or 0) if mtp else 0,
        files={
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix != ".safetensors"
        },
    )
