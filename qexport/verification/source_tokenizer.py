"""The source's tokenizer as libraries make it: from its class and settings as much as from its file.

transformers 5 builds the tokenizers of some classes anew (a Llama's with ``legacy: false`` puts a space in
front of the first word alone, whatever tokenizer.json says), so one file is not one tokenizer everywhere.
What an export must not change is the result in one library; where class and file of the source differ, that
is true of the source.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.children.failure import Failure, RuntimeFailure

if TYPE_CHECKING:
    from qexport.families.view import ModelView
    from qexport.verification.prompts import Probe
    from qexport.verification.runtime import Session


Ids = list[tuple[int, ...]]


def ids_in_runtime(session: Session, view: ModelView, asked: Sequence[Probe]) -> Ids | None:
    """The probes by the source's tokenizer in the runtime's own library; ``None`` where that reads none."""
    found: Ids = []
    with _folder(view) as folder:
        for prompt in (False, True):
            texts = [one.text for one in asked if one.prompt is prompt]
            try:
                ids = session.source_ids(folder, texts, add_special=prompt)
            except RuntimeFailure as failure:
                if failure.kind is not Failure.REFUSED:
                    raise
                return None  # a library that cannot read the source's tokenizer is no judge of it
            if ids is None:
                return None
            found += ids
    return found


def ids_by_class(view: ModelView, asked: Sequence[Probe]) -> Ids | None:
    """The probes by the transformers that is installed here; ``None`` without it."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        return None
    from qexport.evidence.quiet import quiet_transformers

    with _folder(view) as folder, quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception:  # noqa: BLE001  # it raises whatever the files make it trip over
            return None
        return [tuple(tokenizer.encode(one.text, add_special_tokens=one.prompt)) for one in asked]


@contextmanager
def _folder(view: ModelView) -> Iterator[Path]:
    """The source's small files, for a library that reads folders."""
    with tempfile.TemporaryDirectory(prefix="qexport-") as name:
        for file, data in {"config.json": json.dumps(dict(view.config)).encode(), **view.files}.items():
            if "/" not in file and not file.endswith(".md"):
                Path(name, file).write_bytes(data)
        yield Path(name)
