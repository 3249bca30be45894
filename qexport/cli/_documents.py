"""What ``--json`` prints, as types: docs/json.md is made of them, and tests hold real outputs against them.

A key that is named here stays; later versions may add some. What comes from a receipt has its own schema
(docs/receipt.schema.json) and is only named.
"""

from collections.abc import Mapping
from typing import Annotated, Any, NotRequired, TypedDict

Receipts = Mapping[str, Any]
"""As docs/receipt.schema.json has it."""


class ErrorDocument(TypedDict):
    """Any command that ends before it has printed its document."""

    error: Annotated[str, "what is wrong"]
    hint: Annotated[str | None, "the next step"]
    exit_code: int


class FileDocument(TypedDict):
    """A file that was written, or would be sent."""

    name: Annotated[str, "relative to its folder"]
    bytes: int
    sha256: str


class FormatDocument(TypedDict):
    """What a model would weigh in a format."""

    format: str
    bytes: int
    bits_per_weight: float


class InspectDocument(TypedDict):
    """`qexport inspect`."""

    label: str
    family: str
    architecture: str
    multimodal: bool
    layers: Annotated[Mapping[str, int], "number of each kind"]
    parameters: Annotated[Mapping[str, int], "total, trunk, mtp, vision, active"]
    dtypes: Annotated[Mapping[str, int], "stored values by type"]
    files: Annotated[Mapping[str, int], "bytes of tensors by file"]
    tied: Annotated[bool, "the output is the embedding"]
    vocabulary: int
    context_length: int
    experts: int | None
    experts_per_token: int | None
    mtp: Annotated[int, "layers of the MTP head that there are tensors for"]
    tokenizer: str
    chat_template: Annotated[list[str], "where templates are"]
    findings: Annotated[list[Receipts], "of the doctor"]
    formats: list[FormatDocument]
    formats_problem: Annotated[str | None, "why there are no sizes of files"]
    curves: NotRequired[Annotated[list[Mapping[str, Any]], "with --curve"]]


class InitDocument(TypedDict):
    """`qexport init`."""

    recipe: Annotated[str, "the file"]
    artifacts: Annotated[list[str], "what --only calls them"]
    text: str


class PlannedFileDocument(TypedDict):
    """A file of a plan."""

    name: str
    bytes: int
    header_bytes: int


class TensorDocument(TypedDict):
    """A tensor's place."""

    name: str
    shape: list[int]
    type: Annotated[str, "as it is stored"]
    file: str
    offset: int
    bytes: int
    source: Annotated[list[str], "tensors of the checkpoint that it is made of"]


class PlanDocument(TypedDict):
    """An artifact that would be written."""

    kind: str
    label: str
    bytes: int
    bits_per_weight: float
    files: list[PlannedFileDocument]
    tensors: list[TensorDocument]
    notes: list[str]
    details: Annotated[Mapping[str, Any], "facts of the format"]
    assignment: Annotated[Mapping[str, Any] | None, "as --types-from takes it"]


class PlansDocument(TypedDict):
    """`gguf`, `mlx`, `fp8`, `nvfp4`, `fix` with `--dry-run`."""

    out: str
    bytes: int
    free_bytes: int
    fits: bool
    artifacts: list[PlanDocument]


class WrittenDocument(TypedDict):
    """An artifact that was written, or was there."""

    kind: str
    label: str
    folder: str
    files: list[FileDocument]
    state: Annotated[str, "passed; failed; not run; ran, not compared"]
    verification: Receipts | None


class ExportDocument(TypedDict):
    """`gguf`, `mlx`, `fp8`, `nvfp4`; `run` prints a list of them, one for each model."""

    receipt: Annotated[str, "name of its file"]
    artifacts: list[WrittenDocument]


class RecipeDocument(TypedDict):
    """`run` with several recipes prints a list of these."""

    recipe: str
    state: Annotated[str, "that of its worst artifact; failed with any error; unchanged; not run"]
    exit_code: int
    error: str | None
    hint: str | None
    models: list[ExportDocument]


class FolderDocument(TypedDict):
    """A folder that a job makes."""

    folder: str
    repo: Annotated[str | None, "that the recipe has for it"]


class JobDocument(TypedDict):
    """`matrix --format json` and `run --dry-run` print a list; `--format github` has it under `include`."""

    name: Annotated[str, "unique, fit for file names"]
    recipe: str
    only: Annotated[str, "words for --only"]
    command: str
    folders: list[FolderDocument]
    output_bytes: int
    disk_bytes: int
    memory_bytes: int
    download_bytes: int
    seconds: Annotated[int, "an estimate"]
    time: Annotated[str, "the same in words"]
    exact: Annotated[bool, "sizes come from plans"]
    verify: Annotated[bool, "the recipe wants any of it run"]
    together: Annotated[str, "names of all jobs of the recipe, with spaces between"]


class ArrivedDocument(TypedDict):
    """`matrix --check DIR` prints a list of these."""

    unit: str
    folder: str
    bytes: int
    state: Annotated[str, "as of artifacts; missing; damaged"]
    why: str


class PushDocument(TypedDict):
    """`push`; a list with `--recipe`. Keys below `left_out` depend on `dry_run`."""

    dry_run: bool
    repo: str
    bytes: int
    files: list[FileDocument]
    artifacts: list[Mapping[str, Any]]
    already_there: list[Mapping[str, Any]]
    unverified: list[str]
    not_hashed: list[str]
    left_out: list[Mapping[str, str]]
    branch: NotRequired[str | None]
    collection: NotRequired[Annotated[str | None, "title or slug"]]
    repository: NotRequired[Mapping[str, Any]]
    not_asked: NotRequired[Annotated[str | None, "why the Hub could not be asked"]]
    card: NotRequired[str]
    url: NotRequired[str]
    commit: NotRequired[str]
    private: NotRequired[bool]
    changed: NotRequired[Annotated[bool, "false: it held all of it already"]]
    pull_request: NotRequired[str | None]


class FixDocument(TypedDict):
    """`fix`."""

    out: str
    receipt: str
    files: list[FileDocument]
    findings: list[Receipts]
    mtp: Annotated[str, "own, none, dropped, or whence it was grafted"]
    vision: str


DOCUMENTS: Mapping[str, type] = {
    "an error": ErrorDocument,
    "inspect": InspectDocument,
    "init": InitDocument,
    "--dry-run": PlansDocument,
    "gguf, mlx, fp8, nvfp4": ExportDocument,
    "run with several recipes": RecipeDocument,
    "matrix": JobDocument,
    "matrix --check": ArrivedDocument,
    "push": PushDocument,
    "fix": FixDocument,
}
"""By what prints them. Those of `verify`, `report` and `bench` are parts of receipts."""
