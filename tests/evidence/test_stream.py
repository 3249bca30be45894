"""The layer-streamed pass against whole models: transformers' own, and the MTP block written out by hand."""

from __future__ import annotations

import gc
import json
import sys
import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_draft import Draft
from safetensors.torch import load_file, save_file
from whole_model import Seen, bf16, exact, random_ids, run_whole, worst
from zoo import ZOO
from zoo_types import Zoo, ZooCopy

from qexport.errors import EnvironmentProblem, InputError, UsageProblem
from qexport.evidence import stream as stream_module
from qexport.evidence.observe import InputSquares
from qexport.evidence.options import StreamOptions
from qexport.evidence.stream import LayerStream, Stage
from qexport.families.roles import Block
from qexport.families.view import ModelView
from qexport.recipe.choice import ModelChoice
from qexport.run.model import examine

# float32 sums in another order; the worst that was seen is 4e-6.
TOLERANCE = 2e-5
WITH_HEAD = ("qwen3_5", "qwen3_5_tied", "qwen3_5_moe", "qwen3_5_moe_122b")


def view_of(folder: Path) -> ModelView:
    return examine(ModelChoice(str(folder)), download=False).repaired.view()


def ids_for(folder: Path, chunks: int = 5, size: int = 40) -> np.ndarray:
    config = json.loads((folder / "config.json").read_text())
    return random_ids(config.get("text_config", config)["vocab_size"], chunks, size)


@cache
def whole(folder: Path) -> Seen:
    return run_whole(folder, ids_for(folder))


def streamed(folder: Path, ids: np.ndarray | None = None, **options: Any) -> InputSquares:
    options = {"precision": "float32", "batch_tokens": 80, **options}
    squares = InputSquares()
    stream = LayerStream(view_of(folder), StreamOptions(**options))
    stream.run(ids_for(folder) if ids is None else ids, squares)
    return squares


def trunk(squares: InputSquares) -> set[str]:
    return {name for name in squares.sums if not name.startswith("mtp.")}


@pytest.mark.parametrize("name", ZOO)
def test_every_product_of_the_whole_model(zoo: Zoo, name: str) -> None:
    """Sums, counts per expert and final hidden states; batches of two chunks and a last one of one."""
    folder = zoo(name)
    expected = whole(folder)
    squares, final = InputSquares(), torch.full_like(expected.final, torch.nan)
    view = view_of(folder)
    stream = LayerStream(view, StreamOptions(precision="float32", batch_tokens=80))
    starts: list[int] = []

    def keep(start: int, hidden: torch.Tensor) -> None:
        starts.append(start)
        final[start : start + len(hidden)] = hidden

    stream.run(ids_for(folder), squares, final=keep)
    assert starts == [0, 2, 4]
    assert set(squares.sums) - {t.name for t in view if t.block is Block.MTP} == {
        name for name in expected.sums if not name.startswith("lm_head")
    }
    assert worst(squares, expected) < TOLERANCE
    torch.testing.assert_close(final, expected.final, rtol=1e-4, atol=1e-4)
    assert all(seen.dtype == np.int64 for seen in squares.counts.values())
    assert all(sums.dtype == np.float64 for sums in squares.sums.values())


@pytest.mark.parametrize("name", ["qwen3_5_moe", "llama3"])
def test_a_stage_at_a_time(zoo: Zoo, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """After each stage its sums are there, its weights are not, and torch is as the caller has it."""
    folder, living = zoo(name), dict[int | None, list[weakref.ref[torch.Tensor]]]()
    whole_run = streamed(folder)
    fill = stream_module.fill

    def filled(tensors: Any, *args: Any) -> dict[str, torch.Tensor]:
        weights = fill(tensors, *args)
        living[tensors[0].layer] = [weakref.ref(weight) for weight in weights.values()]
        return weights

    monkeypatch.setattr(stream_module, "fill", filled)
    view, squares, seen = view_of(folder), InputSquares(), dict[Stage, set[str]]()
    stream = LayerStream(view, StreamOptions(precision="float32", batch_tokens=80, threads=1))
    threads = torch.get_num_threads()
    for stage in stream.stages(ids_for(folder), squares):
        assert torch.is_grad_enabled()
        assert torch.get_num_threads() == threads
        assert not any(ref() is not None for ref in living.get(stage.layer, []))
        seen[stage] = squares.sums.keys() - set().union(*seen.values())
    layers = [Stage(Block.TRUNK, layer) for layer in range(view.layers)]
    mtp = [Stage(Block.MTP)] * bool(view.mtp_layers)
    assert list(seen) == [Stage(Block.EMBED), *layers, Stage(Block.HEAD), *mtp]
    blocks = {tensor.name: tensor for tensor in view if tensor.name in whole_run.sums}
    for stage, names in seen.items():
        layer = {name for name, t in blocks.items() if t.block is stage.block}
        assert names == {name for name in layer if stage.layer in (None, blocks[name].layer)}
    assert worst(squares, whole_run) == 0  # type: ignore[arg-type]


def test_attention_windows_are_the_familys(zoo_copy: ZooCopy) -> None:
    """A window shorter than the text: layers that slide differ from the one that does not."""
    folder = zoo_copy("gemma3")
    wide = streamed(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "sliding_window": 8}))
    narrow = streamed(folder)
    assert worst(narrow, run_whole(folder, ids_for(folder))) < TOLERANCE
    assert worst(narrow, wide, ["model.layers.0.self_attn.o_proj.weight"]) > 100 * TOLERANCE  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe", "llama3", "gemma3"])
def test_batches_threads_and_spilling_change_nothing(zoo: Zoo, tmp_path: Path, name: str) -> None:
    folder = zoo(name)
    whole_text = streamed(folder, batch_tokens=10**6)
    for options in (
        {"batch_tokens": 1},
        {"batch_tokens": 80},
        {"batch_tokens": 120, "threads": 1},
        {"activation_memory": 0, "spill_folder": tmp_path},
    ):
        squares = streamed(folder, **options)
        assert set(squares.sums) == set(whole_text.sums)
        assert worst(squares, whole_text) < TOLERANCE, options  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("chunks", "size"), [(3, 2), (2, 65), (1, 130)])
@pytest.mark.parametrize("name", ["qwen3_5_text", "smollm"])
def test_chunk_lengths(zoo: Zoo, name: str, chunks: int, size: int) -> None:
    """Linear attention works in pieces of 64 tokens; a chunk need not be a multiple of that."""
    folder = zoo(name)
    ids = ids_for(folder, chunks, size)
    assert worst(streamed(folder, ids), run_whole(folder, ids)) < TOLERANCE


@pytest.mark.parametrize("name", ["smollm", "qwen3_5_text", "qwen3_moe", "gemma3"])
@pytest.mark.parametrize("precision", ["mixed", "bfloat16"])
def test_rounding_is_where_it_is_said_to_be(zoo: Zoo, name: str, precision: Any) -> None:
    """bf16 operands, float32 or bf16 results, checked in the first layer: there, nothing but the arithmetic
    of one or two products can differ. Further on, a last bit that falls to the other side moves as much as
    the rounding itself.
    """
    folder = zoo(name)
    squares = streamed(folder, precision=precision)
    results = exact if precision == "mixed" else bf16
    expected = run_whole(folder, ids_for(folder), operands=bf16, results=results)
    first = "model.layers.0."
    kind = "linear_attn.out_proj" if name.startswith("qwen3_5") else "self_attn.o_proj"
    mlp = "mlp.gate.weight" if "moe" in name else "mlp.up_proj.weight"
    names = [f"{first}{kind}.weight", f"{first}{mlp}"]
    near = 1e-4 if precision == "mixed" else 2e-3
    assert worst(squares, expected, names) < near
    assert worst(squares, whole(folder), names) > 10 * worst(squares, expected, names)
    # All over the model they stay near each other, and every token is seen.
    for tensor, sums in expected.sums.items():
        assert squares.counts[tensor].sum() == expected.counts[tensor].sum()
        if "experts" not in tensor:
            assert np.abs(squares.sums[tensor] - sums).mean() < 0.02 * sums.mean(), tensor


def test_routers_and_small_tensors_stay_float32(zoo: Zoo) -> None:
    """A router rounded to bf16 sends tokens elsewhere; llama.cpp keeps these in float32, too."""
    view = view_of(zoo("qwen3_5_moe"))
    stream = LayerStream(view, StreamOptions(precision="mixed"))
    weights = stream._weights([t for t in view if t.block is Block.TRUNK and t.layer in (0, 3)])
    wide = {name.split(".", 3)[3] for name, tensor in weights.items() if tensor.dtype == torch.float32}
    assert wide == {
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        "linear_attn.A_log",
        "linear_attn.dt_bias",
        "linear_attn.conv1d.weight",
        "linear_attn.norm.weight",
        "self_attn.q_norm.weight",
        "self_attn.k_norm.weight",
        "mlp.gate.weight",
        "mlp.shared_expert_gate.weight",
    }
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32, torch.bfloat16}


# --- the MTP block ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_HEAD)
def test_the_draft_head(zoo: Zoo, name: str) -> None:
    folder = zoo(name)
    ids = ids_for(folder)
    squares = streamed(folder)
    expected = Draft(folder).run(ids, whole(folder).final)
    assert set(squares.sums) - trunk(squares) == set(expected.sums)
    assert worst(squares, expected) < TOLERANCE
    assert squares.counts["mtp.fc.weight"].tolist() == [ids.size - len(ids)]  # the last token has no next


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
@pytest.mark.parametrize("wrong", [{"shift": 0}, {"swapped": True}])
def test_a_wrong_draft_head_would_show(zoo: Zoo, name: str, wrong: Any) -> None:
    """The same comparison with the token itself instead of the next one, or with the halves swapped."""
    folder = zoo(name)
    expected = Draft(folder, **wrong).run(ids_for(folder), whole(folder).final)
    names = ["mtp.fc.weight", "mtp.layers.0.self_attn.o_proj.weight"]
    assert worst(streamed(folder), expected, names) > 0.1


def test_a_dropped_head_is_not_run(zoo: Zoo) -> None:
    view = examine(ModelChoice(str(zoo("qwen3_5")), mtp="drop"), download=False).repaired.view()
    stream = LayerStream(view, StreamOptions(precision="float32"))
    squares = InputSquares()
    stream.run(ids_for(zoo("qwen3_5")), squares)
    assert len(trunk(squares)) == len(squares.sums) > 0


# --- progress, precision, threads ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen3_5", "smollm"])
def test_progress_ends_at_its_total(zoo: Zoo, name: str) -> None:
    class Counter:
        done = 0

        def advance(self, units: int) -> None:
            self.done += units

    counter, ids = Counter(), ids_for(zoo(name))
    stream = LayerStream(view_of(zoo(name)), StreamOptions(batch_tokens=80))
    stream.run(ids, InputSquares(), progress=counter)
    layers = {"qwen3_5": 4 + 1, "smollm": 3}[name]
    assert counter.done == stream.units(ids) == 3 * (layers + 2)


@pytest.mark.parametrize(
    ("name", "multiplies", "precision"),
    [
        ("smollm", True, "bfloat16"),
        ("smollm", False, "mixed"),
        ("qwen3_5", True, "bfloat16"),  # A_log in float32 does not make it another checkpoint
        ("qwen3_5_moe", True, "mixed"),
        ("llama", True, "float32"),  # float16
        ("qwen2", True, "float32"),
    ],
)
def test_what_auto_means(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, name: str, multiplies: bool, precision: str
) -> None:
    monkeypatch.setattr(stream_module, "multiplies_bf16", lambda: multiplies)
    assert LayerStream(view_of(zoo(name))).precision == precision


def test_threads_and_settings_come_back(zoo: Zoo) -> None:
    before = torch.get_num_threads(), torch.backends.mkldnn.matmul.fp32_precision, torch.is_grad_enabled()
    streamed(zoo("smollm"), threads=1, precision="mixed")
    assert before == (
        torch.get_num_threads(),
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.is_grad_enabled(),
    )


def test_a_stream_can_run_again(zoo: Zoo) -> None:
    """Layers are let go after a run and come back in the next; an observer adds up."""
    ids = ids_for(zoo("qwen3_5_moe"))
    stream = LayerStream(view_of(zoo("qwen3_5_moe")), StreamOptions(precision="float32", batch_tokens=80))
    once, twice = InputSquares(), InputSquares()
    stream.run(ids, once)
    stream.run(ids, twice)
    stream.run(ids, twice)
    for name in once.sums:
        assert np.array_equal(twice.sums[name], 2 * once.sums[name])
        assert np.array_equal(twice.counts[name], 2 * once.counts[name])


def test_no_weights_stay_behind(zoo: Zoo) -> None:
    stream = LayerStream(view_of(zoo("qwen3_5_moe")), StreamOptions(precision="float32"))
    stream.run(ids_for(zoo("qwen3_5_moe")), InputSquares())
    gc.collect()
    matrices = [p for p in stream._model.parameters() if p.ndim >= 2 and not p.is_meta]
    # The rows of the embedding that the last batch used are all that may be left.
    assert sum(p.nbytes for p in matrices) <= 5 * 40 * 256 * 4


# --- errors ----------------------------------------------------------------------------------------------


def damaged(folder: Path, tensor: str) -> Path:
    """One NaN in ``tensor`` (plain name) of a writable zoo checkpoint."""
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name in tensors:
            if name.replace("model.language_model.", "model.") == tensor:
                tensors[name].view(-1)[7] = torch.nan
                save_file(tensors, path, metadata={"format": "pt"})
                return folder
    raise AssertionError(f"no {tensor}")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (
            "model.layers.1.mlp.up_proj.weight",
            r"layer 1: what enters model\.layers\.1\.mlp\.down_proj\.weight",
        ),
        (
            "model.layers.0.mlp.down_proj.weight",
            r"layer 1: what enters model\.layers\.1\.linear_attn\.in_proj",
        ),
        ("model.norm.weight", r"the MTP block: what enters mtp\.fc\.weight"),
        ("mtp.layers.0.mlp.gate_proj.weight", r"the MTP block: what enters mtp\.layers\.0\.mlp\.down_proj"),
    ],
)
def test_damaged_weights_are_named(zoo_copy: ZooCopy, tensor: str, message: str) -> None:
    folder = damaged(zoo_copy("qwen3_5"), tensor)
    with pytest.raises(InputError, match=message) as caught:
        streamed(folder)
    assert "not finite" in str(caught.value)


@pytest.mark.parametrize("token", [448, 10**6, -1])
def test_tokens_of_another_vocabulary(zoo: Zoo, token: int) -> None:
    ids = ids_for(zoo("qwen3_5"))
    ids[3, 7] = token
    with pytest.raises(InputError, match=f"token {token} is beyond the model's vocabulary of 448"):
        streamed(zoo("qwen3_5"), ids)


@pytest.mark.parametrize("shape", [(0, 8), (3, 1), (3,)])
def test_tokens_in_no_chunks(zoo: Zoo, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageProblem, match="tokens must be"):
        streamed(zoo("smollm"), np.zeros(shape, np.int32))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("cuda", EnvironmentProblem, "sees no CUDA device"),
        ("cuda:0", EnvironmentProblem, "sees no CUDA device"),
        ("tpu", UsageProblem, "no device 'tpu'"),
        ("cpu:first", UsageProblem, "no device 'cpu:first'"),
        ("", UsageProblem, "no device ''"),
    ],
)
def test_devices_that_are_not_there(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, name: str, error: type[Exception], message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(error, match=message):
        LayerStream(view_of(zoo("smollm")), StreamOptions(device=name))


def test_a_device_beyond_the_last(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(EnvironmentProblem, match="no 'cuda:1' here; CUDA devices: 1"):
        LayerStream(view_of(zoo("smollm")), StreamOptions(device="cuda:1"))


def test_transformers_missing(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EnvironmentProblem, match="needs transformers, which is not installed") as caught:
        LayerStream(view_of(zoo("smollm")))
    assert "qexport[reference]" in str(caught.value)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("model.layers.1.mlp.up_proj.weight", r"expects model\.layers\.1\.mlp\.up_proj\.weight"),
        ("model.norm.weight", "no output_norm"),
        ("model.embed_tokens.weight", "no token_embd"),
        ("mtp.fc.weight", r"expects mtp\.fc\.weight"),
    ],
)
def test_a_tensor_missing_from_the_view(zoo: Zoo, gone: str, message: str) -> None:
    view = view_of(zoo("qwen3_5"))
    less = replace(view, tensors=tuple(t for t in view if t.name != gone))
    assert len(less.tensors) == len(view.tensors) - 1
    with pytest.raises(InputError, match=message):
        LayerStream(less, StreamOptions(precision="float32")).run(ids_for(zoo("qwen3_5")), InputSquares())


def test_a_tensor_of_another_shape(zoo: Zoo) -> None:
    """A config that lies about the width of the MLP."""
    view = view_of(zoo("smollm"))
    lying = replace(view, text={**view.text, "intermediate_size": 704})
    with pytest.raises(InputError, match=r"mlp\.\w+_proj\.weight: shape .* transformers expects"):
        LayerStream(lying, StreamOptions(precision="float32")).run(ids_for(zoo("smollm")), InputSquares())
