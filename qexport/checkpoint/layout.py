"""Which files of a checkpoint hold its weights, which are small files, and which are neither.

Works on a listing (name and size of each file), so that a folder and a Hub repository are judged alike and
before any weight is read. What cannot be used is refused by :mod:`qexport.checkpoint.refusals`.

The index is ``{"metadata": {...}, "weight_map": {tensor name: file name}}``, written by ``save_pretrained``:
https://github.com/huggingface/transformers/blob/main/src/transformers/modeling_utils.py
Each shard's own header says what is in it; the two must agree exactly, since readers follow one or the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from qexport.checkpoint.config import parse_json
from qexport.checkpoint.refusals import (
    declared_scheme,
    is_adapter,
    refuse_mistral_layout,
    refuse_without_weights,
)
from qexport.checkpoint.tensors import StoredTensor
from qexport.errors import InputError, some
from qexport.sizes import counted

INDEX_NAME = "model.safetensors.index.json"
_AGAIN = "Save the checkpoint again with save_pretrained, which writes index and shards together."
SINGLE_NAME = "model.safetensors"
# The only subfolder that transformers reads beside the files at the top:
# https://github.com/huggingface/transformers/blob/main/src/transformers/utils/hub.py (CHAT_TEMPLATE_DIR)
TEMPLATE_FOLDER = "additional_chat_templates"

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.safetensors")
_PICKLES = frozenset((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".distcp"))
_OTHER_FORMATS = frozenset((".safetensors", ".gguf", ".gguf_file", ".h5", ".msgpack", ".onnx", ".npz"))
_WEIGHT_SUFFIXES = _PICKLES | _OTHER_FORMATS


@dataclass(frozen=True)
class Layout:
    """What the files of a checkpoint are.

    Attributes:
        weights: the safetensors files that together are the model, sorted by name.
        owners: the index's word on which file holds each tensor; ``None`` without an index.
        files: the small files by relative name, with their sizes in bytes.
        unused: safetensors files at the top that are no part of the model as it is loaded (a second copy in
            another layout, an adapter beside merged weights, shards of an earlier save).
        stale: why the index is not believed, where it is not.
        instead: a complete model beside that of the index.
    """

    weights: tuple[str, ...]
    owners: Mapping[str, str] | None
    files: Mapping[str, int]
    unused: tuple[str, ...]
    stale: str | None = None
    instead: tuple[str, ...] = ()
    declared: str | None = None


def read_layout(
    label: str, listing: Mapping[str, int], read: Callable[[str], bytes], *, quantized: bool = False
) -> Layout:
    """Sort the files of a checkpoint.

    Args:
        listing: file sizes by relative name: the top folder, and :data:`TEMPLATE_FOLDER` below it.
        read: gives the bytes of a small file; called for the index and the config only.
        quantized: take a checkpoint that is quantized as well.

    Raises:
        InputError: there is nothing to export here, or it is not clear what; see the message.
    """
    candidates = sorted(name for name in listing if re.fullmatch(r"[^./][^/]*\.safetensors", name))
    usable = [name for name in candidates if not is_adapter(name)]
    declared = None if quantized else declared_scheme(label, listing, read)
    owners: Mapping[str, str] | None = None
    stale: str | None = None
    instead: tuple[str, ...] = ()
    if INDEX_NAME in listing:
        owners = _parse_index(parse_json(read(INDEX_NAME), f"{label}: {INDEX_NAME}"), label)
        weights = sorted(set(owners.values()))
        missing = [name for name in weights if name not in listing]
        complete = _complete(usable)
        if missing and len(complete) == 1:
            # Left over from an earlier save, into which another was written.
            stale = f"it names {missing[0]}, which is not there"
            if len(missing) > 1:
                lost = counted(len(missing), "file that is", "files that are")
                stale = f"it names {lost} not there, such as {missing[0]}"
            weights, owners = complete[0], None
        elif missing:
            raise _missing(label, missing, len(weights))
        else:
            instead = (SINGLE_NAME,) if SINGLE_NAME in usable and SINGLE_NAME not in weights else ()
            _check_index_files(label, weights, usable)
    elif not usable:
        refuse_without_weights(label, listing)
    else:
        weights = _without_index(label, usable)
    if "config.json" not in listing:
        refuse_mistral_layout(label, weights, listing)
        hint = "Copy config.json from the base model: the merge saved the weights without it."
        raise InputError(f"{label} has weights but no config.json.", hint=hint)
    unused = tuple(name for name in candidates if name not in weights)
    return Layout(tuple(weights), owners, small_files(listing), unused, stale, instead, declared)


def join_layout(
    label: str, layout: Layout, headers: Callable[[Sequence[str]], Sequence[Mapping[str, StoredTensor]]]
) -> tuple[Layout, dict[str, StoredTensor]]:
    """The tensors of ``layout``, and the layout that they are in.

    Where a complete model stands beside the files that the index names, the index must contradict those
    files: they are then what an earlier save has left.

    Args:
        headers: reads the headers of files.

    Raises:
        InputError: the files do not go together (:func:`_join_headers`), or both models are whole.
    """
    try:
        tensors = _join_headers(label, headers(layout.weights), layout.owners)
    except InputError as error:
        if not layout.instead:
            raise
        unused = tuple(sorted({*layout.weights, *layout.unused} - {*layout.instead}))
        why = error.message.removeprefix(f"{label}: ").rstrip(".")
        layout = replace(layout, weights=layout.instead, owners=None, unused=unused, stale=why, instead=())
        return layout, _join_headers(label, headers(layout.weights), None)
    if layout.instead:
        # transformers loads the single file, vLLM and llama.cpp what the index names.
        message = f"{label} has both {SINGLE_NAME} and an index that does not name it: readers will disagree."
        raise InputError(message, hint=f"Remove {SINGLE_NAME}, or remove {INDEX_NAME} and its shards.")
    return layout, tensors


def small_files(listing: Mapping[str, int]) -> dict[str, int]:
    """Config, tokenizer, templates, documents: what is left without weights, indexes and hidden files."""
    return {name: size for name, size in sorted(listing.items()) if _is_small(PurePosixPath(name))}


def _is_small(path: PurePosixPath) -> bool:
    if any(part.startswith(".") for part in path.parts) or path.suffix.lower() in _WEIGHT_SUFFIXES:
        return False
    if len(path.parts) > 1 and path.parts[:-1] != (TEMPLATE_FOLDER,):
        return False
    return not path.name.endswith(".index.json")


def _check_index_files(label: str, weights: list[str], usable: list[str]) -> None:
    sets = {_set_of(name) for name in weights} - {None}
    stray = [name for name in usable if name not in weights and _set_of(name) in sets]
    if stray:
        message = f"{label}: {INDEX_NAME} does not name {some(stray)}, though the name says it belongs here."
        raise InputError(message, hint=f"Save the checkpoint again, so that {INDEX_NAME} names every shard.")


def _complete(usable: list[str]) -> list[list[str]]:
    """The models that are whole: a single file, and sets of shards in which no number is missing."""
    sets: dict[tuple[str, int], list[str]] = {}
    for name in usable:
        if (shard_set := _set_of(name)) is not None:
            sets.setdefault(shard_set, []).append(name)
    found = [[SINGLE_NAME]] if SINGLE_NAME in usable else []
    return found + [names for (stem, count), names in sets.items() if names == shard_files(stem, count)]


def shard_files(stem: str, count: int) -> list[str]:
    """The files of a set: ``model-00001-of-00002.safetensors`` and so on."""
    return [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _without_index(label: str, usable: list[str]) -> list[str]:
    """One file, or one complete set of shards; anything else would be a guess."""
    complete = _complete(usable)
    if len(complete) == 1:
        return complete[0]
    sets = {shard_set for name in usable if (shard_set := _set_of(name)) is not None}
    if not complete and len(sets) == 1:
        wanted = shard_files(*sets.pop())
        if missing := sorted(set(wanted) - set(usable)):
            raise _missing(label, missing, len(wanted))
    if len(usable) == 1 and not sets:
        return list(usable)
    # Mistral repositories carry a second copy of the weights in their own layout.
    own = [name for name in usable if not name.startswith("consolidated")]
    if len(own) == 1 and not sets and not complete:
        return own
    message = f"{label} has several safetensors files and no {INDEX_NAME} that says which belong together."
    raise InputError(
        f"{message} Found: {some(usable)}.", hint="Keep the files of one model, or save it again."
    )


def _set_of(name: str) -> tuple[str, int] | None:
    match = _SHARD.fullmatch(name)
    return (match["stem"], int(match["count"])) if match else None


def _missing(label: str, missing: list[str], count: int) -> InputError:
    noun = "shard is" if len(missing) == 1 else "shards are"
    message = f"{label}: {len(missing)} of {count} {noun} missing: {some(missing)}."
    return InputError(message, hint="Download or copy the missing files into the folder.")


def _parse_index(index: Mapping[str, Any], label: str) -> dict[str, str]:
    """The file of each tensor, from the parsed index; every one is a plain name inside the folder.

    Only names are judged; where links may lead is judged when the folder is listed.
    """
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{label}: {INDEX_NAME} has no weight_map with tensors in it.", hint=_AGAIN)
    for tensor, file in weight_map.items():
        # Backslash and colon too: on Windows they would leave the folder. NUL never names a file.
        if not isinstance(file, str) or not re.fullmatch(r"[^./\\:\0][^/\\:\0]*\.safetensors", file):
            message = f"{label}: {INDEX_NAME} puts tensor {tensor!r} in {file!r:.120}"
            what = "which is not the plain name of a safetensors file in this folder"
            raise InputError(f"{message}, {what}.", hint=_AGAIN)
    return weight_map


def _join_headers(
    label: str, headers: Iterable[Mapping[str, StoredTensor]], owners: Mapping[str, str] | None
) -> dict[str, StoredTensor]:
    """One mapping from the headers of all files, in their order, checked against the index's ``owners``."""
    tensors: dict[str, StoredTensor] = {}
    for header in headers:
        for name, tensor in header.items():
            if (first := tensors.setdefault(name, tensor)) is not tensor:
                where = f"{first.file} and {tensor.file}"
                raise InputError(f"{label}: tensor {name!r} is in two files, {where}.", hint=_AGAIN)
    if owners is not None:
        for name, tensor in tensors.items():
            if (owner := owners.get(name)) is None:
                what = f"tensor {name!r} is in {tensor.file}, but {INDEX_NAME} does not list it"
                raise InputError(f"{label}: {what}.", hint=_AGAIN)
            if owner != tensor.file:
                what = f"{INDEX_NAME} puts tensor {name!r} in {owner}, but it is in {tensor.file}"
                raise InputError(f"{label}: {what}.", hint=_AGAIN)
        missing = [f"{name} ({file})" for name, file in owners.items() if name not in tensors]
        if missing:
            message = f"{label}: {INDEX_NAME} lists tensors that are in no file: {some(missing, 3)}."
            raise InputError(message, hint=_AGAIN)
    if not tensors:
        raise InputError(f"{label}: the weight files hold no tensors.", hint="Save the merged model again.")
    return tensors
