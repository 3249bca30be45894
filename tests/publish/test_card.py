"""The model card: literal, and complete for every kind."""

from pathlib import Path

import pytest
import yaml
from exported_folders import FAILED, entry, gguf, parsed

from qexport.errors import UsageProblem
from qexport.publishing.card import CardOptions, render_card
from qexport.publishing.kept import Kept, read_kept
from qexport.publishing.tables import figure_table, file_table
from qexport.receipt.safe_text import cell
from qexport.receipt.source_card import source_card

OPTIONS = CardOptions("bob/Tuned-GGUF")


def artifact(label="Q4_K_M", **more):
    return parsed(gguf(label, 2_000_000, **more)[0])


def folder_artifact(label, kind, prefix="", **more):
    files = {f"{prefix}config.json": b"{}", f"{prefix}model.safetensors": b"w" * 9000}
    return parsed(entry(label, files, kind=kind, **more))


def matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_a_card_to_the_letter():
    measures = {"kld": {"mean": 0.01234, "p99": 0.2}, "same_top1": 0.9512, "acceptance": 0.81, "tok_s": 54.67}
    card = render_card([artifact(measures=measures)], OPTIONS)
    assert card == (Path(__file__).parent / "golden_card.md").read_text()


def test_columns_without_values_are_left_out():
    value = artifact(verification={**FAILED, "acceptance": None}, bits_per_weight=None)
    assert file_table([value]).splitlines()[0] == "| File | Type | Size | Verified |"


@pytest.mark.parametrize(
    "junk", [None, 3, "x", [], {"kld": "low", "same_top1": [1], "acceptance": float("nan")}]
)
def test_measures_that_are_none_show_nothing(junk):
    value = artifact(measures=junk, verification={"passed": True})
    assert file_table([value]).splitlines()[0] == "| File | Type | Size | Verified |"
    assert figure_table([value]).markdown.splitlines()[0] == "| Type | Bits/weight |"


def test_an_entry_with_nothing_but_files():
    """As bare as a later version could leave it."""
    files = gguf("Q4_K_M")[0]["files"]
    value = parsed({"kind": "gguf", "label": "Q4_K_M", "files": files})
    card = render_card([value], OPTIONS)
    assert "**This has not passed verification.**" in card
    assert "None of these files has been run by the tool that wrote them." in card
    assert "base_model" not in matter(card)


def test_every_kind_says_how_to_run_it():
    card = render_card(
        [
            artifact(),
            folder_artifact("6bit", "mlx", "mlx/"),
            folder_artifact("6bit-MTP", "mlx-drafter", "mlx-mtp/"),
            folder_artifact("FP8", "fp8", "fp8/"),
            folder_artifact("NVFP4", "nvfp4", "nvfp4/"),
        ],
        OPTIONS,
    )
    for line in (
        "llama-server -hf bob/Tuned-GGUF:Q4_K_M --spec-type draft-mtp --spec-draft-n-max 3",
        "hf download bob/Tuned-GGUF --include 'mlx/*' --local-dir .",
        'mlx_lm.generate --model ./mlx --prompt "Hello"',
        'mlx_vlm.generate --model ./mlx --draft-model ./mlx-mtp --draft-kind mtp --prompt "Hello"',
        "vllm serve ./fp8",
        """  --speculative-config '{"method": "mtp", "num_speculative_tokens": 2}'""",
        "  --speculative-algorithm NEXTN --speculative-num-steps 3 \\",
        "  --speculative-eagle-topk 1 --speculative-num-draft-tokens 4",
    ):
        assert f"{line}\n" in card
    assert matter(card)["library_name"] == "gguf"
    assert {"gguf", "mlx", "fp8", "nvfp4", "mtp"} <= set(matter(card)["tags"])
    assert "[mlx/](./mlx)" in card


@pytest.mark.parametrize(
    ("kind", "library", "line"),
    [
        ("mlx", "mlx", "mlx_lm.server --model bob/Tuned-GGUF"),
        ("fp8", "transformers", "vllm serve bob/Tuned-GGUF"),
        ("nvfp4", "vllm", "python -m sglang.launch_server --model-path bob/Tuned-GGUF"),
    ],
)
def test_a_repository_of_one_kind_is_named_by_its_id(kind, library, line):
    card = render_card([folder_artifact("x", kind)], OPTIONS)
    assert matter(card)["library_name"] == library
    assert f"{line}\n" in card
    assert "| this repository | x |" in card


def test_an_mlx_folder_has_its_head_in_a_folder_of_its_own():
    details = {"mtp_layouts": ["drafter"]}
    alone = render_card([folder_artifact("6bit", "mlx", details=details)], OPTIONS)
    assert "MTP head (multi-token prediction" not in alone
    assert "mtp" not in matter(alone)["tags"]
    inside = render_card([folder_artifact("6bit", "mlx", details={"mtp_layouts": ["mtplx"]})], OPTIONS)
    assert "the MTP head in this folder is for runtimes that do" in inside
    drafter = render_card([folder_artifact("6bit-MTP", "mlx-drafter")], OPTIONS)
    assert "--model THE_MODEL_IT_DRAFTS_FOR --draft-model bob/Tuned-GGUF --draft-kind mtp" in drafter


def test_without_a_head_nothing_is_said_of_mtp():
    source = {"label": "Merged", "revision": None, "mtp": "none"}
    card = render_card([artifact(source=source, verification={"passed": True, "verdict": "pass"})], OPTIONS)
    assert "draft-mtp" not in card
    assert "MTP" not in card.replace("Tuned-Q4_K_M", "")
    assert "Quantized versions of `Merged`, made with qexport" in card
    assert "- Source: `Merged`, a local checkpoint\n" in card


def test_a_grafted_head_and_a_matrix_are_provenance():
    source = {"label": "Merged", "revision": None, "mtp": "grafted from Qwen/Base@89abcdef"}
    facts = {"file": "m.gguf", "datasets": ["calib-1"], "calibration": {"tokens": 131072}}
    card = render_card([artifact(source=source, options={"imatrix": facts})], OPTIONS)
    assert "- MTP head: grafted from `Qwen/Base@89abcdef`, bit for bit" in card
    assert "- Calibration: importance matrix `m.gguf`, from `calib-1`, 131,072 tokens\n" in card


def test_the_importance_matrix_is_a_file_beside():
    files = {"m-imatrix.gguf_file": b"x"}
    matrix = parsed(entry("imatrix", files, kind="imatrix", verification=None))
    card = render_card([artifact(), matrix], OPTIONS)
    assert "- `m-imatrix.gguf_file`: the importance matrix" in card
    assert "WARNING" not in card
    assert "| imatrix |" not in card
    assert "imatrix" in matter(card)["tags"]


def test_split_files_are_one_row():
    files = {f"M-BF16-0000{n}-of-00003.gguf": b"x" * 1000 for n in (1, 2, 3)}
    card = render_card([parsed(entry("BF16", files))], OPTIONS)
    assert (
        "| [M-BF16-00001-of-00003.gguf](./M-BF16-00001-of-00003.gguf) and 2 more | BF16 | 3\u00a0kB |" in card
    )
    assert "hf download bob/Tuned-GGUF --include 'M-BF16-*' --local-dir .\n" in card


@pytest.mark.parametrize(
    "names",
    [
        {"F16": "M-F16.gguf", "BF16": "M-BF16.gguf"},
        {"Q8_0": "Tuned-MTP-Q8_0.gguf", "Q4_K_M": "Tuned-MTP-Q4_K_M-imatrix.gguf"},
    ],
)
def test_a_file_that_its_type_does_not_find_is_named_in_full(names):
    """The second are names of earlier versions; their receipts are still read."""
    sizes = {"F16": 1, "Q4_K_M": 1}
    made = [parsed(entry(label, {name: b"x" * sizes.get(label, 2)})) for label, name in names.items()]
    card = render_card(made, OPTIONS)
    first = names.get("F16") or names["Q4_K_M"]
    assert f"\nllama-server -hf bob/Tuned-GGUF --hf-file {first}\n" in card
    assert "-hf bob/Tuned-GGUF:" not in card


def seeing(kind, label, vision, tag="image-text-to-text", **more):
    card = {"license": "mit", "pipeline_tag": tag}
    source = {"label": "alice/Tuned@0123abcd", "revision": "0" * 40, "mtp": "none", "card": card}
    source |= {} if vision is None else {"vision": vision}
    if kind == "gguf":
        return artifact(label, source=source)
    return folder_artifact(label, kind, f"{label}/", source=source, **more)


@pytest.mark.parametrize("vision", [True, False, None])
@pytest.mark.parametrize("tag", ["image-text-to-text", "any-to-any", "visual-question-answering"])
def test_the_task_is_one_that_the_files_can_do(vision, tag):
    """GGUF files have no vision tower, of MLX folders only some; another folder has it if the source has."""
    text = [seeing("gguf", "Q4_K_M", vision, tag), seeing("mlx", "6bit", vision, tag)]
    assert matter(render_card(text, OPTIONS))["pipeline_tag"] == "text-generation"
    mixed = render_card([*text, seeing("fp8", "FP8", vision, tag)], OPTIONS)
    assert matter(mixed)["pipeline_tag"] == ("text-generation" if vision is False else tag)
    kept = Kept("", {"pipeline_tag": tag})  # an earlier card, of a version that copied it
    assert matter(render_card(text, CardOptions("a/b", kept=kept)))["pipeline_tag"] == "text-generation"
    said = CardOptions("a/b", front_matter={"pipeline_tag": tag})  # a person's own word
    assert matter(render_card(text, said))["pipeline_tag"] == tag


def test_a_vision_tower_that_is_left_out_is_said():
    text = [seeing("gguf", "Q4_K_M", True), seeing("mlx", "6bit", True)]
    assert "The model's vision tower is not here: they take text alone" in render_card(text, OPTIONS)
    mixed = render_card([*text, seeing("fp8", "FP8", True)], OPTIONS)
    assert "The model's vision tower is not in the GGUF and MLX files: they take text alone" in mixed
    mlx = seeing("mlx", "4bit", True, details={"vision_tensors": 333})
    assert "vision tower is not in the GGUF and 6bit files" in render_card([*text, mlx], OPTIONS)
    assert matter(render_card([mlx], OPTIONS))["pipeline_tag"] == "image-text-to-text"
    assert "mlx_vlm.generate --model ./4bit --image PICTURE.png" in render_card([mlx], OPTIONS)
    assert "mlx_vlm" not in render_card(text, OPTIONS)
    assert "vision" not in render_card([seeing("gguf", "Q4_K_M", False)], OPTIONS)
    assert "vision" not in render_card([seeing("fp8", "FP8", True)], OPTIONS)


def test_facts_from_the_sources_card_and_from_the_earlier_one():
    card = {"license": "apache-2.0", "language": ["en", "zh"], "pipeline_tag": "image-text-to-text"}
    source = {"label": "alice/Tuned@0123abcd", "revision": "0" * 40, "mtp": "own", "card": card}
    kept = Kept("", {"license": "mit", "datasets": ["x/y"], "tags": ["mine"], "library_name": "old"})
    found = matter(render_card([artifact(source=source)], CardOptions("bob/M", kept=kept)))
    assert found["license"] == "mit"
    assert found["language"] == ["en", "zh"]
    assert found["pipeline_tag"] == "text-generation"  # a GGUF takes no images
    assert found["datasets"] == ["x/y"]
    assert found["library_name"] == "gguf"
    assert found["tags"][-1] == "mine"


def test_what_a_receipt_carries_of_the_sources_card():
    readme = (
        b"---\nlicense: mit\nlanguage:\n- en\n- no\npipeline_tag: 3\nlicense_link: /home/a/LICENSE\n---\n# M"
    )
    assert source_card(readme) == {"license": "mit", "language": ["en", "no"]}
    assert source_card(None) == {}
    assert source_card(b"---\nlicense: [\n---") == {}
    odd = b"---\nlicense: 'mit](javascript:alert(1))'\nlanguage: [en, '<b>']\npipeline_tag: a|b\n---"
    assert source_card(odd) == {}


def test_what_a_person_says_of_the_base_model_and_of_themselves():
    options = CardOptions("bob/M", base_model="alice/Other", quantized_by="Bob & Co")
    found = matter(render_card([artifact()], options))
    assert (found["base_model"], found["quantized_by"]) == ("alice/Other", "Bob & Co")


def test_the_same_receipts_give_the_same_card():
    made = gguf("Q4_K_M")[0]
    cards = {render_card([parsed({**made, "written": day})], OPTIONS) for day in ("2026-01-01", "x")}
    assert len(cards) == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a|b", "a\\|b"), ("<script>", "&lt;script>"), ("a\n\nb", "a b"), (None, "None")],
)
def test_cells(text, shown):
    assert cell(text) == shown


@pytest.mark.parametrize("card", [None, "", " \n"])
def test_no_card_keeps_nothing(card):
    assert read_kept(card, "x") == Kept()


def test_markers_must_come_in_pairs():
    start, end = "<!-- qexport:keep -->", "<!-- /qexport:keep -->"
    assert read_kept(f"a {start}\n one \n{end} b {start}two{end}", "x").text == "one\n\ntwo"
    for broken in (start, end, f"{end}{start}", f"{start}{start}{end}", f"{start}a{end}{end}"):
        with pytest.raises(UsageProblem, match="one of qexport's markers without the other"):
            read_kept(broken, "x")
    with pytest.raises(UsageProblem, match="was not written by qexport"):
        read_kept("# Mine", "x")
    unreadable = f"---\ndate: [\n---\n{start}{end}"
    with pytest.raises(UsageProblem, match="front matter of x would be lost: README"):
        read_kept(unreadable, "x")
    assert read_kept(unreadable, "x", replace=True) == Kept()
