"""What is examined: a checkpoint's config, its tensors under canonical names, and its small files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from qexport.checkpoint.chat_templates import ChatTemplates, read_templates, template_files
from qexport.checkpoint.config import TEXT_KEYS, read_json, text_config
from qexport.checkpoint.tensors import FLOAT_DTYPES, Checkpoint, LogicalTensor
from qexport.doctor.turned import experts_turned, turned_back
from qexport.errors import InputError
from qexport.families.family import Family
from qexport.families.known import family_of
from qexport.families.names import SpelledName, canonical_name, is_ignorable, outer_wrapper, stray_fronts
from qexport.families.tokenizer import TokenizerJson, tokenizer_json
from qexport.families.values import Typed, typed

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
TOKENIZER_CONFIG, GENERATION_CONFIG = "tokenizer_config.json", "generation_config.json"
# A value head that trl trains beside the model; nothing that runs the model reads it.
VALUE_HEAD = "v_head."
# A run of this many rows is compared at a time: 4096 rows of 5120 bf16 values are 40 MB.
_RUN = 4096


@dataclass(frozen=True)
class Twins:
    """Two stored names of one tensor; the second is left out. ``compared``: their bits were found equal."""

    canonical: str
    kept: str
    dropped: str
    compared: bool


@dataclass(frozen=True)
class Subject:
    """A checkpoint as it is, before any repair.

    Attributes:
        config: the parsed ``config.json``.
        text: the language model's part of it (``config`` itself in a flat one).
        tensors: stored tensors by canonical name, in stored order; buffers that no reader needs are left out.
        spellings: how each stored name was read.
        twins: tensors that are there twice.
        base: the checkpoint that the MTP head may be taken from; ``sight`` the one for the vision tower,
            whose processor files repairs may copy.
        retyped: what config.json says in the wrong type, and ``config`` in the right one.
        unusable: what nothing can be made of; ``config`` is without it.
    """

    checkpoint: Checkpoint
    family: Family
    config: Mapping[str, Any]
    text: Mapping[str, Any]
    tensors: Mapping[str, LogicalTensor]
    spellings: Mapping[str, SpelledName]
    twins: tuple[Twins, ...] = ()
    base: Checkpoint | None = None
    sight: Checkpoint | None = None
    retyped: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()

    @property
    def nested(self) -> bool:
        """Whether the language model's hyper-parameters are one level down, as in a multimodal config."""
        return self.text is not self.config

    @cached_property
    def vision(self) -> tuple[str, ...]:
        """Canonical names of the vision tensors."""
        return tuple(s.canonical for s in self.spellings.values() if s.vision and s.canonical in self.tensors)

    @cached_property
    def head(self) -> Mapping[str, int]:
        """Canonical names of the MTP head, each with its layer."""
        return self.family.head_names(self.tensors, self.text)

    @property
    def has_vision_config(self) -> bool:
        return isinstance(self.config.get("vision_config"), Mapping)

    @property
    def says_wrapper(self) -> bool:
        """Whether config.json has the multimodal form, vision tensors or not."""
        return self.nested or self.has_vision_config

    @property
    def form(self) -> str:
        """config.json's form in a word."""
        return "multimodal" if self.says_wrapper else "text-only"

    @property
    def wants_wrapper(self) -> bool:
        """Whether the repaired checkpoint takes the multimodal form: it has a vision tower and its config."""
        return bool(self.vision) and self.has_vision_config and self.foreign is None

    @property
    def foreign(self) -> str | None:
        """What the multimodal model around the language model calls itself, where it is not the family's."""
        family, word = self.family, self.config.get("model_type")
        named = self.config.get("architectures") or []
        if not self.says_wrapper:
            return None
        own = word in family.model_types or word == family.wrapper_model_type
        own = own or family.wrapper_arch in named or family.causal_arch in named or not (word or named)
        return None if own and family.wrapper_arch is not None else str(word or next(iter(named), "a model"))

    @cached_property
    def dtype(self) -> str:
        """The dtype of most values of the language model."""
        sizes: Counter[str] = Counter()
        for name, tensor in self.tensors.items():
            if name.startswith(("model.", "lm_head.")):
                sizes[tensor.dtype] += tensor.numel
        return sizes.most_common(1)[0][0] if sizes else FLOAT_DTYPES[0]

    @cached_property
    def head_equals_embedding(self) -> bool | None:
        """Whether ``lm_head`` and the embedding hold the same bits; ``None`` if the data is not at hand."""
        if HEAD not in self.tensors or EMBEDDING not in self.tensors:
            return None
        return same_bits(self.tensors[HEAD], self.tensors[EMBEDDING])

    def json_file(self, name: str) -> Mapping[str, Any]:
        """The parsed small file ``name``, empty where there is none; not to be changed."""
        if name == "tokenizer.json":
            return {} if self.tokenizer is None else self.tokenizer.document
        if name not in self._parsed:
            self._parsed[name] = read_json(self.checkpoint, name) if name in self.checkpoint.files else {}
        return self._parsed[name]

    @property
    def settings(self) -> Mapping[str, Any]:
        """``tokenizer_config.json``."""
        return self.json_file(TOKENIZER_CONFIG)

    @property
    def generation(self) -> Mapping[str, Any]:
        """``generation_config.json``."""
        return self.json_file(GENERATION_CONFIG)

    @cached_property
    def tokenizer(self) -> TokenizerJson | None:
        """``tokenizer.json``, or ``None`` where there is none."""
        if "tokenizer.json" not in self.checkpoint.files:
            return None
        data = self.checkpoint.read_file("tokenizer.json")
        return tokenizer_json(data, f"{self.checkpoint.label}: tokenizer.json")

    @cached_property
    def templates(self) -> ChatTemplates:
        """The chat templates, wherever they are."""
        names = template_files(self.checkpoint.files)
        files = {name: self.checkpoint.read_file(name) for name in names}
        return read_templates(files, self.checkpoint.label)

    @cached_property
    def _parsed(self) -> dict[str, Mapping[str, Any]]:
        return {}


def examine(
    checkpoint: Checkpoint, *, base: Checkpoint | None = None, sight: Checkpoint | None = None
) -> Subject:
    """Read config.json and give every stored tensor its canonical name; no tensor data is needed.

    Raises:
        InputError: no usable config.json, an unknown family, or two names for one tensor with different
            contents.
    """
    given = read_json(checkpoint, "config.json")
    family = family_of(given)
    door = _typed(given, family)
    config = door.values
    stored = [name for name in checkpoint.tensors if not is_ignorable(name)]
    text = text_config(config)
    tied = text.get("tie_word_embeddings", family.defaults.get("tie_word_embeddings", False))
    outer = outer_wrapper(stored)
    spellings = {name: canonical_name(name.removeprefix(outer)) for name in stored}
    fronts = stray_fronts([spelled.canonical for spelled in spellings.values()], tied=bool(tied))
    for name, spelled in spellings.items() if outer or fronts else ():
        if (front := fronts.get(spelled.canonical)) is not None:
            peft, spelled = spelled.peft, canonical_name(spelled.canonical.removeprefix(front))
            spellings[name] = replace(spelled, wrapped=True, peft=peft)
        elif outer:
            spellings[name] = replace(spelled, wrapped=True)
    for name, spelled in spellings.items():
        if spelled.vision and (own := family.own_tower_name(spelled.canonical)) != spelled.canonical:
            spellings[name] = replace(spelled, canonical=own)
    canonical = {name: spelled.canonical for name, spelled in spellings.items()}
    checkpoint = turned_back(checkpoint, canonical)
    if family.turned_experts:
        width = text.get("moe_intermediate_size", family.defaults["moe_intermediate_size"])
        checkpoint = experts_turned(checkpoint, canonical, width)
    tensors: dict[str, LogicalTensor] = {}
    twins: list[Twins] = []
    for name, spelled in spellings.items():
        if spelled.canonical.startswith(VALUE_HEAD):
            continue
        tensor = LogicalTensor.whole(checkpoint, checkpoint.tensors[name], name=spelled.canonical)
        first = tensors.get(spelled.canonical)
        if first is None:
            tensors[spelled.canonical] = tensor
            continue
        kept = first.pieces[0].name
        same = same_bits(first, tensor)
        if same is False:
            raise InputError(
                f"{checkpoint.label}: {kept} and {name} are the same tensor with different contents.",
                hint="Two saves were mixed; save the merged model again into an empty folder.",
            )
        twins.append(Twins(spelled.canonical, kept, name, compared=same is True))
    return Subject(
        checkpoint,
        family,
        config,
        text,
        tensors,
        spellings,
        tuple(twins),
        base,
        sight,
        retyped=door.changed,
        unusable=door.unusable,
    )


def _typed(config: Mapping[str, Any], family: Family) -> Typed:
    """config.json and the configs inside it with every known key in its type."""
    door = typed(config, defaults=family.defaults)
    values, changed, unusable = door.values, list(door.changed), list(door.unusable)
    for key, value in values.items():
        if isinstance(value, dict) and key.endswith("_config"):
            inner = typed(value, where=f"{key}.", defaults=family.defaults if key in TEXT_KEYS else None)
            values[key] = inner.values
            changed += inner.changed
            # A tower's sizes are its own affair: what cannot be used there stays as it is.
            if key in TEXT_KEYS:
                unusable += inner.unusable
            else:
                values[key] = {**value, **inner.values}
    return Typed(values, tuple(changed), tuple(unusable))


def same_bits(one: LogicalTensor, other: LogicalTensor) -> bool | None:
    """Whether both hold the same bits; ``None`` where the data is not local.

    A few rows spread over the tensor are looked at first: tensors that differ nearly always differ there.
    """
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    rows, _ = one.matrix_shape
    probes = [(row, row + 1) for row in sorted({rows * i // 16 for i in range(16)})]
    runs = [(row, min(row + _RUN, rows)) for row in range(0, rows, _RUN)]
    try:
        return all(_bits(one, *run) == _bits(other, *run) for run in (*probes, *runs))
    except InputError:
        return None


def _bits(tensor: LogicalTensor, start: int, stop: int) -> bytes:
    import torch

    parts = []
    for piece in tensor.rows(start, stop):
        found = piece.checkpoint.read_rows(piece.name, piece.start, piece.stop)
        parts.append(found.contiguous().view(torch.uint8).numpy().tobytes())
    return b"".join(parts)
