/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the probes share: the ring, the counters of what was lost, the entries
 * that wait for their return, and the address spaces worth watching.
 */
#ifndef CDMTRACE_MAPS_H
#define CDMTRACE_MAPS_H

/* Whether there is code for an option: where it is chosen, or still may be. */
#ifdef COMPILED_ONCE
#define MAYBE(option)	1
#else
#define MAYBE(option)	(option)
#endif

/* Whether a filter of processes is in force: see filters.h */
#define FOLLOWS	(FOLLOW_PIDS || FOLLOW_CGROUP || FOLLOW_COMM)

/* One page count for all: user space maps the ring and needs the same number. */
BPF_RINGBUF_OUTPUT(events, RING_PAGES);

#define RING_BYTES	(RING_PAGES * (u64)PAGE_SIZE)

/*
 * Bytes in the ring that are not taken yet. bcc has a method for that since 0.28 only (its
 * pull request 4595). But it makes of each method a call of the helper of that name, with
 * the map put before the arguments: so of a reserve of nothing, this makes a query.
 */
#define bpf_ringbuf_reserve(map, size, flags)				\
	__builtin_choose_expr((size) == 0, bpf_ringbuf_query(map, BPF_RB_AVAIL_DATA), \
			      (bpf_ringbuf_reserve)(map, size, flags))

static __always_inline u64 ring_used(void)
{
	return (u64)events.ringbuf_reserve(0);
}

/*
 * What is missing, and where: how many records of one probe, for one reason, in
 * one address space, and the addresses that all of them lie in. What has no
 * place, or found no room for it, is in lost; no record is in both.
 */
struct lost_key {
	u64 mm;		/* its id */
	u32 probe;
	u32 reason;
};

struct lost_place {
	u64 count;
	u64 start;
	u64 end;
};

BPF_PERCPU_HASH(lost_places, struct lost_key, struct lost_place, LOST_PLACES);

/* One value, so that one call reads it. */
struct lost_counts {
	u64 n[CDM_PROBE_MAX * CDM_LOST_MAX];
};

BPF_PERCPU_ARRAY(lost, struct lost_counts, 1);

/* 0: nothing is recorded; 1: everything. Set last, cleared first. */
BPF_ARRAY(enabled, u32, 1);

/*
 * What a task is in the middle of: the last of each kind, of migrations within
 * migrations the outermost.
 */
enum slot {
	SLOT_CALL,
	SLOT_MBIND_RANGE,
	SLOT_SPLIT,
	SLOT_KSM_MADVISE,
	SLOT_COPY,
	SLOT_MOVE,
	SLOT_MIGRATE,
	SLOT_EXIT_MMAP,
	SLOT_FLAGS,
	SLOT_MERGE,
	SLOT_UNMAP,
	SLOT_SNAPSHOT,
	SLOT_REBIND,
	SLOT_NUMA_MOVE,
	SLOT_KSM_MERGE,
	SLOT_MAX,
};

/* What vma_merge() has said within an mbind_range(): bits, none if not seen. */
enum merge_said {
	MERGE_NONE = 1,
	MERGE_DONE = 2,
};

struct entry {
	u64 ts;
	u64 arg[6];
	u64 vma;
	u64 mm;
	u64 mm_id;	/* of a call: for user space, if it never returns */
	u64 flags;
	u64 nodes;
	u64 start;	/* of migrate_pages(2): the old nodes */
	u64 end;
	u64 sp;		/* of migrations: where the stack was */
	u32 id;		/* of a call; unique together with the task */
	u32 pid;	/* of a call, too */
	u16 depth;	/* of migrations within migrations */
	u8 probe;
	u8 policy;
	u8 lock;
	u8 touched;	/* a call: something to do with CDM happened in it */
	u8 unread;	/* migrate_pages(2): the old nodes were not there yet */
	u8 merge;	/* of mbind_range(): enum merge_said */
};

BPF_HASH(entries, u64, struct entry, MAP_SIZE);

/*
 * For what a task allocates a page. Every fault does, and hardly any has to do with
 * CDM: so this is apart from the entries, and small.
 */
struct allocation {
	u64 ts;
	u64 vma;
	u64 mm;		/* the VMA may be freed when a return was missed */
	u64 addr;
	u64 flags;
	u64 nodes;	/* of a shared policy */
	u32 order;
	u8 lock;
	u8 policy;
};

BPF_HASH(allocations, u32, struct allocation, MAP_SIZE);

/*
 * What a task was told of one page or one gather, for the function inside that
 * is not told. To lose one costs an address, where page->index has none, that a
 * migration has changed vm_flags, or (split) has a huge page leave that stays, until it
 * is counted: so the oldest may go. What is kept of one whose
 * return was missed must not be taken for the next one's.
 */
enum place_kind {
	PLACE_WALK,		/* the reverse map is walked, and this is the entry */
	PLACE_REMIGRATE,	/* an entry gets its page back; node: the old page's;
				 * ts, flags and lock: as it was then */
	PLACE_DRIVER,		/* a page without a file is about to be mapped */
	PLACE_GATHER,		/* page: a struct mmu_gather; vma: its mm */
	PLACE_SPLIT,		/* a huge page is to be mapped by small entries */
	PLACE_SHMEM,		/* a fault on a shmem file; page: its mm */
	PLACE_WORK,		/* see older.bpf.c; page: the mm */
	PLACE_COLLAPSE,		/* page: where khugepaged will find its VMA */
	PLACE_FILE,		/* a page that is to be mapped; 0: any */
	PLACE_GROW,		/* a stack that is to grow */
	PLACE_NUMA,		/* a page that NUMA balancing may move */
};

struct place {
	u64 page;
	u64 vma;
	u64 addr;
	u64 ts;
	u64 flags;
	s32 node;
	u32 lock;
};

BPF_TABLE("lru_hash", u64, struct place, places, MAP_SIZE);

/*
 * Address spaces that have had anything to do with CDM; under ALL with a filter of
 * processes, of which anything was told. Under ALL alone there is nothing to note.
 */
BPF_HASH(watched, u64, u8, MAP_SIZE);

struct comm {
	char name[CDM_COMM_LEN];
};

/* Names as last reported. Forgetting one costs a repetition, nothing else. */
BPF_TABLE("lru_hash", u32, struct comm, comms, 8192);

BPF_PERCPU_ARRAY(call_ids, u32, 1);

#if MAYBE(STACKS)
/* Each stack once. One for which there is no room is not told. */
BPF_STACK_TRACE(stacks, CDM_STACKS);
#endif

/*
 * A pointer's id: a permutation of 64-bit numbers (two rounds of multiply and
 * shift, each undone by somebody who has the keys), so that equal ids are
 * equal pointers and the trace gives no address of the kernel away.
 */
static __always_inline u64 pointer_id(u64 p)
{
	if (!p)
		return 0;
	p ^= KEY0;
	p ^= p >> 33;
	p *= 0xff51afd7ed558ccdULL;
	p ^= p >> 33;
	p += KEY1;
	p *= 0xc4ceb9fe1a85ec53ULL;
	p ^= p >> 29;
	return p;
}

/* A record is missing, and nobody knows of what. */
static __always_inline void count_lost(u32 probe, u32 reason)
{
	u32 zero = 0, i = probe * CDM_LOST_MAX + reason;
	struct lost_counts *counts = lost.lookup(&zero);

	/* The mask is for the verifier: no probe has a number that high. */
	if (counts)
		counts->n[i & (CDM_PROBE_MAX * CDM_LOST_MAX - 1)]++;
}

/* A record of [start, end) in the address space at @mm is missing; 0: of any. */
static __always_inline void count_lost_at(u32 probe, u32 reason, u64 mm,
					  u64 start, u64 end)
{
	struct lost_key key = {
		.mm = pointer_id(mm), .probe = probe, .reason = reason,
	};
	struct lost_place fresh = { .count = 1, .start = start, .end = end }, *place;

	if (!mm) {
		count_lost(probe, reason);
		return;
	}
	place = lost_places.lookup(&key);
	if (!place) {
		if (lost_places.update(&key, &fresh))
			count_lost(probe, reason);
		return;
	}
	/* Another cpu may have made it: zeros here, then. */
	if (!place->count || start < place->start)
		place->start = start;
	if (!place->count || end > place->end)
		place->end = end;
	place->count++;
}

static __always_inline int is_enabled(void)
{
	u32 zero = 0, *on = enabled.lookup(&zero);

	return on && *on;
}

static __always_inline int is_watched(u64 mm)
{
	return mm && (ALL || watched.lookup(&mm) != 0);
}

/* Its end is told, whoever lets go of it last. */
static __always_inline int is_told(u64 mm)
{
	return mm && ((ALL && !FOLLOWS) || watched.lookup(&mm) != 0);
}

static __always_inline void watch(u64 mm)
{
	u8 one = 1;

	if (mm && !is_told(mm) && watched.update(&mm, &one))
		count_lost_at(CDM_PROBE_WATCH, CDM_LOST_MAP, mm, 0, ~0ULL);
}

static __always_inline u64 slot_key(enum slot slot)
{
	return (u64)slot << 32 | (u32)bpf_get_current_pid_tgid();
}

static __always_inline struct entry *slot_open(enum slot slot)
{
	u64 key = slot_key(slot);

	return entries.lookup(&key);
}

/* Where a call that can work on another process's memory is lost, nobody knows. */
static __always_inline u64 entry_home(struct entry *entry)
{
	if ((entry->probe == CDM_PROBE_SYS_MOVE_PAGES ||
	     entry->probe == CDM_PROBE_SYS_MIGRATE_PAGES) && entry->arg[0])
		return 0;
	return entry->mm;
}

/*
 * A call of this kind begins, be it told of or not: an entry that is there is of one
 * whose return was missed, and the return of this one must not find it.
 */
static __always_inline void slot_begin(enum slot slot)
{
	u64 key = slot_key(slot);
	struct entry *old = entries.lookup(&key);

	if (!old)
		return;
	count_lost_at(old->probe, CDM_LOST_UNPAIRED, entry_home(old), 0, ~0ULL);
	entries.delete(&key);
}

static __always_inline void slot_put(enum slot slot, struct entry *entry)
{
	u64 key = slot_key(slot);

	if (entries.update(&key, entry))
		count_lost_at(entry->probe, CDM_LOST_MAP, entry_home(entry), 0, ~0ULL);
}

static __always_inline int slot_take(enum slot slot, struct entry *entry)
{
	u64 key = slot_key(slot);
	struct entry *found = entries.lookup(&key);

	if (!found)
		return 0;
	*entry = *found;
	entries.delete(&key);
	return 1;
}

/* What was being allocated will not return: that return was missed. */
static __always_inline void allocation_missed(u32 tid)
{
	struct allocation *old = allocations.lookup(&tid);

	if (!old)
		return;
	count_lost_at(CDM_PROBE_ALLOC, CDM_LOST_UNPAIRED, old->mm, 0, ~0ULL);
	allocations.delete(&tid);
}

static __always_inline u64 place_key(enum place_kind kind)
{
	return (u64)kind << 32 | (u32)bpf_get_current_pid_tgid();
}

static __always_inline void place_put(enum place_kind kind, u64 page, u64 vma,
				      u64 addr)
{
	struct place place = { .page = page, .vma = vma, .addr = addr };
	u64 key = place_key(kind);

	places.update(&key, &place);
}

static __always_inline void place_drop(enum place_kind kind)
{
	u64 key = place_key(kind);

	places.delete(&key);
}

/* What this task was told of @page in @vma, if it was. */
static __always_inline struct place *place_of(enum place_kind kind, u64 page, u64 vma)
{
	u64 key = place_key(kind);
	struct place *place = places.lookup(&key);

	return place && place->page == page && place->vma == vma ? place : 0;
}

#endif /* CDMTRACE_MAPS_H */
