"""Finding bcc, and not the project of that name on PyPI."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from cdmtrace.loader.bcc import BccMissing, import_bcc
from cdmtrace.loader.sources import SOURCES, program_text


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a bcc of our own; none was imported so far."""
    monkeypatch.setitem(sys.modules, "bcc", ModuleType("bcc"))
    monkeypatch.delitem(sys.modules, "bcc.table", raising=False)
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc/table.py").write_text("SIZE = 23\n")
    (tmp_path / "bcc/__init__.py").write_text(
        "from .table import SIZE\nclass BPF: pass\n"
    )
    return tmp_path


def test_bcc_is_found_where_the_distribution_has_it(packages: Path) -> None:
    """Also by a Python that does not look there; PyPI's bcc has no BPF."""
    module = import_bcc(packages)
    assert module.__file__ == str(packages / "bcc/__init__.py")
    assert module.SIZE == 23
    assert sys.modules["bcc"] is module
    assert import_bcc(packages / "none") is module


def test_a_bcc_that_is_broken(packages: Path) -> None:
    """As on a machine without libbcc.so.0."""
    (packages / "bcc/__init__.py").write_text("raise OSError('libbcc.so.0')\n")
    with pytest.raises(BccMissing, match=r"libbcc\.so\.0"):
        import_bcc(packages)
    assert "bcc" not in sys.modules


@pytest.mark.usefixtures("packages")
def test_no_bcc_at_all(tmp_path: Path) -> None:
    with pytest.raises(BccMissing, match="does not exist") as caught:
        import_bcc(tmp_path / "none")
    assert caught.value.hint == "sudo apt-get install -y python3-bpfcc"
    assert caught.value.exit_status == 125


def test_the_program_is_one_text() -> None:
    text = program_text({"CDM_NODES": 2, "KEY0": (1 << 64) - 1})
    lines = text.splitlines()
    assert lines[:2] == [
        "#define CDM_NODES 0x2ULL",
        "#define KEY0 0xffffffffffffffffULL",
    ]
    marks = [line for line in lines if line.startswith("#line ")]
    assert marks == [f'#line 1 "{name}"' for name in SOURCES]
