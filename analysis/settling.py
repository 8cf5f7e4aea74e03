"""Judge what has changed since an mm was settled last."""

from __future__ import annotations

from msgspec.structs import replace

from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.notes import Note, Notes, Settled
from cdmtrace.analysis.pages import Page
from cdmtrace.analysis.profiles import Demand, Facts, Profile, Want
from cdmtrace.analysis.state import Area, State, put
from cdmtrace.events import Bit


def facts_of(state: State, area: Area, terms: Terms) -> Facts:
    """Return P, G, H and the rest for an area whose flags are known."""
    return Facts(
        tag=bool(area.tagged(terms)),
        policy_names=area.policy.names(terms.cdm) if area.policy else None,
        asked=area.by_driver or state.pages.any_explicit(area.start, area.end),
        held=state.pages.any(area.start, area.end),
        came=state.pages.any_came(area.start, area.end),
        pages_known=area.pages_known and terms.sees_all(area.start, area.end),
        excused=area.excused,
        patched=area.patched,
        by_driver=area.by_driver,
    )


def settle(
    state: State, event: Event, terms: Terms, profile: Profile
) -> tuple[State, Notes]:
    """Judge what has changed since the mm was settled last."""
    notes: list[Note] = []
    done: set[int] = set()
    later: list[int] = []
    faults = [call.alloc.addr for call in state.open.values() if call.alloc]
    for addr in state.dirty:
        area = state.area(addr)
        if area is None or area.flags is None or area.start in done:
            continue
        if not terms.sees(area.start, area.end):
            continue
        if any(area.start <= fault < area.end for fault in faults):
            later.append(addr)
            continue
        done.add(area.start)
        facts = facts_of(state, area, terms)
        demand = profile.demand(facts)
        standing = ""
        if facts.tag and demand.want is Want.MUST_NOT:
            standing = "stale"
        elif (
            not facts.tag
            and demand.want is Want.MUST
            # Once missing it stays so, also in a child that has no such page yet.
            and (profile.missing(facts) or area.standing == "missing")
        ):
            standing = "missing"
        wrong, justified = area.born_wrong, area.justified
        if facts.policy_names or facts.asked:
            wrong = False
            if facts.policy_names:
                justified = area.policy_by or justified
        elif facts.tag and area.inherited:
            wrong = demand.want is Want.MUST_NOT
        elif facts.tag and area.rise:
            wrong = facts.policy_names is False
        page = None
        newly = standing == "missing" and area.standing != "missing"
        if newly or facts.asked:
            page = _evidence(state, area, facts)
            if facts.asked and not facts.policy_names and page:
                justified = page.event
        due = _due(area, event, demand, facts, page)
        notes.append(
            Settled(
                event=event,
                area=area,
                facts=facts,
                demand=demand,
                standing=standing,
                page=page,
                since=area.since,
                beside=_beside(state, area),
                due=due,
                held=state.pages,
            )
        )
        state = replace(
            state,
            areas=put(
                state.areas,
                area.start,
                area.end,
                [
                    replace(
                        area,
                        rise=None,
                        inherited=False,
                        born_wrong=wrong,
                        justified=justified,
                        standing=standing,
                        due=due,
                    )
                ],
            ),
        )
    return replace(state, dirty=tuple(later)), tuple(notes)


def _due(
    area: Area, event: Event, demand: Demand, facts: Facts, page: Page | None
) -> Event | None:
    """Return the row since which it has to be tagged, None if it has not to be."""
    if demand.want is not Want.MUST:
        return None
    row = area.policy_by if facts.policy_names else page.event if page else None
    # What fork copies has the policy from its parent, and since the fork.
    if row and area.seen and row.mm != area.seen.mm:
        row = None
    return area.due or row or area.seen or event


def _beside(state: State, area: Area) -> tuple[Area, ...]:
    """Return the neighbours that differ in nothing that is known but their flags."""
    near = (state.area(area.start - 1), state.area(area.end))
    return tuple(
        other
        for other in near
        if other
        and other.flags is not None
        and area.policy is not None
        and other.policy == area.policy
        and _is_anonymous(area)
        and _is_anonymous(other)
    )


def _is_anonymous(area: Area) -> bool:
    return area.seen is not None and not area.seen.bits & Bit.FILE


def _evidence(state: State, area: Area, facts: Facts) -> Page | None:
    """Return the page that a demand leans on: the newest of those that count."""
    return state.pages.newest(area.start, area.end, came=bool(facts.policy_names))
