from __future__ import annotations

import mmap

import pytest

from cdmtrace.kernel import layout
from cdmtrace.kernel.btf import Btf, TypeMissing

EVERY = (*layout.MEMBERS, *layout.MAPLE_TREE, *layout.OPTIONAL)


class FakeBtf(Btf):
    """A kernel whose every member is at its place in the list of members."""

    def __init__(self) -> None:
        pass

    def offset(self, struct: str, member: str) -> int:
        if (struct, member) not in EVERY:
            raise TypeMissing(f"no {struct}.{member}")
        return EVERY.index((struct, member))

    def sizeof(self, struct: str) -> int:
        return {"page": 64}[struct]

    def enumerator(self, enum: str, name: str) -> int:
        return {"PG_head": 16, "PG_reserved": 12}[name]

    def arguments(self, function: str) -> tuple[str, ...] | None:
        return None


VMEMMAP = {"CONFIG_SPARSEMEM": "y", "CONFIG_SPARSEMEM_VMEMMAP": "y"}


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ({"CONFIG_NODES_SHIFT": "10", **VMEMMAP}, (54, 10)),
        ({"CONFIG_NODES_SHIFT": "6", **VMEMMAP}, (58, 6)),
        ({"CONFIG_NODES_SHIFT": "2"}, (62, 2)),
        ({}, (64, 0)),
    ],
)
def test_where_the_node_is(config: dict[str, str], place: tuple[int, int]) -> None:
    assert layout.node_bits(config) == place


def test_a_kernel_with_sections_in_the_flags_is_refused() -> None:
    config = {"CONFIG_NODES_SHIFT": "6", "CONFIG_SPARSEMEM": "y"}
    with pytest.raises(layout.LayoutUnknown, match="section numbers") as caught:
        layout.node_bits(config)
    assert "CONFIG_SPARSEMEM_VMEMMAP=y" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("shift", "numbers"),
    [
        ("10", (54, 1023, (1 << 64) - 1)),
        ("6", (58, 63, (1 << 64) - 1)),
        ("2", (62, 3, 0xF)),
        # A shift by 64 has no meaning in C.
        ("0", (0, 0, 1)),
    ],
)
def test_numbers_of_the_node(shift: str, numbers: tuple[int, ...]) -> None:
    found = layout.defines(FakeBtf(), {"CONFIG_NODES_SHIFT": shift, **VMEMMAP})
    names = ("NODES_PGSHIFT", "NODES_MASK", "NODEMASK_MASK")
    assert tuple(found[name] for name in names) == numbers


def test_every_member_has_its_macro() -> None:
    found = layout.defines(FakeBtf(), {"CONFIG_NODES_SHIFT": "6"})
    for index, (struct, member) in enumerate(EVERY):
        assert found[f"OFF_{struct}_{member}"] == index
    assert found["SIZEOF_page"] == 64
    assert found["PG_HEAD"] == 16
    if mmap.PAGESIZE == 4096:
        assert found["PMD_BYTES"] == 2 << 20


class RenamedBtf(FakeBtf):
    """A kernel that calls what it can by another name, the last of all members."""

    def offset(self, struct: str, member: str) -> int:
        if (struct, member) in layout.OTHER_NAMES:
            raise TypeMissing(f"no {struct}.{member}")
        if member in layout.OTHER_NAMES.values():
            return 8 * len(EVERY)
        return super().offset(struct, member)


@pytest.mark.parametrize("there", [False, True])
def test_what_is_returned_for_a_page_that_was_moved(there: bool) -> None:
    class Prepares(FakeBtf):
        def arguments(self, function: str) -> tuple[str, ...] | None:
            known = there and function == "migrate_misplaced_folio_prepare"
            return ("folio", "vma", "node") if known else None

    found = layout.defines(Prepares(), {"CONFIG_NODES_SHIFT": "6"})
    assert found["MOVED_IS_ZERO"] == there


def test_members_that_have_another_name() -> None:
    found = layout.defines(RenamedBtf(), {"CONFIG_NODES_SHIFT": "6"})
    for struct, member in layout.OTHER_NAMES:
        assert found[f"OFF_{struct}_{member}"] == 8 * len(EVERY)
    # Of its own name, it is there all the same.
    assert found["OFF_page_flags"] == EVERY.index(("page", "flags"))


@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize("size", [56, 64])
def test_a_mask_leads_to_the_head(optimized: bool, size: int) -> None:
    class Sized(RenamedBtf):
        def sizeof(self, struct: str) -> int:
            return size

    config = {"CONFIG_NODES_SHIFT": "6"}
    if optimized:
        config["CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP"] = "y"
    masks = optimized and size == 64
    assert layout.defines(Sized(), config)["HEAD_MASKS"] == masks
    assert layout.defines(FakeBtf(), config)["HEAD_MASKS"] == 0


class LackingBtf(FakeBtf):
    """A kernel without some members."""

    lacks: tuple[str, str]

    def offset(self, struct: str, member: str) -> int:
        if (struct, member) == self.lacks:
            raise TypeMissing(f"no {struct}.{member}")
        return super().offset(struct, member)


def test_a_kernel_without_maple_trees_has_none_of_their_members() -> None:
    LackingBtf.lacks = ("ma_state", "node")
    found = layout.defines(LackingBtf(), {"CONFIG_NODES_SHIFT": "6"})
    for struct, member in layout.MAPLE_TREE:
        assert found[f"OFF_{struct}_{member}"] == layout.NOWHERE
    LackingBtf.lacks = ("page", "flags")
    with pytest.raises(TypeMissing):
        layout.defines(LackingBtf(), {"CONFIG_NODES_SHIFT": "6"})
