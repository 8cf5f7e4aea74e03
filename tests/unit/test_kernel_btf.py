"""Members, sizes and enumerators, from type information made here by hand."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from cdmtrace.kernel import layout
from cdmtrace.kernel.btf import BTF_PATH, Btf, BtfMissing, TypeMissing, load_library

# include/uapi/linux/btf.h
INT, PTR, STRUCT, UNION, ENUM, TYPEDEF, CONST = 1, 2, 4, 5, 6, 8, 10
FUNC, PROTOTYPE = 12, 13


class Blob:
    """Raw BTF, type by type. Ids count from 1."""

    def __init__(self) -> None:
        self.strings = b"\0"
        self.types = b""
        self.count = 0

    def name(self, text: str) -> int:
        if not text:
            return 0
        self.strings += text.encode() + b"\0"
        return len(self.strings) - len(text) - 1

    def add(self, kind: int, name: str, size_or_type: int, *, vlen: int = 0) -> int:
        info = kind << 24 | vlen
        self.types += struct.pack("=III", self.name(name), info, size_or_type)
        self.count += 1
        return self.count

    def integer(self, name: str, size: int) -> int:
        number = self.add(INT, name, size)
        self.types += struct.pack("=I", size * 8)
        return number

    def compound(
        self,
        kind: int,
        name: str,
        size: int,
        members: list[tuple[str, int, int]],
        *,
        bit_fields: bool = False,
    ) -> int:
        """Members: name, type, offset in bits (and, with bit fields, width)."""
        number = self.add(kind, name, size, vlen=len(members))
        if bit_fields:
            at = len(self.types) - 8
            (info,) = struct.unpack_from("=I", self.types, at)
            head, tail = self.types[:at], self.types[at + 4 :]
            self.types = head + struct.pack("=I", info | 1 << 31) + tail
        for member, kind_id, offset in members:
            self.types += struct.pack("=III", self.name(member), kind_id, offset)
        return number

    def enum(self, name: str, values: dict[str, int]) -> int:
        number = self.add(ENUM, name, 4, vlen=len(values))
        for key, value in values.items():
            self.types += struct.pack("=Ii", self.name(key), value)
        return number

    def function(self, name: str, arguments: list[tuple[str, int]]) -> int:
        """Arguments: name, type."""
        prototype = self.add(PROTOTYPE, "", 0, vlen=len(arguments))
        for argument, kind_id in arguments:
            self.types += struct.pack("=II", self.name(argument), kind_id)
        return self.add(FUNC, name, prototype)

    def raw(self) -> bytes:
        head = struct.pack(
            "=HBBIIIII",
            *(0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types)),
            len(self.strings),
        )
        return head + self.types + self.strings


@pytest.fixture
def types(tmp_path: Path) -> Btf:
    blob = Blob()
    word = blob.integer("unsigned long", 8)
    small = blob.integer("unsigned int", 4)
    # As in struct page: unnamed structs in an unnamed union, one of them const,
    # one by the name of a typedef.
    inner = blob.compound(STRUCT, "", 16, [("mapping", word, 0), ("index", word, 64)])
    const = blob.add(CONST, "", inner)
    other = blob.compound(
        STRUCT, "", 16, [("compound_head", word, 0), ("order", small, 64)]
    )
    alias = blob.add(TYPEDEF, "other_t", other)
    union = blob.compound(UNION, "", 16, [("", const, 0), ("", alias, 0)])
    blob.compound(
        STRUCT, "page", 64, [("flags", word, 0), ("", union, 64), ("last", small, 256)]
    )
    # Bits 0 to 3 and 4 to 7 are fields; the member after them is none.
    blob.compound(
        STRUCT,
        "fields",
        16,
        [("a", small, 4 << 24 | 0), ("b", small, 4 << 24 | 4), ("c", word, 64)],
        bit_fields=True,
    )
    held = blob.compound(STRUCT, "", 8, [("whole", word, 0)])
    blob.compound(
        STRUCT,
        "holder",
        24,
        [("bits", small, 8 << 24 | 8), ("", held, 128)],
        bit_fields=True,
    )
    # A member of the wanted name in a named struct is not ours.
    named = blob.compound(STRUCT, "named", 8, [("hidden", word, 0)])
    renamed = blob.add(TYPEDEF, "named_t", named)
    blob.compound(
        STRUCT,
        "outer",
        24,
        [("n", named, 0), ("pointer", word, 64), ("m", renamed, 128)],
    )
    blob.function("unmap_vmas", [("tlb", word), ("vma", word)])
    blob.function("init", [])
    blob.enum("pageflags", {"PG_locked": 0, "PG_head": 16, "PG_bad": -1})
    blob.enum("", {"OTHER": 3})
    blob.enum("", {"FIRST": 0, "SECOND": 7, "AGAIN": 7, "LESS": -2})
    path = tmp_path / "btf"
    path.write_bytes(blob.raw())
    return Btf.load(path)


@pytest.mark.parametrize("name", ["FIRST", "AGAIN"])
def test_an_enum_without_a_name(types: Btf, name: str) -> None:
    found = types.constants(name)
    assert list(found.items()) == [
        ("FIRST", 0),
        ("SECOND", 7),
        ("AGAIN", 7),
        ("LESS", -2),
    ]


@pytest.mark.parametrize("name", ["PG_head", "mapping", "NONE", ""])
def test_what_no_enum_without_a_name_has(types: Btf, name: str) -> None:
    assert types.constants(name) == {}


@pytest.mark.parametrize(
    ("member", "offset"),
    [
        ("flags", 0),
        ("mapping", 8),
        ("index", 16),
        ("compound_head", 8),
        ("order", 16),
        ("last", 32),
    ],
)
def test_members_also_of_unnamed_members(types: Btf, member: str, offset: int) -> None:
    assert types.offset("page", member) == offset


def test_bit_fields(types: Btf) -> None:
    assert types.offset("fields", "c") == 8
    for member in "ab":
        with pytest.raises(TypeMissing, match=f"{member} is a bit field"):
            types.offset("fields", member)
    # Inside of an unnamed member, whose own offset has no width in it.
    assert types.offset("holder", "whole") == 16


def test_size_and_enumerators(types: Btf) -> None:
    assert types.sizeof("page") == 64
    assert types.enumerator("pageflags", "PG_head") == 16
    assert types.enumerator("pageflags", "PG_bad") == -1


def test_members_of_named_members(types: Btf) -> None:
    assert types.offset("outer", "n.hidden") == 0
    assert types.offset("outer", "m.hidden") == 16
    with pytest.raises(TypeMissing, match=r"outer of this kernel has no member m\.x"):
        types.offset("outer", "m.x")
    with pytest.raises(TypeMissing, match=r"no member pointer\.x"):
        types.offset("outer", "pointer.x")


def test_arguments(types: Btf) -> None:
    assert types.arguments("unmap_vmas") == ("tlb", "vma")
    assert types.arguments("init") == ()
    # What is no function is none.
    assert types.arguments("page") is None
    assert types.arguments("unmap_page") is None


def test_what_the_kernel_has_not(types: Btf) -> None:
    with pytest.raises(TypeMissing, match="no struct folio"):
        types.sizeof("folio")
    with pytest.raises(TypeMissing, match="struct page of this kernel has no member x"):
        types.offset("page", "x")
    with pytest.raises(TypeMissing, match="no member hidden"):
        types.offset("outer", "hidden")
    with pytest.raises(TypeMissing, match="no enum zone_type"):
        types.enumerator("zone_type", "ZONE_MOVABLE")
    with pytest.raises(TypeMissing, match="enum pageflags of this kernel has no PG_x"):
        types.enumerator("pageflags", "PG_x")


def test_a_kernel_without_type_information(tmp_path: Path) -> None:
    with pytest.raises(BtfMissing, match="without type information") as caught:
        Btf.load(tmp_path / "vmlinux")
    assert "CONFIG_DEBUG_INFO_BTF=y" in (caught.value.hint or "")


def test_type_information_that_is_damaged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(b"no BTF in here, and no ELF either")
    with pytest.raises(BtfMissing, match="cannot be read"):
        Btf.load(path)


def test_libbpf_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: object, **options: object) -> None:
        raise OSError("no such library")

    monkeypatch.setattr("ctypes.CDLL", fail)
    with pytest.raises(BtfMissing, match=r"libbpf\.so\.1 cannot be loaded") as caught:
        load_library()
    assert caught.value.hint == "sudo apt-get install -y libbpf1"


def test_the_running_kernel_is_as_it_says() -> None:
    """On a kernel without BTF the error is what must come, not a pass."""
    if not BTF_PATH.exists():
        with pytest.raises(BtfMissing):
            Btf.load()
        return
    types = Btf.load()
    assert types.offset("vm_area_struct", "vm_start") == 0
    assert types.offset("vm_area_struct", "vm_end") == 8
    assert types.offset("rw_semaphore", "count") == 0
    assert types.sizeof("page") % 8 == 0
    for member in ("mm", "mempolicy", "flags"):
        assert 0 < types.offset("task_struct", member) < types.sizeof("task_struct")
    assert ("task_struct", "mm") in layout.MEMBERS
