"""How each kind is run, MTP included, as commands that can be pasted.

Flags: llama.cpp https://github.com/ggml-org/llama.cpp/blob/master/docs/speculative.md, vLLM
https://docs.vllm.ai/en/stable/features/speculative_decoding/mtp/, SGLang
https://docs.sglang.io/docs/advanced_features/speculative_decoding, mlx-vlm
https://github.com/Blaizzy/mlx-vlm (``--draft-model``, ``--draft-kind``). mlx-lm has no MTP of its own.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.formats.gguf.file_name import found_by_tag
from qexport.receipt.kinds import FORMAT_WORDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.receipt.types import Artifact


# Drafts at a time: llama.cpp's own default, and for vLLM, which serves many at once, what Qwen's cards name.
_LLAMA_DRAFTS = 3
_VLLM_DRAFTS = 2


@dataclass(frozen=True)
class HowTo:
    """A program, the commands for it, and what to know about them."""

    program: str
    commands: str
    note: str = ""


def how_to_run(artifacts: Sequence[Artifact], repo: str) -> list[HowTo]:
    """A section for each program that reads what is there."""
    result: list[HowTo] = []
    drafters = [artifact for artifact in artifacts if artifact.is_drafter]
    models = [artifact for artifact in artifacts if not artifact.is_drafter]
    of = {name: [a for a in models if a.format == name] for name in FORMAT_WORDS}
    if of["gguf"]:
        result.append(_llama_cpp(of["gguf"], repo))
    if of["mlx"]:
        result += _mlx(of["mlx"], drafters, repo)
    elif drafters:
        result.append(_drafter(*_place(drafters[0], repo), "THE_MODEL_IT_DRAFTS_FOR"))
    served = [*of["fp8"], *of["nvfp4"], *of["merged"]]
    if served:
        result += _servers(served, repo)
    return result


def _llama_cpp(files: Sequence[Artifact], repo: str) -> HowTo:
    chosen = next((a for a in files if a.label == "Q4_K_M"), min(files, key=lambda a: a.size))
    first = chosen.files[0].name
    listed = [file.name for artifact in files for file in artifact.files]
    # Older names, and F16 beside BF16, are not found by their type: such a file is named in full.
    by_tag = found_by_tag(listed, chosen.label) == first
    plain = f"llama-server -hf {shlex.quote(f'{repo}:{chosen.label}')}" if by_tag else _by_name(repo, first)
    lines = ["# An OpenAI-compatible server on port 8080, with a chat page; -hf downloads the file.", plain]
    note = ""
    if chosen.has_mtp:
        lines += [
            "",
            "# Faster: the model's own MTP head drafts tokens ahead, the model checks them.",
            f"{plain} --spec-type draft-mtp --spec-draft-n-max {_LLAMA_DRAFTS}",
        ]
        note = "MTP needs a llama.cpp whose `llama-server --help` lists `draft-mtp` under `--spec-type`."
    lines += ["", "# Or fetch one file and run it.", _download(repo, first, len(chosen.files))]
    lines.append(f"llama-cli -m {shlex.quote(first)}")
    return HowTo("llama.cpp", "\n".join(lines), note)


def _by_name(repo: str, name: str) -> str:
    return f"llama-server -hf {shlex.quote(repo)} --hf-file {shlex.quote(name)}"


def _download(repo: str, name: str, count: int) -> str:
    if count == 1:
        return f"hf download {shlex.quote(repo)} {shlex.quote(name)} --local-dir ."
    pattern = name.rsplit("-00001-of-", 1)[0] + "-*"
    return f"hf download {shlex.quote(repo)} --include {shlex.quote(pattern)} --local-dir ."


def _mlx(trunks: Sequence[Artifact], drafters: Sequence[Artifact], repo: str) -> list[HowTo]:
    fetch, model = _place(trunks[0], repo)
    lines = [
        *fetch,
        "pip install mlx-lm",
        f'mlx_lm.generate --model {model} --prompt "Hello"',
        "# An OpenAI-compatible server:",
        f"mlx_lm.server --model {model}",
    ]
    note = ""
    if trunks[0].has_mtp:
        note = "mlx-lm does not draft; the MTP head in this folder is for runtimes that do (MTPLX, vllm-mlx)."
    result = [HowTo("mlx-lm (Apple silicon)", "\n".join(lines), note)]
    if drafters:
        fetch_head, head = _place(drafters[0], repo)
        result.append(_drafter(list(dict.fromkeys((*fetch, *fetch_head))), head, model))
    return result


def _drafter(fetch: Sequence[str], head: str, model: str) -> HowTo:
    commands = [
        *fetch,
        "pip install mlx-vlm",
        f'mlx_vlm.generate --model {model} --draft-model {head} --draft-kind mtp --prompt "Hello"',
    ]
    return HowTo("mlx-vlm, with the MTP head as drafter", "\n".join(commands))


def _servers(folders: Sequence[Artifact], repo: str) -> list[HowTo]:
    chosen = folders[0]
    fetch, model = _place(chosen, repo)
    vllm, sglang = (
        [*fetch, f"vllm serve {model}"],
        [*fetch, f"python -m sglang.launch_server --model-path {model}"],
    )
    if chosen.has_mtp:
        vllm += [
            "# Faster, with the model's own MTP head:",
            f"vllm serve {model} \\",
            f'  --speculative-config \'{{"method": "mtp", "num_speculative_tokens": {_VLLM_DRAFTS}}}\'',
        ]
        sglang += [
            "# Faster, with the model's own MTP head:",
            f"python -m sglang.launch_server --model-path {model} \\",
            "  --speculative-algorithm NEXTN --speculative-num-steps 3 \\",
            "  --speculative-eagle-topk 1 --speculative-num-draft-tokens 4",
        ]
    note = ""
    if any(a.kind.startswith("nvfp4") for a in folders):
        note = "A mixture of experts on Blackwell also needs `--moe-runner-backend marlin`."
    return [HowTo("vLLM", "\n".join(vllm)), HowTo("SGLang", "\n".join(sglang), note)]


def _place(artifact: Artifact, repo: str) -> tuple[list[str], str]:
    """(how to fetch it first, what to name as the model): a subfolder cannot be named by a Hub id."""
    if not artifact.top:
        return [], shlex.quote(repo)
    fetch = f"hf download {shlex.quote(repo)} --include {shlex.quote(artifact.top + '/*')} --local-dir ."
    return [fetch], shlex.quote(f"./{artifact.top}")
