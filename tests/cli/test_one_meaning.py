"""An option's name means one thing: one help text in every command, or a reason why not."""

from collections import defaultdict

import click
from click.testing import CliRunner

from qexport.cli.main import COMMANDS, cli

DIFFERENT = {
    "--against": "what judges; what judges a folder of others",
    "--base": "whose lost parts are taken; of others' folders all of it",
    "--mtp": "a checkpoint's head; that of others' folders, which is never dropped",
    "--allow-unverified": "ends a run with 0; publishes",
    "--calib-tokens": "of a collecting pass; of a library, which holds the whole model meanwhile",
    "--dry-run": "says what this command would do",
    "--imatrix": "collected or used; what a curve is drawn with",
    "--importance": "says what this format's encoder does with it",
    "--layout": "each format has its own layouts",
    "--measure": "the number itself; in place of the recipe's",
    "--mtp-from": "where a head is lost; in place of the model's own",
    "--mtp-layout": "each format has its own places for a head",
    "--only": "artifacts of a recipe; of a folder",
    "--out": "says what is written there",
    "--precision": "of a collecting pass; of a trunk's",
    "--quant": "what a command can write",
    "--quantized-by": "in the file; on the card",
    "--recipe": "mlx-lm's own word; a recipe of ours",
    "--revision": "what is read; what is written (--branch, by the Hub client's name)",
    "--runtime-python": "of the runtime that is asked for; of several",
    "--scheme": "each format has its own of llm-compressor's",
    "--seed": "of answers; of training",
    "--temperature": "of drafts; of answers, where the model recommends one",
    "--text": "to judge on; to learn from",
    "--threads": "ours; the runtime's",
    "--timeout": "of a runtime; of a request",
    "--tokens": "read; written",
}


def options(name, command):
    for each in command.params:
        if isinstance(each, click.Option):
            yield from ((flag, each.help, name) for flag in each.opts if flag.startswith("--"))
    for inner in getattr(command, "commands", {}).values():
        yield from options(name, inner)


def test_an_option_has_one_help_text_or_a_reason():
    texts = defaultdict(set)
    for name in COMMANDS:
        for flag, words, _ in options(name, cli.get_command(click.Context(cli), name)):
            texts[flag].add(words)
    assert {flag for flag, words in texts.items() if len(words) > 1} == set(DIFFERENT)
    assert [flag for flag, words in texts.items() if not all(words)] == []


def commands():
    yield []
    for name in COMMANDS:
        yield [name]
        inner = getattr(cli.get_command(click.Context(cli), name), "commands", {})
        yield from ([name, one] for one in inner)


def test_help_fits_80_columns_without_a_terminal():
    """But for commands to copy, which no line end may break."""
    for words in commands():
        shown = CliRunner(env={"NO_COLOR": "1"}).invoke(cli, [*words, "--help"], terminal_width=80)
        assert shown.exit_code == 0
        assert "\033" not in shown.output
        for line in shown.output.splitlines():
            assert len(line) <= 80 or line.startswith("    qexport "), (words, line)
