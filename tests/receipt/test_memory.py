"""Memory of a context: worked out by hand from published configs, and as llama.cpp says."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import zoo
from receipts_made import artifact

from qexport.families.hyper import resolve
from qexport.families.known import FAMILIES
from qexport.receipt.choosing import Option, options_of, pick, picks
from qexport.receipt.memory import Cache, Keys, Load, cache_of

MIB, GIB = 1 << 20, 1 << 30
QWEN36_27B = {
    "hidden_size": 5120,
    "num_hidden_layers": 64,
    "num_attention_heads": 24,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 48,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
    "intermediate_size": 17408,
    "max_position_embeddings": 262144,
}
GEMMA3_27B = {
    "hidden_size": 5376,
    "num_hidden_layers": 62,
    "num_attention_heads": 32,
    "num_key_value_heads": 16,
    "head_dim": 128,
    "sliding_window": 1024,
    "intermediate_size": 21504,
    "max_position_embeddings": 131072,
}
LLAMA31_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "vocab_size": 128256,
}
QWEN3_30B_A3B = {
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
}


def cache(family: str, config: dict, head: int = 0) -> Cache:
    return cache_of(resolve(FAMILIES[family], {"vocab_size": 248320, **config}), head)


# Values of a token, K and V, two bytes each: layers with attention * 2 * KV heads * size of a head * 2.
BY_HAND = [
    # 16 of 64 layers: 16 * 2 * 4 * 256 * 2 = 64 KiB. State: 48 * (48 * 128 * 128 + 3 * 10240) * 4 bytes.
    ("qwen3_5", QWEN36_27B, {8192: 512 * MIB, 32768: 2 * GIB, 131072: 8 * GIB}, 156_893_184),
    # 10 layers see all: 80 KiB a token. 52 see 1024, with what is read at a time 1536 cells of 416 KiB.
    ("gemma3", GEMMA3_27B, {1024: 496 * MIB, 8192: 1264 * MIB, 32768: 3184 * MIB}, 0),
    # 128 KiB a token, the number that everybody knows.
    ("llama", LLAMA31_8B, {8192: GIB, 131072: 16 * GIB}, 0),
    # 96 KiB a token.
    ("qwen3_moe", QWEN3_30B_A3B, {8192: 768 * MIB, 32768: 3 * GIB}, 0),
]


@pytest.mark.parametrize(("family", "config", "sizes", "state"), BY_HAND, ids=[each[0] for each in BY_HAND])
def test_by_hand(family, config, sizes, state):
    found = cache(family, config)
    assert found.state == state
    assert {length: found.size(length) - state for length in sizes} == sizes
    assert found.most == config["max_position_embeddings"]


def test_drafting_takes_the_heads_cache_and_a_state_for_each_draft():
    found = cache("qwen3_5", QWEN36_27B, head=1)
    plain, drafting = found.size(8192), found.size(8192, 3)
    assert drafting - plain == 3 * 156_893_184 + 8192 * 2 * 4 * 256 * 2


def test_the_longest_text_is_the_longest_that_fits():
    found = cache("qwen3_5", QWEN36_27B, head=1)
    for room in (GIB, 5 * GIB, 20 * GIB):
        longest = found.longest(room, 3)
        assert found.size(longest, 3) <= room
        assert longest == found.most or found.size(longest + 1024, 3) > room
    assert found.longest(100 * GIB) == 262144
    assert found.longest(1000) == 0
    assert Load(30 * GIB, found).longest(24) == 0


def test_what_to_take_is_the_closest_that_fits():
    small, middle, large = (
        Option(artifact(label=label), Load(size, Cache((Keys(16, 2048),), most=1 << 18)))
        for label, size in (("Q3_K_M", 13 * GIB), ("Q4_K_M", 16 * GIB), ("Q8_0", 28 * GIB))
    )
    taken = [pick([small, middle, large], gib) for gib in (8, 16, 24, 32)]
    assert [each and each.option.artifact.label for each in taken] == [None, "Q3_K_M", "Q4_K_M", "Q8_0"]
    # 16 - 1 - 13 GiB are 2 GiB: 32k tokens at 64 KiB each.
    assert [each and each.context for each in taken] == [None, 32768, 114688, 49152]


def test_of_receipts_that_do_not_say_nothing_is_said():
    assert options_of([artifact()]) == []
    assert picks([]) == {}


LOG = """
import os, sys, time
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel = sys.argv[1], int(sys.argv[2]), 1
params.warmup, params.cache_ram_mib, params.verbosity, params.cpuparams.n_threads = False, 0, 4, 1
if int(sys.argv[3]):
    params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_MTP]
    params.speculative.draft.n_max, params.load_mtp = int(sys.argv[3]), True
server = xllamacpp.Server(params)
time.sleep(1)  # for the log
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layers", "drafts"), [("qwen3_5", 4, 3), ("gemma3", 6, 0)])
def test_llama_cpp_takes_what_is_foretold(tmp_path, name, layers, drafts):
    pytest.importorskip("xllamacpp")
    from qexport import Gguf, Local, export
    from qexport.recipe.choice import ModelChoice
    from qexport.run.model import examine

    source = zoo.build(name, tmp_path / "M", layers=layers)
    export(str(source), [Gguf(("Q8_0",))], out=tmp_path / "out", local=Local(runtimes=None))
    (file,) = (tmp_path / "out").rglob("*-Q8_0.gguf")
    command = [sys.executable, "-c", LOG, str(file), "2048", str(drafts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    said = re.findall(r"(?:KV|RS) buffer size = +([\d.]+) MiB", done.stderr + done.stdout)
    view = examine(ModelChoice(str(source)), download=False).repaired.view()
    foretold = cache_of(view.hyper, view.mtp_layers)
    assert len(foretold.keys) == (2 if name == "gemma3" else 1)
    assert sum(map(float, said)) == pytest.approx(foretold.size(2048, drafts) / MIB, abs=0.011 * len(said))
