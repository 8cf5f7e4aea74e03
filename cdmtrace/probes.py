"""Logical probes: what each is attached to.

A logical probe is one of ``enum cdm_probe`` in ``bpf/events.h``. It is made of one
or more attachments of handlers in ``bpf/*.bpf.c`` to functions or tracepoints
of the kernel. Names of functions differ between kernels, so each attachment has
candidates, newest name first. Handlers read arguments by name, and the kernel's BTF
tells where those are, for they move from kernel to kernel. So the first candidate is
taken that the kernel has with every argument that the handler reads.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from cdmtrace.errors import UsageTrouble
from cdmtrace.events import Probe
from cdmtrace.kernel import symbols

REGISTERS: Final = 6
"""Arguments that are passed in registers (x86-64): the others lie on the stack."""


class Kind(enum.StrEnum):
    """How a handler is attached."""

    KPROBE = "kprobe"
    KRETPROBE = "kretprobe"
    TRACEPOINT = "tracepoint"


@dataclass(frozen=True, kw_only=True, slots=True)
class Attachment:
    """One handler and the names of what it can be attached to, newest first.

    reads: the arguments that it reads, by name. Of one that has had several names,
    all, as in ``folio|page``: the handler calls it by the first.
    """

    handler: str
    kind: Kind
    candidates: tuple[str, ...]
    reads: tuple[str, ...] = ()

    @property
    def macros(self) -> dict[str, tuple[str, ...]]:
        """Macro -> what the argument is called whose place it is to tell."""
        names = (tuple(argument.split("|")) for argument in self.reads)
        return {f"ARG_{self.handler}_{one[0]}": one for one in names}


@dataclass(frozen=True, kw_only=True, slots=True)
class LogicalProbe:
    """What one probe of the trace is made of.

    ``older``: attachments that do the same where the kernel has other functions for
    it, newest first. Without a ``required`` probe nothing can be recorded that is worth
    checking. Which rules need it, each rule says itself (cdmtrace.analysis.rules).
    """

    probe: Probe
    summary: str
    attachments: tuple[Attachment, ...]
    older: tuple[tuple[Attachment, ...], ...] = ()
    required: bool = False

    @property
    def every_attachment(self) -> tuple[Attachment, ...]:
        """Those of all kernels."""
        return tuple(a for one in (self.attachments, *self.older) for a in one)

    @property
    def name(self) -> str:
        """The name in the trace's header and in messages."""
        return self.probe.name.lower()

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of its attachments, each once."""
        return tuple(dict.fromkeys(item.kind for item in self.attachments))


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What would be attached on one kernel.

    ``probe`` has no handler twice for the same function. ``symbols`` has, for each
    attachment, what it is attached to. ``missing`` names the first attachment for
    which the kernel has no candidate; such a probe is not attached at all, since half
    of a pair would say wrong things. ``places``: the macros that tell the handlers
    where the arguments are. ``unseen`` are copies of the function, made by the
    compiler, whose calls are not seen. ``unwanted``: it was asked to be left out.
    """

    probe: LogicalProbe
    symbols: tuple[str, ...]
    missing: str | None
    places: Mapping[str, int] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()
    unwanted: bool = False

    @property
    def why_not(self) -> str | None:
        """Why it is not attached; None if it is."""
        if self.unwanted:
            return "not asked for"
        return f"no {self.missing} on this kernel" if self.missing else None


def _pair(
    probe: Probe,
    summary: str,
    handler: str,
    *candidates: str,
    reads: tuple[str, ...],
    required: bool = False,
) -> LogicalProbe:
    return LogicalProbe(
        probe=probe,
        summary=summary,
        # The return first: an entry without a return would count as lost.
        attachments=(
            Attachment(
                handler=f"{handler}_return",
                kind=Kind.KRETPROBE,
                candidates=candidates,
            ),
            Attachment(
                handler=f"{handler}_entry",
                kind=Kind.KPROBE,
                candidates=candidates,
                reads=reads,
            ),
        ),
        required=required,
    )


def _entry(handler: str, functions: str, reads: str) -> Attachment:
    """Return one to the entry of the first of these functions that there is."""
    return Attachment(
        handler=handler,
        kind=Kind.KPROBE,
        candidates=tuple(functions.split()),
        reads=tuple(reads.split()),
    )


def _entries(
    probe: Probe, summary: str, *attachments: Attachment, required: bool = False
) -> LogicalProbe:
    return LogicalProbe(
        probe=probe, summary=summary, attachments=attachments, required=required
    )


def _call(probe: Probe, *calls: str) -> LogicalProbe:
    return LogicalProbe(
        probe=probe,
        summary=f"{calls[0]}(2){' and its like' * (len(calls) > 1)}, entry to return",
        attachments=tuple(
            Attachment(
                handler=f"call_{end}",
                kind=Kind.TRACEPOINT,
                # A call that the kernel has not got is never made: the first will do.
                candidates=tuple(
                    f"syscalls:sys_{end}_{name}"
                    for name in dict.fromkeys((call, calls[0]))
                ),
            )
            for end in ("exit", "enter")
            for call in calls
        ),
    )


_NEW_ANON: Final = "page|folio vma address"

PROBES: Final[tuple[LogicalProbe, ...]] = (
    _pair(
        Probe.ALLOC,
        "a page is allocated for a VMA; vm_flags before and after",
        "alloc",
        "vma_alloc_folio_noprof",
        "vma_alloc_folio",
        "alloc_pages_vma",
        reads=("order", "vma", "addr"),
        required=True,
    ),
    _pair(
        Probe.MBIND_RANGE,
        "mbind() changes the policy of one VMA",
        "mbind_range",
        "mbind_range",
        reads=("vma", "prev", "start", "end", "new_pol"),
        required=True,
    ),
    LogicalProbe(
        probe=Probe.MPOL_REBIND,
        summary="a cpuset changes the policies of an address space",
        attachments=(
            Attachment(
                handler="rebind_return",
                kind=Kind.KRETPROBE,
                candidates=("mpol_rebind_mm",),
            ),
            # The first is called for every VMA, but may be inlined in the loop; the
            # other, through a pointer, for each policy that a cpuset can change.
            *(
                Attachment(
                    handler="rebind_next",
                    kind=Kind.KPROBE,
                    candidates=candidates,
                    reads=("pol",),
                )
                for candidates in (
                    ("mpol_rebind_policy", "mpol_rebind_nodemask"),
                    ("mpol_rebind_nodemask",),
                )
            ),
            Attachment(
                handler="rebind_entry",
                kind=Kind.KPROBE,
                candidates=("mpol_rebind_mm",),
                reads=("mm",),
            ),
        ),
    ),
    LogicalProbe(
        probe=Probe.SHARED_POLICY,
        summary="a page is allocated by the policy of a shmem file; for which VMA",
        attachments=(
            Attachment(
                handler="shared_policy_return",
                kind=Kind.KRETPROBE,
                candidates=("mpol_shared_policy_lookup",),
            ),
            Attachment(
                handler="shmem_end",
                kind=Kind.KRETPROBE,
                candidates=("shmem_fault",),
            ),
            Attachment(
                handler="shmem_begin",
                kind=Kind.KPROBE,
                candidates=("shmem_fault",),
                reads=("vmf",),
            ),
        ),
    ),
    _pair(
        Probe.MIGRATE_PAGES,
        "the kernel's migrate_pages(), around what it moves",
        "migrate",
        "migrate_pages",
        reads=("reason",),
    ),
    _pair(
        Probe.REMOVE_MIGRATION_PTE,
        "an entry gets its page back after a migration; whence it came; vm_flags",
        "remigrate",
        "remove_migration_pte",
        reads=("folio|page", "vma", "old|arg"),
    ),
    _entries(
        Probe.DRIVER_PAGE,
        "a driver's page is about to be mapped; where",
        _entry("fault_finish", "finish_fault", "vmf"),
        _entry("driver_insert", "vm_insert_page", "vma addr page"),
    ),
    LogicalProbe(
        probe=Probe.RMAP_ADD,
        summary="a page is mapped, by a fault or at the end of a migration",
        attachments=(
            _entry("rmap_add_new_anon", "folio_add_new_anon_rmap", _NEW_ANON),
            _entry(
                "rmap_add_anon_ptes",
                "folio_add_anon_rmap_ptes",
                "page nr_pages vma address",
            ),
            _entry("rmap_add_anon_pmd", "folio_add_anon_rmap_pmd", "page vma address"),
            _entry(
                "rmap_add_file_ptes", "folio_add_file_rmap_ptes", "page nr_pages vma"
            ),
            _entry("rmap_add_file_pmd", "folio_add_file_rmap_pmd", "page vma"),
        ),
        older=(
            (
                _entry("rmap_add_new_anon", "page_add_new_anon_rmap", _NEW_ANON),
                _entry("rmap_add_anon", "page_add_anon_rmap", "page vma address flags"),
                _entry("rmap_add_file", "page_add_file_rmap", "page vma compound"),
            ),
        ),
        required=True,
    ),
    LogicalProbe(
        probe=Probe.RMAP_WALK,
        summary="reclaim or migration unmaps a page; where",
        attachments=tuple(
            Attachment(
                handler=f"walk_{end}", kind=kind, candidates=(function,), reads=reads
            )
            for end, kind, reads in (
                ("return", Kind.KRETPROBE, ()),
                ("entry", Kind.KPROBE, ("folio|page", "vma", "address")),
            )
            for function in ("try_to_unmap_one", "try_to_migrate_one")
        ),
    ),
    _entries(
        Probe.MMU_GATHER,
        "a range is unmapped; where",
        _entry("gather_end", "tlb_finish_mmu", ""),
        _entry("gather_begin", "tlb_gather_mmu", "tlb mm"),
    ),
    LogicalProbe(
        probe=Probe.RMAP_REMOVE,
        summary="a page is mapped no more",
        attachments=(
            _entry("rmap_remove_ptes", "folio_remove_rmap_ptes", "page nr_pages vma"),
            _entry("rmap_remove_pmd", "folio_remove_rmap_pmd", "page vma"),
        ),
        older=((_entry("rmap_remove", "page_remove_rmap", "page vma compound"),),),
        required=True,
    ),
    _pair(
        Probe.COPY_PAGE_RANGE,
        "fork copies the pages of one VMA",
        "copy",
        "copy_page_range",
        reads=("dst_vma", "src_vma"),
    ),
    # A small head that the compiler has parted from the rest is inlined where it is
    # called; the rest is what all callers come to.
    _pair(
        Probe.MOVE_PAGE_TABLES,
        "mremap() moves the pages of a range",
        "move",
        "move_page_tables.part.0",
        "move_page_tables",
        reads=("vma", "old_addr", "new_vma", "new_addr", "len"),
    ),
    _pair(
        Probe.VMA_SPLIT,
        "a VMA is split",
        "split",
        "__split_vma",
        reads=("vma", "addr"),
    ),
    _pair(
        Probe.VMA_MERGE,
        "VMAs become one; what madvise() asks to be merged",
        "merge",
        "vma_merge",
        reads=("mm", "addr", "end", "vm_flags"),
    ),
    _entries(
        Probe.VMA_NEW,
        "a VMA is new, or has grown: mmap, brk, a stack",
        _entry("vma_new", "perf_event_mmap", "vma"),
    ),
    _pair(
        Probe.VMA_FREE,
        "a range is unmapped, and its VMAs are gone",
        "unmap",
        "unmap_vmas",
        reads=("vma", "start_addr", "end_addr"),
    ),
    _pair(
        Probe.MPROTECT_FIXUP,
        "mprotect() changes the flags of one VMA",
        "mprotect",
        "mprotect_fixup",
        reads=("vma", "pprev", "start", "end"),
    ),
    _pair(
        Probe.MLOCK_FIXUP,
        "mlock() or munlock() changes the flags of one VMA",
        "mlock",
        "mlock_fixup",
        reads=("vma", "prev", "start", "end"),
    ),
    _pair(
        Probe.KSM_MADVISE,
        "madvise() or mbind() turns KSM on or off for a VMA",
        "ksm",
        "ksm_madvise",
        reads=("vma", "start", "end", "advice", "vm_flags"),
    ),
    _entries(
        Probe.NUMA_SCAN,
        "NUMA balancing's scanner comes to a range",
        _entry("numa_scan", "change_prot_numa", "vma addr end"),
    ),
    _pair(
        Probe.NUMA_MIGRATE,
        "NUMA balancing moves a page, or fails to",
        "numa_move",
        "migrate_misplaced_folio",
        "migrate_misplaced_page",
        reads=("page|folio", "vma", "node"),
    ),
    _pair(
        Probe.KSM_MERGE,
        "KSM puts another page in the place of one",
        "ksm_merge",
        "try_to_merge_one_page",
        reads=("vma", "page", "kpage"),
    ),
    LogicalProbe(
        probe=Probe.EXIT_MMAP,
        summary="an address space ends",
        attachments=(
            Attachment(
                handler="exit_return",
                kind=Kind.KRETPROBE,
                candidates=("exit_mmap",),
            ),
            Attachment(
                handler="exit_unmapped",
                kind=Kind.KPROBE,
                candidates=("tlb_finish_mmu",),
                reads=("tlb",),
            ),
            Attachment(
                handler="exit_unmaps",
                kind=Kind.KPROBE,
                candidates=("unmap_vmas",),
                reads=("tlb", "vma"),
            ),
            Attachment(
                handler="exit_entry",
                kind=Kind.KPROBE,
                candidates=("exit_mmap",),
                reads=("mm",),
            ),
        ),
    ),
    LogicalProbe(
        probe=Probe.SNAPSHOT,
        summary="a VMA as it is while the recorder reads numa_maps",
        attachments=(
            Attachment(
                handler="snapshot_return",
                kind=Kind.KRETPROBE,
                candidates=("show_numa_map",),
            ),
            Attachment(
                handler="snapshot_entry",
                kind=Kind.KPROBE,
                candidates=("show_numa_map",),
                reads=("m", "v"),
            ),
            Attachment(
                handler="snapshot_end",
                kind=Kind.KPROBE,
                candidates=("proc_map_release",),
                reads=("file",),
            ),
        ),
    ),
    _call(Probe.SYS_MBIND, "mbind"),
    _call(Probe.SYS_SET_MEMPOLICY, "set_mempolicy"),
    _call(Probe.SYS_SET_HOME_NODE, "set_mempolicy_home_node"),
    _call(Probe.SYS_MIGRATE_PAGES, "migrate_pages"),
    _call(Probe.SYS_MOVE_PAGES, "move_pages"),
    _call(Probe.SYS_MADVISE, "madvise"),
    _call(Probe.SYS_MMAP, "mmap"),
    _call(Probe.SYS_MUNMAP, "munmap"),
    _call(Probe.SYS_MREMAP, "mremap"),
    _call(Probe.SYS_MPROTECT, "mprotect", "pkey_mprotect"),
    _call(
        Probe.SYS_MLOCK,
        *("mlock", "mlock2", "mlockall", "munlock", "munlockall"),
    ),
    _call(Probe.SYS_BRK, "brk"),
)
"""Every probe that ``record`` attaches, in that order."""

WATCHPOINT: Final = _entries(
    Probe.WATCHPOINT,
    "a write to vm_flags of a chosen VMA; what has become of the VMA",
    _entry("watch_free", "vm_area_free", "vma"),
    _entry("watch_unmap", "unmap_vmas", "vma start_addr end_addr"),
    _entry("watch_look", "show_numa_map", "m v"),
    required=True,
)
"""What ``watch`` attaches besides."""


def following(*, children: bool) -> LogicalProbe:
    """Return what --pid needs besides: a process ends and, with children, forks."""
    ends = _entry("task_gone", "release_task", "p")
    forks = _entry("task_new", "wake_up_new_task", "p")
    return _entries(
        Probe.FOLLOW,
        "a process that --pid names forks, or ends",
        *((ends, forks) if children else (ends,)),
        required=True,
    )


Arguments = Callable[[str], Sequence[str] | None]
"""Tells the names of a function's arguments, in order; None: that is not known."""


def plan(
    functions: frozenset[str],
    tracepoints: frozenset[str],
    arguments: Arguments,
    probes: tuple[LogicalProbe, ...] = PROBES,
) -> tuple[Plan, ...]:
    """Return what would be attached on a kernel with these functions.

    functions: names as in /proc/kallsyms. tracepoints: ``category:name``.
    """
    copies = symbols.twins(functions)
    plans = []
    for probe in probes:
        tried = (
            _attach(attachments, functions, tracepoints, arguments)
            for attachments in (probe.attachments, *probe.older)
        )
        best = min(tried, key=lambda one: len(one.missing))
        plans.append(
            Plan(
                probe=replace(probe, attachments=best.attachments),
                symbols=best.symbols,
                missing=best.missing[0] if best.missing else None,
                places=best.places,
                unseen=tuple(
                    twin
                    for name in dict.fromkeys(best.symbols)
                    for twin in copies.get(name, ())
                ),
            )
        )
    return tuple(plans)


@dataclass(frozen=True, slots=True)
class _Attached:
    """Attachments that go together, with a symbol each; or what is missing."""

    attachments: tuple[Attachment, ...]
    symbols: tuple[str, ...] = ()
    places: Mapping[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


def _attach(
    attachments: tuple[Attachment, ...],
    functions: frozenset[str],
    tracepoints: frozenset[str],
    arguments: Arguments,
) -> _Attached:
    # By what is attached to what: names that differ may be one on this kernel.
    chosen: dict[tuple[str, Kind, str], Attachment] = {}
    places: dict[str, int] = {}
    missing = []
    for attachment in attachments:
        known = tracepoints if attachment.kind is Kind.TRACEPOINT else functions
        found = _pick(attachment, known, arguments)
        if isinstance(found, str):
            missing.append(found)
            continue
        if any(places.get(macro, at) != at for macro, at in found.places.items()):
            missing.append(f"{found.name}() with the arguments of the others")
        places |= found.places
        key = attachment.handler, attachment.kind, found.name
        chosen.setdefault(key, attachment)
    if missing:
        return _Attached(attachments, missing=tuple(missing))
    names = tuple(name for _, _, name in chosen)
    return _Attached(tuple(chosen.values()), names, places)


@dataclass(frozen=True, slots=True)
class _Found:
    """What a handler can be attached to, and the macros for its arguments."""

    name: str
    places: Mapping[str, int]


def _pick(
    attachment: Attachment, known: frozenset[str], arguments: Arguments
) -> _Found | str:
    """Return the first candidate that will do, or what is missing."""
    missing = None
    for name in attachment.candidates:
        if name in known:
            places = _places(attachment, name, arguments)
            if not isinstance(places, str):
                return _Found(name, places)
            missing = missing or places
    return missing or attachment.candidates[-1]


def _places(
    attachment: Attachment, name: str, arguments: Arguments
) -> dict[str, int] | str:
    """Return the macros for its arguments, or what this function has not got."""
    if not attachment.reads:
        return {}
    # A part of a function has the arguments of the whole.
    told = arguments(name.partition(".")[0])
    if told is None:
        return f"type information of {name}()"
    places = {}
    for macro, names in attachment.macros.items():
        at = next((at for at, one in enumerate(told, 1) if one in names), None)
        if at is None:
            return f"argument {' or '.join(names)} of {name}()"
        if at > REGISTERS:
            return f"register for argument {told[at - 1]} of {name}()"
        places[macro] = at
    return places


def macros(plans: Iterable[Plan]) -> dict[str, int]:
    """Return the macros for the arguments of all handlers that there are.

    Where an argument is, from 1 on; 0 for those of handlers that are not attached.
    """
    every = (*PROBES, WATCHPOINT, following(children=True))
    found = {m: 0 for probe in every for a in probe.every_attachment for m in a.macros}
    for item in plans:
        found |= item.places
    return found


def choose(
    plans: tuple[Plan, ...], only: Iterable[str] = (), without: Iterable[str] = ()
) -> tuple[Plan, ...]:
    """Return the plans, those marked as unwanted that are not asked for.

    only: names of the probes to attach, besides those that are required; none: all.
    without: names of those to leave out. Raises UsageTrouble for a name that no probe
    has, and for one to leave out that is required.
    """
    names = {item.probe.name for item in plans}
    required = {item.probe.name for item in plans if item.probe.required}
    only, without = tuple(only), tuple(without)
    for option, given in (("--probe", only), ("--no-probe", without)):
        for name in given:
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                raise UsageTrouble(
                    f"{option} {name}: there is no such probe"
                    + (f"; did you mean {close[0]}?" if close else ""),
                    hint="cdmtrace probes",
                )
    for name in without:
        if name in required:
            raise UsageTrouble(
                f"--no-probe {name}: without it nothing can be recorded that is worth "
                "checking",
                hint="cdmtrace probes",
            )
    wanted = ({*only} | required if only else names) - {*without}
    return tuple(
        item
        if item.probe.name in wanted
        else replace(item, symbols=(), unseen=(), unwanted=True)
        for item in plans
    )
