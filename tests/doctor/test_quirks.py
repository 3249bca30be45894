"""Each planted quirk is found under its id, alone; once repaired and written, nothing is left to repair."""

from __future__ import annotations

import json
from string import Formatter

import pytest
from doctor_bench import HeadersOnly, fingerprint, ids, opened, repair, tensors_in, write
from quirks_planted import BASE, PLANTS, change_config, change_json, change_tensors, change_text_config
from zoo import ZOO

from qexport.doctor import QUIRKS, diagnose
from qexport.doctor.draft import Draft
from qexport.doctor.subject import Subject
from qexport.errors import InputError, QexportError
from qexport.formats.merged.plan import plan_merged

REPAIRED = {
    "vision_undeclared": "vision.undeclared",
    "quantization_left": "config.quantization",
    "eos_begins_a_turn": "eos.begins",
    "added_tokens_unlisted": "tokenizer.added_unlisted",
    "byte_fallback_claimed": "tokenizer.byte_fallback",
    "text_type_in_wrapper": "config.model_type",
    "wrapper_type_flat": "config.model_type",
    "causal_arch_wrapper_names": "names.prefix",
    "conditional_arch_flat_names": "names.prefix",
    "moe_text_type_in_wrapper": "config.model_type",
    "architectures_absent": "config.architecture",
    "prefix_language_model_model": "names.prefix",
    "nested_prefix_twice": "names.nested",
    "nested_prefix_thrice": "names.nested",
    "peft_prefix": "names.peft",
    "wrapped_in_training": "names.wrapped",
    "base_layer_suffix": "names.peft",
    "experts_each_in_trunk": "experts.mtp_layout",
    "experts_each_in_mtp": "experts.mtp_layout",
    "experts_fused_with_weight_suffix": "experts.layout",
    "mtp_key_absent": "mtp.undeclared",
    "mtp_key_zero": "mtp.undeclared",
    "mtp_prefix_model": "names.mtp_prefix",
    "mtp_prefix_language_model": "names.mtp_prefix",
    "rope_parameters_only": "rope.legacy_missing",
    "rope_legacy_only_hybrid": "rope.parameters_missing",
    "rope_contradicting": "rope.contradicts",
    "rope_without_sections": "rope.parameters_missing",
    "tokenizers_backend": "tokenizer.backend_class",
    "eos_int": "eos.generation",
    "eos_differs": "eos.generation",
    "generation_config_absent": "generation.missing",
    "template_json": "template.processor_only",
    "template_twice_differing": "template.differs",
    "template_null_inline": "template.hollow",
    "template_empty_jinja": "template.hollow",
    "template_without_default": "template.no_default",
    "template_folder_without_default": "template.no_default",
    "tied_with_equal_head": "tie.head_repeats",
    "tied_with_other_head": "tie.head_differs",
    "tie_only_root": "tie.flags",
    "tie_only_text": "tie.flags",
    "tie_contradicting": "tie.flags",
    "tie_contradicting_with_head": "tie.flags",
    "tie_absent": "tie.flag_missing",
    "dtype_only": "dtype.new_key_only",
    "dtype_lying": "dtype.contradicts",
    "dtype_absent": "dtype.missing",
    "stray_float32_matrix": "dtype.stray_fp32",
    "vision_declared_absent": "vision.absent",
    "vision_deepstack_named": "vision.deepstack",
}
NOTED = {
    "experts_fused_in_trunk": None,
    "experts_fused_in_mtp": None,
    "rope_legacy_only": None,
    "rope_absent": "rope.missing",
    "eos_list_in_config": None,
    "template_inline": "template.inline_only",
    "template_jinja": "template.jinja_only",
    "template_absent": "template.missing",
    "template_named_list": None,
    "torch_dtype_only": None,
    "a_log_bf16": "dtype.a_log",
    "processor_absent": "vision.processor_missing",
    "vision_tokens_elsewhere": "vision.tokens",
}
ERRORS = {
    "lora_tensors_left": "names.adapter",
    "mtp_declared_absent": "mtp.lost",
    "moe_mtp_declared_absent": "mtp.lost",
    "mtp_incomplete": "mtp.incomplete",
    "mtp_own_embeddings": "mtp.own_embeddings",
    "expert_missing": "tensors.unfit",
    "untied_without_head": "tie.head_missing",
    "tokenizer_absent": "tokenizer.missing",
    "layer_count_lying": "layers.count",
    "matrix_shape_wrong": "tensors.unfit",
    "vision_block_lost": "tensors.unfit",
    "vision_block_surplus": "tensors.unfit",
    "vision_shape_wrong": "tensors.unfit",
    "deepstack_beyond": "vision.deepstack_misfit",
    "deepstack_merger_lost": "vision.deepstack_misfit",
}
# As their authors publish them; the others of the zoo are as transformers 5 saves a merge.
PUBLISHED = [name for name, entry in ZOO.items() if entry.options.style == "published"]


def planted(zoo_copy, name):
    folder = zoo_copy(BASE[name])
    PLANTS[name](folder)
    return folder


def new_findings(zoo, folder, name, *severities):
    """What is found beyond the findings of the checkpoint that the quirk was planted in."""
    before = ids(diagnose(opened(zoo(BASE[name]))))
    return ids(diagnose(opened(folder)), *severities) - before


def assert_headers_are_enough(folder, near):
    """From headers alone the same is found, but for what takes a look at the data."""
    far = ids(diagnose(HeadersOnly(opened(folder))))
    data = {"tie.head_repeats", "tie.head_differs"}
    assert far == (near - data | {"tie.unchecked"} if near & data else near)


def test_every_plant_that_opens_is_covered(zoo_copy):
    covered = REPAIRED.keys() | NOTED.keys() | ERRORS.keys()
    for name in PLANTS.keys() - covered:
        folder = planted(zoo_copy, name)
        try:
            diagnosis = diagnose(opened(folder))
        except QexportError:
            continue  # refused on opening
        # Weights that are not finite show when they are read.
        assert name.startswith("weights_"), (name, ids(diagnosis))


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_false_alarm(zoo, name):
    diagnosis = diagnose(opened(zoo(name)))
    # 122B is published with its MTP experts one by one under fused ones, which readers do stumble over.
    expected = {"experts.mtp_layout"} if name == "qwen3_5_moe_122b" else set()
    assert ids(diagnosis, "error", "repaired") == expected
    if not expected:
        assert diagnosis.repaired.files.changed == ()


@pytest.mark.parametrize("name", REPAIRED)
def test_repaired(zoo, zoo_copy, tmp_path, name):
    folder = planted(zoo_copy, name)
    before = fingerprint(folder)
    assert new_findings(zoo, folder, name, "repaired", "error") == {REPAIRED[name]}
    diagnosis, out = repair(folder, tmp_path / "out")
    assert_headers_are_enough(folder, ids(diagnosis))
    again = diagnose(opened(out))
    assert ids(again, "repaired", "error") == set()
    assert fingerprint(folder) == before


@pytest.mark.parametrize("name", NOTED)
def test_noted(zoo, zoo_copy, name):
    folder = planted(zoo_copy, name)
    expected = {NOTED[name]} - {None}
    assert new_findings(zoo, folder, name) >= expected
    assert new_findings(zoo, folder, name, "repaired", "error") == set()
    diagnosis = diagnose(opened(folder))
    assert diagnosis.repaired.view().tensors
    assert_headers_are_enough(folder, ids(diagnosis))


@pytest.mark.parametrize("name", ERRORS)
def test_refused(zoo, zoo_copy, name):
    folder = planted(zoo_copy, name)
    assert new_findings(zoo, folder, name, "repaired", "error") == {ERRORS[name]}
    diagnosis = diagnose(opened(folder))
    assert_headers_are_enough(folder, ids(diagnosis))
    with pytest.raises(InputError) as refusal:
        _ = diagnosis.repaired
    assert refusal.value.hint


@pytest.mark.parametrize("name", [n for n, entry in ZOO.items() if entry.options.style == "saved"])
def test_saved_by_transformers(zoo, tmp_path, name):
    """What transformers 5 saves is repaired to what readers of transformers 4 take too, and stays so."""
    diagnosis, out = repair(zoo(name), tmp_path / "out")
    expected = {"tokenizer.backend_class", "rope.legacy_missing", "dtype.new_key_only"}
    assert expected <= ids(diagnosis, "repaired") <= expected | {"eos.config"}
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    source = tensors_in(zoo(name))
    assert {n: t.sum() for n, t in tensors_in(out).items()} == {n: t.sum() for n, t in source.items()}


def test_table_is_sound():
    names = [quirk.id for quirk in QUIRKS]
    assert len(set(names)) == len(names)
    for quirk in QUIRKS:
        assert not (quirk.fix and (quirk.error or quirk.explains)), quirk.id
        assert quirk.repair, quirk.id
        assert quirk.severity == "note" or quirk.breaks, quirk.id
        assert not quirk.reference or quirk.reference.startswith("https://"), quirk.id
        for _, field, _, _ in Formatter().parse(quirk.what):
            root, *inner = (field or "found").split(".")
            assert root in ("found", "count", "first", "s"), quirk.id
            assert root != "s" or inner[0] in dir(Subject) or inner[0] in Subject.__annotations__, quirk.id


@pytest.mark.parametrize("name", ERRORS)
def test_inspect_sends_nobody_to_inspect(zoo_copy, name):
    for finding in diagnose(opened(planted(zoo_copy, name))).findings:
        assert "inspect" not in finding.what + finding.repair


def test_findings_are_json(zoo_copy):
    folder = planted(zoo_copy, "mtp_declared_absent")
    value = diagnose(opened(folder)).to_json()
    assert json.loads(json.dumps(value)) == value
    (lost,) = [f for f in value["findings"] if f["id"] == "mtp.lost"]
    assert "--mtp graft" in lost["repair"]
    assert "--mtp drop" in lost["repair"]
    assert any("blk.N.attn_norm.weight" in b["message"] for b in lost["breaks"])


# --- quirks that have no plant ------------------------------------------------------------------------------


def test_untouched_files_are_the_same_bytes(zoo_copy, tmp_path):
    folder = zoo_copy("qwen3")
    odd = (folder / "generation_config.json").read_bytes().replace(b"\n", b"\n \n")
    (folder / "generation_config.json").write_bytes(odd)
    (folder / "README.md").write_text("the source's card")
    _, out = repair(folder, tmp_path / "out")
    assert (out / "generation_config.json").read_bytes() == odd
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert (out / "README.md").read_bytes() == (folder / "README.md").read_bytes()  # licence and lineage


def test_special_tokens_as_a_list(zoo_copy, tmp_path):
    folder = zoo_copy("qwen3_5")
    extra = ["<think>", "</think>"]
    change_json(folder, "tokenizer_config.json", lambda c: {**c, "extra_special_tokens": extra})
    diagnosis, out = repair(folder, tmp_path / "out")
    assert ids(diagnosis, "repaired") == {"tokenizer.special_list"}
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["additional_special_tokens"] == extra
    assert "extra_special_tokens" not in settings


def test_host_paths_do_not_leave(zoo_copy, tmp_path):
    folder = zoo_copy("llama")
    change_config(folder, lambda c: {**c, "_name_or_path": "/home/ann/merge"})
    change_json(folder, "tokenizer_config.json", lambda c: {**c, "name_or_path": "meta-llama/Llama-2-7b"})
    diagnosis, out = repair(folder, tmp_path / "out")
    assert ids(diagnosis, "repaired") == {"config.host_path"}
    assert b"/home/ann" not in (out / "config.json").read_bytes()
    assert json.loads((out / "tokenizer_config.json").read_text())["name_or_path"] == "meta-llama/Llama-2-7b"


@pytest.mark.parametrize("change", [-8, 8])
def test_vocab_size_follows_the_rows(zoo_copy, change):
    folder = zoo_copy("qwen3_5")
    change_text_config(folder, lambda c: {**c, "vocab_size": c["vocab_size"] + change})
    diagnosis = diagnose(opened(folder))
    assert ids(diagnosis, "repaired") == {"vocab.rows"}
    assert (
        diagnosis.repaired.text["vocab_size"] == diagnosis.repaired.config["text_config"]["vocab_size"] == 448
    )


def test_tokens_beyond_the_embedding(zoo_copy):
    folder = zoo_copy("qwen3_5")
    change_tensors(folder, lambda t: {n: x[:390] if x.shape[0] == 448 else x for n, x in t.items()})
    assert ids(diagnose(opened(folder)), "error") == {"vocab.tokens"}


def test_head_of_another_height(zoo_copy):
    folder = zoo_copy("qwen3_5")
    change_tensors(folder, lambda t: {n: x[:440] if n == "lm_head.weight" else x for n, x in t.items()})
    assert ids(diagnose(opened(folder)), "error") == {"vocab.head_rows"}


def test_interval_follows_layer_types(zoo_copy):
    folder = zoo_copy("qwen3_5_text")
    diagnosis = diagnose(opened(folder))
    assert "config.interval" not in ids(diagnosis)
    change_text_config(folder, lambda c: {**c, "full_attention_interval": 3})
    diagnosis = diagnose(opened(folder))
    assert "config.interval" in ids(diagnosis, "repaired")
    assert diagnosis.repaired.config["full_attention_interval"] == 4


def test_twice_under_two_names(zoo_copy, tmp_path):
    folder = zoo_copy("qwen3_5_text")
    change_tensors(
        folder, lambda t: {**t, "model.language_model.norm.weight": t["model.norm.weight"].clone()}
    )
    diagnosis, out = repair(folder, tmp_path / "out")
    assert "names.twice" in ids(diagnosis, "repaired")
    assert len(tensors_in(out)) == len(tensors_in(folder)) - 1
    change_tensors(folder, lambda t: {**t, "model.language_model.norm.weight": t["model.norm.weight"] * 2})
    with pytest.raises(InputError, match=r"model\.language_model\.norm\.weight and model\.norm\.weight"):
        diagnose(opened(folder))


def test_flat_wrapper(zoo_copy, tmp_path):
    folder = zoo_copy("qwen3_5")

    def flatten(config):
        text = config.pop("text_config")
        return {**text, **config}

    change_config(folder, flatten)
    diagnosis, out = repair(folder, tmp_path / "out")
    assert ids(diagnosis, "repaired") == {"config.flat_wrapper"}
    config = json.loads((out / "config.json").read_text())
    assert config["text_config"]["hidden_size"] == 256
    assert "hidden_size" not in config
    assert config["text_config"]["model_type"] == "qwen3_5_text"
    assert ids(diagnose(opened(out)), "repaired", "error") == set()


def test_processors_come_from_the_base(zoo, zoo_copy, tmp_path):
    folder = zoo_copy("qwen3_5")
    PLANTS["processor_absent"](folder)
    base = opened(zoo("qwen3_5"))
    diagnosis, out = repair(folder, tmp_path / "out", mtp_from=base, vision_from=base)
    assert ids(diagnosis, "repaired") == {"vision.processor_copied"}
    name = "preprocessor_config.json"
    assert (out / name).read_bytes() == (zoo("qwen3_5") / name).read_bytes()


def test_text_only_form_leaves_no_trace_of_vision(zoo_copy, tmp_path):
    folder = zoo_copy("qwen3_5_moe")
    PLANTS["vision_declared_absent"](folder)
    _, out = repair(folder, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["Qwen3_5MoeForCausalLM"]
    assert config["model_type"] == "qwen3_5_moe_text"
    assert not [key for key in config if "vision" in key or "image" in key or key == "text_config"]
    assert config["rope_theta"] == 10000000
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    assert not list(out.glob("*processor*"))
    assert {name.split(".")[0] for name in tensors_in(out)} == {"model", "mtp", "lm_head"}


def test_rounding_is_to_nearest_even(zoo_copy, tmp_path):
    folder = zoo_copy("qwen3_5")
    PLANTS["stray_float32_matrix"](folder)
    _, out = repair(folder, tmp_path / "out")
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    assert tensors_in(out)[name].equal(tensors_in(folder)[name].bfloat16())


def test_plan_is_made_without_data(zoo, tmp_path):
    source = opened(zoo("qwen3_5"))
    plan = plan_merged(diagnose(HeadersOnly(source)).repaired)
    out = write(plan_merged(diagnose(source).repaired), tmp_path / "out")
    assert {f.name: f.size for f in plan.files} == {p.name: p.stat().st_size for p in out.iterdir()}


def test_qwen35s_split_rule_is_restored_in_a_real_vocabulary(zoo_copy, tmp_path):
    """AutoTokenizer under transformers 5 writes Qwen2's rule; a tiny tokenizer may cut as it likes."""
    folder = zoo_copy("qwen3_5")
    marks, plain = r"[\p{L}\p{M}]+", r"\p{L}+"

    def lose(document, filler):
        text = json.dumps(document["pre_tokenizer"])
        text = text.replace(json.dumps(marks)[1:-1], json.dumps(plain)[1:-1])
        text = text.replace(json.dumps(r"[^\s\p{L}\p{M}\p{N}]")[1:-1], json.dumps(r"[^\s\p{L}\p{N}]")[1:-1])
        vocab = document["model"]["vocab"] | {f"filler{i}": 10_000 + i for i in range(filler)}
        return {**document, "pre_tokenizer": json.loads(text), "model": {**document["model"], "vocab": vocab}}

    before = json.loads((folder / "tokenizer.json").read_text())["pre_tokenizer"]
    change_json(folder, "tokenizer.json", lambda document: lose(document, 0))
    assert "tokenizer.marks_lost" not in ids(diagnose(opened(folder)))
    change_json(folder, "tokenizer.json", lambda document: lose(document, 9000))
    diagnosis = diagnose(opened(folder))
    assert "tokenizer.marks_lost" in ids(diagnosis, "repaired", "note", "error")
    draft = Draft(diagnosis.subject)
    next(quirk for quirk in QUIRKS if quirk.id == "tokenizer.marks_lost").fix(draft)
    assert json.loads(draft.files()["tokenizer.json"])["pre_tokenizer"] == before


@pytest.mark.parametrize(
    "matter", ["license: [", "date: 2026-02-31\nlicense: mit\nlicense: gpl", "a: &a [*a]"]
)
def test_a_card_that_cannot_be_read_is_noted_before_anything_is_written(zoo_copy, matter):
    folder = zoo_copy("llama")
    (folder / "README.md").write_text(f"---\n{matter}\n---\n")
    (finding,) = [f for f in diagnose(opened(folder)).findings if f.id == "card.unreadable"]
    assert finding.what.startswith("README.md:")
    (folder / "README.md").write_text("---\ndate: 2026-02-31\nlicense: mit\n---\n")
    assert "card.unreadable" not in {f.id for f in diagnose(opened(folder)).findings}


TEMPLATE, INLINE, NAMED = (
    "chat_template.jinja",
    "tokenizer_config.json",
    "additional_chat_templates/rag.jinja",
)
BROKEN = "{% for m in messages %}\n{{ m.content }}\n{% endif %}"


def place_template(folder, place, text):
    (folder / TEMPLATE).unlink(missing_ok=True)
    change_json(folder, INLINE, lambda c: {k: v for k, v in c.items() if k != "chat_template"})
    if place == INLINE:
        change_json(folder, INLINE, lambda c: {**c, "chat_template": text})
    else:
        (folder / TEMPLATE).write_text("{{ messages }}")
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(text)


@pytest.mark.parametrize("place", [TEMPLATE, INLINE, NAMED])
def test_a_template_that_cannot_be_compiled_is_an_error_wherever_it_stands(zoo_copy, place):
    folder = zoo_copy("qwen3_5")
    place_template(folder, place, BROKEN)
    diagnosis = diagnose(opened(folder))
    (found,) = diagnosis.errors
    where = TEMPLATE if place == NAMED else place
    called = " 'rag'" if place == NAMED else ""
    assert found.id == "template.broken"
    assert found.what.startswith(f"the chat template{called} in {where} cannot be compiled: line 3: Enc")
    with pytest.raises(InputError, match="cannot be compiled"):
        _ = diagnosis.repaired
    place_template(folder, place, "{% generation %}{{ messages }}{% endgeneration %}{% break %}")
    assert "template.broken" not in ids(diagnose(opened(folder)))


def test_a_broken_template_that_another_hides_is_written_over(zoo_copy, tmp_path):
    folder = zoo_copy("qwen3_5")
    place_template(folder, INLINE, BROKEN)
    (folder / TEMPLATE).write_text("{{ messages }}")
    diagnosis, out = repair(folder, tmp_path / "out")
    assert ids(diagnosis, "error", "repaired") == {"template.differs"}
    assert json.loads((out / INLINE).read_text())["chat_template"] == "{{ messages }}"


@pytest.mark.parametrize("text", ["{{ " + "(" * 3000, "{{ 9 ** 9 ** 9 ** 9 }}{{ 'a' * 10 ** 12 }}"])
def test_templates_are_read_and_not_run(zoo_copy, text):
    folder = zoo_copy("qwen3_5")
    place_template(folder, INLINE, text)
    assert ("template.broken" in ids(diagnose(opened(folder)))) == ("(((" in text)
