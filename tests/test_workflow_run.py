"""The export workflow's own scripts, run one after the other on the demo recipe, publish included."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent / "publish"))
from push_server import TOKEN, PushHub

ROOT = Path(__file__).parents[1]
EXPORT = yaml.safe_load((ROOT / ".github/workflows/export.yml").read_text())
DEFAULTS = {name: each["default"] for name, each in EXPORT[True]["workflow_dispatch"]["inputs"].items()}
ONLY = "gguf:Q8_0"


class Runner:
    """What a runner does of a job: its scripts in order, with the environment that the workflow has."""

    def __init__(self, folder, base, secrets, inputs):
        self.folder, self.base, self.secrets, self.inputs = folder, base, secrets, {**DEFAULTS, **inputs}

    def job(self, name, matrix=None, outputs=None):
        """Runs it in a folder of its own; returns what it wrote as outputs."""
        workspace = self.folder / name
        workspace.mkdir(exist_ok=True)
        known = {"matrix": matrix or {}, "needs": {"plan": {"outputs": outputs or {}}}, "steps": {}}
        written = {}
        job = EXPORT["jobs"][name]
        for step in job["steps"]:
            if "run" not in step or step.get("name") == "Install":
                continue
            given = {**EXPORT["env"], **job.get("env", {}), **step.get("env", {})}
            out = workspace / "output"
            environment = {
                **self.base,
                **{key: self.value(text, known) for key, text in given.items()},
                "GITHUB_OUTPUT": str(out),
                "GITHUB_STEP_SUMMARY": str(self.folder / "summary.md"),
            }
            environment = {key: text for key, text in environment.items() if key != "HF_TOKEN" or text}
            ran = subprocess.run(
                ["bash", "-e", "-c", step["run"]],
                cwd=workspace, env=environment, capture_output=True, text=True,
            )  # fmt: skip
            if ran.returncode:
                return ran.returncode, ran.stdout + ran.stderr
            if out.exists():
                written = dict(line.split("=", 1) for line in out.read_text().splitlines())
        return 0, written

    def value(self, text, known):
        """The expressions of this workflow, and no others."""

        def one(match):
            word = match[1]
            if word == "inputs.if-changed && '--if-changed' || ''":
                return "--if-changed" if self.inputs["if-changed"] else ""
            kind, _, name = word.partition(".")
            if kind == "matrix":
                return known["matrix"][name]
            return {"inputs": self.inputs, "secrets": self.secrets}[kind][name]

        return re.sub(r"\$\{\{ (.*?) \}\}", one, str(text))


@pytest.fixture
def runner(tmp_path):
    tool = tmp_path / "bin" / "qexport"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m qexport "$@"\n')
    tool.chmod(0o755)
    with PushHub() as hub:
        base = {
            **os.environ,
            **hub.environment(tmp_path / "home"),
            "PATH": f"{tool.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HF_HUB_DISABLE_XET": "1",
        }
        inputs = {
            "recipes": "demo",
            "only": ONLY,
            "set": "publish.repo=me/{folder} measure=0 artifacts.gguf.gates=",
            "publish": True,
        }
        yield hub, Runner(tmp_path, base, {"HF_TOKEN": TOKEN}, inputs)


@pytest.mark.slow
def test_from_plan_to_publication(runner):
    hub, machine = runner
    code, planned = machine.job("plan")
    assert (code, planned["code"], planned["some"]) == (0, "0", "yes"), planned
    (entry,) = json.loads(planned["matrix"])["include"]
    assert (entry["recipe"], entry["only"], entry["together"]) == ("demo", "gguf:Q8_0", entry["name"])
    code, said = machine.job("export", entry)
    assert code == 0, said
    # Artifacts travel.
    for name in ("verify", "publish"):
        shutil.copytree(machine.folder / "export" / "out", machine.folder / name / "out")
    code, said = machine.job("publish", entry)
    assert code == 4
    assert "nothing of demo is published" in said
    assert hub.pushed == {}
    assert machine.job("verify", entry)[0] == 0
    shutil.copytree(machine.folder / "verify" / "passed", machine.folder / "publish" / "passed")
    code, said = machine.job("publish", entry)
    assert code == 0, said
    (repo,) = hub.pushed
    assert repo == "me/Qexport-Demo-GGUF"
    assert {"Qexport-Demo-Q8_0.gguf", "README.md", "SHA256SUMS", "qexport.json"} <= set(
        hub.pushed[repo].tree()
    )
    summary = (machine.folder / "summary.md").read_text()
    assert "| Qexport-Demo | gguf:Q8_0 |" in summary
    assert "Pushed " in summary


def test_a_plan_of_what_cannot_be_read(runner):
    _, machine = runner
    (machine.folder / "plan").mkdir()
    (machine.folder / "plan" / "bad.yaml").write_text(
        "source: {model: ./gone}\nartifacts: [{mlx: {bits: 6}}]\n"
    )
    machine.inputs["recipes"], machine.inputs["only"], machine.inputs["set"] = "*.yaml demo", "mlx", ""
    code, planned = machine.job("plan")
    assert (code, planned["code"]) == (0, "3"), planned
    assert [each["recipe"] for each in json.loads(planned["matrix"])["include"]] == ["demo"]
    assert "bad: " in (machine.folder / "summary.md").read_text()
    machine.inputs["recipes"] = "bad.yaml"
    assert machine.job("plan")[0] == 3
