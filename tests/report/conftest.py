"""The command line in this process, and small GGUF files, from their own folders."""

import sys
from pathlib import Path

for name in ("cli", "verify"):
    sys.path.insert(0, str(Path(__file__).parents[1] / name))
