"""The streamed pass divided over processes that torchrun started: on one machine, or on many.

Each process takes every n-th chunk through the same layers, on a device of its own. They meet after every
layer, so that what is wrong in one of them ends all of them, and then add up what they summed. The first one
speaks and writes. Texts are independent of each other, so the result is that of one process, within rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from qexport.errors import EnvironmentProblem, QexportError, UsageProblem

if TYPE_CHECKING:
    import numpy as np
    import torch

    from qexport.evidence.options import StreamOptions


# A process that dies closes its connections, which is noticed at once; a slow one is waited for.
_PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class Ranks:
    """Which of several processes this is; alone by default.

    Attributes:
        rank, count: its number among all, and how many there are.
        local, beside: its number on this machine, and how many this machine has.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    beside: int = 1

    def share(self, rows: np.ndarray) -> np.ndarray:
        """Those of ``rows`` that are this process's."""
        return rows[self.rank :: self.count]

    def options(self, stream: StreamOptions) -> StreamOptions:
        """A device and memory of its own."""
        from qexport.evidence.machine import available_memory

        if self.count == 1:
            return stream
        if stream.device.startswith("cuda:"):
            raise UsageProblem(
                f"{self.count} processes cannot share {stream.device}",
                hint="Give --device cuda: each takes the one with its number.",
            )
        device = f"cuda:{self.local}" if stream.device == "cuda" else stream.device
        memory = stream.activation_memory
        given = available_memory() // 2 if memory is None else memory
        return replace(stream, device=device, activation_memory=given // self.beside)

    @contextmanager
    def together(self) -> Iterator[None]:
        """While it lasts the processes can meet; what is raised in one of them is raised in all."""
        if self.count == 1:
            yield
            return
        import torch
        from torch import distributed

        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=_PATIENCE)
        try:
            try:
                yield
            except QexportError as problem:
                self.meet(problem)
            self.meet()
        except _Elsewhere as elsewhere:
            raise elsewhere.problem from None
        finally:
            distributed.destroy_process_group()

    def meet(self, problem: QexportError | None = None) -> None:
        """Wait for the others; where one of them has a problem, everybody ends with it."""
        if self.count == 1:
            return
        for rank, theirs in enumerate(self._told(problem)):
            if theirs is not None:
                if rank:
                    theirs.message = f"process {rank + 1} of {self.count}: {theirs.message}"
                raise _Elsewhere(theirs)

    def added(
        self, tables: Mapping[str, np.ndarray], device: str | torch.device = "cpu"
    ) -> dict[str, np.ndarray]:
        """The sums of all processes, by name; a process need not have all of them."""
        import numpy as np
        import torch
        from torch import distributed

        if self.count == 1:
            return dict(tables)
        self.meet()
        kinds: dict[str, tuple[tuple[int, ...], str]] = {}
        for theirs in self._told({name: (table.shape, table.dtype.str) for name, table in tables.items()}):
            kinds |= theirs
        found = {}
        for name, (shape, dtype) in sorted(kinds.items()):
            mine = tables[name] if name in tables else np.zeros(shape)
            total = torch.from_numpy(mine.astype(np.float64)).to(device)
            with _heard():
                distributed.all_reduce(total)
            found[name] = total.cpu().numpy().astype(dtype)
        return found

    def _told(self, mine: Any) -> list[Any]:
        from torch import distributed

        found: list[Any] = [mine] * self.count
        with _heard():
            distributed.all_gather_object(found, mine)
        return found


ALONE = Ranks()


def here() -> Ranks:
    """What torchrun says of this process; alone where there is none."""
    known = os.environ
    if "TORCHELASTIC_RUN_ID" not in known:
        return ALONE
    words = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Ranks(*(int(known[word]) for word in words))


class _Elsewhere(Exception):
    """A problem that all processes know of."""

    def __init__(self, problem: QexportError) -> None:
        super().__init__(problem)
        self.problem = problem


@contextmanager
def _heard() -> Iterator[None]:
    """A connection that broke is a process that ended without a word."""
    try:
        yield
    except RuntimeError as error:
        problem = EnvironmentProblem(
            f"another of the processes that torchrun started has ended ({str(error).splitlines()[0]})",
            hint="What it said is above, or in its log.",
        )
        raise _Elsewhere(problem) from error
