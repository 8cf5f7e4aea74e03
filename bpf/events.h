/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The record that the probes put into the ring, and every number in it.
 *
 * This file is the source of truth. cdmtrace/events.py mirrors it, and
 * tests/unit/test_events.py compiles it and compares every offset, every
 * size and every enumerator. It needs no other header: the plain C types
 * below have these widths on every Linux target and in BPF.
 *
 * One record is one change of one VMA, or one system call that brackets
 * such changes. It is an interval: taken at entry, finished and submitted
 * at return. Two intervals that overlap on one VMA are what a race looks
 * like.
 *
 * There is no kernel pointer in it. mm and vma are ids: the pointer, put
 * through a permutation keyed with a random number of this recording; of a
 * VMA's the upper half. Equal ids mean equal pointers at that time (of VMAs,
 * but for one chance in four thousand million), nothing more: a VMA that was
 * freed may give its id to another one.
 *
 * There is no sequence number in it either. A ring hands out its records
 * under one lock, so their order in the ring is a total order; the writer
 * of the trace file numbers the rows as they come out (column seq). A
 * counter in BPF would cost every event an atomic and say nothing more.
 */
#ifndef CDMTRACE_EVENTS_H
#define CDMTRACE_EVENTS_H

/*
 * What happened, and what the fields that depend on the kind hold then.
 * [addr, addr + size) is always what the kernel was asked to work on;
 * [start, end) is the VMA it worked in, as the VMA was at return.
 * Numbers are part of the file format: never reuse one. 0 is no kind, so
 * that a row of zeros is never taken for an event.
 */
enum cdm_kind {
	/* Pages. size: bytes of the page (a huge page is one record). */

	/*
	 * A page was allocated for the VMA; it is not mapped yet. node: where
	 * it lies (-1: no page). other_policy, other: the task's policy and
	 * its nodes, CDM_POLICY_UNREAD where the VMA's own one decided. Where
	 * that of its shmem file did, policy and nodes are that one, with
	 * CDM_MPOL_F_SHARED. A file without one leaves it to the task, whatever
	 * policy the VMA has. A page for such a file is allocated for a VMA on
	 * the stack (CDM_BIT_UNLINKED); mm, addr and locks are then those of
	 * the fault that it is for, mm 0 where there was none.
	 */
	CDM_EV_ALLOC = 1,
	/* A page was mapped at addr by a fault. node. */
	CDM_EV_MAP = 2,
	/*
	 * The entry at addr points to the page's new place. node: that place;
	 * src_node: where it came from, -1 if unknown. arg: the reason that
	 * the kernel gave for the migration (enum migrate_reason; it can lie),
	 * CDM_NO_REASON where nothing was asked to move, such as at a split.
	 */
	CDM_EV_MIGRATE = 3,
	/*
	 * The one page at addr is mapped here no more. src_node: its node. A KSM
	 * page of which it is not known where in the VMA it was has addr 0.
	 */
	CDM_EV_UNMAP = 4,
	/* No page is left in [addr, addr + size). */
	CDM_EV_ZAP = 5,
	/*
	 * Fork: the pages of [addr, addr + size) of the mm whose id is in
	 * other are mapped in this mm as well. flags_before: vm_flags of the
	 * parent's VMA.
	 */
	CDM_EV_COPY = 6,
	/*
	 * mremap, or exec placing the stack: the pages of [addr, addr + size)
	 * moved to the address in other, which lies in [start, end).
	 */
	CDM_EV_MOVE = 7,
	/*
	 * KSM put another page at addr. src_node: of the old one; node: new. It
	 * is a KSM page (CDM_BIT_KSM), or else the page of zeros.
	 */
	CDM_EV_KSM_PAGE = 8,
	/*
	 * NUMA balancing's scanner came to [addr, addr + size): the next access
	 * to a page there faults, and may move it.
	 */
	CDM_EV_NUMA_SCAN = 9,
	/* khugepaged put a huge page at addr. node. */
	CDM_EV_COLLAPSE = 10,
	/*
	 * NUMA balancing would have the page at addr on another node. node: that
	 * one; src_node: where it was; ret: 0 if it stayed there. addr is 0 where
	 * its index does not tell. What was moved has a MIGRATE as well.
	 */
	CDM_EV_NUMA_MOVE = 11,

	/* VMAs. */

	/*
	 * vm_flags of an attached VMA differ between entry and return. addr, size:
	 * the part that was to be changed. CDM_BIT_VMA_UNREAD: no function has the
	 * VMA (madvise); [addr, addr + size) gets flags_after, which the call's
	 * result confirms; what it had is not known, and flags_before the same.
	 * CDM_PROBE_REMOVE_MIGRATION_PTE holds no mmap lock of its own: the change
	 * may be another task's, and the part is the VMA.
	 */
	CDM_EV_FLAGS = 16,
	/*
	 * The VMA's own policy was set, also to what it was before. policy,
	 * nodes: now; other_policy, other: before. A cpuset (CDM_CAUSE_CPUSET)
	 * is told of only where it changed the policy or the flags. ret not 0: it
	 * was not set, and the VMA is as the attempt has left it, or, where that
	 * is not known, CDM_BIT_VMA_UNREAD.
	 */
	CDM_EV_POLICY = 17,
	/*
	 * ksm_madvise(). arg: the advice; flags_before, flags_after: the word
	 * that it was given to edit, mostly a copy of the VMA's.
	 */
	CDM_EV_KSM_ADVICE = 18,
	/*
	 * A debug register saw a write to vm_flags, be it of the same value. arg:
	 * the watchpoint's number; addr: the address that it was asked for.
	 * flags_before: as they were seen last; ret: 1 if another cpu wrote within
	 * the time that it takes to tell, and before and after may be what both
	 * have made. CDM_BIT_UNLINKED: the VMA is being torn down. payload: the
	 * instruction that follows the one that wrote, name+0xoffset.
	 */
	CDM_EV_WRITE = 19,
	/*
	 * A watchpoint lies on vm_flags of [start, end) from now on (ret 0), or no
	 * more: the VMA was freed (1), or does not hold addr any more (2). arg, addr:
	 * as above.
	 */
	CDM_EV_WATCH = 20,
	/* [start, end) is one VMA, which is new, or has grown. */
	CDM_EV_VMA_NEW = 24,
	/* [start, end) was cut out of what was one VMA. addr: the cut;
	 * other: the id of the new part. */
	CDM_EV_VMA_SPLIT = 25,
	/* [start, end) now is one VMA. addr, size: the part that was to be
	 * added to a neighbour. */
	CDM_EV_VMA_MERGE = 26,
	/* A copy of the VMA whose id is in other. */
	CDM_EV_VMA_DUP = 27,
	/* No VMA is left in [addr, addr + size), and their ids are free. */
	CDM_EV_VMA_FREE = 28,
	/* The whole mm is gone. */
	CDM_EV_MM_EXIT = 29,
	/* From ts_entry to ts the mm's lock was held for write by tid. */
	CDM_EV_WRITE_SECTION = 30,
	/*
	 * A VMA as it was at the entry of a change that may split, merge or free
	 * it. addr, size: the part that the change is about.
	 */
	CDM_EV_VMA_SEEN = 31,

	/*
	 * A system call, one record for entry and return; which one: probe.
	 * addr, size: the range as it was asked for; start, end: the same
	 * rounded to pages as the kernel does; ret: its result (addresses are
	 * given as 0); arg: its flags, advice or protection, low 16 bits.
	 * other_policy, other: the mode and the nodes asked for (migrate_pages:
	 * the new nodes; nodes: the old ones). mm: the one it worked on.
	 */
	CDM_EV_CALL = 40,
	/* The same, written at the end for a call that has not returned. */
	CDM_EV_CALL_OPEN = 41,

	/*
	 * The name of pid/tid, seen for the first time or changed: 16 bytes
	 * in nodes and other (see cdm_event_comm). In the file they are in the
	 * binary column, and these two are 0.
	 */
	CDM_EV_COMM = 64,

	/*
	 * The recorder reads /proc/PID/numa_maps, and this is what the kernel
	 * counts meanwhile. pid: the process that it looks at, where that is known.
	 */

	/* A VMA, looked at from ts_entry to ts. */
	CDM_EV_SNAP_VMA = 80,
	/* Of that VMA, size bytes lie on node; there is none for 0 bytes. */
	CDM_EV_SNAP_PAGES = 81,
	/*
	 * That was the last VMA of mm; mm 0: that was the last process, or, with a
	 * pid, the only one that is looked at.
	 */
	CDM_EV_SNAP_MM = 83,

	/* Rows that user space writes; they never pass through the ring. */

	/*
	 * The kernel's stack at events that matter: a change of vm_flags, what comes
	 * to a CDM node, and what leaves one other than by the unmapping of a range.
	 * stack: its number. payload: name+0xoffset, one a
	 * line, innermost first, as in /proc/kallsyms. It comes before the first
	 * event that has this number.
	 */
	CDM_EV_STACK = 82,
	/*
	 * Pages of [start, end) that lay on node at some time from ts_entry to ts.
	 * payload: pairs of 64-bit numbers in the machine's order, address and bytes.
	 */
	CDM_EV_SNAP_RANGES = 84,
};

/*
 * Which logical probe saw it. The trace's header says to what symbol each
 * one was attached, and losses are counted by it.
 */
enum cdm_probe {
	CDM_PROBE_NONE = 0,
	/* inner functions */
	CDM_PROBE_ALLOC = 1,		/* alloc_pages_vma, by any name */
	CDM_PROBE_MBIND_RANGE = 2,
	CDM_PROBE_VMA_POLICY = 3,	/* vma_replace_policy */
	CDM_PROBE_REMOVE_MIGRATION_PTE = 4,
	CDM_PROBE_MIGRATE_PAGES = 5,	/* the kernel's migrate_pages() */
	CDM_PROBE_KSM_MADVISE = 6,
	CDM_PROBE_ZAP = 7,		/* unmap_page_range */
	CDM_PROBE_COPY_PAGE_RANGE = 8,
	CDM_PROBE_MOVE_PAGE_TABLES = 9,
	CDM_PROBE_RMAP_ADD = 10,
	CDM_PROBE_RMAP_REMOVE = 11,
	CDM_PROBE_FAULT = 12,		/* handle_mm_fault */
	CDM_PROBE_VMA_SPLIT = 13,
	CDM_PROBE_VMA_MERGE = 14,
	CDM_PROBE_VMA_DUP = 15,
	CDM_PROBE_VMA_FREE = 16,	/* unmap_vmas */
	CDM_PROBE_EXIT_MMAP = 17,
	CDM_PROBE_NUMA_SCAN = 18,	/* change_prot_numa */
	CDM_PROBE_NUMA_MIGRATE = 19,	/* migrate_misplaced_page */
	CDM_PROBE_KSM_MERGE = 20,	/* try_to_merge_one_page */
	CDM_PROBE_COLLAPSE = 21,	/* collapse_huge_page */
	CDM_PROBE_MPOL_REBIND = 22,	/* mpol_rebind_mm */
	CDM_PROBE_MMAP_LOCK = 23,
	CDM_PROBE_WATCHPOINT = 24,
	CDM_PROBE_TASK = 25,		/* names of tasks */
	CDM_PROBE_WATCH = 26,		/* no probe: address spaces to watch; one
					 * lost here is blind from then on */
	CDM_PROBE_RMAP_WALK = 27,	/* try_to_unmap_one, try_to_migrate_one */
	CDM_PROBE_MMU_GATHER = 28,	/* tlb_gather_mmu to tlb_finish_mmu */
	CDM_PROBE_DRIVER_PAGE = 29,	/* finish_fault, vm_insert_page */
	CDM_PROBE_SHARED_POLICY = 30,	/* shmem_fault, mpol_shared_policy_lookup */
	CDM_PROBE_FOLLOW = 31,		/* wake_up_new_task, release_task: no rows */
	CDM_PROBE_MPROTECT_FIXUP = 40,
	CDM_PROBE_MLOCK_FIXUP = 41,
	CDM_PROBE_VMA_NEW = 42,		/* perf_event_mmap */
	/* system calls */
	CDM_PROBE_SYS_MBIND = 64,
	CDM_PROBE_SYS_SET_MEMPOLICY = 65,
	CDM_PROBE_SYS_MIGRATE_PAGES = 66,
	CDM_PROBE_SYS_MOVE_PAGES = 67,
	CDM_PROBE_SYS_MADVISE = 68,
	CDM_PROBE_SYS_MMAP = 69,
	CDM_PROBE_SYS_MUNMAP = 70,
	CDM_PROBE_SYS_MREMAP = 71,
	CDM_PROBE_SYS_MPROTECT = 72,	/* mprotect, pkey_mprotect */
	CDM_PROBE_SYS_MLOCK = 73,	/* mlock, mlock2, mlockall, munlock, ... */
	CDM_PROBE_SYS_PRCTL = 74,
	CDM_PROBE_SYS_FORK = 75,	/* fork, clone, clone3 */
	CDM_PROBE_SYS_EXEC = 76,
	CDM_PROBE_SYS_SET_HOME_NODE = 77,
	CDM_PROBE_SYS_BRK = 78,
	CDM_PROBE_SNAPSHOT = 96,	/* show_numa_map */
	CDM_PROBE_MAX = 128,
};

/* On whose behalf: the outermost thing the task was doing. */
enum cdm_cause {
	CDM_CAUSE_UNKNOWN = 0,
	CDM_CAUSE_CALL = 1,		/* the system call that call names */
	CDM_CAUSE_FAULT = 2,
	CDM_CAUSE_COW = 3,
	CDM_CAUSE_SWAP_IN = 4,
	CDM_CAUSE_NUMA_BALANCING = 5,
	CDM_CAUSE_KHUGEPAGED = 6,
	CDM_CAUSE_KSM = 7,
	CDM_CAUSE_RECLAIM = 8,
	CDM_CAUSE_COMPACTION = 9,
	CDM_CAUSE_HOTPLUG = 10,
	CDM_CAUSE_DRIVER = 11,
	CDM_CAUSE_EXIT = 12,
	CDM_CAUSE_FILE = 13,		/* a fault found the page in a file */
	CDM_CAUSE_USERFAULTFD = 14,
	CDM_CAUSE_CPUSET = 15,
	CDM_CAUSE_READAHEAD = 16,	/* swap's: for whom is not known yet */
};

/*
 * lock_entry, lock_exit: the low four bits tell how the mmap lock of *that*
 * VMA's mm was held, the high four how the VMA's own lock was (6.4 and
 * later). READ cannot tell a reader from a task that is only trying, nor
 * whose it is.
 */
enum cdm_lock {
	CDM_LOCK_UNKNOWN = 0,
	CDM_LOCK_NONE = 1,
	CDM_LOCK_READ = 2,
	CDM_LOCK_WRITE_SELF = 3,
	CDM_LOCK_WRITE_OTHER = 4,
};

enum cdm_vma_lock {
	CDM_VMA_LOCK_UNKNOWN = 0,	/* or no such lock on this kernel */
	CDM_VMA_LOCK_NONE = 1,
	CDM_VMA_LOCK_READ = 2,
	CDM_VMA_LOCK_WRITE = 3,
	CDM_VMA_LOCK_DETACHED = 4,
};

#define CDM_VMA_LOCK_SHIFT 4
#define CDM_LOCK(mmap, vma) ((mmap) | (vma) << CDM_VMA_LOCK_SHIFT)

/* bits: what else there is to know. */
enum cdm_bit {
	CDM_BIT_FOREIGN = 1,		/* the mm is not the task's own */
	CDM_BIT_KTHREAD = 2,		/* a kernel thread did it */
	CDM_BIT_VMA_UNREAD = 4,		/* the VMA may be freed: what is read
					 * at return was not, see flags_after */
	CDM_BIT_FILE = 8,		/* the VMA maps a file */
	CDM_BIT_NODES_CUT = 16,		/* a node mask had bits above 63 */
	CDM_BIT_EXITING = 32,		/* the task is exiting */
	CDM_BIT_UNLINKED = 64,		/* the VMA is not, or no more, in mm */
	CDM_BIT_KSM = 128,		/* the page is a KSM page */
};

/* The kernel's own numbers, uapi/linux/mempolicy.h. */
enum cdm_mpol {
	CDM_MPOL_DEFAULT = 0,		/* no policy of its own */
	CDM_MPOL_PREFERRED = 1,
	CDM_MPOL_BIND = 2,
	CDM_MPOL_INTERLEAVE = 3,
	CDM_MPOL_LOCAL = 4,
	CDM_MPOL_PREFERRED_MANY = 5,
	CDM_MPOL_WEIGHTED_INTERLEAVE = 6,
	CDM_MPOL_UNREAD = 15,
};

/*
 * policy, other_policy: the mode in the low four bits, the mode flags that
 * mbind() takes at bits 13 to 15 in bits 5 to 7, and one of ours.
 */
enum cdm_mpol_flag {
	CDM_MPOL_F_SHARED = 16,		/* it belongs to a shmem file */
	CDM_MPOL_F_NUMA_BALANCING = 32,
	CDM_MPOL_F_RELATIVE_NODES = 64,
	CDM_MPOL_F_STATIC_NODES = 128,
};

#define CDM_MPOL_MODE_MASK 15
#define CDM_POLICY(mode, flags) \
	(((mode) & CDM_MPOL_MODE_MASK) | (((flags) >> 8) & 0xe0))
#define CDM_POLICY_UNREAD CDM_MPOL_UNREAD

/* Why an event is missing. Counted per probe. */
enum cdm_lost {
	CDM_LOST_RING = 0,		/* the ring was full */
	CDM_LOST_UNPAIRED = 1,		/* an entry whose return never came; a
					 * watchpoint's hit that nobody was told of */
	CDM_LOST_MAP = 2,		/* a map of entries was full */
	CDM_LOST_READ = 3,		/* memory that had to be read was not */
	CDM_LOST_MAX = 4,		/* a power of two */
};

#define CDM_NO_NODE (-1)
#define CDM_NO_REASON 0xffff
#define CDM_COMM_LEN 16
#define CDM_STACKS 4096	/* numbers of stacks: 1 to this */

struct cdm_event {
	unsigned long long ts;		/* return, ns, CLOCK_MONOTONIC */
	unsigned long long ts_entry;	/* entry; equal to ts if a moment */
	unsigned long long mm;		/* id, 0: none */
	unsigned int vma;		/* id, 0: none */
	unsigned int stack;		/* see CDM_EV_STACK; 0: none was taken */
	unsigned long long start;	/* the VMA, at return */
	unsigned long long end;
	unsigned long long addr;	/* see the kinds */
	unsigned long long size;	/* bytes */
	unsigned long long flags_before; /* vm_flags at entry */
	unsigned long long flags_after;	/* at return; VMA_UNREAD: as before */
	unsigned long long nodes;	/* of the VMA's own policy, nodes 0-63 */
	unsigned long long other;	/* see the kinds */
	unsigned int pid;		/* the process, in the first namespace */
	unsigned int tid;		/* the thread */
	unsigned int call;		/* the system call around it, 0: none;
					 * unique together with tid */
	int ret;			/* result; 0 where there is none */
	unsigned short arg;		/* see the kinds */
	unsigned short cpu;		/* at return */
	short node;			/* of the page, CDM_NO_NODE: none */
	short src_node;
	unsigned char kind;		/* enum cdm_kind */
	unsigned char probe;		/* enum cdm_probe */
	unsigned char cause;		/* enum cdm_cause */
	unsigned char bits;		/* enum cdm_bit */
	unsigned char lock_entry;	/* CDM_LOCK() */
	unsigned char lock_exit;
	unsigned char policy;		/* CDM_POLICY(), the VMA's, at return */
	unsigned char other_policy;	/* see the kinds */
};

/* The 16 bytes of a CDM_EV_COMM record: nodes and other, side by side. */
#define cdm_event_comm(event) ((char *)&(event)->nodes)

_Static_assert(sizeof(struct cdm_event) == 128, "one record is 128 bytes");

#endif /* CDMTRACE_EVENTS_H */
