"""Signals that would end us: they wait, or they are told in an orderly way."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final, NoReturn

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What a person, a service or a terminal that closes ends a command with."""


class Ended(BaseException):
    """A signal other than Ctrl-C, raised where it arrived.

    As KeyboardInterrupt, it is no Exception: who takes any of those for a damaged file,
    or for a fault of somebody's rule, must not do so with this.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return f"ended by {signal.Signals(self.number).name}"


@contextlib.contextmanager
def signals_later() -> Iterator[None]:
    """Have signals that would end us wait until the end of the block.

    They wait for this thread: any other has to have been started within such a block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Have signals that would end us wait until the end of the block, whichever thread
    takes them: a handler of Python's runs in the main thread, whatever that one blocks.
    """
    came: list[int] = []
    with signals_later(), signals_to(came.append):
        yield
    if came:
        signal.raise_signal(came[0])


@contextlib.contextmanager
def signals_to(handler: Callable[[int], None]) -> Iterator[None]:
    """Have a handler called with the number of a signal that would end us.

    One that is ignored stays so: nohup means it. For the main thread only, as all
    handlers are Python's.
    """

    def called(number: int, frame: FrameType | None) -> None:
        del frame
        handler(number)

    before = {
        kind: signal.signal(kind, called)
        for kind in ENDING
        if signal.getsignal(kind) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for kind, former in before.items():
            signal.signal(kind, former)


def no_more_signals() -> None:
    """Ignore what would end us: a second one must not break the cleaning-up."""
    for kind in ENDING:
        signal.signal(kind, signal.SIG_IGN)


@contextlib.contextmanager
def signals_unwind() -> Iterator[Callable[[], None]]:
    """Have a signal that would end us leave the block, and clean up on its way.

    Raises KeyboardInterrupt, or :class:`Ended`, where the signal arrives. Whose turn it
    is there may drop it: numpy drops whatever is raised while it asks an object's class
    what it can do, which for an enum of Python 3.11 is answered in Python. So it is
    raised again at the end of the block; and by what the block is given, which is to be
    called before anything that cannot be undone.
    """
    came: list[int] = []

    def unwind(number: int) -> NoReturn:
        no_more_signals()
        came.append(number)
        raise _raised(number)

    def raise_dropped() -> None:
        if came:
            raise _raised(came[0])

    with signals_to(unwind):
        yield raise_dropped
        raise_dropped()


def _raised(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else Ended(number)
