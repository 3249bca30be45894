"""What pip has to install on another machine to get the qexport that runs here.

A version that no index has cannot be named by its number: what was installed from a repository is named by
its commit, and for a checkout, a local file or a version in the making the user has to say where to get it.
https://packaging.python.org/en/latest/specifications/direct-url-data-structure/
"""

from __future__ import annotations

import json
import re
from importlib import metadata
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from qexport.errors import UsageProblem

_RELEASED = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?")


def installable() -> str:
    """A requirement that pip understands anywhere.

    Raises:
        UsageProblem: there is none; says why.
    """
    try:
        found = metadata.distribution("qexport")
    except metadata.PackageNotFoundError:
        raise _refused("qexport is not installed here but read from a folder") from None
    origin = _origin(found)
    if origin is None:
        if not _RELEASED.fullmatch(found.version):
            raise _refused(f"{found.version} is no released version")
        return f"qexport[all]=={found.version}"
    address = urlsplit(str(origin.get("url")))
    vcs = origin.get("vcs_info")
    if address.scheme not in ("https", "http") or address.hostname is None:
        raise _refused("qexport was installed from files of this machine")
    # Without the user name and password that an address may hold.
    host = address.hostname if address.port is None else f"{address.hostname}:{address.port}"
    url = urlunsplit((address.scheme, host, address.path, "", ""))
    if not isinstance(vcs, dict):
        return f"qexport[all] @ {url}"
    return f"qexport[all] @ {vcs.get('vcs')}+{url}@{vcs.get('commit_id')}"


def _origin(found: metadata.Distribution) -> dict[str, Any] | None:
    """Where it was installed from; ``None``: from an index."""
    text = found.read_text("direct_url.json")
    value = json.loads(text) if text else None
    return value if isinstance(value, dict) else None


def _refused(why: str) -> UsageProblem:
    return UsageProblem(
        f"a job on the Hub cannot install this qexport: {why}",
        hint="Say what pip installs there: --hf-install 'qexport[all] @ git+https://github.com/you/qexport@COMMIT'.",
    )
