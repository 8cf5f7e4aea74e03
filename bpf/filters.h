/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Which processes and which addresses are told of. What nobody has asked to be left
 * out costs nothing: the code of such a filter is not there, or (COMPILED_ONCE) the verifier
 * takes it out.
 *
 * A filter of processes names tasks, and follows address spaces: one in which a task
 * acts that the filter names is followed to its end, whoever changes it. Otherwise
 * ksmd, reclaim or another process could change it unseen, and what is told of it
 * would be wrong. So who acts is asked only where the mm is not followed yet.
 */
#ifndef CDMTRACE_FILTERS_H
#define CDMTRACE_FILTERS_H

#if MAYBE(FOLLOW_PIDS)
/* The processes that were named and, with FOLLOW_CHILDREN, what they have forked. */
BPF_HASH(tgids, u32, u8, MAP_SIZE);
#endif

#if MAYBE(FOLLOW_CGROUP)
BPF_CGROUP_ARRAY(cgroups, 1);
#endif

/* Who shows what is recorded. It looks at no other address space than its own. */
static __always_inline int is_viewer(void)
{
	return VIEWER && bpf_get_current_pid_tgid() >> 32 == VIEWER;
}

/* The recorder, or who shows what it records: no part of what is traced. */
static __always_inline int is_recording_task(void)
{
	return bpf_get_current_pid_tgid() >> 32 == RECORDER || is_viewer();
}

static __always_inline u64 current_mm(void)
{
	return READ_FIELD(bpf_get_current_task(), u64, OFF_task_struct_mm);
}

#if MAYBE(FOLLOWS)
/* Address spaces that are followed. */
BPF_HASH(followed, u64, u8, MAP_SIZE);

static __always_inline void follow(u64 mm)
{
	u8 one = 1;

	/* One for which there is no room is told of where its own tasks act. */
	if (FOLLOWS && mm && followed.update(&mm, &one))
		count_lost_at(CDM_PROBE_WATCH, CDM_LOST_MAP, mm, 0, ~0ULL);
}

static __always_inline void unfollow(u64 mm)
{
	if (FOLLOWS)
		followed.delete(&mm);
}

/* Whether all filters name the task that acts. */
static __always_inline int is_named(void)
{
#if MAYBE(FOLLOW_PIDS)
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
#endif
#if MAYBE(FOLLOW_COMM)
	u64 name[2] = {};
#endif

	if (is_recording_task())
		return 0;
#if MAYBE(FOLLOW_PIDS)
	if (FOLLOW_PIDS && !tgids.lookup(&tgid))
		return 0;
#endif
#if MAYBE(FOLLOW_COMM)
	if (FOLLOW_COMM) {
		bpf_get_current_comm(&name, sizeof(name));
		if (name[0] != COMM0 || name[1] != COMM1)
			return 0;
	}
#endif
#if MAYBE(FOLLOW_CGROUP)
	if (FOLLOW_CGROUP && cgroups.check_current_task(0) != 1)
		return 0;
#endif
	return 1;
}

/*
 * exec gives the new program's arguments a stack in an mm that is nobody's yet. Both
 * of these flags are set in no other VMA (VM_STACK_INCOMPLETE_SETUP: VM_RAND_READ and
 * VM_SEQ_READ, commit a8bef8ff6ea1, 2.6.34).
 */
static __always_inline int is_made_by_exec(u64 vma)
{
	return vma && (VMA_FLAGS(vma) & 0x18000) == 0x18000;
}

/* @vma: in @mm, 0 where there is none at hand. */
static __always_inline int is_followed_mm(u64 mm, u64 vma)
{
	if (!FOLLOWS)
		return 1;
	if (!mm)
		return 0;
	if (followed.lookup(&mm))
		return 1;
	if (!is_named() || (mm != current_mm() && !is_made_by_exec(vma)))
		return 0;
	follow(mm);
	return 1;
}
#else
static __always_inline void follow(u64 mm)
{
}

static __always_inline void unfollow(u64 mm)
{
}

static __always_inline int is_followed_mm(u64 mm, u64 vma)
{
	return 1;
}
#endif

/* Whether [start, end) has an address that is told of. */
static __always_inline int in_addr(u64 start, u64 end)
{
	return !ADDR_END || (start < ADDR_END && ADDR_START < end);
}

/* A VMA on the stack has no addresses: whose fault it is for, others know. */
static __always_inline int vma_in_addr(u64 vma)
{
	return !ADDR_END || !VMA_MM(vma) || in_addr(VMA_START(vma), VMA_END(vma));
}

/* Whether what a task does sets the scene for what is told, whoever it is. */
static __always_inline int wanted_scene(void)
{
	return !is_recording_task() && is_enabled();
}

/* Whether what a task does in its own address space is told. */
static __always_inline int wanted(void)
{
	if (!wanted_scene())
		return 0;
	return !FOLLOWS || is_followed_mm(current_mm(), 0);
}

/* The same of @mm. */
static __always_inline int wanted_mm(u64 mm)
{
	if (!FOLLOWS)
		return wanted();
	return is_enabled() && is_followed_mm(mm, 0);
}

/* The same of @vma. One on the stack is of the task that has it there. */
static __always_inline int wanted_vma(u64 vma)
{
	u64 mm;

	if (!FOLLOWS)
		return wanted() && vma_in_addr(vma);
	mm = VMA_MM(vma);
	if (!mm)
		return wanted();
	return is_enabled() && is_followed_mm(mm, vma) && vma_in_addr(vma);
}

/*
 * The same of a page in @vma: the recorder may have to reclaim or to compact, and
 * then it works on the memory of others. One that ends has no mm: the pages are its own.
 */
static __always_inline int wanted_page(u64 vma)
{
	u64 mm;

	if (FOLLOWS || !is_recording_task())
		return wanted_vma(vma);
	mm = current_mm();
	return is_enabled() && mm && mm != VMA_MM(vma) && vma_in_addr(vma);
}

#endif /* CDMTRACE_FILTERS_H */
