"""``model.safetensors.index.json``, and joining the headers of several files into one checkpoint.

The index is ``{"metadata": {...}, "weight_map": {tensor name: file name}}``, written by ``save_pretrained``:
https://github.com/huggingface/transformers/blob/main/src/transformers/modeling_utils.py
Each shard's own header says what is in it; the two must agree exactly, since readers follow one or the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qexport.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from qexport.checkpoint.tensors import StoredTensor


INDEX_NAME = "model.safetensors.index.json"
_AGAIN = "Save the checkpoint again with save_pretrained, which writes index and shards together."


def parse_index(index: Mapping[str, Any], label: str) -> dict[str, str]:
    """The file of each tensor, from the parsed index.

    Raises:
        InputError: there is no usable weight_map, it is empty, or it names a file that is not a plain
            ``.safetensors`` name inside the checkpoint's own folder. Only names are judged; where links may
            lead is judged when the folder is listed.
    """
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{label}: {INDEX_NAME} has no weight_map with tensors in it.", hint=_AGAIN)
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not _plain(file):
            message = f"{label}: {INDEX_NAME} puts tensor {tensor!r} in {file!r:.120}"
            what = "which is not the plain name of a safetensors file in this folder"
            raise InputError(f"{message}, {what}.", hint=_AGAIN)
    return weight_map


def join_headers(
    label: str, headers: Iterable[Mapping[str, StoredTensor]], owners: Mapping[str, str] | None
) -> dict[str, StoredTensor]:
    """One mapping from the headers of all files, checked against the index.

    Args:
        label: what to call the checkpoint in messages.
        headers: the tensors of each file, files in the order that the result shall have.
        owners: the index's file for each tensor; ``None`` without an index.

    Raises:
        InputError: no tensors at all, a tensor in two files, in a file and not in the index, in the index and
            in no file, or in another file than the index says.
    """
    tensors: dict[str, StoredTensor] = {}
    for header in headers:
        for name, tensor in header.items():
            if name in tensors:
                where = f"{tensors[name].file} and {tensor.file}"
                raise InputError(f"{label}: tensor {name!r} is in two files, {where}.", hint=_AGAIN)
            tensors[name] = tensor
    if owners is not None:
        for name, tensor in tensors.items():
            owner = owners.get(name)
            if owner is None:
                message = f"{label}: tensor {name!r} is in {tensor.file}, but {INDEX_NAME} does not list it."
                raise InputError(message, hint=_AGAIN)
            if owner != tensor.file:
                message = (
                    f"{label}: {INDEX_NAME} puts tensor {name!r} in {owner}, but it is in {tensor.file}."
                )
                raise InputError(message, hint=_AGAIN)
        missing = [name for name in owners if name not in tensors]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            names = ", ".join(f"{name} ({owners[name]})" for name in missing[:3])
            message = f"{label}: {INDEX_NAME} lists tensors that are in no file: {names}{more}."
            raise InputError(message, hint=_AGAIN)
    if not tensors:
        raise InputError(f"{label}: the weight files hold no tensors.", hint="Save the merged model again.")
    return tensors


def _plain(file: str) -> bool:
    # Backslash and colon too: on Windows they would leave the folder. NUL never names a file.
    return (
        file.endswith(".safetensors")
        and not file.startswith(".")
        and not any(char in "/\\:\0" for char in file)
    )
