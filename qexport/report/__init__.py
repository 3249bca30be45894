"""Reports: what was exported, how close it is to the original, how fast it runs, from receipts alone.

:func:`write_report` writes ``report.html``, ``report.md`` and ``report.json``; :func:`gather` gives the
:class:`Report` they are made from.
"""

from qexport.receipt.types import Gate
from qexport.report.gather import gather
from qexport.report.report import Model, Report
from qexport.report.write import ReportPaths, save_report, write_report

__all__ = ["Gate", "Model", "Report", "ReportPaths", "gather", "save_report", "write_report"]
