"""Shared fixtures: checkpoints of the zoo, built once per run and handed out read-only."""

from __future__ import annotations

import json
import os
import shutil
import stat
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

if (workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0))) and hasattr(os, "sched_setaffinity"):
    # Before torch is imported: each worker, with all that it starts, has processors of its own. Threads of
    # several workers on the same ones mostly wait for each other, spinning.
    every = sorted(os.sched_getaffinity(0))
    mine = every[int(os.environ["PYTEST_XDIST_WORKER"][2:]) % len(every) :: workers]
    os.sched_setaffinity(0, mine)

from costs import Costs
from zoo import build
from zoo_types import Zoo, ZooCopy

# Files are synced for power that fails, which no test lets fail: thousands of times in a run, waiting for the
# disk.
os.fsync = lambda fd: None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--costs", action="store_true", help="show the processor time of files and tests")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--costs"):
        config.pluginmanager.register(Costs())


# First, so that no worker is alone with one of them at the end (`make costs` tells).
LONGEST = (
    "cli/test_demo.py",
    "cli/test_sized.py",
    "evidence/test_stream_memory.py",
    "verify/test_comparison.py",
    "nvfp4/test_nvfp4_peers.py",
    "mlx/test_mlx_shown_pictures.py",
    "gguf/test_sensitivity.py",
    "pipeline/test_feedback_pass.py",
    "verify/test_real_folders.py",
    "evidence/test_ranks.py",
    "cli/test_best.py",
    "mlx/test_convert_parity.py",
    "pipeline/test_planted_quirks.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others in the order of their names."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_unconfigure(config: pytest.Config) -> None:
    """The suite's last line: how many tests were not run, and why."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput"):
        return
    reasons = Counter(str(report.longrepr[2]) for report in reporter.stats.get("skipped", ()))
    if reasons:
        each = [f"{count} {why.removeprefix('Skipped: ')}" for why, count in reasons.most_common()]
        reporter.write_line(f"not run, {reasons.total()} tests: {'; '.join(each)}")


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """`zoo(name, **options)`: a read-only checkpoint folder named after the entry."""
    cache = tmp_path_factory.mktemp("zoo")
    made: dict[str, Path] = {}

    def get(name: str, **options: Any) -> Path:
        key = f"{name} {json.dumps(options, sort_keys=True)}"
        if key not in made:
            folder = build(name, cache / f"{zlib.crc32(key.encode()):08x}" / name, **options)
            for file in folder.iterdir():
                file.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
            made[key] = folder
        return made[key]

    return get


@pytest.fixture
def zoo_copy(zoo: Zoo, tmp_path: Path) -> ZooCopy:
    """`zoo_copy(name, **options)`: the same checkpoint in this test's own folder, writable."""

    def get(name: str, **options: Any) -> Path:
        source = zoo(name, **options)
        number = sum(1 for _ in tmp_path.glob("zoo-*"))
        target = tmp_path / f"zoo-{number}" / name
        shutil.copytree(source, target, copy_function=shutil.copyfile)
        return target

    return get
