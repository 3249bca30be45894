"""Which runtime can prove or time which artifact, and which is taken when the user names none.

Some runtimes load what they cannot read and say nothing, so each layout says who may judge it
(:class:`~qexport.artifacts.layout.ArtifactLayout`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qexport.artifacts.layout import Traits, quantization_of
from qexport.errors import UsageProblem
from qexport.verification.folder_runtimes import folder_runtime

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qexport.artifacts.artifact import Opened
    from qexport.artifacts.layout import ArtifactLayout
    from qexport.families.family import Family
    from qexport.verification.options import VerifyOptions
    from qexport.verification.runtime import Runtime


_EXPERTS = ("num_experts", "num_local_experts")  # beside the name that the family has
_NAME_ONE = "name one with --runtime vllm --runtime-python PATH"


def traits_of(
    family: Family, text: Mapping[str, Any], config: Mapping[str, Any], odd: str | None = None
) -> Traits:
    """Those of a folder, there or planned, whose experts are one by one, as ours and published ones are.

    Args:
        text: the part of the model's config that is its language model's.
        config: the folder's config.json.
        odd: as of :class:`Traits`.
    """
    experts = any(text.get(key) for key in (family.experts, *_EXPERTS))
    quantization = quantization_of(config)
    formats = {str(group.get("format")) for group in (quantization.get("config_groups") or {}).values()}
    floats = "nvfp4" in str(quantization)
    return Traits(
        experts,
        mixed=floats and len(formats) > 1,
        odd=odd,
        apart=experts and family.turned_experts,
        half=floats and _is_half(config),
    )


def why_not(runtime: str, layout: ArtifactLayout, folder: Traits) -> str | None:
    """Why ``runtime`` cannot judge such a folder, which need not be there yet; ``None`` if it can."""
    if runtime not in layout.runtimes:
        return f"{runtime} does not read {layout.title}"
    return layout.unfit(folder) if runtime == layout.here else None


def unjudged(layout: ArtifactLayout, folder: Traits, options: VerifyOptions) -> str | None:
    """Why no runtime is taken for such a folder where the user names none, and the way to one."""
    if options.runtime or options.runtime_python is not None:
        return None
    reason = why_not(layout.here, layout, folder)
    return None if reason is None else f"{reason}; vLLM does: {_NAME_ONE}"


def can_judge(runtime: str, artifact: Opened) -> str | None:
    """Why ``runtime`` cannot judge this folder; ``None`` if it can."""
    return why_not(runtime, artifact.layout, _traits(artifact))


def choose_runtime(artifact: Opened, options: VerifyOptions) -> Runtime | str:
    """The runtime that was named, else the folder's own; or why there is none, and the way to one.

    Raises:
        UsageProblem: the runtime that was named cannot judge this folder.
    """
    name, python, layout = options.runtime, options.runtime_python, artifact.layout
    if name:
        runtime = folder_runtime(name, python)
        if reason := can_judge(name, artifact):
            raise UsageProblem(f"{artifact.label} cannot be verified by {name}: {reason}")
        return runtime
    if python is not None:
        return folder_runtime(layout.served[0], python)
    return unjudged(layout, _traits(artifact), options) or folder_runtime(layout.here)


def _traits(artifact: Opened) -> Traits:
    return traits_of(artifact.family, artifact.text, artifact.config, _odd(artifact))


def _is_half(config: Mapping[str, Any]) -> bool:
    parts = (config, *(part for part in config.values() if isinstance(part, dict)))
    return any(part.get(key) == "float16" for part in parts for key in ("dtype", "torch_dtype"))


def _odd(artifact: Opened) -> str | None:
    """The first FP8 matrix with a dimension that is no multiple of the block's."""
    for name, weight in artifact.weights.items():
        parts = getattr(weight, "parts", {})
        if "scale_inv" in parts and any(size % 128 for size in parts["weight"].shape[-2:]):
            return name
    return None
