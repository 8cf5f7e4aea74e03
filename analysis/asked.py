"""What recordings are judged by, as whoever calls has asked for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cdmtrace.analysis import replay
from cdmtrace.analysis.book import VERDICT, Bounds
from cdmtrace.analysis.frames import Trace
from cdmtrace.analysis.partition import Share
from cdmtrace.analysis.permissions import Permissions
from cdmtrace.analysis.profiles import PROFILES
from cdmtrace.analysis.result import Result
from cdmtrace.analysis.rules import Rule
from cdmtrace.analysis.verdicts import Counted, result_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What to judge by.

    rules: ids; None: all that the profile is about. own: rules from files.
    """

    rules: frozenset[str] | None
    profile: str
    permissions: Permissions
    own: tuple[Rule, ...] = ()

    def judge(self, trace: Trace, bounds: Bounds = VERDICT) -> Result:
        """Return what comes of a recording. bounds: what is kept of it.

        Raises TraceFileError and RuleFault, as replay.check() does.
        """
        return replay.check(
            trace,
            profile=self.profile,
            rules=self.rules,
            permissions=self.permissions,
            bounds=bounds,
            own=self.own,
        )

    def of_share(self, trace: Trace, share: Share) -> Counted:
        """Return what a share of a recording comes to, for result().

        Without rules from files: what they keep in mind of other rows nobody knows.
        """
        return replay.of_share(
            trace,
            share,
            profile=self.profile,
            rules=self.rules,
            permissions=self.permissions,
            bounds=VERDICT,
        )

    def result(self, trace: Trace, parts: Sequence[Counted]) -> Result:
        """Return what judge() does. parts: what each share of the recording came to."""
        return result_of(trace, PROFILES[self.profile], self.permissions, parts)
