"""GGUF architectures: what llama.cpp calls a family's tensors, and how it wants them laid out.

What a family has of its own is the :class:`~qexport.families.family.Arch` in its file. Tensor names are those
of llama.cpp's ``src/llama-arch.cpp``; layouts (norms with the 1 added, rotary halves interleaved, value heads
tiled) are those its graph code in ``src/models/`` computes with, as its converter produces them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.errors import InputError
from qexport.families.known import FAMILIES
from qexport.families.roles import Block, Role
from qexport.formats.plan import Arrangement, Op

if TYPE_CHECKING:
    import numpy as np

    from qexport.families.family import Arch
    from qexport.families.view import ModelTensor, ModelView


_GLOBAL = {
    Role.TOKEN_EMBD: "token_embd.weight",
    Role.OUTPUT: "output.weight",
    Role.OUTPUT_NORM: "output_norm.weight",
}
_BLOCK = {
    Role.ATTN_NORM: "attn_norm.weight",
    Role.ATTN_Q: "attn_q.weight",
    Role.ATTN_K: "attn_k.weight",
    Role.ATTN_V: "attn_v.weight",
    Role.ATTN_OUTPUT: "attn_output.weight",
    Role.ATTN_Q_BIAS: "attn_q.bias",
    Role.ATTN_K_BIAS: "attn_k.bias",
    Role.ATTN_V_BIAS: "attn_v.bias",
    Role.ATTN_OUTPUT_BIAS: "attn_output.bias",
    Role.ATTN_Q_NORM: "attn_q_norm.weight",
    Role.ATTN_K_NORM: "attn_k_norm.weight",
    Role.POST_ATTN_NORM: "post_attention_norm.weight",
    Role.LINEAR_QKV: "attn_qkv.weight",
    Role.LINEAR_Z: "attn_gate.weight",
    Role.LINEAR_A: "ssm_alpha.weight",
    Role.LINEAR_B: "ssm_beta.weight",
    Role.LINEAR_OUT: "ssm_out.weight",
    Role.LINEAR_CONV: "ssm_conv1d.weight",
    Role.LINEAR_NORM: "ssm_norm.weight",
    Role.LINEAR_A_LOG: "ssm_a",
    Role.LINEAR_DT_BIAS: "ssm_dt.bias",
    Role.FFN_NORM: "ffn_norm.weight",
    Role.FFN_GATE: "ffn_gate.weight",
    Role.FFN_UP: "ffn_up.weight",
    Role.FFN_DOWN: "ffn_down.weight",
    Role.FFN_GATE_BIAS: "ffn_gate.bias",
    Role.FFN_UP_BIAS: "ffn_up.bias",
    Role.FFN_DOWN_BIAS: "ffn_down.bias",
    Role.POST_FFN_NORM: "post_ffw_norm.weight",
    Role.ROUTER: "ffn_gate_inp.weight",
    Role.ROUTER_BIAS: "exp_probs_b.bias",
    Role.EXPERTS_GATE: "ffn_gate_exps.weight",
    Role.EXPERTS_UP: "ffn_up_exps.weight",
    Role.EXPERTS_DOWN: "ffn_down_exps.weight",
    Role.SHARED_EXPERT_GATE: "ffn_gate_shexp.weight",
    Role.SHARED_EXPERT_UP: "ffn_up_shexp.weight",
    Role.SHARED_EXPERT_DOWN: "ffn_down_shexp.weight",
    Role.SHARED_EXPERT_ROUTER: "ffn_gate_inp_shexp.weight",
    Role.MTP_FC: "nextn.eh_proj.weight",
    Role.MTP_EMBED_NORM: "nextn.enorm.weight",
    Role.MTP_HIDDEN_NORM: "nextn.hnorm.weight",
    Role.MTP_NORM: "nextn.shared_head_norm.weight",
    Role.MTP_EMBED: "nextn.embed_tokens.weight",
    Role.MTP_OUTPUT: "nextn.shared_head_head.weight",
}


def arch_of(view: ModelView) -> Arch:
    """The architecture of a model. Raises InputError for a family that GGUF cannot hold yet."""
    arch = FAMILIES[view.family].arch
    if arch is None:
        known = ", ".join(family.name for family in FAMILIES.values() if family.arch is not None)
        raise InputError(f"GGUF export does not know the {view.family} family; it knows {known}")
    if not arch.dense_first and "dense" in view.hyper.kinds:
        raise InputError(
            f"{view.label} has layers without experts among those with them (mlp_only_layers, "
            "decoder_sparse_step): llama.cpp cannot load such a file",
        )
    return arch


def gguf_name(arch: Arch, view: ModelView, tensor: ModelTensor) -> str:
    """``blk.N.*`` or the global name. MTP layers are numbered after the trunk's; so is what feeds them."""
    if tensor.role in _GLOBAL:
        return _GLOBAL[tensor.role]
    name = arch.names.get(tensor.role) or _BLOCK[tensor.role]
    layer = (tensor.layer or 0) + (view.layers if tensor.block is Block.MTP else 0)
    return f"blk.{layer}.{name}"


def arrangement_of(arch: Arch, view: ModelView, tensor: ModelTensor) -> Arrangement:
    """How the tensor's rows become those of the GGUF tensor."""
    role, shape = tensor.role, tensor.shape
    if role in arch.norms_plus_one:
        return Arrangement(op="add_one")
    if arch.interleaved_rope and role in _QUERIES | _KEYS:
        heads = view.hyper.heads if role in _QUERIES else view.hyper.kv_heads
        return _ordered(shape, _interleave(shape[0], heads))
    if arch.tiled_v_heads and tensor.block is Block.TRUNK:
        return _linear_attention(view, role, shape)
    return Arrangement()


_QUERIES = {Role.ATTN_Q, Role.ATTN_Q_BIAS}
_KEYS = {Role.ATTN_K, Role.ATTN_K_BIAS}


def _interleave(rows: int, heads: int) -> np.ndarray:
    """[first half | second half] of each head's rows becomes first, second, first, second ..."""
    import numpy as np

    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def _linear_attention(view: ModelView, role: Role, shape: tuple[int, ...]) -> Arrangement:
    import numpy as np

    if role is Role.LINEAR_CONV:
        shape = (shape[0], shape[2])  # the middle 1 is the depth-wise group; llama.cpp has no use for it
    op: Op = "neg_exp" if role is Role.LINEAR_A_LOG else "none"
    dims = view.hyper.dims
    k_heads, v_heads = dims["linear_k_heads"], dims["linear_v_heads"]
    if role not in _V_HEADS or k_heads == v_heads:
        return Arrangement(shape=shape, op=op) if role is not Role.LINEAR_NORM else Arrangement()
    width = 1 if role in _ONE_PER_HEAD else dims["linear_v_head_dim"]
    tiled = np.arange(v_heads * width).reshape(k_heads, v_heads // k_heads, width).swapaxes(0, 1).reshape(-1)
    if role is Role.LINEAR_OUT:
        return Arrangement(shape=shape, column_order=tiled)
    first = shape[0] - len(tiled)  # query and key rows of qkv and conv1d stay in front as they are
    order = np.concatenate([np.arange(first), first + tiled])
    return _ordered(shape, order, op)


_ONE_PER_HEAD = {Role.LINEAR_A, Role.LINEAR_B, Role.LINEAR_A_LOG, Role.LINEAR_DT_BIAS}
_V_HEADS = _ONE_PER_HEAD | {Role.LINEAR_QKV, Role.LINEAR_Z, Role.LINEAR_CONV, Role.LINEAR_OUT}


def _ordered(shape: tuple[int, ...], order: np.ndarray, op: Op = "none") -> Arrangement:
    """``order`` applied to the first dimension; a vector is one row, so there it orders columns."""
    if len(shape) == 1:
        return Arrangement(shape=shape, column_order=order, op=op)
    return Arrangement(shape=shape, row_order=order, op=op)
