"""The BPF program as clang compiles it once, and what is made sure of before it is
loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdmtrace.kernel.btf import Btf
from cdmtrace.loader import build, maps, sources
from cdmtrace.loader.watch import HANDLER
from cdmtrace.probes import PROBES, WATCHPOINT, following


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("object") / build.OBJECT
    build.build(path)
    return path


def test_it_is_known_by_its_sources(
    compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build.find(compiled) == compiled.read_bytes()
    assert list(compiled.parent.iterdir()) == [compiled]
    for name in (build.PRELUDE, *sources.SOURCES, sources.WATCH):
        text = (sources.BPF_DIRECTORY / name).read_text()
        (tmp_path / name).write_text(text)
    (tmp_path / "maps.h").write_text(f"/* */{(tmp_path / 'maps.h').read_text()}")
    monkeypatch.setattr(build, "BPF_DIRECTORY", tmp_path)
    with pytest.raises(build.ObjectMissing, match="compiled of other sources") as error:
        build.find(compiled)
    assert error.value.hint is not None
    assert error.value.hint.endswith(" -I -m cdmtrace.loader.build")
    assert not build.is_there()


def test_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(build.ObjectMissing, match="not compiled: No such file"):
        build.find(tmp_path / "none")


def test_no_clang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.CannotBuild, match="clang is missing") as error:
        build.build(tmp_path / "x.o")
    assert error.value.hint == "sudo apt-get install -y clang"


def test_a_place_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(build.CannotBuild, match="cannot be written: No such file"):
        build.build(tmp_path / "none" / "x.o")


def test_sources_that_do_not_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "text", lambda: "int f(void) { int unused; return 0; }")
    with pytest.raises(build.CannotBuild) as error:
        build.build(tmp_path / "x.o")
    assert "unused" in (error.value.details or "")
    assert list(tmp_path.iterdir()) == []


def test_every_handler_is_in_it(compiled: Path) -> None:
    functions = Btf.load(compiled)
    probes = (*PROBES, WATCHPOINT, following(children=True))
    handlers = {a.handler for probe in probes for a in probe.every_attachment}
    for handler in {*handlers, HANDLER}:
        assert functions.arguments(handler) == ("ctx",), handler


@pytest.mark.parametrize("struct", sorted(maps.RECORDS))
def test_maps_hold_what_the_compiler_says(compiled: Path, struct: str) -> None:
    types, record = Btf.load(compiled), maps.RECORDS[struct]
    assert types.sizeof(struct) == record.itemsize
    for name in record.names or ():
        assert types.offset(struct, name) == record.fields[name][1], name
