from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cdmtrace.errors import LabError
from cdmtrace.lab import tree
from cdmtrace.lab.tree import touched_files, update_tree


class Lab:
    """A pristine tree, a work tree, and patches made with diff."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pristine = root / "pristine"
        self.tree = root / "work" / "tree"
        self.patches: list[Path] = []
        (self.pristine / "mm").mkdir(parents=True)
        (self.pristine / "mm" / "ksm.c").write_text("one\ntwo\nthree\n")
        (self.pristine / "mm" / "mmap.c").write_text("a\nb\nc\n")
        (self.pristine / "Makefile").write_text("all:\n")
        (self.pristine / "run.sh").write_text("#!/bin/sh\n")
        (self.pristine / "run.sh").chmod(0o755)
        for path in self.pristine.rglob("*"):
            os.utime(path, (1_000_000_000, 1_000_000_000))

    def patch(self, name: str, files: dict[str, tuple[str | None, str | None]]) -> None:
        """Write a patch that takes each file from its old to its new text."""
        parts = []
        for file, (old, new) in files.items():
            scratch = self.root / "diff"
            for side, text in (("a", old), ("b", new)):
                path = scratch / side / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
                if text is not None:
                    path.write_text(text)
            result = subprocess.run(
                ["diff", "-uN", f"a/{file}", f"b/{file}"],
                cwd=scratch,
                text=True,
                capture_output=True,
                check=False,
            )
            text = result.stdout
            if old is None:
                text = text.replace(f"--- a/{file}", "--- /dev/null", 1)
            if new is None:
                text = text.replace(f"+++ b/{file}", "+++ /dev/null", 1)
            parts.append(text)
        path = self.root / name
        path.write_text("Subject: words\n\nwhy\n---\n" + "".join(parts))
        if path not in self.patches:
            self.patches.append(path)

    def update(self) -> list[str]:
        return update_tree(self.pristine, self.tree, self.patches)

    def contents(self, root: Path) -> dict[str, str]:
        return {
            str(path.relative_to(root)): path.read_text()
            for path in root.rglob("*")
            if path.is_file()
        }


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


KSM = ("one\ntwo\nthree\n", "one\n2\nthree\n")


def test_a_changed_patch_rewrites_only_the_files_that_differ(lab: Lab) -> None:
    lab.patch("1.patch", {"mm/ksm.c": KSM, "mm/mmap.c": ("a\nb\nc\n", "a\nB\nc\n")})
    assert lab.update() == ["mm/ksm.c", "mm/mmap.c"]
    times = {path: path.stat().st_mtime_ns for path in lab.tree.rglob("*")}
    assert lab.update() == []
    lab.patch("1.patch", {"mm/ksm.c": KSM, "mm/mmap.c": ("a\nb\nc\n", "a\nb\nC\n")})
    assert lab.update() == ["mm/mmap.c"]
    assert lab.contents(lab.tree)["mm/mmap.c"] == "a\nb\nC\n"
    for name in ("mm/ksm.c", "Makefile"):
        path = lab.tree / name
        assert path.stat().st_mtime_ns == times[path]


def test_the_pristine_tree_is_never_written_to(lab: Lab) -> None:
    before = lab.contents(lab.pristine)
    lab.patch("1.patch", {"mm/ksm.c": KSM, "Makefile": ("all:\n", None)})
    lab.update()
    assert lab.contents(lab.pristine) == before
    assert not (lab.tree / "Makefile").exists()


def test_added_and_removed_files_follow_the_patch(lab: Lab) -> None:
    pristine = lab.contents(lab.pristine)
    lab.patch("1.patch", {"mm/cdm.c": (None, "new\n"), "Makefile": ("all:\n", None)})
    assert lab.update() == ["Makefile", "mm/cdm.c"]
    assert (lab.tree / "mm" / "cdm.c").read_text() == "new\n"
    lab.patches.clear()
    assert lab.update() == ["Makefile", "mm/cdm.c"]
    assert lab.contents(lab.tree) == pristine


def test_a_restored_file_is_newer_than_what_was_built_from_the_patched_one(
    lab: Lab,
) -> None:
    lab.patch("1.patch", {"mm/ksm.c": KSM})
    lab.update()
    patched = (lab.tree / "mm" / "ksm.c").stat().st_mtime_ns
    lab.patches.clear()
    lab.update()
    # Not the time of the pristine file: make would take the old object for current.
    assert (lab.tree / "mm" / "ksm.c").stat().st_mtime_ns >= patched


def test_patches_build_on_one_another(lab: Lab) -> None:
    lab.patch("1.patch", {"mm/ksm.c": KSM})
    lab.patch("2.patch", {"mm/ksm.c": (KSM[1], "one\n2\n3\n")})
    lab.update()
    assert (lab.tree / "mm" / "ksm.c").read_text() == "one\n2\n3\n"


def test_a_patch_that_does_not_apply_is_named_and_changes_nothing(lab: Lab) -> None:
    lab.patch("1.patch", {"mm/ksm.c": KSM})
    lab.update()
    before = lab.contents(lab.tree)
    lab.patch("2.patch", {"mm/mmap.c": ("x\ny\nz\n", "x\nY\nz\n")})
    with pytest.raises(LabError, match=r"2\.patch does not apply"):
        lab.update()
    assert lab.contents(lab.tree) == before


def test_an_update_that_was_killed_is_put_right(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.patch("1.patch", {"mm/ksm.c": KSM, "mm/mmap.c": ("a\nb\nc\n", "a\nB\nc\n")})

    def killed(wanted: Path, actual: Path) -> bool:
        if actual.name == "mmap.c":
            raise KeyboardInterrupt
        return settle(wanted, actual)

    settle = tree._settle
    monkeypatch.setattr(tree, "_settle", killed)
    with pytest.raises(KeyboardInterrupt):
        lab.update()
    monkeypatch.undo()
    # The new patch no longer touches the file that the killed update had changed.
    lab.patch("1.patch", {"mm/mmap.c": ("a\nb\nc\n", "a\nB\nc\n")})
    assert lab.update() == ["mm/ksm.c", "mm/mmap.c"]
    assert (lab.tree / "mm" / "ksm.c").read_text() == KSM[0]


def test_modes_survive(lab: Lab) -> None:
    lab.patch("1.patch", {"run.sh": ("#!/bin/sh\n", "#!/bin/sh\ntrue\n")})
    lab.update()
    assert (lab.tree / "run.sh").stat().st_mode & 0o777 == 0o755


def test_touched_files_looks_at_headers_only() -> None:
    patch = (
        "--- a/mm/x.c\n+++ b/mm/x.c\n@@ -1,2 +1,1 @@\n--- gone\n keep\n"
        "--- /dev/null\n+++ b/new/y.c\n"
    )
    assert touched_files(patch) == {"mm/x.c", "new/y.c"}


def test_a_patch_cannot_leave_the_tree() -> None:
    with pytest.raises(ValueError, match="outside"):
        touched_files("--- a/../../etc/passwd\n+++ b/../../etc/passwd\n")
