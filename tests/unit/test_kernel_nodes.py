from __future__ import annotations

from pathlib import Path

import pytest

from cdmtrace.errors import UsageTrouble
from cdmtrace.kernel.nodes import NodesUnknown, discover, has_cdm, online, parse_list


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    (tmp_path / "online").write_text("0-3\n")
    (tmp_path / "cmdline").write_text("root=/dev/vda quiet\n")
    return tmp_path


def find(sysfs: Path, given: str | None = None) -> tuple[tuple[int, ...], str]:
    return discover(given, root=sysfs, cmdline=sysfs / "cmdline")


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("1", (1,)),
        ("1\n", (1,)),
        ("3,1", (1, 3)),
        ("1,3-5", (1, 3, 4, 5)),
        ("2-2", (2,)),
        ("0-1,1-2", (0, 1, 2)),
        ("63", (63,)),
        ("", ()),
        ("\n", ()),
    ],
)
def test_a_node_list(text: str, nodes: tuple[int, ...]) -> None:
    assert parse_list(text) == nodes


@pytest.mark.parametrize("text", ["x", "-1", "1-", "1;2", "1 2", "0x1", "1.5", "5-3"])
def test_what_is_no_node_list(text: str) -> None:
    with pytest.raises(UsageTrouble, match="is not a node list") as caught:
        parse_list(text)
    assert "--cdm-nodes 1,3-5" in (caught.value.hint or "")


@pytest.mark.parametrize("text", ["64", "1-64", "4294967297"])
def test_a_node_beyond_the_mask_of_an_event(text: str) -> None:
    with pytest.raises(UsageTrouble, match="only nodes 0 to 63"):
        parse_list(text)


@pytest.mark.parametrize("name", ["is_coherent_device", "is_cdm_node"])
def test_a_kernel_that_knows_of_cdm_nodes(sysfs: Path, name: str) -> None:
    """Though none of its nodes be one."""
    assert not has_cdm(sysfs)
    (sysfs / name).write_text("\n")
    assert has_cdm(sysfs)


def test_without_numa_there_is_node_0(tmp_path: Path) -> None:
    assert online(tmp_path) == (0,)


def test_what_was_given_comes_first(sysfs: Path) -> None:
    (sysfs / "is_coherent_device").write_text("1\n")
    assert find(sysfs, "2,3") == ((2, 3), "--cdm-nodes")


@pytest.mark.parametrize("name", ["is_coherent_device", "is_cdm_node"])
def test_the_kernel_s_own_file(sysfs: Path, name: str) -> None:
    (sysfs / name).write_text("1,3\n")
    (sysfs / "cmdline").write_text("cdm-nodes=0x4\n")
    assert find(sysfs) == ((1, 3), str(sysfs / name))


@pytest.mark.parametrize(
    "word",
    [
        "cdm-nodes=0xa",
        "cdm_nodes=10",
        # As the kernel reads it: in octal, and one after the other.
        "cdm-nodes=012",
        "cdm-nodes=0x2 cdm-nodes=0x8",
        "cdm-nodes=0x2 cdm-nodes=zzz cdm-nodes=8",
    ],
)
def test_a_mask_on_the_command_line(sysfs: Path, word: str) -> None:
    (sysfs / "cmdline").write_text(f"quiet {word} ro\n")
    assert find(sysfs) == ((1, 3), str(sysfs / "cmdline"))


def test_an_empty_file_says_nothing(sysfs: Path) -> None:
    (sysfs / "is_coherent_device").write_text("\n")
    with pytest.raises(NodesUnknown):
        find(sysfs)


@pytest.mark.parametrize(
    "word",
    [
        "",
        "xcdm-nodes=0x2",
        "x.cdm-nodes=0x2",
        "cdm-nodes=zzz",
        "cdm-nodes=",
        "x-nodes=2",
    ],
)
def test_nothing_says_which(sysfs: Path, word: str) -> None:
    (sysfs / "cmdline").write_text(f"quiet {word}\n")
    with pytest.raises(NodesUnknown, match="does not say which nodes") as caught:
        find(sysfs)
    assert "--cdm-nodes 1 (online: 0, 1, 2, 3)" in (caught.value.hint or "")
    assert "at boot: cdm-nodes=MASK" in (caught.value.hint or "")
    assert caught.value.exit_status == 125


@pytest.mark.parametrize(
    ("given", "message"),
    [("7", "node 7 is not online"), ("1,9", "node 9 is not online"), ("", "no node")],
)
def test_a_node_that_is_not_there(sysfs: Path, given: str, message: str) -> None:
    with pytest.raises(UsageTrouble, match=message) as caught:
        find(sysfs, given)
    assert caught.value.exit_status == 2
    assert "these are: 0, 1, 2, 3" in (caught.value.hint or "")
