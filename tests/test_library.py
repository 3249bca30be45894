"""`import qexport`: light, typed, and what docs/python.md shows runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qexport
from qexport.demo import MODEL
from qexport.errors import UsageProblem
from qexport.receipt.state import State

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def test_importing_it_loads_nothing():
    code = "import sys, qexport; print([m for m in sys.modules if m.startswith(('qexport.', 'torch'))])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_every_name_is_there_and_stays_a_function():
    import qexport.onepass.execute
    import qexport.publishing.plan
    import qexport.verification.options

    for name in qexport.__all__:
        assert getattr(qexport, name) is not None
    for name in ("export", "plan", "inspect", "verify", "publish", "recipe_for"):
        assert callable(getattr(qexport, name)), name
    assert set(dir(qexport)) == set(qexport.__all__)
    with pytest.raises(AttributeError, match="no attribute 'exporter'"):
        qexport.exporter  # noqa: B018


def test_types_are_shipped():
    assert (Path(qexport.__file__).parent / "py.typed").exists()


def test_a_plan_is_what_is_written(zoo, tmp_path):
    formats = [qexport.Gguf(("Q8_0", "BF16")), qexport.Mlx(bits=4), qexport.Mlx(bits=8), qexport.Merged()]
    recipe = qexport.recipe_for(zoo("qwen3_5"), formats, proven=False)
    assert [each.name for each in recipe.artifacts] == ["gguf", "mlx", "mlx-2", "merged"]
    planned = qexport.plan(recipe, out=tmp_path)
    assert list(tmp_path.iterdir()) == []
    outcome = qexport.export(recipe, out=tmp_path)
    assert [item.plan.size for item in outcome.artifacts] == [item.plan.size for item in planned]
    for item in outcome.artifacts:
        assert item.path.exists()
        assert item.receipt.is_file()
        assert sum(file.size for file in item.written) == item.plan.size
        assert item.state is State.NOT_RUN  # as it was asked for
    assert outcome.problem is None


def test_a_watcher_is_told_of_everything(zoo, tmp_path):
    told = []

    class Told(qexport.Watcher):
        def say(self, words):
            told.append("say")

        def diagnosed(self, diagnosis):
            told.append("diagnosed")

        def planned(self, items):
            told.append(f"planned {len(items)}")

        def phase(self, phase, total):
            told.append(f"{phase} {total > 0}")
            return super().phase(phase, total)

        def made(self, items, receipts):
            told.append(f"made {len(items)}")

    recipe = qexport.recipe_for(
        zoo("smollm"),
        [qexport.Gguf(("Q4_0",))],
        calibration=qexport.Calibration(tokens=64, chunk=32),
        proven=False,
    )
    qexport.export(recipe, out=tmp_path, watcher=Told())
    steps = [each for each in told if each != "say"]
    assert steps == ["diagnosed", "collecting True", "planned 1", "writing True", "verifying True", "made 1"]


def test_what_is_not_proven_is_raised_or_told(zoo, tmp_path):
    """ModelOpt's layout has no runtime here, but for a twin."""
    alone = qexport.VerifyOptions(twin=False)
    asked = qexport.recipe_for(zoo("qwen3_5"), [qexport.Nvfp4()], verification=alone)
    outcome = qexport.export(asked, out=tmp_path, check=False)
    assert isinstance(outcome.problem, qexport.Unproven)
    assert [item.state for item in outcome.artifacts] == [State.NOT_RUN]
    with pytest.raises(qexport.Unproven):
        qexport.export(asked, out=tmp_path)


def test_a_recipe_says_itself_what_a_model_is_given_with(tmp_path):
    with pytest.raises(UsageProblem, match="they go with a model"):
        qexport.export("demo", mtp_from="org/Base", out=tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers, as it loads and saves
def test_the_page_runs(tmp_path, monkeypatch):
    """One block after the other, with the demo model for the base, and only sizes that it has."""
    pytest.importorskip("xllamacpp")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 4
    script = "\n".join(blocks).replace("Qwen/Qwen3.5-0.8B", str(MODEL))
    (tmp_path / "page.py").write_text(script)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    ran = subprocess.run(
        [sys.executable, "page.py"], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    assert "exports/tuned-GGUF/tuned-Q8_0.gguf passed" in ran.stdout
    assert (tmp_path / "weighted" / "Tuned-GGUF" / "Tuned-imatrix.gguf_file").exists()
    assert "base_model: me/Tuned" in ran.stdout
