"""The workflows: what must hold of them, and actionlint where it is installed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[1] / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))
ACTION = FOLDER.parents[1] / "action.yml"
EXPORT = yaml.safe_load((FOLDER / "export.yml").read_text())


PINNED = re.compile(r"^\s*(?:- )?uses: actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job.get("steps", ())]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_little_is_allowed(path):
    assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("path", [*FILES, ACTION], ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_and_say_which_version_that_is(path):
    """The commits are those of the tags beside them, looked up in the actions' repositories."""
    lines = [line for line in path.read_text().splitlines() if re.match(r"\s*(- )?uses:", line)]
    assert lines
    assert [line for line in lines if not PINNED.match(line)] == []


def test_one_commit_for_one_version():
    found = {
        tuple(re.findall(r"uses: (\S+)@(\w+) # (\S+)", line)[0])
        for path in [*FILES, ACTION]
        for line in path.read_text().splitlines()
        if PINNED.match(line)
    }
    assert len(found) == len({name for name, _, _ in found})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_input_is_pasted_into_a_script(path):
    """`${{ inputs.x }}` inside `run:` would let whoever starts a run write the script."""
    for step in steps(yaml.safe_load(path.read_text())):
        assert "${{" not in step.get("run", "").replace("${{ matrix.os }}", "")


def test_a_recipe_is_published_as_a_whole_and_holds_up_no_other():
    jobs = EXPORT["jobs"]
    assert set(jobs["publish"]["needs"]) == {"plan", "verify"}
    assert set(jobs["verify"]["needs"]) == {"plan", "export"}
    assert "inputs.publish" in jobs["publish"]["if"]
    assert "environment" in jobs["publish"]
    for name in ("export", "verify", "publish"):
        assert jobs[name]["strategy"]["fail-fast"] is False
        assert "continue-on-error" not in jobs[name]
        assert jobs[name]["strategy"]["matrix"] == "${{ fromJSON(needs.plan.outputs.matrix) }}"
        assert jobs[name]["env"] == {"RECIPE": "${{ matrix.recipe }}", "ONLY": "${{ matrix.only }}"}


def test_called_and_started_by_hand_it_takes_the_same():
    inputs = EXPORT[True]  # what YAML 1.1 makes of `on`
    assert inputs["workflow_dispatch"]["inputs"] == inputs["workflow_call"]["inputs"]


def test_only_steps_that_need_the_token_have_it():
    holders = [step["run"] for step in steps(EXPORT) if "HF_TOKEN" in step.get("env", {})]
    words = [re.findall(r"qexport (\w+)", text)[0] for text in holders]
    assert words == ["matrix", "run", "push"]
    assert "HF_TOKEN" not in EXPORT["env"]


def run_step(tmp_path, job, command, *, code=0, **environment):
    """The script of the step that calls ``qexport command``, with a stand-in that notes its words."""
    (step,) = [step for step in EXPORT["jobs"][job]["steps"] if f"qexport {command}" in step.get("run", "")]
    tool = tmp_path / "bin" / "qexport"
    tool.parent.mkdir()
    tool.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/words\necho "| a \\`\\`\\` | <b> |"\nexit {code}\n'
    )
    tool.chmod(0o755)
    environment = {
        "PATH": f"{tool.parent}:/usr/bin:/bin",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        **environment,
    }
    ran = subprocess.run(
        ["bash", "-e", "-c", step["run"]], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    return ran.returncode, (tmp_path / "words").read_text().split("\n")[:-1], step


@pytest.mark.parametrize("code", [0, 3, 4, 6])
def test_the_second_machine_runs_the_folder_and_fails_with_it(tmp_path, code):
    """`verify DIR` finds the files, and fails where there is none (tests/cli/test_verify_folders.py)."""
    ended, words, step = run_step(tmp_path, "verify", "verify", code=code)
    assert ended == code
    assert words == ["verify", "out", "--again"]
    assert step["if"] == "${{ matrix.verify }}"
    assert "find" not in step["run"]
    # As a block of code, whatever names are in it.
    assert all(
        line.startswith("    ") or not line for line in (tmp_path / "summary.md").read_text().splitlines()
    )


@pytest.mark.parametrize("code", [0, 4])
def test_publishing_is_the_recipes_own_push(tmp_path, code):
    given = {"RECIPE": "recipes/a b.yaml", "ONLY": "gguf:Q4_K_M,mlx"}
    ended, words, step = run_step(tmp_path, "publish", "push", code=code, **given)
    assert ended == code
    assert words == ["push", "out", "--recipe", "recipes/a b.yaml", "--only", "gguf:Q4_K_M,mlx"]
    assert set(step["env"]) == {"HF_TOKEN"}


def test_only_what_opens_the_issue_may_write_it():
    """And it runs nothing that the peers brought."""
    jobs = yaml.safe_load((FOLDER / "drift.yml").read_text())["jobs"]
    assert {name: job.get("permissions") for name, job in jobs.items()} == {
        "newest": None,
        "tell": {"issues": "write"},
    }
    assert jobs["tell"]["if"] == "failure()"
    assert "make" not in str(jobs["tell"]["steps"])


def test_commands_of_the_export_workflow_exist():
    import click

    from qexport.cli.main import COMMANDS, cli

    for step in steps(EXPORT):
        text = step.get("run", "").replace("\\\n", " ")
        for line in re.findall(r"qexport (\w+)([^|)\n]*)", text):
            assert line[0] in COMMANDS
            command = cli.get_command(click.Context(cli), line[0])
            known = {name for option in command.params for name in option.opts}
            assert set(re.findall(r"--[a-z-]+", line[1])) <= known


def test_actionlint():
    tool = shutil.which("actionlint")
    if tool is None:
        pytest.skip("actionlint is not installed")
    ran = subprocess.run([tool, *map(str, FILES)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
