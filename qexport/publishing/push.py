"""Push: look, plan, upload, one commit, and only then visible to others.

A new repository is private. ``public`` changes that when the commit is there, never before; the visibility
of a repository that exists is otherwise left alone. The token is the Hub client's own business: it finds it
where ``hf auth login`` or ``HF_TOKEN`` put it, and nothing here holds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from qexport import __version__
from qexport.errors import EnvironmentProblem, InputError, QexportError, UsageProblem
from qexport.publishing.client import composed
from qexport.publishing.gate import unproven
from qexport.publishing.plan import PushOptions, PushPlan, check_before, plan_push
from qexport.publishing.problems import reported
from qexport.publishing.remote import Remote, look
from qexport.publishing.send import commit, operations, retried, upload
from qexport.publishing.sums import check_stamps
from qexport.sizes import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from huggingface_hub import HfApi

    from qexport.publishing.plan import Bar


_T = TypeVar("_T")
_ASKING = "asking for the repository"


@dataclass(frozen=True)
class Rehearsal:
    """What a push would do. ``asked`` is ``None`` where the Hub was asked, else why it could not be."""

    plan: PushPlan
    remote: Remote
    asked: str | None = None


@dataclass(frozen=True)
class Pushed:
    """What a push did. ``changed`` is false where the repository already held all of it."""

    plan: PushPlan
    url: str
    commit: str
    private: bool
    changed: bool
    pull_request: str | None = None


def rehearse(options: PushOptions, say: Callable[[str], None], *, bar: Bar | None = None) -> Rehearsal:
    """Plan a push. Writes nothing, here or there; without a network it plans for a new repository.

    Raises:
        InputError, UsageProblem, VerificationError: what the push itself would refuse.
    """
    _check_repo(options)
    check_before(options)
    remote, asked, patience = Remote(), None, min(options.timeout, 30.0)
    with composed(say, bars=False, timeout=patience):
        try:
            with reported(options.repo, _ASKING, invisible=False):
                remote = look(_api(), options.repo, options.branch, patience)
        except QexportError as error:
            asked = error.message
    plan = plan_push(options, remote, real=False, secrets=_secrets(), bar=bar)
    _advise(plan, say)
    return Rehearsal(plan, remote, asked)


def push(
    options: PushOptions, say: Callable[[str], None], *, bar: Bar | None = None, bars: bool = False
) -> Pushed:
    """Push a folder.

    Args:
        say: takes a line about each step.
        bar: makes the bar for hashing; ``bars`` lets the client draw its own for uploads.

    Raises:
        InputError, UsageProblem, VerificationError: the folder, or what it holds, must not be pushed.
        EnvironmentProblem: the Hub, the network, the token; nothing of the push is visible then.
    """
    _check_repo(options)
    check_before(options)
    _check_token()
    api = _api()
    with composed(say, bars=bars, timeout=options.timeout):
        remote = _tried(options, say, _ASKING, lambda: _look(api, options))
        plan = plan_push(options, remote, secrets=_secrets(), bar=bar)
        _advise(plan, say)
        remote = _ready(api, options, remote, say)
        parent = remote.sha
        assert parent is not None
        if remote.private is False and unproven(plan.artifacts):
            say(f"{options.repo} is public: what is not verified will be seen, with the card's warning.")
        made = operations(plan.uploads)
        say(f"uploading {counted(len(made), 'file')} to {options.repo}")
        with reported(options.repo, "uploading"):
            upload(api, options, made, say)
        check_stamps(options.folder, plan.stamps)
        with reported(options.repo, "committing"):
            done = commit(api, options, made, plan.uploads, parent, _message(options, plan))
        private = bool(remote.private)
        if options.public and private:
            _publish(api, options, say)
            private = False
        if options.collection is not None and done.pull_request is None:
            _collect(api, options, options.collection, say)
    return Pushed(
        plan,
        f"{api.endpoint}/{options.repo}",
        done.sha,
        private,
        changed=done.sha != parent,
        pull_request=done.pull_request,
    )


def _advise(plan: PushPlan, say: Callable[[str], None]) -> None:
    if "\nbase_model:" not in plan.card:
        say("The card names no base model, so the Hub lists this under none: --base-model ID.")


def _look(api: HfApi, options: PushOptions) -> Remote:
    return look(api, options.repo, options.branch, options.timeout)


def _ready(api: HfApi, options: PushOptions, remote: Remote, say: Callable[[str], None]) -> Remote:
    """The repository and its branch, made where they are not there."""
    if not remote.exists:
        if options.create_pr:
            raise InputError(
                f"There is no repository {options.repo} to open a pull request on.",
                hint="Leave --create-pr out, and it is made.",
            )
        say(f"creating {options.repo}, private")
        create = partial(api.create_repo, options.repo, private=True, repo_type="model", exist_ok=True)
        _tried(options, say, "creating the repository", create)
        remote = _tried(options, say, _ASKING, lambda: _look(api, options))
    if remote.exists and remote.sha is None and options.branch is not None:
        say(f"creating branch {options.branch}")
        branch = partial(api.create_branch, options.repo, branch=options.branch, exist_ok=True)
        _tried(options, say, "creating the branch", branch)
        remote = _tried(options, say, _ASKING, lambda: _look(api, options))
    if remote.sha is None:
        raise EnvironmentProblem(
            f"The Hub does not say which commit {options.repo} is at.", hint="Try again."
        )
    return remote


def _publish(api: HfApi, options: PushOptions, say: Callable[[str], None]) -> None:
    say(f"making {options.repo} public")
    done = "Everything has been pushed; the repository is still private."
    with reported(options.repo, "making it public", invisible=False, done=done):
        show = partial(api.update_repo_settings, options.repo, private=False)
        retried(show, say, "the change of visibility")


def _collect(api: HfApi, options: PushOptions, collection: str, say: Callable[[str], None]) -> None:
    """Add the repository to a collection; a new one is private, and one that is there stays as it is."""
    done = "Everything has been pushed, and is in no collection yet."
    with reported(options.repo, "adding it to the collection", invisible=False, done=done):
        slug = collection
        if "/" not in collection:
            owner = options.repo.partition("/")[0]
            make = partial(api.create_collection, collection, namespace=owner, private=True, exists_ok=True)
            slug = retried(make, say, "making the collection").slug
        add = partial(api.add_collection_item, slug, options.repo, "model", exists_ok=True)
        found = retried(add, say, "adding it to the collection")
    say(f"in the collection {found.title}: {found.url}")


def _tried(options: PushOptions, say: Callable[[str], None], doing: str, call: Callable[[], _T]) -> _T:
    with reported(options.repo, doing):
        return retried(call, say, doing)


def _api() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(library_name="qexport", library_version=__version__)


def _secrets() -> tuple[str, ...]:
    from huggingface_hub import get_token

    token = get_token()
    return (token,) if token else ()


def _message(options: PushOptions, plan: PushPlan) -> str:
    labels = ", ".join(artifact.label for artifact in plan.artifacts)
    return options.message or f"Add {labels} (qexport {__version__})"


def check_destinations(repos: Iterable[str], *, token: bool) -> None:
    """What a push will need, before the work that comes first: names that the Hub takes, and a token.

    Raises:
        UsageProblem: a repository's name.
        EnvironmentProblem: there is no token.
    """
    for repo in repos:
        _check_name(repo)
    if token:
        _check_token()


def _check_token() -> None:
    if not _secrets():
        raise EnvironmentProblem(
            "There is no access token for the Hub.",
            hint="`hf auth login`, or set HF_TOKEN, with a token that may write.",
        )


def _check_repo(options: PushOptions) -> None:
    _check_name(options.repo)
    if options.public and options.create_pr:
        raise UsageProblem("--public and --create-pr contradict each other")


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
        good = "/" in repo
    except HFValidationError:
        good = False
    if not good:
        raise UsageProblem(f"{repo!r} is not a repository's id", hint="It is named org/name.")
