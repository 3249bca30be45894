"""Commands on cards: every option that one names is one that its program has."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from large_publication import folders, gguf_files

from qexport.publishing.card import CardOptions, render_card

sys.path.insert(0, str(Path(__file__).parents[1] / "oracle"))
import toolchain

LLAMA = re.compile(r"^llama-\w")
# In sentences: sha256sum's and SGLang's.
OTHERS = {"--ignore-missing", "--moe-runner-backend"}
IN_WORDS = re.compile(r"`(--[\w-]+)[^`]*`")


def card() -> str:
    return render_card([*gguf_files(), *folders()], CardOptions("alice/Tuned-27B-GGUF"))


def commands(text: str) -> list[list[str]]:
    """Those of shells, in words."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    found, begun = [], ""
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        begun = f"{begun}\n{line}" if begun else line
        try:
            words = shlex.split(begun, comments=True)
        except ValueError:  # a quotation goes on
            continue
        begun = ""
        found += [words] if words else []
    assert not begun
    return found


def named(text: str) -> set[str]:
    """Options of llama.cpp that a card names."""
    found = {word for words in commands(text) if LLAMA.match(words[0]) for word in words if word[:1] == "-"}
    return found | set(IN_WORDS.findall(text)) - OTHERS


def known(tree: Path) -> set[str]:
    """Options of the programs of a llama.cpp tree."""
    source = (tree / "common" / "arg.cpp").read_text(encoding="utf-8")
    lists = re.findall(r"^\s*\{((?:\s*\"--?[\w-]+\",?)+)\s*\}", source, re.M)
    return {name for each in lists for name in re.findall(r"\"(--?[\w-]+)\"", each)}


def test_the_options_are_found() -> None:
    found = named(card())
    assert {"-hf", "-m", "--mmproj", "--image", "-p", "--spec-type", "--spec-draft-n-max"} <= found
    assert {"--reasoning-budget"} <= found
    assert {words[0] for words in commands(card())} >= {"llama-server", "mlx_lm.generate", "vllm", "ollama"}


@pytest.mark.parametrize("planted", ["", "--no-such-option"])
@pytest.mark.toolchain
@pytest.mark.skipif(not toolchain.has_tree(), reason=toolchain.NO_TREE)
def test_llama_cpp_has_them(planted: str) -> None:
    tree = toolchain.tree()
    text = card().replace("--spec-draft-n-max 3", f"--spec-draft-n-max 3 {planted}")
    assert named(text) - known(tree) == ({planted} if planted else set())
    kinds = (tree / "common" / "speculative.cpp").read_text(encoding="utf-8")
    assert '"draft-mtp"' in kinds
