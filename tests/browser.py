"""Chromium without a window, for tests of pages."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

PROGRAMS = ("chromium", "chromedriver")

FLAGS = (
    "--headless",
    # Tests may run as root, whom its sandbox does not take.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1400,1000",
)

PATIENCE = 60
"""Seconds that a page, or a script of a test, may take."""

WATCHDOG = 900
"""Seconds after which the browser ends, whatever became of the tests."""


def require() -> None:
    """Skip where there is no browser; fail where tests must not be skipped."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if not missing:
        return
    reason = f"{' and '.join(missing)} missing: sudo apt-get install chromium-driver"
    if os.environ.get("CDMTRACE_KERNEL_TESTS") == "1":
        pytest.fail(f"CDMTRACE_KERNEL_TESTS=1, but: {reason}", pytrace=False)
    pytest.skip(reason)


@contextlib.contextmanager
def started(directory: Path) -> Iterator[webdriver.Chrome]:
    """Have a browser whose profile is in a directory; nothing of it is left after."""
    profile = directory / "profile"
    # Should this process be killed, nobody else would end it.
    driver = directory / "driver"
    watched = f"timeout --kill-after=5 {WATCHDOG} {shutil.which('chromedriver')}"
    driver.write_text(f'#!/bin/sh\nexec {watched} "$@"\n')
    driver.chmod(0o755)
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    browser = webdriver.Chrome(options=options, service=Service(str(driver)))
    try:
        browser.set_page_load_timeout(PATIENCE)
        browser.set_script_timeout(PATIENCE)
        yield browser
    finally:
        browser.quit()
        left = _of(profile)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert not left, f"processes of the browser that did not end: {left}"


def _of(profile: Path) -> list[int]:
    """Return the processes that were started with a profile."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if os.fsencode(profile) in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found
