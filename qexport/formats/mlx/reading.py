"""Reading back an MLX folder, its MTP head included, wherever the head was put.

mlx-lm's own names and conventions: ``language_model.model.*``, experts stacked as ``switch_mlp``, the
channels of kernels last, and for Qwen3.5 every zero-centred norm stored with its 1 added. Gemma's modules add
the 1 themselves, so there it is not in the file. A vision tower has the names of mlx-vlm.

A head lies in a drafter folder beside the trunk's (bare names), in a sidecar that mlx-lm does not read
(``mtp.safetensors``, ``mtp/weights.safetensors``), or among the trunk's tensors (``mtp.*``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexport.artifacts.artifact import AnyWeight, Opened, skeleton
from qexport.artifacts.description import describe_folder
from qexport.artifacts.forms import Form
from qexport.artifacts.layout import ArtifactLayout, Asked, OnDisk, Promise, Rule
from qexport.artifacts.rows import Decoded
from qexport.artifacts.weights import StoredWeight, gather
from qexport.checkpoint.config import read_json, text_config
from qexport.checkpoint.header import read_header
from qexport.checkpoint.local import LocalCheckpoint
from qexport.checkpoint.tensors import Checkpoint
from qexport.doctor.draft import SmallFiles
from qexport.errors import InputError
from qexport.families.family import Family
from qexport.families.hyper import resolve
from qexport.families.known import family_of
from qexport.families.names import canonical_name
from qexport.families.view import ModelTensor
from qexport.families.vision import channels_last, resolve_vision
from qexport.formats.hf import declared_mtp
from qexport.formats.merged.reading import float_type
from qexport.formats.mlx.tensors import is_kernel, kernel_arrangement
from qexport.formats.plan import Arrangement
from qexport.formats.turned import Folded, turned

DRAFTER_TYPES = ("qwen3_5_mtp", "qwen3_5_moe_mtp")
SIDECARS = ("mtp.safetensors", "mtp/weights.safetensors", "model-mtp.safetensors")


@dataclass(frozen=True)
class MlxWeight(StoredWeight):
    """A weight of the family, back in its own conventions when decoded."""

    tensor: ModelTensor | None = None
    shifted: bool = False

    def decode(self) -> Decoded:
        found = super().decode()
        if self.tensor is None:
            return found
        shape = self.tensor.shape
        if is_kernel(self.tensor.role, shape):
            if found.shape != (expected := channels_last(shape)):
                raise InputError(f"{self.name}: {found.shape} is no convolution of MLX's, {expected} is")
            rows = Folded(found, (shape[0], math.prod(shape[1:])))
            return turned(rows, kernel_arrangement(shape), shape)
        return turned(found, Arrangement(op="add_one"), found.shape) if self.shifted else found


def _is_mlx(found: OnDisk) -> bool:
    """MLX says so in every file's header, and in the config if anything is quantized."""
    if found.is_file:
        return False
    if "quantization" in found.config or found.config.get("model_type") in DRAFTER_TYPES:
        return True
    if found.config.get("quantization_config"):
        return False
    file = next((tensor.file for tensor in found.folder.tensors.values()), None)
    if file is None:
        raise InputError(f"{found.folder.label} holds no tensors")
    return read_header(found.path / file)[1].get("format") == "mlx"


def open_mlx(found: OnDisk) -> Opened:
    """The folder as an artifact; ``found.head`` is a drafter folder, or a sidecar of another one."""
    folder, path, config, head = found.folder, found.path, found.config, found.head
    if config.get("model_type") in DRAFTER_TYPES:
        raise InputError(
            f"{folder.label} is an MTP head alone",
            hint="Name the folder of its model, and this one as the head.",
        )
    family, text = family_of(config), text_config(config)
    hyper = resolve(family, text, config)
    whole = hyper.text
    heads = list(_heads(family, folder, path, head))
    sees = any(canonical_name(name).vision for name in folder.tensors)
    vision = resolve_vision(family, config, hyper.hidden) if sees else None
    bare = {t.name: t for t in skeleton(family, whole, int(family.head is not None), folder.label, vision)}
    columns = {name: tensor.shape[-1] for name, tensor in bare.items()}
    stored = gather([(folder, ""), *heads], columns, family)
    shifted = family.dialect.norms_plus_one if family.dialect else frozenset()
    weights: dict[str, AnyWeight] = {}
    for name, weight in stored.items():
        tensor = bare.get(name)
        moved = tensor is not None and tensor.role in shifted
        weights[name] = MlxWeight(
            weight.name, weight.module, weight.parts, weight.columns, tensor, shifted=moved
        )
    return Opened(
        label=folder.label,
        layout=MLX_FOLDER,
        family=family,
        config=config,
        text=whole,
        weights=weights,
        files=SmallFiles(folder, {}),
        declared_mtp=declared_mtp(text),
        details={
            "quantization": config.get("quantization") or {},
            "head": _head_config(head, path) or {"quantization": config.get("mtplx_mtp_quantization")},
            "head_outside": bool(heads),
        },
    )


def _heads(
    family: Family, folder: LocalCheckpoint, path: Path, head: Path | None
) -> Iterator[tuple[Checkpoint, str]]:
    """The head's tensors, once: where it was named, else beside, else inside."""
    tower = family.head
    prefix = tower.prefix if tower is not None and not tower.behind else ""
    if any(prefix and f".{prefix}" in f".{name}" for name in folder.tensors) or not (prefix or head):
        return
    drafter = head or _beside(path)
    if drafter is not None and drafter.is_dir():
        yield LocalCheckpoint(drafter, quantized=True), prefix
        return
    if head is not None:
        yield LocalCheckpoint(head.parent, label=head.name, quantized=True, weights=[head.name]), ""
        return
    for name in SIDECARS:
        if (path / name).is_file():
            yield LocalCheckpoint(path, label=name, quantized=True, weights=[name]), ""
            return


def _beside(path: Path) -> Path | None:
    """The drafter folder that mlx-vlm's users find by its name, if there is one."""
    for ending in ("-MTP", "-mtp"):
        folder = path.absolute().with_name(path.absolute().name + ending)
        if (folder / "config.json").is_file():
            return folder
    return None


def _head_config(head: Path | None, path: Path) -> dict[str, Any]:
    drafter = head or _beside(path)
    if drafter is None or not drafter.is_dir():
        return {}
    return read_json(LocalCheckpoint(drafter, quantized=True), "config.json")


def _promises(artifact: Opened) -> Rule:
    """Overrides by path, else the settings for all, in case a module is quantized: MLX goes by the scales."""
    trunk = artifact.details["quantization"]
    head = (artifact.details.get("head") or {}).get("quantization") or {}
    prefix = artifact.family.head.prefix if artifact.family.head is not None else ""

    def promise(asked: Asked) -> Promise:
        name, settings = asked.module, trunk
        if head and prefix and name.startswith(prefix):
            name, settings = name.removeprefix(prefix), head
        found = settings.get(name)
        if found is False or asked.form.kind == "float":  # floats are what they are
            return None
        found = {**settings, **found} if isinstance(found, Mapping) else settings
        if isinstance(settings.get(name), Mapping) and "mode" not in settings[name]:
            found = {**found, "mode": "affine"}
        if not isinstance(found.get("bits"), int) or not isinstance(found.get("group_size"), int):
            return None
        return Form(str(found.get("mode") or "affine"), found["bits"], found["group_size"])

    return promise


def _stored_type(artifact: Opened) -> str:
    """``MLX-6bit``, ``MLX-mxfp4``; of a recipe that mixes widths the one that most weights have."""
    quantization = artifact.details["quantization"]
    if not quantization:
        return float_type(artifact)
    mode = quantization.get("mode", "affine")
    return f"MLX-{quantization.get('bits')}bit" if mode == "affine" else f"MLX-{mode}"


MLX_FOLDER = ArtifactLayout(
    word="mlx",
    opens=_is_mlx,
    open=open_mlx,
    describe=lambda found: describe_folder(found, open_mlx(found)),
    stored_type=_stored_type,
    promises=_promises,
    # Every matrix is run by itself, and mixed recipes give v_proj more bits than q_proj.
    fuses=False,
    # A head beside a trunk is another folder's, and mlx-lm runs none.
    drafts=False,
    here="mlx-lm",
    served=("mlx-lm", "mlx-vlm"),
    title="MLX folders",
)
