"""The offline engine: trace files in, findings out.

Imported as ``cdmtrace.analysis``.  No root, no bcc, no click in here; pandas only in
``frames.dataframe`` and ``notebook``, and there when it is asked for.
"""

from cdmtrace.analysis.frames import Event, Gap, Terms, Trace, dataframe, load
from cdmtrace.analysis.holding import cdm_pages, count_pages
from cdmtrace.analysis.notebook import DataFrames
from cdmtrace.analysis.replay import check
from cdmtrace.analysis.result import Finding, Mm, Result, Verdict

__all__ = [
    "DataFrames",
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
