"""Damaged files of every kind give a sentence or a value, in time, and nothing is written."""

import time
from dataclasses import replace

import mutations
import pytest
from mutations import KINDS, faults


@pytest.mark.parametrize("name", KINDS)
def test_damage_is_refused_or_read(name, tmp_path):
    assert faults(name, range(KINDS[name].rounds), tmp_path) == []


@pytest.mark.parametrize("fault", ["raises", "writes", "idles"])
def test_faults_are_seen(monkeypatch, tmp_path, fault):
    healthy = []

    def read(folder):
        if not healthy:
            healthy.append(folder)
        elif fault == "raises":
            raise KeyError("x")
        elif fault == "writes":
            (folder / "new").write_text("x")
        else:
            until = time.process_time() + 0.02
            while time.process_time() < until:
                pass

    monkeypatch.setattr(mutations, "SLOW", 0.01)
    monkeypatch.setitem(KINDS, "planted", replace(KINDS["recipe"], read=read))
    assert len(faults("planted", range(3), tmp_path)) == (1 if fault == "writes" else 3)


def test_the_same_case_is_the_same_damage():
    kind = KINDS["recipe"]
    assert {kind.damage(b"a: 1\nb: 2\n", mutations.random.Random("x 1")) for _ in range(5)} == {
        kind.damage(b"a: 1\nb: 2\n", mutations.random.Random("x 1"))
    }
