"""Write tests/gguf/golden/metadata.json: what llama.cpp's own converter writes for every case.

    QEXPORT_LLAMA_CPP=/path/to/llama.cpp python tests/gguf/make_metadata_golden.py [CASE ...]

Runs the tree's converter classes in this process (its gguf-py, not the installed one). Long arrays are
stored as length and SHA-256. The tokenizers of the zoo are unknown to the converter's table of hashes, so
the answer of that one function is given by the case.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GOLDEN = HERE / "golden" / "metadata.json"


def digest(values: list[Any]) -> dict[str, Any]:
    data = json.dumps(values, ensure_ascii=False).encode()
    return {"length": len(values), "sha256": hashlib.sha256(data).hexdigest()}


def plain(value: Any) -> Any:
    """A value as JSON keeps it; arrays of more than 16 items by their hash."""
    if isinstance(value, list):
        return value if len(value) <= 16 else digest(value)
    return value


def read(path: Path) -> dict[str, Any]:
    """Key-values of a GGUF file with their types."""
    import gguf

    reader = gguf.GGUFReader(path)
    keys: dict[str, Any] = {}
    for key, item in reader.fields.items():
        if key.startswith("GGUF."):
            continue
        keys[key] = [[t.name for t in item.types], plain(item.contents())]
    return {"keys": keys}


def convert(name: str, case: Any, folder: Path, out: Path) -> dict[str, Any]:
    import gguf
    from conversion import get_model_class
    from conversion.base import ModelBase, ModelType, TextModel, get_model_architecture

    TextModel.get_vocab_base_pre = lambda self, tokenizer: case.pre
    hparams = ModelBase.load_hparams(folder, False)
    cls = get_model_class(get_model_architecture(hparams, ModelType.TEXT), False)
    cls.no_mtp = ModelBase.no_mtp = not case.mtp
    instance = cls(folder, gguf.LlamaFileType.MOSTLY_BF16, out)
    instance.write()
    return {**read(out), "counts": list(instance.gguf_writer.get_total_parameter_count())}


def main(names: list[str]) -> None:
    tree = Path(os.environ["QEXPORT_LLAMA_CPP"])
    sys.path[:0] = [str(tree / "gguf-py"), str(tree), str(HERE), str(HERE.parent), str(HERE.parent.parent)]
    import logging

    import zoo
    from metadata_cases import CASES

    logging.disable(logging.INFO)
    results = json.loads(GOLDEN.read_text()) if names and GOLDEN.exists() else {}
    for name in names or CASES:
        case = CASES[name]
        with tempfile.TemporaryDirectory() as scratch:
            folder = zoo.build(case.zoo, Path(scratch) / "Tiny-Model-3M-Instruct", **case.options)
            if case.edit:
                case.edit(folder)
            results[name] = convert(name, case, folder, Path(scratch) / "out.gguf")
            print(name, len(results[name]["keys"]), file=sys.stderr)
    target = Path(os.environ.get("QEXPORT_GOLDEN_OUT", GOLDEN))
    lines = ",\n".join(
        f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in sorted(results.items())
    )
    target.write_text("{\n" + lines + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
