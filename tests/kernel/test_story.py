"""The whole way on real kernels: record the story, check it, compare with the truth.

One boot for each kernel, one recording for each set of quirks, and one more that shows
that who loads the probes makes no difference. foreign-6.1 has no
symbol of the tagging helpers and another bit for the tag: what is found there must be
the same.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pytest
from labrun import lab_record

from cdmtrace.analysis import check, count_pages, load
from cdmtrace.events import EventKind, Probe
from cdmtrace.lab import quirks, scenarios
from cdmtrace.lab.paths import Layout

pytestmark = pytest.mark.timeout(3600)

KERNELS = ("cdm-6.1", "foreign-6.1")
NAMES = (quirks.RFC, quirks.NONE)
BY_BCC = f"{quirks.RFC}+bcc"
"""The same as the first, whose probes libbpf loads: bcc compiles them."""
WITHOUT_CHANCE = ("env", "-i", "setarch", "-R")
"""How many pages a stack has, which migrate_pages() takes along, depends on where it
begins, and on the environment."""
RULES = ("CDM001", "CDM002", "CDM003", "CDM005", "CDM010", "CDM011", "CDM014")
CDM_NODE = 1
EXPECTED = {
    ("CDM001", "mbind"),
    ("CDM002", "interleave"),
    ("CDM002", "migrate_pages"),
    ("CDM002", "move_pages"),
    ("CDM002", "thp"),
    ("CDM003", "fault"),
    ("CDM005", "mbind"),
    ("CDM010", "fault"),
    ("CDM011", "mbind"),
    ("CDM014", "fault"),
}
"""(rule, cause) of every finding of the story under rfc, and of no other."""


@dataclass(frozen=True)
class Told:
    """A recording of the story, what check says of it, and the kernel's own truth."""

    trace: Path
    status: int
    document: dict[str, Any]
    text: str
    numa_maps: str


def record_stories(kernel: str, directory: Path) -> dict[str, Told]:
    """Record the story in a guest under each set of quirks, and check it here."""
    program = scenarios.compile_scenario(
        scenarios.find_scenario("story"), Layout.default()
    )
    recordings = {}
    for names in (*NAMES, *((BY_BCC,) if kernel == KERNELS[0] else ())):
        told = quirks.as_argument(quirks.resolve(names.partition("+")[0]))
        words = ("--", *WITHOUT_CHANCE, str(program), "--quirks", told)
        recordings[names] = (*words, "--numa-maps", f"{names}.numa_maps")
    run, statuses = lab_record(directory, recordings, "--kernel", kernel)
    assert statuses == dict.fromkeys(recordings, 0)
    return {names: check_story(run / f"{names}.arrows") for names in recordings}


def check_story(trace: Path) -> Told:
    """Return what is found in a recording, and what was left beside it."""
    command = [sys.executable, "-m", "cdmtrace", "check", str(trace)]
    command += ["--rules", ",".join(RULES)]
    text = subprocess.run(command, capture_output=True, text=True, check=False)
    form = subprocess.run(
        [*command, "--format", "json"], capture_output=True, text=True, check=False
    )
    assert text.returncode == form.returncode, text.stderr + form.stderr
    return Told(
        trace=trace,
        status=text.returncode,
        document=json.loads(form.stdout),
        text=text.stdout,
        numa_maps=trace.with_suffix(".numa_maps").read_text(),
    )


@pytest.fixture(scope="module", params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> str:
    """Build one of the kernels, unless that was done before."""
    name: str = request.param
    subprocess.run(
        [sys.executable, "-m", "cdmtrace", "lab", "build", "--kernel", name],
        check=True,
    )
    return name


@pytest.fixture(scope="module")
def stories(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Told]:
    """The story on a kernel that does what the posted patches do, and without."""
    return record_stories(kernel, tmp_path_factory.mktemp(kernel))


def test_every_defect_is_found_and_told(stories: dict[str, Told]) -> None:
    rfc = stories[quirks.RFC]
    findings = rfc.document["findings"]
    assert {(one["rule"], one["cause"]) for one in findings} == EXPECTED
    assert all(one["witness"] for one in findings)
    assert rfc.document["verdict"] == "violated"
    assert rfc.status == 1
    assert max(map(len, rfc.text.splitlines())) < 80


def test_without_defects_there_is_nothing_and_not_for_want_of_looking(
    stories: dict[str, Told],
) -> None:
    none = stories[quirks.NONE]
    assert none.document["findings"] == []
    verdicts = {one["rule"]: one["verdict"] for one in none.document["rules"]}
    assert verdicts == dict.fromkeys(RULES, "clean")
    assert all(one["checked"] > 0 for one in none.document["rules"])
    assert none.status == 0


def counted(told: Told) -> Counter[tuple[str, str]]:
    """Return (kind, probe) of each event about the story's processes."""
    trace = load(told.trace)
    lives = check(trace, rules=()).lives
    story = {life.mm.pid for life in lives if life.mm.comm == "story"}
    return Counter(
        (EventKind(event.kind).name, Probe(event.probe).name)
        for event in trace.events
        if event.pid in story
    )


def test_who_loads_the_probes_makes_no_difference(
    kernel: str, stories: dict[str, Told]
) -> None:
    if kernel != KERNELS[0]:
        assert BY_BCC not in stories
        return
    bcc, libbpf = stories[BY_BCC], stories[quirks.RFC]
    keys = ("rule", "cause", "expected", "observed", "fingerprint")
    found = [
        Counter(tuple(one[key] for key in keys) for one in told.document["findings"])
        for told in (bcc, libbpf)
    ]
    assert found[0] == found[1]
    assert counted(bcc) == counted(libbpf)
    assert counted(bcc).total() > 800


@pytest.mark.parametrize("names", NAMES)
def test_the_documents_obey_their_schema(stories: dict[str, Told], names: str) -> None:
    schema = json.loads(
        (resources.files("cdmtrace") / "schemas" / "check-1.json").read_text()
    )
    jsonschema.validate(stories[names].document, schema)


@pytest.mark.parametrize("names", NAMES)
def test_the_model_s_pages_equal_numa_maps(
    stories: dict[str, Told], names: str
) -> None:
    story = stories[names]
    trace = load(story.trace)
    lives = [life for life in check(trace, rules=()).lives if life.mm.comm == "story"]
    # The parent is the one that lived first; its children are forks of it.
    parent = min(lives, key=lambda life: life.mm.pid)
    compared = 0
    starts = []
    for line in story.numa_maps.splitlines():
        start = int(line.split()[0], 16)
        pages = sum(int(n) for n in re.findall(rf"\bN{CDM_NODE}=(\d+)", line))
        starts.append((start, pages))
    for (start, pages), (after, _) in zip(
        starts, [*starts[1:], (starts[-1][0] + (1 << 30), 0)], strict=True
    ):
        found = count_pages(parent.state, trace.terms, start, after)
        assert found.get(CDM_NODE, 0) == pages, f"{start:x}"
        compared += pages
    assert compared > 1600
    assert len(starts) >= 16


def test_anybody_opens_the_trace(stories: dict[str, Told]) -> None:
    rfc = stories[quirks.RFC]
    with pa.OSFile(str(rfc.trace)) as file:
        frame = pa.ipc.open_stream(file).read_pandas()
    assert len(frame) == rfc.document["trace"]["events"]
    assert list(frame["seq"]) == list(range(1, len(frame) + 1))


def test_the_kernel_has_no_names_to_lean_on(kernel: str) -> None:
    image = subprocess.run(
        [sys.executable, "-m", "cdmtrace", "lab", "build", "--kernel", kernel],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    symbols = (Path(image).parent / "System.map").read_text()
    names = "mark_vma_cdm|set_vm_cdm|clr_vm_cdm|devmem_(?:range|folio)_[a-z]+"
    helpers = re.findall(rf" (?:{names})\n", symbols)
    assert bool(helpers) == (kernel == "cdm-6.1")
