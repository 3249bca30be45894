"""The MTP head for the runtimes that have one: a folder beside the trunk, or files inside it.

mlx-lm drops the head, so it is kept where no version of mlx-lm looks:

=============  =======================================================================================
``drafter``    a folder of its own, model type ``qwen3_5_mtp``, names without prefix: mlx-vlm (also oMLX,
               Rapid-MLX), https://github.com/Blaizzy/mlx-vlm, speculative/drafters/qwen3_5_mtp
``mtplx``      ``mtp.safetensors`` and ``mtplx_runtime.json``: MTPLX, https://github.com/youssofal/MTPLX
``vllm-mlx``   ``mtp/weights.safetensors``, ``mtp/manifest.json``: vllm-mlx; it dequantizes with the trunk's
               settings, so never quantized, https://github.com/waybarrios/vllm-mlx
``embedded``   ``language_model.mtp.*`` among the model's tensors: oMLX, exo. mlx-lm up to 0.31.3 takes it for
               an unconverted checkpoint and shifts every norm once more
=============  =======================================================================================

In all of them norms have the 1 added, once, and where a file can say so, it does: readers that guess from
means guess wrong. Experts are stacked (``switch_mlp``). With ``mtp_bits`` the projections are quantized;
``fc``, the router gates and the norms are not, which is what every reader of quantized heads accepts.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from qexport.evidence.store import Kind
from qexport.families.roles import EXPERT_ROLES, NORM_ROLES, Block, Role
from qexport.formats.mlx.tensors import plain, quantized

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qexport.evidence.store import Evidence
    from qexport.families.family import Dialect
    from qexport.families.view import ModelTensor
    from qexport.formats.folder import FolderTensor
    from qexport.formats.mlx.options import Scheme


DEPTH = 1  # MTP layers of every published head
NORM_FORMAT = "mlx_gamma"
"""vllm-mlx's word for norms with the 1 added."""
SIDECARS: Mapping[str, str] = {"mtplx": "mtp.safetensors", "vllm-mlx": "mtp/weights.safetensors"}
_NEVER = NORM_ROLES | {Role.MTP_FC, Role.ROUTER, Role.SHARED_EXPERT_ROUTER}


def takes_scheme(tensor: ModelTensor, scheme: Scheme) -> bool:
    """Whether ``mtp_bits`` quantizes this tensor of the head."""
    matrix = tensor.block is Block.MTP and len(tensor.shape) >= 2 and tensor.role not in _NEVER
    return matrix and tensor.shape[-1] % scheme.group_size == 0


def head_tensors(
    head: Sequence[ModelTensor],
    own: str,
    prefix: str,
    scheme: Scheme | None,
    dtype: str | None,
    evidence: Evidence,
) -> list[FolderTensor]:
    """What one layout stores.

    Args:
        own: the prefix that its names have; ``prefix`` stands instead of it.
        scheme: of the projections; ``None`` leaves them as they are.
        dtype: of what is not quantized, ``None`` for the tensors' own.
    """
    made: list[FolderTensor] = []
    for tensor in head:
        name = prefix + tensor.name.removeprefix(own)
        if tensor.role in EXPERT_ROLES:
            name = name.replace(".mlp.experts.", ".mlp.switch_mlp.")
        if scheme is not None and takes_scheme(tensor, scheme):
            made.append(
                quantized(tensor, name, scheme, dtype, evidence.needed(Kind.INPUT_SQUARES, tensor.name))
            )
        else:
            made.append(plain(tensor, name, dtype, add_one=tensor.role in NORM_ROLES))
    return made


def _block(scheme: Scheme) -> dict[str, Any]:
    return {"group_size": scheme.group_size, "bits": scheme.bits, "mode": scheme.mode}


def drafter_config(text: Mapping[str, Any], scheme: Scheme | None, dialect: Dialect) -> dict[str, Any]:
    """config.json of the drafter folder; ``text`` is the language model's part of the trunk's."""
    config: dict[str, Any] = {
        "model_type": dialect.drafter,
        "text_config": dict(text),
        "block_size": DEPTH + 2,  # one token of the trunk, what the head adds, and one step further
        "tie_word_embeddings": bool(text.get("tie_word_embeddings")),
        "rmsnorm_weight_format": NORM_FORMAT,
    }
    if scheme is not None:
        config |= {"quantization": _block(scheme), "quantization_config": _block(scheme)}
    return config


def runtime_contract(generation: Mapping[str, Any], scheme: Scheme | None) -> tuple[bytes, dict[str, Any]]:
    """``mtplx_runtime.json``, and what MTPLX wants in config.json.

    The contract says nothing of speed or exactness: nobody has measured. ``mtp_norm_layout`` is what AX
    Engine, another reader of these files, goes by.
    """
    contract: dict[str, Any] = {
        "arch_id": "qwen3-next-mtp",
        "mtp_depth_max": DEPTH,
        "recommended_profile": "stable",
        "mtp_norm_layout": "mlx_multiplier",
        "mtp_sidecar": SIDECARS["mtplx"],
        "artifact_role": "trunk-with-mtp-sidecar",
    }
    sampler = {key: generation[key] for key in ("temperature", "top_p", "top_k") if key in generation}
    if sampler:
        contract["sampler"] = sampler
    config: dict[str, Any] = {"mlx_lm_extra_tensors": {"mtp_file": SIDECARS["mtplx"]}}
    if scheme is not None:
        config["mtplx_mtp_quantization"] = {**_block(scheme), "prequantized": True, "policy": "cyankiwi"}
    return (json.dumps(contract, indent=2) + "\n").encode(), config


def manifest(label: str, names: Sequence[str]) -> bytes:
    """``mtp/manifest.json`` of vllm-mlx."""
    content = {
        "artifact_schema_version": 1,
        "source_model": label,
        "rmsnorm_weight_format": NORM_FORMAT,
        "weight_keys": sorted(names),
    }
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
