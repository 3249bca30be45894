"""GLM-4.5-MoE through doctor, formats and the layer-streamed pass; its GGUF bytes are in gguf/test_parity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quirks_planted import change_config, change_tensors, tensors_in
from zoo_types import Zoo, ZooCopy

from qexport.checkpoint.opening import open_checkpoint
from qexport.doctor.diagnose import Diagnosis, diagnose
from qexport.evidence.observe import Observer
from qexport.evidence.options import StreamOptions
from qexport.evidence.stream import LayerStream
from qexport.families.roles import Block, Role
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.fp8.plan import plan_fp8
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.mlx.plan import plan_mlx
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.nvfp4.plan import plan_nvfp4
from qexport.formats.opening import open_artifact
from qexport.onepass.execute import execute
from qexport.verification.mtp_head import score_head
from qexport.verification.stored_form import check_stored_form
from qexport.verification.text_run import run_text

HEAD = "model.layers.3."


def silent(config: dict[str, Any]) -> None:
    del config["num_nextn_predict_layers"]


def diagnosed(folder: Path, base: Path | None = None, mtp: Any = "auto") -> Diagnosis:
    return diagnose(
        open_checkpoint(str(folder)), mtp=mtp, mtp_from=open_checkpoint(str(base)) if base else None
    )


# --- the doctor --------------------------------------------------------------------------------------------


def test_the_layer_behind_the_trunk_is_the_head(zoo: Zoo) -> None:
    repaired = diagnosed(zoo("glm4_moe")).repaired
    view = repaired.view()
    head = [tensor for tensor in view if tensor.block is Block.MTP]
    assert (repaired.mtp_origin, view.layers, view.mtp_layers) == ("own", 3, 1)
    assert all(tensor.name.startswith(HEAD) and tensor.layer == 0 for tensor in head)
    assert {Role.MTP_FC, Role.MTP_EMBED, Role.MTP_OUTPUT, Role.ROUTER_BIAS} <= {t.role for t in head}
    assert view.hyper.kinds == ("dense", "full", "full")
    experts = view.hyper.experts
    assert experts is not None
    assert (experts.scoring, experts.scale, experts.normed, experts.groups) == ("sigmoid", 1.5, True, 1)
    assert (experts.shared, experts.shared_inner, view.hyper.rotary) == (1, 256, 32)


def test_a_declared_head_that_is_lost(zoo_copy: ZooCopy, zoo: Zoo) -> None:
    folder = zoo_copy("glm4_moe")
    change_tensors(folder, lambda t: {n: x for n, x in t.items() if not n.startswith(HEAD)})
    (error,) = diagnosed(folder).errors
    assert error.id == "mtp.lost"
    assert "num_nextn_predict_layers: 1), but there are no model.layers.3.* tensors" in error.what
    dropped = diagnosed(folder, mtp="drop").repaired
    assert (dropped.mtp_layers, dropped.config["num_nextn_predict_layers"]) == (0, 0)
    grafted = diagnosed(folder, zoo("glm4_moe")).repaired
    assert (grafted.mtp_layers, grafted.mtp_origin) == (1, "grafted from glm4_moe")
    theirs = {name for name in tensors_in(zoo("glm4_moe")) if name.startswith(HEAD)}
    assert {name for name in grafted.tensors if name.startswith(HEAD)} == theirs


def test_a_head_that_is_not_declared(zoo_copy: ZooCopy) -> None:
    folder = zoo_copy("glm4_moe")
    change_config(folder, silent)
    found = diagnosed(folder)
    assert {"mtp.undeclared"} == {f.id for f in found.findings if f.id.startswith(("mtp.", "layers."))}
    assert found.repaired.config["num_nextn_predict_layers"] == 1


def test_no_head_is_said_where_readers_would_assume_one(zoo_copy: ZooCopy) -> None:
    folder = zoo_copy("glm4_moe_air")
    change_config(folder, silent)
    assert diagnosed(folder).repaired.config["num_nextn_predict_layers"] == 0


def test_a_layer_too_many_is_no_head(zoo_copy: ZooCopy) -> None:
    folder = zoo_copy("glm4_moe_air")
    change_config(folder, lambda c: c.update(num_hidden_layers=2, num_nextn_predict_layers=1))
    assert "layers.count" in {error.id for error in diagnosed(folder).errors}


# --- the streamed pass -------------------------------------------------------------------------------------


def test_the_head_computes_what_a_decoder_layer_of_transformers_does(zoo: Zoo) -> None:
    """The head as a model of one layer: transformers' own, given what the projection makes."""
    from transformers import AutoModelForCausalLM
    from transformers.models.glm4_moe import Glm4MoeConfig, Glm4MoeModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = zoo("glm4_moe")
    stored = {name: tensor.float() for name, tensor in tensors_in(folder).items()}
    ids = np.arange(2 * 24, dtype=np.int32).reshape(2, 24) % 448
    config = Glm4MoeConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    head = {name.removeprefix(HEAD): tensor for name, tensor in stored.items() if name.startswith(HEAD)}
    config.num_hidden_layers, config.first_k_dense_replace = 1, 0
    single = Glm4MoeModel(config).eval()
    weights = {
        f"layers.0.{n}": t for n, t in head.items() if n.startswith(("self_attn", "mlp", "input", "post"))
    }
    experts = [f"layers.0.mlp.experts.{e}." for e in range(6)]
    gates = [torch.cat([weights[e + f"{p}_proj.weight"] for p in ("gate", "up")]) for e in experts]
    weights["layers.0.mlp.experts.gate_up_proj"] = torch.stack(gates)
    weights["layers.0.mlp.experts.down_proj"] = torch.stack(
        [weights[e + "down_proj.weight"] for e in experts]
    )
    weights["norm.weight"] = head["shared_head.norm.weight"]
    assert single.load_state_dict(weights, strict=False).missing_keys == ["embed_tokens.weight"]

    def normed(values: torch.Tensor, name: str) -> torch.Tensor:
        return values * torch.rsqrt(values.square().mean(-1, keepdim=True) + 1e-5) * head[f"{name}.weight"]

    with torch.no_grad():
        hidden = model.model(torch.from_numpy(ids).long(), use_cache=False).last_hidden_state[:, :-1]
        following = head["embed_tokens.weight"][torch.from_numpy(ids[:, 1:]).long()]
        both = torch.cat([normed(following, "enorm"), normed(hidden, "hnorm")], dim=-1)
        expected = single(inputs_embeds=both @ head["eh_proj.weight"].T, use_cache=False).last_hidden_state
    drafts: list[torch.Tensor] = []
    stream = LayerStream(diagnosed(folder).repaired.view(), StreamOptions(precision="float32"))
    stream.run(ids, Observer(), draft=lambda _, found: drafts.append(found))
    torch.testing.assert_close(torch.cat(drafts), expected, atol=1e-4, rtol=1e-4)


# --- formats -----------------------------------------------------------------------------------------------

PLANS: dict[str, Any] = {
    "fp8": lambda d: (plan_fp8(d.repaired, Fp8Options()),),
    "compressed": lambda d: (plan_fp8(d.repaired, Fp8Options(layout="compressed-tensors")),),
    "nvfp4": lambda d: (plan_nvfp4(d.repaired, Nvfp4Options()),),
    "mlx": lambda d: plan_mlx(d.repaired, MlxOptions(bits=6)),
}


@pytest.mark.parametrize("name", ["glm4_moe", "glm4_moe_air"])
@pytest.mark.parametrize("format_", PLANS)
def test_a_folder_says_what_it_holds(zoo: Zoo, tmp_path: Path, format_: str, name: str) -> None:
    """Written, read back, and every module in the form that its config promises to loaders."""
    diagnosis = diagnosed(zoo(name))
    execute(PLANS[format_](diagnosis), tmp_path)
    artifact = open_artifact(tmp_path)
    findings = {finding.check.value: finding for finding in check_stored_form(artifact)}
    assert {f.status.value for f in findings.values()} == {"pass"}, findings
    kept = format_ != "mlx" and name == "glm4_moe"
    assert artifact.has_head == kept
    assert artifact.declared_mtp == int(kept)
    view = artifact.view()
    bias = view.find(Role.ROUTER_BIAS)
    assert bias is not None
    assert bias.data.dtype == "F32"
    if kept:
        ids = np.arange(2 * 16, dtype=np.int32).reshape(2, 16) % 448
        with run_text(diagnosis.repaired.view(), ids) as source, run_text(view, ids) as run:
            shared = [score_head(each).drafting.sampled[0].value for each in (run, source)]
            assert shared[0] == pytest.approx(shared[1], abs=0.05)


def test_mlx_config_has_every_argument(zoo: Zoo) -> None:
    (plan,) = plan_mlx(diagnosed(zoo("glm4_moe_air")).repaired, MlxOptions())
    config = json.loads(next(f.header for f in plan.files if f.name == "config.json"))
    assert config["rope_scaling"] is None
    assert (config["partial_rotary_factor"], config["rope_theta"]) == (0.5, 1e6)
    assert "e_score" not in json.dumps(config["quantization"])


def test_what_mlx_holds_in_code(zoo_copy: ZooCopy) -> None:
    folder = zoo_copy("glm4_moe_air")
    change_config(folder, lambda c: c.update(rope_scaling={"rope_type": "yarn", "factor": 2.0}))
    with pytest.raises(Exception, match="mlx-lm's glm4_moe does not scale RoPE"):
        plan_mlx(diagnosed(folder).repaired, MlxOptions())
