"""One recording while it runs: who may end it, and what is still to write then."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from typing import Final

from cdmtrace import looking
from cdmtrace.caller import caller
from cdmtrace.command import Command
from cdmtrace.drain import Drain
from cdmtrace.format.parts import Writer
from cdmtrace.loader import Loader
from cdmtrace.options import Options, Outcome
from cdmtrace.planning import Plan
from cdmtrace.ready import ready
from cdmtrace.signals import signals_to

DRAIN_INTERVAL: Final = 0.1
"""Seconds between two looks at the ring, unless a quarter of it is taken before."""


class Session:
    """One recording, from the first event to the end of the file."""

    def __init__(
        self,
        loader: Loader,
        writer: Writer,
        options: Options,
        say: Callable[[str], None],
        let_go: Callable[[], None] = lambda: None,
        viewer: int = 0,
    ) -> None:
        """Map the ring of a loader that is attached. Raises OSError.

        let_go: gives up what privileges are of no use once the command has started.
        viewer: the process that shows the recording, which is left out of it.
        """
        self._loader = loader
        self._writer = writer
        self._options = options
        self._say = say
        self._let_go = let_go
        self._viewer = viewer
        self._drain = Drain(loader, writer, options.ring_pages)
        self._command: Command | None = None
        self._signal: int | None = None
        self._watched: set[int] = set()
        self._alone = False

    def close(self) -> None:
        """Let go of the ring."""
        self._drain.close()

    def run(self, plans: tuple[Plan, ...]) -> Outcome:
        """Record until the command ends, time is up, or a signal comes."""
        options = self._options
        with self._signals(), contextlib.ExitStack() as stack:
            poll = select.epoll()
            stack.callback(poll.close)
            # Ready always means a quarter full here: what is in it wakes nobody else.
            poll.register(self._loader.ring_fd, select.EPOLLIN | select.EPOLLET)
            reason = ""
            if options.delay:
                self._start(stack, poll)
                self._say(f"recording begins in {options.delay:g} s")
                reason = self._wait(poll, time.monotonic() + options.delay)
            if not reason:
                self._begin(plans)
                if options.ready_file and self._signal is None:
                    stack.enter_context(ready(options.ready_file, caller()))
                if not options.delay and self._signal is None:
                    self._start(stack, poll)
                self._let_go()
                reason = self._drain_until(poll, self._deadline())
                if options.audit is not None:
                    self._look_again()
            status = self._status()
            self._loader.enable(False)
            # A handler that was past the switch may still be at work: look twice.
            self._drain()
            time.sleep(DRAIN_INTERVAL)
            self._drain()
            self._drain.write_waiting()
            self._writer.end(reason)
        return Outcome(
            events=self._writer.events,
            lost=self._drain.lost,
            size=self._writer.size,
            reason=reason,
            status=status,
            missing=tuple(p for p in plans if p.missing and not p.unwanted),
            files=self._writer.files,
        )

    def _deadline(self) -> float | None:
        if self._options.duration is None:
            return None
        return time.monotonic() + self._options.duration

    def _begin(self, plans: tuple[Plan, ...]) -> None:
        """Let events through, and look at what there is already."""
        self._options.filters.arm(self._loader)
        self._loader.enable(True)
        self._say("looking at what is there")
        why = looking.cannot_look(plans) or looking.look_before(
            self._drain,
            self._options.filters,
            lambda: self._signal is not None,
            self._viewer,
        )
        if why:
            self._say(f"what is there is not known whole: {why}")
        # From the row on that ends the look, in the order of the file.
        self._drain.limit(self._options.max_events)
        self._say("recording")

    def _start(self, stack: contextlib.ExitStack, poll: select.epoll) -> None:
        """Start the command, if any; wait for it, or for the processes named."""
        pids = self._options.filters.pids
        if self._options.command:
            self._command = Command(self._options.command)
            stack.callback(self._command.abandon)
            pids = (self._command.pid,)
        for pid in pids:
            try:
                fd = os.pidfd_open(pid)
            except OSError:
                # It has ended by now, or its number is that of a thread.
                continue
            stack.callback(os.close, fd)
            poll.register(fd, select.EPOLLIN)
            self._watched.add(fd)
        self._alone = bool(pids) and not self._watched

    def _have_ended(self, poll: select.epoll, seconds: float) -> str:
        """Return who has ended by then, when all that are waited for have; else ""."""
        for fd, _ in poll.poll(max(seconds, 0)):
            if fd == self._loader.ring_fd:
                continue
            poll.unregister(fd)
            self._watched.remove(fd)
            if not self._watched:
                return "the command" if self._command else "the traced process"
        return ""

    @staticmethod
    def _stopped(number: int) -> str:
        return f"stopped by {signal.Signals(number).name}"

    def _wait(self, poll: select.epoll, until: float) -> str:
        """Wait before recording begins; return why it does not, "" if it does."""
        while (left := until - time.monotonic()) > 0:
            ended = self._have_ended(poll, min(left, DRAIN_INTERVAL))
            if self._signal is not None:
                return self._stopped(self._signal)
            if ended:
                return f"{ended} ended before recording began"
        return ""

    def _drain_until(self, poll: select.epoll, deadline: float | None) -> str:
        audit = self._options.audit
        look = None if audit is None else time.monotonic() + audit
        while True:
            if audit is not None and look is not None and time.monotonic() >= look:
                self._look_again()
                look = time.monotonic() + audit
            left = 0 if self._drain.behind else DRAIN_INTERVAL
            if deadline is not None:
                left = min(left, deadline - time.monotonic())
            ended = self._have_ended(poll, 0 if self._alone else left)
            if self._alone:
                ended = "the traced process"
            self._drain()
            over = self._over()
            if self._signal is not None:
                return self._stopped(self._signal)
            if self._drain.full:
                return f"{self._options.max_events:,} events were recorded"
            if ended:
                return f"{ended} ended"
            if deadline is not None and time.monotonic() >= deadline:
                return "time was up"
            if over:
                return over

    def _over(self) -> str:
        """Return why there is nothing left to record, "" if there is."""
        return ""

    def _look_again(self) -> None:
        looking.look_again(self._drain, self._options.freeze, self._say, self._viewer)

    def _status(self) -> int:
        """Return the command's status, ending it first if recording was stopped."""
        if self._command is not None:
            told = self._signal == signal.SIGINT
            return self._command.finish(self._drain, told=told)
        # A command that a signal kept from being started.
        return 128 + self._signal if self._signal and self._options.command else 0

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Note SIGINT, SIGTERM and SIGHUP instead of dying of them."""

        def note(number: int) -> None:
            self._signal = number

        with signals_to(note):
            # A file that may not grow is an error to report, not a reason to die.
            before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            try:
                yield
            finally:
                signal.signal(signal.SIGXFSZ, before)
