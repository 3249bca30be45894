"""Shell completion puts itself where shells look, and its scripts are what these shells can read."""

import shutil
import subprocess
from pathlib import Path

import pytest
from in_process import ok


@pytest.mark.parametrize(
    ("shell", "where"),
    [
        ("bash", "data/bash-completion/completions/qexport"),
        ("zsh", "data/zsh/site-functions/_qexport"),
        ("fish", "config/fish/completions/qexport.fish"),
    ],
)
def test_install(shell, where, tmp_path, monkeypatch):
    monkeypatch.delenv("BASH_COMPLETION_USER_DIR", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    said = ok("completion", shell, "--install").stdout
    path = Path(tmp_path / where)
    assert said.splitlines()[0] == str(path)
    assert path.read_text() == ok("completion", shell).stdout
    if shell == "zsh":
        assert path.read_text().startswith("#compdef qexport")
        assert "fpath=(" in said
    if shutil.which(shell):
        subprocess.run([shell, "-n", path], check=True)


def test_bash_completes_a_command(tmp_path, monkeypatch):
    words = {"COMP_WORDS": "qexport mat", "COMP_CWORD": "1", "_QEXPORT_COMPLETE": "bash_complete"}
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    from click.shell_completion import get_completion_class

    from qexport.cli.main import cli

    kind = get_completion_class("bash")
    assert kind(cli, {}, "qexport", "_QEXPORT_COMPLETE").complete() == "plain,matrix"
