"""The notebook of examples/ runs, and what is printed in it is what comes out."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from asking import NONE, RFC

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples/first-look.ipynb"

# The client makes an event loop of its own, and the kernel speaks to it over TCP.
pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning"),
    pytest.mark.filterwarnings("default::ResourceWarning"),
]


def run(recording: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("RECORDING", str(recording))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    return asyncio.run(client.async_execute())


def outputs(notebook: Any) -> list[tuple[str, list[str]]]:
    """Return what each cell has printed, and the words of its last value."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        printed = "".join(one.text for one in cell.outputs if "text" in one)
        shown = [
            one["data"]["text/plain"] for one in cell.outputs if one.get("data", None)
        ]
        # Versions of pandas differ in what they say of the types below a column.
        lines = [line for text in shown for line in text.splitlines()]
        words = " ".join(line for line in lines if not line.startswith("Name: "))
        found.append((printed, re.findall(r"[^\s\\]+", words)))
    return found


def test_it_shows_what_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = outputs(nbformat.read(NOTEBOOK, as_version=4))
    again = outputs(run(RFC, monkeypatch))
    assert again == stored
    text = " ".join(printed for printed, _ in stored)
    assert "CDM003 unlocked-write (fault)" in text
    assert "904 rows, 0 events lost" in text


def test_it_can_be_run_where_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    printed, _ = outputs(run(NONE, monkeypatch))[1]
    assert printed == "721 rows, 0 events lost, cut: None\n"


def test_it_is_small_and_of_nobodys_machine() -> None:
    text = NOTEBOOK.read_text()
    assert len(text) < 30_000
    assert "text/html" not in text
    assert "/tmp" not in text
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))


def test_the_readme_leads_to_it() -> None:
    assert "(examples/first-look.ipynb)" in (ROOT / "README.md").read_text()
