"""Feed a trace to the model, one mm apart from the other, and sum up the verdict."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from cdmtrace.analysis import describe, model, names
from cdmtrace.analysis.audit import Auditor
from cdmtrace.analysis.book import CHECK, Book, Bounds, Gaps, Ground
from cdmtrace.analysis.frames import FOLLOWED, ROWS, Event, Gap, Trace
from cdmtrace.analysis.notes import Began, Note, Notes, Served, Settled
from cdmtrace.analysis.partition import Share
from cdmtrace.analysis.permissions import DEFAULT, Permissions
from cdmtrace.analysis.profiles import PROFILES
from cdmtrace.analysis.result import Finding, Life, Mm, Result, Step
from cdmtrace.analysis.rows import Rows, no_ticker
from cdmtrace.analysis.rules import (
    RULES,
    Judgement,
    Rule,
    Violation,
)
from cdmtrace.analysis.rules.permissions import SERVICE_NOT_ALLOWED
from cdmtrace.analysis.rules.tag import MISSING_TAG
from cdmtrace.analysis.screen import go_through
from cdmtrace.analysis.shadow import Due, Shadow
from cdmtrace.analysis.state import State
from cdmtrace.analysis.touched import Touched
from cdmtrace.analysis.verdicts import (
    Counted,
    RuleCount,
    applies,
    asks_of_tag,
    concerns,
    listed,
    missing,
    result_of,
    stackless,
)
from cdmtrace.events import Bit, EventKind, Probe
from cdmtrace.format.schema import printable

_NO_MM: Final = frozenset(
    {
        EventKind.COMM,
        EventKind.CALL_OPEN,
        EventKind.STACK,
        EventKind.WATCH,
    }
)
_LATE: Final = frozenset({EventKind.SNAP_MM, EventKind.SNAP_RANGES})
"""Rows that may come when their mm has ended: what was looked at is told later."""
_LOOK: Final = Probe.SNAPSHOT.name.lower()
_ACCOUNT: Final = frozenset(
    {
        "copy_page_range",
        "exit_mmap",
        "move_page_tables",
        "remove_migration_pte",
        "rmap_add",
        "rmap_remove",
        _LOOK,
    }
)
"""Probes whose losses make the model's account of pages wrong."""


_EVER: Final = (0, 1 << 64)

Observer = Callable[[Mm, Event, Note], None]
Teller = Callable[[Mm, Event, Note, int], None]
"""Is told a note, and how many there are of which each is like it but for its time,
address and page."""
Closer = Callable[[Life], None]
"""Is told an address space when it has ended, and of others when the rows have."""
Follower = Callable[[tuple[int, int], Event, State, State], None]
"""Is told a row, the id and generation of an mm that it is about, and the mm's state
before and after."""


def check(
    trace: Trace,
    *,
    profile: str = "intended",
    rules: Collection[str] | None = None,
    until: int | None = None,
    observer: Observer | None = None,
    follower: Follower | None = None,
    teller: Teller | None = None,
    closer: Closer | None = None,
    permissions: Permissions = DEFAULT,
    bounds: Bounds = CHECK,
    own: Sequence[Rule] = (),
    screened: bool = True,
) -> Result:
    """Judge a trace.

    rules: ids to judge; None: all that are about what the profile is about. own: rules
    beside those of this version (ownrules.py), chosen among alike.
    permissions: which services may touch pages of which node. until: stop after the
    row of this seq. observer: is told every note of the model; follower: every row that
    is about an mm; teller: every note, too, but together where many are alike; closer:
    every address space in its last state. bounds: what is kept. screened: rows of a
    file that are like others before them are accounted for without the model
    (screen.py), unless somebody wants to be told of each, or has rules of his own; it
    makes no difference to the result. Raises KeyError for a profile that does not
    exist.
    """
    run = Replay(
        trace,
        profile=profile,
        rules=rules,
        observer=observer,
        follower=follower,
        teller=teller,
        closer=closer,
        permissions=permissions,
        bounds=bounds,
        own=own,
    )
    each = observer is not None or follower is not None or bool(own)
    _give(run, trace, until=until, screened=screened and not each)
    return run.result()


def of_share(
    trace: Trace,
    share: Share,
    *,
    profile: str,
    rules: Collection[str] | None,
    teller: Teller | None = None,
    closer: Closer | None = None,
    permissions: Permissions,
    bounds: Bounds,
) -> Counted:
    """Return what check() counts of some address spaces of a trace, which is of files
    and lacks no rows before one that is here.

    All but share is as for check(). Raises KeyError for a profile that does not exist.
    """
    rows = trace.events
    if not isinstance(rows, Rows) or trace.breaks:
        raise ValueError("a share can be taken of a recording that is whole, in files")
    rows = dataclasses.replace(rows, share=share)
    run = Replay(
        # Rows that are gathered beforehand are no progress.
        replace(trace, events=dataclasses.replace(rows, ticker=no_ticker)),
        profile=profile,
        rules=rules,
        teller=teller,
        closer=closer,
        permissions=permissions,
        bounds=bounds,
        share=share,
    )
    _give(run, replace(trace, events=rows))
    return run.counted()


def _give(
    run: Replay, trace: Trace, *, until: int | None = None, screened: bool = True
) -> None:
    """Give a replay the rows of a trace."""
    if screened and isinstance(trace.events, Rows):
        go_through(run, trace.events, trace.terms, trace.breaks, until)
    else:
        for event in trace.events:
            if until is not None and event.seq > until:
                break
            run.take(event)
    run.close()


@dataclass(slots=True)
class Said:
    """What came of a row, or of several: what rules found the premise of theirs to
    hold, and what the model noted. open: a rule was violated, or could not tell.
    """

    held: list[_Tally] = field(default_factory=list)
    notes: list[tuple[Mm, Event, Note]] = field(default_factory=list)
    open: bool = False


@dataclass(slots=True)
class _Tally:
    rule: Rule
    applies: bool
    book: Book
    checked: int = 0
    unknown: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Life:
    """An mm in the replay.

    kin: ids of those whose losses are its own: itself, and those that it was forked
    from. moved: pages of it have changed their address, and losses with them.
    """

    id: int
    generation: int
    state: State
    pid: int = 0
    kin: frozenset[int] = frozenset()
    moved: bool = False

    def ground(
        self, window: tuple[int, int], start: int, end: int, *, rows: bool = False
    ) -> Ground:
        """Return what is true of its [start, end) if it was so all the time."""
        first, last = window
        return Ground(
            first=first,
            last=last,
            start=start,
            end=end,
            kin=self.kin,
            moved=self.moved,
            rows=rows,
        )

    def learn(self, event: Event) -> None:
        """Take the process from the first row that is its own."""
        own = not event.bits & Bit.FOREIGN and event.kind != EventKind.MM_EXIT
        # A snapshot's row names the process that was looked at.
        own |= event.probe == Probe.SNAPSHOT
        if own and not self.pid:
            self.pid = event.pid


class Replay:
    """A replay that goes on row by row: the one place that holds what changes.

    check() gives it a whole trace. A file that grows is fed as it comes: its rows to
    take(), its losses to lose(), in any order; result() may be asked at any time, and
    is what check() says of the same rows and losses, if the bounds keep that much.

    One thing cannot be made good later: whether the look that begins a recording has
    missed something. A recorder tells of such a loss before the row that ends the look.
    """

    def __init__(
        self,
        trace: Trace,
        *,
        profile: str = "intended",
        rules: Collection[str] | None = None,
        observer: Observer | None = None,
        follower: Follower | None = None,
        teller: Teller | None = None,
        closer: Closer | None = None,
        bounds: Bounds = CHECK,
        permissions: Permissions = DEFAULT,
        own: Sequence[Rule] = (),
        share: Share | None = None,
    ) -> None:
        """Begin. trace: what is known by now; its events are not taken here.

        profile, rules, observer, follower, teller, closer, permissions, own: as for
        check(). share: what is to be judged, None: everything.
        Raises KeyError for a profile that does not exist.
        """
        self._trace, self._terms = trace, trace.terms
        self._profile, self._permissions = PROFILES[profile], permissions
        self._observer = observer
        self._follower = follower
        self._teller = teller
        self._closer = closer
        self._said: Said | None = None
        self._bounds = bounds
        self._tallies = [
            _Tally(
                rule=rule,
                applies=applies(rule, self._profile, self._terms),
                book=Book(once=rule.once, bounds=bounds),
            )
            for rule in (*RULES, *own)
            if (listed(rule, self._profile) if rules is None else rule.id in rules)
        ]
        self._by_note: dict[type[Note], list[_Tally]] = {}
        self._gaps = {one.rule.id: Gaps() for one in self._tallies}
        self._lives: dict[int, _Life] = {}
        self._done: list[_Life] = []
        self._past = Counter[int]()
        self._comms: dict[int, str] = {}
        self._busy: dict[int, tuple[int, set[int]]] = {}
        self._ended: set[int] = set()
        self._auditor = Auditor(trace.events, trace.terms) if bounds.audit else None
        shadow = not trace.terms.tag and bounds.audit and asks_of_tag(self._profile)
        self._shadow = Shadow() if shadow else None
        self._shadowless = Gaps()
        self._services = Touched(
            terms=trace.terms, stacks=trace.stacks, permissions=permissions
        )
        self._serviceless = Gaps()
        self._before = [trace.before] if trace.before else []
        self._unseen, self._blind, self._missing = Gaps(), Gaps(), Gaps()
        for gap in self._before:
            self._unseen.add(gap)
            self._missing.add(gap)
        self._looked = False
        self._begun = share is not None and share.first is None
        self._mine = None if share is None else frozenset(share.mms.tolist())
        for gap in trace.gaps:
            self.lose(gap)

    def lose(self, gap: Gap) -> None:
        """Take note of what is missing; findings that rest on it are taken back."""
        if gap.probe in (_LOOK, ROWS):
            self._unseen.add(gap)
        if gap.probe in {FOLLOWED, ROWS, *_ACCOUNT}:
            self._blind.add(gap)
        if gap.probe == ROWS:
            self._missing.add(gap)
        if concerns(gap, MISSING_TAG):
            self._shadowless.add(gap)
        if concerns(gap, SERVICE_NOT_ALLOWED):
            self._serviceless.add(gap)
        for tally in self._tallies:
            if concerns(gap, tally.rule):
                self._gaps[tally.rule.id].add(gap)
                tally.book.lose(gap)

    def take(self, event: Event) -> None:
        """Give one row to the mms that it is about."""
        if event.seq in self._trace.breaks:
            self._begin_anew()
        if not self._begun:
            self._begin(event)
        # What matters to all address spaces is known to partition.py, too.
        if event.kind == EventKind.COMM:
            comm = (event.payload or b"").split(b"\0")[0].decode(errors="replace")
            # A task calls itself what it likes.
            self._comms[event.tid] = printable(comm)
            return
        if event.kind in _NO_MM:
            return
        if event.kind == EventKind.SNAP_MM and not event.mm:
            self._look_done(event)
            return
        for mm in self._calls_left(event):
            self._judge(mm, event, self._abandoned(mm, event))
        if event.kind in _LATE and event.mm not in self._lives:
            # It ended while it was looked at; the next with this id is another one.
            if self._auditor:
                self._auditor.leave(event.mm)
            return
        if self._auditor:
            self._auditor.move(event)
        for mm in sorted(self._concerned(event)):
            life = self._lives.get(mm)
            if life is None:
                past = self._past[mm]
                whole = self._looked or mm in self._ended
                whole = whole and not self._terms.late
                life = _Life(mm, past, State(whole=whole), kin=frozenset({mm}))
                self._lives[mm] = life
            life.learn(event)
            self._audit(life, event)
            parent = None
            if event.kind == EventKind.COPY:
                source = self._lives.get(event.other)
                parent = source.state if source else None
                life.kin |= source.kin if source else {event.other}
                life.moved |= source.moved if source else False
            life.moved |= event.kind == EventKind.MOVE or (
                event.probe == Probe.SYS_MREMAP and event.other != event.addr
            )
            before = life.state
            life.state, notes = model.step(
                before,
                event,
                self._terms,
                self._profile,
                parent,
                own=mm == event.mm,
            )
            if self._follower:
                self._follower((mm, life.generation), event, before, life.state)
            if mm == event.mm:
                notes += self._services.take(event, notes, life.state.pages)
            self._judge(mm, event, notes)
            if event.kind == EventKind.MM_EXIT:
                self._ended.add(mm)
                self._leave(self._lives.pop(mm))

    def hear(self, event: Event, said: Said | None = None) -> Said:
        """Take a row, and return what came of it, together with said."""
        self._said = heard = said or Said()
        self.take(event)
        self._said = None
        return heard

    def say_again(self, said: Said, mm: int, state: State, times: int) -> None:
        """Account for rows of which as much came so many times.

        state: of their mm after them.
        """
        self._lives[mm].state = state
        for tally in said.held:
            tally.checked += times
        for who, event, note in said.notes:
            if self._teller:
                self._teller(who, event, note, times)
            if isinstance(note, Served):
                self._services.count(event, (note,), times)

    def state(self, mm: int) -> State | None:
        """Return what there is in an mm now, None if it is not known."""
        life = self._lives.get(mm)
        return life.state if life else None

    def alone(self, mm: int, tid: int, until: int) -> bool:
        """Return whether nothing but the task's own rows until a time (ns) matters to
        an mm: no other task is in a call that has to do with it, and nobody counts
        its pages.
        """
        if self._auditor and not self._auditor.idle(mm, until):
            return False
        others = (mms for task, (_, mms) in self._busy.items() if task != tid)
        return not any(mm in mms for mms in others)

    def _begin(self, event: Event) -> None:
        """Judge what concerns the recording as a whole, and no mm."""
        self._begun = True
        self._lives[0] = _Life(0, 0, State())
        self._judge(0, event, (Began(event=event),))
        del self._lives[0]

    def _begin_anew(self) -> None:
        """Rows are missing: what there is now is as unknown as at the beginning.

        Nobody knows which address spaces have ended meanwhile, and who has their ids.
        """
        for life in self._lives.values():
            self._leave(life)
        self._lives, self._busy, self._ended = {}, {}, set()
        self._looked = False
        if self._auditor:
            self._auditor.begin_anew()

    def _leave(self, life: _Life) -> None:
        """Count an mm of which nothing more will come."""
        if self._closer:
            self._closer(Life(mm=self._mm(life), state=life.state))
        self._past[life.id] += 1
        if self._bounds.ended:
            self._done.append(life)
        elif self._bounds.names or self._shadow is not None:
            areas = life.state.areas if self._shadow is not None else ()
            life.state = State(areas=areas, ended=life.state.ended)
            self._done.append(life)

    def _look_done(self, event: Event) -> None:
        """Take it that whatever was there before the recording is told now.

        Where one process alone was looked at, others may come with what nobody saw.
        """
        lost = [gap for gap in self._unseen.all if gap.since <= event.ts]
        self._looked = not event.pid and not any(gap.mm == 0 for gap in lost)
        for mm, life in self._lives.items():
            ground = life.ground(_EVER, 0, 1 << 64)
            unseen = any(ground.touched(gap) for gap in lost)
            # What moved while the recorder looked may be told where it no more is.
            if not life.state.whole and not life.moved and not unseen:
                life.state, notes = model.looked_at(
                    life.state, event, self._terms, self._profile
                )
                self._judge(mm, event, notes)

    def _audit(self, life: _Life, event: Event) -> None:
        if self._auditor is None:
            return
        if event.kind not in (EventKind.SNAP_VMA, EventKind.SNAP_MM):
            return
        if not (self._looked and life.state.whole):
            self._auditor.pass_by(event)
            return
        end = event.end or 1 << 64
        ground = life.ground((0, event.ts), event.start, end)
        known = not any(map(ground.touched, self._blind.all))
        self._auditor.look(event, life.state, known=known)

    def _concerned(self, event: Event) -> set[int]:
        """Return the mms that a row is about."""
        concerned = {event.mm} if event.mm else set()
        call, touched = self._busy.get(event.tid, (0, set()))
        if event.kind == EventKind.CALL:
            if call == event.call:
                concerned |= touched & self._lives.keys()
                self._busy.pop(event.tid, None)
        elif event.call and event.mm:
            if call == event.call:
                touched.add(event.mm)
            else:
                self._busy[event.tid] = (event.call, {event.mm})
        return concerned if self._mine is None else concerned & self._mine

    def _calls_left(self, event: Event) -> list[int]:
        """Return mms in which a call of this task is open that has returned."""
        call, touched = self._busy.get(event.tid, (0, set()))
        if not call or call == event.call:
            return []
        del self._busy[event.tid]
        return sorted(touched & self._lives.keys() - {event.mm})

    def _abandoned(self, mm: int, event: Event) -> Notes:
        life = self._lives[mm]
        notes: Notes = ()
        for key in [k for k in life.state.open if k[0] == event.tid and k[1]]:
            life.state, more = model.abandon(
                life.state, key, event, self._terms, self._profile
            )
            notes += more
        return notes

    def _judge(self, mm: int, event: Event, notes: Iterable[Note]) -> None:
        for note in notes:
            if self._shadow is not None and isinstance(note, Settled):
                self._shadow.take((mm, self._lives[mm].generation), note)
            if self._observer:
                self._observer(self._mm(self._lives[mm]), event, note)
            if self._teller:
                self._teller(self._mm(self._lives[mm]), event, note, 1)
            if self._said:
                self._said.notes.append((self._mm(self._lives[mm]), event, note))
            for tally in self._asked(type(note)):
                judgement = tally.rule.judge(note, self._terms, self._profile.name)
                if judgement is not None:
                    self._count(tally, mm, event, judgement)
        # After what the call has settled: the model keeps what it has taken away.
        unmapped = event.kind == EventKind.CALL and event.probe == Probe.SYS_MUNMAP
        ours = mm == event.mm and mm in self._lives
        if self._shadow is not None and unmapped and ours and not event.ret:
            self._shadow.unmapped((mm, self._lives[mm].generation), event)

    def _asked(self, kind: type[Note]) -> list[_Tally]:
        """Return the rules that judge notes of a class."""
        if kind not in self._by_note:
            self._by_note[kind] = [
                tally
                for tally in self._tallies
                if tally.applies and tally.rule.note in (None, kind)
            ]
        return self._by_note[kind]

    def _count(
        self, tally: _Tally, mm: int, event: Event, judgement: Judgement
    ) -> None:
        if self._said:
            self._said.held.append(tally)
            self._said.open |= bool(judgement.unknown or judgement.violation)
        if judgement.unknown:
            why = judgement.unknown
            tally.unknown[why] = tally.unknown.get(why, 0) + 1
            return
        tally.checked += 1
        violation = judgement.violation
        if violation is None:
            return
        if stackless(tally.rule, self._terms):
            tally.book.withheld += 1
            return
        life, window = self._lives[mm], judgement.window
        start, end = violation.start, violation.end
        ground, gaps = None, self._missing.all
        if window is not None:
            if missing(tally.rule.leans, self._terms):
                tally.book.withheld += 1
                return
            ground = life.ground(window, start, end)
            gaps = [*self._before, *self._gaps[tally.rule.id].all]
        elif tally.rule.probes:
            # The rows at hand say it all: unless what came while they were under way
            # is missing, too, which another row might have explained.
            entries = [row.ts_entry for row in (event, *violation.witness)]
            ground = life.ground((min(entries), event.ts), start, end, rows=True)
        if ground is not None and any(map(ground.touched, gaps)):
            tally.book.withheld += 1
            return
        who = self._mm(self._lives[mm])
        tally.book.add(self._finding(tally.rule, who, event, violation), ground)

    def _finding(
        self, rule: Rule, who: Mm, event: Event, violation: Violation
    ) -> Finding:
        return Finding(
            rule=rule,
            cause=violation.cause,
            mm=who,
            start=violation.start,
            end=violation.end,
            expected=violation.expected,
            observed=violation.observed,
            witness=tuple(self._step(row) for row in violation.witness),
            fingerprint=_fingerprint(rule, violation, who.comm, self._profile.name),
            breaks=violation.breaks or rule.sentence,
            seq=event.seq,
        )

    def _mm(self, life: _Life) -> Mm:
        return Mm(
            id=life.id,
            generation=life.generation,
            pid=life.pid,
            comm=self._comms.get(life.pid, ""),
        )

    def _step(self, event: Event) -> Step:
        before, after = describe.flags(event, self._terms)
        stack = self._trace.stacks.get(event.stack)
        return Step(
            seq=event.seq,
            ts=event.ts,
            since_start=event.ts - self._terms.started,
            probe=names.probe(event.probe),
            kind=names.kind(event.kind),
            what=describe.what(event, self._terms),
            cpu=event.cpu,
            pid=event.pid,
            tid=event.tid,
            comm=self._comms.get(event.tid, ""),
            lock=describe.lock(event),
            before=before,
            after=after,
            stack=stack.functions if stack else (),
        )

    def living(self) -> Iterator[Life]:
        """Yield the mms that have not ended, as they are now."""
        for life in self._lives.values():
            yield Life(mm=self._mm(life), state=life.state)

    def close(self) -> None:
        """Take it that there are no more rows."""
        if self._closer:
            for life in self.living():
                self._closer(life)

    def result(self) -> Result:
        """Return what was found so far."""
        return result_of(
            self._trace, self._profile, self._permissions, [self.counted()]
        )

    def counted(self) -> Counted:
        """Return the same as numbers, which may be put together with others."""
        lives = [*self._done, *self._lives.values()]
        shadow = self._shadowed(lives)
        kept = lives if self._bounds.ended or self._bounds.names else []
        return Counted(
            rules=tuple(
                RuleCount(
                    rule=tally.rule,
                    applies=tally.applies,
                    checked=tally.checked,
                    unknown=dict(tally.unknown),
                    withheld=tally.book.withheld,
                    count=tally.book.count,
                    findings=tuple(tally.book.findings),
                    gaps=tuple(self._gaps[tally.rule.id].all),
                )
                for tally in self._tallies
            ),
            lives=tuple(Life(mm=self._mm(one), state=self._kept(one)) for one in kept),
            spaces=len(self._lives) + self._past.total(),
            audit=self._auditor.result() if self._auditor else None,
            touches=self._services.touches(self._comms),
            serviceless=tuple(self._serviceless.all),
            shadow=shadow,
            shadowless=tuple(self._shadowless.all),
        )

    def _kept(self, life: _Life) -> State:
        return life.state if self._bounds.ended else State(ended=life.state.ended)

    def _shadowed(self, lives: Iterable[_Life]) -> tuple[tuple[Mm, Due], ...] | None:
        if self._shadow is None:
            return None
        by_space = {(life.id, life.generation): life for life in lives}
        found = self._shadow.result(lambda space: by_space[space].state.areas)
        return tuple((self._mm(by_space[due.space]), due) for due in found)


def _fingerprint(rule: Rule, violation: Violation, comm: str, profile: str) -> str:
    """Return what stays the same from boot to boot: no address, pid or time."""
    parts = (
        rule.id,
        profile,
        violation.cause,
        comm,
        *violation.shape,
        *(
            f"{names.kind(row.kind)}/{names.probe(row.probe)}"
            for row in violation.witness
        ),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
