"""What verification finds, by the names of :mod:`qexport.receipt.verification`, where it lives."""

from qexport.receipt.verification import REQUIRED, Check, Finding, Report, Status

__all__ = ["REQUIRED", "Check", "Finding", "Report", "Status"]
