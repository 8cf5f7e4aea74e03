// SPDX-License-Identifier: GPL-2.0
/*
 * The BPF program as a library of this process, with what it asks of bcc and of the
 * kernel: maps without locks, one task on one cpu, and some memory.
 *
 * A handler's context is the eight words that the PT_REGS macros name.
 */
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;
typedef long long s64;

#ifndef __always_inline
#define __always_inline	inline __attribute__((always_inline))
#endif
#define PAGE_SHIFT	12
#define PAGE_SIZE	(1UL << PAGE_SHIFT)
#define ROOM		64

#define WORD(ctx, n)		(((u64 *)(ctx))[n])
#define PT_REGS_PARM1(ctx)	WORD(ctx, 0)
#define PT_REGS_PARM2(ctx)	WORD(ctx, 1)
#define PT_REGS_PARM3(ctx)	WORD(ctx, 2)
#define PT_REGS_PARM4(ctx)	WORD(ctx, 3)
#define PT_REGS_PARM5(ctx)	WORD(ctx, 4)
#define PT_REGS_PARM6(ctx)	WORD(ctx, 5)
#define PT_REGS_RC(ctx)		WORD(ctx, 6)
#define PT_REGS_SP(ctx)		WORD(ctx, 7)

u8 memory[1 << 16] __attribute__((aligned(4096)));
u64 current_task, current_pid_tgid;
char current_comm[16] = "native";
int current_in_cgroup;

static inline long bpf_probe_read_kernel(void *to, u32 size, const void *from)
{
	if ((u8 *)from < memory || (u8 *)from + size > memory + sizeof(memory)) {
		memset(to, 0, size);
		return -EFAULT;
	}
	memcpy(to, from, size);
	return 0;
}

#define bpf_probe_read_user		bpf_probe_read_kernel
#define bpf_get_current_task()		current_task
#define bpf_get_current_pid_tgid()	current_pid_tgid
#define bpf_get_smp_processor_id()	0
#define bpf_get_current_comm(to, size)	memcpy(to, current_comm, size)

static u64 ticks;

#define bpf_ktime_get_ns()		(++ticks)

/* An array has every key from the beginning. */
#define MAP(name, type_of_key, type_of_value, array)			\
static struct {								\
	bool used;							\
	type_of_key key;						\
	type_of_value value;						\
} name##_room[ROOM];							\
static int name##_find(type_of_key *key, bool make)			\
{									\
	int i, hole = -1;						\
									\
	for (i = 0; i < ROOM; i++) {					\
		if (!name##_room[i].used)				\
			hole = i;					\
		else if (!memcmp(&name##_room[i].key, key, sizeof(*key))) \
			return i;					\
	}								\
	if (make && hole >= 0) {					\
		memset(&name##_room[hole], 0, sizeof(name##_room[hole])); \
		name##_room[hole].used = true;				\
		name##_room[hole].key = *key;				\
	}								\
	return make ? hole : -1;					\
}									\
static inline type_of_value *name##_lookup(type_of_key *key)		\
{									\
	int i = name##_find(key, array);				\
									\
	return i < 0 ? NULL : &name##_room[i].value;			\
}									\
static inline int name##_update(type_of_key *key, type_of_value *value)	\
{									\
	int i = name##_find(key, true);					\
									\
	if (i < 0)							\
		return -E2BIG;						\
	name##_room[i].value = *value;					\
	return 0;							\
}									\
static inline int name##_insert(type_of_key *key, type_of_value *value)	\
{									\
	if (name##_find(key, false) >= 0)				\
		return -EEXIST;						\
	return name##_update(key, value);				\
}									\
static inline int name##_delete(type_of_key *key)			\
{									\
	int i = name##_find(key, false);				\
									\
	if (i < 0)							\
		return -ENOENT;						\
	name##_room[i].used = false;					\
	return 0;							\
}									\
static const struct {							\
	type_of_value *(*lookup)(type_of_key *);			\
	int (*update)(type_of_key *, type_of_value *);			\
	int (*insert)(type_of_key *, type_of_value *);			\
	int (*delete)(type_of_key *);					\
} name = { name##_lookup, name##_update, name##_insert, name##_delete };

#define BPF_HASH(name, key, value, size)		MAP(name, key, value, false)
#define BPF_PERCPU_HASH(name, key, value, size)		MAP(name, key, value, false)
#define BPF_TABLE(kind, key, value, name, size)		MAP(name, key, value, false)
#define BPF_ARRAY(name, value, size)			MAP(name, u32, value, true)
#define BPF_PERCPU_ARRAY(name, value, size)		MAP(name, u32, value, true)

/* One cgroup, in which the task that acts is or is not. */
static inline int check_cgroup(int index)
{
	(void)index;
	return current_in_cgroup;
}

#define BPF_CGROUP_ARRAY(name, size)					\
static const struct { int (*check_current_task)(int); } name = { check_cgroup };

static u32 stacks_taken;

static inline int no_stack(void *ctx, int flags)
{
	(void)ctx;
	(void)flags;
	stacks_taken++;
	return -EFAULT;
}

#define BPF_STACK_TRACE(name, size)					\
static const struct { int (*get_stackid)(void *, int); } name = { no_stack };

/* What was put into the ring, one record after the other */
u8 ring[1 << 16];
u32 ring_filled;

/* Flags of each submit, and what is said to wait in the ring */
u32 submitted[sizeof(ring) / 128];
u64 ring_waiting;

/* A word that another task clears while room is taken */
u64 *cleared_meanwhile;

static inline void *ring_reserve(u32 size)
{
	/* See ring_used() in bpf/maps.h. */
	if (!size)
		return (void *)ring_waiting;
	if (cleared_meanwhile)
		*cleared_meanwhile = 0;
	if (ring_filled + size > sizeof(ring))
		return NULL;
	ring_filled += size;
	return ring + ring_filled - size;
}

static inline void ring_submit(void *record, int flags)
{
	submitted[((u8 *)record - ring) / 128] = flags;
}

#define BPF_RB_NO_WAKEUP	1
#define BPF_RB_FORCE_WAKEUP	2
#define BPF_RINGBUF_OUTPUT(name, pages)					\
static const struct {							\
	void *(*ringbuf_reserve)(u32);					\
	void (*ringbuf_submit)(void *, int);				\
} name = { ring_reserve, ring_submit };

#include PROGRAM

#ifdef WATCHES
void set_asked(u32 number, u64 addr, u64 vma)
{
	u32 zero = 0;

	watch_asked.lookup(&zero)->w[number].addr = addr;
	watch_asked.lookup(&zero)->w[number].vma = vma;
}

u64 found_vma(u32 number)
{
	u32 zero = 0;

	return watch_found.lookup(&zero)->w[number].vma;
}

struct watchpoint *watchpoint_of(u32 number)
{
	u32 zero = 0;

	return &watchpoints.lookup(&zero)->w[number];
}
#endif

/* What a test asks and sets */

const s32 nr_mbind = __NR_mbind;
const s32 nr_mmap = __NR_mmap;
const s32 nr_mremap = __NR_mremap;
const s32 nr_move_pages = __NR_move_pages;
const s32 nr_mprotect = __NR_mprotect;
const s32 nr_pkey_mprotect = __NR_pkey_mprotect;

void set_enabled(u32 on)
{
	u32 zero = 0;

	enabled.update(&zero, &on);
}

u32 count_stacks(void)
{
	return stacks_taken;
}

#if FOLLOW_PIDS
void set_named(u32 tgid)
{
	u8 one = 1;

	tgids.update(&tgid, &one);
}
#endif

void set_watched(u64 mm)
{
	watch(mm);
}

u64 id_of(u64 mm)
{
	return pointer_id(mm);
}

u32 count_waiting(void)
{
	u32 i, count = 0;

	for (i = 0; i < ROOM; i++)
		count += entries_room[i].used + allocations_room[i].used;
	return count;
}

u64 count_missing(u32 probe, u32 reason)
{
	u32 i, zero = 0;
	u64 count = lost.lookup(&zero)->n[probe * CDM_LOST_MAX + reason];

	for (i = 0; i < ROOM; i++)
		if (lost_places_room[i].used &&
		    lost_places_room[i].key.probe == probe &&
		    lost_places_room[i].key.reason == reason)
			count += lost_places_room[i].value.count;
	return count;
}
