// SPDX-License-Identifier: GPL-2.0
/* --- system calls ------------------------------------------------------- */

/* munlockall() has no argument, and its event ends with the number. */
struct sys_enter {
	u64 common;
	s32 nr;
	u64 args[6];
};

struct sys_exit {
	u64 common;
	s64 nr;
	s64 ret;
};

static __always_inline u8 call_probe(s64 nr)
{
	switch (nr) {
	case __NR_mbind:		return CDM_PROBE_SYS_MBIND;
	case __NR_set_mempolicy:	return CDM_PROBE_SYS_SET_MEMPOLICY;
	case __NR_migrate_pages:	return CDM_PROBE_SYS_MIGRATE_PAGES;
	case __NR_move_pages:		return CDM_PROBE_SYS_MOVE_PAGES;
	case __NR_madvise:		return CDM_PROBE_SYS_MADVISE;
	case __NR_mmap:			return CDM_PROBE_SYS_MMAP;
	case __NR_munmap:		return CDM_PROBE_SYS_MUNMAP;
	case __NR_mremap:		return CDM_PROBE_SYS_MREMAP;
	case __NR_mprotect:
	case __NR_pkey_mprotect:	return CDM_PROBE_SYS_MPROTECT;
	case __NR_brk:			return CDM_PROBE_SYS_BRK;
	case __NR_mlock:
	case __NR_mlock2:
	case __NR_mlockall:
	case __NR_munlock:
	case __NR_munlockall:		return CDM_PROBE_SYS_MLOCK;
	case 450:			return CDM_PROBE_SYS_SET_HOME_NODE;
	}
	return CDM_PROBE_NONE;
}

/* Policy and migration calls are rare and always told. */
static __always_inline int call_is_policy(u8 probe)
{
	return (probe >= CDM_PROBE_SYS_MBIND && probe <= CDM_PROBE_SYS_MOVE_PAGES) ||
	       probe == CDM_PROBE_SYS_SET_HOME_NODE;
}

/* These can be about another process. */
static __always_inline int call_is_foreign(u8 probe)
{
	return probe == CDM_PROBE_SYS_MOVE_PAGES ||
	       probe == CDM_PROBE_SYS_MIGRATE_PAGES;
}

/* The first word of a node mask of user space, as get_nodes() reads it. */
static __always_inline long user_nodes(u64 mask, u64 maxnode, u64 *nodes)
{
	long err;

	*nodes = 0;
	if (!mask || maxnode < 2)
		return 0;
	err = bpf_probe_read_user(nodes, sizeof(*nodes), (void *)mask);
	if (maxnode <= 64)
		*nodes &= (1ULL << (maxnode - 1)) - 1;
	return err;
}

/* The nodes that a policy call asks for, or a migration wants to go to. */
static __always_inline long call_nodes(struct entry *entry)
{
	switch (entry->probe) {
	case CDM_PROBE_SYS_MBIND:
		return user_nodes(entry->arg[3], entry->arg[4], &entry->nodes);
	case CDM_PROBE_SYS_SET_MEMPOLICY:
		return user_nodes(entry->arg[1], entry->arg[2], &entry->nodes);
	case CDM_PROBE_SYS_MIGRATE_PAGES:
		return user_nodes(entry->arg[3], entry->arg[1], &entry->nodes);
	}
	return 0;
}

/* What a call of a task was told: @regs is a struct pt_regs, see call_entered(). */
static __always_inline void call_arguments(u64 regs, u64 *args)
{
	args[0] = READ_FIELD(regs, u64, 112);	/* di */
	args[1] = READ_FIELD(regs, u64, 104);	/* si */
	args[2] = READ_FIELD(regs, u64, 96);	/* dx */
	args[3] = READ_FIELD(regs, u64, 56);	/* r10 */
	args[4] = READ_FIELD(regs, u64, 72);	/* r8 */
	args[5] = READ_FIELD(regs, u64, 64);	/* r9 */
}

/* Its arguments are at @regs, or, where that is 0, six words at @args. */
static __always_inline int call_begins(s64 nr, void *args, u64 regs)
{
	struct entry entry = {};
	u32 zero = 0, *id;
	int own;

	slot_begin(SLOT_CALL);
	own = wanted();
	if (!own && !(FOLLOWS && wanted_scene()))
		return 0;
	entry.probe = call_probe(nr);
	/* A stranger's, which may move pages of what is followed: told if it does. */
	if (!own && !call_is_foreign(entry.probe))
		return 0;
	if (own)
		entry.mm = current_mm();
	if (!call_is_policy(entry.probe) && entry.probe != CDM_PROBE_SYS_MADVISE &&
	    !is_watched(entry.mm))
		return 0;

	id = call_ids.lookup(&zero);
	if (!id)
		return 0;
	/* Each cpu counts for itself, so the cpu is part of the number. */
	entry.id = ++*id << 8 | (u8)bpf_get_smp_processor_id();
	entry.ts = bpf_ktime_get_ns();
	entry.pid = bpf_get_current_pid_tgid() >> 32;
	entry.mm_id = pointer_id(entry.mm);
	/* Those that the call has not got are noise, and not looked at. */
	if (regs)
		call_arguments(regs, entry.arg);
	else
		bpf_probe_read_kernel(&entry.arg, sizeof(entry.arg), args);
	/* These two are about everything, and have no range. */
	if (nr == __NR_mlockall || nr == __NR_munlockall)
		entry.arg[0] = entry.arg[1] = 0;
	/* A mask that was never touched cannot be read yet: see call_exit(). */
	call_nodes(&entry);
	if (entry.probe == CDM_PROBE_SYS_MIGRATE_PAGES)
		entry.unread = !!user_nodes(entry.arg[2], entry.arg[1], &entry.start);
	if (entry.probe == CDM_PROBE_SYS_MBIND)
		entry.policy = CDM_POLICY(entry.arg[2], entry.arg[2]);
	else if (entry.probe == CDM_PROBE_SYS_SET_MEMPOLICY)
		entry.policy = CDM_POLICY(entry.arg[0], entry.arg[0]);
	/* From now on its pages may come from a CDM node. */
	if (NAMES_CDM(entry.nodes))
		watch(entry.mm);
	entry.touched = own && (call_is_policy(entry.probe) || is_watched(entry.mm));
	slot_put(SLOT_CALL, &entry);
	return 0;
}

/*
 * A tracepoint refuses a program that looks beyond the arguments its call has
 * (perf_event_set_bpf_prog() in kernel/events/core.c), and this one is for all calls:
 * so they are copied.
 */
int call_enter(struct sys_enter *ctx)
{
	return call_begins(ctx->nr, (char *)ctx + offsetof(struct sys_enter, args), 0);
}

/*
 * __x64_sys_mbind(regs) and its like, where the tracepoint misses calls: its programs
 * can be preempted in 7.2, and one that is runs for no other task on that cpu
 * (bpf_prog_run_array_sleepable() in include/linux/bpf.h). @regs is what the task had in
 * its registers, a struct pt_regs, of which user space may rely on the places.
 */
int call_entered(struct pt_regs *ctx)
{
	u64 regs = PT_REGS_PARM1(ctx);

	return call_begins(READ_FIELD(regs, u64, 120 /* orig_ax */), 0, regs);
}

static __always_inline void call_fill(struct cdm_event *e, struct entry *entry,
				      s64 ret)
{
	e->call = entry->id;
	e->cause = CDM_CAUSE_CALL;
	e->mm = pointer_id(entry->mm);
	e->addr = entry->arg[0];
	e->size = entry->arg[1];
	e->ret = ret < 0 ? ret : 0;
	e->other = entry->nodes;
	e->other_policy = entry->policy;

	switch (entry->probe) {
	case CDM_PROBE_SYS_MBIND:
		e->arg = entry->arg[5];
		break;
	case CDM_PROBE_SYS_SET_MEMPOLICY:
		e->addr = e->size = 0;
		break;
	case CDM_PROBE_SYS_MIGRATE_PAGES:
		e->addr = e->size = 0;
		if (entry->unread &&
		    user_nodes(entry->arg[2], entry->arg[1], &entry->start))
			count_lost(entry->probe, CDM_LOST_READ);
		e->nodes = entry->start;
		e->ret = ret;
		if (entry->arg[0])
			e->bits |= CDM_BIT_FOREIGN;
		break;
	case CDM_PROBE_SYS_MOVE_PAGES:
		e->addr = e->size = 0;
		e->arg = entry->arg[5];
		e->ret = ret;
		if (entry->arg[0])
			e->bits |= CDM_BIT_FOREIGN;
		break;
	case CDM_PROBE_SYS_MADVISE:
	case CDM_PROBE_SYS_MPROTECT:
		e->arg = entry->arg[2];
		break;
	case CDM_PROBE_SYS_MMAP:
		e->arg = entry->arg[3];
		e->other = ret < 0 && ret >= -4095 ? 0 : ret;
		e->ret = ret < 0 && ret >= -4095 ? ret : 0;
		break;
	case CDM_PROBE_SYS_MREMAP:
		e->arg = entry->arg[3];
		e->nodes = entry->arg[2];
		e->other = ret < 0 && ret >= -4095 ? 0 : ret;
		e->ret = ret < 0 && ret >= -4095 ? ret : 0;
		break;
	case CDM_PROBE_SYS_BRK:
		e->size = 0;
		e->ret = 0;
		e->other = ret;
		break;
	}
	e->start = e->addr & ~(PAGE_SIZE - 1ULL);
	e->end = (e->addr + e->size + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1ULL);
}

static __always_inline int call_ends(s64 ret)
{
	struct entry entry;
	struct cdm_event *e;
	u8 probe;

	if (!slot_take(SLOT_CALL, &entry))
		return 0;
	probe = entry.probe;
	if (!entry.touched && !is_watched(entry.mm))
		return 0;
	/* By now the kernel has read the mask, so it is there. */
	if (!entry.nodes && call_nodes(&entry))
		count_lost_at(probe, CDM_LOST_READ, entry_home(&entry), 0, ~0ULL);
	e = event_new(CDM_EV_CALL, probe, entry.ts, 0, entry_home(&entry));
	if (!e)
		return 0;
	call_fill(e, &entry, ret);
	event_submit(e);
	return 0;
}

int call_exit(struct sys_exit *ctx)
{
	return call_ends(ctx->ret);
}

int call_returned(struct pt_regs *ctx)
{
	return call_ends(PT_REGS_RC(ctx));
}
