"""A folder that somebody else quantized, made whole and proven like our own (:mod:`qexport.formats.adopted`).

The folder is read and never written to: a new one gets its shards, copied or as hard links, the base's head
and tower in a shard of their own, a config whose lists are right, and a receipt. Its size is known first.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from qexport.artifacts.floats import AsFloats
from qexport.artifacts.layout import OnDisk
from qexport.checkpoint.hub import HubCheckpoint
from qexport.checkpoint.local import LocalCheckpoint
from qexport.checkpoint.opening import open_checkpoint
from qexport.doctor.diagnose import diagnose
from qexport.errors import EnvironmentProblem, InputError, UsageProblem
from qexport.formats.adopted import plan_adopted
from qexport.formats.opening import layout_of
from qexport.onepass.disk import free_bytes, make_folder
from qexport.onepass.execute import execute
from qexport.onepass.files import replace_with, silent
from qexport.onepass.sink import WrittenFile
from qexport.receipt.store import write_receipt
from qexport.run.model import sources_of, taken
from qexport.run.receipts import entry_for
from qexport.run.verify import verify_artifact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from qexport.artifacts.artifact import Opened
    from qexport.checkpoint.tensors import Checkpoint
    from qexport.doctor.diagnose import Diagnosis
    from qexport.families.view import ModelView
    from qexport.formats.adopted import Adopted
    from qexport.receipt.types import Artifact
    from qexport.receipt.verification import Verification
    from qexport.verification.options import VerifyOptions


_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Adoption:
    """What is to become of a folder.

    Attributes:
        source: the folder, of a layout that qexport reads: compressed-tensors, ModelOpt, native FP8, AutoAWQ,
            GPTQ.
        base: whose head and tower it takes where it has none: a folder or a Hub id.
        out: the new folder.
        link: hard links in place of copies.
        mtp: what becomes of its head, as for exports.
        engine: what has quantized it, where that is known.
    """

    source: Path
    out: Path
    base: str | None = None
    base_revision: str | None = None
    link: bool = False
    mtp: Literal["auto", "keep", "graft", "drop"] = "auto"
    engine: str = ""

    @cached_property
    def opened(self) -> Opened:
        """Raises InputError: it cannot be read, or its weights are not packed."""
        found = OnDisk(self.source)
        layout = layout_of(found)
        if layout.here == "mlx-lm":
            raise UsageProblem(
                f"{self.source.name} is MLX's, whose readers look for the head in a folder of its own",
                hint="`qexport mlx MODEL --base BASE` writes both, equal to mlx_lm's conversion.",
            )
        if layout.plain:
            raise UsageProblem(
                f"{self.source.name} is not quantized: it is no folder of FP8, NVFP4, AWQ, GPTQ or integers",
                hint="A model of floats takes its base's head with `qexport fix MODEL --base BASE`.",
            )
        return layout.open(found)

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """What the doctor says of it, with what it takes of the base. Raises InputError as the doctor."""
        stored = LocalCheckpoint(self.source, quantized=True)
        floats = AsFloats(self.opened, stored)
        base: Checkpoint | None = None
        if self.base is not None:
            base = open_checkpoint(self.base, revision=self.base_revision)
        wrapper = any(name.startswith("model.language_model.") for name in floats.tensors)
        made = diagnose(
            floats,
            mtp=self.mtp,
            mtp_from=base,
            vision="auto",
            vision_from=base if wrapper else None,
            vision_named=False,
        )
        for hub, names in taken(made):
            assert isinstance(hub, HubCheckpoint)
            hub.fetch(names)
        return made

    @cached_property
    def planned(self) -> Adopted:
        """Raises InputError: see :func:`~qexport.formats.adopted.plan_adopted`."""
        label = self.opened.layout.stored_type(self.opened)
        return plan_adopted(self.opened, self.diagnosis.repaired, label)

    @property
    def size(self) -> int:
        """Bytes of the whole folder."""
        kept = sum((self.source / name).stat().st_size for name in self.planned.kept.values())
        return self.planned.plan.size + kept

    @property
    def new_bytes(self) -> int:
        """Bytes that are written: linked shards take none."""
        return self.planned.plan.size if self.link else self.size

    def to_json(self) -> dict[str, Any]:
        """The plan, for programs."""
        plan = self.planned.plan
        return {
            "out": self.out.name,
            "label": plan.label,
            "bytes": self.size,
            "new_bytes": self.new_bytes,
            "files": [{"name": file.name, "bytes": file.size} for file in plan.files],
            "kept": dict(self.planned.kept),
            "link": self.link,
            **plan.details,
        }


def write_adopted(
    wanted: Adoption, *, threads: int | None = None, say: Callable[[str], None] = silent
) -> Artifact:
    """Write the folder and a receipt that calls nothing verified yet.

    Raises:
        UsageProblem: the folder is there already.
        EnvironmentProblem: there is no room, or links lead to another disk.
    """
    out, planned = wanted.out, wanted.planned
    if out.exists() and any(out.iterdir()):
        raise UsageProblem(f"{out.name} is there already", hint="Name a new folder with --out.")
    sources_of(wanted.diagnosis).refuse(out)
    free = free_bytes(out)
    if wanted.new_bytes > free:
        raise EnvironmentProblem(
            f"{wanted.new_bytes:,} bytes are needed, but only {free:,} are free at {out.name}",
            hint="--link takes no room for what stays as it is; or choose another --out.",
        )
    fresh = not out.exists()
    make_folder(out)
    try:
        kept = [_keep(wanted, name, old, say) for name, old in planned.kept.items()]
        (written,) = execute([planned.plan], out, threads=threads, sources=sources_of(wanted.diagnosis))
    except BaseException:
        for name in planned.kept:
            with suppress(OSError):
                (out / name).unlink()
        if fresh:
            with suppress(OSError):
                out.rmdir()
        raise
    base = wanted.diagnosis.subject.base
    options = {"base": base and base.label, "mtp": wanted.mtp, "engine": wanted.engine or None}
    entry = entry_for(wanted.diagnosis, planned.plan, [*kept, *written], None, options)
    entry = replace(entry, bits_per_weight=round(_bits(out), 4))
    write_receipt(out, [entry], say)
    return entry


def prove_adopted(
    wanted: Adoption,
    entry: Artifact,
    view: ModelView | None,
    options: VerifyOptions,
    *,
    measure: int,
    say: Callable[[str], None] = silent,
) -> Verification:
    """Verify the new folder, and note the verdict in its receipt."""
    report = verify_artifact(wanted.out, view=view, options=options, say=say, measure=measure)
    write_receipt(wanted.out, [replace(entry, verification=report)], say)
    return report


def _bits(folder: Path) -> float:
    found = OnDisk(folder)
    return layout_of(found).describe(found).bits_per_weight


def _keep(wanted: Adoption, name: str, old: str, say: Callable[[str], None]) -> WrittenFile:
    """One shard in its new place, and what is in it."""
    source, target = (wanted.source / old).resolve(), wanted.out / name
    say(f"{'linking' if wanted.link else 'copying'} {old}")
    digest = hashlib.sha256()
    if not wanted.link:
        replace_with(target, _hashed(source, digest))
        return WrittenFile(name, target.stat().st_size, digest.hexdigest())
    for _ in _hashed(source, digest):
        pass
    try:
        os.link(source, target)
    except OSError as error:
        raise EnvironmentProblem(
            f"{old} cannot be linked: {error.strerror or error}", hint="Leave out --link: it is copied."
        ) from error
    return WrittenFile(name, target.stat().st_size, digest.hexdigest())


def _hashed(path: Path, digest: hashlib._Hash) -> Iterator[bytes]:
    """The pieces of a file, each taken into ``digest`` as it passes. Raises InputError: it cannot be read."""
    try:
        with path.open("rb") as file:
            while piece := file.read(_AT_ONCE):
                digest.update(piece)
                yield piece
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror or error}") from error
