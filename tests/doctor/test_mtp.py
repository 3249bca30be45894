"""The MTP head kept, grafted, dropped, refused; tensors and declaration agree afterwards."""

from __future__ import annotations

import json

import pytest
from doctor_bench import HeadersOnly, data_of, fingerprint, ids, opened, repair, same, tensors_in
from quirks_planted import PLANTS, change_json, change_tensors, change_text_config
from zoo import split_experts

from qexport.doctor import diagnose
from qexport.errors import InputError, UsageProblem

KEY = "mtp_num_hidden_layers"


def head(tensors):
    return {name: tensor for name, tensor in tensors.items() if name.startswith("mtp.")}


def declared(folder):
    config = json.loads((folder / "config.json").read_text())
    return config.get("text_config", config).get(KEY)


def reasons(diagnosis):
    (found,) = [f for f in diagnosis.findings if f.id == "mtp.misfit"]
    with pytest.raises(InputError, match="does not fit"):
        _ = diagnosis.repaired
    return found.what


# --- keep and drop ------------------------------------------------------------------------------------------


def test_a_head_that_is_there_is_kept(zoo, tmp_path):
    for mode in ("auto", "keep"):
        diagnosis, out = repair(zoo("qwen3_5"), tmp_path / mode, mtp=mode)
        assert diagnosis.repaired.mtp_origin == "own"
        assert diagnosis.repaired.view().mtp_layers == 1
        assert (len(head(tensors_in(out))), declared(out)) == (15, 1)


def test_auto_with_a_base_keeps_an_own_head(zoo):
    diagnosis = diagnose(opened(zoo("qwen3_5")), mtp_from=opened(zoo("qwen3_5", seed=5)))
    assert diagnosis.repaired.mtp_origin == "own"


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_drop(zoo, tmp_path, name):
    diagnosis, out = repair(zoo(name), tmp_path / "out", mtp="drop")
    assert ids(diagnosis, "repaired") == {"mtp.dropped"}
    assert diagnosis.repaired.mtp_origin == "dropped"
    assert (head(tensors_in(out)), declared(out)) == ({}, 0)
    assert ids(diagnose(opened(out)), "repaired", "error") == set()


def test_drop_of_a_lost_head(zoo_copy, tmp_path):
    folder = zoo_copy("qwen3_5")
    PLANTS["mtp_declared_absent"](folder)
    diagnosis, out = repair(folder, tmp_path / "out", mtp="drop")
    assert diagnosis.repaired.mtp_layers == 0
    assert declared(out) == 0


@pytest.mark.parametrize("plant", ["mtp_incomplete", "mtp_own_embeddings"])
def test_drop_needs_no_sound_head(zoo_copy, plant):
    folder = zoo_copy("qwen3_5")
    PLANTS[plant](folder)
    assert diagnose(opened(folder), mtp="drop").repaired.mtp_layers == 0


def test_drop_where_there_is_nothing_to_drop(zoo):
    assert "mtp.dropped" not in ids(diagnose(opened(zoo("qwen3_5_text")), mtp="drop"))
    assert diagnose(opened(zoo("llama")), mtp="drop").repaired.mtp_layers == 0


def test_keep_without_a_head(zoo):
    for name in ("qwen3_5_text", "llama"):
        diagnosis = diagnose(opened(zoo(name)), mtp="keep")
        assert ids(diagnosis, "error") == {"mtp.none"}
        with pytest.raises(InputError, match="no MTP head"):
            _ = diagnosis.repaired


def test_lost_head_names_both_ways_out(zoo_copy):
    folder = zoo_copy("qwen3_5")
    PLANTS["mtp_declared_absent"](folder)
    with pytest.raises(InputError) as refusal:
        _ = diagnose(opened(folder)).repaired
    assert "--mtp graft --mtp-from BASE" in str(refusal.value)
    assert "--mtp drop" in str(refusal.value)


def test_missing_tensors_are_named(zoo_copy):
    folder = zoo_copy("qwen3_5")
    PLANTS["mtp_incomplete"](folder)
    (found,) = [f for f in diagnose(opened(folder)).findings if f.id == "mtp.incomplete"]
    assert "mtp.fc.weight is missing" in found.what
    assert "14 tensors" in found.what


@pytest.mark.parametrize("value", [0, None, 2, "gone"])
def test_declaration_follows_the_tensors(zoo_copy, value):
    folder = zoo_copy("qwen3_5")

    def change(config):
        if value == "gone":
            del config[KEY]
        else:
            config[KEY] = value

    change_text_config(folder, change)
    diagnosis = diagnose(opened(folder))
    assert ids(diagnosis, "repaired") == {"mtp.undeclared"}
    assert diagnosis.repaired.config["text_config"][KEY] == 1


def test_two_layers_are_refused(zoo_copy):
    folder = zoo_copy("qwen3_5")
    twice = {"mtp.layers.0.": "mtp.layers.1."}

    def change(tensors):
        extra = {
            n.replace(a, b): t.clone()
            for n, t in tensors.items()
            for a, b in twice.items()
            if n.startswith(a)
        }
        return {**tensors, **extra}

    change_tensors(folder, change)
    assert ids(diagnose(opened(folder)), "error") == {"mtp.several"}
    assert diagnose(opened(folder), mtp="drop").repaired.mtp_layers == 0


# --- graft --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
@pytest.mark.parametrize("mode", ["auto", "graft"])
def test_graft_is_bit_for_bit(zoo, tmp_path, name, mode):
    base, merged = zoo(name), zoo(f"{name}_text")
    before = fingerprint(base), fingerprint(merged)
    diagnosis, out = repair(merged, tmp_path / "out", mtp=mode, mtp_from=opened(base))
    assert "mtp.grafted" in ids(diagnosis, "repaired")
    assert diagnosis.repaired.mtp_origin == f"grafted from {name}"
    theirs = head(tensors_in(base))
    if "moe" in name:  # the merge has its experts one by one
        theirs = split_experts(theirs, "mtp.")
    mine = head(tensors_in(out))
    assert mine.keys() == theirs.keys()
    assert all(same(mine[key], theirs[key]) for key in mine)
    assert declared(out) == 1
    assert json.loads((out / "config.json").read_text())["mtp_use_dedicated_embeddings"] is False
    trunk = tensors_in(merged)
    assert all(same(tensor, trunk[key]) for key, tensor in tensors_in(out).items() if key in trunk)
    assert (fingerprint(base), fingerprint(merged)) == before
    again = diagnose(opened(out))
    assert ids(again, "repaired", "error") == set()


def test_graft_gets_a_shard_of_its_own_and_an_index(zoo, tmp_path):
    _, out = repair(zoo("qwen3_5_text"), tmp_path / "out", mtp_from=opened(zoo("qwen3_5")))
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    last = {name for name, file in index.items() if file == "model-00002-of-00002.safetensors"}
    assert len(last) == 15
    assert last == set(head(index))


def test_graft_of_single_experts_onto_a_fused_trunk(zoo, zoo_copy, tmp_path):
    folder = zoo_copy("qwen3_5_moe")
    PLANTS["mtp_declared_absent"](folder)
    base = zoo("qwen3_5_moe_122b")  # the same weights, MTP experts one by one
    diagnosis, out = repair(folder, tmp_path / "out", mtp_from=opened(base))
    assert "experts.mtp_layout" not in ids(diagnosis)
    mine, theirs = head(tensors_in(out)), head(tensors_in(zoo("qwen3_5_moe")))
    assert mine.keys() == theirs.keys()
    assert all(same(mine[key], theirs[key]) for key in mine)


def test_graft_in_place_of_a_broken_head(zoo, zoo_copy):
    folder = zoo_copy("qwen3_5")
    PLANTS["mtp_incomplete"](folder)
    diagnosis = diagnose(opened(folder), mtp="graft", mtp_from=opened(zoo("qwen3_5")))
    assert ids(diagnosis, "error") == set()
    assert diagnosis.repaired.view().mtp_layers == 1


def test_graft_reads_nothing(zoo):
    merged, base = HeadersOnly(opened(zoo("qwen3_5_moe_text"))), HeadersOnly(opened(zoo("qwen3_5_moe")))
    repaired = diagnose(merged, mtp_from=base).repaired
    assert repaired.view().mtp_layers == 1
    owners = {
        piece.checkpoint
        for name, t in repaired.tensors.items()
        if name.startswith("mtp.")
        for piece in t.pieces
    }
    assert owners == {base}


def test_grafted_values_come_from_the_base(zoo):
    base = opened(zoo("qwen3_5", seed=7))
    repaired = diagnose(opened(zoo("qwen3_5_text")), mtp_from=base).repaired
    expected = tensors_in(zoo("qwen3_5", seed=7))["mtp.fc.weight"]
    assert same(data_of(repaired, "mtp.fc.weight"), expected)


# --- refusals -----------------------------------------------------------------------------------------------


def test_graft_without_a_base(zoo):
    with pytest.raises(UsageProblem, match="--mtp graft needs"):
        diagnose(opened(zoo("qwen3_5_text")), mtp="graft")


def test_a_base_for_a_family_without_heads_is_not_passed_over(zoo):
    base = opened(zoo("qwen3_5"))
    (found,) = [f for f in diagnose(opened(zoo("llama")), mtp_from=base).findings if f.id == "mtp.none"]
    assert (found.severity, "the family llama has none" in found.what) == ("note", True)
    dropped = diagnose(opened(zoo("llama")), mtp="drop", mtp_from=base)
    assert [f.id for f in dropped.findings if f.id == "mtp.none"] == []


def test_graft_of_a_family_without_heads(zoo):
    with pytest.raises(UsageProblem, match="the family llama has no MTP head"):
        diagnose(opened(zoo("llama")), mtp="graft", mtp_from=opened(zoo("llama")))


def test_base_without_a_head(zoo):
    base = opened(zoo("qwen3_5_text"))
    assert "has no MTP head itself" in reasons(diagnose(opened(zoo("qwen3_5_text")), mtp_from=base))


def test_dense_and_experts_do_not_mix(zoo):
    diagnosis = diagnose(opened(zoo("qwen3_5_text")), mtp_from=opened(zoo("qwen3_5_moe")))
    assert "the base is qwen3_5_moe, this model is qwen3_5" in reasons(diagnosis)


def test_all_reasons_are_named(zoo, zoo_copy):
    base = zoo_copy("qwen3_5", hidden=320, head_dim=32)

    def change(config):
        config["rms_norm_eps"] = 1e-5
        config["hidden_act"] = "gelu"
        config["rope_parameters"]["rope_theta"] = 5000000

    change_text_config(base, change)
    what = reasons(diagnose(opened(zoo("qwen3_5_text")), mtp_from=opened(base)))
    for word in ("hidden_size", "head_dim", "rms_norm_eps", "hidden_act", "rope rope_theta", "mrope_section"):
        assert word in what
    assert "mtp.fc.weight has shape [320, 640], this model needs [256, 512]" in what


def test_other_token_ids(zoo, zoo_copy):
    base = zoo_copy("qwen3_5")

    def swap(document):
        vocab = document["model"]["vocab"]
        one, other = list(vocab)[3], list(vocab)[9]
        vocab[one], vocab[other] = vocab[other], vocab[one]

    change_json(base, "tokenizer.json", swap)
    what = reasons(diagnose(opened(zoo("qwen3_5_text")), mtp_from=opened(base)))
    assert "2 token ids differ from the base's" in what


def test_a_replaced_token_is_another_id(zoo, zoo_copy):
    merged = zoo_copy("qwen3_5_text")

    def rename(document):
        document["added_tokens"][-1]["content"] = "<own>"

    change_json(merged, "tokenizer.json", rename)
    what = reasons(diagnose(opened(merged), mtp_from=opened(zoo("qwen3_5"))))
    assert "1 token ids differ" in what
    assert "'<own>'" in what


def test_added_tokens_are_noted(zoo, zoo_copy):
    merged = zoo_copy("qwen3_5_text")

    def add(document):
        last = document["added_tokens"][-1]
        document["added_tokens"].append({**last, "id": last["id"] + 1, "content": "<own>"})

    change_json(merged, "tokenizer.json", add)
    diagnosis = diagnose(opened(merged), mtp_from=opened(zoo("qwen3_5")))
    assert diagnosis.repaired.mtp_layers == 1
    (note,) = [f for f in diagnosis.findings if f.id == "mtp.vocabulary"]
    assert note.what.startswith("1 tokens were added")


def test_base_with_an_incomplete_head(zoo, zoo_copy):
    base = zoo_copy("qwen3_5")
    PLANTS["mtp_incomplete"](base)
    assert "mtp.fc.weight is missing" in reasons(diagnose(opened(zoo("qwen3_5_text")), mtp_from=opened(base)))
