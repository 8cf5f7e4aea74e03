"""The offline engine: trace files in, findings out.

Imported as ``cdmtrace.analysis``.  No root, no bcc, no click in here, and pandas
only in ``frames.dataframe``.
"""

from cdmtrace.analysis.frames import Event, Gap, Terms, Trace, dataframe, load
from cdmtrace.analysis.replay import (
    Finding,
    Mm,
    Result,
    Verdict,
    cdm_pages,
    check,
    count_pages,
)

__all__ = [
    "Event",
    "Finding",
    "Gap",
    "Mm",
    "Result",
    "Terms",
    "Trace",
    "Verdict",
    "cdm_pages",
    "check",
    "count_pages",
    "dataframe",
    "load",
]
