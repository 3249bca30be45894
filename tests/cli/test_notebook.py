"""The notebook for Colab and Kaggle: its form, and its cells run on the demo model, as a kernel would."""

import json
import re
import shlex
from pathlib import Path

from in_process import ok

NOTEBOOK = json.loads((Path(__file__).parents[2] / "notebooks" / "qexport.ipynb").read_text())


def test_form():
    """What nbformat 4.5 requires: https://nbformat.readthedocs.io/en/latest/format_description.html"""
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in NOTEBOOK["cells"]:
        assert re.fullmatch(r"[a-zA-Z0-9-_]{1,64}", cell["id"])
        assert isinstance(cell["metadata"], dict)
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


def test_cells_run(tmp_path, monkeypatch):
    """But for the installation; verification is left out here, for time."""
    monkeypatch.chdir(tmp_path)
    known: dict[str, object] = {}
    ran = []
    for cell in NOTEBOOK["cells"]:
        lines = "".join(cell["source"]).splitlines() if cell["cell_type"] == "code" else []
        for line in lines:
            if line.startswith("!qexport "):
                command, *words = shlex.split(line.removeprefix("!qexport ").format(**known))
                more = {"gguf": ["--no-verify"], "push": ["--allow-unverified"]}.get(command, [])
                ok(command, *words, *more)
                ran.append(command)
        if cell["id"] not in ("install", "title"):
            exec("\n".join(line for line in lines if not line.startswith("!")), known)
    assert ran == ["inspect", "gguf", "report", "push"]
    assert (tmp_path / "report" / "report.html").is_file()
