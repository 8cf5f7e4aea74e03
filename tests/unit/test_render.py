"""What a person reads: golden text, and what holds for any text."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import simstory
from msgspec.structs import replace
from simfile import save
from simkernel import BIND, CDM, PAGE, RAM, TAG, SimKernel

from cdmtrace.analysis import aggregate, check, describe, document, names
from cdmtrace.analysis.frames import Event, Terms, terms_of
from cdmtrace.analysis.rules import RULES
from cdmtrace.cli import main
from cdmtrace.events import Bit, EventKind
from cdmtrace.format.schema import Header
from cdmtrace.render import divergence, tables

STALE = """\
===============================================================================
CDM001 stale-tag: error, cause: mbind
  process    story (pid 214)
  mm         0000000000000001
  VMA        100040000000-100040001000 (1 page)
- required   not tagged: no policy of its own names a CDM node and no page of
             one is in it (CDM: node 1)
+ kernel     tagged: rd wr mr mw me ac cd
  time (s)  cpu   task       lock   flags
  0.001006  cpu0  story/214  write  - -> cd   policy DEFAULT -> BIND:1
  0.001014  cpu0  story/214  write  cd -> cd  policy BIND:1 -> BIND:0
  0.001015  cpu0  story/214  write  cd -> cd  page of node 1 leaves
  0.001017  cpu0  story/214                   mbind(BIND:0, MOVE, 1 page) = 0
  id         {fingerprint}
  breaks     "That flag is a one-way trip. Any VMA with that flag set on it
             will keep it for the life of the VMA, despite whether it has CDM
             pages in it now or not."
"""


def stale() -> dict[str, object]:
    kernel = SimKernel("one-way")
    task = kernel.process()
    vma = task.mmap(1)
    task.mbind(vma.start, 1)
    task.faults(vma)
    task.mbind(vma.start, 1, BIND, RAM, move=True)
    return document.check(check(kernel.trace()))


def test_a_divergence_reads_like_this() -> None:
    (one,) = stale()["findings"]
    text = divergence.finding(one)
    assert text + "\n" == STALE.format(fingerprint=one["fingerprint"])


@pytest.mark.parametrize(
    ("kind", "columns", "words"),
    [
        (EventKind.NUMA_SCAN, {"size": 3 * PAGE}, "NUMA balancing scans 3 pages"),
        (
            EventKind.NUMA_MOVE,
            {"src_node": 1, "node": 0, "ret": 1},
            "page moved by NUMA balancing, node 1 -> 0",
        ),
        (
            EventKind.NUMA_MOVE,
            {"src_node": 0, "node": 1},
            "page not moved by NUMA balancing, node 0 -> 1",
        ),
        (
            EventKind.KSM_PAGE,
            {"src_node": 1, "node": 0, "bits": Bit.KSM},
            "KSM page of node 0 for one of node 1",
        ),
        (
            EventKind.KSM_PAGE,
            {"src_node": 1, "node": 0},
            "page of zeros of node 0 for one of node 1",
        ),
        (EventKind.POLICY, {"ret": -12}, "the policy could not be set: ENOMEM"),
    ],
)
def test_an_event_in_words(
    kind: EventKind, columns: dict[str, int], words: str
) -> None:
    event = Event(seq=1, ts=1, ts_entry=1, kind=kind)
    told = describe.what(replace(event, **columns), Terms(cdm=CDM, tag=TAG))
    assert told == words


def test_the_story_fits_into_a_mail() -> None:
    kernel = SimKernel("rfc")
    simstory.tell(kernel)
    text = divergence.check(document.check(check(kernel.trace())))
    assert max(map(len, text.splitlines())) < 80
    assert text.isascii()
    assert "\x1b" not in text
    assert text.endswith("verdict: violated, 11 findings\n")


def test_a_long_name_does_not_break_the_lines() -> None:
    shown = stale()
    for step in shown["findings"][0]["witness"]:
        step.update(comm="a-name-of-15-chr", tid=4194304, lock="none>other's+vma:read")
        step["since_start"] = 10**16
    assert max(map(len, divergence.check(shown).splitlines())) < 80


def test_a_cut_and_lossy_trace_says_so() -> None:
    shown = stale()
    shown["trace"].update(lost=7, cut="the file ends at byte 12", clean_end=False)
    text = divergence.summary(shown)
    assert "7 lost" in text
    assert "the recording was cut: the file ends at byte 12" in text


def test_rendering_needs_nothing_but_the_document() -> None:
    shown = stale()
    assert divergence.check(json.loads(json.dumps(shown))) == divergence.check(shown)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_every_rule_is_explained(rule) -> None:
    text = divergence.rule(document.rule(rule))
    assert max(map(len, text.splitlines())) < 80
    for head in ("breaks", "source", "checked", "events", "threats", "limits"):
        assert f"\n{head} " in text
    # What is about the recording as a whole needs no probe.
    assert ("\nneeds " in text) is bool(rule.needs)
    assert rule.id in divergence.catalogue([document.rule(rule)])


def report() -> dict[str, list[dict[str, object]]]:
    kernel = SimKernel("rfc")
    simstory.tell(kernel)
    return aggregate.report(kernel.trace())


def test_the_report_counts_what_happened() -> None:
    shown = report()
    came = {row["cause"]: row["pages"] for row in shown["Arrivals by cause"]}
    assert came["move_pages"] == 41 + 7
    assert came["thp"] == 3 * 512
    left = {row["VMA"]: row["on CDM"] for row in shown["VMAs"] if row["pid"] == 214}
    assert left["100040000000-100040017000"] == 0
    assert left["100080000000-10008001d000"] == 29


def test_the_tables_have_every_form() -> None:
    shown = report()
    assert json.loads(tables.render(shown, "json")) == shown
    lines = tables.render(shown, "ndjson").splitlines()
    assert len(lines) == sum(map(len, shown.values()))
    assert "## Processes" in tables.render(shown, "markdown")
    heads = sum(bool(rows) for rows in shown.values())
    assert tables.render(shown, "csv").count("table,") == heads
    for form in ("table", "markdown"):
        assert "(none)" in tables.render({"Empty": []}, form)


def test_the_report_fits_into_a_mail() -> None:
    shown = report()
    for rows in shown.values():
        for row in rows:
            widest = {"pid": 4194304, "comm": "fifteen-letters"}
            row.update({key: widest[key] for key in widest if key in row})
    for text in (tables.render(report(), "table"), tables.render(shown, "table")):
        assert max(map(len, text.splitlines())) < 80
        assert text.isascii()


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_a_long_table_is_cut_for_people_and_says_so(form: str) -> None:
    limit = tables.LIMIT
    rows = [{"row": f"r{number:04}"} for number in range(limit + 1003)]
    text = tables.render({"Long": rows, "Short": rows[:limit]}, form)
    assert "1,003 more, in --format csv" in text
    assert text.count("more") == 1
    assert f"r{limit - 1:04}" in text
    assert f"r{limit:04}" not in text


@pytest.mark.parametrize("form", ["json", "ndjson", "csv"])
def test_a_long_table_is_whole_for_programs(form: str) -> None:
    rows = [{"row": f"r{number:04}"} for number in range(10 * tables.LIMIT)]
    text = tables.render({"Long": rows}, form)
    assert all(row["row"] in text for row in rows)


def test_bytes_are_for_people_in_tables_and_for_programs_elsewhere() -> None:
    shown = {"Some": [{"pages": 41, "bytes": 41 * 4096, "from": None}]}
    assert tables.render(shown, "table") == (
        "Some\n"
        "                  from\n"
        "pages      bytes  node\n"
        "-----  ---------  ----\n"
        "   41  164.0 KiB     ?\n"
    )
    assert json.loads(tables.render(shown, "json")) == shown
    assert tables.render(shown, "csv") == ("table,pages,bytes,from\nSome,41,167936,\n")


def test_what_no_probe_saw_is_not_passed_over(tmp_path, capsys) -> None:
    kernel = SimKernel()
    kernel.probes["migrate_pages"] = None
    path = save(kernel.trace(), tmp_path / "x.arrows")
    assert main(["report", str(path)]) == 0
    assert "not attached, so not counted: migrate_pages\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mask", "text"),
    [(0, "none"), (1, "0"), (2, "1"), (0b1011, "0-1,3"), (0b111000, "3-5")],
)
def test_node_lists(mask: int, text: str) -> None:
    assert names.nodes(mask) == text


@pytest.mark.parametrize(
    ("word", "text"),
    [
        (0x3, "rd wr"),
        (0x80000003 | 1 << 38, "rd wr mg cd"),
        (0x1 | 1 << 37, "rd bit37"),
        (0, ""),
    ],
)
def test_flags_have_their_names_in_smaps(word: int, text: str) -> None:
    assert " ".join(names.flags(word, Terms(cdm=2, tag=1 << 38))) == text


def test_the_bit_of_the_patches_is_cd_and_not_sf() -> None:
    assert names.flags(0x800001, Terms(cdm=2, tag=0x800000)) == ("rd", "cd")


def terms_on(release: str, machine: str = "x86_64", **changes: Any) -> Terms:
    """Return the terms of a recording made there, by the tool as it was before."""
    header = Header(
        tool="0",
        kernel_release=release,
        kernel_build="",
        machine=machine,
        boot_id="",
        started=0,
        utc_offset=0,
        page_size=4096,
        ring_size=4096,
        cdm_nodes=(1,),
        cdm_nodes_from="",
        vm_cdm_mask=1 << 45,
        vm_cdm_mask_from="",
    )
    return terms_of(dataclasses.replace(header, **changes), "x.arrows")


@pytest.mark.parametrize(
    ("release", "machine", "text"),
    [
        ("5.10.0-46-amd64", "x86_64", "dw pkey_bit0 bit37 bit38 cd"),
        ("6.1.0-56-amd64", "x86_64", "bit11 pkey_bit0 ui bit38 cd"),
        ("6.12.118+deb13-amd64", "x86_64", "bit11 pkey_bit0 ss ui cd"),
        ("7.2.13+deb14-amd64", "x86_64", "gu pkey_bit0 ss high_arch_6 cd"),
        ("6.1.0-56-arm64", "aarch64", "bit11 bit32 ui bit38 cd"),
    ],
)
def test_flags_have_the_names_of_their_kernel(
    release: str, machine: str, text: str
) -> None:
    word = sum(1 << bit for bit in (11, 32, 37, 38, 45))
    assert " ".join(names.flags(word, terms_on(release, machine))) == text


def test_what_the_recording_says_of_its_flags_comes_first() -> None:
    given = {0: "VM_READ", 32: "VM_\x1b[2JFOO"}
    terms = terms_on("6.1.0", vm_flags=given, vm_flags_from="mm.h")
    assert names.flags(0x3 | 1 << 32 | 1 << 37, terms) == (
        *("rd", "bit1"),
        *("?[2jfoo", "bit37"),
    )


CHECKED = 1 << 33 | 5 << 48


def test_the_node_that_openeuler_checks() -> None:
    terms = replace(Terms(cdm=2, tag=1 << 32), flags={32: "VM_CDM", 33: "VM_CHECKNODE"})
    word = CHECKED | 1 << 54 | 1 << 47 | 1 << 32
    shown = " ".join(names.flags(word, terms))
    assert shown == "checknode:5 bit47 bit54 cd"
    # A number without its flag is none.
    assert names.flags(5 << 48, terms) == ("bit48", "bit50")
    # It is shown whole where a bit of it changes, and else not at all.
    assert names.changed(CHECKED, CHECKED ^ 1 << 48, terms) == (
        *("checknode:5", "checknode:4"),
    )
    assert names.changed(0, CHECKED, terms) == ("-", "checknode:5")
    assert names.changed(CHECKED, CHECKED | 1 << 32, terms) == ("-", "cd")
    assert names.changed(CHECKED, CHECKED | 1 << 55, terms) == ("-", "bit55")
    # On any other kernel, these are bits like others.
    assert "bit33" in names.flags(CHECKED, Terms(cdm=2, tag=1 << 32))
