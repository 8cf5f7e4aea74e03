"""The command line: one module per verb, and no logic in any of them."""

from cdmtrace.cli.main import main

__all__ = ["main"]
