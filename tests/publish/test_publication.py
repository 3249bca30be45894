"""The card of a real publication: what a visitor looks for is there, and the commands are right."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard, ModelCardData
from large_publication import ABOUT, SOURCE, folders, gguf_files

from qexport.publishing.card import CardOptions, render_card
from qexport.receipt.choosing import closeness
from qexport.receipt.measures import Drafting, Estimate
from qexport.receipt.plainly import plainly
from qexport.receipt.safe_text import fenced
from qexport.receipt.types import Artifact
from qexport.receipt.verification import Check, Status

GGUF = CardOptions("bob/Tuned-27B-GGUF")


def card(*made: Artifact, **options) -> str:
    """With blanks for those that do not break, which keep a figure and its unit together."""
    return render_card(made or gguf_files(), replace(GGUF, **options)).replace("\u00a0", " ")


def of(kind: str) -> Artifact:
    """An artifact in a folder of its own, which is the repository."""
    made = next(each for each in folders() if each.kind == kind)
    return replace(made, files=tuple(replace(file, name=file.name.split("/")[1]) for file in made.files))


def rows(text: str, heading: str) -> list[list[str]]:
    part = text.split(f"# {heading}\n")[1].split("\n#")[0]
    lines = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("|")]
    return [lines[0], *lines[2:]]


@pytest.mark.parametrize("made", [gguf_files(), folders()], ids=["gguf", "folders"])
def test_the_hubs_own_classes_read_the_front_matter(made):
    text = card(*made)
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    assert (data.base_model, data.license, data.language) == ("alice/Tuned-27B", "apache-2.0", ["en"])
    assert data.to_dict()["base_model_relation"] == "quantized"
    assert data.pipeline_tag == "image-text-to-text"
    assert ModelCardData(**data.to_dict()).to_yaml() == data.to_yaml()


def test_a_model_that_is_on_no_hub_is_named_after_what_it_was_tuned_from():
    here = replace(SOURCE, label="Tuned-27B", revision=None)
    text = card(*(replace(each, source=here) for each in gguf_files()))
    data = ModelCard(text).data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("Qwen/Qwen3.6-27B", "finetune")
    assert "Quantized versions of `Tuned-27B`, a fine-tune of [Qwen/Qwen3.6-27B](https://" in text
    data = ModelCard(card(base_model="alice/Other")).data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("alice/Other", "quantized")


def test_what_to_take_is_said_for_each_memory():
    head, *memories = rows(card(*gguf_files(), *folders()), "Which one?")
    assert head == ["Memory", "GGUF: llama.cpp, Ollama, LM Studio", "MLX: Apple silicon", "vLLM, SGLang"]
    # 24 GiB - 1 - 19.8 GB - 0.931 GB of the tower leave 3.97 GB: four states (628 MB) and 68 KiB for a token.
    assert memories[1] == ["24 GB", "**Q5_K_M**, up to 46k", "**6bit**, up to 25k", "**NVFP4**, up to 30k"]
    assert [row[0] for row in memories] == ["16 GB", "24 GB", "32 GB"]


def test_what_a_context_takes_is_beside_the_size():
    head, *files = rows(card(), "Files")
    assert head == ["File", "Type", "Size", "8k", "32k", "128k", "Closeness", "Verified"]
    q4 = next(row for row in files if row[1] == "Q4_K_M")
    assert q4[2:] == ["17.1 GB", "19.2 GB", "20.9 GB", "27.8 GB", "very close", "passed"]
    no_config = replace(SOURCE, about=replace(ABOUT, cache=type(ABOUT.cache)()))
    plain = card(*(replace(each, source=no_config) for each in gguf_files()))
    assert "## Which one?" not in plain
    assert "Take the largest that fits into your GPU's memory" in plain


@pytest.mark.parametrize(
    "line",
    [
        "llama-server -hf bob/Tuned-27B-GGUF:Q4_K_M",
        "llama-server -hf bob/Tuned-27B-GGUF:Q4_K_M --spec-type draft-mtp --spec-draft-n-max 3",
        'llama-mtmd-cli -m Tuned-27B-Q4_K_M.gguf --mmproj mmproj-BF16.gguf --image PICTURE.png -p "What is',
        "ollama run hf.co/bob/Tuned-27B-GGUF:Q4_K_M",
        "lms get https://huggingface.co/bob/Tuned-27B-GGUF@q4_k_m",
        "Sampling, as the original recommends it: `temperature` 0.7, `top_k` 20, `top_p` 0.8",
        "It thinks before it answers. To turn that off: `--reasoning-budget 0`",
        "> A tune of Qwen3.6-27B for patient, step-by-step explanations",
        "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n<think>\n```",
        "| Q4_K_M | n-max 3 | 58.0 | 56.2 to 59.1 | 1.55 × | 63.0 % |",
        "`--spec-draft-p-min 0.75`",
        "| Q4_K_M | Q4_K | Q4_K, Q6_K | Q4_K, Q6_K, F32 | Q4_K, Q6_K | Q6_K | Q8_0, Q6_K |",
        "- Verified with: xllamacpp 2026.10.11549",
        "Each of the 8 exports was loaded and run after it was written",
    ],
)
def test_a_visitor_finds(line):
    assert line in card()


def test_python_is_shown_where_text_is_all():
    text = card(*(each for each in gguf_files() if each.kind != "mmproj"))
    line = 'Llama.from_pretrained(repo_id="bob/Tuned-27B-GGUF", filename="Tuned-27B-Q4_K_M.gguf", n_ctx=8192)'
    assert line in text
    assert "Llama.from_pretrained" not in card()  # the tower would have to be named in its own way


def test_a_head_and_its_trunk_name_each_other():
    mlx = CardOptions("bob/T-MLX-6bit", drafter="bob/T-MLX-6bit-MTP")
    trunk = render_card([of("mlx")], mlx)
    assert "The head is in [bob/T-MLX-6bit-MTP](https://huggingface.co/bob/T-MLX-6bit-MTP)" in trunk
    assert "--model bob/T-MLX-6bit --draft-model bob/T-MLX-6bit-MTP --draft-kind mtp" in trunk
    head = render_card([of("mlx-drafter")], CardOptions("bob/T-MLX-6bit-MTP"))
    assert "This head drafts for [bob/T-MLX-6bit](https://huggingface.co/bob/T-MLX-6bit)" in head
    assert "--model bob/T-MLX-6bit --draft-model bob/T-MLX-6bit-MTP --draft-kind mtp" in head


def test_proofs_are_told_without_words_of_the_trade():
    for made in (*gguf_files(), *folders()):
        for said in plainly(made.verification) if made.verification else ():
            words = re.findall(r"[a-z]+_[a-z]+|tensors?|fused|declared", said.words)
            assert words == []
    text = card(of("fp8"))
    assert "<b>FP8</b>: passed, without drafting</summary>" in text
    assert "– not checked: drafting: transformers has no MTP" in text


def test_what_failed_is_told_as_such():
    made = of("fp8")
    assert made.verification is not None
    file = next(each for each in made.verification.findings if each.check is Check.FILE)
    failed = replace(file, status=Status.FAIL, summary="two tensors are missing")
    broken = replace(made.verification, findings=(failed,))
    text = card(replace(made, verification=broken))
    assert "✗ failed: the file: two tensors are missing" in text
    assert "**This has not passed verification.**" in text
    assert "## Which one?" not in text


def test_a_prompt_cannot_leave_its_block():
    shown = fenced("a\n```\n<!-- qexport:keep -->\n````\u202e")
    assert shown.startswith("`````\na\n")
    assert "<!--" not in shown
    assert "\u202e" not in shown


def test_what_a_heads_drafts_come_to_is_there_without_a_bench():
    def of_head(*values: float) -> tuple[Estimate, ...]:
        return tuple(Estimate(value, 0.01) for value in values)

    (made,) = (each for each in gguf_files() if each.label == "Q6_K")
    assert made.verification is not None
    head = Drafting(4080, of_head(0.7, 0.6), of_head(1.7, 2.1), of_head(1.8, 2.2))
    proof = replace(made.verification, measures=replace(made.verification.measures, head=head))
    text = card(replace(made, verification=proof))
    assert rows(text, "How many drafts?") == [
        ["Type", "n-max 1", "n-max 2"],
        ["Q6_K", "1.70 ± 0.010", "2.10 ± 0.010"],
    ]
    assert "`--spec-draft-p-min 0.75`" in text
    assert "How many drafts?" not in card(made)


def test_the_reports_picture_stands_at_the_top():
    text = card(included=("report.png", "notes.txt"))
    assert text.index("(./report.png)") < text.index("## Which one?")
    assert text.count("report.png") == 1
    assert "- `notes.txt`" in text
    assert "report.png" not in card()


def test_closeness_is_in_the_order_of_divergence():
    words = [closeness(value) for value in (0.0, 0.0005, 0.005, 0.02, 0.05, 0.1, 3.0)]
    assert len(dict.fromkeys(words)) == 6
