"""The way of a build, with a toy source whose Makefile takes no time."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cdmtrace.errors import LabError
from cdmtrace.lab import source, toolchain
from cdmtrace.lab.kernel import build, find_built
from cdmtrace.lab.paths import Layout
from cdmtrace.lab.specs import KernelSpec

# Knows the option CONFIG_KNOWN and drops all others, as kconfig does.
MAKEFILE = """\
tinyconfig:
\t@echo "# CONFIG_KNOWN is not set" > $(O)/.config
olddefconfig:
\t@grep CONFIG_KNOWN= $(O)/.config > $(O)/.new || true
\t@mv $(O)/.new $(O)/.config
bzImage:
\t@echo "  CC      toy.o"
\t@mkdir -p $(O)/arch/x86/boot $(O)/include/config
\t@echo 6.1.0-toy > $(O)/include/config/kernel.release
\t@touch $(O)/System.map
\t@cp toy.c $(O)/arch/x86/boot/bzImage
\t@! grep BROKEN toy.c
"""

PATCH = """\
--- a/toy.c
+++ b/toy.c
@@ -1 +1 @@
-plain
+{text}
"""


@dataclass
class Saying:
    stages: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def stage(self, what: str) -> None:
        self.stages.append(what)

    def step(self, done: int, expected: int) -> None:
        self.steps.append(done)


class Toy:
    def __init__(self, root: Path) -> None:
        self.layout = Layout(root=root / "lab")
        patches = root / "patches"
        patches.mkdir()
        self.fragment = root / "toy.config"
        self.fragment.write_text("CONFIG_KNOWN=y\n")
        self.spec = KernelSpec(
            name="toy",
            summary="",
            package="linux-source-0",
            patches=patches,
            fragments=(self.fragment,),
        )
        self.patch("patched")
        pristine = source.source_dir(self.layout, "linux-source-0", "1")
        pristine.mkdir(parents=True)
        (pristine / "Makefile").write_text(MAKEFILE)
        (pristine / "toy.c").write_text("plain\n")
        source.pin_version(self.layout, "linux-source-0", "1")

    def patch(self, text: str) -> None:
        (self.spec.patches / "0001-toy.patch").write_text(PATCH.format(text=text))


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    # The toy needs make alone; what a kernel needs is another test's matter.
    monkeypatch.setattr(toolchain, "require_tools", lambda: None)
    return Toy(tmp_path)


def test_a_build_is_published_whole_and_found_again(toy: Toy) -> None:
    saying = Saying()
    kernel = build(toy.spec, toy.layout, progress=saying)
    assert kernel.image.read_text() == "patched\n"
    assert kernel.config.read_text() == "CONFIG_KNOWN=y\n"
    record = json.loads((kernel.directory / "kernel.json").read_text())
    assert record["release"] == "6.1.0-toy"
    assert record["source"] == ["linux-source-0", "1"]
    assert {path.name for path in kernel.directory.iterdir()} == {
        "bzImage",
        "System.map",
        "config",
        "build.log",
        "kernel.json",
    }
    assert saying.steps == [1]
    assert [stage.split()[0] for stage in saying.stages] == [
        "patching",
        "configuring",
        "building",
    ]
    again = Saying()
    assert build(toy.spec, toy.layout, progress=again) == kernel
    assert again.stages == []


def test_another_patch_is_another_kernel_and_the_first_stays(toy: Toy) -> None:
    first = build(toy.spec, toy.layout)
    toy.patch("otherwise")
    assert find_built(toy.spec, toy.layout) is None
    second = build(toy.spec, toy.layout)
    assert second.image.read_text() == "otherwise\n"
    toy.patch("patched")
    assert find_built(toy.spec, toy.layout) == first


def test_a_failed_build_shows_the_log_and_publishes_nothing(toy: Toy) -> None:
    toy.patch("BROKEN")
    with pytest.raises(LabError, match="bzImage failed") as caught:
        build(toy.spec, toy.layout)
    assert "BROKEN" in str(caught.value.details)
    log = caught.value.message.rpartition(" ")[2]
    assert "BROKEN" in Path(log).read_text()
    assert not toy.layout.kernels.exists()
    toy.patch("mended")
    assert build(toy.spec, toy.layout).image.read_text() == "mended\n"


def test_an_option_that_vanished_stops_the_build(toy: Toy) -> None:
    toy.fragment.write_text("CONFIG_KNOWN=y\nCONFIG_UNKNOWN=y\n")
    with pytest.raises(LabError, match="does not hold") as caught:
        build(toy.spec, toy.layout)
    assert caught.value.details == "CONFIG_UNKNOWN=y, but the build has n"


def test_what_a_killed_build_left_behind_is_in_nobodys_way(toy: Toy) -> None:
    stale = toy.layout.kernels / ".new-toy-0"
    stale.mkdir(parents=True)
    kernel = build(toy.spec, toy.layout)
    assert not stale.exists()
    kernel.image.unlink()
    assert find_built(toy.spec, toy.layout) is None
    assert build(toy.spec, toy.layout).image.exists()
