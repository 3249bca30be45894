"""What the Hugging Face client raises, as sentences with a next step.

The client's own classes: https://github.com/huggingface/huggingface_hub/blob/main/src/huggingface_hub/errors.py
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from qexport.errors import EnvironmentProblem, InputError, QexportError

_LATER = "Try again: files that are already complete are kept."


def hub_http() -> Any:
    """The HTTP library that the client speaks through, whose errors it passes on: httpx, since 2 httpx2."""
    from huggingface_hub.errors import HfHubHTTPError

    theirs, _ = HfHubHTTPError.__bases__  # the library's HTTPError, and OSError
    return import_module(theirs.__module__.partition(".")[0])


@contextmanager
def hub_errors(repo: str, revision: str | None) -> Iterator[None]:
    """Run Hub calls inside; what they raise comes out as an error of ours.

    Raises:
        InputError: no such repository or revision (or not for this account), a gated one, a bad id.
        EnvironmentProblem: no network, offline mode, the Hub's own failures, no room on the disk.
    """
    import json

    from huggingface_hub import errors

    http = hub_http()
    try:
        yield
    except QexportError:
        raise
    # GatedRepoError is a RepositoryNotFoundError: the order matters.
    except errors.GatedRepoError as error:
        message = f"{repo} is gated: its owner asks for an agreement first."
        hint = (
            f"Accept it on https://huggingface.co/{repo}, then `hf auth login` with a token of that account."
        )
        raise InputError(message, hint=hint) from error
    except errors.RepositoryNotFoundError as error:
        message = f"There is no repository {repo} on the Hub, or it is private."
        raise InputError(message, hint="Check the name; for a private one, `hf auth login` first.") from error
    except errors.DisabledRepoError as error:
        message = f"{repo} has been disabled on the Hub."
        raise InputError(message, hint="Use another copy of the model.") from error
    except errors.RevisionNotFoundError as error:
        message = f"{repo} has no revision {revision!r}."
        raise InputError(message, hint="Give a branch, a tag or a full commit hash of it.") from error
    except errors.RemoteEntryNotFoundError as error:
        message = f"{repo}: a file that the listing names is not there."
        raise InputError(message, hint="Try again; the repository may have just changed.") from error
    except errors.HFValidationError as error:
        message = f"{repo!r} is not a valid repository id."
        raise InputError(message, hint="A repository is named org/name.") from error
    except errors.OfflineModeIsEnabled as error:
        message = f"{repo} cannot be reached: HF_HUB_OFFLINE is set."
        hint = "Unset HF_HUB_OFFLINE, or give a folder that is already here."
        raise EnvironmentProblem(message, hint=hint) from error
    except errors.HfHubHTTPError as error:
        raise _http_problem(repo, error.response.status_code) from error
    except (errors.LocalEntryNotFoundError, errors.FileMetadataError, http.HTTPError) as error:
        message = f"{repo} cannot be reached: no answer from the Hub ({_root(error)})."
        hint = f"Check the network, proxy and HF_ENDPOINT. {_LATER}"
        raise EnvironmentProblem(message, hint=hint) from error
    except (json.JSONDecodeError, http.InvalidURL) as error:
        message = f"{repo} cannot be read: the answer is not a Hub's."
        raise EnvironmentProblem(message, hint="Check HF_ENDPOINT and the proxy.") from error
    except OSError as error:
        # The message may hold a path of this machine; the reason alone does not.
        why = error.strerror or "a file did not arrive whole"
        raise EnvironmentProblem(f"{repo} could not be downloaded: {why}.", hint=_LATER) from error


def _http_problem(repo: str, status: int) -> QexportError:
    if status in (401, 403):
        message = f"{repo} is not open to this account (HTTP {status})."
        return InputError(message, hint="`hf auth login` with a token that may read it.")
    if status == 404:
        return InputError(f"{repo} was not found on the Hub (HTTP 404).", hint="Check name and revision.")
    if status == 429:
        hint = "Wait a few minutes; `hf auth login` raises the limit."
        return EnvironmentProblem(f"The Hub limits how often {repo} may be asked for (HTTP 429).", hint=hint)
    return EnvironmentProblem(f"The Hub failed to serve {repo} (HTTP {status}).", hint=f"Wait. {_LATER}")


def _root(error: BaseException) -> str:
    """The class of the first cause, such as ``ConnectError``; messages of the client may hold paths."""
    seen = 0
    while error.__cause__ is not None and seen < 10:
        error, seen = error.__cause__, seen + 1
    return type(error).__name__
