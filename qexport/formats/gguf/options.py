"""What the user may choose about a GGUF file: a value, made by the command line or by a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.assign.aim import Aimed
from qexport.errors import UsageProblem
from qexport.formats.gguf.file_types import file_type

if TYPE_CHECKING:
    from pathlib import Path

    from qexport.assign.assignment import Assignment
    from qexport.evidence.imatrix_file import ImportanceMatrix


DRAFTER = "drafter"
MTP_LAYOUTS = ("embedded", DRAFTER)
FOLDERS = ("split", "all", "none")
_HEAD_TYPE = "Q8_0"


@dataclass(frozen=True)
class GgufOptions(Aimed):
    """Options that hold for every file of one export.

    Types, each a file of its own, or an aim (:class:`~qexport.assign.aim.Aimed`): one file.

    Attributes:
        types: file types, such as ``Q4_K_M``, each a file of its own.
        tensor_types: (regular expression, type) pairs; the first that matches a GGUF tensor name wins.
        output_type, embedding_type: types of ``output.weight`` and ``token_embd.weight``.
        mtp: where the MTP head goes: ``embedded`` among the model's tensors, or ``drafter``: a file of its
            own beside them, one for all types.
        mtp_type: type of the MTP block: ``None`` for the mixture's own but never below Q6_K, ``mixture``
            for llama.cpp's own choice, or a type name. Of a file of its own its type, Q8_0 for ``None``.
        imatrix: an importance matrix, or ``None``.
        feedback: let later columns make up for what rounding earlier ones got wrong; needs a text.
        pre_tokenizer: llama.cpp's name of the BPE pre-tokenizer, to override what was recognised.
        split_max_size: bytes of tensors per shard; 0 for one file. ``None``: a file of more than 50 GB is
            divided into smaller ones (:data:`~qexport.formats.gguf.split.LARGEST`).
        folders: which files lie in a folder that is called like their type: ``split`` ones, as publishers
            have it, ``all``, or ``none``.
        model_name: ``general.name``, instead of what the folder or model card says.
        file_name: file names: ``{name}`` and ``{type}`` are filled in; what readers of GGUF files would take
            for something else is changed (``file_name.py``).
        quantized_by: ``general.quantized_by``.
        mmproj: types of the vision tower's own file, each a file: F32, F16, BF16, Q8_0. Without any BF16,
            where there is a tower; no_mmproj: none.
        types_from: which type each tensor gets (``qexport.assign``): in a file, or in memory, or another
            GGUF; options that name types win. Those of the MTP block go into its own file, where it has one.
    """

    types: tuple[str, ...] = ()
    tensor_types: tuple[tuple[str, str], ...] = ()
    output_type: str | None = None
    embedding_type: str | None = None
    mtp: str = "embedded"
    mtp_type: str | None = None
    imatrix: ImportanceMatrix | None = None
    feedback: bool = False
    pre_tokenizer: str | None = None
    split_max_size: int | None = None
    folders: str = "split"
    model_name: str | None = None
    file_name: str = "{name}-{type}"
    quantized_by: str | None = None
    mmproj: tuple[str, ...] = ()
    no_mmproj: bool = False
    types_from: Path | Assignment | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, known in (
            ("--mtp-layout", self.mtp, MTP_LAYOUTS),
            ("--folders", self.folders, FOLDERS),
        ):
            if value not in known:
                raise UsageProblem(f"{name} is {value}; it may be {', '.join(known)}")


def head_type(options: GgufOptions) -> str:
    """The type of the head's own file; empty where it has none.

    Raises:
        UsageProblem: there is no such type of files.
    """
    if options.mtp != DRAFTER:
        return ""
    named = options.mtp_type or _HEAD_TYPE
    if named.lower() == "mixture":
        raise UsageProblem(
            "--mtp-type mixture is of a head among the model's tensors",
            hint=f"Of a file of its own name the type, or leave it out ({_HEAD_TYPE}).",
        )
    return file_type(named).name
