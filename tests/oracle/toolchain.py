"""Running llama.cpp's own converter and quantizer.

`QEXPORT_LLAMA_CPP` names a llama.cpp tree, `QEXPORT_LLAMA_BIN` a folder with its tools, or with libllama,
which quantizes as well (`llama_quantize.py`); `make test-toolchain` fetches both (`fetch.py`), and with
COMPILE=1 builds the programs that nobody ships, llama-imatrix and llama-server. The converter
recognises a BPE pre-tokenizer by hashing what it does to one long string, which a vocabulary of 400 tokens
can never match; so it runs from a copy, outside the repository, whose last resort is the environment
variable QEXPORT_ORACLE_PRE instead of an exception. Nothing else in the copy differs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

REFUSAL = 'raise NotImplementedError("BPE pre-tokenizer was not recognized - update get_vocab_base_pre()")'
FALLBACK = 'res = os.environ["QEXPORT_ORACLE_PRE"]'
NO_TREE = "no llama.cpp tree (make test-toolchain)"
NO_QUANTIZER = "neither llama-quantize nor libllama (make test-toolchain)"
NO_IMATRIX = "llama-imatrix has not been built (make test-toolchain COMPILE=1)"
NEITHER = "no llama.cpp tree and library (make test-toolchain)"
COPIED = ("convert_hf_to_gguf.py", "conversion", "gguf-py")


class ToolchainError(RuntimeError):
    """A tool of llama.cpp refused; the text is the end of what it printed."""


def has_tree() -> bool:
    """Whether there is a tree, and so the converter."""
    return bool(os.environ.get("QEXPORT_LLAMA_CPP")) and tree().is_dir()


def has_tool(name: str) -> bool:
    """Whether the program has been built."""
    return bool(os.environ.get("QEXPORT_LLAMA_BIN")) and tool(name).is_file()


def can_quantize() -> bool:
    """Whether there is llama-quantize, or the library that it calls."""
    return has_tool("llama-quantize") or _library() is not None


def can_collect() -> bool:
    """Whether there are converter and llama-imatrix."""
    return has_tree() and has_tool("llama-imatrix")


def available() -> bool:
    """Whether there are converter and quantizer."""
    return has_tree() and can_quantize()


def _marks(there: bool, reason: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.toolchain, pytest.mark.skipif(not there, reason=reason)]


def _from_env(name: str) -> Path:
    value = os.environ.get(name)
    if not value:
        raise ToolchainError(f"set {name}")
    return Path(value)


def tree() -> Path:
    """The llama.cpp source tree."""
    return _from_env("QEXPORT_LLAMA_CPP")


def tool(name: str) -> Path:
    """One of the built programs."""
    return _from_env("QEXPORT_LLAMA_BIN") / name


def _library() -> Path | None:
    folder = os.environ.get("QEXPORT_LLAMA_BIN")
    return next(iter(sorted(Path(folder).glob("libllama.*"))), None) if folder else None


def quantizer() -> list[str]:
    """The command that takes llama-quantize's words."""
    library = _library()
    if library is None or has_tool("llama-quantize"):
        return [str(tool("llama-quantize"))]
    return [sys.executable, str(Path(__file__).with_name("llama_quantize.py")), str(library)]


def commit() -> str:
    """The tree's commit, to be noted with whatever it produced."""
    run = subprocess.run(
        ["git", "-C", str(tree()), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return run.stdout.strip() or "unknown"


def converter() -> Path:
    """The patched copy's convert_hf_to_gguf.py, made once per source version in the temporary folder."""
    source = tree()
    base = source / "conversion" / "base.py"
    key = hashlib.sha256(str(source.resolve()).encode() + base.read_bytes()).hexdigest()[:12]
    target = Path(tempfile.gettempdir()) / f"qexport-oracle-{key}"
    if not target.is_dir():
        work = Path(tempfile.mkdtemp(prefix="qexport-oracle-making-"))
        for name in COPIED:
            if (source / name).is_dir():
                shutil.copytree(source / name, work / name)
            else:
                shutil.copyfile(source / name, work / name)
        patched = work / "conversion" / "base.py"
        text = patched.read_text(encoding="utf-8")
        if text.count(REFUSAL) != 1:
            raise ToolchainError(f"{base} no longer refuses unknown pre-tokenizers in the known way")
        patched.write_text(text.replace(REFUSAL, FALLBACK), encoding="utf-8")
        try:
            work.rename(target)
        except OSError:  # another process was first
            shutil.rmtree(work)
    return target / "convert_hf_to_gguf.py"


def _run(command: list[str], env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    run = subprocess.run(
        command, env={**os.environ, **(env or {})}, cwd=cwd, capture_output=True, text=True, check=False
    )
    if run.returncode != 0:
        tail = "\n".join((run.stdout + run.stderr).splitlines()[-15:])
        raise ToolchainError(f"{Path(command[0]).name} {' '.join(command[1:])}\n{tail}")
    return run.stdout + run.stderr


def convert(
    model: Path, out: Path, outtype: str = "bf16", *, pre: str | None = None, flags: tuple[str, ...] = ()
) -> Path:
    """Safetensors folder -> GGUF. The model's name in the metadata comes from the folder's name."""
    command = [
        sys.executable,
        str(converter()),
        str(model),
        "--outfile",
        str(out),
        "--outtype",
        outtype,
        *flags,
    ]
    _run(command, env={"QEXPORT_ORACLE_PRE": pre} if pre else None)
    return out


def quantize(
    source: Path, out: Path, kind: str, *, imatrix: Path | None = None, flags: tuple[str, ...] = ()
) -> str:
    """GGUF -> quantized GGUF; returns what the tool printed.

    The imatrix is named relative to its own folder, because its path goes into the metadata.
    """
    command = [*quantizer(), *flags]
    if imatrix is not None:
        command += ["--imatrix", imatrix.name]
    command += [str(source.resolve()), str(out.resolve()), kind, "2"]
    return _run(command, cwd=imatrix.parent if imatrix else None)


needs_quantizer = _marks(can_quantize(), NO_QUANTIZER)
needs_both = _marks(available(), NEITHER)
needs_imatrix = _marks(can_collect(), NO_IMATRIX)
