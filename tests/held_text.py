"""Text of the demo model's own little world."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from qexport.demo import MODEL


def own_words(seed: int, tokens: int = 4096, chunk: int = 256) -> np.ndarray:
    """int32 ``(chunks, chunk)``."""
    path = Path(__file__).parents[1] / "tools" / "demo_corpus.py"
    spec = importlib.util.spec_from_file_location("demo_corpus", path)
    assert spec is not None
    assert spec.loader is not None
    corpus = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(corpus)
    tokenizer, ids = Tokenizer.from_file(str(MODEL / "tokenizer.json")), []
    for document in corpus.documents(seed):
        ids += tokenizer.encode(document, add_special_tokens=False).ids
        if len(ids) >= tokens:
            break
    return np.array(ids[:tokens], np.int32).reshape(-1, chunk)
