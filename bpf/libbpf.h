/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What bcc puts before a program, for one that clang compiles once for all kernels and
 * libbpf loads. What are macros for bcc are places in read-only data here: user space
 * fills them in before it loads, and then the verifier knows them as well as a compiler
 * would. It puts before this file which place is whose, and numbers that are the same for
 * all kernels (cdmtrace/loader/settings.py).
 */
#ifndef CDMTRACE_LIBBPF_H
#define CDMTRACE_LIBBPF_H

#include <asm/ptrace.h>
#include <linux/bpf.h>
#include <stddef.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;

#define SEC(name)		__attribute__((section(name), used))
#undef __always_inline
#define __always_inline		inline __attribute__((always_inline))

/* What may be asked for is there, always, and looked at where it is asked for. */
#define COMPILED_ONCE		1

const volatile u64 settings[SETTINGS] SEC(".rodata.settings");

#define PAGE_SHIFT		12
#define PAGE_SIZE		(1UL << PAGE_SHIFT)

/*
 * Registers of x86-64. Each is loaded by itself: the verifier takes no pointer to one of
 * several.
 */

#define PT_REGS_WORD(ctx, reg)						\
({									\
	u64 __word = *(const volatile u64 *)&(ctx)->reg;		\
	asm volatile("" : "+r"(__word));				\
	__word;								\
})
#define PT_REGS_PARM1(ctx)	PT_REGS_WORD(ctx, rdi)
#define PT_REGS_PARM2(ctx)	PT_REGS_WORD(ctx, rsi)
#define PT_REGS_PARM3(ctx)	PT_REGS_WORD(ctx, rdx)
#define PT_REGS_PARM4(ctx)	PT_REGS_WORD(ctx, rcx)
#define PT_REGS_PARM5(ctx)	PT_REGS_WORD(ctx, r8)
#define PT_REGS_PARM6(ctx)	PT_REGS_WORD(ctx, r9)
#define PT_REGS_RC(ctx)		PT_REGS_WORD(ctx, rax)
#define PT_REGS_SP(ctx)		PT_REGS_WORD(ctx, rsp)

/* Helpers of the kernel, by number (include/uapi/linux/bpf.h) */
#define HELPER(number)		(void *)BPF_FUNC_##number

static u64 (*const bpf_ktime_get_ns)(void) = HELPER(ktime_get_ns);
static u64 (*const bpf_get_current_task)(void) = HELPER(get_current_task);
static u64 (*const bpf_get_current_pid_tgid)(void) = HELPER(get_current_pid_tgid);
static u32 (*const bpf_get_smp_processor_id)(void) = HELPER(get_smp_processor_id);
static long (*const bpf_get_current_comm)(void *, u32) = HELPER(get_current_comm);
static long (*const bpf_probe_read_kernel)(void *, u32, const void *) =
	HELPER(probe_read_kernel);
static long (*const bpf_probe_read_user)(void *, u32, const void *) =
	HELPER(probe_read_user);
static void *(*const map_lookup)(void *, const void *) = HELPER(map_lookup_elem);
static long (*const map_update)(void *, const void *, const void *, u64) =
	HELPER(map_update_elem);
static long (*const map_delete)(void *, const void *) = HELPER(map_delete_elem);
static void *(*const ring_reserve)(void *, u64, u64) = HELPER(ringbuf_reserve);
static void (*const ring_submit)(void *, u64) = HELPER(ringbuf_submit);
static u64 (*const ring_query)(void *, u64) = HELPER(ringbuf_query);
static long (*const get_stackid)(void *, void *, u64) = HELPER(get_stackid);
static long (*const current_task_under_cgroup)(void *, u32) =
	HELPER(current_task_under_cgroup);

/*
 * bcc's maps have methods. Here they are constants that point to functions: the compiler
 * sees through that, as it has to, for the kernel takes no call of a pointer.
 */
#define MAP(name, kind, type_of_key, type_of_value, entries)		\
struct {								\
	int (*type)[kind];						\
	int (*max_entries)[entries];					\
	type_of_key *key;						\
	type_of_value *value;						\
} map_##name SEC(".maps")

#define TABLE(name, kind, type_of_key, type_of_value, entries)		\
MAP(name, kind, type_of_key, type_of_value, entries);			\
static __always_inline type_of_value *name##_lookup(type_of_key *key)	\
{									\
	return map_lookup(&map_##name, key);				\
}									\
static __always_inline long name##_update(type_of_key *key, type_of_value *value) \
{									\
	return map_update(&map_##name, key, value, BPF_ANY);		\
}									\
static __always_inline long name##_insert(type_of_key *key, type_of_value *value) \
{									\
	return map_update(&map_##name, key, value, BPF_NOEXIST);	\
}									\
static __always_inline long name##_delete(type_of_key *key)		\
{									\
	return map_delete(&map_##name, key);				\
}									\
static const struct {							\
	type_of_value *(*lookup)(type_of_key *);			\
	long (*update)(type_of_key *, type_of_value *);			\
	long (*insert)(type_of_key *, type_of_value *);			\
	long (*delete)(type_of_key *);					\
} name = { name##_lookup, name##_update, name##_insert, name##_delete }

#define BPF_HASH(name, key, value, size)				\
	TABLE(name, BPF_MAP_TYPE_HASH, key, value, size)
#define BPF_PERCPU_HASH(name, key, value, size)				\
	TABLE(name, BPF_MAP_TYPE_PERCPU_HASH, key, value, size)
#define BPF_ARRAY(name, value, size)					\
	TABLE(name, BPF_MAP_TYPE_ARRAY, u32, value, size)
#define BPF_PERCPU_ARRAY(name, value, size)				\
	TABLE(name, BPF_MAP_TYPE_PERCPU_ARRAY, u32, value, size)
#define BPF_TABLE(kind, key, value, name, size)				\
	_Static_assert(!__builtin_strcmp(kind, "lru_hash"), "this kind only"); \
	TABLE(name, BPF_MAP_TYPE_LRU_HASH, key, value, size)

#define BPF_RINGBUF_OUTPUT(name, pages)					\
struct {								\
	int (*type)[BPF_MAP_TYPE_RINGBUF];				\
	int (*max_entries)[4096];					\
} map_##name SEC(".maps");						\
/* Of nothing, it is a query: see ring_used() in maps.h. */		\
static __always_inline void *name##_reserve(u64 size)			\
{									\
	return size ? ring_reserve(&map_##name, size, 0) :		\
		      (void *)ring_query(&map_##name, BPF_RB_AVAIL_DATA); \
}									\
static __always_inline void name##_submit(void *record, u64 flags)	\
{									\
	ring_submit(record, flags);					\
}									\
static const struct {							\
	void *(*ringbuf_reserve)(u64);					\
	void (*ringbuf_submit)(void *, u64);				\
} name = { name##_reserve, name##_submit }

#define BPF_STACK_TRACE(name, size)					\
struct {								\
	int (*type)[BPF_MAP_TYPE_STACK_TRACE];				\
	int (*max_entries)[size];					\
	u32 *key;							\
	u64 (*value)[127];						\
} map_##name SEC(".maps");						\
static __always_inline long name##_id(void *ctx, u64 flags)		\
{									\
	return get_stackid(ctx, &map_##name, flags);			\
}									\
static const struct {							\
	long (*get_stackid)(void *, u64);				\
} name = { name##_id }

#define BPF_CGROUP_ARRAY(name, size)					\
MAP(name, BPF_MAP_TYPE_CGROUP_ARRAY, u32, u32, size);			\
static __always_inline long name##_check(u32 index)			\
{									\
	return current_task_under_cgroup(&map_##name, index);		\
}									\
static const struct {							\
	long (*check_current_task)(u32);				\
} name = { name##_check }

char LICENSE[] SEC("license") = "GPL";

/* From here on, every function that is not inlined is a program of its own. */
#pragma clang attribute push(__attribute__((section("kprobe"))), apply_to = function)

#endif /* CDMTRACE_LIBBPF_H */
