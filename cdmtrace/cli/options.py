"""Options whose environment variable is named after the option as it is typed."""

from __future__ import annotations

import functools
import os

import click


class Option(click.Option):
    """A click option read from ``CDMTRACE_VERB_OPTION`` too.

    click itself would name the variable after the Python parameter, which differs
    where the option's name is taken (``--format``).
    """

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """Return the value of the option's environment variable, if it is set."""
        if ctx.auto_envvar_prefix is None or self.envvar is not None:
            return super().resolve_envvar_value(ctx)
        name = max(self.opts, key=len).lstrip("-").replace("-", "_").upper()
        return os.environ.get(f"{ctx.auto_envvar_prefix}_{name}") or None


option = functools.partial(click.option, cls=Option)
"""``click.option`` with :class:`Option`."""
