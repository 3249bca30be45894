"""Faults and oddities as they are met in the field, planted one at a time into a copy of a zoo checkpoint.

    folder = zoo_copy(BASE["mtp_declared_absent"]); PLANTS["mtp_declared_absent"](folder)

A plant changes the folder in place and nothing else. `BASE` names the zoo entry a plant is meant for (most
fit any entry of that kind). `BAD` are those that no export may accept; the others are quirks to be seen and
repaired.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from zoo import fuse_experts, split_experts, write_json, write_tensors

Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]

PLANTS: dict[str, Callable[[Path], None]] = {}
BASE: dict[str, str] = {}
BAD: set[str] = set()


def plant(base: str, *, bad: bool = False) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Enter a function into `PLANTS` under its own name."""

    def enter(function: Callable[[Path], None]) -> Callable[[Path], None]:
        name = function.__name__
        PLANTS[name] = function
        BASE[name] = base
        if bad:
            BAD.add(name)
        return function

    return enter


# --- reading and writing a checkpoint folder -------------------------------------------------------------


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files, in order."""
    return sorted(folder.glob("*.safetensors"))


def tensors_in(folder: Path) -> Tensors:
    """All tensors of a healthy folder."""
    out: Tensors = {}
    for file in weight_files(folder):
        out |= load_file(file)
    return out


def change_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Rewrite the weights, in as many shards as before."""
    files = weight_files(folder)
    tensors = change(tensors_in(folder))
    for file in files:
        file.unlink()
    write_tensors(folder, tensors, len(files))


def rename(folder: Path, change: Callable[[str], str]) -> None:
    """Give every tensor the name `change(name)`."""
    change_tensors(folder, lambda tensors: {change(name): tensor for name, tensor in tensors.items()})


def change_json(folder: Path, file: str, change: Callable[[Config], Config | None]) -> None:
    """Edit a JSON file in place, or by what `change` returns."""
    path = folder / file
    value = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, change(value) or value)


def change_config(folder: Path, change: Callable[[Config], Config | None]) -> None:
    """Edit config.json."""
    change_json(folder, "config.json", change)


def change_text_config(folder: Path, change: Callable[[Config], Config | None]) -> None:
    """Edit the part of config.json that describes the language model."""

    def edit(config: Config) -> None:
        inner = config.get("text_config", config)
        new = change(inner)
        if new is not None:
            inner.clear()
            inner.update(new)

    change_config(folder, edit)


def raw_header(file: Path) -> tuple[dict[str, Any], bytes]:
    """A safetensors file's header and its data."""
    blob = file.read_bytes()
    (length,) = struct.unpack("<Q", blob[:8])
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def write_raw(file: Path, header: dict[str, Any], data: bytes) -> None:
    """A safetensors file with any header at all."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def _is_trunk(name: str) -> bool:
    return name.startswith("model.language_model.")


def _is_mtp(name: str) -> bool:
    return name.startswith("mtp.")


def _is_vision(name: str) -> bool:
    return name.startswith("model.visual.")


def _is_head(name: str) -> bool:
    return name == "lm_head.weight"


def _without(drop: Callable[[str], bool]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: t for name, t in tensors.items() if not drop(name)}


# --- what the checkpoint calls itself --------------------------------------------------------------------


@plant("qwen3_5")
def text_type_in_wrapper(folder: Path) -> None:
    """Root `model_type` says `qwen3_5_text`, everything else is the wrapper."""
    change_config(folder, lambda c: {**c, "model_type": c["text_config"]["model_type"]})


@plant("qwen3_5_text")
def wrapper_type_flat(folder: Path) -> None:
    """A flat text config under the wrapper's `model_type`."""
    change_config(folder, lambda c: {**c, "model_type": c["model_type"].removesuffix("_text")})


@plant("qwen3_5_text")
def causal_arch_wrapper_names(folder: Path) -> None:
    """`...ForCausalLM` over tensors called `model.language_model.*`."""
    rename(folder, lambda n: "model.language_model." + n.removeprefix("model.") if n[:6] == "model." else n)


@plant("qwen3_5")
def conditional_arch_flat_names(folder: Path) -> None:
    """`...ForConditionalGeneration` over tensors called `model.layers.*`."""
    rename(folder, lambda n: n.replace("model.language_model.", "model.", 1))


@plant("qwen3_5_moe")
def moe_text_type_in_wrapper(folder: Path) -> None:
    """The same as `text_type_in_wrapper` for the mixture of experts."""
    text_type_in_wrapper(folder)


@plant("qwen3_5")
def architectures_absent(folder: Path) -> None:
    """No `architectures` at all."""
    change_config(folder, lambda c: {k: v for k, v in c.items() if k != "architectures"})


@plant("qwen3_5")
def prefix_language_model_model(folder: Path) -> None:
    """`language_model.model.*`, `language_model.lm_head.weight`, `visual.*`: the layout of older wrappers."""

    def change(name: str) -> str:
        if _is_trunk(name):
            return "language_model.model." + name.removeprefix("model.language_model.")
        if _is_head(name):
            return "language_model." + name
        return name.removeprefix("model.") if _is_vision(name) else name

    rename(folder, change)


@plant("qwen3_5")
def nested_prefix_twice(folder: Path) -> None:
    """`model.language_model.language_model.*`."""
    rename(folder, lambda n: n.replace("model.language_model.", "model.language_model.language_model.", 1))


@plant("qwen3_5")
def nested_prefix_thrice(folder: Path) -> None:
    """`model.language_model.language_model.language_model.*`."""
    nested_prefix_twice(folder)
    nested_prefix_twice(folder)


@plant("qwen3_5_moe")
def wrapped_in_training(folder: Path) -> None:
    """DDP over torch.compile over FSDP, with activation checkpointing around layers."""

    def change(name: str) -> str:
        before, mark, after = name.partition(".layers.")
        number, _, rest = after.partition(".")
        inner = f"{before}.layers.{number}._checkpoint_wrapped_module.{rest}" if mark else name
        return "module._orig_mod._fsdp_wrapped_module." + inner

    rename(folder, change)


@plant("qwen3_5_text")
def peft_prefix(folder: Path) -> None:
    """Every name behind `base_model.model.`: saved without unloading the adapter's wrapper."""
    rename(folder, lambda n: "base_model.model." + n)


@plant("qwen3_5_text")
def base_layer_suffix(folder: Path) -> None:
    """`q_proj.base_layer.weight`: the adapter's layers were never merged away."""
    last = ("q_proj.weight", "v_proj.weight")
    rename(folder, lambda n: n.replace(".weight", ".base_layer.weight") if n.endswith(last) else n)


@plant("qwen3_5_text")
def lora_tensors_left(folder: Path) -> None:
    """Low-rank factors beside the matrices; nobody can tell whether they are merged."""

    def change(tensors: Tensors) -> Tensors:
        extra: Tensors = {}
        for name, tensor in tensors.items():
            if name.endswith("q_proj.weight"):
                stem = name.removesuffix(".weight")
                extra[f"{stem}.lora_A.weight"] = torch.zeros(4, tensor.shape[1], dtype=tensor.dtype)
                extra[f"{stem}.lora_B.weight"] = torch.zeros(tensor.shape[0], 4, dtype=tensor.dtype)
        return {**tensors, **extra}

    change_tensors(folder, change)


# --- experts ---------------------------------------------------------------------------------------------


@plant("qwen3_5_moe")
def experts_each_in_trunk(folder: Path) -> None:
    """Trunk experts one by one, MTP experts fused: what a merge by transformers plus a grafted head gives."""
    change_tensors(folder, lambda t: split_experts(t, "model."))


@plant("qwen3_5_moe_text")
def experts_fused_in_trunk(folder: Path) -> None:
    """Trunk experts fused."""
    change_tensors(folder, lambda t: fuse_experts(t, "model."))


@plant("qwen3_5_moe")
def experts_each_in_mtp(folder: Path) -> None:
    """MTP experts one by one."""
    change_tensors(folder, lambda t: split_experts(t, "mtp."))


@plant("qwen3_5_moe_122b")
def experts_fused_in_mtp(folder: Path) -> None:
    """MTP experts fused."""
    change_tensors(folder, lambda t: fuse_experts(t, "mtp."))


@plant("qwen3_5_moe")
def experts_fused_with_weight_suffix(folder: Path) -> None:
    """`experts.gate_up_proj.weight` where the publisher has no `.weight`."""
    last = (".experts.gate_up_proj", ".experts.down_proj")
    rename(folder, lambda n: n + ".weight" if n.endswith(last) else n)


@plant("qwen3_5_moe_text", bad=True)
def expert_missing(folder: Path) -> None:
    """One expert of one layer lacks its up projection."""
    change_tensors(folder, _without(lambda n: n.endswith("layers.1.mlp.experts.2.up_proj.weight")))


# --- the MTP head ----------------------------------------------------------------------------------------


@plant("qwen3_5")
def mtp_declared_absent(folder: Path) -> None:
    """The config promises a head, the weights have none: what transformers leaves after load and save."""
    change_tensors(folder, _without(_is_mtp))


@plant("qwen3_5_moe")
def moe_mtp_declared_absent(folder: Path) -> None:
    """The same for the mixture of experts."""
    mtp_declared_absent(folder)


@plant("qwen3_5")
def mtp_key_absent(folder: Path) -> None:
    """The head is there, the config does not mention it."""
    change_text_config(folder, lambda c: {k: v for k, v in c.items() if not k.startswith("mtp_")})


@plant("qwen3_5")
def mtp_key_zero(folder: Path) -> None:
    """The head is there, the config counts zero layers."""
    change_text_config(folder, lambda c: {**c, "mtp_num_hidden_layers": 0})


@plant("qwen3_5")
def mtp_prefix_model(folder: Path) -> None:
    """`model.mtp.*`."""
    rename(folder, lambda n: "model." + n if _is_mtp(n) else n)


@plant("qwen3_5")
def mtp_prefix_language_model(folder: Path) -> None:
    """`model.language_model.mtp.*`."""
    rename(folder, lambda n: "model.language_model." + n if _is_mtp(n) else n)


@plant("qwen3_5")
def mtp_incomplete(folder: Path) -> None:
    """A head without its `fc`."""
    change_tensors(folder, _without(lambda n: n == "mtp.fc.weight"))


@plant("qwen3_5")
def mtp_own_embeddings(folder: Path) -> None:
    """The head brings an embedding and an output matrix of its own."""

    def change(tensors: Tensors) -> Tensors:
        table = tensors["model.language_model.embed_tokens.weight"]
        head = tensors["lm_head.weight"]
        return {**tensors, "mtp.embed_tokens.weight": table * 2, "mtp.lm_head.weight": head * 2}

    change_tensors(folder, change)


# --- rope ------------------------------------------------------------------------------------------------

ROPE_KEYS = ("rope_parameters", "rope_theta", "rope_scaling", "partial_rotary_factor")


@plant("llama")
def rope_parameters_only(folder: Path) -> None:
    """`rope_parameters` without `rope_theta`: readers of the old key fall back to 10000."""

    def change(config: Config) -> Config:
        rest = {k: v for k, v in config.items() if k not in ROPE_KEYS}
        return {**rest, "rope_parameters": {"rope_theta": 250000.0, "rope_type": "default"}}

    change_text_config(folder, change)


@plant("llama3")
def rope_legacy_only(folder: Path) -> None:
    """`rope_theta` and `rope_scaling` (here still with `type`) without `rope_parameters`."""

    def change(config: Config) -> Config:
        rope = dict(config["rope_parameters"])
        theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
        rest = {k: v for k, v in config.items() if k not in ROPE_KEYS}
        return {**rest, "rope_theta": theta, "rope_scaling": {"type": kind, **rope}}

    change_text_config(folder, change)


@plant("qwen3_5")
def rope_legacy_only_hybrid(folder: Path) -> None:
    """The same for a hybrid: theta and partial factor at the top, the sections in `rope_scaling`."""

    def change(config: Config) -> Config:
        rope = dict(config["rope_parameters"])
        top = {key: rope.pop(key) for key in ("rope_theta", "partial_rotary_factor")}
        rest = {k: v for k, v in config.items() if k not in ROPE_KEYS}
        return {**rest, **top, "rope_scaling": rope}

    change_text_config(folder, change)


@plant("llama3")
def rope_contradicting(folder: Path) -> None:
    """Both forms, with different bases."""
    change_text_config(folder, lambda c: {**c, "rope_theta": 10000.0})


@plant("llama")
def rope_absent(folder: Path) -> None:
    """No rope key of any kind."""
    change_text_config(folder, lambda c: {k: v for k, v in c.items() if k not in ROPE_KEYS})


@plant("qwen3_5")
def rope_without_sections(folder: Path) -> None:
    """`rope_parameters` that lost `mrope_section`, as a config class that does not know it writes."""

    def change(config: Config) -> Config:
        rope = {k: v for k, v in config["rope_parameters"].items() if not k.startswith("mrope")}
        return {**config, "rope_parameters": rope}

    change_text_config(folder, change)


# --- tokenizer, templates, end of text -------------------------------------------------------------------


@plant("qwen3_5")
def tokenizers_backend(folder: Path) -> None:
    """`tokenizer_class: TokenizersBackend`, which transformers 4 does not know."""
    change_json(folder, "tokenizer_config.json", lambda c: {**c, "tokenizer_class": "TokenizersBackend"})


@plant("qwen3_5")
def eos_int(folder: Path) -> None:
    """generation_config stops at <|endoftext|> only: the model talks on after its turn."""
    change_json(folder, "generation_config.json", lambda c: {**c, "eos_token_id": c["pad_token_id"]})


@plant("llama3")
def eos_list_in_config(folder: Path) -> None:
    """`eos_token_id` is a list in config.json."""
    change_text_config(folder, lambda c: {**c, "eos_token_id": [c["eos_token_id"], c["bos_token_id"] + 1]})


@plant("llama3")
def eos_differs(folder: Path) -> None:
    """generation_config names another end than config and tokenizer."""
    change_json(folder, "generation_config.json", lambda c: {**c, "eos_token_id": c["eos_token_id"] - 7})


@plant("qwen3_5")
def generation_config_absent(folder: Path) -> None:
    """No generation_config.json."""
    (folder / "generation_config.json").unlink()


def _template(folder: Path) -> str:
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return str(config["chat_template"])


def _clear_template(folder: Path) -> str:
    """Take the template out of wherever it is."""
    text = _template(folder)
    for name in ("chat_template.jinja", "chat_template.json"):
        (folder / name).unlink(missing_ok=True)
    drop = {"chat_template"}
    change_json(folder, "tokenizer_config.json", lambda c: {k: v for k, v in c.items() if k not in drop})
    return text


@plant("qwen3_5_text")
def template_inline(folder: Path) -> None:
    """The template only inside tokenizer_config.json."""
    text = _clear_template(folder)
    change_json(folder, "tokenizer_config.json", lambda c: {**c, "chat_template": text})


@plant("qwen3_5")
def template_jinja(folder: Path) -> None:
    """The template only in chat_template.jinja."""
    (folder / "chat_template.jinja").write_text(_clear_template(folder), encoding="utf-8")


@plant("qwen3_5")
def template_json(folder: Path) -> None:
    """The template only in chat_template.json."""
    write_json(folder / "chat_template.json", {"chat_template": _clear_template(folder)})


@plant("qwen3_5")
def template_twice_differing(folder: Path) -> None:
    """chat_template.jinja and tokenizer_config.json hold different templates."""
    text = _template(folder)
    (folder / "chat_template.jinja").write_text(text.replace("assistant", "robot"), encoding="utf-8")
    change_json(folder, "tokenizer_config.json", lambda c: {**c, "chat_template": text})


@plant("qwen3_5")
def template_null_inline(folder: Path) -> None:
    """`"chat_template": null` in tokenizer_config.json, which hides chat_template.jinja from some."""
    (folder / "chat_template.jinja").write_text(_clear_template(folder), encoding="utf-8")
    change_json(folder, "tokenizer_config.json", lambda c: {**c, "chat_template": None})


@plant("qwen3_5")
def template_empty_jinja(folder: Path) -> None:
    """An empty chat_template.jinja, which hides the template in tokenizer_config.json."""
    text = _clear_template(folder)
    (folder / "chat_template.jinja").write_text("\n", encoding="utf-8")
    change_json(folder, "tokenizer_config.json", lambda c: {**c, "chat_template": text})


@plant("qwen3_5")
def template_without_default(folder: Path) -> None:
    """Named templates, none of them called default."""
    text = _clear_template(folder)
    named = [{"name": "tool_use", "template": "{{ tools }}" + text}, {"name": "chat", "template": text}]
    change_json(folder, "tokenizer_config.json", lambda c: {**c, "chat_template": named})


@plant("qwen3_5")
def template_folder_without_default(folder: Path) -> None:
    """additional_chat_templates/ and no chat_template.jinja beside it."""
    text = _clear_template(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "chat.jinja").write_text(text, encoding="utf-8")


@plant("qwen3_5")
def template_absent(folder: Path) -> None:
    """No template anywhere."""
    _clear_template(folder)


@plant("qwen3_5")
def template_named_list(folder: Path) -> None:
    """tokenizer_config.json holds a list of named templates."""
    text = _clear_template(folder)
    named = [{"name": "default", "template": text}, {"name": "tool_use", "template": "{{ tools }}" + text}]
    change_json(folder, "tokenizer_config.json", lambda c: {**c, "chat_template": named})


@plant("qwen3_5", bad=True)
def tokenizer_absent(folder: Path) -> None:
    """No tokenizer files at all."""
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)


# --- tied embeddings -------------------------------------------------------------------------------------


def _set_tie(folder: Path, root: bool | None, inner: bool | None) -> None:
    def put(config: Config, value: bool | None) -> None:
        config.pop("tie_word_embeddings", None)
        if value is not None:
            config["tie_word_embeddings"] = value

    def change(config: Config) -> None:
        if "text_config" in config:
            put(config["text_config"], inner)
        put(config, root)

    change_config(folder, change)


def _add_head(folder: Path, factor: float) -> None:
    def change(tensors: Tensors) -> Tensors:
        table = next(t for name, t in tensors.items() if name.endswith("embed_tokens.weight"))
        return {**tensors, "lm_head.weight": table * factor}

    change_tensors(folder, change)


@plant("qwen3_5_tied")
def tied_with_equal_head(folder: Path) -> None:
    """Tied, and lm_head.weight is stored as well, equal."""
    _add_head(folder, 1.0)


@plant("qwen3_5_tied")
def tied_with_other_head(folder: Path) -> None:
    """The flags say tied, but lm_head.weight is there and differs."""
    _add_head(folder, 0.5)


@plant("qwen3_5")
def untied_without_head(folder: Path) -> None:
    """The flags say untied, and there is no lm_head.weight."""
    change_tensors(folder, _without(_is_head))


@plant("qwen3_5_tied")
def tie_only_root(folder: Path) -> None:
    """The flag at the root only."""
    _set_tie(folder, root=True, inner=None)


@plant("qwen3_5_tied")
def tie_only_text(folder: Path) -> None:
    """The flag in text_config only."""
    _set_tie(folder, root=None, inner=True)


@plant("qwen3_5_tied")
def tie_contradicting(folder: Path) -> None:
    """Root says untied, text_config says tied, no head."""
    _set_tie(folder, root=False, inner=True)


@plant("qwen3_5")
def tie_contradicting_with_head(folder: Path) -> None:
    """Root says tied, text_config says untied, and there is a head of its own."""
    _set_tie(folder, root=True, inner=False)


@plant("llama3")
def tie_absent(folder: Path) -> None:
    """No flag, no head."""
    _set_tie(folder, root=None, inner=None)


# --- number types ----------------------------------------------------------------------------------------


def _set_dtype(folder: Path, **values: str) -> None:
    def put(config: Config) -> None:
        for key in ("dtype", "torch_dtype"):
            config.pop(key, None)
        config.update(values)

    def change(config: Config) -> None:
        put(config)
        if "text_config" in config:
            put(config["text_config"])

    change_config(folder, change)


@plant("qwen3_5")
def torch_dtype_only(folder: Path) -> None:
    """`torch_dtype`, as transformers 4 wrote it."""
    _set_dtype(folder, torch_dtype="bfloat16")


@plant("qwen3")
def quantization_left(folder: Path) -> None:
    """A QLoRA merge: bf16 weights, and the 4-bit base's declaration."""
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    change_config(folder, lambda c: {**c, "quantization_config": settings})


@plant("gemma3")
def added_tokens_unlisted(folder: Path) -> None:
    """transformers 5 re-saved the tokenizer, and tokenizer.model was copied beside it again."""
    listed = ("added_tokens_decoder",)
    change_json(folder, "tokenizer_config.json", lambda c: {k: v for k, v in c.items() if k not in listed})


@plant("qwen3")
def byte_fallback_claimed(folder: Path) -> None:
    """What transformers makes of a byte-level GGUF vocabulary."""

    def change(document: Config) -> Config:
        return {**document, "model": {**document["model"], "byte_fallback": True}}

    change_json(folder, "tokenizer.json", change)


@plant("qwen3")
def eos_begins_a_turn(folder: Path) -> None:
    """What transformers makes of SmolLM2's GGUF: eos_token is the token that begins a turn."""
    change_json(folder, "tokenizer_config.json", lambda c: {**c, "eos_token": "<|im_start|>"})


@plant("llama")
def dtype_only(folder: Path) -> None:
    """`dtype`, as transformers 5 writes it."""
    _set_dtype(folder, dtype="float16")


@plant("qwen3_5")
def dtype_lying(folder: Path) -> None:
    """The config says float32, the tensors are bfloat16."""
    _set_dtype(folder, dtype="float32")


@plant("qwen3_5")
def dtype_absent(folder: Path) -> None:
    """No word about the type."""
    _set_dtype(folder)


@plant("qwen3_5")
def stray_float32_matrix(folder: Path) -> None:
    """One matrix was saved in float32."""

    def change(tensors: Tensors) -> Tensors:
        name = next(n for n in tensors if n.endswith("layers.1.mlp.up_proj.weight"))
        return {**tensors, name: tensors[name].float() + 2.0**-20}

    change_tensors(folder, change)


@plant("qwen3_5")
def a_log_bf16(folder: Path) -> None:
    """A_log and the linear-attention norm went through `.to(bfloat16)`."""
    last = (".A_log", "linear_attn.norm.weight")
    change_tensors(folder, lambda t: {n: x.bfloat16() if n.endswith(last) else x for n, x in t.items()})


# --- the vision tower ------------------------------------------------------------------------------------


@plant("qwen3_5")
def vision_declared_absent(folder: Path) -> None:
    """The config describes a vision tower that the weights lack."""
    change_tensors(folder, _without(_is_vision))


@plant("qwen3_5")
def vision_undeclared(folder: Path) -> None:
    """Vision tensors without a `vision_config`."""
    change_config(folder, lambda c: {k: v for k, v in c.items() if k != "vision_config"})


@plant("qwen3_5")
def vision_deepstack_named(folder: Path) -> None:
    """Layers that go into the language model's, as Qwen3-VL has them and Qwen3.5 has not."""
    change_config(
        folder, lambda c: {**c, "vision_config": {**c["vision_config"], "deepstack_visual_indexes": [1, 7]}}
    )


@plant("qwen3_vl")
def deepstack_beyond(folder: Path) -> None:
    """A block that the tower has not is said to go into the language model."""
    change_config(
        folder, lambda c: {**c, "vision_config": {**c["vision_config"], "deepstack_visual_indexes": [1, 4]}}
    )


@plant("qwen3_vl")
def deepstack_merger_lost(folder: Path) -> None:
    """Fewer mergers than blocks whose output they take."""
    change_tensors(folder, _without(lambda name: "deepstack_merger_list.1." in name))


@plant("qwen3_5")
def vision_tokens_elsewhere(folder: Path) -> None:
    """Tokens of an image that the tokenizer does not have."""
    change_config(folder, lambda c: {**c, "image_token_id": 447})


@plant("qwen3_5")
def vision_block_lost(folder: Path) -> None:
    """A vision tower without its last block."""
    change_tensors(folder, _without(lambda name: name.startswith("model.visual.blocks.1.")))


@plant("qwen3_5")
def vision_block_surplus(folder: Path) -> None:
    """A vision tower with more than its config says."""
    change_tensors(
        folder, lambda t: {**t, "model.visual.deepstack_merger_list.0.norm.weight": torch.ones(64)}
    )


@plant("qwen3_5")
def vision_shape_wrong(folder: Path) -> None:
    """A vision tower made for a wider language model."""
    name = "model.visual.merger.linear_fc2.weight"
    change_tensors(folder, lambda t: {**t, name: t[name].repeat(2, 1)})


@plant("qwen3_5")
def processor_absent(folder: Path) -> None:
    """A vision model without its preprocessor files."""
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        (folder / name).unlink()


# --- input that must be refused --------------------------------------------------------------------------


@plant("llama", bad=True)
def pickle_only(folder: Path) -> None:
    """pytorch_model.bin and no safetensors."""
    tensors = tensors_in(folder)
    for file in weight_files(folder):
        file.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    torch.save(tensors, folder / "pytorch_model.bin")


@plant("llama", bad=True)
def adapter_only(folder: Path) -> None:
    """A LoRA adapter instead of a model."""
    tensors = tensors_in(folder)
    for name in ("config.json", "generation_config.json", "model.safetensors.index.json"):
        (folder / name).unlink(missing_ok=True)
    for file in weight_files(folder):
        file.unlink()
    low: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith("q_proj.weight"):
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            low[f"{stem}.lora_A.weight"] = tensor[:8].float().contiguous()
            low[f"{stem}.lora_B.weight"] = tensor[:, :8].float().contiguous()
    save_file(low, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    adapter = {"base_model_name_or_path": "example/base", "peft_type": "LORA", "r": 8, "lora_alpha": 16}
    write_json(folder / "adapter_config.json", adapter)


@plant("qwen3_5", bad=True)
def quantized_fp8(folder: Path) -> None:
    """Already quantized: e4m3 blocks with `weight_scale_inv`."""

    def change(tensors: Tensors) -> Tensors:
        out: Tensors = {}
        for name, tensor in tensors.items():
            if name.endswith("mlp.up_proj.weight"):
                blocks = (-(-tensor.shape[0] // 128), -(-tensor.shape[1] // 128))
                out[name] = tensor.float().clamp(-1, 1).to(torch.float8_e4m3fn)
                out[name + "_scale_inv"] = torch.ones(blocks, dtype=torch.bfloat16)
            else:
                out[name] = tensor
        return out

    change_tensors(folder, change)
    settings = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    change_config(folder, lambda c: {**c, "quantization_config": settings})


@plant("llama", bad=True)
def quantized_bnb(folder: Path) -> None:
    """Already quantized: bitsandbytes, packed bytes in place of a matrix."""

    def change(tensors: Tensors) -> Tensors:
        out = dict(tensors)
        for name, tensor in tensors.items():
            if name.endswith("mlp.up_proj.weight"):
                out[name] = torch.zeros(tensor.numel() // 2, 1, dtype=torch.uint8)
                out[name + ".quant_state.bitsandbytes__nf4"] = torch.zeros(16, dtype=torch.uint8)
        return out

    change_tensors(folder, change)
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    change_config(folder, lambda c: {**c, "quantization_config": settings})


@plant("llama", bad=True)
def shard_missing(folder: Path) -> None:
    """The index names a shard that is not there."""
    weight_files(folder)[-1].unlink()


@plant("llama", bad=True)
def shard_truncated(folder: Path) -> None:
    """A download broke off."""
    file = weight_files(folder)[-1]
    blob = file.read_bytes()
    file.write_bytes(blob[: len(blob) * 3 // 4])


@plant("mistral", bad=True)
def single_file_truncated(folder: Path) -> None:
    """The same for an unsharded checkpoint."""
    shard_truncated(folder)


@plant("llama", bad=True)
def shard_is_lfs_pointer(folder: Path) -> None:
    """A git clone without LFS: the shard is three lines of text."""
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4096\n"
    weight_files(folder)[-1].write_text(text, encoding="utf-8")


@plant("llama", bad=True)
def shard_empty(folder: Path) -> None:
    """A file of no bytes."""
    weight_files(folder)[-1].write_bytes(b"")


def _first_in_index(folder: Path, target: str) -> None:
    def change(index: Config) -> None:
        index["weight_map"][next(iter(index["weight_map"]))] = target

    change_json(folder, "model.safetensors.index.json", change)


@plant("llama", bad=True)
def index_traversal(folder: Path) -> None:
    """The index points out of the folder, at a file that exists there."""
    outside = folder.parent / "outside.safetensors"
    save_file({"secret": torch.zeros(2)}, outside)
    _first_in_index(folder, "../outside.safetensors")


@plant("llama", bad=True)
def index_absolute(folder: Path) -> None:
    """The index holds an absolute path."""
    outside = folder.parent / "outside.safetensors"
    save_file({"secret": torch.zeros(2)}, outside)
    _first_in_index(folder, str(outside))


@plant("llama", bad=True)
def index_absent_tensor(folder: Path) -> None:
    """The index promises a tensor that no shard has."""

    def change(index: Config) -> None:
        shard = next(iter(index["weight_map"].values()))
        index["weight_map"]["model.layers.99.mlp.up_proj.weight"] = shard

    change_json(folder, "model.safetensors.index.json", change)


@plant("llama", bad=True)
def index_wrong_shard(folder: Path) -> None:
    """The index puts a tensor into the wrong shard."""

    def change(index: Config) -> None:
        files = sorted(set(index["weight_map"].values()))
        name = next(n for n, file in index["weight_map"].items() if file == files[0])
        index["weight_map"][name] = files[1]

    change_json(folder, "model.safetensors.index.json", change)


@plant("llama")
def index_omits_tensor(folder: Path) -> None:
    """A shard holds a tensor that the index does not list."""

    def change(index: Config) -> None:
        del index["weight_map"]["model.norm.weight"]

    change_json(folder, "model.safetensors.index.json", change)


@plant("llama", bad=True)
def index_not_json(folder: Path) -> None:
    """The index is not JSON."""
    (folder / "model.safetensors.index.json").write_text("{", encoding="utf-8")


@plant("llama", bad=True)
def duplicate_tensor(folder: Path) -> None:
    """The same name in two shards, with different values."""
    first, second = weight_files(folder)[:2]
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: tensor * 2}, second, metadata={"format": "pt"})


@plant("llama", bad=True)
def header_overlap(folder: Path) -> None:
    """Two tensors share bytes."""
    file = weight_files(folder)[0]
    header, data = raw_header(file)
    names = [n for n in header if n != "__metadata__"]
    twin = next((a, b) for a in names for b in names if a < b and header[a]["shape"] == header[b]["shape"])
    header[twin[1]]["data_offsets"] = header[twin[0]]["data_offsets"]
    write_raw(file, header, data)


@plant("llama", bad=True)
def header_absurd_length(folder: Path) -> None:
    """The header claims to be an exabyte long."""
    file = weight_files(folder)[0]
    blob = file.read_bytes()
    file.write_bytes(struct.pack("<Q", 1 << 60) + blob[8:])


@plant("llama", bad=True)
def header_not_json(folder: Path) -> None:
    """The header is not JSON."""
    file = weight_files(folder)[0]
    blob = bytearray(file.read_bytes())
    blob[8:12] = b"\xff\xfe[["
    file.write_bytes(bytes(blob))


@plant("llama", bad=True)
def header_wrong_size(folder: Path) -> None:
    """A tensor's shape and its number of bytes disagree."""
    file = weight_files(folder)[0]
    header, data = raw_header(file)
    name = next(n for n in header if n != "__metadata__" and len(header[n]["shape"]) == 2)
    header[name]["shape"][0] += 1
    write_raw(file, header, data)


@plant("llama", bad=True)
def header_past_the_end(folder: Path) -> None:
    """Offsets reach beyond the file."""
    file = weight_files(folder)[0]
    header, data = raw_header(file)
    name = max((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"][1])
    begin, end = header[name]["data_offsets"]
    header[name]["data_offsets"] = [begin + 4096, end + 4096]
    write_raw(file, header, data)


@plant("llama", bad=True)
def header_unknown_dtype(folder: Path) -> None:
    """A type nobody has heard of."""
    file = weight_files(folder)[0]
    header, data = raw_header(file)
    header[next(n for n in header if n != "__metadata__")]["dtype"] = "Q7_X"
    write_raw(file, header, data)


@plant("qwen3_5", bad=True)
def config_absent(folder: Path) -> None:
    """No config.json."""
    (folder / "config.json").unlink()


@plant("qwen3_5", bad=True)
def config_not_json(folder: Path) -> None:
    """config.json breaks off."""
    text = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(text[: len(text) // 2], encoding="utf-8")


@plant("qwen3_5", bad=True)
def model_type_unknown(folder: Path) -> None:
    """A family nobody has heard of."""

    def change(config: Config) -> Config:
        return {"architectures": ["NovelForCausalLM"], "model_type": "novel", "hidden_size": 256}

    change_config(folder, change)


@plant("qwen3_5", bad=True)
def layer_count_lying(folder: Path) -> None:
    """The config has more layers than the weights."""

    def change(config: Config) -> Config:
        kinds = [*config["layer_types"], "linear_attention"]
        return {**config, "num_hidden_layers": len(kinds), "layer_types": kinds}

    change_text_config(folder, change)


@plant("qwen3_5", bad=True)
def matrix_shape_wrong(folder: Path) -> None:
    """One matrix has a row too few for what the config says."""

    def change(tensors: Tensors) -> Tensors:
        name = next(n for n in tensors if n.endswith("layers.1.mlp.up_proj.weight"))
        return {**tensors, name: tensors[name][:-1].contiguous()}

    change_tensors(folder, change)


def _spoil(folder: Path, value: float) -> None:
    def change(tensors: Tensors) -> Tensors:
        name = next(n for n in tensors if n.endswith("layers.1.mlp.down_proj.weight"))
        spoilt = tensors[name].clone()
        spoilt[3, 5] = value
        return {**tensors, name: spoilt}

    change_tensors(folder, change)


@plant("qwen3_5", bad=True)
def weights_nan(folder: Path) -> None:
    """One weight is not a number."""
    _spoil(folder, float("nan"))


@plant("qwen3_5", bad=True)
def weights_inf(folder: Path) -> None:
    """One weight is infinite."""
    _spoil(folder, float("inf"))
