"""One run at a time in a folder: a lock file that the kernel lets go of when its holder dies, however."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from qexport.errors import EnvironmentProblem
from qexport.onepass.files import set_aside, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path


LOCK_NAME = ".qexport-lock"


@contextmanager
def locked(
    folders: Iterable[Path], say: Callable[[str], None] = silent, *, wait: float = 0.0
) -> Iterator[None]:
    """Hold the locks of these folders, which are there. One folder by two names is locked once.

    Args:
        say: is told what had a lock's name and was none.
        wait: seconds, where another run holds one.

    Raises:
        EnvironmentProblem: another run holds one, or a folder cannot be written to.
    """
    with ExitStack() as stack:
        held: set[tuple[int, int]] = set()
        for folder in folders:
            try:
                status = folder.stat()
                if (status.st_dev, status.st_ino) not in held:
                    stack.enter_context(_held(folder, say, wait))
                    held.add((status.st_dev, status.st_ino))
            except OSError as error:
                raise EnvironmentProblem(
                    f"{folder.name or folder} cannot be written to: {error.strerror or error}",
                    hint="Choose another --out.",
                ) from error
        yield


@contextmanager
def _held(folder: Path, say: Callable[[str], None], wait: float) -> Iterator[None]:
    from filelock import FileLock, Timeout  # 80 ms that no --help has to wait for

    path = folder / LOCK_NAME
    set_aside(path, say, unless_plain=True)
    lock = FileLock(path, timeout=wait, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise EnvironmentProblem(
            f"another run is writing into {folder.name or folder}",
            hint="Wait for it, or choose another --out.",
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)  # while it is held: who has it open already looks again
        lock.release()
