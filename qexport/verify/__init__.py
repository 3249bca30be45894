"""Verification: nothing counts as exported until a runtime that its users use has run it.

:func:`verify_gguf` runs a file, :func:`verify_folder` a folder; both return a :class:`Report`, which
:mod:`qexport.verify.table` prints.
"""

from qexport.verify.options import VerifyOptions
from qexport.verify.report import Check, Finding, Report, Status
from qexport.verify.run import verify_gguf
from qexport.verify.run_folder import verify_folder
from qexport.verify.table import describe, render, rows

__all__ = [
    "Check",
    "Finding",
    "Report",
    "Status",
    "VerifyOptions",
    "describe",
    "render",
    "rows",
    "verify_folder",
    "verify_gguf",
]
