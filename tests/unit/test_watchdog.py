from __future__ import annotations

import pytest

from cdmtrace.lab.watchdog import Fate, Limits, Outcome, Watchdog

LIMITS = Limits(total=100, boot=30, panic=5, oops=20)

BOOT = b"[    0.000000] Linux version 6.1.0\n"
PANIC = b"[    9.1] Kernel panic - not syncing: Attempted to kill init!\n"
OOPS = b"[    9.1] BUG: kernel NULL pointer dereference, address: 0000000000000008\n"


def decide(
    watchdog: Watchdog,
    now: float,
    *,
    status: int | None = None,
    refused: str = "",
    ended: bool = False,
) -> Outcome | None:
    return watchdog.decide(now, status=status, refused=refused, ended=ended)


@pytest.fixture
def watchdog() -> Watchdog:
    return Watchdog(limits=LIMITS, launched=0.0)


def test_a_running_guest_may_go_on(watchdog: Watchdog) -> None:
    watchdog.console(BOOT, 1.0)
    assert decide(watchdog, 29.9) is None
    watchdog.started = True
    assert decide(watchdog, 99.9) is None


def test_the_status_wins_over_everything_else(watchdog: Watchdog) -> None:
    watchdog.console(PANIC, 1.0)
    outcome = decide(watchdog, 1000.0, status=3, ended=True)
    assert outcome == Outcome(fate=Fate.EXITED, status=3)


def test_time_out_counts_from_the_launch(watchdog: Watchdog) -> None:
    watchdog.started = True
    outcome = decide(watchdog, 100.0)
    assert outcome is not None
    assert outcome.fate is Fate.TIMED_OUT


def test_a_guest_that_never_reaches_user_space_did_not_start(
    watchdog: Watchdog,
) -> None:
    watchdog.console(BOOT, 1.0)
    outcome = decide(watchdog, 30.0)
    assert outcome is not None
    assert outcome.fate is Fate.NOT_STARTED


def test_an_emulator_that_ends_at_once_did_not_start(watchdog: Watchdog) -> None:
    watchdog.console(b"qemu-system-x86_64: no such machine\n", 0.1)
    outcome = decide(watchdog, 0.2, ended=True)
    assert outcome is not None
    assert outcome.fate is Fate.NOT_STARTED
    assert "before the kernel said anything" in outcome.why


def test_a_refusal_is_passed_on(watchdog: Watchdog) -> None:
    outcome = decide(watchdog, 1.0, refused="no quirks")
    assert outcome == Outcome(fate=Fate.NOT_STARTED, why="no quirks")


@pytest.mark.parametrize("complaint", [PANIC, OOPS])
@pytest.mark.parametrize("cut", range(1, max(len(PANIC), len(OOPS)), 3))
def test_a_complaint_that_comes_in_two_reads_is_told_whole(
    watchdog: Watchdog, complaint: bytes, cut: int
) -> None:
    watchdog.started = True
    watchdog.console(BOOT + complaint[:cut], 1.0)
    watchdog.console(complaint[cut:] + b"[    9.2] Kernel panic - not syncing: x", 2.0)
    told = watchdog.panic if complaint is PANIC else watchdog.oops
    assert told == complaint.decode().strip()


def test_a_panic_is_given_a_moment_to_be_written_out(watchdog: Watchdog) -> None:
    watchdog.started = True
    watchdog.console(PANIC, 10.0)
    assert decide(watchdog, 14.9) is None
    outcome = decide(watchdog, 15.0)
    assert outcome is not None
    assert outcome.fate is Fate.DIED
    assert "Attempted to kill init" in outcome.why


def test_a_panic_during_boot_is_a_death_too(watchdog: Watchdog) -> None:
    watchdog.console(BOOT + PANIC, 1.0)
    outcome = decide(watchdog, 1.1, ended=True)
    assert outcome is not None
    assert outcome.fate is Fate.DIED


@pytest.mark.parametrize("cut", range(1, len(PANIC)))
def test_a_panic_is_seen_wherever_the_console_was_cut(cut: int) -> None:
    watchdog = Watchdog(limits=LIMITS, launched=0.0)
    watchdog.console(PANIC[:cut], 1.0)
    watchdog.console(PANIC[cut:], 1.0)
    assert watchdog.panic


def test_a_guest_that_ends_without_a_status_died(watchdog: Watchdog) -> None:
    watchdog.started = True
    outcome = decide(watchdog, 2.0, ended=True)
    assert outcome is not None
    assert outcome.fate is Fate.DIED


def test_silence_after_an_oops_is_death_and_signs_of_life_are_not(
    watchdog: Watchdog,
) -> None:
    watchdog.started = True
    watchdog.console(OOPS, 10.0)
    watchdog.activity(25.0)
    assert decide(watchdog, 44.9) is None
    outcome = decide(watchdog, 45.0)
    assert outcome is not None
    assert outcome.fate is Fate.DIED
    assert "NULL pointer" in outcome.why


def test_a_time_out_after_an_oops_is_death(watchdog: Watchdog) -> None:
    watchdog.started = True
    watchdog.console(OOPS, 10.0)
    watchdog.activity(99.0)
    outcome = decide(watchdog, 100.0)
    assert outcome is not None
    assert outcome.fate is Fate.DIED


def test_a_slow_host_is_no_death(watchdog: Watchdog) -> None:
    watchdog.console(b"watchdog: BUG: soft lockup - CPU#0 stuck for 26s!\n", 1.0)
    watchdog.console(b"rcu: INFO: rcu_preempt detected stalls on CPUs\n", 1.0)
    assert not watchdog.oops
    assert not watchdog.panic
