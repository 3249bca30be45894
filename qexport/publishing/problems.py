"""What goes wrong while pushing: which of it passes by itself, and sentences for what does not.

The client wraps what happened in its upload threads (``RuntimeError``), so the chain of causes is searched.
Its messages are not passed on as they are: they hold signed upload addresses. Of the Hub's own words one
line is quoted, without anything that looks like a token.
"""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qexport.checkpoint.hub_errors import hub_http
from qexport.errors import EnvironmentProblem, InputError, QexportError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from huggingface_hub.errors import HfHubHTTPError


_PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))
_TOKEN = re.compile(r"\b(?:hf|api|jwt)_[A-Za-z0-9_.-]{8,}|Bearer\s+\S+")
# hf_xet says what its own requests met in words only.
_XET_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})")
_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]*")
_INVISIBLE = "Nothing of this push is visible on the Hub."
_AGAIN = "run the same command again: files that arrived are not sent a second time."


@contextmanager
def reported(repo: str, doing: str, *, invisible: bool = True, done: str = "") -> Iterator[None]:
    """Errors of the client as ours, without their cause: its own message may hold a signed address.

    Args:
        doing: what is being done, such as ``uploading``.
        invisible: nothing has been committed yet, which the message then says.
        done: a sentence about what was.

    Raises:
        EnvironmentProblem, InputError: what the client has met.
    """
    try:
        yield
    except client_errors() as error:
        found = problem(error, repo, doing, invisible=invisible)
        found.message += done and f" {done}"
        raise found from None


def client_errors() -> tuple[type[Exception], ...]:
    """What the client, httpx below it and hf_xet raise; a defect of ours is a ``TypeError`` or its like."""
    http = hub_http()
    return (RuntimeError, OSError, ValueError, http.HTTPError, http.InvalidURL)


def without_secrets(text: str) -> str:
    """``text`` without signatures of addresses and without tokens, the one in use included.

    >>> without_secrets("PUT https://s3/part?X-Amz-Signature=abc with hf_abcdefghijk")
    'PUT https://s3/part with <token>'
    """
    from huggingface_hub import get_token

    if token := get_token():
        text = text.replace(token, "<token>")
    return _TOKEN.sub("<token>", _QUERY.sub(r"\1", text))


def is_passing(error: BaseException) -> bool:
    """Whether trying again may help: the server's own trouble, or the network's."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    broken = hub_http().TransportError
    if isinstance(error, OfflineModeIsEnabled):
        return False
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError) and _is_stale_address(cause):
            return True
        if isinstance(cause, broken | json.JSONDecodeError):
            return True
    status = _status(error)
    if status is not None:
        return status in _PASSING
    # hf_xet says everything but a refused token with one of these.
    return isinstance(error, ConnectionError | TimeoutError) or type(error) is RuntimeError


def is_conflict(error: BaseException) -> bool:
    """Whether somebody else's commit came first."""
    return _status(error) in (409, 412)


def problem(error: BaseException, repo: str, doing: str, *, invisible: bool = True) -> QexportError:
    """An error of ours for one of the client's, as :func:`reported` raises it."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    status, said = _status(error), _said(error)
    state = f" {_INVISIBLE}" if invisible else ""
    hint: str | None = None
    if isinstance(error, OfflineModeIsEnabled):
        return EnvironmentProblem(f"{repo} cannot be reached: HF_HUB_OFFLINE is set.", hint="Unset it.")
    if status == 404:
        return InputError(
            f"There is no {repo} on the Hub, or not for this account (HTTP 404, while {doing}).",
            hint="Check the name and the branch; `hf auth whoami` says which account is used.",
        )
    if status == 401 or type(error).__name__ == "XetAuthenticationError":
        words = f"The Hub no longer accepts the access token (HTTP 401, while {doing}).{said}"
        hint = f"`hf auth login` with a token that may write to {repo}, and {_AGAIN}"
    elif status == 403:
        words = f"This account may not write to {repo} (HTTP 403, while {doing}).{said}"
        hint = "Use a token with write access to it, or offer the files with --create-pr."
    elif is_conflict(error):
        words, hint = (
            f"Somebody else changed {repo} while this push ran.",
            f"Look at their commit, and {_AGAIN}",
        )
    elif status in _PASSING:
        words = f"The Hub failed while {doing} (HTTP {status}).{said}"
        hint = f"Wait a little, and {_AGAIN}"
    elif status is not None:
        words = f"The Hub refused {repo} (HTTP {status}, while {doing}).{said}"
    elif isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError):
        return InputError(f"{repo}: {without_secrets(str(error))}{state}")
    else:
        words = f"The connection to the Hub broke while {doing} ({type([*_causes(error)][-1]).__name__})."
        hint = f"Check the network, and {_AGAIN}"
    return EnvironmentProblem(f"{words}{state}", hint=hint)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(10):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    from huggingface_hub.errors import HfHubHTTPError

    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError):
            return cause.response.status_code
        if isinstance(cause, OSError | RuntimeError) and (match := _XET_STATUS.search(str(cause))):
            return int(match[1])
    return None


def _is_stale_address(error: HfHubHTTPError) -> bool:
    """A signed upload address has run out (S3 says 403); the next attempt is given new ones."""
    request = error.response.request
    refused = error.response.status_code == 403
    return refused and request.method == "PUT" and "/api/" not in str(request.url)


def _said(error: BaseException) -> str:
    """The Hub's own words, one line of them, as the end of a sentence."""
    for cause in _causes(error):
        words = getattr(cause, "server_message", None)
        if words:
            return f" It says: {without_secrets(str(words).splitlines()[0])[:200].rstrip('.')}."
    return ""
