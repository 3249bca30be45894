"""Keeping paths of the machine that trained or exported out of published files.

Training tools write where they ran: ``_name_or_path: ./outputs/merged`` in a config, ``base_model:
/home/me/x`` in a model card, ``base_model:adapter:/data/run3`` among its tags. None of that may reach a
GGUF.
"""

from __future__ import annotations

import re

# First parts of "a/b" that are folders people train into, not organisations on the Hub.
_FOLDERS = frozenset(
    {
        "output",
        "outputs",
        "out",
        "checkpoint",
        "checkpoints",
        "ckpt",
        "ckpts",
        "model",
        "models",
        "result",
        "results",
        "run",
        "runs",
        "exp",
        "exps",
        "experiment",
        "experiments",
        "save",
        "saves",
        "saved",
        "saved_model",
        "saved_models",
        "merged",
        "tmp",
        "temp",
        "data",
        "home",
        "root",
        "mnt",
        "workspace",
        "content",
        "kaggle",
        "users",
        "var",
        "opt",
        "srv",
        "scratch",
        "work",
        "lora",
        "adapter",
        "adapters",
        "finetuned",
        "trained",
        "weights",
        "local",
        "export",
        "exports",
    }
)  # fmt: skip
_CHECKPOINT_FOLDER = re.compile(r"(?:checkpoint|global_step|epoch|step)[-_]?\d+", re.IGNORECASE)
_IN_TEXT = re.compile(
    r"""(?:^|[\s:=,;"'`(\[<])
    (?: /
         (?:home|root|mnt|data|tmp|workspace|Users|opt|var|srv|media|scratch|content|kaggle|private|work|shared
         |lustre|gpfs|nfs|storage|dev|usr|etc) (?:/|$) | ~/ | \.{1,2}[/\\] | [A-Za-z]:[\\/](?!/) | \\\\ |
         file:// )""",
    re.VERBOSE,
)


def is_local(name: str) -> bool:
    """Whether what should be a model's or data set's name is a path on some machine.

    >>> [is_local(n) for n in ("Qwen/Qwen3.5-9B", "gpt2", "./out", "/mnt/m", "outputs/merged", "a/b/c")]
    [False, False, True, True, True, True]
    """
    name = name.strip()
    if name.startswith(("http://", "https://", "ssh://")):
        return False
    if holds_host_path(name) or name.startswith(("/", "~", ".")) or "\\" in name or name.count("/") > 1:
        return True
    first, slash, second = name.partition("/")
    if not slash:
        return bool(_CHECKPOINT_FOLDER.fullmatch(name))
    return not second or first.lower() in _FOLDERS or bool(_CHECKPOINT_FOLDER.fullmatch(second))


def holds_host_path(text: str) -> bool:
    """Whether a path of a machine stands anywhere in ``text``."""
    return bool(_IN_TEXT.search(text))
