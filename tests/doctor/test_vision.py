"""The vision tower kept, grafted, left out, refused; tensors, config and files agree afterwards."""

from __future__ import annotations

import json

import pytest
from doctor_bench import HeadersOnly, fingerprint, ids, opened, repair, same, tensors_in
from quirks_planted import PLANTS, change_config, change_json, change_tensors

from qexport.doctor import diagnose
from qexport.errors import InputError, UsageProblem

SEEING = ("visual.", "vision_tower.", "multi_modal_projector.")
GEMMA = {"form": "wrapper", "vision": True}


def tower(tensors):
    return {name: t for name, t in tensors.items() if name.removeprefix("model.").startswith(SEEING)}


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def misfit(subject, base, **options):
    diagnosis = diagnose(opened(subject), vision_from=opened(base), **options)
    (found,) = [f for f in diagnosis.findings if f.id == "vision.misfit"]
    return diagnosis, found


def pair(zoo, name):
    if name == "gemma3":
        return zoo("gemma3", **GEMMA), zoo("gemma3")
    return zoo(name), zoo(f"{name}_text")


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe", "gemma3"])
@pytest.mark.parametrize("mode", ["auto", "graft"])
def test_a_graft_is_bit_for_bit_and_the_form_the_base_s(zoo, tmp_path, name, mode):
    base, merged = pair(zoo, name)
    before = fingerprint(base), fingerprint(merged)
    diagnosis, out = repair(merged, tmp_path / "out", vision=mode, vision_from=opened(base))
    assert "vision.grafted" in ids(diagnosis, "repaired")
    assert not ids(diagnosis) & {"config.text_only", "names.prefix", "config.flat_wrapper", "vision.misfit"}
    assert diagnosis.repaired.vision_origin == f"grafted from {base.name}"
    mine, theirs = tower(tensors_in(out)), tower(tensors_in(base))
    assert mine.keys() == theirs.keys()
    assert all(same(mine[key], theirs[key]) for key in mine)
    wrapped, published = config_of(out), config_of(base)
    for key in ("architectures", "model_type", "vision_config", *(k for k in published if "token" in k)):
        assert wrapped[key] == published[key], key
    assert isinstance(wrapped["text_config"], dict)
    for file in ("preprocessor_config.json", "video_preprocessor_config.json"):
        assert (out / file).exists() == (base / file).exists()
    assert (out / "preprocessor_config.json").read_bytes() == (base / "preprocessor_config.json").read_bytes()
    assert (fingerprint(base), fingerprint(merged)) == before
    again = diagnose(opened(out))
    assert ids(again, "repaired", "error") == set()
    assert again.repaired.vision_origin == "own"


def test_what_is_grafted_loads_in_transformers(zoo, tmp_path):
    from transformers import AutoModelForImageTextToText

    base, merged = pair(zoo, "qwen3_5")
    options = {"vision_from": opened(base), "mtp_from": opened(base)}
    _, out = repair(merged, tmp_path / "out", **options)
    model, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert {name.split(".")[0] for name in info["unexpected_keys"]} <= {"mtp"}
    assert type(model).__name__ == "Qwen3_5ForConditionalGeneration"


def test_a_declared_tower_that_is_lost_comes_back(zoo, zoo_copy, tmp_path):
    folder = zoo_copy("qwen3_5")
    PLANTS["vision_declared_absent"](folder)
    assert "vision.absent" in ids(diagnose(opened(folder)), "repaired")
    diagnosis, out = repair(folder, tmp_path / "out", vision_from=opened(zoo("qwen3_5")))
    assert "vision.absent" not in ids(diagnosis)
    whole = tensors_in(zoo("qwen3_5"))
    mine = tensors_in(out)
    assert mine.keys() == whole.keys()
    assert all(same(mine[key], whole[key]) for key in whole)


def test_a_tower_that_no_config_describes_is_kept_with_the_base_s_config(zoo, zoo_copy, tmp_path):
    folder = zoo_copy("qwen3_5")
    name = "model.visual.blocks.0.norm1.bias"
    change_tensors(folder, lambda t: {**t, name: t[name] + 1})
    kept = tensors_in(folder)[name]
    PLANTS["vision_undeclared"](folder)
    diagnosis, out = repair(folder, tmp_path / "out", vision_from=opened(zoo("qwen3_5")))
    assert ids(diagnosis, "repaired") == {"vision.described"}
    assert diagnosis.repaired.vision_origin == "own"
    assert same(tensors_in(out)[name], kept)
    _, out = repair(folder, tmp_path / "new", vision="graft", vision_from=opened(zoo("qwen3_5")))
    assert not same(tensors_in(out)[name], kept)


def test_auto_keeps_an_own_tower_and_graft_replaces_it(zoo):
    other = opened(zoo("qwen3_5", seed=5))
    kept = diagnose(opened(zoo("qwen3_5")), vision_from=other)
    assert kept.repaired.vision_origin == "own"
    assert not ids(kept) & {"vision.grafted"}
    replaced = diagnose(opened(zoo("qwen3_5")), vision="graft", vision_from=other)
    (found,) = [f for f in replaced.findings if f.id == "vision.grafted"]
    assert "in place of the one that is there" in found.what


def test_a_graft_reads_nothing(zoo):
    base, merged = (HeadersOnly(opened(folder)) for folder in pair(zoo, "qwen3_5_moe"))
    repaired = diagnose(merged, vision_from=base).repaired
    view = repaired.view()
    assert view.vision is not None
    owners = {p.checkpoint for n, t in repaired.tensors.items() if n.startswith("visual.") for p in t.pieces}
    assert owners == {base}


def test_the_head_s_base_may_be_another(zoo):
    one, other = opened(zoo("qwen3_5")), opened(zoo("qwen3_5", seed=5))
    repaired = diagnose(opened(zoo("qwen3_5_text")), mtp_from=one, vision_from=other).repaired
    (head,) = {p.checkpoint for n, t in repaired.tensors.items() if n.startswith("mtp.") for p in t.pieces}
    (seen,) = {p.checkpoint for n, t in repaired.tensors.items() if n.startswith("visual.") for p in t.pieces}
    assert (head, seen) == (one, other)


@pytest.mark.parametrize(("name", "options"), [("qwen3_5", {}), ("gemma3", GEMMA)])
def test_drop_writes_the_text_form(zoo, tmp_path, name, options):
    diagnosis, out = repair(zoo(name, **options), tmp_path / "out", vision="drop")
    assert "vision.dropped" in ids(diagnosis, "repaired")
    assert not ids(diagnosis) & {"names.prefix", "vision.absent"}
    assert diagnosis.repaired.vision_origin == "dropped"
    config = config_of(out)
    assert not {"vision_config", "text_config", "image_token_id", "image_token_index"} & config.keys()
    assert not tower(tensors_in(out))
    assert all(n.startswith(("model.", "lm_head", "mtp.")) for n in tensors_in(out))
    assert not any("model.language_model" in n for n in tensors_in(out))
    assert not (out / "preprocessor_config.json").exists()
    assert ids(diagnose(opened(out)), "repaired", "error") == set()


def test_modes_that_cannot_be(zoo):
    text = opened(zoo("qwen3_5_text"))
    assert ids(diagnose(text, vision="keep"), "error") == {"vision.none"}
    assert diagnose(text, vision="drop").repaired.vision_origin == "none"
    with pytest.raises(UsageProblem, match="--vision graft needs the checkpoint"):
        diagnose(text, vision="graft")
    with pytest.raises(UsageProblem, match="llama has no vision tower"):
        diagnose(opened(zoo("llama")), vision="graft", vision_from=opened(zoo("llama")))


def test_all_that_does_not_fit_is_named(zoo, zoo_copy):
    base = zoo_copy("qwen3_5", hidden=320, head_dim=32)
    PLANTS["vision_block_lost"](base)
    diagnosis, found = misfit(zoo("qwen3_5_text"), base)
    assert "out_hidden_size is 320, but the language model's hidden_size is 256" in found.what
    assert "mrope_section" in found.what
    with pytest.raises(InputError, match="does not fit"):
        _ = diagnosis.repaired
    whole = zoo_copy("qwen3_5", seed=5)
    PLANTS["vision_block_lost"](whole)
    PLANTS["vision_block_surplus"](whole)
    _, found = misfit(zoo("qwen3_5_text"), whole)
    assert "visual.blocks.1.norm1.weight is missing" in found.what
    assert "visual.deepstack_merger_list.0.norm.weight is not part of the tower" in found.what


def test_blocks_that_go_into_the_language_model_are_there(zoo, zoo_copy):
    """Every way in which the config's list and the mergers do not fit, each by what is wrong."""
    for given, said in {
        (1, 4): "deepstack_visual_indexes has 4, but the tower's blocks are 0 to 3",
        (-1, 3): "has -1, but",
        (1, 1): "names a block twice",
        (1,): "names 1 blocks (1), and there are mergers for 2",
        (): "names 0 blocks (), and there are mergers for 2",
        ("1", "3"): "must be a list of numbers of blocks",
    }.items():
        folder = zoo_copy("qwen3_vl")
        config = config_of(folder)
        config["vision_config"]["deepstack_visual_indexes"] = list(given)
        (folder / "config.json").write_text(json.dumps(config))
        (error,) = diagnose(opened(folder)).errors
        assert (error.id, said in error.what) == ("vision.deepstack_misfit", True), error.what
        dropped = diagnose(opened(folder), vision="drop")
        assert not dropped.errors
    view = diagnose(opened(zoo("qwen3_vl"))).repaired.view()
    assert view.vision.deepstack == (1, 3)


def test_a_base_without_processor_files_is_not_recommended(zoo, zoo_copy):
    folder, base = zoo_copy("qwen3_5"), zoo_copy("qwen3_5")
    for each in (folder, base):
        PLANTS["processor_absent"](each)
    for sight, said in ((None, "no preprocessor_config.json"), (base, f"; {base.name} has none either")):
        diagnosis = diagnose(opened(folder), vision_from=None if sight is None else opened(sight))
        (found,) = (f for f in diagnosis.findings if f.id == "vision.processor_missing")
        assert found.what.endswith(said)
        assert "--vision-from" not in found.repair
    assert "vision.processor_copied" in ids(diagnose(opened(folder), vision_from=opened(zoo("qwen3_5"))))


def test_without_its_tower_qwen3_vl_is_qwen3(zoo, tmp_path):
    diagnosis, out = repair(zoo("qwen3_vl"), tmp_path / "out", vision="drop")
    config = config_of(out)
    assert (config["architectures"], config["model_type"]) == (["Qwen3ForCausalLM"], "qwen3")
    again = diagnose(opened(out))
    assert again.subject.family.name == "qwen3"
    assert ids(again, "error", "repaired") == set()
    assert not [name for name in tensors_in(out) if "visual" in name]
    assert diagnosis.repaired.vision_origin == "dropped"


def test_bases_that_cannot_serve(zoo):
    _, found = misfit(zoo("qwen3_5_text"), zoo("qwen3_5_text", seed=5))
    assert "has no vision tower itself" in found.what
    _, found = misfit(zoo("qwen3_5_text"), zoo("qwen3_5_moe"))
    assert "the base is qwen3_5_moe, this model is qwen3_5" in found.what


def test_an_image_s_tokens_have_to_be_the_same(zoo, zoo_copy):
    merged = zoo_copy("qwen3_5_text")

    def rename(document):
        (pad,) = [t for t in document["added_tokens"] if t["content"] == "<|image_pad|>"]
        pad["content"] = "<own>"

    change_json(merged, "tokenizer.json", rename)
    _, found = misfit(merged, zoo("qwen3_5"))
    assert "'<|image_pad|>' (image_token_id) is" in found.what
    assert "no token here" in found.what
    base = zoo_copy("qwen3_5")
    change_config(base, lambda c: {**c, "image_token_id": 248056})
    _, found = misfit(zoo("qwen3_5_text"), base)
    assert "image_token_id is 248056, and the embedding has 448 rows" in found.what


def test_what_was_not_named_for_the_tower_is_left_alone(zoo, zoo_copy):
    base = zoo_copy("qwen3_5")
    PLANTS["vision_block_lost"](base)
    diagnosis, found = misfit(zoo("qwen3_5_text"), base, vision_named=False)
    assert found.severity == "note"
    assert diagnosis.repaired.vision_origin == "none"
    assert not diagnosis.repaired.wrapper
    bare = diagnose(
        opened(zoo("qwen3_5_text")), vision_from=opened(zoo("qwen3_5_text", seed=5)), vision_named=False
    )
    assert "vision.misfit" not in ids(bare)


def _without_template(document):
    document.pop("chat_template", None)


def test_a_template_without_images_is_noted_and_none_is_taken(zoo, zoo_copy, tmp_path):
    base, merged = zoo_copy("qwen3_5"), zoo_copy("qwen3_5_text")
    seeing = "{% for m in messages %}<|vision_start|><|image_pad|><|vision_end|>{{ m.content }}{% endfor %}"
    for file in ("chat_template.jinja", "chat_template.json"):
        (base / file).unlink(missing_ok=True)
        (merged / file).unlink(missing_ok=True)
    for folder in (base, merged):
        change_json(folder, "tokenizer_config.json", _without_template)
    (base / "chat_template.jinja").write_text(seeing)
    diagnosis, out = repair(merged, tmp_path / "out", vision_from=opened(base))
    assert "vision.template_taken" in ids(diagnosis, "repaired")
    assert "template.missing" not in ids(diagnosis)
    assert (out / "chat_template.jinja").read_text() == seeing
    (merged / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    diagnosis = diagnose(opened(merged), vision_from=opened(base))
    assert "vision.template" in ids(diagnosis, "note")
    assert "vision.template_taken" not in ids(diagnosis)
