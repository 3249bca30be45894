"""The Hugging Face client while it pushes: its log, its bars and its patience.

The client logs every retry with the signed address it was for, waits without limit for an answer, and draws
bars whether or not anybody looks. Here its warnings go where ours go, without signatures; a silent server
counts as a broken connection; and bars are drawn on terminals only.

How it sends is the client's own choice: Xet where ``hf_xet`` is installed and ``HF_HUB_DISABLE_XET`` is not
set, else LFS.
https://github.com/huggingface/huggingface_hub/blob/main/src/huggingface_hub/_commit_api.py (_upload_files)
"""

from __future__ import annotations

import logging
import warnings
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from qexport.checkpoint.hub_errors import hub_http
from qexport.publishing.problems import without_secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


_LOGGER = "huggingface_hub"


@contextmanager
def composed(say: Callable[[str], None], *, bars: bool, timeout: float) -> Iterator[None]:
    """Run client calls inside.

    Args:
        say: takes the client's warnings, a line each.
        bars: let the client draw its own.
        timeout: seconds without a byte before a request counts as broken. A client that was made anew after
            a refused connection goes without.
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    with ExitStack() as stack:
        stack.enter_context(_log_to(say))
        # Set to 0 in the environment, bars cannot be disabled, and the client warns when one tries.
        if not bars and constants.HF_HUB_DISABLE_PROGRESS_BARS is not False:
            stack.enter_context(disable_progress_bars())
        session = get_session()
        before, session.timeout = session.timeout, hub_http().Timeout(timeout, connect=min(timeout, 30.0))
        try:
            yield
        finally:
            session.timeout = before


@contextmanager
def _log_to(say: Callable[[str], None]) -> Iterator[None]:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(f"  {without_secrets(record.getMessage())}")

    logger = logging.getLogger(_LOGGER)
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [Handler(logging.WARNING)], False
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        for warning in caught:
            if issubclass(warning.category, UserWarning):
                say(f"  {without_secrets(str(warning.message))}")
    finally:
        logger.handlers, logger.propagate = handlers, propagate
