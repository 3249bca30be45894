"""A session with a runtime that answers JSON lines (``children/programs/child.py``)."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from qexport.verification.runtime import Generation, Predicted, Session

if TYPE_CHECKING:
    from pathlib import Path

    from qexport.children.process import ChildProcess
    from qexport.verification.sight import Seen


Answer = TypeVar("Answer")


class LineSession(Session):
    """A child that has said that it is ready, ours to kill.

    Args:
        ready: what it said, its first line.
    """

    def __init__(self, process: ChildProcess, ready: Mapping[str, Any]) -> None:
        try:
            facts = {str(key): value for key, value in dict(ready["facts"]).items()}
            super().__init__(process, str(ready["version"]), float(ready["load_s"]), facts)
        except (KeyError, TypeError, ValueError) as error:
            raise process.nonsense("its start", repr(error)) from error

    def render_chat(self, messages: Sequence[dict[str, str]]) -> str:
        return self._ask("render_chat", _text, messages=list(messages))

    def tokenize(self, text: str, *, add_special: bool) -> tuple[int, ...]:
        return self._ask("tokenize", _ids, text=text, add_special=add_special)

    def source_ids(
        self, folder: Path, texts: Sequence[str], *, add_special: bool
    ) -> list[tuple[int, ...]] | None:
        def read(answer: Any) -> list[tuple[int, ...]]:
            if len(answer) != len(texts):
                raise ValueError("ids of other texts")
            return [_ids(ids) for ids in answer]

        return self._ask(
            "tokenize_with", read, folder=str(folder), texts=list(texts), add_special=add_special
        )

    def ends(self) -> frozenset[int] | None:
        found = self.facts.get("ends")
        return None if found is None else frozenset(_ids(found))

    def see(self, seen: Seen, *, n_predict: int, n_probs: int) -> Generation:
        if not self.facts.get("sees"):
            return super().see(seen, n_predict=n_predict, n_probs=n_probs)
        given = {"picture": _picture(seen), "image_token": seen.image_token}
        return self._answer(seen.ids, n_predict, n_probs, **given)

    def embed(self, seen: Seen) -> np.ndarray:
        if not self.facts.get("sees"):
            return super().embed(seen)
        return self._ask("embed", _rows, picture=_picture(seen))

    def generate(self, prompt_ids: Sequence[int], *, n_predict: int, n_probs: int) -> Generation:
        return self._answer(prompt_ids, n_predict, n_probs)

    def _answer(self, prompt_ids: Sequence[int], n_predict: int, n_probs: int, **given: Any) -> Generation:
        def read(answer: Any) -> Generation:
            return Generation(
                prompt_ids=tuple(prompt_ids),
                steps=_steps(answer["steps"]),
                text=_text(answer["text"]),
                stop=_text(answer["stop"]),
                prompt_tok_s=float(answer.get("prompt_tok_s", 0.0)),
                tok_s=float(answer.get("tok_s", 0.0)),
                draft_n=int(answer.get("draft_n", 0)),
                draft_accepted=int(answer.get("draft_accepted", 0)),
            )

        ids = list(prompt_ids)
        return self._ask("generate", read, ids=ids, n_predict=n_predict, n_probs=n_probs, **given)

    def score(self, ids: Sequence[int], start: int, *, top: int = 8) -> tuple[Predicted, ...]:
        if not 1 <= start <= len(ids):
            raise ValueError(f"start is {start}, expected 1 to {len(ids)}")

        def read(answer: Any) -> tuple[Predicted, ...]:
            steps = _steps(answer)
            if [step.token for step in steps] != list(ids[start:]):
                raise ValueError("scores of other tokens")
            return steps

        return self._ask("score", read, ids=list(ids), start=start, top=top)

    def _ask(self, do: str, read: Callable[[Any], Answer], **given: Any) -> Answer:
        """One call; every way for it to go wrong is a RuntimeFailure."""
        result = self.process.ask(do, **given)
        try:
            return read(result)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self.process.nonsense(do, repr(error)) from error


def _steps(values: Any) -> tuple[Predicted, ...]:
    return tuple(
        Predicted(
            int(token),
            None if logprob is None else float(logprob),
            tuple((int(other), float(value)) for other, value in top),
        )
        for token, logprob, top in values
    )


def _picture(seen: Seen) -> dict[str, Any]:
    """Its bytes, and what transformers' processor would make of them."""
    height, width, _ = seen.pixels.shape
    inputs = {
        name: {"shape": values.shape, "dtype": str(values.dtype), "data": _base64(values)}
        for name, values in seen.inputs.items()
    }
    return {"width": width, "height": height, "rgb": _base64(seen.pixels), "inputs": inputs}


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _rows(answer: Any) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(answer["rows"]), dtype="<f4")
    return values.reshape(int(answer["tokens"]), -1)


def _ids(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {type(value).__name__}")
    return value
