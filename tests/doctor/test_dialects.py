"""Dialects of names and layouts: what training leaves is taken out, bit for bit; what is another thing is
refused by its name, with the step that leads on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from doctor_bench import HeadersOnly, ids, opened, repair, same, tensors_in
from quirks_planted import Tensors, change_tensors, change_text_config, rename
from zoo_types import Zoo, ZooCopy

from qexport.doctor import diagnose, explain
from qexport.doctor.diagnose import Diagnosis
from qexport.errors import InputError
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf
from qexport.formats.weights import weights_of

Rename = Callable[[str], str]
# Dense, mixture, hybrid with and without head, wrapper, tied with norms that are centred.
FAMILIES = ("llama", "qwen3_moe", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "gemma3")


def front(*parts: str) -> Rename:
    return lambda name: "".join(parts) + name


def between(part: str) -> Rename:
    """Around each layer, and around its attention, as FSDP and activation checkpointing wrap them."""

    def change(name: str) -> str:
        at = name.split(".")
        if "layers" not in at:
            return name
        n = at.index("layers") + 2
        return ".".join([*at[:n], part, at[n], part, *at[n + 1 :]])

    return change


def both(*changes: Rename) -> Rename:
    def change(name: str) -> str:
        for one in changes:
            name = one(name)
        return name

    return change


def doubled(name: str) -> str:
    return "model." + name if name.startswith("model.") else name


WRAPPED: dict[str, tuple[Rename, str]] = {
    "torch.compile": (front("_orig_mod."), "names.wrapped"),
    "DDP": (front("module."), "names.wrapped"),
    "FSDP": (front("_fsdp_wrapped_module."), "names.wrapped"),
    "Lightning": (front("_forward_module."), "names.wrapped"),
    "trl": (front("pretrained_model."), "names.wrapped"),
    "somebody's own": (front("policy.actor."), "names.wrapped"),
    "PEFT": (front("base_model.model."), "names.peft"),
    "doubled": (doubled, "names.nested"),
    "DDP over compile": (front("module.", "_orig_mod."), "names.wrapped"),
    "compile over DDP": (front("_orig_mod.", "module."), "names.wrapped"),
    "twice": (front("module.", "module."), "names.wrapped"),
    "FSDP in the middle": (between("_fsdp_wrapped_module"), "names.wrapped"),
    "checkpointing in the middle": (between("_checkpoint_wrapped_module"), "names.wrapped"),
    "compiled layers": (between("_orig_mod"), "names.wrapped"),
    "all of them": (
        both(
            between("_checkpoint_wrapped_module"),
            between("_fsdp_wrapped_module"),
            front("_forward_module.", "module.", "_orig_mod.", "_fsdp_wrapped_module."),
        ),
        "names.wrapped",
    ),
}


def assert_repaired_as_clean(zoo: Zoo, name: str, folder: Path, out: Path, expected: str) -> Diagnosis:
    """The repaired tensors are those of the clean checkpoint, repaired; nothing else is found."""
    clean, clean_out = repair(zoo(name), out / "clean")
    diagnosis, written = repair(folder, out / "planted")
    assert ids(diagnosis, "repaired", "error") - ids(clean) == {expected}
    mine, theirs = tensors_in(written), tensors_in(clean_out)
    assert mine.keys() == theirs.keys()
    assert all(same(mine[key], theirs[key]) for key in mine)
    assert ids(diagnose(HeadersOnly(opened(folder)))) >= {expected}
    assert not ids(diagnose(opened(written)), "repaired", "error")
    return diagnosis


# Each dialect in two families, and in each family those that touch names in different places.
PLANTED = [
    (name, dialect)
    for name in FAMILIES
    for dialect in WRAPPED
    if name in ("llama", "qwen3_5_moe") or dialect in ("all of them", "PEFT", "doubled")
]


@pytest.mark.parametrize(("name", "dialect"), PLANTED)
def test_wrappers(zoo: Zoo, zoo_copy: ZooCopy, tmp_path: Path, name: str, dialect: str) -> None:
    change, expected = WRAPPED[dialect]
    folder = zoo_copy(name)
    rename(folder, change)
    assert_repaired_as_clean(zoo, name, folder, tmp_path, expected)


def test_some_wrapped_and_some_not(zoo: Zoo, zoo_copy: ZooCopy, tmp_path: Path) -> None:
    folder = zoo_copy("qwen3_5_text")
    rename(folder, lambda name: name if ".layers.1." in name else "module." + name)
    assert_repaired_as_clean(zoo, "qwen3_5_text", folder, tmp_path, "names.wrapped")


def test_one_tensor_wrapped_and_plain_is_one(zoo_copy: ZooCopy) -> None:
    folder = zoo_copy("llama")
    change_tensors(folder, lambda t: t | {"module.model.norm.weight": t["model.norm.weight"].clone()})
    assert ids(diagnose(opened(folder)), "error") == set()
    assert "names.twice" in ids(diagnose(opened(folder)), "repaired")


STRAY: dict[str, Rename] = {
    "one layer": lambda name: "actor." + name if ".layers.1." in name else name,
    "one matrix of each": lambda name: "actor.net." + name if "down_proj" in name else name,
    "the embedding": lambda name: "x." + name if "embed_tokens" in name else name,
    "inside": lambda name: name.replace("model.", "model.foo.", 1) if ".layers.1." in name else name,
    "instead": lambda name: name.replace("model.", "foo.", 1) if ".layers.1." in name else name,
    "two": lambda name: ("a." if "norm" in name else "b.") + name if ".layers.1." in name else name,
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("stray", STRAY)
def test_something_in_front_of_some_names(
    zoo: Zoo, zoo_copy: ZooCopy, tmp_path: Path, name: str, stray: str
) -> None:
    folder = zoo_copy(name)
    rename(folder, STRAY[stray])
    assert_repaired_as_clean(zoo, name, folder, tmp_path, "names.wrapped")


def test_a_head_behind_something_is_the_head_where_one_is_missing(zoo: Zoo, zoo_copy: ZooCopy) -> None:
    folder = zoo_copy("llama")
    rename(folder, lambda name: "x." + name if name.startswith("lm_head.") else name)
    assert ids(diagnose(opened(folder)), "error", "repaired") == ids(
        diagnose(opened(zoo("llama"))), "error", "repaired"
    ) | {"names.wrapped"}
    tied = zoo_copy("gemma3")
    change_tensors(tied, lambda t: t | {"x.lm_head.weight": torch.zeros(4, 4)})
    (error,) = diagnose(opened(tied)).errors
    assert (error.id, "x.lm_head.weight" in error.what) == ("tensors.unfit", True)


def test_a_second_copy_is_named(zoo_copy: ZooCopy) -> None:
    folder = zoo_copy("qwen3_5")
    change_tensors(folder, lambda t: t | {f"ema.{n}": x * 2 for n, x in t.items() if ".layers.1." in n})
    (error,) = diagnose(opened(folder)).errors
    assert error.id == "names.copies"
    what = "14 tensors have something in front of names that are there without it, such as ema.model."
    assert error.what.startswith(what)


@pytest.mark.parametrize("prefix", ["", "pretrained_model."])
def test_value_head_is_left_out(zoo: Zoo, zoo_copy: ZooCopy, tmp_path: Path, prefix: str) -> None:
    folder = zoo_copy("llama")
    rename(folder, front(prefix))
    more = {"v_head.summary.weight": torch.ones(1, 256), "v_head.summary.bias": torch.zeros(1)}
    change_tensors(folder, lambda t: t | more)
    clean, _ = repair(zoo("llama"), tmp_path / "clean")
    diagnosis, out = repair(folder, tmp_path / "out")
    wanted = {"names.value_head", "names.wrapped"} if prefix else {"names.value_head"}
    assert ids(diagnosis, "repaired", "error") - ids(clean) == wanted
    assert tensors_in(out).keys() == tensors_in(tmp_path / "clean").keys()


# --- saved by mlx-lm ----------------------------------------------------------------------------------------


def mlx_names(name: str) -> str:
    for published in ("model.language_model.", "model."):
        if name.startswith(published):
            return "language_model.model." + name.removeprefix(published)
    return "language_model." + name if name.startswith("lm_head") else name


PLUS_ONE = ("input_layernorm.weight", "post_attention_layernorm.weight", "q_norm.weight", "k_norm.weight")


def saved_by_mlx(tensors: Tensors) -> Tensors:
    """What mlx-lm keeps of a Qwen3.5, as its own sanitize makes it."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        if name.startswith(("mtp.", "model.visual.")):
            continue
        if "conv1d.weight" in name:
            tensor = tensor.movedim(2, 1).contiguous()
        if name.endswith(PLUS_ONE) or name.endswith("model.norm.weight"):
            tensor = tensor + 1
        at, mark, kind = name.rpartition(".mlp.experts.")
        if mark and kind == "gate_up_proj":
            gate, up = tensor.chunk(2, dim=1)
            out[mlx_names(f"{at}.mlp.switch_mlp.gate_proj.weight")] = gate.contiguous()
            out[mlx_names(f"{at}.mlp.switch_mlp.up_proj.weight")] = up.contiguous()
        elif mark and kind == "down_proj":
            out[mlx_names(f"{at}.mlp.switch_mlp.down_proj.weight")] = tensor
        else:
            out[mlx_names(name)] = tensor
    return out


def is_shifted(name: str) -> bool:
    return name.endswith(PLUS_ONE) or (name.endswith("norm.weight") and "linear_attn" not in name)


@pytest.mark.parametrize("name", ["qwen3_5_text", "qwen3_5_moe_text"])
def test_saved_by_mlx(zoo: Zoo, zoo_copy: ZooCopy, tmp_path: Path, name: str) -> None:
    layout = {"expert_layout": "fused"} if "moe" in name else {}
    folder = zoo_copy(name, **layout)
    change_tensors(folder, saved_by_mlx)
    clean = tensors_in(repair(zoo(name, **layout), tmp_path / "clean")[1])
    diagnosis, out = repair(folder, tmp_path / "out")
    assert "weights.mlx_saved" in ids(diagnosis, "repaired")
    assert not ids(diagnosis, "error")
    found = tensors_in(out)
    assert found.keys() == clean.keys()
    for key, tensor in found.items():
        wanted = clean[key] + 1 - 1 if is_shifted(key) else clean[key]  # rounded when mlx-lm added one
        assert same(tensor, wanted), key
        assert same(tensor + 1, clean[key] + 1) or not is_shifted(key)  # what mlx-lm had, and gets again
    assert not ids(diagnose(opened(out)), "repaired", "error")
    assert "weights.mlx_saved" in ids(diagnose(HeadersOnly(opened(folder))), "repaired")
    view = diagnosis.repaired.view()
    assert plan_gguf(view, ["Q8_0"], GgufOptions())[0].size
    weights, problem = weights_of(diagnosis)
    assert problem is None
    assert {w.format for w in weights} >= {"MLX 6-bit", "FP8 block 128"}


def test_mlx_wrapper_keeps_its_form(zoo_copy: ZooCopy) -> None:
    """From a published Qwen3.5 the tower and the head are lost in mlx-lm, and both are said."""
    folder = zoo_copy("qwen3_5")
    change_tensors(folder, saved_by_mlx)
    found = ids(diagnose(opened(folder)))
    assert found >= {"weights.mlx_saved", "vision.absent", "mtp.lost"}
    dropped = diagnose(opened(folder), mtp="drop")
    assert not dropped.errors
    assert dropped.repaired.view().layers


def test_stacked_experts_of_a_plain_mixture(zoo: Zoo, zoo_copy: ZooCopy, tmp_path: Path) -> None:
    folder = zoo_copy("qwen3_moe")

    def stacked(tensors: Tensors) -> Tensors:
        out: Tensors = {}
        for name, tensor in tensors.items():
            at, mark, rest = name.partition(".mlp.experts.")
            if not mark:
                out[name] = tensor
            elif rest.startswith("0."):
                kind = rest.removeprefix("0.")
                each = [tensors[f"{at}.mlp.experts.{n}.{kind}"] for n in range(8)]
                out[f"{at}.mlp.switch_mlp.{kind}"] = torch.stack(each)
        return out

    change_tensors(folder, stacked)
    assert_repaired_as_clean(zoo, "qwen3_moe", folder, tmp_path, "experts.layout")


# --- another thing ------------------------------------------------------------------------------------------


def only_error(folder: Path, expected: str) -> str:
    """The one error, its ways out, and nothing that only follows from it."""
    for checkpoint in (opened(folder), HeadersOnly(opened(folder))):
        diagnosis = diagnose(checkpoint)
        assert ids(diagnosis, "error") == {expected}
        groups = {finding.id.split(".")[0] for finding in diagnosis.findings}
        assert not groups & {"tie", "mtp", "vocab", "experts"}
        assert explain(diagnosis).findings[0].id == expected
    (error,) = diagnosis.errors
    assert error.breaks
    assert "inspect" not in error.repair
    return f"{error.what} {error.repair}"


@pytest.mark.parametrize("name", FAMILIES)
def test_reward_model(zoo_copy: ZooCopy, name: str) -> None:
    folder = zoo_copy(name)
    change_tensors(
        folder,
        lambda t: {n: x for n, x in t.items() if "lm_head" not in n} | {"score.weight": torch.ones(1, 256)},
    )
    assert "ForCausalLM" in only_error(folder, "names.classifier")


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("name", FAMILIES)
def test_zero3(zoo_copy: ZooCopy, name: str, share: float) -> None:
    folder = zoo_copy(name)

    def emptied(tensors: Tensors) -> Tensors:
        count = int(len(tensors) * share)
        return {
            key: tensor.new_empty(0) if (n < count and tensor.dim() > 1) or share == 1 else tensor
            for n, (key, tensor) in enumerate(tensors.items())
        }

    change_tensors(folder, emptied)
    said = only_error(folder, "weights.empty")
    assert "zero_to_fp32.py" in said
    assert "stage3_gather_16bit_weights_on_model_save" in said


ADAPTERS = (
    "model.layers.0.self_attn.q_proj.lora_A.weight",
    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight",
    "model.layers.0.self_attn.q_proj.lora_magnitude_vector.default.weight",
    "model.embed_tokens.lora_embedding_A.default",
    "model.lm_head.modules_to_save.default.weight",
    "model.layers.0.mlp.up_proj.lora_a",
)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapter_beside_the_weights(zoo_copy: ZooCopy, adapter: str) -> None:
    folder = zoo_copy("llama")
    change_tensors(folder, lambda t: t | {adapter: torch.ones(8, 8)})
    assert "merge_and_unload" in only_error(folder, "names.adapter")


def mistral_name(name: str) -> str:
    for theirs, own in {
        "model.": "",
        "embed_tokens": "tok_embeddings",
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attention_norm",
        "lm_head": "output",
    }.items():
        name = name.replace(theirs, own)
    return name


@pytest.mark.parametrize("name", ["mistral", "llama"])
def test_mistrals_own_names(zoo_copy: ZooCopy, name: str) -> None:
    folder = zoo_copy(name)
    rename(folder, mistral_name)
    assert "convert_mistral_weights_to_hf.py" in only_error(folder, "names.mistral")


def test_flat_parameters(zoo_copy: ZooCopy) -> None:
    folder = zoo_copy("llama")
    rename(folder, lambda n: n.replace("mlp.up_proj.weight", "_fsdp_wrapped_module._flat_param"))
    assert "FULL_STATE_DICT" in only_error(folder, "names.flat")


@pytest.mark.parametrize("name", FAMILIES)
def test_no_name_is_known(zoo_copy: ZooCopy, name: str) -> None:
    folder = zoo_copy(name)
    rename(folder, lambda n: f"transformer.h.{n.replace('.', '_')}")
    change_text_config(folder, lambda c: {k: v for k, v in c.items() if k != "tie_word_embeddings"})
    said = only_error(folder, "names.unknown")
    assert "tie" not in said


# --- layers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("by", "said"), [(1, "1 missing"), (-1, "1 too many")])
def test_layers_off_by_one(zoo_copy: ZooCopy, name: str, by: int, said: str) -> None:
    folder = zoo_copy(name)

    def change(config: dict[str, object]) -> None:
        count = config["num_hidden_layers"]
        assert isinstance(count, int)
        config["num_hidden_layers"] = count + by
        if isinstance(kinds := config.get("layer_types"), list):
            config["layer_types"] = kinds[:by] if by < 0 else [*kinds, kinds[0]]

    change_text_config(folder, change)
    diagnosis = diagnose(opened(folder))
    assert "layers.count" in ids(diagnosis, "error")
    assert "tensors.unfit" not in ids(diagnosis)
    assert any(said in error.what for error in diagnosis.errors)


@pytest.mark.parametrize(("count", "known"), [(0, "config.values"), (3, "layers.count"), (5, "layers.count")])
def test_layers_that_layer_types_gainsays(zoo_copy: ZooCopy, count: int, known: str) -> None:
    """A head cannot be settled before its errors are known: they are said, not the first alone."""
    folder = zoo_copy("qwen3_5")
    change_text_config(folder, lambda c: {**c, "num_hidden_layers": count})
    diagnosis = diagnose(opened(folder))
    (error,) = (f for f in diagnosis.errors if f.id == known)
    with pytest.raises(InputError) as caught:
        explain(diagnosis)
    assert error.what in caught.value.message
    assert "32" not in caught.value.message


@pytest.mark.parametrize("name", FAMILIES)
def test_layer_lost_from_the_middle(zoo_copy: ZooCopy, name: str) -> None:
    folder = zoo_copy(name)
    change_tensors(folder, lambda t: {n: x for n, x in t.items() if ".layers.1." not in n or "mtp" in n})
    (error,) = diagnose(opened(folder)).errors
    assert error.id == "layers.lost"
    assert "none of layer 1" in error.what
