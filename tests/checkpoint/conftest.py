"""A Hub on the loopback, with a cache and an identity of its own."""

from __future__ import annotations

import huggingface_hub
import pytest
from hub_server import HubServer
from huggingface_hub import constants


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A running HubServer that the client in this process talks to; its cache is ``tmp_path / "cache"``."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    # The client reads its settings from the environment once, when it is imported.
    for name in ("HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH", "AGENT_HARNESSES_PATH"):
        monkeypatch.setattr(constants, name, str(tmp_path / "cache" / name.lower()))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server
        huggingface_hub.close_session()
