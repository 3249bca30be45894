"""What another machine installs: only what it can have."""

import json

import pytest

import qexport.run.install as module
from qexport.errors import UsageProblem
from qexport.run.install import installable

GIT = {"vcs": "git", "commit_id": "0123abcd" * 5}


@pytest.fixture
def installed(monkeypatch):
    """``installed(version, origin)``: how pip left this qexport."""

    def install(version, origin=None):
        class Distribution:
            def read_text(self, name):
                assert name == "direct_url.json"
                return None if origin is None else json.dumps(origin)

        Distribution.version = version
        monkeypatch.setattr(module.metadata, "distribution", lambda name: Distribution())

    return install


@pytest.mark.parametrize(
    ("version", "origin", "wanted"),
    [
        ("1.2.0", None, "qexport[all]==1.2.0"),
        ("1.2.0rc1", None, "qexport[all]==1.2.0rc1"),
        (
            "1.2.0",
            {"url": "https://github.com/me/qexport", "vcs_info": GIT},
            f"qexport[all] @ git+https://github.com/me/qexport@{GIT['commit_id']}",
        ),
        (
            "1.2.0.dev1+g12",
            {"url": "https://me:hf_secret@example.org:8443/qexport.git?token=x", "vcs_info": GIT},
            f"qexport[all] @ git+https://example.org:8443/qexport.git@{GIT['commit_id']}",
        ),
        (
            "1.2.0",
            {"url": "https://example.org/qexport-1.2.0-py3-none-any.whl", "archive_info": {}},
            "qexport[all] @ https://example.org/qexport-1.2.0-py3-none-any.whl",
        ),
    ],
)
def test_what_can_be_had(installed, version, origin, wanted):
    installed(version, origin)
    assert installable() == wanted


@pytest.mark.parametrize(
    ("version", "origin", "why"),
    [
        (
            "1.2.0",
            {"url": "file:///home/me/qexport", "dir_info": {"editable": True}},
            "files of this machine",
        ),
        ("1.2.0", {"url": "file:///tmp/q.whl", "archive_info": {}}, "files of this machine"),
        ("1.2.0", {"url": "ssh://git@github.com/me/q", "vcs_info": GIT}, "files of this machine"),
        ("1.3.0.dev0", None, "no released version"),
        ("1.2.0+local", None, "no released version"),
        ("1.2.0", {}, "files of this machine"),
    ],
)
def test_what_nobody_else_can_have(installed, version, origin, why):
    installed(version, origin)
    with pytest.raises(UsageProblem) as caught:
        installable()
    assert why in caught.value.message
    assert "--hf-install" in caught.value.hint
    assert "/home/me" not in str(caught.value)
