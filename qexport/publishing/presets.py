"""``models.ini``: every GGUF file of a repository for llama.cpp's router, with its MTP head drafting.

``llama-server --models-preset models.ini`` reads it (``common/preset.cpp``: a section for each model, long
options without their dashes; ``tools/server/README.md``). It is not called ``preset.ini``: of a repository
with such a file at its root ``-hf`` takes that file and no model (``common/download.cpp``, ``plan.preset``),
so that ``llama-cli -hf org/name:Q4_K_M`` would find nothing to run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.formats.gguf.file_name import found_by_tag

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qexport.receipt.types import Artifact


PRESETS_NAME = "models.ini"
_KEYS = {
    "temperature": "temp",
    "top_k": "top-k",
    "top_p": "top-p",
    "min_p": "min-p",
    "repetition_penalty": "repeat-penalty",
    "presence_penalty": "presence-penalty",
}
_DRAFTS = 3  # llama.cpp's own default
# A comment begins with these, and a section ends with that (the grammar has no escapes).
_NOT_IN_WORDS = frozenset(";#]\r\n")


def presets(artifacts: Iterable[Artifact], repo: str) -> bytes | None:
    """The file; ``None`` where there is no GGUF file. Sampling is what the model's own settings recommend."""
    every = tuple(artifacts)
    heads = {each.name.rpartition("/")[2] for each in every if each.kind == "mtp"}
    files = [each for each in every if each.kind == "gguf"]
    listed = [file.name for each in files for file in each.files]
    labels = [each.label for each in files]
    lines = ["version = 1"]
    for each in files:
        if _NOT_IN_WORDS.intersection(each.name + each.label):
            continue
        found = found_by_tag(listed, each.label) == each.name
        where = f"{repo}:{each.label}" if found else repo
        # Sections of one name are one to llama.cpp.
        alone = found or labels.count(each.label) == 1
        lines += ["", f"[{repo}:{each.label if alone else each.name}]", f"hf-repo = {where}"]
        lines += [] if found else [f"hf-file = {each.name}"]
        if each.has_mtp or each.head_file in heads:
            lines += ["spec-type = draft-mtp", f"spec-draft-n-max = {_DRAFTS}"]
        sampling = each.source.about.sampling
        lines += [f"{_KEYS[key]} = {value:g}" for key, value in sorted(sampling.items()) if key in _KEYS]
    return ("\n".join(lines) + "\n").encode() if files else None
