"""Verification: nothing counts as exported until a runtime that its users use has run it.

:func:`verify_gguf` runs a file and returns a :class:`Report`; :mod:`qexport.verify.table` prints reports.
"""

from qexport.verify.report import Check, Finding, Report, Status
from qexport.verify.run import VerifyOptions, verify_gguf
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
    "verify_gguf",
]
