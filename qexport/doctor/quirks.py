"""The table of known quirks. A newcomer is one more entry in the tuple of its kind; order is order of repair.

MTP heads have rules of their own, since what is right depends on what the user wants: ``mtp.py``.
"""

from __future__ import annotations

from qexport.doctor.quirk import Quirk
from qexport.doctor.quirks_config import CONFIG_QUIRKS
from qexport.doctor.quirks_ends import END_QUIRKS
from qexport.doctor.quirks_files import FILE_QUIRKS
from qexport.doctor.quirks_names import NAME_QUIRKS
from qexport.doctor.quirks_tokenizer import TOKENIZER_QUIRKS
from qexport.doctor.quirks_vocabulary import VOCABULARY_QUIRKS
from qexport.doctor.quirks_weights import WEIGHT_QUIRKS

QUIRKS: tuple[Quirk, ...] = (
    *NAME_QUIRKS,
    *WEIGHT_QUIRKS,
    *VOCABULARY_QUIRKS,
    *END_QUIRKS,
    *FILE_QUIRKS,
    *TOKENIZER_QUIRKS,
    *CONFIG_QUIRKS,
)
