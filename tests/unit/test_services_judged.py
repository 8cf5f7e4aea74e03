"""Services that touch pages of a node: allowed or not, not seen, and what is told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from msgspec.structs import replace
from notes import BASE, PAGE
from simfile import header_of
from simkernel import PROBES
from touching import (
    MOVES,
    TAKES,
    TERMS,
    World,
    cell,
    pages,
    rule,
    scan,
)

from cdmtrace.analysis import aggregate, check, document
from cdmtrace.analysis.frames import Gap, terms_of
from cdmtrace.analysis.permissions import Permissions
from cdmtrace.analysis.result import Verdict
from cdmtrace.analysis.services import (
    BY_NAME,
    NO_DEPARTURES,
    SERVICES,
)
from cdmtrace.events import EventKind
from cdmtrace.render import divergence

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "cdmtrace/schemas/check-1.json").read_text())


# --- what is allowed ---------------------------------------------------------------


def reclaimed(number: int = 2) -> World:
    world = World()
    for page in range(number):
        world.maps(page)
        world.page(page, EventKind.UNMAP, *TAKES, "shrink_folio_list", src_node=1)
    return world


def test_nothing_but_mempolicy_is_allowed_by_default() -> None:
    allowed = {
        one.service.name for one in reclaimed().check().services.cells if one.allowed
    }
    assert allowed == {"mempolicy", "driver"}


def test_a_finding_for_a_vma_and_a_service() -> None:
    result = reclaimed().check()
    assert rule(result).verdict is Verdict.VIOLATED
    assert rule(result).checked == 4
    (found,) = result.findings
    assert (found.rule.id, found.cause, found.count) == ("CDM021", "reclaim", 2)
    assert found.expected == (
        "pages of node 1 left alone by reclaim; allowed there: mempolicy"
    )
    assert found.observed == "1 page of node 1 taken away, by reclaim"
    (step,) = found.witness
    assert step.kind == "unmap"
    assert step.stack == (*TAKES, "shrink_folio_list")


@pytest.mark.parametrize(
    ("source", "node", "said"),
    [
        (1, 0, "1 page of node 1 taken away, by compaction, to node 0"),
        (0, 1, "1 page of node 1 mapped, by compaction, from node 0"),
        (-1, 1, "1 page of node 1 mapped, by compaction"),
        (1, 1, "1 page of node 1 worked on by compaction"),
    ],
)
def test_what_it_did(source: int, node: int, said: str) -> None:
    world = World()
    world.moves(0, source, node, *MOVES, "compact_zone", arg=0)
    found = [one for one in world.check().findings if one.rule.id == "CDM021"]
    assert [one.observed for one in found] == [said]


@pytest.mark.parametrize(
    "permissions",
    [
        Permissions(more={1: frozenset({"reclaim"})}),
        Permissions(more={None: frozenset({"reclaim"})}),
        Permissions(more={1: frozenset({"all"})}),
        Permissions(nodes={1: frozenset({"mempolicy", "reclaim"})}),
        Permissions(nodes={None: frozenset({"all"})}),
    ],
)
def test_what_is_allowed_is_no_finding(permissions: Permissions) -> None:
    result = reclaimed().check(permissions)
    assert cell(result, "reclaim").allowed
    assert result.findings == ()
    assert (rule(result).verdict, rule(result).checked) == (Verdict.CLEAN, 4)


def test_each_node_has_its_own_permissions() -> None:
    world = World(replace(TERMS, cdm=0b110))
    world.moves(0, 1, 2, *MOVES, "kernel_move_pages", arg=3)
    result = world.check(Permissions(more={2: frozenset({"migration"})}))
    assert pages(cell(result, "migration", 1)) == (0, 1, 0)
    assert pages(cell(result, "migration", 2)) == (1, 0, 0)
    (found,) = result.findings
    assert found.expected.startswith("pages of node 1 left alone by migration; ")
    assert found.expected.endswith("allowed there: mempolicy")
    result = world.check(Permissions(more={1: frozenset({"ksm", "damon"})}))
    assert [
        (one.count, one.expected.partition("; ")[2]) for one in result.findings
    ] == [
        (1, "allowed there: damon, ksm, mempolicy"),
        (1, "allowed there: mempolicy"),
    ]
    assert len({one.fingerprint for one in result.findings}) == 2


def test_a_policy_may_be_forbidden_too() -> None:
    world = World()
    world.maps(0)
    (found,) = world.check(Permissions(nodes={1: frozenset()})).findings
    assert found.cause == "mempolicy"
    assert found.expected.endswith("allowed there: none")


def test_a_leak_is_the_other_rules() -> None:
    world = World()
    world.maps(0, policy=0, nodes=0)
    result = world.check()
    assert [one.rule.id for one in result.findings] == ["CDM014"]
    assert rule(result).verdict is Verdict.VACUOUS
    assert not cell(result, "fallback").allowed


def test_a_fingerprint_has_no_address() -> None:
    world, other = reclaimed(), World()
    place = {"start": BASE + 64 * PAGE, "end": BASE + 72 * PAGE, "pid": 9, "tid": 9}
    other.comm("story", 9)
    other.maps(65, **place)
    other.page(65, EventKind.UNMAP, *TAKES, "shrink_folio_list", src_node=1, **place)
    (one,), (two,) = world.check().findings, other.check().findings
    assert one.fingerprint == two.fingerprint
    assert one.start != two.start


# --- what could not be seen ----------------------------------------------------------


def test_without_occasion_it_is_vacuous() -> None:
    world = World()
    result = world.check()
    assert (rule(result).verdict, rule(result).findings) == (Verdict.VACUOUS, 0)
    assert {
        one.service.name: one.unchecked
        for one in result.services.cells
        if one.unchecked
    } == {
        "longterm-pin": BY_NAME["longterm-pin"].partly,
        "protect-write": BY_NAME["protect-write"].never,
        "oom-eligible": BY_NAME["oom-eligible"].never,
        "page-cache": BY_NAME["page-cache"].partly,
    }


@pytest.mark.parametrize("probe", sorted(rule(World().check()).rule.probes))
def test_without_its_probe_a_service_is_not_seen(probe: str) -> None:
    world = World(replace(TERMS, probes={**PROBES, probe: None}))
    for one in world.check().services.cells:
        if probe in one.service.probes:
            assert one.unchecked == f"probe not attached: {probe}"


def test_what_was_seen_is_not_unchecked() -> None:
    world = World(replace(TERMS, probes={**PROBES, "numa_scan": None}))
    world.moves(0, 1, 0, *MOVES, "migrate_misplaced_page", arg=5)
    assert cell(world.check(), "numa-balancing").unchecked is None


@pytest.mark.parametrize("stacks", ["changes", "none"])
def test_without_stacks_most_are_not_seen(stacks: str) -> None:
    result = World(replace(TERMS, stacks=stacks)).check()
    told = {
        one.service.name
        for one in result.services.cells
        if one.unchecked == f"recorded with --stacks {stacks}"
    }
    assert told == {one.name for one in SERVICES if one.stacks or one.departures}
    assert {"reclaim", "compaction", "khugepaged"} < told
    assert rule(result).verdict is Verdict.INCONCLUSIVE


def test_an_old_recording_has_no_stacks_of_what_leaves() -> None:
    world = World(replace(TERMS, departures=False))
    world.moves(0, 1, 0, *MOVES, "compact_zone", arg=0)
    result = world.check(Permissions(more={1: frozenset({"compaction"})}))
    told = {
        one.service.name
        for one in result.services.cells
        if one.unchecked == NO_DEPARTURES
    }
    assert told == {"reclaim", "khugepaged", "memory-failure"}
    assert (rule(result).verdict, rule(result).why) == (
        Verdict.INCONCLUSIVE,
        NO_DEPARTURES,
    )
    # What was seen is true all the same.
    assert rule(world.check()).verdict is Verdict.VIOLATED


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, False),
        ({"stacks_of": ["arrivals"]}, False),
        ({"stacks_of": "departures"}, False),
        ({"stacks_of": ["changes", "arrivals", "departures"]}, True),
    ],
)
def test_the_header_says_whether_it_has(extra: dict[str, Any], expected: bool) -> None:
    header = dataclasses.replace(header_of(World().trace()), extra=extra)
    assert terms_of(header, "x").departures is expected


def test_a_node_that_was_left_out() -> None:
    world = World(replace(TERMS, cdm=0b110, told=0b10))
    result = world.check()
    assert cell(result, "ksm", 2).unchecked == "recorded without this node (--node)"
    assert cell(result, "ksm", 1).unchecked is None


@pytest.mark.parametrize("probe", ["rmap_remove", "ksm_merge", "watch"])
def test_a_loss_leaves_it_open(probe: str) -> None:
    world = World()
    world.maps(0)
    world.gaps = (Gap(probe=probe, reason="ring", count=3, since=1, until=9000),)
    result = world.check()
    assert rule(result).verdict is Verdict.INCONCLUSIVE
    assert result.services.why
    world.gaps = (replace(world.gaps[0], probe="vma_new"),)
    assert world.check().services.why is None
    assert rule(world.check()).verdict is Verdict.CLEAN


def test_a_loss_may_have_taken_the_pages_that_a_scan_is_said_to_touch() -> None:
    world = World()
    world.maps(0)
    scan(world, 0, 8)
    assert rule(world.check()).verdict is Verdict.VIOLATED
    world.gaps = (
        Gap(probe="rmap_remove", reason="ring", count=1, since=2500, until=2600),
    )
    result = rule(world.check())
    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.findings == 0
    assert "withheld" in str(result.why)


# --- which rules are asked for, and what is printed ---------------------------------


def test_which_rules_np_asks_for() -> None:
    assert [one.rule.id for one in reclaimed().check().rules] == ["CDM014", "CDM021"]


@pytest.mark.parametrize("profile", ["intended", "rfc-v2"])
def test_the_other_profiles_do_not_ask_for_it(profile: str) -> None:
    result = check(reclaimed().trace(), profile=profile)
    assert "CDM021" not in {one.rule.id for one in result.rules}
    assert document.check(result)["services"] is None
    (one,) = check(reclaimed().trace(), profile=profile, rules={"CDM021"}).rules
    assert (one.verdict, one.why) == (
        Verdict.UNCHECKED,
        f"{profile} promises nothing like it",
    )


def test_np_asks_nothing_of_the_tag() -> None:
    world = World()
    world.maps(0)
    result = world.check()
    assert result.shadow is None
    assert check(world.trace()).shadow is not None


def test_the_document_keeps_to_its_schema() -> None:
    told = document.check(reclaimed().check())
    jsonschema.validate(told, SCHEMA)
    (one,) = [c for c in told["services"]["cells"] if c["service"] == "reclaim"]
    assert one == {
        "node": 1,
        "service": "reclaim",
        "flag": "NP_OPS_RECLAIM",
        "does": BY_NAME["reclaim"].does,
        "allowed": False,
        "observed": True,
        "unchecked": None,
        "pages": {"came": 0, "left": 2, "stayed": 0},
        "first": {"seq": 3, "ts": 3000, "since_start": 3000},
        "by": [{"comm": "story", "pages": 2}],
    }


def test_the_text() -> None:
    world = reclaimed()
    world.comm("kswapd1", 44)
    world.page(
        7, EventKind.UNMAP, *TAKES, "shrink_folio_list", src_node=1, pid=44, tid=44
    )
    world.gaps = (Gap(probe="ksm_merge", reason="ring", count=3, since=1, until=9),)
    text = divergence.check(document.check(world.check()))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "1 mempolicy yes 2 0 0 0.000002 story" in lines
    assert "1 reclaim NO 0 3 0 0.000003 story +1" in lines
    assert "1 compaction no 0 0 0 - -" in lines
    assert "1 oom-eligible no ? ? ? - -" in lines
    assert "? oom-eligible: no probe tells what the OOM killer counts" in lines
    assert "not certain: events lost: 3 of ksm_merge" in lines
    assert max(map(len, text.splitlines())) < 80


def test_no_node_no_table() -> None:
    world = World(replace(TERMS, cdm=0))
    assert "(no CDM node)" in divergence.check(document.check(world.check()))
    assert aggregate.SERVICES not in aggregate.report(world.trace())


def test_the_report_has_what_was_observed() -> None:
    rows = aggregate.report(reclaimed().trace())[aggregate.SERVICES]
    assert [row["service"] for row in rows] == [
        *("mempolicy", "reclaim", "longterm-pin", "protect-write", "oom-eligible"),
        "page-cache",
    ]
    assert rows[1] == {
        "node": 1,
        "service": "reclaim",
        "pages came": 0,
        "pages left": 2,
        "pages stayed": 0,
        "since": "0.000003",
        "by": "story",
    }
    assert rows[2]["pages left"] is None


# --- the table of services ------------------------------------------------------------


def test_every_flag_of_private_nodes_has_its_service() -> None:
    flags = [one.flag for one in SERVICES if one.flag]
    assert sorted(flags) == sorted(
        f"NP_OPS_{name}"
        for name in (
            *("MIGRATION", "MEMPOLICY", "DEMOTION", "PROTECT_WRITE", "RECLAIM"),
            *("NUMA_BALANCING", "COMPACTION", "LONGTERM_PIN", "OOM_ELIGIBLE"),
        )
    )


def test_no_function_is_of_two_services() -> None:
    functions = [name for one in SERVICES for name in one.functions]
    assert len(functions) == len(set(functions))
    assert len(BY_NAME) == len(SERVICES)
    for one in SERVICES:
        assert one.probes or one.never, one.name
