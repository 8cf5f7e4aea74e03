"""The rows of files, read batch by batch, more than once; and what large files are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import large
import pytest
import simstory
from msgspec.structs import replace
from rulecases import CASES, run
from simfile import save
from simkernel import SimKernel

from cdmtrace.analysis import Trace, check, history, load, page
from cdmtrace.analysis.book import NAMES, VERDICT
from cdmtrace.analysis.candidates import collect
from cdmtrace.analysis.frames import Event
from cdmtrace.analysis.replay import Replay
from cdmtrace.analysis.rows import FIELDS, Decoder, Rows, only
from cdmtrace.analysis.timeline import follow
from cdmtrace.errors import TraceFileError
from cdmtrace.events import EventKind
from cdmtrace.format.reader import TraceReader

GOLDEN = Path(__file__).parent.parent / "golden"
RFC = GOLDEN / "cdm-6.1-rfc.arrows"


@pytest.fixture(scope="module")
def told() -> Trace:
    kernel = SimKernel("rfc")
    simstory.tell(kernel)
    return kernel.trace()


@pytest.fixture
def file(told: Trace, tmp_path: Path) -> Path:
    return save(told, tmp_path / "told.arrows")


def test_the_rows_are_those_that_were_written_each_time(
    told: Trace, file: Path
) -> None:
    events = load(file).events
    assert [*events] == [*told.events]
    assert [*events] == [*told.events]


def test_a_column_for_each_field() -> None:
    assert set(FIELDS) == set(Event.__struct_fields__)
    with TraceReader(RFC) as reader:
        assert set(reader.read().schema.names) == set(FIELDS)


@pytest.mark.parametrize("kinds", [{EventKind.MAP}, {EventKind.COMM, EventKind.CALL}])
def test_rows_of_some_kinds_alone(
    told: Trace, file: Path, kinds: set[EventKind]
) -> None:
    expected = [event for event in told.events if event.kind in kinds]
    assert expected
    assert [*only(load(file).events, kinds)] == expected
    assert [*only(told.events, kinds)] == expected


@pytest.mark.parametrize("what", ["timeline", "page"])
def test_all_rows_are_made_into_events_to_judge_them_and_not_for_names(
    what: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[list[int] | None] = []
    everything, some = Rows.__iter__, Rows.only

    def all_of_them(self: Rows) -> Iterator[Event]:
        passes.append(None)
        return everything(self)

    def of_kinds(self: Rows, kinds: Collection[int]) -> Iterator[Event]:
        passes.append(list(kinds))
        return some(self, kinds)

    monkeypatch.setattr(Rows, "__iter__", all_of_them)
    monkeypatch.setattr(Rows, "only", of_kinds)
    trace = load(file)
    if what == "page":
        page.build(trace, profile="intended")
    else:
        (first, *_) = collect(trace, profile="intended").vmas
        passes.clear()
        found = follow(trace, 1, first.start, profile="intended")
        history.document(found, first.start)
    assert passes.count(None) == 1
    assert [EventKind.COMM] in passes


def test_when_its_last_row_came_is_known(told: Trace, file: Path) -> None:
    assert load(file).until == told.until == max(event.ts for event in told.events)


def test_a_file_that_goes_on_is_as_long_as_it_was(told: Trace, tmp_path: Path) -> None:
    whole = save(told, tmp_path / "whole.arrows").read_bytes()
    growing = save(told, tmp_path / "growing.arrows", end=False)
    trace = load(growing)
    first = len([*trace.events])
    cut = growing.read_bytes()
    # One batch fewer: what is there when it is opened.
    growing.write_bytes(whole[: len(cut) * 3 // 4])
    short = load(growing)
    growing.write_bytes(cut)
    assert 0 < len([*short.events]) == short.count < first


def test_a_file_that_has_been_cut_since_says_so(file: Path) -> None:
    trace = load(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(TraceFileError, match="it has changed while it was read"):
        list(trace.events)


def test_what_no_kernel_can_have_told_is_refused_later_too(
    told: Trace, file: Path
) -> None:
    """Whose file it is may change it between two readings."""
    trace = load(file)
    events = [*told.events]
    at = next(n for n, event in enumerate(events) if event.kind == EventKind.MAP)
    events[at] = replace(events[at], size=1 << 60)
    file.unlink()
    save(replace(told, events=events), file)
    with pytest.raises(TraceFileError, match="is about a page of"):
        list(trace.events)


def test_a_file_that_is_another_one_since_says_so(told: Trace, file: Path) -> None:
    trace = load(file)
    file.unlink()
    save(SimKernel("none").trace(), file)
    with pytest.raises(TraceFileError, match="it has changed while it was read"):
        list(trace.events)


def test_a_file_that_is_followed_gives_the_same_rows() -> None:
    rows: list[Event] = []
    with TraceReader(RFC) as reader:
        decoder = Decoder(RFC, 4096)
        for batch in reader:
            rows += decoder.rows(batch.columns)
    trace = load(RFC)
    assert rows == [*trace.events]
    assert decoder.stacks == trace.stacks


@pytest.mark.parametrize("rule", CASES)
def test_no_rule_judges_other_notes_than_it_says(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked of every note, each says what it says when asked of its own."""
    trace = run(CASES[rule].breaks, *CASES[rule].quirks).trace()
    profile = "np" if rule == "CDM021" else "intended"
    plain = check(trace, profile=profile)

    def all_of_them(self: Replay, kind: type) -> list[object]:
        return [tally for tally in self._tallies if tally.applies]

    monkeypatch.setattr(Replay, "_asked", all_of_them)
    asked = check(trace, profile=profile)
    assert asked.rules == plain.rules
    assert asked.findings == plain.findings
    (mine,) = (one for one in plain.rules if one.rule.id == rule)
    assert mine.checked
    assert mine.rule.note is not None


@pytest.mark.parametrize("tag", [True, False])
def test_verdicts_do_not_lean_on_what_has_ended(told: Trace, tag: bool) -> None:
    trace = told if tag else replace(told, terms=replace(told.terms, tag=0))
    whole, lean = check(trace), check(trace, bounds=VERDICT)
    assert lean.findings == whole.findings
    assert lean.rules == whole.rules
    assert lean.services == whole.services
    assert lean.shadow == whole.shadow
    assert (lean.shadow is None) == tag
    assert whole.lives
    assert not lean.lives


def test_whose_address_spaces_were_is_known_without_what_they_held(
    told: Trace,
) -> None:
    whole, lean = check(told), check(told, bounds=NAMES)
    assert [life.mm for life in lean.lives] == [life.mm for life in whole.lives]
    assert lean.findings == whole.findings
    assert not any(life.state.areas for life in lean.lives if life.state.ended)


# --- large files ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["cdm-6.1-rfc", "cdm-6.1-none", "foreign-6.1-rfc"])
def test_a_large_file_is_a_recording_again_and_again(name: str, tmp_path: Path) -> None:
    base, times = GOLDEN / f"{name}.arrows", 7
    once = len(large.Base.read(base).again().rows)
    trace = load(base)
    wanted = trace.count + (times - 1) * once
    made = tmp_path / "large.arrows"
    assert large.make(base, made, wanted) == wanted
    result, alone = check(load(made)), check(trace)
    assert result.trace.count == wanted
    assert result.trace.clean_end

    def found(one: Trace) -> Counter[str]:
        return Counter(f.fingerprint for f in check(one).findings)

    assert found(load(made)) == Counter(
        {fingerprint: times * n for fingerprint, n in found(trace).items()}
    )
    before = {one.rule.id: one.checked for one in alone.rules}
    once_only = {"CDM020"}
    for one in result.rules:
        if one.rule.id not in once_only:
            assert one.checked == times * before[one.rule.id], one.rule.id


def test_of_a_large_file_no_id_comes_twice(tmp_path: Path) -> None:
    made = tmp_path / "large.arrows"
    large.make(RFC, made, 5000)
    whole = load(made)
    ended = Counter(e.mm for e in whole.events if e.kind == EventKind.MM_EXIT)
    assert len(ended) > 10
    assert set(ended.values()) == {1}
    assert not any(life.mm.generation for life in check(whole).lives)
