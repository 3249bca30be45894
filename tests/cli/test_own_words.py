"""Hints name options that the command has which is run."""

import re
import shutil
from pathlib import Path

import click
import pytest
from in_process import ok, run

from qexport.cli._own_words import own_words
from qexport.cli.main import COMMANDS, cli
from qexport.doctor import mtp, vision

_OPTION = re.compile(r"(?<![\w-])--[a-z-]+(?![\w-])")
HINTS = (
    mtp._WAYS_OUT,
    vision._WAYS_OUT,
    "Give the model that was fine-tuned with --mtp-from, or export without a head: `--mtp drop`.",
    "Name the model that was fine-tuned with --vision-from; `--vision drop` exports without.",
    "Exported without one; `--mtp-from BASE` grafts the base model's for speculative decoding.",
    "Add `--vision-from BASE`: the model that was fine-tuned, a folder or a Hub id.",
    "`--base BASE` gives it the tower of the model that was fine-tuned.",
)


def flags(command):
    inner = getattr(command, "commands", {}).values()
    return {flag for each in command.params for flag in each.opts}.union(*map(flags, inner))


COMMANDS_OF_MODELS = ("adopt", "init", "gguf", "fix", "imatrix", "mtp", "run", "matrix", "verify")


@pytest.mark.parametrize("name", COMMANDS_OF_MODELS)
def test_no_hint_names_an_option_that_the_command_lacks(name):
    command = cli.get_command(click.Context(cli), name)
    for hint in HINTS:
        said = own_words(hint, command)
        one_tower = name in ("mtp", "verify", "init") and "vision" in hint  # nothing there helps: as it was
        assert one_tower or set(_OPTION.findall(said)) <= flags(command), (name, said)
        assert said.endswith(".")


def test_what_has_nothing_to_do_with_towers_stays():
    for name in COMMANDS:
        words = "Add --overwrite, or choose another --out. `--mtp-head X`, --based, or --no-mtp-from."
        assert own_words(words, cli.get_command(click.Context(cli), name)) == words


@pytest.fixture
def lost(zoo, tmp_path):
    """It declares a head, and has none."""
    model = tmp_path / "lost"
    shutil.copytree(zoo("qwen3_5_text"), model)
    config = model / "config.json"
    config.write_text(config.read_text().replace("{", '{"mtp_num_hidden_layers": 1, ', 1))
    return model


def test_errors_are_in_the_words_of_their_command(zoo, tmp_path, lost):
    other = zoo("qwen3_5", layers=8)
    for words, expected in (
        (("gguf", lost, "-q", "Q8_0"), "`--mtp graft --mtp-from BASE` takes the base model's head, `--mtp"),
        (("init", lost, "--base", other), "Give the model that was fine-tuned with --base.\n"),
        (("mtp", "score", lost), "`--mtp-from BASE` takes the base model's head."),
    ):
        assert expected in run(*words).stderr, words
    recipe = tmp_path / "lost.yaml"
    ok("init", lost, "-o", recipe)
    asked = ("run", recipe, "--dry-run", "--set", "mtp.mode=auto")
    assert "`--set mtp.mode=graft --set mtp.base=BASE` takes" in run(*asked).stderr
    ok(*asked, "--set", "mtp.mode=graft", "--set", f"mtp.base={Path(zoo('qwen3_5')).resolve()}")
