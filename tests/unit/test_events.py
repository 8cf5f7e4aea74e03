"""bpf/events.h and cdmtrace/events.py say the same, by the C compiler's word."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cdmtrace import events

HEADER = Path(__file__).resolve().parents[2] / "bpf" / "events.h"


def read_enums(text: str) -> dict[str, list[str]]:
    """Return enum name -> its enumerators, of a header without comments."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return {
        name: re.findall(r"\b(CDM_\w+)\s*=", body)
        for name, body in re.findall(r"enum (\w+) \{(.*?)\}", text, re.DOTALL)
    }


def read_fields(text: str) -> list[str]:
    """Return the members of struct cdm_event in order."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    body = re.search(r"struct cdm_event \{(.*?)\}", text, re.DOTALL)
    assert body is not None
    return re.findall(r"(\w+);", body[1])


ENUMS = read_enums(HEADER.read_text())
FIELDS = read_fields(HEADER.read_text())
MACROS = {
    "CDM_NO_NODE": events.NO_NODE,
    "CDM_COMM_LEN": events.COMM_LEN,
    "CDM_STACKS": events.STACKS,
    "CDM_POLICY_UNREAD": events.POLICY_UNREAD,
    "CDM_LOCK(CDM_LOCK_WRITE_OTHER, CDM_VMA_LOCK_DETACHED)": events.lock_byte(
        events.Lock.WRITE_OTHER, events.VmaLock.DETACHED
    ),
    "CDM_POLICY(CDM_MPOL_BIND, 1 << 15)": events.policy_byte(events.Mpol.BIND, 1 << 15),
    "CDM_POLICY(CDM_MPOL_BIND, 1 << 14)": events.policy_byte(events.Mpol.BIND, 1 << 14),
    "CDM_POLICY(CDM_MPOL_LOCAL, 1 << 13)": events.policy_byte(
        events.Mpol.LOCAL, 1 << 13
    ),
    "CDM_POLICY(CDM_MPOL_BIND, 0x1fff)": int(events.Mpol.BIND),
}


def compiler() -> str:
    """Return a C compiler; without one there is nothing to compare with."""
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if found is None:
        pytest.fail("no C compiler: apt-get install gcc")
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the compiler says, expression -> value."""
    folder = tmp_path_factory.mktemp("events")
    lines = ["sizeof(struct cdm_event)"]
    for field in FIELDS:
        lines.append(f"offsetof(struct cdm_event, {field})")
        lines.append(f"sizeof(((struct cdm_event *)0)->{field})")
        lines.append(f"((__typeof__(((struct cdm_event *)0)->{field}))-1 < 0)")
    lines += [name for names in ENUMS.values() for name in names]
    lines += MACROS
    prints = "".join(
        f'printf("%lld\\t%s\\n", (long long)({x}), "{x}");\n' for x in lines
    )
    source = folder / "measure.c"
    # The header comes first: it must not lean on what others include.
    source.write_text(
        f'#include "{HEADER}"\n#include <stddef.h>\n#include <stdio.h>\n'
        f"int main(void) {{\n{prints}return 0; }}\n"
    )
    program = folder / "measure"
    # type-limits: asking whether an unsigned -1 is below 0 is the point here.
    strict = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-type-limits"]
    subprocess.run([compiler(), *strict, "-o", program, source], check=True)
    out = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {x: int(v) for v, x in (line.split("\t") for line in out.splitlines())}


def test_size_is_a_multiple_of_eight_and_at_most_128(measured: dict[str, int]) -> None:
    size = measured["sizeof(struct cdm_event)"]
    assert size == events.EVENT_DTYPE.itemsize
    assert size % 8 == 0
    assert size <= 128


def test_same_fields_in_the_same_order() -> None:
    assert events.EVENT_DTYPE.names is not None
    assert list(events.EVENT_DTYPE.names) == FIELDS


@pytest.mark.parametrize("field", FIELDS)
def test_field(measured: dict[str, int], field: str) -> None:
    assert events.EVENT_DTYPE.fields is not None
    dtype, offset = events.EVENT_DTYPE.fields[field][:2]
    assert offset == measured[f"offsetof(struct cdm_event, {field})"]
    assert dtype.itemsize == measured[f"sizeof(((struct cdm_event *)0)->{field})"]
    signed = measured[f"((__typeof__(((struct cdm_event *)0)->{field}))-1 < 0)"]
    # C promotes small types only after the cast, so this is the field's sign.
    assert (dtype.kind == "i") == bool(signed)


def test_no_hidden_padding() -> None:
    assert events.EVENT_DTYPE.fields is not None
    widths = sum(field[0].itemsize for field in events.EVENT_DTYPE.fields.values())
    assert widths == events.EVENT_DTYPE.itemsize


def test_every_enum_is_mirrored() -> None:
    assert set(ENUMS) == set(events.C_ENUMS)


@pytest.mark.parametrize("name", sorted(events.C_ENUMS))
def test_enum(measured: dict[str, int], name: str) -> None:
    prefix, mirror = events.C_ENUMS[name]
    in_c = {x.removeprefix(prefix): measured[x] for x in ENUMS[name]}
    assert in_c == {name: int(x) for name, x in mirror.__members__.items()}


@pytest.mark.parametrize("name", sorted(events.C_ENUMS))
def test_enum_fits_its_column(name: str) -> None:
    assert all(0 <= int(x) < 256 for x in events.C_ENUMS[name][1])


@pytest.mark.parametrize("macro", sorted(MACROS))
def test_macro(measured: dict[str, int], macro: str) -> None:
    assert measured[macro] == MACROS[macro]


def test_a_row_of_zeros_is_no_event() -> None:
    zeros = np.zeros(1, events.EVENT_DTYPE)
    with pytest.raises(ValueError, match="0 is not a valid EventKind"):
        events.EventKind(int(zeros["kind"][0]))


def test_the_header_includes_nothing() -> None:
    assert "#include" not in HEADER.read_text()


@pytest.mark.parametrize("mmap", events.Lock)
@pytest.mark.parametrize("vma", events.VmaLock)
def test_lock_round_trip(mmap: events.Lock, vma: events.VmaLock) -> None:
    byte = events.lock_byte(mmap, vma)
    assert 0 <= byte < 256
    assert (events.mmap_lock(byte), events.vma_lock(byte)) == (mmap, vma)


@pytest.mark.parametrize("mode", events.Mpol)
@pytest.mark.parametrize("flags", [0, 1 << 13, 1 << 14, 1 << 15, 7 << 13])
def test_policy_round_trip(mode: events.Mpol, flags: int) -> None:
    byte = events.policy_byte(mode, flags)
    assert events.policy_mode(byte) is mode
    assert int(events.policy_flags(byte)) << 8 == flags


@pytest.mark.parametrize(
    ("comm", "want"),
    [
        (b"", b""),
        (b"story", b"story"),
        (b"fifteen-letters", b"fifteen-letters"),
        (b"not \xff utf-8", b"not \xff utf-8"),
        (b"old\0leftover", b"old"),
    ],
)
def test_comm(comm: bytes, want: bytes) -> None:
    row = np.zeros(1, events.EVENT_DTYPE)
    both = np.frombuffer(comm.ljust(events.COMM_LEN, b"\0"), "=u8")
    row["nodes"], row["other"] = both
    assert events.comm_bytes(row[0]) == want
