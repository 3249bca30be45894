"""The push as a value: every file that goes, with size and hash, and the card. ``--dry-run`` prints it."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qexport.formats.registry import FORMATS
from qexport.publishing.card import CardOptions, render_card
from qexport.publishing.folder import LeftOut, survey
from qexport.publishing.gate import check_labels, check_one_model, check_proofs, unproven
from qexport.publishing.kept import KEEP_START, Kept, read_kept
from qexport.publishing.leaks import check_text, is_small_file
from qexport.publishing.ollama import PARAMS_NAME, ollama_params
from qexport.publishing.presets import PRESETS_NAME, presets
from qexport.publishing.remote import still_there
from qexport.publishing.sums import check_stamps, stamp, sums_text, to_hash
from qexport.receipt.folder import known_in, select
from qexport.receipt.names import CARD_NAME, RECEIPT_NAME, SUMS_NAME
from qexport.receipt.on_disk import check_hashes, sha256_of
from qexport.receipt.store import receipt_bytes
from qexport.receipt.towers import seen_through
from qexport.receipt.types import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from qexport.progress import Progress
    from qexport.publishing.remote import Remote
    from qexport.receipt.types import Artifact

    Bar = Callable[[int], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class PushOptions:
    """What to push, and where.

    Attributes:
        folder: what an export wrote.
        repo: ``org/name``.
        branch: of the repository; its main one when not given.
        only: labels of the artifacts that go; all when empty.
        include: names or patterns of files that no receipt knows and that shall go, too.
        allow_unverified: push what was not run, or not compared; the card says so.
        allow_failed: push what has failed, too.
        public: make the repository public once the commit is there; needs everything to have passed.
        rehash: in a rehearsal, too, read every file and compare it with its receipt, as a push does.
        replace_card: a card that qexport did not write may be replaced.
        base_model, quantized_by: for the card; from receipts and ``repo`` when not given.
        front_matter: keys of the card that outrank the source's own: license, language, tags.
        message: of the commit.
        create_pr: offer the files as a pull request.
        collection: that the repository is added to: a title, whose collection is made where the owner has
            none of it, or the slug of one that is there (``org/title-0123abcd``).
        ollama: what the model's own settings recommend for sampling goes along as Ollama reads it.
        presets: a file goes along from which llama.cpp's router serves every GGUF file.
        workers: files sent at a time.
        timeout: seconds without an answer before a request counts as broken.
    """

    folder: Path
    repo: str
    branch: str | None = None
    only: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    allow_unverified: bool = False
    allow_failed: bool = False
    public: bool = False
    rehash: bool = False
    replace_card: bool = False
    base_model: str | None = None
    quantized_by: str | None = None
    front_matter: Mapping[str, Any] = field(default_factory=dict)
    message: str | None = None
    create_pr: bool = False
    collection: str | None = None
    ollama: bool = False
    presets: bool = False
    workers: int = 5
    timeout: float = 120.0


@dataclass(frozen=True)
class Upload:
    """A file to send: a path here, or ``data`` that was made for the push."""

    name: str
    size: int
    sha256: str
    path: Path | None = None
    data: bytes | None = None

    def content(self) -> bytes:
        """All of it; for small files."""
        if self.data is not None:
            return self.data
        assert self.path is not None
        return self.path.read_bytes()


@dataclass(frozen=True)
class PushPlan:
    """What a push does.

    Attributes:
        earlier: artifacts of earlier pushes, which stay and are on the card, too.
        unread: files of a rehearsal whose hash is the receipt's word.
        stamps: of every file, from before it was read.
    """

    repo: str
    uploads: tuple[Upload, ...]
    artifacts: tuple[Artifact, ...]
    earlier: tuple[Artifact, ...]
    left_out: tuple[LeftOut, ...]
    card: str
    unread: tuple[str, ...] = ()
    stamps: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(upload.size for upload in self.uploads)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, without paths of this machine."""
        return {
            "repo": self.repo,
            "bytes": self.size,
            "files": [{"name": u.name, "bytes": u.size, "sha256": u.sha256} for u in self.uploads],
            "artifacts": [_artifact_json(artifact) for artifact in self.artifacts],
            "already_there": [_artifact_json(artifact) for artifact in self.earlier],
            "unverified": [artifact.label for artifact in unproven(self.artifacts)],
            "not_hashed": list(self.unread),
            "left_out": [{"name": left.name, "why": left.why} for left in self.left_out],
        }


def check_before(options: PushOptions) -> tuple[Artifact, ...]:
    """Everything that can be refused without asking the Hub; returns the chosen artifacts.

    Raises:
        InputError, UsageProblem, VerificationError: see the gate, the survey and the receipts.
    """
    every = known_in(options.folder).artifacts
    chosen = select(every, options.only)
    check_labels(chosen)
    check_one_model(chosen)
    survey(options.folder, chosen, every, options.include)
    check_proofs(chosen, options)
    return chosen


def plan_push(
    options: PushOptions, remote: Remote, *, real: bool = True, secrets: Iterable[str] = (), bar: Bar | None
) -> PushPlan:
    """Plan the push: read what goes, and compare it with its receipt.

    Args:
        real: read everything; a rehearsal reads large files only where their hash is in doubt.
        remote: what the repository holds.
        secrets: texts that no file may hold.
        bar: makes a progress bar for so many bytes to be hashed, where there is somebody to see it.

    Raises:
        InputError, UsageProblem, VerificationError: what is in the way.
    """
    folder, secrets = options.folder, tuple(secrets)
    every = known_in(folder).artifacts
    chosen = select(every, options.only)
    found = survey(folder, chosen, every, options.include)
    doubtful = to_hash(folder, chosen, rehash=real or options.rehash)
    hashes = {file.name: file.sha256 for artifact in chosen for file in artifact.files}
    sizes = {name: (folder / name).stat().st_size for name in (*hashes, *found.included)}
    stamps = {name: stamp(folder / name) for name in sizes}
    amount = sum(sizes[name] for name in (*doubtful, *found.included))
    with bar(amount) if bar else nullcontext() as progress:
        check_hashes(folder, doubtful, progress)
        hashes |= {name: sha256_of(folder / name, progress) for name in found.included}
    for name in hashes:
        if is_small_file(name, sizes[name]):
            check_text(name, (folder / name).read_bytes(), secrets=secrets)
    check_stamps(folder, stamps)

    earlier = still_there(remote, chosen)
    if options.public:
        check_proofs(earlier, options)
    together = seen_through((*earlier, *chosen))
    receipt = receipt_bytes(Receipt(together))
    named = {file.name: file.sha256 for a in earlier for file in a.files} | hashes
    extra = {PARAMS_NAME: data} if options.ollama and (data := ollama_params(together)) else {}
    if options.presets and (data := presets(together, options.repo)):
        extra[PRESETS_NAME] = data
    named |= {name: _sha256(data) for name, data in extra.items()}
    sums = sums_text(named | {RECEIPT_NAME: _sha256(receipt)}).encode()
    kept, unused = _kept(options, remote)
    said = (options.base_model, options.quantized_by, kept, found.included, options.front_matter)
    card = render_card(together, CardOptions(options.repo, *said, drafter=_drafter(options))).encode()
    check_text(RECEIPT_NAME, receipt, secrets=secrets)
    check_text(CARD_NAME, card, secrets=secrets, prose=True)
    uploads = [
        Upload(name, sizes[name], sha256, path=folder / name) for name, sha256 in sorted(hashes.items())
    ]
    made = (*extra.items(), (CARD_NAME, card), (SUMS_NAME, sums), (RECEIPT_NAME, receipt))
    uploads += [Upload(name, len(data), _sha256(data), data=data) for name, data in made]
    unread = tuple(sorted(set(hashes) - set(doubtful) - set(found.included)))
    left_out = (*found.left_out, *unused)
    return PushPlan(options.repo, tuple(uploads), chosen, earlier, left_out, card.decode(), unread, stamps)


def _kept(options: PushOptions, remote: Remote) -> tuple[Kept, tuple[LeftOut, ...]]:
    """What the card keeps: of the repository's, or of the folder's where that has none.

    A card here without markers is left alone and said: only one that would be replaced must be refused.
    """
    local = options.folder / CARD_NAME
    text = local.read_text(encoding="utf-8", errors="replace") if local.is_file() else None
    if remote.card is None and text is not None and KEEP_START in text:
        return read_kept(text, "the folder"), ()
    unused = (LeftOut(CARD_NAME, "the card is made from receipts"),) if text is not None else ()
    return read_kept(remote.card, options.repo, replace=options.replace_card), unused


def _drafter(options: PushOptions) -> str:
    """The repository of the head that lies in a folder beside this one: pushes name it like the folder."""
    endings = (ending for known in FORMATS.values() for ending in known.beside.values())
    folder = options.folder.absolute()
    there = (ending for ending in endings if folder.with_name(f"{folder.name}{ending}").is_dir())
    return next((f"{options.repo}{ending}" for ending in there), "")


def _artifact_json(artifact: Artifact) -> dict[str, Any]:
    return {
        "kind": artifact.kind,
        "label": artifact.label,
        "bytes": artifact.size,
        "state": artifact.state.value,
        "verdict": artifact.outcome,
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
