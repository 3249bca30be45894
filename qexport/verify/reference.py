"""The bf16 source itself, run by transformers, as the judge of what a file should have said.

The model is built on the meta device from the repaired config and filled tensor by tensor from the model
view, so what is judged against is what was exported: repairs applied, MTP head and vision tower left out.
Numbers are float32 where memory allows it (then every difference is the file's), else bf16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qexport.errors import EnvironmentProblem, InputError
from qexport.families.roles import Role
from qexport.verify.memory import SKIPPED_BLOCKS
from qexport.verify.quiet import quiet_transformers

if TYPE_CHECKING:
    import torch

    from qexport.checkpoint.tensors import LogicalTensor
    from qexport.families.view import ModelTensor, ModelView

__all__ = ["Reference", "Scored", "TransformersReference", "reference_from_folder", "reference_from_view"]

# Family -> transformers' model_type of the language model alone.
_MODEL_TYPES = {
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "gemma3": "gemma3_text",
    "gemma3_text": "gemma3_text",
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3_moe",
}
# The family decides the type; weights come from the view; and a dtype here would round Gemma's embedding
# scale, a buffer, to bf16, which no GGUF runtime does.
_NOT_FOR_THE_REFERENCE = ("model_type", "quantization_config", "dtype", "torch_dtype")
# bf16 arithmetic moved mean differences by 0.008 on a model of 8 layers; deeper ones add up more.
_BF16_NOISE = 0.03
# Rows are copied in pieces of about this size, so that mapped memory can be let go behind us.
_CHUNK_VALUES = 16 << 20


@dataclass(frozen=True)
class Scored:
    """What the reference thinks of one token, given everything before it."""

    token: int
    logprob: float
    greedy: int
    greedy_logprob: float
    top: tuple[tuple[int, float], ...] = ()

    @property
    def gap(self) -> float:
        """How much likelier the reference's own choice is, in nats; 0 when it is this token."""
        return self.greedy_logprob - self.logprob


class Reference(Protocol):
    """A model that scores tokens it is given (teacher forcing)."""

    @property
    def label(self) -> str: ...

    @property
    def noise(self) -> float:
        """What its own arithmetic adds to mean differences of log-probability."""
        ...

    def score(self, ids: Sequence[int], start: int, *, top: int = 8) -> tuple[Scored, ...]:
        """Scores of ``ids[start:]``, each given all ids before it; ``start`` is at least 1."""
        ...


class TransformersReference(Reference):
    """A causal language model of transformers on the CPU."""

    def __init__(self, model: Any, label: str, dtype: str) -> None:
        self._model = model
        self._label = f"{label}, {dtype}"
        self._dtype = dtype

    @property
    def label(self) -> str:
        return self._label

    @property
    def noise(self) -> float:
        return 0.0 if self._dtype == "float32" else _BF16_NOISE

    def score(self, ids: Sequence[int], start: int, *, top: int = 8) -> tuple[Scored, ...]:
        """One forward pass over ``ids``."""
        import torch

        if not 1 <= start <= len(ids):
            raise ValueError(f"start is {start}, expected 1 to {len(ids)}")
        wanted = len(ids) - start
        if wanted == 0:
            return ()
        with quiet_transformers(), torch.inference_mode():
            tokens = torch.tensor([list(ids)])
            # Only the last positions' logits: a vocabulary of 250 000 makes each of them a megabyte.
            logits = self._model(tokens, logits_to_keep=wanted + 1, use_cache=False).logits[0, :-1]
            logprobs = torch.log_softmax(logits.float(), dim=-1)
            best, places = logprobs.topk(min(max(top, 1), logprobs.shape[-1]), dim=-1)
            given = logprobs.gather(1, tokens[0, start:, None])[:, 0]
        return tuple(
            Scored(
                token=int(ids[start + i]),
                logprob=float(given[i]),
                greedy=int(places[i, 0]),
                greedy_logprob=float(best[i, 0]),
                top=tuple(zip(places[i].tolist(), best[i].tolist(), strict=True)),
            )
            for i in range(wanted)
        )


def reference_from_folder(folder: Path, *, dtype: str = "float32") -> TransformersReference:
    """transformers' own reading of a Hugging Face folder."""
    import torch

    transformers = _transformers()
    with quiet_transformers():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    return TransformersReference(model.eval(), _label(folder.name, transformers), dtype)


def reference_from_view(view: ModelView, *, dtype: str = "float32") -> TransformersReference:
    """The view's language model, its weights copied out of the view's pieces.

    Raises:
        EnvironmentProblem: transformers is missing or too old for this family.
        InputError: the view's tensors are not the model's.
    """
    import torch

    transformers = _transformers()
    with quiet_transformers():
        model = _empty_model(transformers, view)
    wanted: dict[str, torch.Tensor] = dict(model.named_parameters())
    filled: dict[str, torch.Tensor] = {}
    for tensor in view:
        if tensor.block not in SKIPPED_BLOCKS:
            _fill(filled, wanted, tensor, getattr(torch, dtype))
    missing = sorted(set(wanted) - set(filled))
    if missing:
        raise InputError(f"{view.label}: transformers expects {missing[0]!r}, which the model does not have")
    model.load_state_dict(filled, strict=False, assign=True)
    model.tie_weights()
    return TransformersReference(model.eval(), _label(view.label, transformers), dtype)


def _label(name: str, transformers: Any) -> str:
    return f"{name}, transformers {transformers.__version__}"


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        hint = "pip install 'qexport[reference]'"
        raise EnvironmentProblem(
            "the reference needs transformers, which is not installed", hint=hint
        ) from error
    return transformers


def _empty_model(transformers: Any, view: ModelView) -> Any:
    """The module tree with parameters on the meta device and buffers (rotary tables) computed."""
    import torch

    model_type = _MODEL_TYPES.get(view.family)
    if model_type is None:
        known = ", ".join(sorted(_MODEL_TYPES))
        raise EnvironmentProblem(f"no reference for the family {view.family!r}; known are {known}")
    if model_type not in transformers.CONFIG_MAPPING:
        raise EnvironmentProblem(f"transformers {transformers.__version__} does not know {model_type!r}")
    text = {key: value for key, value in view.text.items() if key not in _NOT_FOR_THE_REFERENCE}
    text["tie_word_embeddings"] = view.find(Role.OUTPUT) is None
    config = transformers.CONFIG_MAPPING[model_type].from_dict(text)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
        # Parameters are still on meta, where initialising does nothing: this computes the buffers alone.
        model._init_weights(module)
    return model


def _fill(
    filled: dict[str, torch.Tensor],
    wanted: Mapping[str, torch.Tensor],
    tensor: ModelTensor,
    dtype: torch.dtype,
) -> None:
    """Copy one tensor to where the module wants it."""
    import torch

    # The decay's logarithm is exponentiated: modules and runtimes keep it in float32 whatever the rest is.
    kept = torch.float32 if tensor.role is Role.LINEAR_A_LOG else dtype
    name, half = tensor.name, slice(None)
    if tensor.role in (Role.EXPERTS_GATE, Role.EXPERTS_UP, Role.EXPERTS_DOWN):
        # transformers stacks gate and up of each expert into one matrix and names neither ".weight".
        stem = name.removesuffix(".weight")
        inner = tensor.shape[1]
        if tensor.role is Role.EXPERTS_DOWN:
            name = stem
        else:
            name = stem.rpartition(".")[0] + ".gate_up_proj"
            half = slice(0, inner) if tensor.role is Role.EXPERTS_GATE else slice(inner, 2 * inner)
    if name not in wanted:
        raise InputError(f"{tensor.name}: transformers has no such tensor in this model")
    shape = wanted[name].shape
    if name not in filled:
        filled[name] = torch.empty(shape, dtype=kept)
    target = filled[name]
    if half != slice(None):
        if target.shape[1] != 2 * tensor.shape[1] or target[:, half].shape != tensor.shape:
            raise InputError(f"{tensor.name}: shape {tensor.shape} does not fit into {tuple(shape)}")
        for expert in range(tensor.shape[0]):
            rows = tensor.shape[1]
            _copy_rows(target[expert, half], tensor.data, expert * rows, (expert + 1) * rows)
        return
    if target.numel() != tensor.data.numel:
        raise InputError(f"{tensor.name}: shape {tensor.shape}, transformers expects {tuple(shape)}")
    rows, columns = tensor.data.matrix_shape
    _copy_rows(target.view(rows, columns), tensor.data, 0, rows)


def _copy_rows(target: torch.Tensor, data: LogicalTensor, start: int, stop: int) -> None:
    """Copy rows ``[start, stop)`` of ``data`` into ``target``."""
    import torch

    stored = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[data.dtype]
    step = max(1, _CHUNK_VALUES // target.shape[-1])
    at = 0
    for piece in data.rows(start, stop):
        for low in range(piece.start, piece.stop, step):
            high = min(low + step, piece.stop)
            rows = piece.checkpoint.read_rows(piece.name, low, high)
            target[at : at + high - low] = rows.to(stored)
            piece.checkpoint.release(piece.name, low, high)
            at += high - low
