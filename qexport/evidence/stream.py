"""The layer-streamed forward pass: a model of any size runs in the memory of two layers.

A whole model need not be in memory to see what flows through it. The pass goes layer by layer: one layer's
weights are read from the checkpoint, every batch of the text goes through it, its results replace
its inputs, the layer is let go. While it computes, the next one is read. Every weight is read once, however
long the text.

The layers are transformers' own (``evidence.modules``). What each is called with besides hidden states
(masks, rotary tables, positions) is asked of the family's own forward, once: it runs with layers that only
take notes. So attention windows, layer kinds and scalings are right for every family without being named.
On CPUs linear attention adds up in another order (``evidence.linear_attention``), if products are rounded.

The MTP block comes last. It sees what it sees in use: the hidden state after the final norm, and the
embedding of the token that follows.

Numbers: activations are float32, as in llama.cpp, and so are routers, which it stores so: a rounded router
sends tokens elsewhere. For products see ``evidence.observe``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from qexport.errors import EnvironmentProblem, InputError, UsageProblem
from qexport.evidence.activations import HiddenStates
from qexport.evidence.linear_attention import in_pieces
from qexport.evidence.machine import available_memory, multiplies_bf16, return_freed_memory
from qexport.evidence.modules import (
    OUTSIDE_HEAD,
    Head,
    empty_model,
    fill,
    make_head,
    parameter_of,
    state_of,
)
from qexport.evidence.observe import Observer, Products, told_of_experts
from qexport.evidence.options import Precision, StreamOptions
from qexport.evidence.quiet import quiet_transformers
from qexport.families.roles import NORM_ROLES, Block, Role
from qexport.progress import Progress

if TYPE_CHECKING:
    import numpy as np

    from qexport.families.view import ModelTensor, ModelView


_FLOAT32_ROLES = NORM_ROLES | {
    Role.LINEAR_A_LOG,
    Role.LINEAR_CONV,
    Role.LINEAR_DT_BIAS,
    Role.ROUTER,
    Role.SHARED_EXPERT_ROUTER,
}
_MAIN_ROLES = {Role.ATTN_OUTPUT, Role.LINEAR_OUT, Role.FFN_DOWN, Role.EXPERTS_DOWN}
# Tokens that go through a layer at once: enough for matrix products at full speed, little beside a layer.
# An expert sees a few of them only, so it takes more to keep its products wide.
_BATCH_TOKENS = {"cpu": 512, "cuda": 16384}
_MOE_FACTOR = 4
_WORTH_RETURNING = 64 << 20  # bytes of layers that were let go


@dataclass(frozen=True)
class Stage:
    """A stage of the pass: what all of the text has been through.

    Attributes:
        block: the embedding, a layer of the trunk, the head (its norm: the output matrix is not run here) or
            the MTP block.
        layer: of the trunk.
    """

    block: Block
    layer: int | None = None


Context = tuple[tuple[Any, ...], dict[str, Any]]


class LayerStream:
    """A model whose layers are in memory one after the other.

    Args:
        view: the repaired model, its data at hand.
        inputs: scales of those inputs that are rounded to NVFP4, as :class:`Products` takes them.

    Raises:
        EnvironmentProblem: transformers is missing or too old, or there is no such device.
    """

    def __init__(
        self,
        view: ModelView,
        options: StreamOptions | None = None,
        inputs: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.view = view
        self._inputs = inputs
        self.options = options or StreamOptions()
        self._device = device_of(self.options.device)
        self._moe = view.find(Role.ROUTER) is not None
        self.precision = self._precision()
        self._model = empty_model(view)
        self._base = self._model.model
        self._mtp = make_head(self._model, view) if view.mtp_layers else None
        for child in self._base.children():  # rotary tables
            if not any(True for _ in child.parameters()):
                child.to(self._device)
        self._model.requires_grad_(False)  # gradients are those of what flows, never of weights
        self._wanted = state_of(self._model)
        if self._mtp is not None:
            self._mtp.module.requires_grad_(False)
            inside = state_of(self._mtp.module)
            self._wanted |= {name: inside[own] for name, own in self._mtp.names.items()}

    def _precision(self) -> Precision:
        """What ``auto`` means for this checkpoint and machine."""
        if self.options.precision != "auto":
            return self.options.precision
        stored = {tensor.data.dtype for tensor in self.view if tensor.role in _MAIN_ROLES}
        if not stored <= {"BF16"}:
            return "float32"
        return "bfloat16" if self._device.type == "cpu" and not self._moe and multiplies_bf16() else "mixed"

    @property
    def state_limit(self) -> int:
        """Bytes of hidden states that stay in memory."""
        given = self.options.activation_memory
        return available_memory() // 2 if given is None else given

    @property
    def _modules(self) -> list[torch.nn.Module]:
        """The trunk, and the MTP block where there is one."""
        return [self._base, *([] if self._mtp is None else [self._mtp.module])]

    def units(self, tokens: np.ndarray) -> int:
        """What progress counts to: batches times layers, with embedding, final norm and MTP block."""
        return self.trunk_units(tokens) + bool(self._mtp) * len(self._batches(*tokens.shape))

    def trunk_units(self, tokens: np.ndarray) -> int:
        """Likewise, of the trunk alone."""
        return len(self._batches(*tokens.shape)) * (self.view.layers + 2)

    def trunk(self, tokens: np.ndarray, observer: Observer, **told: Any) -> None:
        """Send ``tokens`` through the trunk alone; else as :meth:`run`."""
        with closing(self.stages(tokens, observer, **told)) as stages:  # type: ignore[type-var]
            for stage in stages:
                if stage.block is Block.HEAD:
                    return

    def run(self, tokens: np.ndarray, observer: Observer, **told: Any) -> None:
        """Send ``tokens`` through the model: all of :meth:`stages`, which has the arguments and errors."""
        for _ in self.stages(tokens, observer, **told):
            pass

    def stages(
        self,
        tokens: np.ndarray,
        observer: Observer,
        *,
        progress: Progress | None = None,
        final: Callable[[int, torch.Tensor], None] | None = None,
        draft: Callable[[int, torch.Tensor], None] | None = None,
        entering: Callable[[int, int, torch.Tensor], None] | None = None,
    ) -> Iterator[Stage]:
        """Send ``tokens`` through the model a stage at a time.

        When a stage is given, all of the text has been through it and its weights are let go. The next one
        runs when it is asked for; its weights are being read. Meanwhile torch's settings are the caller's.

        Args:
            tokens: ids, integers ``(chunks, chunk)``; every chunk is a text of its own, beginning at
                position 0.
            observer: told of the inputs of every product; it has settled when a stage is given.
            final: called with the first chunk's number and the hidden states after the final norm,
                float32 ``(chunks, chunk, width)`` on the device, batch by batch.
            draft: called likewise with what the MTP block gives after its own norm, for every position that
                has a next token: ``(chunks, chunk - 1, width)``. Never called where there is no head.
            entering: called with a layer's number, the first chunk's and the hidden states that enter it;
                what enters the final norm has the number after the last layer's.

        Raises:
            InputError: ids beyond the vocabulary, chunks too short, weights that give NaN.
            EnvironmentProblem: no memory or disk for the hidden states.
        """
        ids = torch.from_numpy(tokens.astype("int64"))
        self._check(ids)
        batches = self._batches(*ids.shape)
        advance = progress.advance if progress is not None else nobody
        limit, folder = self.state_limit, self.options.spill_folder
        shape = (len(ids), ids.shape[1], int(self._model.config.hidden_size))
        with (
            told_of_experts(self._modules, observer),
            closing(HiddenStates(shape, limit=limit, folder=folder)) as states,
        ):
            with self.running():
                for start, stop in batches:
                    states.write(start, self._embed(ids[start:stop], self._named(Role.TOKEN_EMBD)))
                    advance(1)
                contexts = self._contexts(batches, ids.shape[1])
            yield Stage(Block.EMBED)

            def through(layer: int, module: Any) -> None:
                for start, stop in batches:
                    args, kwargs = contexts[stop - start][layer]
                    hidden = states.read(start, stop).to(self._device)
                    if entering is not None:
                        entering(layer, start, hidden)
                    states.write(start, only(module(hidden, *args, **kwargs)))
                    advance(1)

            for layer in self._layers(through, observer):
                yield Stage(Block.TRUNK, layer)
            with self.running():
                norm = self._base.norm
                self._place(norm, self._weights([self._named(Role.OUTPUT_NORM)]), "model.norm.")
                for start, stop in batches:
                    hidden = states.read(start, stop).to(self._device)
                    if entering is not None:
                        entering(self.view.layers, start, hidden)
                    hidden = norm(hidden)
                    states.write(start, hidden)
                    if final is not None:
                        final(start, hidden)
                    advance(1)
                norm.to("meta")
            yield Stage(Block.HEAD)
            if self._mtp is not None:
                with self.running():
                    self._draft(self._mtp, ids, states, batches, observer, advance, draft)
                yield Stage(Block.MTP)

    @contextmanager
    def running(self) -> Iterator[None]:
        """As layers are run here: without gradients, on so many threads."""
        # Another order of sums is no more rounding than products have; float32 is transformers' to the bit.
        reordered = self._device.type == "cpu" and self.precision != "float32"
        fast = in_pieces(self._model) if reordered else nullcontext()
        with threads(self.options.threads), quiet_transformers(), torch.no_grad(), fast:
            yield

    def products(self, observer: Observer) -> Products:
        """The arithmetic of the pass, told to ``observer``."""
        return Products(observer, wide=self.precision != "bfloat16", inputs=self._inputs)

    def _draft(
        self,
        head: Head,
        ids: torch.Tensor,
        states: HiddenStates,
        batches: Sequence[tuple[int, int]],
        observer: Observer,
        advance: Callable[[int], None],
        draft: Callable[[int, torch.Tensor], None] | None,
    ) -> None:
        """The MTP block over every position that has a next token."""
        contexts = self._contexts(batches, ids.shape[1] - 1)
        with self._head(head, observer) as table:
            for start, stop in batches:
                following = self._embed(ids[start:stop, 1:], table)
                hidden = states.read(start, stop)[:, :-1].to(self._device)
                hidden = self._drafted(head, following, hidden, contexts[stop - start])
                if draft is not None:
                    draft(start, hidden)
                advance(1)

    @contextmanager
    def _head(self, head: Head, observer: Observer) -> Iterator[ModelTensor]:
        """The MTP block with its weights, of whose products ``observer`` is told; gives the embedding that it
        takes."""
        tensors = [t for t in self.view if t.block is Block.MTP and t.role not in OUTSIDE_HEAD]
        weights = self._weights(tensors)
        self._require(head.names.keys() - weights.keys())
        self._place(head.module, {head.names[name]: weight for name, weight in weights.items()}, "")
        products = self.products(observer)
        products.watch(*matrices(tensors, weights))
        with products:
            yield self.view.find(Role.MTP_EMBED) or self._named(Role.TOKEN_EMBD)
        observer.settle("the MTP block")
        head.module.to("meta")

    def _drafted(
        self, head: Head, following: torch.Tensor, hidden: torch.Tensor, contexts: list[Context]
    ) -> torch.Tensor:
        """What the MTP block gives, after its own norm, for the embeddings of the tokens that follow."""
        block = head.module
        both = (block.embed_norm(following), block.hidden_norm(hidden))
        hidden = block.fc(torch.cat(both, dim=-1))
        kinds = getattr(self._model.config, "layer_types", None) or ["full_attention"]
        args, kwargs = contexts[list(kinds).index("full_attention")]
        for module in block.layers:
            hidden = only(module(hidden, *args, **kwargs))
        normed: torch.Tensor = block.norm(hidden)
        return normed

    def _layers(
        self, work: Callable[[int, Any], None], observer: Observer, *, backwards: bool = False
    ) -> Iterator[int]:
        """One trunk layer after the other: ``work`` with its module, of whose products ``observer`` is told,
        until it settles; the layer is let go, its number given. The next one is read meanwhile.
        """
        products = self.products(observer)
        by_layer: dict[int, list[ModelTensor]] = {layer: [] for layer in range(self.view.layers)}
        for tensor in self.view:
            if tensor.block is Block.TRUNK and tensor.layer is not None:
                by_layer[tensor.layer].append(tensor)
        order = sorted(by_layer, reverse=backwards)
        freed = 0
        with ThreadPoolExecutor(1, thread_name_prefix="read layer") as reader:
            ahead = [reader.submit(self._weights, by_layer[order[0]])]
            for layer, following in zip(order, [*order[1:], None], strict=True):
                weights = ahead.pop().result()
                if following is not None:
                    ahead.append(reader.submit(self._weights, by_layer[following]))
                module = self._base.layers[layer]
                self._place(module, weights, f"model.layers.{layer}.")
                products.watch(*matrices(by_layer[layer], weights))
                with self.running(), products:
                    work(layer, module)
                observer.settle(f"layer {layer}")
                module.to("meta")
                freed += sum(weight.nbytes for weight in weights.values())
                products.watch({}, {})
                del weights  # before the layer after next is read
                if freed >= _WORTH_RETURNING:
                    return_freed_memory()
                    freed = 0
                yield layer

    def _weights(self, tensors: Sequence[ModelTensor]) -> dict[str, torch.Tensor]:
        return fill(tensors, self._wanted, self._stored_as, self._device)

    def _stored_as(self, tensor: ModelTensor) -> torch.dtype:
        small = tensor.role in _FLOAT32_ROLES or tensor.role.value.endswith("_bias")
        return torch.float32 if small or self.precision == "float32" else torch.bfloat16

    def _require(self, missing: Set[str]) -> None:
        if missing:
            name = min(missing)
            raise InputError(f"{self.view.label}: transformers expects {name}, which the model does not have")

    def _place(self, module: Any, weights: Mapping[str, torch.Tensor], prefix: str) -> None:
        """Give a module its parameters, under names relative to it, and its buffers the device."""
        mine = {name.removeprefix(prefix): weight for name, weight in weights.items()}
        self._require({f"{prefix}{name}" for name in state_of(module).keys() - mine.keys()})
        module.load_state_dict(mine, strict=False, assign=True)
        for part in module.modules():
            for name, buffer in part.named_buffers(recurse=False):
                part._buffers[name] = buffer.to(self._device)

    def _embed(self, ids: torch.Tensor, table: ModelTensor) -> torch.Tensor:
        """Embeddings of ``(chunks, tokens)``: only rows that occur are read; the module scales if it does."""
        rows, places = torch.unique(ids, return_inverse=True)
        found = torch.empty((len(rows), table.shape[1]), dtype=torch.float32)
        for at, row in enumerate(rows.tolist()):
            for piece in table.data.rows(row, row + 1):
                found[at] = piece.checkpoint.read_rows(piece.name, piece.start, piece.stop)[0]
        module = self._base.embed_tokens
        module.padding_idx = None  # a row of the whole table, and of interest to gradients only
        module.weight = torch.nn.Parameter(found.to(self._device), requires_grad=False)
        embedded: torch.Tensor = module(places.to(self._device))
        return embedded

    def _named(self, role: Role) -> ModelTensor:
        tensor = self.view.find(role)
        if tensor is None:
            raise InputError(f"{self.view.label} has no {role.value}")
        return tensor

    def _contexts(self, batches: Sequence[tuple[int, int]], tokens: int) -> dict[int, list[Context]]:
        """For each size of batch, what the family's forward calls every layer with besides hidden states."""
        layers, norm = self._base.layers, self._base.norm
        found: dict[int, list[Context]] = {}
        try:
            for size in {stop - start for start, stop in batches}:
                notes = [_Notes(layer) for layer in layers]
                self._base.layers, self._base.norm = torch.nn.ModuleList(notes), torch.nn.Identity()
                width = self._model.config.hidden_size
                zeros = torch.zeros((size, tokens, width), device=self._device)
                self._base(inputs_embeds=zeros, use_cache=False)
                found[size] = [(note.args, note.kwargs) for note in notes]
        finally:
            self._base.layers, self._base.norm = layers, norm
        return found

    def _batches(self, chunks: int, tokens: int) -> list[tuple[int, int]]:
        factor = _MOE_FACTOR if self._moe else 1
        wanted = self.options.batch_tokens or factor * _BATCH_TOKENS[self._device.type]
        size = max(1, wanted // tokens)
        return [(start, min(chunks, start + size)) for start in range(0, chunks, size)]

    def _check(self, ids: torch.Tensor) -> None:
        if ids.ndim != 2 or ids.shape[0] < 1 or ids.shape[1] < 2:
            raise UsageProblem(f"tokens must be (chunks, at least 2), not {tuple(ids.shape)}")
        vocabulary = self._named(Role.TOKEN_EMBD).shape[0]
        worst = int(ids.max() if ids.min() >= 0 else ids.min())
        if not 0 <= worst < vocabulary:
            raise InputError(
                f"token {worst} is beyond the model's vocabulary of {vocabulary}",
                hint="Were the tokens made with another model's tokenizer?",
            )


class _Notes(torch.nn.Module):
    """Stands in for a layer: remembers what it was called with, and gives hidden states back as they came."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.__dict__["layer"] = layer  # not a submodule: it is only asked for attributes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.__dict__.update(args=args, kwargs=kwargs)
        return hidden


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """torch's own number of threads comes back afterwards."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def matrices(
    tensors: Sequence[ModelTensor], weights: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, tuple[str, ...]]]:
    """The parameters that products use, and the canonical names of what each holds, in the order of rows."""
    names: dict[str, tuple[str, ...]] = {}
    for parameter, _, name in sorted((*_place_of(tensor), tensor.name) for tensor in tensors):
        if weights[parameter].ndim >= 2:
            names[parameter] = (*names.get(parameter, ()), name)
    return {parameter: weights[parameter] for parameter in names}, names


def _place_of(tensor: ModelTensor) -> tuple[str, int]:
    parameter, rows = parameter_of(tensor)
    return parameter, 0 if rows is None else int(rows.start)


def only(result: Any) -> torch.Tensor:
    """Hidden states, from a layer that gives them alone or in front of other things."""
    first: torch.Tensor = result[0] if isinstance(result, tuple) else result
    return first


def nobody(_: int) -> None:
    pass


def device_of(name: str) -> torch.device:
    """The device called ``name``. Raises UsageProblem or EnvironmentProblem where there is none."""
    kind, _, number = name.partition(":")
    if kind not in _BATCH_TOKENS or (":" in name and not number.isdecimal()):
        raise UsageProblem(f"no device {name!r}", hint="It is cpu, cuda or cuda:N.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise EnvironmentProblem(
            f"torch {torch.__version__} sees no CUDA device here",
            hint="Leave --device out, or install torch for CUDA.",
        )
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise EnvironmentProblem(f"there is no {name!r} here; CUDA devices: {torch.cuda.device_count()}")
    return torch.device(name)
