"""What all tests share: whether this machine can boot guests, found out once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# A shell starts what runs behind it with SIGINT ignored, nohup with SIGHUP, and so is
# every process that a test would end by one of them.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(
            _number,
            signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL,
        )

FORCE = os.environ.get("CDMTRACE_KERNEL_TESTS", "")

LONGEST_FIRST = (
    *("test_quirks", "test_record", "test_story", "test_audit", "test_matrix"),
    "test_endings",
    "test_driver",
    *(
        "test_lab",
        "test_stock",
        "test_blind",
        "test_paths",
        "test_vmas",
        "test_policies",
    ),
    "test_counts",
)
"""Files of kernel tests by the time they take. A file is not parted among workers
(``--dist loadfile``), so one that is begun last has the others wait for it."""


def _cannot_boot() -> str:
    """Return why no guest can be booted here, or an empty string."""
    from cdmtrace.errors import CdmtraceError
    from cdmtrace.lab import toolchain
    from cdmtrace.lab.kernel import find_built
    from cdmtrace.lab.machine import find_tools
    from cdmtrace.lab.paths import Layout
    from cdmtrace.lab.specs import DEFAULT_KERNEL, find_spec

    if FORCE == "0":
        return "CDMTRACE_KERNEL_TESTS=0"
    try:
        find_tools()
        if FORCE == "1":
            return ""
        # Eight minutes of compiling are not what a plain `pytest` should begin with.
        if find_built(find_spec(DEFAULT_KERNEL), Layout.default()) is None:
            toolchain.require_tools()
            return "the lab's kernel is not built (cdmtrace lab build)"
    except CdmtraceError as error:
        return str(error).replace("\n", "; ")
    return ""


_reason: str | None = None


def lab_reason() -> str:
    """Return why the lab cannot run, worked out on first use; empty if it can."""
    global _reason  # noqa: PLW0603
    if _reason is None:
        _reason = _cannot_boot()
    return _reason


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their directory; those that boot guests come first."""
    here = Path(__file__).parent
    for item in items:
        if (here / "kernel") in item.path.parents:
            item.add_marker(pytest.mark.kernel)
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    """Return when an item's file has its turn; a new kernel test goes before all."""
    if item.get_closest_marker("kernel") is None:
        return len(LONGEST_FIRST)
    name = item.path.stem
    return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else -1


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip kernel tests where no guest can be booted; fail them if they are forced."""
    if item.get_closest_marker("kernel") is None:
        return
    if reason := lab_reason():
        if FORCE == "1":
            pytest.fail(f"CDMTRACE_KERNEL_TESTS=1, but: {reason}", pytrace=False)
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _plain_environment(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Keep host tests away from the user's cache and CDMTRACE_ variables."""
    if request.node.get_closest_marker("kernel") is not None:
        return
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in list(os.environ):
        if name.startswith("CDMTRACE_") and name != "CDMTRACE_KERNEL_TESTS":
            monkeypatch.delenv(name)
