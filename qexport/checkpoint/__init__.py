"""Reading checkpoints, on disk and on the Hub, and planning the safetensors files of a new one.

Everything above sees named tensors made of rows (:mod:`qexport.checkpoint.tensors`); where they are stored,
and how that is checked, stays in here. Importing this package imports neither torch nor huggingface_hub.
"""

from qexport.checkpoint.config import read_json, text_config
from qexport.checkpoint.finite import nonfinite_count
from qexport.checkpoint.header import parse_header, read_header
from qexport.checkpoint.hub import HubCheckpoint
from qexport.checkpoint.local import LocalCheckpoint
from qexport.checkpoint.opening import open_checkpoint
from qexport.checkpoint.shards import (
    CheckpointPlan,
    ShardPlan,
    TensorSpec,
    group_by_size,
    group_like,
    plan_shards,
)
from qexport.checkpoint.tensors import (
    DTYPE_BYTES,
    FLOAT_DTYPES,
    Checkpoint,
    LogicalTensor,
    Piece,
    StoredTensor,
    matrix_shape,
    stack_rows,
)

__all__ = [
    "DTYPE_BYTES",
    "FLOAT_DTYPES",
    "Checkpoint",
    "CheckpointPlan",
    "HubCheckpoint",
    "LocalCheckpoint",
    "LogicalTensor",
    "Piece",
    "ShardPlan",
    "StoredTensor",
    "TensorSpec",
    "group_by_size",
    "group_like",
    "matrix_shape",
    "nonfinite_count",
    "open_checkpoint",
    "parse_header",
    "plan_shards",
    "read_header",
    "read_json",
    "stack_rows",
    "text_config",
]
