"""Read type information (BTF) of the running kernel.

The parsing is libbpf's, the library that the kernel's own tools use for it; what is
here looks members up by name. libbpf.so.1 comes with bcc as Debian packages it.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cdmtrace.errors import RecordError, apt_hint

BTF_PATH: Final = Path("/sys/kernel/btf/vmlinux")

# include/uapi/linux/btf.h
_KIND_STRUCT: Final = 4
_KIND_UNION: Final = 5
_KIND_ENUM: Final = 6
_KIND_FUNC: Final = 12
_MODIFIERS: Final = frozenset({8, 9, 10, 11, 18})  # typedef, volatile, const, …
_KINDS: Final = {_KIND_STRUCT: "struct", _KIND_ENUM: "enum", _KIND_FUNC: "function"}
_BITFIELD: Final = 1 << 31


class _Type(ctypes.Structure):
    """struct btf_type: three words, followed by what its kind says."""

    _fields_ = (
        ("name", ctypes.c_uint32),
        ("info", ctypes.c_uint32),
        ("size_or_type", ctypes.c_uint32),
    )


class _Member(ctypes.Structure):
    """struct btf_member: offset in bits; in the low 24 of them with bit fields."""

    _fields_ = (
        ("name", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("offset", ctypes.c_uint32),
    )


class _Parameter(ctypes.Structure):
    """struct btf_param."""

    _fields_ = (("name", ctypes.c_uint32), ("type", ctypes.c_uint32))


class _Enum(ctypes.Structure):
    """struct btf_enum."""

    _fields_ = (("name", ctypes.c_uint32), ("value", ctypes.c_int32))


class BtfMissing(RecordError):
    """The kernel has no BTF, or libbpf is missing (exit status 125)."""


class TypeMissing(RecordError):
    """The kernel has no such type, member or enumerator (exit status 125)."""


def load_library() -> ctypes.CDLL:
    """Return libbpf. Raises BtfMissing."""
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise BtfMissing(
            "libbpf.so.1 cannot be loaded", hint=apt_hint("libbpf1")
        ) from error
    library.btf__parse.restype = ctypes.c_void_p
    library.btf__parse.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
    library.btf__type_cnt.restype = ctypes.c_uint32
    library.btf__type_cnt.argtypes = [ctypes.c_void_p]
    library.btf__type_by_id.restype = ctypes.c_void_p
    library.btf__type_by_id.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.btf__name_by_offset.restype = ctypes.c_char_p
    library.btf__name_by_offset.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.btf__find_by_name_kind.restype = ctypes.c_int32
    library.btf__find_by_name_kind.argtypes = [
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_uint32,
    ]
    return library


@dataclass(frozen=True, slots=True)
class Btf:
    """The types of one kernel. Kept until the process ends."""

    _library: ctypes.CDLL
    _handle: int

    @classmethod
    def load(cls, path: Path = BTF_PATH) -> Btf:
        """Read the BTF at path. Raises BtfMissing if there is none."""
        if not path.exists():
            raise BtfMissing(
                f"{path} is missing: this kernel was built without type information",
                hint="boot a kernel that has CONFIG_DEBUG_INFO_BTF=y",
            )
        library = load_library()
        handle = library.btf__parse(os.fsencode(path), None)
        if not handle:
            raise BtfMissing(
                f"{path} cannot be read: {os.strerror(ctypes.get_errno())}",
                hint="boot a kernel that has CONFIG_DEBUG_INFO_BTF=y",
            )
        return cls(library, handle)

    def offset(self, struct: str, member: str) -> int:
        """Return where a member of a struct is, in bytes.

        Members of unnamed structs and unions inside it count as its own; those of
        named ones are asked for as in C: ``lock_ctx.mm``. Raises TypeMissing if there
        is no such struct or member, or it is a bit field.
        """
        bits, inside = 0, self._find(struct, _KIND_STRUCT)
        for name in member.split("."):
            found = self._member(inside, name)
            if found is None:
                raise TypeMissing(
                    f"struct {struct} of this kernel has no member {member}"
                )
            bits, inside = bits + found[0], found[1]
        return bits // 8

    def sizeof(self, struct: str) -> int:
        """Return the size of a struct, in bytes. Raises TypeMissing."""
        return int(self._type(self._find(struct, _KIND_STRUCT)).size_or_type)

    def enumerator(self, enum: str, name: str) -> int:
        """Return the value of a name in an enum. Raises TypeMissing."""
        for item in self._items(self._address(self._find(enum, _KIND_ENUM))):
            if self._name(item.name) == name:
                return int(item.value)
        raise TypeMissing(f"enum {enum} of this kernel has no {name}")

    def constants(self, name: str) -> dict[str, int]:
        """Return what an unnamed enum has, in its order: the one that has this name.

        Empty where there is none. This looks through all types.
        """
        for number in range(1, self._library.btf__type_cnt(self._handle)):
            address = self._address(number)
            head = _Type.from_address(address)
            if head.name or head.info >> 24 & 0x1F != _KIND_ENUM:
                continue
            items = self._items(address)
            if any(self._name(item.name) == name for item in items):
                return {self._name(item.name): int(item.value) for item in items}
        return {}

    def arguments(self, function: str) -> tuple[str, ...] | None:
        """Return the names of a function's arguments, in order.

        None where nothing is told of such a function: pahole, which writes the BTF,
        leaves out those whose arguments the compiler has changed.
        """
        try:
            found = self._find(function, _KIND_FUNC)
        except TypeMissing:
            return None
        prototype = self._address(self._type(found).size_or_type)
        count = _Type.from_address(prototype).info & 0xFFFF
        parameters = (_Parameter * count).from_address(prototype + ctypes.sizeof(_Type))
        return tuple(self._name(item.name) for item in parameters)

    @staticmethod
    def _items(enum: int) -> ctypes.Array[_Enum]:
        kind = _Enum * (_Type.from_address(enum).info & 0xFFFF)
        items: ctypes.Array[_Enum] = kind.from_address(enum + ctypes.sizeof(_Type))
        return items

    def _find(self, name: str, kind: int) -> int:
        found: int = self._library.btf__find_by_name_kind(
            self._handle, name.encode(), kind
        )
        if found < 0:
            raise TypeMissing(f"this kernel has no {_KINDS[kind]} {name}")
        return found

    def _address(self, type_id: int) -> int:
        address: int = self._library.btf__type_by_id(self._handle, type_id)
        return address

    def _type(self, type_id: int) -> _Type:
        return _Type.from_address(self._address(type_id))

    def _name(self, offset: int) -> str:
        name: bytes = self._library.btf__name_by_offset(self._handle, offset)
        return name.decode()

    def _plain(self, type_id: int) -> int:
        """Return the type that is behind typedefs and qualifiers."""
        while (kind := self._type(type_id)).info >> 24 & 0x1F in _MODIFIERS:
            type_id = kind.size_or_type
        return type_id

    def _member(self, type_id: int, wanted: str) -> tuple[int, int] | None:
        """Return the offset of a member in bits, and its type.

        Looks into unnamed members; None where there is none, or type_id is none of a
        struct or union.
        """
        if self._type(type_id).info >> 24 & 0x1F not in (_KIND_STRUCT, _KIND_UNION):
            return None
        address = self._address(type_id)
        head = _Type.from_address(address)
        bit_fields = bool(head.info & _BITFIELD)
        members = (_Member * (head.info & 0xFFFF)).from_address(
            address + ctypes.sizeof(_Type)
        )
        for member in members:
            name = self._name(member.name)
            if name == wanted:
                # The width of a bit field; 0 for what is none.
                if bit_fields and member.offset >> 24:
                    raise TypeMissing(f"{wanted} is a bit field on this kernel")
                return int(member.offset), self._plain(member.type)
            found = None if name else self._member(self._plain(member.type), wanted)
            if found is not None:
                return int(member.offset) + found[0], found[1]
        return None
