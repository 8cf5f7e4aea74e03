from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from cdmtrace.kernel import config

TEXT = """\
#
# Automatically generated file; DO NOT EDIT.
#
CONFIG_NUMA=y
# CONFIG_KSM is not set
CONFIG_NODES_SHIFT=6
CONFIG_MODVERSIONS=m
CONFIG_CC_VERSION_TEXT="gcc (Debian 12.2.0-14) 12.2.0"
CONFIG_EMPTY=""
NOT_CONFIG_A=y
"""


def test_parse() -> None:
    assert config.parse(TEXT) == {
        "CONFIG_NUMA": "y",
        "CONFIG_NODES_SHIFT": "6",
        "CONFIG_MODVERSIONS": "m",
        "CONFIG_CC_VERSION_TEXT": "gcc (Debian 12.2.0-14) 12.2.0",
        "CONFIG_EMPTY": "",
    }


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let every absolute path of the module be one below tmp_path."""

    def below(*parts: Any) -> Path:
        return tmp_path / str(Path(*parts)).lstrip("/")

    monkeypatch.setattr(config, "Path", below)
    return tmp_path


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "place",
    [
        "boot/config-6.1.0-x",
        "lib/modules/6.1.0-x/config",
        "lib/modules/6.1.0-x/build/.config",
    ],
)
def test_where_it_is_looked_for(root: Path, place: str) -> None:
    put(root / place, TEXT.encode())
    assert config.load("6.1.0-x")["CONFIG_NODES_SHIFT"] == "6"
    with pytest.raises(config.ConfigMissing):
        config.load("6.1.0-y")


def test_the_kernel_s_own_word_comes_first(root: Path) -> None:
    put(root / "boot/config-6.1.0-x", TEXT.encode())
    put(root / "proc/config.gz", gzip.compress(b"CONFIG_NODES_SHIFT=10\n"))
    assert config.load("6.1.0-x") == {"CONFIG_NODES_SHIFT": "10"}


@pytest.mark.usefixtures("root")
def test_none_is_found() -> None:
    with pytest.raises(
        config.ConfigMissing, match=r"kernel 6\.1\.0-x was not"
    ) as caught:
        config.load("6.1.0-x")
    assert "CONFIG_IKCONFIG_PROC=y" in (caught.value.hint or "")
    assert caught.value.exit_status == 125


def test_what_recording_needs() -> None:
    whole = dict.fromkeys(config.NEEDED, "y")
    assert config.lacking(whole) == ()
    (sentence,) = config.lacking({**whole, "CONFIG_KPROBES": "n"})
    assert sentence.startswith("CONFIG_KPROBES is not set in this kernel: no probe ")
    assert len(config.lacking({})) == 4
