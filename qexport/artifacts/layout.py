"""A way in which weights lie on disk, as one object: told, opened, what its readers go by, and who they are.

A format has one or two (FP8: as Qwen publishes it, or in compressed-tensors' way, which NVFP4 has as well);
``formats/<word>/reading.py`` holds the objects. What reads, judges or times an artifact asks its layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.artifacts.forms import Form
from qexport.checkpoint.config import read_json, text_config
from qexport.checkpoint.local import LocalCheckpoint
from qexport.families.roles import Role

if TYPE_CHECKING:
    from qexport.artifacts.artifact import Opened
    from qexport.artifacts.description import Description
    from qexport.families.view import ModelView


@dataclass(frozen=True)
class OnDisk:
    """What lies at a path, headers and config read when they are asked for.

    Attributes:
        like: the model that it was made from.
        head: its MTP head, where that is a file or folder of its own that has another name than usual.
    """

    path: Path
    like: ModelView | None = None
    head: Path | None = None

    @property
    def is_file(self) -> bool:
        return self.path.is_file()

    @cached_property
    def folder(self) -> LocalCheckpoint:
        """Raises InputError where it is none, or one that cannot be read."""
        return LocalCheckpoint(self.path, quantized=True)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json."""
        return read_json(self.folder, "config.json")

    @cached_property
    def quantization(self) -> Mapping[str, Any]:
        """What config.json declares of it."""
        return quantization_of(self.config)


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a config.json declares of quantization, where transformers' readers look; may be empty."""
    found = config.get("quantization_config") or text_config(config).get("quantization_config") or {}
    return found if isinstance(found, Mapping) else {}


@dataclass(frozen=True)
class Asked:
    """A module that a loader asks about.

    Attributes:
        module: its path in the folder.
        role: in the family; ``VISION`` for a linear layer of the vision tower.
        form: how it is stored.
    """

    module: str
    role: Role
    form: Form


Promise = Form | str | None
"""The form that is expected; ``None``: floats. A text: readers will not agree, or refuse."""
Rule = Callable[[Asked], Promise]


@dataclass(frozen=True)
class Traits:
    """What of a folder decides who can judge it.

    Attributes:
        experts: it is a mixture of experts.
        mixed: its linear layers are in several formats.
        odd: the first FP8 matrix with a dimension that is no multiple of the block's.
        apart: its experts are one by one, and its family's class in transformers takes them together alone.
        half: it has 4-bit floats, and what is not quantized is float16.
    """

    experts: bool = False
    mixed: bool = False
    odd: str | None = None
    apart: bool = False
    half: bool = False


@dataclass(frozen=True)
class ArtifactLayout:
    """What there is to know of a layout.

    Attributes:
        word: as reports call it.
        opens: whether it is this one that lies there.
        open: reads headers and small files. Raises InputError where they make no model.
        describe: what it says of itself, for those who run it. Errors as ``open``.
        stored_type: what its weights are stored as, in a word: the row of the table of tolerances.
        methods: ``quant_method`` in the config that tells it.
        promises: the form that readers expect of each module, by the config. Raises InputError where the
            config declares something that qexport does not know.
        contradictions: where it declares itself twice and not alike.
        notes: what of a folder some of its readers refuse, for who adopts it.
        own: it declares the form of every tensor beside the tensor, so that nothing is promised.
        fuses: its readers run partners such as q, k and v as one matrix.
        drafts: an MTP head that belongs to it is what its runtime could draft with.
        plain: nothing in it is packed.
        here: what runs it in this interpreter, where the user names nothing.
        served: what people serve it with, the first being what a Python that the user names is taken to have.
        unfit: why transformers cannot judge such a folder, of layouts that it loads without a complaint.
        title: what a runtime does not read that does not read it.
    """

    word: str
    opens: Callable[[OnDisk], bool] = field(repr=False)
    open: Callable[[OnDisk], Opened] = field(repr=False)
    describe: Callable[[OnDisk], Description] = field(repr=False)
    stored_type: Callable[[Opened], str] = field(repr=False)
    methods: tuple[str, ...] = ()
    promises: Callable[[Opened], Rule] = field(default=lambda _: lambda _: None, repr=False)
    contradictions: Callable[[Opened], Iterable[str]] = field(default=lambda _: (), repr=False)
    notes: Callable[[Opened], Iterable[str]] = field(default=lambda _: (), repr=False)
    own: bool = False
    fuses: bool = True
    drafts: bool = True
    plain: bool = False
    here: str = "transformers"
    served: tuple[str, ...] = ("vllm", "sglang")
    unfit: Callable[[Traits], str | None] = field(default=lambda _: None, repr=False)
    title: str = "this layout"

    @property
    def runtimes(self) -> frozenset[str]:
        """All that read it."""
        return frozenset((self.here, *self.served))
