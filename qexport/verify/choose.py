"""Which runtime can prove which folder, and which is taken when the user names none.

Some runtimes load what they cannot read and say nothing, so who may judge what is a table of its own:

- transformers 5.17 leaves the global scales of compressed-tensors NVFP4 experts out and answers with weights
  that are wrong by orders of magnitude; its FP8 experts in that layout it fails to convert. It knows no
  ModelOpt. Its native FP8 takes the block's size from the shapes of matrix and scales, which is wrong where a
  dimension is no multiple of 128. (facts by running each; see docs/verification.md)
- mlx-lm reads MLX's layout only, and nobody else does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qexport.artifacts.artifact import Kind
from qexport.errors import UsageProblem
from qexport.verify.folder_runtimes import FolderRuntime, folder_runtime

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qexport.artifacts.artifact import Artifact
    from qexport.verify.options import VerifyOptions


_EXPERTS = ("num_experts", "num_local_experts")
_NAME_ONE = "name one with --runtime vllm --runtime-python PATH"


@dataclass(frozen=True)
class Traits:
    """What of a folder decides who can judge it.

    Attributes:
        experts: it is a mixture of experts.
        mixed: its linear layers are in several formats.
        odd: the first FP8 matrix with a dimension that is no multiple of the block's.
    """

    kind: Kind
    experts: bool = False
    mixed: bool = False
    odd: str | None = None


def has_experts(text: Mapping[str, Any]) -> bool:
    """Whether a language model's config has experts."""
    return any(text.get(key) for key in _EXPERTS)


def why_not(runtime: str, folder: Traits) -> str | None:
    """Why ``runtime`` cannot judge such a folder, which need not be there yet; ``None`` if it can."""
    if (folder.kind is Kind.MLX) != (runtime == "mlx-lm"):
        return f"{runtime} does not read {'MLX folders' if folder.kind is Kind.MLX else 'this layout'}"
    if runtime != "transformers":
        return None
    if folder.kind is Kind.MODELOPT:
        return "transformers does not read ModelOpt's layout"
    if folder.kind is Kind.COMPRESSED_TENSORS and folder.experts:
        return "transformers does not read compressed-tensors experts rightly"
    if folder.kind is Kind.COMPRESSED_TENSORS and folder.mixed:
        return "transformers does not read mixed compressed-tensors formats"
    if folder.kind is Kind.FP8 and folder.odd:
        return f"transformers dequantizes FP8 of other sizes than multiples of 128 wrongly ({folder.odd})"
    return None


def unjudged(folder: Traits, options: VerifyOptions) -> str | None:
    """Why no runtime is taken for such a folder where the user names none, and the way to one."""
    if folder.kind is Kind.MLX or options.runtime or options.runtime_python is not None:
        return None
    reason = why_not("transformers", folder)
    return None if reason is None else f"{reason}; vLLM does: {_NAME_ONE}"


def can_judge(runtime: str, artifact: Artifact) -> str | None:
    """Why ``runtime`` cannot judge this folder; ``None`` if it can."""
    return why_not(runtime, _traits(artifact))


def choose_runtime(artifact: Artifact, options: VerifyOptions) -> FolderRuntime | str:
    """The runtime that was named, else the format's own; or why there is none, and the way to one.

    Raises:
        UsageProblem: the runtime that was named cannot judge this folder.
    """
    name = options.runtime
    if name:
        runtime = folder_runtime(name, options.runtime_python)
        if reason := can_judge(name, artifact):
            raise UsageProblem(f"{artifact.label} cannot be verified by {name}: {reason}")
        return runtime
    if artifact.kind is Kind.MLX:
        return folder_runtime("mlx-lm", options.runtime_python)
    if options.runtime_python is not None:
        return folder_runtime("vllm", options.runtime_python)
    return unjudged(_traits(artifact), options) or folder_runtime("transformers")


def _traits(artifact: Artifact) -> Traits:
    mixed = "nvfp4" in str(artifact.details.get("quantization")) and _mixed(artifact)
    odd = _odd(artifact) if artifact.kind is Kind.FP8 else None
    return Traits(artifact.kind, has_experts(artifact.text), mixed, odd)


def _mixed(artifact: Artifact) -> bool:
    groups = (artifact.details.get("quantization") or {}).get("config_groups") or {}
    return len({str(group.get("format")) for group in groups.values()}) > 1


def _odd(artifact: Artifact) -> str | None:
    """The first FP8 matrix with a dimension that is no multiple of the block's."""
    for name, weight in artifact.weights.items():
        parts = getattr(weight, "parts", {})
        if "scale_inv" in parts and any(size % 128 for size in parts["weight"].shape[-2:]):
            return name
    return None
