"""What a model family is: a value that one file of ``qexport/families/known/`` holds.

A family is its **towers** (the trunk, an MTP head, what it sees with: all the same kind of thing), the
defaults of its config class, how it turns queries and keys, and what it is called elsewhere: an :class:`Arch`
for llama.cpp, a :class:`Dialect` for mlx-lm. Names of formats are data here; what they mean is for
``qexport/formats/``.

To add a family, write its file and list it in ``known/__init__.py``. Names are canonical (see
``qexport.families.names``), shapes are words that :attr:`qexport.families.hyper.Hyper.dims` turns into
numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from qexport.families.roles import Block, Role

if TYPE_CHECKING:
    from qexport.families.hyper import Hyper


@dataclass(frozen=True)
class Template:
    """One tensor: its name under the tower or the layer, its role, its shape in words."""

    name: str
    role: Role
    shape: str
    optional: bool = False


@dataclass(frozen=True)
class Tower:
    """One part of a model: layers of one kind or several, and tensors beside them.

    In prefixes ``{n}`` is a layer's number in the tower, ``{behind}`` the same counted on behind the trunk's:
    that is where GLM and DeepSeek keep their heads, and there every layer has tensors of its own beside it.

    Attributes:
        prefix: of the canonical names beside the layers; ``layer_prefix`` of those in one.
        first, last: tensors beside the layers, in front of them and behind.
        layers: layer kind (``full``, ``linear``, ``dense``) to its tensors.
        count: the config's key for the number of layers; ``beside`` are flags that published configs have
            with it.
        assumed: layers that readers take where the config says nothing.
    """

    block: Block
    prefix: str
    layer_prefix: str
    layers: Mapping[str, tuple[Template, ...]]
    count: str
    first: tuple[Template, ...] = ()
    last: tuple[Template, ...] = ()
    assumed: int = 0
    beside: Mapping[str, Any] = field(default_factory=dict)

    @property
    def behind(self) -> bool:
        """Whether its layers are numbered behind the trunk's."""
        return "{behind}" in self.prefix

    def prefixes(self, layer: int, trunk: int) -> tuple[str, str]:
        """``prefix`` and ``layer_prefix`` at a layer of a model whose trunk has ``trunk`` layers."""
        words = {"n": layer, "behind": trunk + layer}
        return self.prefix.format(**words), self.layer_prefix.format(**words)

    def tensors(self, kinds: Sequence[str], trunk: int) -> Iterator[tuple[str, Template, int | None]]:
        """(prefix, template, layer) of every tensor, in model order; ``kinds`` are those of its layers."""
        outside = 0 if self.block is Block.MTP else None
        for layer, kind in enumerate(kinds):
            prefix, inside = self.prefixes(layer, trunk)
            if layer == 0 or self.behind:
                yield from ((prefix, template, layer if self.behind else outside) for template in self.first)
            yield from ((inside, template, layer) for template in self.layers[kind])
        yield from ((self.prefix, template, outside) for template in self.last)

    @cached_property
    def _spelling(self) -> re.Pattern[str]:
        either = "|".join(map(re.escape, (self.layer_prefix, self.prefix)))
        places = ((r"\{n\}", r"(?P<n>\d+)"), (r"\{behind\}", r"(?P<behind>\d+)"))
        if self.layer_prefix == self.prefix:
            either = re.escape(self.prefix)
        for word, group in places:
            either = either.replace(word, group)
        return re.compile(either)

    def select(self, names: Iterable[str], trunk: int) -> dict[str, int]:
        """Those canonical ``names`` that are this tower's, each with its layer (0 beside the layers).

        A layer behind the trunk's is one of a head if it has any of the tensors that only heads have.
        """
        found: dict[str, int] = {}
        for name in names:
            if (match := self._spelling.match(name)) is not None:
                parts = match.groupdict()
                layer = int(parts["behind"]) - trunk if self.behind else int(parts.get("n") or 0)
                if layer >= 0:
                    found[name] = layer
        if not self.behind:
            return found
        alone = {template.name for template in self.first}
        heads = {n for name, n in found.items() if name.removeprefix(self.prefixes(n, trunk)[0]) in alone}
        return {name: layer for name, layer in found.items() if layer in heads}

    def globs(self, trunk: int) -> tuple[str, ...]:
        """Its module paths for readers that match by globs: the first layer's, and all of it."""
        prefix, inside = self.prefixes(0, trunk)
        return tuple(dict.fromkeys(f"{each.removesuffix('.')}*" for each in (inside, prefix)))

    def regex(self, trunk: int) -> str:
        """An expression that finds its module paths whatever a reader puts in front of them."""
        root = self.prefixes(0, trunk)[0].removeprefix("model.")
        return f".*{re.escape(root if self.behind else root.removesuffix('.'))}.*"


@dataclass(frozen=True)
class Sight:
    """What a family sees with: a tower whose config stands beside the language model's.

    Attributes:
        tower: with what carries its output over to the language model.
        defaults: of transformers' class for ``vision_config``.
        sizes: words of shapes, to keys of that config; each is a number above 0.
        tokens: keys at the root of the config that name the tokens of an image, with the class's defaults.
        aliases: other names for keys.
        deepstack: what carries the output of some of the tower's layers over to the language model's first
            ones, where the family has that: a layer here for each of those that the config names.
    """

    tower: Tower
    defaults: Mapping[str, Any]
    sizes: Mapping[str, str]
    tokens: Mapping[str, int]
    aliases: Mapping[str, str] = field(default_factory=dict)
    deepstack: Tower | None = None


@dataclass(frozen=True)
class Turning:
    """How a family turns queries and keys, beyond what every config says.

    Attributes:
        partial: the part of each head that is turned where the config is silent; ``None``: always all of it.
        sections: the pairs that turn are shared out over time, height and width; ``shares``: how, where a
            config is silent and it is not evenly.
        local: layers with a window have a base of their own.
        published: keys that every published config has.
    """

    partial: float | None = None
    sections: bool = False
    shares: tuple[int, ...] = ()
    local: bool = False
    published: Mapping[str, Any] = field(default_factory=dict)


QKV_BIASES = frozenset({Role.ATTN_Q_BIAS, Role.ATTN_K_BIAS, Role.ATTN_V_BIAS})
MOE_KEYS = frozenset({"num_experts", "num_experts_per_tok", "moe_intermediate_size"})
Value = int | float | bool | Sequence[bool] | None
Limits = Callable[["Hyper"], Iterable[str]]


@dataclass(frozen=True)
class Arch:
    """How llama.cpp sees a family: ``src/llama-arch.cpp`` for names, ``src/models/`` for what it computes.

    Attributes:
        name: ``general.architecture``.
        names: tensor names that differ from the common ones.
        keys: hyper-parameters of its own, by the key behind ``{arch}.``; a whole number is stored as uint32,
            another as float32. Given the number of the head's layers.
        norms_plus_one: roles of norms that are stored zero-centred and read with the 1 added.
        interleaved_rope: query and key rows go from rotary halves to interleaved pairs.
        tiled_v_heads: value heads of linear attention go from grouped by key head to tiled.
        dense_first: layers without experts may stand in front of those with them.
        biases: roles of biases that its layers read.
        windows: its layers know sliding windows.
        factors: reads Llama 3's frequency factors.
        unnormed: the file says whether the weights of the chosen experts are made to sum to one.
        vocabulary: what is tried first: byte-level ``bpe``, a SentencePiece ``model``, or in the ways of
            ``llama`` or ``gemma``, which have more rules of their own.
        pre: its name for how published tokenizers of it cut words, where others cut alike or a saver loses
            it.
        specials: kinds of special tokens that its converter names by their text, where no file does.
        scaled: its layers multiply by scales of whole matrices (``.scale``), which NVFP4 needs.
        projector: what it calls the way from a vision tower into the language model, where it knows one.
        limits: what llama.cpp holds in code and a config can say otherwise.
    """

    name: str
    names: Mapping[Role, str] = field(default_factory=dict)
    keys: Callable[[Hyper, int], Mapping[str, Value]] | None = None
    norms_plus_one: frozenset[Role] = frozenset()
    interleaved_rope: bool = False
    tiled_v_heads: bool = False
    dense_first: bool = False
    biases: frozenset[Role] = QKV_BIASES
    windows: bool = False
    factors: bool = False
    unnormed: bool = False
    vocabulary: Literal["bpe", "model", "llama", "gemma"] = "bpe"
    pre: str | None = None
    specials: Mapping[str, str] = field(default_factory=dict)
    scaled: bool = False
    projector: str = ""
    limits: Limits = lambda _: ()


@dataclass(frozen=True)
class Dialect:
    """How mlx-lm 0.32 sees a family: ``sanitize``, ``quant_predicate``, ``cast_predicate`` of its model file
    in https://github.com/ml-explore/mlx-lm/tree/main/mlx_lm/models.

    Attributes:
        always_wrapped: mlx-lm knows the model type of the multimodal form alone.
        prefix: in front of every name; in the multimodal form only, where ``wrapper_prefix`` says so.
        norms_plus_one: roles of norms that are stored with the 1 added.
        keeps_float32: roles that are never cast.
        gates: roles of routers, quantized with 8 bits in groups of 64 whatever the rest has.
        gates_seeing: those of them that mlx-vlm quantizes so beside a tower; ``None``: all.
        plain: roles of matrices that belong to no module which can be quantized.
        biases: roles of biases that its layers have.
        reads: config keys of the family that mlx-lm reads beyond those of all.
        scaled_rope: its layers can scale their rotations.
        ties: it can do without an output matrix.
        drafter: the model type of the head's own folder, where some MLX runtime reads this family's heads.
        tower: what mlx-vlm writes in place of the vision tower's own prefix; ``None``: it knows none.
        output_twice: mlx-vlm wants an output matrix where the embedding is one, too.
        limits: what mlx-lm holds in code and a config can say otherwise.
    """

    always_wrapped: bool = False
    prefix: str = ""
    wrapper_prefix: str = ""
    norms_plus_one: frozenset[Role] = frozenset()
    keeps_float32: frozenset[Role] = frozenset()
    gates: frozenset[Role] = frozenset()
    gates_seeing: frozenset[Role] | None = None
    plain: frozenset[Role] = frozenset()
    biases: frozenset[Role] = frozenset()
    reads: frozenset[str] = frozenset()
    scaled_rope: bool = True
    ties: bool = True
    drafter: str | None = None
    tower: str | None = None
    output_twice: bool = False
    limits: Limits = lambda _: ()


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        name: the transformers model type of the language model without ``_text``.
        causal_arch, wrapper_arch: class names of the text-only and the multimodal form.
        text_model_type: ``model_type`` of the language model's config, as transformers writes it.
        alone_model_type: of a text-only config, where the language model alone is another family's.
        layers: layer kind to the tensors of a trunk layer.
        kinds: the kind of each trunk layer, from the config with nothing left open; ``full`` where not given.
        head: the MTP head; ``None`` where there is none. ``vision`` likewise.
        defaults: what transformers' config class takes when a key is missing. ``config.json`` leaves out what
            equals it (the published Gemma 3 wrappers leave out nearly all), and every reader but transformers
            has defaults of its own. ``None`` is derived from other keys (:mod:`qexport.families.hyper`); what
            is absent here and in the config stays absent. A test compares them with the class.
        aliases: other names for keys (transformers' ``attribute_map``).
        attention: the words of ``layer_types``, where the family's layers differ by them.
        experts: the config's key for the number of experts; ``scoring``: how routers weigh them.
        arch: ``None`` where llama.cpp does not know the family; ``dialect`` likewise for mlx-lm.
        gated_q: the query projection also makes an output gate, and is twice as wide.
        tokenizer_class: transformers' for it, where that cuts text by rules of its own.
        null_kv_heads: its config class takes null as the number of query heads.
        heads_divide: its config class wants hidden_size to be a multiple of the number of heads, and so do
            all readers where ``head_dim`` cannot be said (``no_head_dim``).
        multimodal: always published with a vision tower, RoPE in the newer spelling alone, experts fused.
        turned_experts: fused experts are published as ``[experts, in, out]``.
        wrapper_prefix, wrapper_head, vision_prefix: what published multimodal checkpoints write in front of
            the language model's tensors, ``lm_head.`` and the vision tower.
    """

    name: str
    causal_arch: str
    text_model_type: str
    layers: Mapping[str, tuple[Template, ...]]
    defaults: Mapping[str, Any]
    kinds: Callable[[Mapping[str, Any]], tuple[str, ...]] | None = None
    head: Tower | None = None
    vision: Sight | None = None
    alone_model_type: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    attention: tuple[str, ...] = ()
    turning: Turning = Turning()
    experts: str = "num_experts"
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    arch: Arch | None = None
    dialect: Dialect | None = None
    gated_q: bool = False
    tokenizer_class: str | None = None
    null_kv_heads: bool = False
    heads_divide: bool = False
    no_head_dim: bool = False
    multimodal: bool = False
    turned_experts: bool = False
    wrapper_arch: str | None = None
    wrapper_model_type: str | None = None
    wrapper_prefix: str = "model.language_model."
    wrapper_head: str = ""
    vision_prefix: str = "model."

    @cached_property
    def trunk(self) -> Tower:
        """The language model's own layers, its embedding and its output; the same for every family."""
        return Tower(
            Block.TRUNK,
            prefix="",
            layer_prefix="model.layers.{n}.",
            layers=self.layers,
            count="num_hidden_layers",
            first=(Template("model.embed_tokens.weight", Role.TOKEN_EMBD, "vocab hidden"),),
            last=(
                Template("model.norm.weight", Role.OUTPUT_NORM, "hidden"),
                Template("lm_head.weight", Role.OUTPUT, "vocab hidden"),
            ),
        )

    def head_names(self, names: Iterable[str], text: Mapping[str, Any]) -> dict[str, int]:
        """Those canonical ``names`` that are the MTP head's, each with its layer; ``text`` is the config."""
        trunk = text.get("num_hidden_layers")
        if self.head is None:
            return {}
        return self.head.select(
            names, trunk if isinstance(trunk, int) else self.defaults["num_hidden_layers"]
        )

    def own_tower_name(self, name: str) -> str:
        """The canonical name of a tensor of its tower that mlx-vlm has named; other names as they are."""
        theirs = None if self.dialect is None else self.dialect.tower
        if not theirs or self.vision is None or not name.startswith(theirs):
            return name
        return self.vision.tower.prefix + name.removeprefix(theirs)

    @property
    def model_types(self) -> tuple[str, ...]:
        """Values of ``model_type`` (root or ``text_config``) that mean this family."""
        return tuple(dict.fromkeys((self.name, self.text_model_type)))

    @property
    def config_class(self) -> str:
        """transformers' class of the language model's config."""
        if not self.text_model_type.endswith("_text") or self.wrapper_arch is None:
            return self.causal_arch.removesuffix("ForCausalLM") + "Config"
        return self.wrapper_arch.removesuffix("ForConditionalGeneration") + "TextConfig"

    @property
    def alone(self) -> str:
        """``model_type`` of a config without a tower; its modules are those of the language model."""
        return self.alone_model_type or self.text_model_type

    @property
    def is_moe(self) -> bool:
        return any(t.role is Role.ROUTER for kind in self.layers.values() for t in kind)
