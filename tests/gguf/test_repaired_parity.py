"""Every planted quirk: our GGUF of the broken checkpoint equals the toolchain's of the repaired one.

`qexport fix` writes the repaired checkpoint, llama.cpp's converter reads that, and the file it makes is
compared with the one that `qexport gguf` makes straight from the broken checkpoint.
"""

import pytest
from oracle import toolchain
from oracle.summary import compare, summarize
from quirks_planted import BAD, BASE, PLANTS
from zoo import ZOO

from qexport.checkpoint.opening import open_checkpoint
from qexport.doctor.diagnose import diagnose
from qexport.errors import InputError
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf
from qexport.formats.merged.plan import plan_merged
from qexport.onepass.execute import execute

pytestmark = [pytest.mark.slow, *toolchain.needs_both]


REFUSED = {
    # What is missing or doubtful cannot be made up: these name their ways out instead.
    "index_omits_tensor": "does not list it",
    "lora_tensors_left": "Merge first",
    "untied_without_head": "lm_head",
    "deepstack_beyond": "deepstack_visual_indexes has 4",
    "deepstack_merger_lost": "there are mergers for 1",
    "vision_block_lost": r"missing: visual\.blocks\.1",
    "vision_block_surplus": "not part of the qwen3_5 family",
    "vision_shape_wrong": "but config.json says",
}
NATIVE = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}


@pytest.mark.parametrize("plant", sorted(REFUSED))
def test_what_cannot_be_repaired_is_refused(zoo_copy, plant):
    source = zoo_copy(BASE[plant])
    PLANTS[plant](source)
    with pytest.raises(InputError, match=REFUSED[plant]):
        _ = diagnose(open_checkpoint(str(source))).repaired


@pytest.mark.parametrize("plant", sorted(set(PLANTS) - set(BAD) - set(REFUSED)))
def test_broken_checkpoint_gives_the_repaired_ones_file(zoo_copy, tmp_path, plant):
    base = BASE[plant]
    source = zoo_copy(base)
    PLANTS[plant](source)
    diagnosis = diagnose(open_checkpoint(str(source)))
    if diagnosis.errors:
        diagnosis = diagnose(open_checkpoint(str(source)), mtp="drop")
    repaired = diagnosis.repaired
    fixed = tmp_path / base  # the converter takes the model's name from the folder's
    execute([plan_merged(repaired)], fixed)
    view = repaired.view()
    # Quantized files start from the checkpoint's own float type: rounding twice would lose more.
    native = NATIVE[ZOO[base].options.dtype]
    plans = plan_gguf(view, [native, "Q4_K_M"], GgufOptions(mtp_type="mixture"))
    execute(plans, tmp_path / "ours")
    flags = [] if view.mtp_layers or not view.family.startswith("qwen3_5") else ["--no-mtp"]
    peer = tmp_path / "peer.gguf"
    toolchain.convert(fixed, peer, native.lower(), pre=ZOO[base].pre, flags=flags)
    found = compare(tmp_path / "ours" / plans[0].files[0].name, summarize(peer))
    assert [line for line in found if " in the file is " not in line] == []
    quantized = tmp_path / "peer-q.gguf"
    toolchain.quantize(peer, quantized, "Q4_K_M")
    assert compare(tmp_path / "ours" / plans[1].files[0].name, summarize(quantized)) == []
