"""transformers' own modules of a family, built empty and filled from the model view.

Whatever has to run the bf16 source (calibration a layer at a time, the reference of verification as a whole)
runs the code that the model was trained with. The module tree is made on the meta device, where it weighs
nothing; tensors come out of the view, so repairs are applied and it does not matter how the checkpoint stores
its experts or names its tensors. An MTP head, which transformers leaves out, is made of the family's own norm
and decoder layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qexport.checkpoint.tensors import torch_dtype
from qexport.errors import EnvironmentProblem, InputError
from qexport.evidence.quiet import quiet_transformers
from qexport.families.known import FAMILIES
from qexport.families.roles import EXPERT_ROLES, Role
from qexport.families.vision import image_tokens
from qexport.optional import command_for

if TYPE_CHECKING:
    import torch

    from qexport.checkpoint.tensors import LogicalTensor
    from qexport.families.view import ModelTensor, ModelView


# The family decides the type; weights come from the view; and a dtype here would round Gemma's embedding
# scale, a buffer, to bf16, which no GGUF runtime does.
_NOT_OURS = ("model_type", "quantization_config", "dtype", "torch_dtype", "auto_map")
# Rows are copied in pieces of about this size: little is held twice, and that is in the processor's cache.
_CHUNK_VALUES = 1 << 20


def import_transformers() -> Any:
    """transformers, or EnvironmentProblem with the way to get it."""
    try:
        import transformers
    except ImportError as error:
        raise EnvironmentProblem(
            "running the model needs transformers, which is not installed",
            hint=command_for("transformers"),
        ) from error
    return transformers


def empty_model(view: ModelView) -> Any:
    """The family's causal language model: parameters on the meta device, buffers (rotary tables) computed.

    Raises:
        EnvironmentProblem: transformers is missing, or too old for this family.
    """
    import torch

    transformers = import_transformers()
    family = FAMILIES.get(view.family)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise EnvironmentProblem(f"no modules to run for the family {view.family!r}; known are {known}")
    model_type = family.alone
    if model_type not in transformers.CONFIG_MAPPING:
        raise EnvironmentProblem(f"transformers {transformers.__version__} does not know {model_type!r}")
    text = {key: value for key, value in view.text.items() if key not in _NOT_OURS}
    text["tie_word_embeddings"] = view.find(Role.OUTPUT) is None
    with quiet_transformers():
        config = transformers.CONFIG_MAPPING[model_type].from_dict(text)
        # One product per expert, each with its own input: what calibration looks at, and the plain path.
        options = {"experts_implementation": "eager"} if view.find(Role.ROUTER) is not None else {}
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)
        _compute_buffers(model)
    return model.eval()


def empty_sight(view: ModelView) -> Any:
    """The family's multimodal model, nothing filled but buffers.

    Raises:
        EnvironmentProblem: transformers is missing, or too old for this family.
    """
    import torch

    transformers = import_transformers()
    family = FAMILIES[view.family]
    model_type = family.wrapper_model_type
    if model_type not in transformers.CONFIG_MAPPING or view.vision is None:
        raise EnvironmentProblem(f"transformers {transformers.__version__} does not know {model_type!r}")
    whole, text, vision = (
        {key: value for key, value in given.items() if key not in _NOT_OURS}
        for given in (view.config, view.text, view.vision.config)
    )
    text["model_type"] = family.text_model_type
    parts = {"text_config": text, "vision_config": vision, **image_tokens(family, view.config)}
    with quiet_transformers():
        config = transformers.CONFIG_MAPPING[model_type].from_dict({**whole, **parts})
        with torch.device("meta"):
            model = transformers.AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
        for part in model.model.children():
            _compute_buffers(part, model)
    return model.eval()


def lend_text(model: Any, text: Any) -> None:
    """Put the language model ``text`` into the multimodal ``model``. Its own may be of another class, which
    takes the weights alone: without pictures Qwen3-VL is Qwen3."""
    own = model.model.language_model
    if type(own) is type(text.model):
        model.model.language_model = text.model
    else:
        own.load_state_dict(text.model.state_dict(), assign=True)
    model.lm_head = text.lm_head


def _compute_buffers(part: Any, model: Any = None) -> None:
    """Rotary tables and the like. Parameters stay on the meta device, where initialising does nothing.

    Args:
        model: what ``part`` belongs to, where it is no model by itself, which would know its own buffers.
    """
    import torch

    owner = part if hasattr(part, "_init_weights") else model
    for module in part.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
        owner._init_weights(module)


@dataclass(frozen=True)
class Head:
    """An MTP head: ``module`` with ``fc``, three norms and ``layers``, and its parameters by canonical
    name."""

    module: Any
    names: Mapping[str, str]


_HEAD_PARTS = {
    Role.MTP_FC: "fc.weight",
    Role.MTP_EMBED_NORM: "embed_norm.weight",
    Role.MTP_HIDDEN_NORM: "hidden_norm.weight",
    Role.MTP_NORM: "norm.weight",
}
# Matrices that are looked up or sliced, not kept in a module.
OUTSIDE_HEAD = (Role.MTP_EMBED, Role.MTP_OUTPUT)


def make_head(model: Any, view: ModelView) -> Head:
    """The MTP head that goes with ``model``, parameters on the meta device.

    What it computes is vLLM's reading of the checkpoints, which llama.cpp shares:
    https://github.com/vllm-project/vllm/blob/main/vllm/model_executor/models/qwen3_5_mtp.py
    """
    import torch

    tower = FAMILIES[view.family].head
    assert tower is not None
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = view.layers + view.mtp_layers
    if (kinds := getattr(config, "layer_types", None)) is not None:
        config.layer_types = [*kinds, *["full_attention"] * view.mtp_layers]
    decoder, norm = type(model.model.layers[0]), type(model.model.norm)
    hidden, epsilon = config.hidden_size, config.rms_norm_eps
    head = torch.nn.Module()
    with torch.device("meta"):
        head.fc = torch.nn.Linear(2 * hidden, hidden, bias=False)
        head.embed_norm, head.hidden_norm, head.norm = (norm(hidden, eps=epsilon) for _ in range(3))
        head.layers = torch.nn.ModuleList(
            decoder(config, layer) for layer in range(view.layers, view.layers + view.mtp_layers)
        )
    beside = tower.prefixes(0, view.layers)[0]
    names = {beside + t.name: _HEAD_PARTS[t.role] for t in tower.first if t.role in _HEAD_PARTS}
    for own in state_of(head.layers):
        layer, _, rest = own.partition(".")
        names[tower.prefixes(int(layer), view.layers)[1] + rest] = f"layers.{own}"
    return Head(head.eval(), names)


def state_of(module: Any) -> dict[str, torch.Tensor]:
    """Parameters of a module, tied ones once, and the buffers that checkpoints store."""
    stored = module.state_dict().keys()
    buffers = {name: buffer for name, buffer in module.named_buffers() if name in stored}
    return dict(module.named_parameters()) | buffers


def parameter_of(tensor: ModelTensor) -> tuple[str, slice | None]:
    """The parameter that holds ``tensor``, and which of each expert's rows if it holds another one, too.

    transformers stacks gate and up of each expert into one matrix and names neither ``.weight``, and has no
    module around SigLIP.
    """
    if tensor.role not in EXPERT_ROLES:
        return tensor.name.replace("vision_tower.vision_model.", "vision_tower."), None
    stem = tensor.name.removesuffix(".weight")
    if tensor.role is Role.EXPERTS_DOWN:
        return stem, None
    inner = tensor.shape[1]
    rows = slice(0, inner) if tensor.role is Role.EXPERTS_GATE else slice(inner, 2 * inner)
    return stem.rpartition(".")[0] + ".gate_up_proj", rows


def fill(
    tensors: Iterable[ModelTensor],
    wanted: Mapping[str, torch.Tensor],
    dtype_of: Callable[[ModelTensor], torch.dtype],
    device: torch.device | str = "cpu",
) -> dict[str, torch.Tensor]:
    """Copies of ``tensors`` under the names and shapes of the parameters ``wanted``.

    Raises:
        InputError: a tensor has no place in the module, or another shape than it.
    """
    import torch

    filled: dict[str, torch.Tensor] = {}
    for tensor in tensors:
        name, half = parameter_of(tensor)
        if name not in wanted:
            raise InputError(f"{tensor.name}: transformers has no such tensor in this model")
        shape = wanted[name].shape
        if name not in filled:
            filled[name] = torch.empty(shape, dtype=dtype_of(tensor), device=device)
        target = filled[name]
        if half is not None:
            if target.shape[1] != 2 * tensor.shape[1] or target[:, half].shape != tensor.shape:
                raise InputError(f"{tensor.name}: shape {tensor.shape} does not fit into {tuple(shape)}")
            rows = tensor.shape[1]
            for expert in range(tensor.shape[0]):
                _copy_rows(target[expert, half], tensor.data, expert * rows, (expert + 1) * rows)
            continue
        if target.numel() != tensor.data.numel:
            raise InputError(f"{tensor.name}: shape {tensor.shape}, transformers expects {tuple(shape)}")
        rows, columns = tensor.data.matrix_shape
        _copy_rows(target.view(rows, columns), tensor.data, 0, rows)
    return filled


def _copy_rows(target: torch.Tensor, data: LogicalTensor, start: int, stop: int) -> None:
    """Copy rows ``[start, stop)`` of ``data`` into ``target``."""
    stored = torch_dtype(data.dtype)
    step = max(1, _CHUNK_VALUES // target.shape[-1])
    at = 0
    for piece in data.rows(start, stop):
        for low in range(piece.start, piece.stop, step):
            high = min(low + step, piece.stop)
            rows = piece.checkpoint.read_rows(piece.name, low, high)
            target[at : at + high - low] = rows.to(stored)
            at += high - low
