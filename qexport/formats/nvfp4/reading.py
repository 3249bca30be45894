"""Reading back ModelOpt's folders, which declare themselves twice: hf_quant_config.json and config.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from qexport.artifacts.forms import Form
from qexport.checkpoint.config import read_json
from qexport.errors import InputError
from qexport.families.roles import EXPERT_ROLES, Role
from qexport.formats.hf import ASKED, fused_name, hf_layout, stack_of, vllm_name

if TYPE_CHECKING:
    from qexport.artifacts.artifact import Opened
    from qexport.artifacts.layout import Asked, OnDisk, Promise, Rule


_FILE = "hf_quant_config.json"
_ALGORITHMS = {
    "FP8": Form("fp8", 8, per="matrix"),
    "FP8_PER_CHANNEL_PER_TOKEN": Form("fp8", 8, per="row"),
    "FP8_PB_WO": Form("fp8", 8, per="tile"),
    "FP8_BLOCK_SCALES": Form("fp8", 8, per="tile"),
    "NVFP4": Form("nvfp4", 4, 16),
    "NVFP4_AWQ": Form("nvfp4", 4, 16),
    "W4A16_NVFP4": Form("nvfp4", 4, 16),
}
# vLLM keeps MTP_FC whatever the config says, and SGLang the whole head.
_QUANTIZED = (ASKED | {Role.OUTPUT}) - {Role.ROUTER, Role.SHARED_EXPERT_ROUTER, Role.MTP_FC}


def _details(found: OnDisk) -> dict[str, Any]:
    return {"modelopt": read_json(found.folder, _FILE)} if _FILE in found.folder.files else {}


def _declared(artifact: Opened) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What config.json declares, and what the other file does; one of them may be empty."""
    inner = (artifact.details.get("modelopt") or {}).get("quantization") or {}
    return artifact.details["quantization"], inner


def _algorithm(declared: Mapping[str, Any]) -> str:
    """In capitals, as vLLM reads it: ModelOpt writes ``fp8_pb_wo``."""
    return str(declared.get("quant_algo") or "").upper()


def _promises(artifact: Opened) -> Rule:
    quantization, inner = _declared(artifact)
    declared = _algorithm(quantization) or _algorithm(inner)
    exclude = quantization.get("ignore", inner.get("exclude_modules")) or []
    layers = quantization.get("quantized_layers") or inner.get("quantized_layers") or {}

    def promise(asked: Asked) -> Promise:
        if asked.role not in _QUANTIZED or _excluded(asked, exclude):
            return None
        algo = declared
        if algo == "MIXED_PRECISION":
            entry = layers.get(asked.module) or _of_stack(asked, layers)
            if entry is None:
                return None
            algo = _algorithm(entry)
        if algo == "W4A16_AWQ":
            return Form("int", 4, int(inner.get("group_size") or 128))
        if algo not in _ALGORITHMS:
            raise InputError(
                f"quant_algo {algo!r} is not known here", hint=f"Known: {', '.join(_ALGORITHMS)}, W4A16_AWQ."
            )
        return _ALGORITHMS[algo]

    return promise


def _of_stack(asked: Asked, layers: Mapping[str, Any]) -> Any:
    """The entry of an expert's stack, of one in it, or else of whatever else is in its MLP: so vLLM looks."""
    if asked.role not in EXPERT_ROLES:
        return None
    stack = stack_of(asked.module)
    beside = stack.removesuffix("experts")
    found = (layers[name] for part in (f"{stack}.", beside) for name in layers if name.startswith(part))
    return layers.get(stack) or next(found, None)


def _excluded(asked: Asked, exclude: Iterable[str]) -> bool:
    """vLLM's ``is_layer_excluded``: exact by the layer's own name, then part and glob by the fused one."""
    patterns = [part for name in exclude for part in _split_glob(name)]
    if asked.module in patterns:
        return True
    name = fused_name(asked.module, asked.role)
    names = (name, vllm_name(name))
    return any(
        pattern in each or fnmatch(each, vllm_name(pattern)) or vllm_name(pattern) in each
        for pattern in patterns
        for each in names
    )


def _split_glob(name: str) -> tuple[str, ...]:
    """``X*`` is looked up as ``X`` and ``X.*``."""
    stem = name.removesuffix("*").removesuffix(".")
    return (stem, f"{stem}.*") if name.endswith("*") and "*" not in stem else (name,)


def _contradictions(artifact: Opened) -> Iterator[str]:
    """Which of the two declarations is read depends on the reader."""
    one, other = _declared(artifact)
    if not one or not artifact.details.get("modelopt"):
        return
    if _algorithm(other) != _algorithm(one):
        yield f"quant_algo is {one.get('quant_algo')!r} here, {other.get('quant_algo')!r} in the other file"
    here, there = set(one.get("ignore") or ()), set(other.get("exclude_modules") or ())
    if here != there:
        yield f"config.json and hf_quant_config.json exclude different modules: {sorted(here ^ there)}"


def _stored_type(artifact: Opened) -> str:
    """ModelOpt's name, but for ``NVFP4``, which does not say that activations are in 4 bits, too."""
    quantization, inner = _declared(artifact)
    word = _algorithm(quantization) or _algorithm(inner) or "MODELOPT"
    layers = quantization.get("quantized_layers") or inner.get("quantized_layers") or {}
    if word == "NVFP4":
        return "W4A4_NVFP4"
    return f"W4A4_{word}" if any(_algorithm(each) == "NVFP4" for each in layers.values()) else word


MODELOPT = hf_layout(
    "modelopt",
    methods=("modelopt", "modelopt_fp4"),
    opens=lambda found: _FILE in found.folder.files,
    details=_details,
    stored_type=_stored_type,
    promises=_promises,
    contradictions=_contradictions,
    unfit=lambda _: "transformers does not read ModelOpt's layout",
)
