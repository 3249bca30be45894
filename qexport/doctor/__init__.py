"""The doctor: known quirks of checkpoints as a table, the MTP head, and the repaired checkpoint."""

from qexport.doctor.diagnose import Diagnosis, diagnose
from qexport.doctor.explain import Explanation, explain
from qexport.doctor.finding import Breaks, Finding, Severity
from qexport.doctor.mtp import MtpMode
from qexport.doctor.quirk import Quirk
from qexport.doctor.quirks import QUIRKS
from qexport.doctor.repaired import Repaired

__all__ = [
    "QUIRKS",
    "Breaks",
    "Diagnosis",
    "Explanation",
    "Finding",
    "MtpMode",
    "Quirk",
    "Repaired",
    "Severity",
    "diagnose",
    "explain",
]
