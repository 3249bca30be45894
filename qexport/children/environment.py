"""What a child process may see of our environment: what is named here, and nothing else.

A child reads what a stranger wrote. So it has no access tokens (named ``HF_TOKEN``, ``AWS_SECRET_ACCESS_KEY``
and in a hundred other ways), no variables that bring code in (``PYTHONPATH``, ``PYTHONSTARTUP``,
``LD_PRELOAD``), no home with a token file in it, and no search path that begins in the current folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


_WORDS = "LANG LANGUAGE LC_ALL LC_CTYPE TZ USER LOGNAME TMPDIR TEMP TMP"
_THREADS = (
    "OMP_NUM_THREADS OMP_THREAD_LIMIT OMP_PROC_BIND OMP_PLACES OMP_DYNAMIC OMP_WAIT_POLICY KMP_AFFINITY "
    "KMP_BLOCKTIME GOMP_CPU_AFFINITY MKL_NUM_THREADS OPENBLAS_NUM_THREADS BLIS_NUM_THREADS "
    "NUMEXPR_NUM_THREADS VECLIB_MAXIMUM_THREADS"
)
_DEVICES = (
    "CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER CUDA_HOME CUDA_PATH CUDA_MODULE_LOADING NVIDIA_VISIBLE_DEVICES "
    "NVIDIA_DRIVER_CAPABILITIES HIP_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES HSA_OVERRIDE_GFX_VERSION ROCM_PATH "
    "ZE_AFFINITY_MASK ONEAPI_DEVICE_SELECTOR PYTORCH_CUDA_ALLOC_CONF PYTORCH_ALLOC_CONF TORCH_CUDA_ARCH_LIST "
    "CC CXX VLLM_CPU_KVCACHE_SPACE VLLM_CPU_OMP_THREADS_BIND VLLM_ATTENTION_BACKEND"
)
_ALLOWED = frozenset(f"{_WORDS} {_THREADS} {_DEVICES}".split())
# Where GPU drivers are found in many containers.
_PATHS = ("PATH", "LD_LIBRARY_PATH")
_SET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # An aborting llama.cpp starts a debugger for a backtrace, which takes seconds and drowns its last words.
    "GGML_NO_BACKTRACE": "1",
}


def child_environment(home: Path, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child whose home is the folder ``home``.

    Args:
        given: to choose from; ours if not given.
    """
    given = os.environ if given is None else given
    kept = {key: value for key, value in given.items() if key in _ALLOWED}
    paths = {key: search_path(given[key]) for key in _PATHS if given.get(key)}
    return {**kept, **paths, **_SET, "HOME": str(home), "HF_HOME": str(home / "huggingface")}


def search_path(value: str) -> str:
    """A search path less what is relative, or empty: both mean the current folder."""
    return os.pathsep.join(part for part in value.split(os.pathsep) if Path(part).is_absolute())


def kernel_caches() -> dict[str, str]:
    """Where runtimes keep the kernels that they compile, for minutes: a child's home is new each time."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache"
    names = ("XDG_CACHE_HOME", "TRITON_HOME", "FLASHINFER_WORKSPACE_BASE", "CUDA_CACHE_PATH")
    return dict.fromkeys(names, str(root / "qexport" / "kernels"))
