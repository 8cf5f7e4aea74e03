/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the probes share: the ring, the counters of what was lost, the entries
 * that wait for their return, and the address spaces worth watching.
 */
#ifndef CDMTRACE_MAPS_H
#define CDMTRACE_MAPS_H

/* One page count for all: user space maps the ring and needs the same number. */
BPF_RINGBUF_OUTPUT(events, RING_PAGES);

/* Why and where events are missing. One value, so that one call reads it. */
struct lost_counts {
	u64 n[CDM_PROBE_MAX * CDM_LOST_MAX];
};

BPF_PERCPU_ARRAY(lost, struct lost_counts, 1);

/* 0: nothing is recorded; 1: everything. Set last, cleared first. */
BPF_ARRAY(enabled, u32, 1);

/* What a task is in the middle of: the outermost of each kind. */
enum slot {
	SLOT_CALL,
	SLOT_ALLOC,
	SLOT_MBIND_RANGE,
	SLOT_SPLIT,
	SLOT_KSM_MADVISE,
	SLOT_COPY,
	SLOT_MIGRATE,
	SLOT_EXIT_MMAP,
	SLOT_MAX,
};

struct entry {
	u64 ts;
	u64 arg[6];
	u64 vma;
	u64 mm;
	u64 flags;
	u64 nodes;
	u64 start;
	u64 end;
	u32 id;		/* of a call; unique together with the task */
	u16 depth;	/* of migrations within migrations */
	u8 probe;
	u8 policy;
	u8 lock;
	u8 touched;	/* a call: something to do with CDM happened in it */
};

BPF_HASH(entries, u64, struct entry, 16384);

/* Address spaces that have had anything to do with CDM. */
BPF_HASH(watched, u64, u8, 16384);

struct comm {
	char name[CDM_COMM_LEN];
};

/* Names as last reported. Forgetting one costs a repetition, nothing else. */
BPF_TABLE("lru_hash", u32, struct comm, comms, 8192);

BPF_PERCPU_ARRAY(call_ids, u32, 1);

static __always_inline void count_lost(u32 probe, u32 reason)
{
	u32 zero = 0, i = probe * CDM_LOST_MAX + reason;
	struct lost_counts *counts = lost.lookup(&zero);

	/* The mask is for the verifier: no probe has a number that high. */
	if (counts)
		counts->n[i & (CDM_PROBE_MAX * CDM_LOST_MAX - 1)]++;
}

static __always_inline int is_enabled(void)
{
	u32 zero = 0, *on = enabled.lookup(&zero);

	return on && *on;
}

static __always_inline int is_watched(u64 mm)
{
	return mm && watched.lookup(&mm) != 0;
}

static __always_inline void watch(u64 mm, u32 probe)
{
	u8 one = 1;

	if (mm && !watched.lookup(&mm) && watched.update(&mm, &one))
		count_lost(probe, CDM_LOST_MAP);
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

/* An entry that is there already is one whose return was missed. */
static __always_inline void slot_put(enum slot slot, struct entry *entry)
{
	u64 key = slot_key(slot);
	struct entry *old = entries.lookup(&key);

	if (old)
		count_lost(old->probe, CDM_LOST_UNPAIRED);
	if (entries.update(&key, entry))
		count_lost(entry->probe, CDM_LOST_MAP);
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

#endif /* CDMTRACE_MAPS_H */
