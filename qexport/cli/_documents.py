"""What ``--json`` prints, as types: docs/json.md is made of them, and tests hold real outputs against them.

A key that is named here stays; later versions may add some. What receipts have, too, is of their types
(docs/receipt.schema.json).
"""

from collections.abc import Mapping
from typing import Annotated, Any, NotRequired, TypedDict

from qexport.doctor.finding import Finding
from qexport.receipt.speeds import Machine, RuntimeVersion, Speed
from qexport.receipt.types import Artifact, Gate
from qexport.receipt.verification import Verification


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
    findings: Annotated[list[Finding], "of the doctor"]
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
    verification: Verification | None


class ExportDocument(TypedDict):
    """`gguf`, `mlx`, `fp8`, `nvfp4`, `demo`; `run` prints a list of them, one for each model."""

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
    findings: list[Finding]
    mtp: Annotated[str, "own, none, dropped, or whence it was grafted"]
    vision: str


class StatisticsDocument(TypedDict):
    """An entry of an importance matrix, as llama-imatrix's `--show-statistics` has it, over its columns."""

    tensor: str
    total: float
    mean: float
    min: float
    max: float
    active: Annotated[float, "share of columns that are not zero"]
    columns: int
    entropy: Annotated[float, "bits"]
    outliers: Annotated[float, "share further than a standard deviation from the mean"]
    cosine_to_previous_layer: float | None
    unseen_experts: Annotated[int, "that no token reached"]
    experts: int


class ImatrixDocument(TypedDict):
    """`imatrix`; of a matrix that is there the last four keys and `statistics`."""

    file: NotRequired[str]
    bytes: NotRequired[int]
    sha256: NotRequired[str]
    corpus: NotRequired[str]
    corpus_sha256: NotRequired[str]
    tokens: NotRequired[int]
    chunk: NotRequired[Annotated[int, "tokens of each"]]
    seed: NotRequired[Annotated[int | None, "of the order of documents; null: they are as they were"]]
    bos: NotRequired[Annotated[int | None, "the id that every chunk begins with"]]
    tokens_sha256: NotRequired[str]
    chats: NotRequired[Annotated[Mapping[str, int], "conversations by how they were rendered"]]
    chat_fallback: NotRequired[Annotated[str | None, "why the model's own template was not used"]]
    device: NotRequired[str]
    precision: NotRequired[str]
    seconds: NotRequired[float]
    tokens_per_second: NotRequired[float]
    sensitivity_tokens: NotRequired[Annotated[int, "that sensitivities are from"]]
    processes: NotRequired[Annotated[int, "that shared the work"]]
    statistics: NotRequired[Annotated[list[StatisticsDocument], "with --show-statistics"]]
    notes: NotRequired[list[str]]
    receipt: NotRequired[Annotated[str, "name of its file"]]
    entries: Annotated[int, "tensors"]
    datasets: list[str]
    chunks: int
    chunk_size: int


class NotRunDocument(TypedDict):
    """What could not be judged."""

    artifact: str
    why: str


class VerifyDocument(TypedDict):
    """`verify` of a folder; of one file or one model its Verification alone."""

    artifacts: list[Verification]
    not_run: list[NotRunDocument]


class BenchDocument(TypedDict):
    """`bench` of one file or one model; of a folder a list of these under `artifacts`."""

    artifact: str
    runtime: RuntimeVersion
    machine: Machine
    threads: Annotated[int, "0: the runtime's own choice"]
    prompts: int
    n_predict: Annotated[int, "the most tokens of an answer"]
    repeats: int
    prompt_tokens: Annotated[int, "of the prompt that reading was measured on"]
    speeds: list[Speed]
    notes: NotRequired[Annotated[list[str], "what could not be measured, and why"]]
    receipt: Annotated[bool, "it was noted there"]


class FactDocument(TypedDict):
    """A line of provenance."""

    what: str
    text: str


class LostDocument(TypedDict):
    """A file that is not what its receipt says any more."""

    file: str
    state: str


class ModelDocument(TypedDict):
    """A model of a report."""

    title: str
    facts: list[FactDocument]
    repairs: Annotated[list[str], "what was wrong with the source"]
    artifacts: Annotated[list[Artifact], "each with its `name`, its file or folder"]
    lost_beside: Annotated[list[LostDocument], "towers, heads and matrices"]


class PairDocument(TypedDict):
    """The same type of two models."""

    kind: str
    label: str
    artifact: str
    other: str
    differing: Annotated[list[str], "settings that are not the same"]


ComparisonDocument = TypedDict("ComparisonDocument", {"with": str, "pairs": list[PairDocument]})
ComparisonDocument.__doc__ = "A model beside the first one."


class ReportDocument(TypedDict):
    """`report`; report.json is the same."""

    schema: int
    title: str
    written: Annotated[str, "the day of the newest artifact; empty where none says it"]
    models: Annotated[list[ModelDocument], "the first is what the report is about"]
    gates: list[Gate]
    comparison: list[ComparisonDocument]


class CallDocument(TypedDict):
    """`run --on hf-jobs --dry-run` prints a list of these."""

    run_job: Annotated[Mapping[str, Any], "as huggingface_hub's run_job takes it; secrets by name"]


class SubmittedDocument(TypedDict):
    """`run --on hf-jobs` prints a list of these."""

    name: str
    id: str
    url: str


class GraftedDocument(TypedDict):
    """What a folder is given of its base."""

    tensors: int
    bytes: int


class KnownFileDocument(TypedDict):
    """A file that would be written."""

    name: str
    bytes: int


class AdoptDocument(TypedDict):
    """`adopt`; of `--dry-run` without `verification`."""

    out: str
    label: Annotated[str, "what its weights are stored as"]
    layout: Annotated[str, "compressed-tensors; modelopt; fp8"]
    adopted: Annotated[str, "the folder that it is made of"]
    bytes: int
    new_bytes: Annotated[int, "of them written: what is linked takes none"]
    files: Annotated[list[KnownFileDocument], "that are new"]
    kept: Annotated[Mapping[str, str], "shards taken as they are: the new name to the old one"]
    link: bool
    mtp: Annotated[Mapping[str, Any], "layers, origin"]
    vision: Annotated[str, "own, none, dropped, or whence it was grafted"]
    grafted: GraftedDocument
    listed: Annotated[list[str], "newly declared as not quantized"]
    changed_files: list[str]
    verification: NotRequired[Annotated[Verification | None, "null with --no-verify"]]


class TextDocument(TypedDict):
    """The text that a head is judged by or tuned to."""

    label: str
    sha256: str
    tokens: int
    documents: Annotated[int | Mapping[str, int], "of a tuning by split"]
    chunks_sha256: NotRequired[str]
    own_tokens: NotRequired[Annotated[Mapping[str, int], "tokens of answers by split"]]
    loops_left_out: NotRequired[Annotated[int, "documents that repeat themselves"]]


class PerVerificationDocument(TypedDict):
    """Tokens per verification, each with `value` and `error`."""

    n_max: Annotated[int, "drafts at a time"]
    argmax: Annotated[Mapping[str, float | None], "of the head's first choices"]
    own: Annotated[Mapping[str, float | None], "of those on the text itself"]
    sampled: Annotated[Mapping[str, float | None], "of drafts that are sampled and tested"]


class HeadFiguresDocument(TypedDict):
    """A head over documents."""

    documents: int
    positions: int
    acceptance: Annotated[list[Mapping[str, float | None]], "value and error, for each token ahead"]
    overlap: Annotated[list[Mapping[str, float | None]], "of the distributions, likewise"]
    tokens_per_verification: PerVerificationDocument


class ScoreDocument(TypedDict):
    """`mtp score`; with `--dry-run`, and of `mtp tune --dry-run`, `text` and `head` alone."""

    text: TextDocument
    head: Annotated[str, "own, or whence it was grafted"]
    domains: NotRequired[Annotated[Mapping[str, HeadFiguresDocument], "all, and by domain"]]


class OwnTextDocument(TypedDict):
    """`mtp generate`."""

    file: str
    answers: int
    tokens: Annotated[int, "of answers"]
    domains: Annotated[Mapping[str, int], "tokens of answers by domain"]
    left_out: Annotated[int, "answers that were empty"]
    sampling: Annotated[Mapping[str, float], "temperature, top_p, top_k, min_p, repeat_penalty"]


class TunedDocument(TypedDict):
    """`mtp tune`: also the receipt (`mtp-head.json`) beside the head."""

    schema: int
    qexport: Annotated[str, "version"]
    result: Annotated[str, "tuned; kept"]
    reason: Annotated[str, "why the old head was kept; empty where it was not"]
    model: str
    base: Annotated[str, "whose head it was"]
    made_of: Annotated[str | None, "a hash of all that it follows from, in recipes"]
    mode: Annotated[str, "argmax; sampling; both"]
    options: Mapping[str, Any]
    seed: int
    text: TextDocument
    base_head_sha256: str
    states_sha256: str
    head_sha256: str
    training: Annotated[Mapping[str, Any] | None, "learning rate, probes, steps, curve"]
    before: Annotated[Mapping[str, HeadFiguresDocument], "of the old head, by domain"]
    after: Annotated[Mapping[str, HeadFiguresDocument] | None, "of the new one, on the same documents"]
    verdict: Annotated[Mapping[str, Any] | None, "accepted, reason, gains, change"]


DOCUMENTS: Mapping[str, type] = {
    "": ErrorDocument,
    "inspect": InspectDocument,
    "init": InitDocument,
    "imatrix": ImatrixDocument,
    "gguf, mlx, fp8, nvfp4, fix --dry-run": PlansDocument,
    "gguf, mlx, fp8, nvfp4, demo, run": ExportDocument,
    "run of several recipes": RecipeDocument,
    "run --on hf-jobs --dry-run": CallDocument,
    "run --on hf-jobs": SubmittedDocument,
    "matrix, run --dry-run": JobDocument,
    "matrix --check": ArrivedDocument,
    "verify": VerifyDocument,
    "bench": BenchDocument,
    "report": ReportDocument,
    "push": PushDocument,
    "fix": FixDocument,
    "adopt": AdoptDocument,
    "mtp score": ScoreDocument,
    "mtp generate": OwnTextDocument,
    "mtp tune": TunedDocument,
}
"""By what prints them; an error any command."""
