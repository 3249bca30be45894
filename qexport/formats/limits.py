"""What a model can be and a format's readers cannot run, found before anything is written.

llama.cpp and mlx-lm hold much of a family in code: its activation, which layers look back how far, which
matrices have biases. What their files cannot say they would compute otherwise, without a word; so such a
model is refused (:func:`check_limits`), or, where no text can tell the difference, noted. What a reader alone
cannot is beside its format, what a family alone has in the family's file. Folders of FP8 and NVFP4 keep the
config, and their readers go by it (:func:`config_notes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.errors import InputError

if TYPE_CHECKING:
    from qexport.families.family import Family
    from qexport.families.hyper import Hyper
    from qexport.families.view import ModelView


# transformers' names for one function each: x * sigmoid(x), and GELU by tanh.
_SILU = frozenset({"silu", "swish"})
_GELU = frozenset({"gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate"})


@dataclass(frozen=True)
class Limit:
    """``what`` there is to say; ``note``: it changes nothing that anybody could read."""

    what: str
    note: bool = False


@dataclass(frozen=True)
class Reader:
    """A program that holds families in code.

    Attributes:
        name: of the program; ``format``: of what it reads, for messages.
        ropes: the kinds of RoPE that it can say.
        windows: whether it has windows of any order for a family.
        own: what it alone cannot.
    """

    name: str
    format: str
    ropes: frozenset[str]
    windows: Callable[[Family], bool]
    own: Callable[[ModelView], Iterator[Limit]]


def check_limits(view: ModelView, reader: Reader) -> list[str]:
    """Notes for the plan.

    Raises:
        InputError: the model is one that the format's readers would run as another.
    """
    said = [limit for see in (_activation, _windows, _shapes, _rope) for limit in see(reader, view)]
    said += reader.own(view)
    refused = [each.what for each in said if not each.note]
    if refused:
        others = "FP8 and NVFP4 folders keep config.json as it is; transformers goes by it."
        raise InputError(f"{view.label} cannot be said in {reader.format}: {'; '.join(refused)}", hint=others)
    return [each.what for each in said]


def config_notes(view: ModelView) -> list[str]:
    """Of a folder that keeps the config: what some of its readers refuse."""
    found = _other_activation(view.hyper)
    return [f"{found[0]} is {found[1]!r}: transformers runs it, vLLM refuses it"] if found else []


def window_period(hyper: Hyper) -> int | None:
    """n, where every n-th layer sees all and the others have a window; ``None`` for any other order."""
    slides = [window is not None for window in hyper.windows]
    period = slides.index(False) + 1 if False in slides else hyper.layers + 1
    return period if slides == [bool((i + 1) % period) for i in range(hyper.layers)] else None


def _other_activation(hyper: Hyper) -> tuple[str, str, str] | None:
    """The config's key, what it says, and what readers have instead."""
    gemma = "hidden_activation" in hyper.family.defaults
    if hyper.activation in (_GELU if gemma else _SILU):
        return None
    key, own = ("hidden_activation", "gelu_pytorch_tanh") if gemma else ("hidden_act", "silu")
    return key, hyper.activation, own


def _activation(reader: Reader, view: ModelView) -> Iterator[Limit]:
    if found := _other_activation(view.hyper):
        key, said, own = found
        yield Limit(f"{key} is {said!r}, and {reader.name}'s {view.family} always takes {own!r}")


def _windows(reader: Reader, view: ModelView) -> Iterator[Limit]:
    hyper = view.hyper
    window = min((each for each in hyper.windows if each is not None), default=None)
    if window is None or reader.windows(hyper.family):
        return
    if "sliding_window_pattern" in hyper.family.defaults:
        period = window_period(hyper)
        if period is None or period > hyper.layers:
            yield Limit(
                f"{reader.name} puts a layer without a window into every n-th place, and has at least one"
            )
    elif window >= hyper.context:
        what = f"the window of {window} tokens is not written: no text of {hyper.context} tokens reaches it"
        yield Limit(what, note=True)
    else:
        yield Limit(
            f"sliding_window is {window}, and {reader.name}'s {view.family} has no windows: beyond it "
            "its layers would see more than in training (set max_position_embeddings to the window to keep "
            "texts within it, or sliding_window to null if the model was trained without)"
        )


def _shapes(reader: Reader, view: ModelView) -> Iterator[Limit]:
    hyper = view.hyper
    if hyper.family.no_head_dim and hyper.heads * hyper.head_dim != hyper.hidden:
        yield Limit(
            f"head_dim is {hyper.head_dim}, and {reader.name}'s {view.family} divides hidden_size by the "
            "number of heads"
        )


def _rope(reader: Reader, view: ModelView) -> Iterator[Limit]:
    hyper = view.hyper
    if hyper.rope.kind not in reader.ropes:
        yield Limit(f"{reader.name} cannot turn by RoPE of type {hyper.rope.kind!r}")
    if hyper.local_rope is not None and hyper.local_rope.kind != "default":
        yield Limit(f"{reader.name} cannot scale RoPE in layers with a window ({hyper.local_rope.kind!r})")
