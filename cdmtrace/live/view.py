"""What a viewer knows of a recording, and the loop that draws it.

The file is read twice. One pass counts rows and losses and keeps up with any recorder;
the other one feeds the model, takes what time there is, and says how far it is behind.
What it has not come to lies in the file and not in memory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Final

from rich.console import Console
from rich.live import Live as Screen

from cdmtrace.analysis import names
from cdmtrace.analysis.frames import Terms
from cdmtrace.analysis.live import Live
from cdmtrace.analysis.result import Finding, Verdict
from cdmtrace.errors import TraceFileError
from cdmtrace.format.follow import Follower
from cdmtrace.live.process import AS_IT_WAS, TAKEN
from cdmtrace.live.rates import Rates
from cdmtrace.render import live as render

PERIOD: Final = 0.5
"""Seconds from one picture to the next."""

SHARE: Final = 8
"""Drawing takes one part in so many of the time at most: else there are fewer."""

FEW: Final = 64
"""Rows that the model gets between two looks at the clock."""

SHOWN: Final = 200
"""VMAs and findings that a picture is given; more do not fit on a screen."""


class View:
    """A recording that is followed. Nothing here waits."""

    def __init__(self, fd: int, path: str, *, profile: str = "intended") -> None:
        """Read the header. Raises TraceFileError as Follower does."""
        self._path = path
        self._fast = Follower(fd, path)
        self._slow = Follower(fd, path)
        header = self._fast.header
        self._started = header.started
        self._rates = Rates(header, time.monotonic_ns())
        self._live = Live(header, path, profile=profile)
        self._about = _about(self._live.terms)
        self._rows = self._feed()
        self._refused: str | None = None
        self.stage = "recording"

    @property
    def over(self) -> bool:
        """Whether all that the file will ever hold has been seen, and judged."""
        judged = self._slow.over and not self.behind
        return self._fast.over and (judged or self._refused is not None)

    @property
    def behind(self) -> int:
        """Events that are in the file and that the model has not seen."""
        # What came between the two passes is not counted yet.
        return max(self._fast.events - self._live.events, 0)

    def count(self, until: float) -> None:
        """Count what has come. until: time.monotonic() at which to leave the rest."""
        for batch in self._fast.new():
            self._rates.add(batch, time.monotonic_ns())
            if time.monotonic() > until:
                break

    def judge(self, until: float) -> bool:
        """Feed the model; return whether it has all that there is."""
        while time.monotonic() < until:
            for _ in range(FEW):
                if not next(self._rows):
                    return True
        return False

    def _feed(self) -> Iterator[bool]:
        """Feed a row each time; yield whether there was one."""
        while True:
            try:
                for batch in [] if self._refused else self._slow.new():
                    for _ in self._live.feed(batch):
                        yield True
                    # One may hold losses and no row: the clock is to be seen then, too.
                    yield True
            except TraceFileError as error:
                # check would not take the file either; its rows are still counted.
                self._refused = error.message
            yield False

    def frame(self) -> render.Frame:
        """Return the picture as it is now."""
        now = self._rates.now(time.monotonic_ns())
        end = self._fast.end
        if self._fast.over:
            # No more comes: what is told last is what there was.
            now = self._rates.now(0)
        result = self._live.result()
        tagged = self._live.tagged()
        rates = self._rates.rates(now)
        rules = [one for one in result.rules if one.findings]
        return render.Frame(
            path=self._path,
            about=self._about,
            stage=self.stage if end is None else f"ended: {end}",
            running=not self._fast.over,
            since_start=now - self._started,
            events=self._fast.events,
            size=self._fast.at,
            per_second=sum(rate.per_second for rate in rates),
            lost=self._rates.lost,
            behind=self.behind,
            history=self._rates.history(now),
            probes=[
                render.ProbeLine(
                    probe=rate.probe,
                    events=rate.events,
                    per_second=rate.per_second,
                    lost=rate.lost,
                )
                for rate in rates
            ],
            vmas=[
                render.VmaLine(
                    pid=vma.pid,
                    comm=vma.comm,
                    start=vma.start,
                    end=vma.end,
                    policy=vma.policy,
                    flags=" ".join(vma.flags),
                    pages=vma.pages,
                )
                for vma in tagged[:SHOWN]
            ],
            vmas_in_all=len(tagged),
            rules=[
                render.RuleLine(
                    rule=one.rule.id,
                    name=one.rule.name,
                    severity=one.rule.severity.value,
                    findings=one.findings,
                )
                for one in sorted(rules, key=lambda one: -one.findings)
            ],
            latest=[self._finding(f) for f in result.findings[: -SHOWN - 1 : -1]],
            open_rules=sum(one.verdict is Verdict.INCONCLUSIVE for one in result.rules),
            damage=self._fast.damage or self._slow.damage or self._refused,
        )

    def _finding(self, finding: Finding) -> render.FindingLine:
        last = finding.witness[-1].since_start if finding.witness else 0
        return render.FindingLine(
            since_start=last,
            rule=finding.rule.id,
            name=finding.rule.name,
            severity=finding.rule.severity.value,
            cause=finding.cause,
            comm=finding.mm.comm,
            pid=finding.mm.pid,
            start=finding.start,
            end=finding.end,
            count=finding.count,
        )


def _about(terms: Terms) -> str:
    tag = f"bit {terms.tag.bit_length() - 1}" if terms.tag else "none (shadow mode)"
    return f"Linux {terms.kernel}, CDM node {names.nodes(terms.cdm)}, VM_CDM {tag}"


def drawable(console: Console) -> bool:
    """Return whether there is a terminal on which a picture can be drawn anew."""
    # rich takes any file for a terminal where FORCE_COLOR is set.
    return console.file.isatty() and not console.is_dumb_terminal


def follow(view: View, console: Console, wait: Callable[[float], bool]) -> None:
    """Draw until the recording is over.

    wait: waits for so many seconds at most, and returns whether to go on. It is called
    again and again while the model has work, too, then with 0 seconds.

    Raises OSError if the terminal has gone.
    """
    with Screen(
        console=console,
        screen=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as screen:
        pause = PERIOD
        while True:
            due = time.monotonic() + pause
            view.count(due)
            done = view.judge(due)
            begin = time.monotonic()
            frame = view.frame()
            width, height = console.size
            screen.update(render.render(frame, width, height), refresh=True)
            if not drawable(console):
                # rich draws nothing then, and says nothing.
                raise OSError(errno.EIO, "the terminal has gone")
            pause = max(PERIOD, SHARE * (time.monotonic() - begin))
            if view.over:
                return
            left = due - time.monotonic() if done else 0
            if not wait(max(left, 0)):
                return


def stoppable(fd: int) -> None:
    """Give the terminal back while Ctrl-Z has us stopped, and take it again after."""

    def stop(number: int, frame: object) -> None:
        del number, frame
        # A terminal that has gone is noticed by who draws.
        with contextlib.suppress(OSError):
            os.write(fd, AS_IT_WAS)
        os.kill(os.getpid(), signal.SIGSTOP)
        with contextlib.suppress(OSError):
            os.write(fd, TAKEN)

    if signal.getsignal(signal.SIGTSTP) is not signal.SIG_IGN:
        signal.signal(signal.SIGTSTP, stop)


def console_for(fd: int) -> Console:
    """Return a console that writes to a terminal's descriptor, whatever its locale."""
    stream = open(fd, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    return Console(file=stream, highlight=False, markup=False, emoji=False)
