"""The patches of the kernels that are built here, each series by itself."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from cdmtrace.lab import source, specs
from cdmtrace.lab.paths import Layout
from cdmtrace.lab.tree import touched_files, update_tree

LAYOUT = Layout.default()
"""The user's own, which tests are kept away from: to read the sources, and no more."""

SERIES = {spec.patches: spec for spec in specs.BUILT.values()}
"""Some kernels share one: then any of them will do."""

each_series = pytest.mark.parametrize(
    "spec", SERIES.values(), ids=lambda spec: spec.patches.name
)

_HUNK = re.compile(r"^@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_SUBJECT = re.compile(r"^Subject: (.+)$", re.MULTILINE)


def _subjects(spec: specs.KernelSpec) -> list[str]:
    found = [_SUBJECT.search(path.read_text()) for path in spec.patch_files()]
    return [match[1] for match in found if match]


@each_series
def test_each_patch_says_what_it_is_and_whose(spec: specs.KernelSpec) -> None:
    names = [path.name for path in spec.patch_files()]
    assert [name[:4] for name in names] == [f"{n:04}" for n in range(1, 13)]
    assert len(_subjects(spec)) == len(names)
    for path in spec.patch_files():
        text = path.read_text()
        message, _, diff = text.partition("\ndiff --git ")
        assert message.startswith("SPDX-License-Identifier: GPL-2.0-only\nSubject: ")
        assert len(message.splitlines()) > 3, path.name
        assert diff
        assert touched_files(text), path.name


@each_series
def test_all_series_have_the_titles_of_the_first(spec: specs.KernelSpec) -> None:
    assert _subjects(spec) == _subjects(specs.BUILT[specs.DEFAULT_KERNEL])


@each_series
def test_hunks_have_the_lines_that_they_say(spec: specs.KernelSpec) -> None:
    """patch(1) takes some that have not, and guesses."""
    for path in spec.patch_files():
        lines = path.read_text().splitlines()
        hunks = 0
        for at, line in enumerate(lines):
            if match := _HUNK.match(line):
                hunks += 1
                before, after = (int(count or 1) for count in match.groups())
                for text in lines[at + 1 :]:
                    if before <= 0 and after <= 0:
                        break
                    before -= text[:1] in (" ", "-", "")
                    after -= text[:1] in (" ", "+", "")
                assert (before, after) == (0, 0), f"{path.name}:{at + 1}"
        assert hunks


@each_series
def test_the_series_applies_in_order_where_its_source_is_at_hand(
    spec: specs.KernelSpec, tmp_path: Path
) -> None:
    """As ``lab build`` applies it, to those files alone that it touches."""
    version = source.pinned_version(LAYOUT, spec.package)
    if version is None:
        pytest.skip(f"{spec.package} was not fetched here")
    unpacked = source.source_dir(LAYOUT, spec.package, version)
    if not unpacked.is_dir():
        pytest.skip(f"{unpacked} is not there")
    names = {
        name for path in spec.patch_files() for name in touched_files(path.read_text())
    }
    pristine = tmp_path / "pristine"
    for name in names:
        (pristine / name).parent.mkdir(parents=True, exist_ok=True)
        if (unpacked / name).exists():
            shutil.copy(unpacked / name, pristine / name)
    written = update_tree(pristine, tmp_path / "tree", spec.patch_files())
    assert set(written) == names
    assert not list((tmp_path / "tree").rglob("*.orig"))


@each_series
def test_the_documentation_says_what_each_series_is_for(
    spec: specs.KernelSpec,
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "lab-kernel.md").read_text()
    assert f"patches/{spec.patches.name}/`" in text
