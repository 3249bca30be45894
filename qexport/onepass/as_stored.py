"""What a plan would give, unwritten: a model view whose rows are encoded and decoded as they are read.

The pass asks a plan for bytes; here the same rows go through the same encoders and straight back, so whatever
runs or compares an artifact can run and compare one that does not exist. Numbers are those that reading the
written artifact gives. Rows are encoded each time they are asked for; nothing is kept but largest magnitudes.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING

from qexport.artifacts.rows import DecodedCheckpoint
from qexport.checkpoint.tensors import LogicalTensor, Piece, matrix_shape
from qexport.codecs.contract import Float
from qexport.codecs.decoded import decode
from qexport.codecs.engines import ENGINES, Engine, encode_rows
from qexport.errors import InputError
from qexport.families.roles import Role
from qexport.formats.turned import turned
from qexport.onepass.execute import default_threads
from qexport.onepass.needs import Needs
from qexport.onepass.rows import arranged_rows
from qexport.onepass.runs import spans_of
from qexport.onepass.steps import Lane, merge_steps

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from qexport.artifacts.rows import Decoded
    from qexport.codecs.contract import Matrices
    from qexport.families.view import ModelView
    from qexport.formats.plan import ArtifactPlan, PlannedTensor
    from qexport.onepass.steps import Output, Step


def as_stored(
    view: ModelView,
    plans: Sequence[ArtifactPlan],
    *,
    threads: int | None = None,
    engines: Sequence[Engine] = ENGINES,
) -> ModelView:
    """The model that artifacts of these plans stand for, over the data of ``view``.

    Args:
        view: the source that the plans were made of, its data at hand.
        plans: of one artifact, or of a trunk and its drafter; where both have a tensor, the first's.
        threads: of the encoders; every processor by default.
        engines: who encodes.

    Raises (here, and when rows are read):
        InputError: there are weights that a type cannot store.
    """
    known = _Known(plans, engines)
    pool = ThreadPoolExecutor(threads or default_threads(), thread_name_prefix="as stored")
    decoded: dict[str, Decoded] = {}
    places: dict[tuple[int, str], list[tuple[Piece, str, int]]] = {}
    for number, plan in enumerate(plans):
        for tensor in plan.tensors:
            name = f"{number}/{tensor.name}"
            rows = _Rows((number, tensor), known, pool, engines)
            decoded[name] = _as_source(rows, tensor)
            left, at = matrix_shape(decoded[name].shape)[0], 0
            for piece in tensor.source.pieces:
                taken = replace(piece, stop=min(piece.stop, piece.start + left - at))
                places.setdefault((id(piece.checkpoint), piece.name), []).append((taken, name, at))
                at += taken.rows
    checkpoint = DecodedCheckpoint(view.label, decoded)
    moved = ((tensor, _moved(tensor.data, places, checkpoint)) for tensor in view)
    tensors = tuple(replace(tensor, data=data) for tensor, data in moved if data is not None)
    text = dict(view.text)
    if embedding := next((each for each in tensors if each.role is Role.TOKEN_EMBD), None):
        text["vocab_size"] = embedding.shape[0]  # llama.cpp has no rows beyond the last token
    head = view.mtp_layers if any(each.role is Role.MTP_FC for each in tensors) else 0
    return replace(view, tensors=tensors, text=text, mtp_layers=head, resolved=None)


def _as_source(rows: Decoded, tensor: PlannedTensor) -> Decoded:
    """In the source's order; an embedding that was cut short stays so."""
    order = tensor.arrangement
    if order.row_order is None and rows.shape[0] < tensor.source.shape[0]:
        return rows
    return turned(rows, order, tensor.source.shape)


def _moved(
    data: LogicalTensor, places: dict[tuple[int, str], list[tuple[Piece, str, int]]], to: DecodedCheckpoint
) -> LogicalTensor | None:
    """The tensor with its rows taken from ``to``; ``None`` where the plans do not have it."""
    pieces: list[Piece] = []
    for piece in data.pieces:
        at = piece.start
        while at < piece.stop:
            known = places.get((id(piece.checkpoint), piece.name), ())
            found = next((each for each in known if each[0].start <= at < each[0].stop), None)
            if found is None:
                break
            there, name, row = found
            stop = min(piece.stop, there.stop)
            pieces.append(Piece(to, name, row + at - there.start, row + stop - there.start))
            at = stop
    rows = sum(piece.rows for piece in pieces)
    if not rows:
        return None
    whole = data.matrix_shape[0]
    shape = data.shape if rows == whole else (rows * data.shape[0] // whole, *data.shape[1:])
    dtype = "F32" if any(to.tensors[piece.name].dtype == "F32" for piece in pieces) else data.dtype
    return LogicalTensor(data.name, shape, dtype, tuple(pieces))


class _Known:
    """What the encoders need to know, found when it is first asked for."""

    def __init__(self, plans: Sequence[ArtifactPlan], engines: Sequence[Engine]) -> None:
        self._steps = merge_steps(plans)
        self._needs = Needs(plans, self._steps)
        self._engines = engines
        self._step_of = {
            (number, tensor.name): step for step in self._steps for number, tensor in step.outputs
        }
        self._lock = Lock()

    def of(self, output: Output, pool: ThreadPoolExecutor) -> Matrices:
        number, tensor = output
        with self._lock:
            step: Step = self._step_of[number, tensor.name]
            self._needs.survey(step, lambda lane: spans_of(lane, self._engines), pool)
            return self._needs.known(output)


class _Rows:
    """One planned tensor, encoded and decoded, in the order of the plan."""

    def __init__(
        self, output: Output, known: _Known, pool: ThreadPoolExecutor, engines: Sequence[Engine]
    ) -> None:
        self._output = output
        self._known = known
        self._pool = pool
        self._engines = engines
        tensor = output[1]
        self.shape = tensor.shape
        plain = isinstance(tensor.stored, Float) and tensor.stored.name in ("BF16", "F16")
        self.dtype = tensor.stored.name if plain else "F32"

    def read(self, start: int, stop: int) -> torch.Tensor:
        import torch

        tensor = self._output[1]
        known = self._known.of(self._output, self._pool)
        together = tensor.stored.rows_together
        low = start // together * together
        high = min(tensor.matrix_shape[0], math.ceil(stop / together) * together)
        lane = Lane((self._output,))
        spans = ((max(low, first), min(high, last)) for first, last in spans_of(lane, self._engines))
        parts = self._pool.map(
            lambda span: self._there_and_back(known, *span), [span for span in spans if span[0] < span[1]]
        )
        return torch.cat(list(parts))[start - low : stop - low]

    def _there_and_back(self, known: Matrices, start: int, stop: int) -> torch.Tensor:
        import torch

        tensor = self._output[1]
        rows = arranged_rows(tensor.source, tensor.arrangement, start, stop)
        try:
            encoded = encode_rows(tensor.stored, rows, start, known, self._engines)
        except InputError as error:
            raise InputError(f"{tensor.name}: {error.message}", hint=error.hint) from error
        columns, source = tensor.matrix_shape[1], tensor.source.dtype
        parts = known.parts(start, stop - start)
        return torch.cat(
            [
                decode(tensor.stored, streams, columns, part, source)
                for streams, (part, _, _) in zip(encoded, parts, strict=True)
            ]
        )
