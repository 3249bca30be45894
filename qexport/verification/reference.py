"""The bf16 source itself, run by transformers, as the judge of what a file should have said.

The model is built on the meta device from the repaired config and filled tensor by tensor from the model
view, so what is judged against is what was exported: repairs applied, MTP head and vision tower left out.
Numbers are float32 where memory allows it (then every difference is the file's), else bf16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from qexport.errors import InputError
from qexport.evidence.modules import empty_model, fill, import_transformers, state_of
from qexport.evidence.quiet import quiet_transformers
from qexport.families.roles import Role
from qexport.verification.memory import SKIPPED_BLOCKS

if TYPE_CHECKING:
    from qexport.families.view import ModelView


# bf16 arithmetic moved mean differences by 0.008 on a model of 8 layers; deeper ones add up more.
_BF16_NOISE = 0.03


@dataclass(frozen=True)
class Scored:
    """What the reference thinks of one token, given everything before it."""

    token: int
    logprob: float
    greedy: int
    greedy_logprob: float
    top: tuple[tuple[int, float], ...] = ()

    @property
    def gap(self) -> float:
        """How much likelier the reference's own choice is, in nats; 0 when it is this token."""
        return self.greedy_logprob - self.logprob


class Reference(Protocol):
    """A model that scores tokens it is given (teacher forcing)."""

    @property
    def label(self) -> str: ...

    @property
    def noise(self) -> float:
        """What its own arithmetic adds to mean differences of log-probability."""
        ...

    def score(self, ids: Sequence[int], start: int, *, top: int = 8) -> tuple[Scored, ...]:
        """Scores of ``ids[start:]``, each given all ids before it; ``start`` is at least 1."""
        ...


class TransformersReference(Reference):
    """A causal language model of transformers on the CPU.

    Attributes:
        model: transformers' own.
        sight: what it is lent to for pictures (:class:`~qexport.verification.sight.SourceSight`), once made.
    """

    def __init__(self, model: Any, label: str, dtype: str) -> None:
        self.model = model
        self.sight: Any = None
        self._label = f"{label}, {dtype}"
        self._dtype = dtype

    @property
    def label(self) -> str:
        return self._label

    @property
    def noise(self) -> float:
        return 0.0 if self._dtype == "float32" else _BF16_NOISE

    def score(self, ids: Sequence[int], start: int, *, top: int = 8) -> tuple[Scored, ...]:
        """One forward pass over ``ids``."""
        import torch

        if not 1 <= start <= len(ids):
            raise ValueError(f"start is {start}, expected 1 to {len(ids)}")
        wanted = len(ids) - start
        if wanted == 0:
            return ()
        with quiet_transformers(), torch.inference_mode():
            tokens = torch.tensor([list(ids)])
            # Only the last positions' logits: a vocabulary of 250 000 makes each of them a megabyte.
            logits = self.model(tokens, logits_to_keep=wanted + 1, use_cache=False).logits[0, :-1]
            return scores_of(logits, ids[start:], top)


def scores_of(logits: Any, tokens: Sequence[int], top: int) -> tuple[Scored, ...]:
    """What each row of ``logits`` says of the token that came."""
    import torch

    logprobs = torch.log_softmax(logits.float(), dim=-1)
    best, places = logprobs.topk(min(max(top, 1), logprobs.shape[-1]), dim=-1)
    given = logprobs.gather(1, torch.tensor(list(tokens))[:, None])[:, 0]
    return tuple(
        Scored(
            token=int(token),
            logprob=float(given[i]),
            greedy=int(places[i, 0]),
            greedy_logprob=float(best[i, 0]),
            top=tuple(zip(places[i].tolist(), best[i].tolist(), strict=True)),
        )
        for i, token in enumerate(tokens)
    )


def reference_from_view(view: ModelView, *, dtype: str = "float32") -> TransformersReference:
    """The view's language model, its weights copied out of the view's pieces.

    Raises:
        EnvironmentProblem: transformers is missing or too old for this family.
        InputError: the view's tensors are not the model's.
    """
    import torch

    transformers = import_transformers()
    model = empty_model(view)
    kept, stored = getattr(torch, dtype), torch.float32
    wanted = state_of(model)
    # The decay's logarithm is exponentiated, the router's bias decides between near equals: modules and
    # runtimes keep them in float32 whatever the rest is.
    filled = fill(
        (tensor for tensor in view if tensor.block not in SKIPPED_BLOCKS),
        wanted,
        lambda tensor: stored if tensor.role in (Role.LINEAR_A_LOG, Role.ROUTER_BIAS) else kept,
    )
    missing = sorted(set(wanted) - set(filled))
    if missing:
        raise InputError(f"{view.label}: transformers expects {missing[0]!r}, which the model does not have")
    model.load_state_dict(filled, strict=False, assign=True)
    model.tie_weights()
    label = f"{view.label}, transformers {transformers.__version__}"
    return TransformersReference(model.eval(), label, dtype)
