"""What a model can be and a format's readers cannot run, found before anything is written.

llama.cpp and mlx-lm hold much of a family in code: its activation, which layers look back how far, which
matrices have biases. What their files cannot say they would compute otherwise, without a word; so such a
model is refused (:func:`check_limits`), or, where no text can tell the difference, noted. Folders of FP8 and
NVFP4 keep the config, and their readers go by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.errors import InputError
from qexport.families.known import FAMILIES
from qexport.families.roles import BIAS_ROLES, Block

if TYPE_CHECKING:
    from qexport.families.hyper import Hyper
    from qexport.families.view import ModelView


_READERS: Mapping[str, str] = {"gguf": "llama.cpp", "mlx": "mlx-lm"}
# transformers' names for one function each: x * sigmoid(x), and GELU by tanh.
_SILU = frozenset({"silu", "swish"})
_GELU = frozenset({"gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate"})
_ROPES: Mapping[str, frozenset[str]] = {
    "gguf": frozenset({"default", "linear", "yarn", "llama3", "dynamic", "mrope"}),
    "mlx": frozenset({"default", "linear", "yarn", "llama3", "dynamic", "mrope", "longrope"}),
}


@dataclass(frozen=True)
class _Said:
    """``what`` there is to say; ``note``: it changes nothing that anybody could read."""

    what: str
    note: bool = False


def check_limits(format_: str, view: ModelView) -> list[str]:
    """Notes for the plan.

    Raises:
        InputError: the model is one that the format's readers would run as another.
    """
    said = [each for see in _LIMITS for each in see(format_, _READERS.get(format_, ""), view)]
    refused = [each.what for each in said if not each.note]
    if refused:
        others = "FP8 and NVFP4 folders keep config.json as it is; transformers goes by it."
        raise InputError(
            f"{view.label} cannot be said in {format_.upper()}: {'; '.join(refused)}", hint=others
        )
    return [each.what for each in said]


def window_period(hyper: Hyper) -> int | None:
    """n, where every n-th layer sees all and the others have a window; ``None`` for any other order."""
    slides = [window is not None for window in hyper.windows]
    period = slides.index(False) + 1 if False in slides else hyper.layers + 1
    return period if slides == [bool((i + 1) % period) for i in range(hyper.layers)] else None


def _activation(format_: str, reader: str, view: ModelView) -> Iterator[_Said]:
    hyper = view.hyper
    gemma = "hidden_activation" in hyper.family.defaults
    if hyper.activation in (_GELU if gemma else _SILU):
        return
    key, own = ("hidden_activation", "gelu_pytorch_tanh") if gemma else ("hidden_act", "silu")
    if reader:
        yield _Said(f"{key} is {hyper.activation!r}, and {reader}'s {view.family} always takes {own!r}")
    else:
        yield _Said(f"{key} is {hyper.activation!r}: transformers runs it, vLLM refuses it", note=True)


def _windows(format_: str, reader: str, view: ModelView) -> Iterator[_Said]:
    hyper = view.hyper
    window = min((each for each in hyper.windows if each is not None), default=None)
    arch = hyper.family.arch
    if not reader or window is None or (format_ == "gguf" and arch is not None and arch.windows):
        return
    if "sliding_window_pattern" in hyper.family.defaults:
        period = window_period(hyper)
        if period is None or period > hyper.layers:
            yield _Said(f"{reader} puts a layer without a window into every n-th place, and has at least one")
    elif window >= hyper.context:
        what = f"the window of {window} tokens is not written: no text of {hyper.context} tokens reaches it"
        yield _Said(what, note=True)
    else:
        yield _Said(
            f"sliding_window is {window}, and {reader}'s {view.family} has no windows: beyond it "
            "its layers would see more than in training (set max_position_embeddings to the window to keep "
            "texts within it, or sliding_window to null if the model was trained without)"
        )


def _biases(format_: str, reader: str, view: ModelView) -> Iterator[_Said]:
    arch = FAMILIES[view.family].arch
    alien = [t.name for t in view if arch is not None and t.role in BIAS_ROLES - arch.biases]
    if format_ == "gguf" and alien:
        yield _Said(f"{reader}'s {view.family} reads no {alien[0]} ({len(alien)} such biases)")


def _shapes(format_: str, reader: str, view: ModelView) -> Iterator[_Said]:
    hyper, linear = view.hyper, view.hyper.linear
    if reader and hyper.family.no_head_dim and hyper.heads * hyper.head_dim != hyper.hidden:
        yield _Said(
            f"head_dim is {hyper.head_dim}, and {reader}'s {view.family} divides hidden_size by the number "
            "of heads"
        )
    if format_ == "gguf" and linear is not None and linear.k_dim != linear.v_dim:
        yield _Said(
            f"linear_key_head_dim is {linear.k_dim} and linear_value_head_dim {linear.v_dim}: {reader} has "
            "one size for both"
        )


def _own(format_: str, reader: str, view: ModelView) -> Iterator[_Said]:
    hyper, dialect = view.hyper, view.hyper.family.dialect
    if reader and hyper.family.limits is not None:
        yield from map(_Said, hyper.family.limits(format_, reader, hyper))
    if format_ == "mlx" and hyper.tied and dialect is not None and not dialect.ties:
        yield _Said(f"embedding and output are one matrix, and {reader}'s {view.family} has two")


def _experts(format_: str, reader: str, view: ModelView) -> Iterator[_Said]:
    experts = view.hyper.experts
    arch = view.hyper.family.arch
    if format_ == "gguf" and experts is not None and not experts.normed and not (arch and arch.unnormed):
        yield _Said(f"norm_topk_prob is false, and {reader} always makes the experts' weights sum to one")


def _rope(format_: str, reader: str, view: ModelView) -> Iterator[_Said]:
    hyper = view.hyper
    if not reader:
        return
    if hyper.rope.kind not in _ROPES[format_]:
        yield _Said(f"{reader} cannot turn by RoPE of type {hyper.rope.kind!r}")
    arch, dialect = hyper.family.arch, hyper.family.dialect
    if format_ == "mlx" and hyper.rope.kind != "default" and not (dialect and dialect.scaled_rope):
        yield _Said(f"{reader}'s {view.family} does not scale RoPE ({hyper.rope.kind!r})")
    if format_ == "gguf" and hyper.rope.kind == "llama3" and not (arch and arch.factors):
        yield _Said(f"{reader}'s {view.family} reads no frequency factors, which RoPE of type 'llama3' needs")
    if hyper.local_rope is not None and hyper.local_rope.kind != "default":
        yield _Said(f"{reader} cannot scale RoPE in layers with a window ({hyper.local_rope.kind!r})")


def _vision(format_: str, reader: str, view: ModelView) -> Iterator[_Said]:
    count = sum(tensor.block is Block.VISION for tensor in view)
    if format_ == "gguf" and count:
        yield _Said(f"the vision tower is left out ({count} tensors): the file takes text alone", note=True)


_LIMITS: tuple[Callable[[str, str, ModelView], Iterator[_Said]], ...] = (
    _activation,
    _windows,
    _biases,
    _shapes,
    _own,
    _experts,
    _rope,
    _vision,
)
