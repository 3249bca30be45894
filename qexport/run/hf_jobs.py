"""A recipe's jobs on Hugging Face Jobs: the groups of a CI matrix, submitted through the Hub's client.

A job gets the recipe as text in its environment, installs qexport, and runs it with the words of its group.
Its disk is gone when it ends, so results go to a bucket that is mounted, a folder for each job (one that died
finds there what it had written), or are published by the run itself. Secrets are named here and read from
this environment when a job is submitted; neither a dry run nor a message shows them. Nothing here waits for a
job: ``hf jobs`` does.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport import __version__
from qexport.checkpoint.hub_errors import hub_errors
from qexport.errors import EnvironmentProblem, UsageProblem
from qexport.run.install import installable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.recipe.recipe import Recipe
    from qexport.run.jobs import Job


OUT = "/out"
# $0 is the recipe's name; the rest goes to `qexport run` as it is, so nothing needs quoting.
_SCRIPT = (
    'set -eu; printf %s "$QEXPORT_RECIPE" > "$0"; pip install --quiet "$QEXPORT_INSTALL"; '
    'exec qexport run "$0" "$@"'
)
_SLUG = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class HfJobs:
    """Where and how.

    Attributes:
        flavor: hardware, as ``hf jobs hardware`` lists it.
        image: a Docker image with Python 3.11 or newer.
        timeout: such as ``6h``; the Hub's own default of half an hour is too short for most models.
        namespace: an organisation; the token's account when not given.
        secrets: names of environment variables that the job gets as secrets.
        bucket: ``org/name`` of a bucket for results; a folder of it for each job is mounted at ``/out``.
        install: what pip installs; the same as here when not given.
    """

    flavor: str = "cpu-performance"
    image: str = "python:3.12"
    timeout: str = "6h"
    namespace: str | None = None
    secrets: tuple[str, ...] = ("HF_TOKEN",)
    bucket: str | None = None
    install: str | None = None


@dataclass(frozen=True)
class Call:
    """One call of ``huggingface_hub.run_job``, but for the secrets' values."""

    job: Job
    arguments: dict[str, Any]
    secrets: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The call as it would be made; secrets by name."""
        secrets = dict.fromkeys(self.secrets, "(from this environment)")
        return {"run_job": {**self.arguments, "secrets": secrets}}


@dataclass(frozen=True)
class Submitted:
    """A job that the Hub has taken."""

    name: str
    id: str
    url: str


def check_portable(recipe: Recipe) -> None:
    """Raise UsageProblem where a recipe names what only this machine has."""
    models = [model for each in recipe.subjects for model in each.choice.models]
    here = [Path(model).name for model in models if Path(model).is_absolute() or Path(model).exists()]
    calibration = recipe.calibration
    if calibration is not None:
        here += [path.name for path in calibration.files]
    if here:
        raise UsageProblem(
            f"{', '.join(here)}: on this machine, where a job on the Hub cannot have it",
            hint="Push it to the Hub and name it as org/name; or run here.",
        )


def calls_for(
    recipe: Recipe, text: str, jobs: Sequence[Job], options: HfJobs, overrides: Sequence[str] = ()
) -> list[Call]:
    """The calls, one for each job.

    Args:
        text: the recipe, as its file has it.
        overrides: what ``--set`` was given.

    Raises:
        UsageProblem: results would be lost, the recipe needs this machine, or no other can install qexport.
    """
    check_portable(recipe)
    if options.bucket is None and recipe.publish is None:
        raise UsageProblem(
            "the results would be gone with the job: there is no bucket, and no 'publish:' in the recipe",
            hint="Name a bucket with --hf-bucket org/name.",
        )
    options = replace(options, install=options.install or installable())
    name = _SLUG.sub("-", Path(recipe.label).stem) + ".yaml"
    return [_call(recipe, name, text, job, options, overrides) for job in jobs]


def submit(call: Call, *, endpoint: str | None = None) -> Submitted:
    """Submit one job.

    Raises:
        UsageProblem: a secret is not set here.
        InputError, EnvironmentProblem: the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    secrets = {name: _secret(name) for name in call.secrets}
    api = HfApi(endpoint=endpoint, library_name="qexport", library_version=__version__)
    where = call.arguments["namespace"] or "your account"
    with hub_errors(f"jobs of {where}", None):
        try:
            made = api.run_job(**_with_volumes(call.arguments), secrets=secrets)
        except HfHubHTTPError as error:
            if error.response.status_code in (400, 402, 403, 422):
                reason = error.server_message or f"HTTP {error.response.status_code}"
                raise EnvironmentProblem(
                    f"the Hub does not take the job {call.job.name}: {_without(reason, secrets.values())}",
                    hint="Jobs need a paid plan or credits, and a token that may start them; "
                    "`hf jobs hardware` lists flavors.",
                ) from None
            raise
    return Submitted(call.job.name, made.id, made.url)


def _call(recipe: Recipe, name: str, text: str, job: Job, options: HfJobs, overrides: Sequence[str]) -> Call:
    words = [word for only in job.only for word in ("--only", only)]
    words += [word for given in overrides for word in ("--set", given)]
    stem = _SLUG.sub("-", Path(recipe.label).stem)
    mounted = {"type": "bucket", "source": options.bucket, "mount_path": OUT, "path": f"{stem}/{job.name}"}
    arguments: dict[str, Any] = {
        "image": options.image,
        "command": ["bash", "-c", _SCRIPT, name, *words, "--out", OUT],
        "env": {"QEXPORT_RECIPE": text, "QEXPORT_INSTALL": options.install},
        "flavor": options.flavor,
        "timeout": options.timeout,
        "name": job.name,
        "labels": {"qexport": stem},
        "volumes": [mounted] if options.bucket else [],
        "namespace": options.namespace,
    }
    return Call(job, arguments, options.secrets)


def _with_volumes(arguments: dict[str, Any]) -> dict[str, Any]:
    from huggingface_hub import Volume

    volumes = [Volume(**volume) for volume in arguments["volumes"]]
    return {**arguments, "volumes": volumes or None}


def _secret(name: str) -> str:
    from huggingface_hub import get_token

    value = os.environ.get(name) or (get_token() if name == "HF_TOKEN" else None)
    if not value:
        login = "`hf auth login`, or set it" if name == "HF_TOKEN" else "Set it"
        raise UsageProblem(f"the secret {name} is not set here", hint=f"{login}, or leave it out.")
    return value


def _without(text: str, secrets: Any) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
