"""Opening a Hugging Face folder: plain, native FP8, compressed-tensors or ModelOpt.

The four differ in what they call parts and in what the config says; what is stored tells itself
(:mod:`qexport.artifacts.forms`), so there is one way to read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qexport.artifacts.artifact import Artifact, Kind
from qexport.artifacts.weights import gather
from qexport.checkpoint.config import read_json, text_config
from qexport.doctor.draft import SmallFiles
from qexport.errors import InputError
from qexport.families.hyper import resolve
from qexport.families.table import family_of

if TYPE_CHECKING:
    from qexport.checkpoint.local import LocalCheckpoint


_METHODS = {
    "fp8": Kind.FP8,
    "compressed-tensors": Kind.COMPRESSED_TENSORS,
    "modelopt": Kind.MODELOPT,
    "modelopt_fp4": Kind.MODELOPT,
}
MODELOPT_FILE = "hf_quant_config.json"


def open_hf(folder: LocalCheckpoint, config: Mapping[str, Any]) -> Artifact:
    """The folder as an artifact.

    Raises:
        InputError: a quantization method that qexport cannot read.
    """
    text = text_config(config)
    quantization = config.get("quantization_config") or text.get("quantization_config") or {}
    details: dict[str, Any] = {"quantization": quantization}
    kind = Kind.SAFETENSORS
    if MODELOPT_FILE in folder.files:
        kind, details["modelopt"] = Kind.MODELOPT, read_json(folder, MODELOPT_FILE)
    if quantization:
        method = quantization.get("quant_method")
        if method not in _METHODS:
            known = ", ".join(sorted(_METHODS))
            raise InputError(
                f"{folder.label}: quant_method {method!r} is not one that qexport reads",
                hint=f"It reads {known}.",
            )
        kind = _METHODS[method]
    family = family_of(config)
    return Artifact(
        label=folder.label,
        kind=kind,
        family=family,
        config=config,
        text=resolve(family, text, config).text,
        weights=gather([(folder, "")], {}),
        files=SmallFiles(folder, {}),
        declared_mtp=declared_mtp(text),
        details=details,
    )


def declared_mtp(text: Mapping[str, Any]) -> int:
    """MTP layers that a config promises, under either key that readers look for."""
    values = (text.get(key) for key in ("mtp_num_hidden_layers", "num_nextn_predict_layers"))
    return max((value for value in values if isinstance(value, int)), default=0)
