"""Which matrices become FP8: the large linear layers, all or nothing where runtimes fuse them.

Rows with a scale each may have any length. For tiles, both sides of a matrix have to be multiples of 128:
readers disagree about what a partial tile is (transformers divides the rows evenly, vLLM refuses merged
matrices that have one). The parts that a runtime merges into one matrix have to be, too: Gated DeltaNet's
``in_proj_qkv`` is query, key and value to vLLM
(https://github.com/vllm-project/vllm/blob/main/vllm/model_executor/layers/quantization/utils/fp8_utils.py,
``validate_fp8_block_shape``). What does not fit stays as it is, with everything that is fused with it: one
kernel has one format. All experts of a layer are one module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.assign.assignment import PLAIN, Assignment
from qexport.codecs.contract import FP8_TILE
from qexport.families.roles import Block, Role
from qexport.formats.linears import LINEAR_ROLES, given_types, kernel_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qexport.doctor.repaired import Repaired
    from qexport.families.view import ModelTensor, ModelView
    from qexport.formats.fp8.options import Fp8Options


FP8 = "F8_E4M3"


@dataclass(frozen=True)
class Scope:
    """``names`` of the view's tensors that become FP8; ``kept`` says of linear roles why they do not.

    ``types`` are those of all linear layers, ``notes`` what a given choice of them leaves open.
    """

    names: frozenset[str]
    kept: Mapping[Role, str]
    types: Assignment
    notes: Sequence[str] = ()


def scope_of(repaired: Repaired, view: ModelView, options: Fp8Options) -> Scope:
    """What ``options`` make of ``view``."""
    dims = repaired.hyper.dims
    linear = [tensor for tensor in view if _is_linear(tensor, options)]
    own = {tensor.name: FP8 for tensor in linear}
    given, notes = given_types(options.types_from, "fp8", view, (FP8, PLAIN), own)
    wanted = [tensor for tensor in linear if given.types[tensor.name] == FP8]
    tiled = [] if options.dynamic else wanted
    misfits = {kernel_of(tensor): why for tensor in tiled if (why := misfit(tensor, dims))}
    kept = {t.role: misfits[kernel_of(t)] for t in wanted if kernel_of(t) in misfits}
    names = frozenset(t.name for t in wanted if kernel_of(t) not in misfits)
    types = {tensor.name: FP8 if tensor.name in names else PLAIN for tensor in linear}
    return Scope(names, kept, Assignment("fp8", "FP8", types), notes)


def _is_linear(tensor: ModelTensor, options: Fp8Options) -> bool:
    return (
        tensor.role in LINEAR_ROLES
        and tensor.block in (Block.TRUNK, Block.MTP)
        and not (tensor.block is Block.MTP and options.keeps_mtp)
    )


def misfit(tensor: ModelTensor, dims: Mapping[str, int]) -> str | None:
    """Why its sides, or those of its parts, are no multiples of a tile's; ``None``: they are."""
    rows, columns = tensor.shape[-2:]
    parts = [rows]
    if tensor.role is Role.LINEAR_QKV:
        parts = [dims["linear_k_heads"] * dims["linear_k_head_dim"], dims["linear_v"]]
    odd = next((size for size in (*parts, columns) if size % FP8_TILE), None)
    if odd is None:
        return None
    what = "" if odd in (rows, columns) else f" with {odd} rows for one of its parts"
    return f"{tensor.role.value} is {rows} by {columns}{what}"
