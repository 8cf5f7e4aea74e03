"""The doors of the house: who may import what."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "cdmtrace"


def imports(path: Path) -> set[str]:
    """Return every module that ``path`` imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def reaches(path: Path, *forbidden: str) -> list[str]:
    return sorted(
        name
        for name in imports(path)
        for door in forbidden
        if name == door or name.startswith(f"{door}.")
    )


def modules(*places: str) -> list[Path]:
    paths = [PACKAGE / place for place in places]
    return sorted(
        file
        for path in paths
        if path.exists()
        for file in (path.rglob("*.py") if path.is_dir() else [path])
    )


def test_the_recording_side_imports_no_pandas_and_no_analysis() -> None:
    for path in modules(
        *("format", "events.py", "ring.py", "drain.py", "looking.py", "session.py"),
        *("target.py", "recorder.py", "loader", "filters.py", "ready.py", "options.py"),
        *("command.py", "caller.py", "privileges.py", "snapshot.py", "watch.py"),
        *("live/process.py", "live/__init__.py"),
    ):
        assert reaches(path, "pandas", "cdmtrace.analysis") == [], path


def test_analysis_imports_neither_click_nor_bcc_nor_who_prints() -> None:
    for path in modules("analysis/"):
        theirs = ("click", "bcc", "perfetto", "cdmtrace.cli", "cdmtrace.render")
        assert reaches(path, *theirs) == [], path


def test_only_the_loader_imports_bcc() -> None:
    for path in modules("."):
        if "loader" not in path.parts:
            assert reaches(path, "bcc") == [], path


def test_the_table_of_flags_is_for_both_sides() -> None:
    assert reaches(PACKAGE / "vmbits.py", "cdmtrace") == []


@pytest.mark.parametrize("name", ["tracks", "units"])
def test_what_analysis_and_render_share_leans_on_nothing(name: str) -> None:
    assert reaches(PACKAGE / f"{name}.py", "cdmtrace") == []


def test_render_knows_no_analysis() -> None:
    for path in modules("render"):
        assert reaches(path, "cdmtrace.analysis", "pandas") == [], path


@pytest.mark.parametrize(
    ("library", "where"),
    [
        ("pandas", ["analysis/frames.py", "analysis/notebook.py"]),
        ("duckdb", ["analysis/query.py"]),
        ("distributed", ["fleet/crew.py", "fleet/fetch.py"]),
        ("dask", ["fleet/crew.py"]),
        ("fsspec", ["fleet/crew.py", "fleet/fetch.py", "fleet/places.py"]),
    ],
)
def test_a_heavy_library_has_its_place(library: str, where: list[str]) -> None:
    """Whoever wants what it does goes there, and nobody else has to wait."""
    places = modules(".", "analysis/")
    found = [path for path in places if reaches(path, library)]
    assert [str(path.relative_to(PACKAGE)) for path in found] == where


def test_judging_and_reading_need_neither_pandas_nor_duckdb() -> None:
    code = (
        "import sys\n"
        "import cdmtrace.analysis, cdmtrace.analysis.query, cdmtrace.cli.query\n"
        "import cdmtrace.cli.check, cdmtrace.analysis.ownrules\n"
        "sys.exit(str({'pandas', 'duckdb'} & set(sys.modules) or ''))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], text=True, capture_output=True, check=False
    )
    assert result.stderr.strip() == ""


def test_one_recording_needs_no_cluster() -> None:
    code = (
        "import sys; from cdmtrace.cli import main\n"
        "assert main(['check', '--rules', 'CDM001', sys.argv[1]]) == 0\n"
        "assert main(['report', sys.argv[1]]) == 0\n"
        "heavy = {'dask', 'distributed', 'fsspec', 'cryptography'}\n"
        "sys.exit(str(heavy & set(sys.modules) or ''))"
    )
    golden = str(PACKAGE.parent / "tests/golden/cdm-6.1-none.arrows")
    result = subprocess.run(
        [sys.executable, "-c", code, golden],
        text=True,
        capture_output=True,
        check=False,
    )
    assert result.stderr.strip() == ""


def test_the_recording_side_gets_no_pandas_from_others_either() -> None:
    """Nor bcc, before anything is to be compiled."""
    code = (
        "import sys\n"
        "import cdmtrace.recorder, cdmtrace.format.reader, cdmtrace.doctor\n"
        "import cdmtrace.loader.bcc, cdmtrace.cli.record, cdmtrace.cli.info\n"
        "import cdmtrace.watch, cdmtrace.cli.watch, cdmtrace.live.process\n"
        "sys.exit(str({'pandas', 'bcc', 'rich'} & set(sys.modules) or ''))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], text=True, capture_output=True, check=False
    )
    assert result.stderr.strip() == ""


VERBS = (
    *("record", "watch", "live", "info", "probes", "doctor", "lab"),
    *("export", "query"),
)
HELP = [[verb, "--help"] for verb in VERBS]


@pytest.mark.parametrize("words", [["--help"], *HELP, ["lab", "list"]])
def test_starting_up_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from cdmtrace.cli import main; status = main(sys.argv[1:])\n"
        "heavy = {'pandas', 'pyarrow', 'numpy', 'bcc', 'rich', 'perfetto', 'duckdb'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'imports {heavy}' if heavy else status)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *words],
        text=True,
        capture_output=True,
        check=False,
    )
    assert result.stderr == ""
    assert result.returncode == 0
