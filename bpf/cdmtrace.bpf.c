// SPDX-License-Identifier: GPL-2.0
/*
 * The probes. One handler a logical event, thin entry points around it.
 *
 * User space puts these before this file: offsets and bit numbers of the
 * traced kernel (see compat.h), and what is asked for:
 *
 *	CDM_NODES	mask of the CDM nodes among nodes 0 to 63
 *	CDM_MASK	the bit of vm_flags that is VM_CDM
 *	KEY0, KEY1	random numbers of this recording
 *	ALL		1: every node and address space, not only what is about CDM
 *	FILTER_TGID	only this process; 0: all
 *	RECORDER	the recorder's own process, which is left out
 *	PMD_BYTES	bytes that one PMD maps
 *	RING_PAGES	size of the ring, a power of two
 *	MAP_SIZE	entries that wait for a return, and address spaces watched
 *	LOST_PLACES	address spaces (by probe and reason) of which losses are told
 *	MEMORY_NODES	mask of the nodes that have memory
 *
 * A system call sets the scene and the functions inside it say what happened.
 * Each handler decides first whether its event has to do with CDM, and takes
 * room in the ring only then.
 */
#include <asm/ptrace.h>
#include <asm/unistd.h>

/* events.h, compat.h and maps.h are put here by the loader */

#define NAMES_CDM(nodes)	(((nodes) & CDM_NODES) != 0)
#define IS_CDM_NODE(nid)	((nid) >= 0 && (nid) < 64 && NAMES_CDM(1ULL << (nid)))
/* Pages of this node are told of. */
#define IS_FOLLOWED(nid)	(ALL || IS_CDM_NODE(nid))

static __always_inline int wanted(void)
{
	u64 tgid = bpf_get_current_pid_tgid() >> 32;

	if (tgid == RECORDER || (FILTER_TGID && tgid != FILTER_TGID))
		return 0;
	return is_enabled();
}

/*
 * The same of a page in @vma: the recorder may have to reclaim or to compact, and
 * then it works on the memory of others.
 */
static __always_inline int wanted_page(u64 vma)
{
	u64 tgid = bpf_get_current_pid_tgid() >> 32;

	if (tgid != RECORDER)
		return wanted();
	return is_enabled() &&
	       VMA_MM(vma) != READ_FIELD(bpf_get_current_task(), u64,
					 OFF_task_struct_mm);
}

/* The policy at @pol: mode and flags packed as CDM_POLICY() says, and nodes. */
static __always_inline u8 read_policy(u64 pol, u64 *nodes)
{
	u16 mode, flags;

	*nodes = 0;
	if (!pol)
		return CDM_MPOL_DEFAULT;
	mode = READ_FIELD(pol, u16, OFF_mempolicy_mode);
	flags = READ_FIELD(pol, u16, OFF_mempolicy_flags);
	if (mode != CDM_MPOL_LOCAL)
		*nodes = READ_FIELD(pol, u64, OFF_mempolicy_nodes) & NODEMASK_MASK;
	return CDM_POLICY(mode, flags) |
	       (flags & 1 /* MPOL_F_SHARED */ ? CDM_MPOL_F_SHARED : 0);
}

static __always_inline void report_comm(u64 pid_tgid)
{
	struct comm now = {}, *known;
	struct cdm_event *e;
	u32 tid = pid_tgid;
	u64 *a, *b;

	bpf_get_current_comm(&now.name, sizeof(now.name));
	known = comms.lookup(&tid);
	if (known) {
		a = (u64 *)known->name;
		b = (u64 *)now.name;
		if (a[0] == b[0] && a[1] == b[1])
			return;
	}
	e = events.ringbuf_reserve(sizeof(*e));
	if (!e) {
		count_lost(CDM_PROBE_TASK, CDM_LOST_RING);
		return;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->ts = e->ts_entry = bpf_ktime_get_ns();
	e->pid = pid_tgid >> 32;
	e->tid = tid;
	e->cpu = bpf_get_smp_processor_id();
	e->node = e->src_node = CDM_NO_NODE;
	e->kind = CDM_EV_COMM;
	e->probe = CDM_PROBE_TASK;
	__builtin_memcpy(cdm_event_comm(e), now.name, sizeof(now.name));
	events.ringbuf_submit(e, BPF_RB_NO_WAKEUP);
	comms.update(&tid, &now);
}

static __always_inline u8 find_cause(struct entry *call)
{
	if (call)
		return CDM_CAUSE_CALL;
	if (READ_FIELD(bpf_get_current_task(), u32, OFF_task_struct_flags) &
	    0x00200000 /* PF_KTHREAD, include/linux/sched.h, since 2.6.27 */)
		return CDM_CAUSE_UNKNOWN;
	return slot_open(SLOT_MIGRATE) ? CDM_CAUSE_UNKNOWN : CDM_CAUSE_FAULT;
}

/*
 * Take room for an event about @vma, or about @mm where that is 0, and fill in
 * who, when and where.
 */
static __always_inline struct cdm_event *event_new(u8 kind, u8 probe, u64 ts_entry,
						   u64 vma, u64 mm)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();
	struct entry *call = slot_open(SLOT_CALL);
	struct cdm_event *e;

	report_comm(pid_tgid);
	/* Of what is told of once, the end is told as well: its id is given anew. */
	watch(vma ? VMA_MM(vma) : mm);
	e = events.ringbuf_reserve(sizeof(*e));
	if (!e) {
		if (vma)
			count_lost_at(probe, CDM_LOST_RING, VMA_MM(vma),
				      VMA_START(vma), VMA_END(vma));
		else
			count_lost_at(probe, CDM_LOST_RING, mm, 0, ~0ULL);
		return 0;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->ts = bpf_ktime_get_ns();
	e->ts_entry = ts_entry ? ts_entry : e->ts;
	e->pid = pid_tgid >> 32;
	e->tid = pid_tgid;
	e->cpu = bpf_get_smp_processor_id();
	e->node = e->src_node = CDM_NO_NODE;
	e->other_policy = CDM_POLICY_UNREAD;
	e->kind = kind;
	e->probe = probe;
	e->cause = find_cause(call);
	if (call) {
		e->call = call->id;
		call->touched = 1;
	}
	return e;
}

static __always_inline void event_submit(struct cdm_event *e)
{
	events.ringbuf_submit(e, BPF_RB_NO_WAKEUP);
}

/* The VMA as it is now. Flags before are the same unless the caller knows. */
static __always_inline void event_vma(struct cdm_event *e, u64 vma)
{
	u64 mm = VMA_MM(vma);

	e->vma = pointer_id(vma) >> 32;
	e->mm = pointer_id(mm);
	e->start = VMA_START(vma);
	e->end = VMA_END(vma);
	e->flags_before = e->flags_after = VMA_FLAGS(vma);
	e->policy = read_policy(VMA_POLICY(vma), &e->nodes);
	e->lock_entry = e->lock_exit = CDM_LOCK(mmap_lock_state(mm), 0);
	if (!mm)
		e->bits |= CDM_BIT_UNLINKED;
	else if (mm != READ_FIELD(bpf_get_current_task(), u64, OFF_task_struct_mm))
		e->bits |= CDM_BIT_FOREIGN;
	if (VMA_FILE(vma))
		e->bits |= CDM_BIT_FILE;
}

static __always_inline void entry_vma(struct entry *entry, u64 vma)
{
	entry->ts = bpf_ktime_get_ns();
	entry->vma = vma;
	entry->mm = VMA_MM(vma);
	entry->flags = VMA_FLAGS(vma);
	entry->lock = CDM_LOCK(mmap_lock_state(entry->mm), 0);
}

static __always_inline void event_stack(struct cdm_event *e, struct pt_regs *ctx)
{
	int id = stacks.get_stackid(ctx, 0);

	e->stack = id < 0 ? 0 : id + 1;
}

/* What a return adds to event_vma(): flags and lock as they were at entry. */
static __always_inline void event_entry(struct cdm_event *e, struct entry *entry)
{
	e->flags_before = entry->flags;
	e->lock_entry = entry->lock;
}

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

int call_enter(struct sys_enter *ctx)
{
	struct entry entry = {};
	u32 zero = 0, *id;

	slot_begin(SLOT_CALL);
	if (!wanted())
		return 0;
	entry.probe = call_probe(ctx->nr);
	entry.mm = READ_FIELD(bpf_get_current_task(), u64, OFF_task_struct_mm);
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
	/*
	 * A tracepoint refuses a program that looks beyond the arguments its call
	 * has (perf_event_set_bpf_prog() in kernel/events/core.c), and this one is
	 * for all calls; so they are copied. Those that a call has not got are
	 * noise, and not looked at.
	 */
	bpf_probe_read_kernel(&entry.arg, sizeof(entry.arg),
			      (char *)ctx + offsetof(struct sys_enter, args));
	/* These two are about everything, and have no range. */
	if (ctx->nr == __NR_mlockall || ctx->nr == __NR_munlockall)
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
	entry.touched = call_is_policy(entry.probe) || is_watched(entry.mm);
	slot_put(SLOT_CALL, &entry);
	return 0;
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

int call_exit(struct sys_exit *ctx)
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
	call_fill(e, &entry, ctx->ret);
	event_submit(e);
	return 0;
}

/* --- pages -------------------------------------------------------------- */

/* alloc_pages_vma() and its successors: (gfp, order, vma, addr, ...) */
int alloc_entry(struct pt_regs *ctx)
{
	struct entry entry = {};
	u64 vma = PT_REGS_PARM3(ctx);

	slot_begin(SLOT_ALLOC);
	if (!vma || !wanted())
		return 0;
	entry_vma(&entry, vma);
	entry.probe = CDM_PROBE_ALLOC;
	entry.arg[0] = PT_REGS_PARM4(ctx);
	entry.arg[1] = PT_REGS_PARM2(ctx);
	entry.policy = CDM_POLICY_UNREAD;
	slot_put(SLOT_ALLOC, &entry);
	return 0;
}

/* shmem_fault(vmf): what is allocated in it, for a VMA on the stack, is for this */
int shmem_begin(struct pt_regs *ctx)
{
	u64 vmf = PT_REGS_PARM1(ctx), vma = READ_FIELD(vmf, u64, OFF_vm_fault_vma);

	if (wanted())
		place_put(PLACE_SHMEM, VMA_MM(vma), vma,
			  READ_FIELD(vmf, u64, OFF_vm_fault_address));
	return 0;
}

int shmem_end(struct pt_regs *ctx)
{
	place_drop(PLACE_SHMEM);
	return 0;
}

/* mpol_shared_policy_lookup(), of a private mapping of a shmem file, too */
int shared_policy_return(struct pt_regs *ctx)
{
	struct entry *entry = slot_open(SLOT_ALLOC);

	if (entry)
		entry->policy = read_policy(PT_REGS_RC(ctx), &entry->nodes);
	return 0;
}

/*
 * The fault for which a page is allocated for a VMA that no mm has. Its return may
 * have been missed, and what was its VMA then may be another one by now.
 */
static __always_inline void event_fault(struct cdm_event *e)
{
	u64 key = place_key(PLACE_SHMEM), mm;
	struct place *fault = places.lookup(&key);

	if (!fault)
		return;
	mm = VMA_MM(fault->vma);
	if (mm != fault->page || fault->addr < VMA_START(fault->vma) ||
	    fault->addr >= VMA_END(fault->vma))
		return;
	e->mm = pointer_id(mm);
	e->addr = fault->addr & ~(e->size - 1);
	e->lock_entry = e->lock_exit = CDM_LOCK(mmap_lock_state(mm), 0);
	if (mm != READ_FIELD(bpf_get_current_task(), u64, OFF_task_struct_mm))
		e->bits |= CDM_BIT_FOREIGN;
	watch(mm);
}

int alloc_return(struct pt_regs *ctx)
{
	u64 page = PT_REGS_RC(ctx), flags, task;
	struct entry entry;
	struct cdm_event *e;
	int node = CDM_NO_NODE, asked;

	if (!slot_take(SLOT_ALLOC, &entry))
		return 0;
	if (page)
		node = page_node(page);
	flags = VMA_FLAGS(entry.vma);
	if (!IS_FOLLOWED(node) && flags == entry.flags)
		return 0;

	e = event_new(CDM_EV_ALLOC, CDM_PROBE_ALLOC, entry.ts, entry.vma, 0);
	if (!e)
		return 0;
	event_vma(e, entry.vma);
	event_entry(e, &entry);
	e->addr = entry.arg[0] & ~(PAGE_SIZE - 1ULL);
	e->size = (u64)PAGE_SIZE << (entry.arg[1] & 31);
	e->node = node;
	event_stack(e, ctx);
	if (!entry.mm)
		event_fault(e);
	/* A file that is asked and has no policy leaves it to the task, not to the VMA. */
	asked = entry.policy != CDM_POLICY_UNREAD;
	if (asked && entry.policy) {
		e->policy = entry.policy;
		e->nodes = entry.nodes;
	}
	if (!(asked ? entry.policy : e->policy)) {
		task = READ_FIELD(bpf_get_current_task(), u64,
				  OFF_task_struct_mempolicy);
		e->other_policy = read_policy(task, &e->other);
	}
	watch(entry.mm);
	event_submit(e);
	return 0;
}

/*
 * A page is mapped: in a fault, or, where @from is known, at the end of a
 * migration. What leaves a CDM node by one is told, too. @source: CDM_CAUSE_DRIVER
 * or CDM_CAUSE_FILE, whose page it is, which no stack tells: the fault is like any
 * other; 0: the VMA's own.
 */
static __always_inline int page_mapped(struct pt_regs *ctx, u64 page, u64 vma,
				       u64 addr, u64 size, struct place *from,
				       u8 source)
{
	struct entry *migration;
	struct cdm_event *e;
	u64 task;
	int node = page_node(page), src = from ? from->node : CDM_NO_NODE;

	if (!(IS_FOLLOWED(node) || IS_CDM_NODE(src)) || !wanted_page(vma) ||
	    page_is_apart(page, vma))
		return 0;
	migration = slot_open(SLOT_MIGRATE);
	if (from || migration)
		e = event_new(CDM_EV_MIGRATE, CDM_PROBE_REMOVE_MIGRATION_PTE, 0, vma, 0);
	else
		e = event_new(CDM_EV_MAP, CDM_PROBE_RMAP_ADD, 0, vma, 0);
	if (!e)
		return 0;
	event_vma(e, vma);
	e->addr = addr & ~(PAGE_SIZE - 1ULL);
	e->size = size;
	e->node = node;
	e->src_node = src;
	if (source && (e->kind == CDM_EV_MAP || source == CDM_CAUSE_DRIVER))
		e->cause = source;
	if (e->kind == CDM_EV_MIGRATE)
		/* Within another migration it is that one's reason that is known. */
		e->arg = migration && !migration->depth ? migration->arg[0] :
							  CDM_NO_REASON;
	if (page_is_ksm(page))
		e->bits |= CDM_BIT_KSM;
	if (IS_CDM_NODE(node) || IS_CDM_NODE(src))
		event_stack(e, ctx);
	if (!e->policy) {
		task = READ_FIELD(bpf_get_current_task(), u64,
				  OFF_task_struct_mempolicy);
		e->other_policy = read_policy(task, &e->other);
	}
	watch(VMA_MM(vma));
	event_submit(e);
	return 0;
}

static __always_inline struct place *migrated_here(u64 page, u64 vma)
{
	return place_of(PLACE_REMIGRATE, page_head(page), vma);
}

/* page_add_new_anon_rmap(page, vma, address) */
int rmap_add_new_anon(struct pt_regs *ctx)
{
	u64 page = PT_REGS_PARM1(ctx);

	return page_mapped(ctx, page, PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx),
			   page_is_compound(page) ? PMD_BYTES : PAGE_SIZE, 0, 0);
}

/* page_add_anon_rmap(page, vma, address, flags): RMAP_COMPOUND is bit 1 */
int rmap_add_anon(struct pt_regs *ctx)
{
	u64 page = PT_REGS_PARM1(ctx), vma = PT_REGS_PARM2(ctx);

	return page_mapped(ctx, page, vma, PT_REGS_PARM3(ctx),
			   PT_REGS_PARM4(ctx) & 2 ? PMD_BYTES : PAGE_SIZE,
			   migrated_here(page, vma), 0);
}

/* page_add_file_rmap(page, vma, compound) */
int rmap_add_file(struct pt_regs *ctx)
{
	u64 page = PT_REGS_PARM1(ctx), vma = PT_REGS_PARM2(ctx), addr;
	struct place *driver = 0;

	if (page_mapping(page)) {
		addr = page_address_in(page, vma);
	} else {
		driver = place_of(PLACE_DRIVER, page, vma);
		if (!driver) {
			if (IS_FOLLOWED(page_node(page)) && wanted())
				count_lost_at(CDM_PROBE_RMAP_ADD, CDM_LOST_READ,
					      VMA_MM(vma), VMA_START(vma), VMA_END(vma));
			return 0;
		}
		addr = driver->addr;
	}
	return page_mapped(ctx, page, vma, addr,
			   PT_REGS_PARM3(ctx) & 1 ? PMD_BYTES : PAGE_SIZE,
			   migrated_here(page, vma),
			   driver ? CDM_CAUSE_DRIVER : CDM_CAUSE_FILE);
}

static __always_inline int driver_page(u64 page, u64 vma, u64 addr)
{
	if (IS_FOLLOWED(page_node(page)) && !page_mapping(page) && wanted())
		place_put(PLACE_DRIVER, page, vma, addr & ~(PAGE_SIZE - 1ULL));
	return 0;
}

/* finish_fault(vmf) */
int fault_finish(struct pt_regs *ctx)
{
	u64 vmf = PT_REGS_PARM1(ctx), page = READ_FIELD(vmf, u64, OFF_vm_fault_page);

	return page ? driver_page(page, READ_FIELD(vmf, u64, OFF_vm_fault_vma),
				  READ_FIELD(vmf, u64, OFF_vm_fault_address)) : 0;
}

/* vm_insert_page(vma, addr, page) */
int driver_insert(struct pt_regs *ctx)
{
	return driver_page(PT_REGS_PARM3(ctx), PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx));
}

/* try_to_unmap_one(folio, vma, address, arg), and try_to_migrate_one() alike */
int walk_entry(struct pt_regs *ctx)
{
	u64 folio = PT_REGS_PARM1(ctx);

	if (IS_FOLLOWED(page_node(folio)) && wanted_page(PT_REGS_PARM2(ctx)))
		place_put(PLACE_WALK, folio, PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx));
	return 0;
}

int walk_return(struct pt_regs *ctx)
{
	place_drop(PLACE_WALK);
	return 0;
}

/* remove_migration_pte(folio, vma, address, old) */
int remigrate_entry(struct pt_regs *ctx)
{
	u64 folio = PT_REGS_PARM1(ctx), vma = PT_REGS_PARM2(ctx);
	u64 key = place_key(PLACE_REMIGRATE);
	struct place place = {};

	place.node = page_node(PT_REGS_PARM4(ctx));
	if (!(IS_FOLLOWED(page_node(folio)) || IS_CDM_NODE(place.node)) ||
	    !wanted_page(vma)) {
		/* Of one whose return was missed, the VMA may be gone. */
		places.delete(&key);
		return 0;
	}
	place.page = folio;
	place.vma = vma;
	place.ts = bpf_ktime_get_ns();
	place.lock = CDM_LOCK(mmap_lock_state(VMA_MM(vma)), 0);
	place.flags = VMA_FLAGS(vma);
	places.update(&key, &place);
	return 0;
}

/*
 * The reverse map holds the VMA, and nobody the mmap lock: whoever has changed the
 * flags meanwhile holds it still, or has put his row into the ring before this one.
 * So the lock is read when the flags are, and room is taken after it.
 */
int remigrate_return(struct pt_regs *ctx)
{
	u64 key = place_key(PLACE_REMIGRATE);
	struct place place = {}, *kept = places.lookup(&key);
	struct cdm_event *e;
	u8 lock;

	if (!kept)
		return 0;
	place = *kept;
	places.delete(&key);
	if (VMA_FLAGS(place.vma) == place.flags)
		return 0;
	lock = CDM_LOCK(mmap_lock_state(VMA_MM(place.vma)), 0);
	e = event_new(CDM_EV_FLAGS, CDM_PROBE_REMOVE_MIGRATION_PTE, place.ts,
		      place.vma, 0);
	if (!e)
		return 0;
	event_vma(e, place.vma);
	e->flags_before = place.flags;
	e->lock_entry = place.lock;
	e->lock_exit = lock;
	e->addr = e->start;
	e->size = e->end - e->start;
	event_stack(e, ctx);
	event_submit(e);
	return 0;
}

/* tlb_gather_mmu(tlb, mm) */
int gather_begin(struct pt_regs *ctx)
{
	u64 mm = PT_REGS_PARM2(ctx);

	if (is_watched(mm) && wanted())
		place_put(PLACE_GATHER, PT_REGS_PARM1(ctx), mm, 0);
	return 0;
}

/* tlb_finish_mmu(tlb) */
int gather_end(struct pt_regs *ctx)
{
	place_drop(PLACE_GATHER);
	return 0;
}

/*
 * Where a page was that is mapped no more; 0 if that cannot be known. Its index
 * says so, but for KSM's pages, which are in many places, and a driver's, which
 * have none. A zap clears entries by rising address and widens its gather to each
 * of them first (zap_pte_range() in mm/memory.c); it clears a whole PMD at once
 * where the page is huge, and then the index holds.
 */
static __always_inline u64 unmapped_at(u64 page, u64 vma, u64 size)
{
	struct place *walk = place_of(PLACE_WALK, page_head(page), vma), *gather;
	u64 key = place_key(PLACE_GATHER), end;

	if (size == PAGE_SIZE && !walk) {
		gather = places.lookup(&key);
		if (gather && gather->vma == VMA_MM(vma)) {
			end = READ_FIELD(gather->page, u64, OFF_mmu_gather_end);
			if (end > VMA_START(vma) && end <= VMA_END(vma))
				return end - PAGE_SIZE;
		}
	}
	if (page_is_indexed(page))
		return page_address_in(page, vma);
	return walk ? walk->addr : 0;
}

/* page_remove_rmap(page, vma, compound) */
int rmap_remove(struct pt_regs *ctx)
{
	u64 page = PT_REGS_PARM1(ctx), vma = PT_REGS_PARM2(ctx);
	struct entry *exiting;
	struct cdm_event *e;
	int node = page_node(page);

	if (!IS_FOLLOWED(node) || !wanted_page(vma) || page_is_apart(page, vma))
		return 0;
	/* The end of an mm takes all its pages: one event says so. */
	exiting = slot_open(SLOT_EXIT_MMAP);
	if (exiting && exiting->mm == VMA_MM(vma))
		return 0;
	e = event_new(CDM_EV_UNMAP, CDM_PROBE_RMAP_REMOVE, 0, vma, 0);
	if (!e)
		return 0;
	event_vma(e, vma);
	e->size = PT_REGS_PARM3(ctx) & 1 ? PMD_BYTES : PAGE_SIZE;
	e->src_node = node;
	if (page_is_ksm(page))
		e->bits |= CDM_BIT_KSM;
	e->addr = unmapped_at(page, vma, e->size);
	event_submit(e);
	return 0;
}

/* migrate_pages(from, get_new_page, put_new_page, private, mode, reason, ...) */
int migrate_entry(struct pt_regs *ctx)
{
	struct entry entry = {}, *outer = slot_open(SLOT_MIGRATE);

	/*
	 * Allocating a target may compact memory, which migrates pages, too: further
	 * down the stack. From anywhere else, the return of the outer was missed.
	 */
	entry.sp = PT_REGS_SP(ctx);
	if (outer && entry.sp < outer->sp) {
		outer->depth++;
		return 0;
	}
	slot_begin(SLOT_MIGRATE);
	if (!wanted())
		return 0;
	entry.ts = bpf_ktime_get_ns();
	entry.probe = CDM_PROBE_MIGRATE_PAGES;
	entry.arg[0] = PT_REGS_PARM6(ctx);
	slot_put(SLOT_MIGRATE, &entry);
	return 0;
}

int migrate_return(struct pt_regs *ctx)
{
	struct entry entry, *outer = slot_open(SLOT_MIGRATE);

	if (outer && outer->depth)
		outer->depth--;
	else
		slot_take(SLOT_MIGRATE, &entry);
	return 0;
}

/* change_prot_numa(vma, addr, end): the scanner's work, or that of a lazy mbind() */
int numa_scan(struct pt_regs *ctx)
{
	u64 vma = PT_REGS_PARM1(ctx);
	struct cdm_event *e;

	if (!(is_watched(VMA_MM(vma)) || VMA_FLAGS(vma) & CDM_MASK) || !wanted())
		return 0;
	e = event_new(CDM_EV_NUMA_SCAN, CDM_PROBE_NUMA_SCAN, 0, vma, 0);
	if (!e)
		return 0;
	event_vma(e, vma);
	e->addr = PT_REGS_PARM2(ctx);
	e->size = PT_REGS_PARM3(ctx) - e->addr;
	if (!e->call)
		e->cause = CDM_CAUSE_NUMA_BALANCING;
	event_submit(e);
	return 0;
}

/*
 * migrate_misplaced_page(page, vma, node), in a fault, which holds the mmap lock for
 * read until it has returned. The page may be freed in it: what is told is of before.
 */
int numa_move_entry(struct pt_regs *ctx)
{
	u64 page = PT_REGS_PARM1(ctx), vma = PT_REGS_PARM2(ctx);
	struct entry entry = {};
	int node = PT_REGS_PARM3(ctx);

	slot_begin(SLOT_NUMA_MOVE);
	if (!(is_watched(VMA_MM(vma)) || VMA_FLAGS(vma) & CDM_MASK ||
	      IS_CDM_NODE(node)) || !wanted_page(vma))
		return 0;
	entry_vma(&entry, vma);
	entry.probe = CDM_PROBE_NUMA_MIGRATE;
	entry.arg[0] = page_is_indexed(page) ? page_address_in(page, vma) : 0;
	entry.arg[1] = page_is_compound(page) ? PMD_BYTES : PAGE_SIZE;
	entry.arg[2] = page_node(page);
	entry.arg[3] = node;
	slot_put(SLOT_NUMA_MOVE, &entry);
	return 0;
}

/* A page of @entry has another node now, or should have. */
static __always_inline void moved_fill(struct cdm_event *e, struct entry *entry)
{
	event_vma(e, entry->vma);
	event_entry(e, entry);
	e->addr = entry->arg[0];
	e->size = entry->arg[1];
	e->src_node = entry->arg[2];
	e->node = entry->arg[3];
}

int numa_move_return(struct pt_regs *ctx)
{
	struct entry entry;
	struct cdm_event *e;

	if (!slot_take(SLOT_NUMA_MOVE, &entry))
		return 0;
	e = event_new(CDM_EV_NUMA_MOVE, CDM_PROBE_NUMA_MIGRATE, entry.ts, entry.vma, 0);
	if (!e)
		return 0;
	moved_fill(e, &entry);
	e->cause = CDM_CAUSE_NUMA_BALANCING;
	e->ret = PT_REGS_RC(ctx);
	event_submit(e);
	return 0;
}

/*
 * try_to_merge_one_page(vma, page, kpage): ksmd, with the mmap lock of another's mm
 * for read. Without a kpage the page itself becomes KSM's, and it stays where it is.
 */
int ksm_merge_entry(struct pt_regs *ctx)
{
	u64 vma = PT_REGS_PARM1(ctx), page = PT_REGS_PARM2(ctx);
	u64 kpage = PT_REGS_PARM3(ctx);
	struct entry entry = {};
	int from = page_node(page), to = page_node(kpage);

	slot_begin(SLOT_KSM_MERGE);
	if (!kpage || kpage == page || !wanted())
		return 0;
	if (!(is_watched(VMA_MM(vma)) || VMA_FLAGS(vma) & CDM_MASK ||
	      IS_FOLLOWED(from) || IS_FOLLOWED(to)))
		return 0;
	entry_vma(&entry, vma);
	entry.probe = CDM_PROBE_KSM_MERGE;
	entry.arg[0] = page_is_indexed(page) ? page_address_in(page, vma) : 0;
	entry.arg[1] = PAGE_SIZE;
	entry.arg[2] = from;
	entry.arg[3] = to;
	entry.arg[4] = page_is_ksm(kpage);
	slot_put(SLOT_KSM_MERGE, &entry);
	return 0;
}

int ksm_merge_return(struct pt_regs *ctx)
{
	struct entry entry;
	struct cdm_event *e;

	if (!slot_take(SLOT_KSM_MERGE, &entry) || (int)PT_REGS_RC(ctx))
		return 0;
	e = event_new(CDM_EV_KSM_PAGE, CDM_PROBE_KSM_MERGE, entry.ts, entry.vma, 0);
	if (!e)
		return 0;
	moved_fill(e, &entry);
	e->cause = CDM_CAUSE_KSM;
	if (entry.arg[4])
		e->bits |= CDM_BIT_KSM;
	event_submit(e);
	return 0;
}

/* copy_page_range(dst_vma, src_vma) */
int copy_entry(struct pt_regs *ctx)
{
	struct entry entry = {};
	u64 src = PT_REGS_PARM2(ctx);

	slot_begin(SLOT_COPY);
	if (!wanted() || !is_watched(VMA_MM(src)))
		return 0;
	entry_vma(&entry, src);
	entry.probe = CDM_PROBE_COPY_PAGE_RANGE;
	entry.arg[0] = PT_REGS_PARM1(ctx);
	/*
	 * Without an anon_vma there is nothing of its own to copy, but of what a
	 * driver has mapped (VM_PFNMAP, VM_MIXEDMAP; vma_needs_copy() in
	 * mm/memory.c): that is not faulted in anew.
	 */
	if (VMA_ANON(src) || entry.flags & 0x10000400)
		entry.arg[1] = VMA_END(src) - VMA_START(src);
	slot_put(SLOT_COPY, &entry);
	return 0;
}

int copy_return(struct pt_regs *ctx)
{
	struct entry entry;
	struct cdm_event *e;

	if (!slot_take(SLOT_COPY, &entry))
		return 0;
	e = event_new(CDM_EV_COPY, CDM_PROBE_COPY_PAGE_RANGE, entry.ts, entry.arg[0], 0);
	if (!e)
		return 0;
	event_vma(e, entry.arg[0]);
	event_entry(e, &entry);
	e->addr = e->start;
	e->size = entry.arg[1];
	e->other = pointer_id(entry.mm);
	e->ret = PT_REGS_RC(ctx);
	watch(VMA_MM(entry.arg[0]));
	event_submit(e);
	return 0;
}

/* move_page_tables(vma, old_addr, new_vma, new_addr, len, need_rmap_locks) */
int move_entry(struct pt_regs *ctx)
{
	struct entry entry = {};
	u64 vma = PT_REGS_PARM1(ctx);

	slot_begin(SLOT_MOVE);
	if (!wanted() || !is_watched(VMA_MM(vma)))
		return 0;
	entry_vma(&entry, vma);
	entry.probe = CDM_PROBE_MOVE_PAGE_TABLES;
	entry.arg[0] = PT_REGS_PARM2(ctx);
	entry.arg[1] = PT_REGS_PARM3(ctx);
	entry.arg[2] = PT_REGS_PARM4(ctx);
	slot_put(SLOT_MOVE, &entry);
	return 0;
}

/* It returns how many bytes it has moved: fewer where it ran out of memory. */
int move_return(struct pt_regs *ctx)
{
	struct entry entry;
	struct cdm_event *e;

	if (!slot_take(SLOT_MOVE, &entry) || !PT_REGS_RC(ctx))
		return 0;
	e = event_new(CDM_EV_MOVE, CDM_PROBE_MOVE_PAGE_TABLES, entry.ts, entry.arg[1], 0);
	if (!e)
		return 0;
	event_vma(e, entry.arg[1]);
	event_entry(e, &entry);
	e->addr = entry.arg[0];
	e->size = PT_REGS_RC(ctx);
	e->other = entry.arg[2];
	event_submit(e);
	return 0;
}

/* --- VMAs --------------------------------------------------------------- */

/*
 * mbind_range(vmi, vma, prev, start, end, new_pol), once for every VMA of the
 * range. What it leaves behind is in *prev; vma itself may have been freed, by
 * vma_merge() and nobody else: it splits off what lies beside the range, and has the
 * mm locked for write all the time.
 */
int mbind_range_entry(struct pt_regs *ctx)
{
	struct entry entry = {};
	struct cdm_event *e;
	u64 vma = PT_REGS_PARM2(ctx), asked;

	slot_begin(SLOT_MBIND_RANGE);
	if (!wanted())
		return 0;
	entry_vma(&entry, vma);
	entry.probe = CDM_PROBE_MBIND_RANGE;
	entry.arg[0] = PT_REGS_PARM3(ctx);
	entry.start = VMA_START(vma);
	entry.end = VMA_END(vma);
	if (PT_REGS_PARM4(ctx) > entry.start)
		entry.start = PT_REGS_PARM4(ctx);
	if (PT_REGS_PARM5(ctx) < entry.end)
		entry.end = PT_REGS_PARM5(ctx);
	entry.policy = read_policy(VMA_POLICY(vma), &entry.nodes);
	read_policy(PT_REGS_PARM6(ctx), &asked);

	if (NAMES_CDM(asked | entry.nodes) || entry.flags & CDM_MASK)
		watch(entry.mm);
	slot_put(SLOT_MBIND_RANGE, &entry);
	if (!is_watched(entry.mm))
		return 0;

	e = event_new(CDM_EV_VMA_SEEN, CDM_PROBE_MBIND_RANGE, 0, vma, 0);
	if (!e)
		return 0;
	event_vma(e, vma);
	e->addr = entry.start;
	e->size = entry.end - entry.start;
	event_submit(e);
	return 0;
}

int mbind_range_return(struct pt_regs *ctx)
{
	struct entry entry;
	struct cdm_event *e;
	u64 vma;

	if (!slot_take(SLOT_MBIND_RANGE, &entry))
		return 0;
	if (!PT_REGS_RC(ctx))
		vma = READ_FIELD(entry.arg[0], u64, 0);
	else
		vma = entry.merge == MERGE_NONE ? entry.vma : 0;
	/* A kernel that tags for a policy of RAM nodes must not go unseen. */
	if (vma && VMA_FLAGS(vma) & CDM_MASK)
		watch(entry.mm);
	if (!is_watched(entry.mm))
		return 0;
	e = event_new(CDM_EV_POLICY, CDM_PROBE_MBIND_RANGE, entry.ts, vma, entry.mm);
	if (!e)
		return 0;
	e->ret = PT_REGS_RC(ctx);
	if (!vma) {
		/* It failed when it had merged, or nobody saw whether it had. */
		e->bits |= CDM_BIT_VMA_UNREAD;
		e->mm = pointer_id(entry.mm);
		e->vma = pointer_id(entry.vma) >> 32;
		e->start = entry.start;
		e->end = entry.end;
		e->flags_after = entry.flags;
		e->lock_exit = CDM_LOCK(mmap_lock_state(entry.mm), 0);
		e->policy = CDM_POLICY_UNREAD;
	} else {
		event_vma(e, vma);
	}
	event_entry(e, &entry);
	e->addr = entry.start;
	e->size = entry.end - entry.start;
	e->other_policy = entry.policy;
	e->other = entry.nodes;
	if (e->flags_before != e->flags_after)
		event_stack(e, ctx);
	event_submit(e);
	return 0;
}

/* A VMA of which the policy or the flags are others since its cpuset's rebinding. */
static __always_inline void rebind_tell(struct pt_regs *ctx, struct entry *entry,
					int unlocked)
{
	u64 vma = entry->vma, flags, nodes;
	struct cdm_event *e;

	if (!vma)
		return;
	flags = VMA_FLAGS(vma);
	read_policy(VMA_POLICY(vma), &nodes);
	if (flags == entry->flags && nodes == entry->nodes)
		return;
	if (!(ALL || NAMES_CDM(nodes | entry->nodes) ||
	      (flags | entry->flags) & CDM_MASK))
		return;
	e = event_new(CDM_EV_POLICY, CDM_PROBE_MPOL_REBIND, entry->ts, vma, 0);
	if (!e)
		return;
	event_vma(e, vma);
	event_entry(e, entry);
	e->addr = e->start;
	e->size = e->end - e->start;
	e->cause = CDM_CAUSE_CPUSET;
	e->other_policy = entry->policy;
	e->other = entry->nodes;
	if (unlocked)
		e->lock_exit = CDM_LOCK(CDM_LOCK_UNKNOWN, 0);
	if (e->flags_before != e->flags_after)
		event_stack(e, ctx);
	event_submit(e);
}

/* mpol_rebind_mm(mm, nodes) */
int rebind_entry(struct pt_regs *ctx)
{
	struct entry entry = {};

	slot_begin(SLOT_REBIND);
	if (!wanted())
		return 0;
	entry.ts = bpf_ktime_get_ns();
	entry.probe = CDM_PROBE_MPOL_REBIND;
	entry.mm = PT_REGS_PARM1(ctx);
	slot_put(SLOT_REBIND, &entry);
	return 0;
}

/*
 * mpol_rebind_policy(policy, nodes), and mpol_rebind_nodemask() alike, for each VMA
 * that mpol_rebind_mm() comes to: with the one before it is done. Told of one twice,
 * this sees nothing changed yet.
 */
int rebind_next(struct pt_regs *ctx)
{
	struct entry *entry = slot_open(SLOT_REBIND);
	u64 policy = PT_REGS_PARM1(ctx), vma;

	if (!entry)
		return 0;
	rebind_tell(ctx, entry, 0);
	vma = looped_vma(PT_REGS_SP(ctx), entry->mm);
	if (!vma || VMA_POLICY(vma) != policy) {
		vma = 0;
		if (policy)
			count_lost_at(CDM_PROBE_MPOL_REBIND, CDM_LOST_READ,
				      entry->mm, 0, ~0ULL);
	}
	entry->vma = vma;
	if (vma) {
		entry_vma(entry, vma);
		entry->policy = read_policy(policy, &entry->nodes);
		entry->arg[0] = policy;
	}
	return 0;
}

/* The lock is given back: the last VMA may be another's by now. */
int rebind_return(struct pt_regs *ctx)
{
	struct entry entry;

	if (!slot_take(SLOT_REBIND, &entry) || !entry.vma)
		return 0;
	if (VMA_MM(entry.vma) == entry.mm && VMA_POLICY(entry.vma) == entry.arg[0])
		rebind_tell(ctx, &entry, 1);
	else
		count_lost_at(CDM_PROBE_MPOL_REBIND, CDM_LOST_READ, entry.mm, 0, ~0ULL);
	return 0;
}

/* __split_vma(mm, vma, addr, new_below) */
int split_entry(struct pt_regs *ctx)
{
	struct entry entry = {};
	u64 vma = PT_REGS_PARM2(ctx);

	slot_begin(SLOT_SPLIT);
	if (!wanted() || !is_watched(VMA_MM(vma)))
		return 0;
	entry_vma(&entry, vma);
	entry.probe = CDM_PROBE_VMA_SPLIT;
	entry.arg[0] = PT_REGS_PARM3(ctx);
	entry.start = VMA_START(vma);
	entry.end = VMA_END(vma);
	slot_put(SLOT_SPLIT, &entry);
	return 0;
}

int split_return(struct pt_regs *ctx)
{
	struct entry entry;
	struct cdm_event *e;

	if (!slot_take(SLOT_SPLIT, &entry) || (int)PT_REGS_RC(ctx))
		return 0;
	e = event_new(CDM_EV_VMA_SPLIT, CDM_PROBE_VMA_SPLIT, entry.ts, 0, entry.mm);
	if (!e)
		return 0;
	event_vma(e, entry.vma);
	event_entry(e, &entry);
	e->start = entry.start;
	e->end = entry.end;
	e->addr = entry.arg[0];
	event_submit(e);
	return 0;
}

/* @vma is going to change in [start, end): it is worth to be told of. */
static __always_inline int flags_entry(u64 vma, u64 start, u64 end, u64 kept, u8 probe)
{
	struct entry entry = {};

	slot_begin(SLOT_FLAGS);
	if (!wanted())
		return 0;
	entry_vma(&entry, vma);
	entry.probe = probe;
	entry.arg[0] = kept;
	entry.start = start;
	entry.end = end;
	read_policy(VMA_POLICY(vma), &entry.nodes);
	if (NAMES_CDM(entry.nodes) || entry.flags & CDM_MASK)
		watch(entry.mm);
	if (is_watched(entry.mm))
		slot_put(SLOT_FLAGS, &entry);
	return 0;
}

/*
 * What a function that may merge the VMA leaves behind is where it was told to
 * leave it; where it fails it has not merged, and the VMA is still there.
 */
static __always_inline int flags_return(struct pt_regs *ctx)
{
	struct entry entry;
	struct cdm_event *e;
	u64 vma;

	if (!slot_take(SLOT_FLAGS, &entry))
		return 0;
	vma = (int)PT_REGS_RC(ctx) ? entry.vma : READ_FIELD(entry.arg[0], u64, 0);
	if (VMA_FLAGS(vma) == entry.flags)
		return 0;
	e = event_new(CDM_EV_FLAGS, entry.probe, entry.ts, vma, 0);
	if (!e)
		return 0;
	event_vma(e, vma);
	event_entry(e, &entry);
	e->addr = entry.start;
	e->size = entry.end - entry.start;
	e->ret = PT_REGS_RC(ctx);
	event_stack(e, ctx);
	event_submit(e);
	return 0;
}

/* mprotect_fixup(tlb, vma, pprev, start, end, newflags) */
int mprotect_entry(struct pt_regs *ctx)
{
	return flags_entry(PT_REGS_PARM2(ctx), PT_REGS_PARM4(ctx), PT_REGS_PARM5(ctx),
			   PT_REGS_PARM3(ctx), CDM_PROBE_MPROTECT_FIXUP);
}

int mprotect_return(struct pt_regs *ctx)
{
	return flags_return(ctx);
}

/* mlock_fixup(vma, prev, start, end, newflags) */
int mlock_entry(struct pt_regs *ctx)
{
	return flags_entry(PT_REGS_PARM1(ctx), PT_REGS_PARM3(ctx), PT_REGS_PARM4(ctx),
			   PT_REGS_PARM2(ctx), CDM_PROBE_MLOCK_FIXUP);
}

int mlock_return(struct pt_regs *ctx)
{
	return flags_return(ctx);
}

/* vma_merge(mm, prev, addr, end, vm_flags, ...) */
int merge_entry(struct pt_regs *ctx)
{
	struct entry entry = {};

	slot_begin(SLOT_MERGE);
	entry.mm = PT_REGS_PARM1(ctx);
	if (!is_watched(entry.mm) || !wanted())
		return 0;
	entry.ts = bpf_ktime_get_ns();
	entry.probe = CDM_PROBE_VMA_MERGE;
	entry.start = PT_REGS_PARM3(ctx);
	entry.end = PT_REGS_PARM4(ctx);
	entry.flags = PT_REGS_PARM5(ctx);
	entry.lock = CDM_LOCK(mmap_lock_state(entry.mm), 0);
	slot_put(SLOT_MERGE, &entry);
	return 0;
}

/*
 * It returns what [addr, end) has become part of, or NULL. madvise() has no
 * function that is told of the VMA it changes, so what it asks for here is told;
 * it then splits the VMA and writes the flags.
 */
int merge_return(struct pt_regs *ctx)
{
	u64 vma = PT_REGS_RC(ctx);
	struct entry entry, *call, *range = slot_open(SLOT_MBIND_RANGE);
	struct cdm_event *e;

	/* Also where the merge is not told: the VMA may prove to be tagged later. */
	if (range)
		range->merge |= vma ? MERGE_DONE : MERGE_NONE;
	if (!slot_take(SLOT_MERGE, &entry))
		return 0;
	call = slot_open(SLOT_CALL);
	if (!vma && !(call && call->probe == CDM_PROBE_SYS_MADVISE))
		return 0;
	e = event_new(vma ? CDM_EV_VMA_MERGE : CDM_EV_FLAGS, CDM_PROBE_VMA_MERGE,
		      entry.ts, vma, entry.mm);
	if (!e)
		return 0;
	if (vma) {
		event_vma(e, vma);
	} else {
		e->bits |= CDM_BIT_VMA_UNREAD;
		e->mm = pointer_id(entry.mm);
		e->start = entry.start;
		e->end = entry.end;
		e->flags_before = e->flags_after = entry.flags;
		e->lock_exit = CDM_LOCK(mmap_lock_state(entry.mm), 0);
		e->policy = CDM_POLICY_UNREAD;
	}
	e->lock_entry = entry.lock;
	e->addr = entry.start;
	e->size = entry.end - entry.start;
	event_submit(e);
	return 0;
}

/* perf_event_mmap(vma): mmap, brk and a stack call it when a VMA is new or grown */
int vma_new(struct pt_regs *ctx)
{
	u64 vma = PT_REGS_PARM1(ctx);
	struct entry *call;
	struct cdm_event *e;

	if (!is_watched(VMA_MM(vma)) || !wanted())
		return 0;
	/* So does mprotect, of which more is told. */
	call = slot_open(SLOT_CALL);
	if (call && call->probe == CDM_PROBE_SYS_MPROTECT)
		return 0;
	e = event_new(CDM_EV_VMA_NEW, CDM_PROBE_VMA_NEW, 0, vma, 0);
	if (!e)
		return 0;
	event_vma(e, vma);
	event_submit(e);
	return 0;
}

/*
 * unmap_vmas(tlb, mt, vma, start, end): nobody finds these VMAs any more. Told
 * when the pages are, which tell of their VMA as well.
 */
int unmap_entry(struct pt_regs *ctx)
{
	struct entry entry = {}, *exiting;

	slot_begin(SLOT_UNMAP);
	entry.mm = VMA_MM(PT_REGS_PARM3(ctx));
	if (!is_watched(entry.mm) || !wanted())
		return 0;
	/* One event tells of the end of them all. */
	exiting = slot_open(SLOT_EXIT_MMAP);
	if (exiting && exiting->mm == entry.mm)
		return 0;
	entry.ts = bpf_ktime_get_ns();
	entry.probe = CDM_PROBE_VMA_FREE;
	entry.start = PT_REGS_PARM4(ctx);
	entry.end = PT_REGS_PARM5(ctx);
	entry.lock = CDM_LOCK(mmap_lock_state(entry.mm), 0);
	slot_put(SLOT_UNMAP, &entry);
	return 0;
}

int unmap_return(struct pt_regs *ctx)
{
	struct entry entry;
	struct cdm_event *e;

	if (!slot_take(SLOT_UNMAP, &entry))
		return 0;
	e = event_new(CDM_EV_VMA_FREE, CDM_PROBE_VMA_FREE, entry.ts, 0, entry.mm);
	if (!e)
		return 0;
	e->mm = pointer_id(entry.mm);
	e->addr = e->start = entry.start;
	e->end = entry.end;
	e->size = entry.end - entry.start;
	e->lock_entry = entry.lock;
	e->lock_exit = CDM_LOCK(mmap_lock_state(entry.mm), 0);
	event_submit(e);
	return 0;
}

/* ksm_madvise(vma, start, end, advice, vm_flags) */
int ksm_entry(struct pt_regs *ctx)
{
	struct entry entry = {};

	slot_begin(SLOT_KSM_MADVISE);
	if (!wanted())
		return 0;
	entry_vma(&entry, PT_REGS_PARM1(ctx));
	entry.probe = CDM_PROBE_KSM_MADVISE;
	entry.start = PT_REGS_PARM2(ctx);
	entry.end = PT_REGS_PARM3(ctx);
	entry.arg[0] = PT_REGS_PARM4(ctx);
	entry.arg[1] = PT_REGS_PARM5(ctx);
	entry.flags = READ_FIELD(entry.arg[1], u64, 0);
	slot_put(SLOT_KSM_MADVISE, &entry);
	return 0;
}

int ksm_return(struct pt_regs *ctx)
{
	struct entry entry;
	struct cdm_event *e;

	if (!slot_take(SLOT_KSM_MADVISE, &entry))
		return 0;
	/* mbind() asks every VMA to be unmerged: that most were not is no news. */
	if (entry.flags == READ_FIELD(entry.arg[1], u64, 0) &&
	    !(entry.flags & CDM_MASK))
		return 0;
	e = event_new(CDM_EV_KSM_ADVICE, CDM_PROBE_KSM_MADVISE, entry.ts, entry.vma, 0);
	if (!e)
		return 0;
	event_vma(e, entry.vma);
	event_entry(e, &entry);
	e->addr = entry.start;
	e->size = entry.end - entry.start;
	e->arg = entry.arg[0];
	e->flags_after = READ_FIELD(entry.arg[1], u64, 0);
	e->ret = PT_REGS_RC(ctx);
	event_submit(e);
	return 0;
}

/*
 * exit_mmap(mm). Others can still migrate and reclaim its pages while it goes on, and
 * make it worth watching: so every one is noted, and its end is told when nothing is
 * mapped any more.
 */
int exit_entry(struct pt_regs *ctx)
{
	struct entry entry = {};

	slot_begin(SLOT_EXIT_MMAP);
	/* Whoever lets go of it last ends it, be it the recorder that looked at it. */
	if (!is_enabled())
		return 0;
	entry.mm = PT_REGS_PARM1(ctx);
	entry.ts = bpf_ktime_get_ns();
	entry.probe = CDM_PROBE_EXIT_MMAP;
	slot_put(SLOT_EXIT_MMAP, &entry);
	return 0;
}

/* unmap_vmas(tlb, mt, vma, ...): in exit_mmap(), with the gather that it finishes. */
int exit_unmaps(struct pt_regs *ctx)
{
	struct entry *entry = slot_open(SLOT_EXIT_MMAP);

	if (entry && entry->mm == VMA_MM(PT_REGS_PARM3(ctx)))
		entry->arg[0] = PT_REGS_PARM1(ctx);
	return 0;
}

static __always_inline void exit_tell(struct entry *entry)
{
	struct cdm_event *e;

	if (!is_told(entry->mm))
		return;
	e = event_new(CDM_EV_MM_EXIT, CDM_PROBE_EXIT_MMAP, entry->ts, 0, entry->mm);
	if (e) {
		e->mm = pointer_id(entry->mm);
		event_submit(e);
	}
	watched.delete(&entry->mm);
}

/*
 * tlb_finish_mmu(tlb): of the gather of unmap_vmas(), all is unmapped; before that,
 * the tables of an LDT have one of their own. exit_mmap()'s return can be missed.
 */
int exit_unmapped(struct pt_regs *ctx)
{
	struct entry entry, *exiting = slot_open(SLOT_EXIT_MMAP);

	if (exiting && exiting->arg[0] == PT_REGS_PARM1(ctx) &&
	    slot_take(SLOT_EXIT_MMAP, &entry))
		exit_tell(&entry);
	return 0;
}

/* An mm without a VMA, such as a fork's that failed, unmaps nothing. */
int exit_return(struct pt_regs *ctx)
{
	struct entry entry;

	if (slot_take(SLOT_EXIT_MMAP, &entry))
		exit_tell(&entry);
	return 0;
}

/* --- snapshots ---------------------------------------------------------- */

static __always_inline int is_recorder(void)
{
	return bpf_get_current_pid_tgid() >> 32 == RECORDER && is_enabled();
}

/* show_numa_map(m, vma): one line of /proc/PID/numa_maps */
int snapshot_entry(struct pt_regs *ctx)
{
	struct entry entry = {};

	slot_begin(SLOT_SNAPSHOT);
	if (!is_recorder())
		return 0;
	entry_vma(&entry, PT_REGS_PARM2(ctx));
	entry.probe = CDM_PROBE_SNAPSHOT;
	/* m->private: a numa_maps_private, which begins with a proc_maps_private. */
	entry.arg[0] = READ_FIELD(PT_REGS_PARM1(ctx), u64, OFF_seq_file_private);
	slot_put(SLOT_SNAPSHOT, &entry);
	return 0;
}

/* Pages of one VMA on one node, as numa_maps counts them. */
static __always_inline u64 counted(u64 private, int nid)
{
	return READ_FIELD(private + OFF_numa_maps_private_md + OFF_numa_maps_node +
			  nid * sizeof(u64), u64, 0);
}

static __always_inline u32 looked_at(u64 private)
{
	return READ_FIELD(READ_FIELD(private, u64, OFF_proc_maps_private_task), u32,
			  OFF_task_struct_tgid);
}

int snapshot_return(struct pt_regs *ctx)
{
	struct entry entry;
	struct cdm_event *e;
	u64 nodes, there = 0;
	int nid, about;

	if (!slot_take(SLOT_SNAPSHOT, &entry))
		return 0;
#pragma unroll
	for (nid = 0; nid < 64; nid++)
		if (MEMORY_NODES >> nid & 1 && IS_FOLLOWED(nid) &&
		    !vma_is_hugetlb(entry.vma) && counted(entry.arg[0], nid))
			there |= 1ULL << nid;
	read_policy(VMA_POLICY(entry.vma), &nodes);
	about = there || NAMES_CDM(nodes) || entry.flags & CDM_MASK;
	if (about)
		watch(entry.mm);
	if (!about && !is_watched(entry.mm))
		return 0;
	e = event_new(CDM_EV_SNAP_VMA, CDM_PROBE_SNAPSHOT, entry.ts, entry.vma, 0);
	if (!e)
		return 0;
	event_vma(e, entry.vma);
	e->pid = looked_at(entry.arg[0]);
	event_submit(e);
#pragma unroll
	for (nid = 0; nid < 64; nid++) {
		if (!(MEMORY_NODES >> nid & 1) || !(there >> nid & 1))
			continue;
		e = event_new(CDM_EV_SNAP_PAGES, CDM_PROBE_SNAPSHOT, entry.ts,
			      entry.vma, 0);
		if (!e)
			continue;
		event_vma(e, entry.vma);
		e->pid = looked_at(entry.arg[0]);
		e->node = nid;
		e->size = counted(entry.arg[0], nid) * PAGE_SIZE;
		event_submit(e);
	}
	return 0;
}

/* proc_map_release(inode, file): the recorder has read it all */
int snapshot_end(struct pt_regs *ctx)
{
	u64 seq, private, mm;
	struct cdm_event *e;

	if (!is_recorder())
		return 0;
	seq = READ_FIELD(PT_REGS_PARM2(ctx), u64, OFF_file_private_data);
	private = READ_FIELD(seq, u64, OFF_seq_file_private);
	mm = READ_FIELD(private, u64, OFF_proc_maps_private_mm);
	if (!is_watched(mm))
		return 0;
	e = event_new(CDM_EV_SNAP_MM, CDM_PROBE_SNAPSHOT, 0, 0, mm);
	if (!e)
		return 0;
	e->mm = pointer_id(mm);
	e->pid = looked_at(private);
	event_submit(e);
	return 0;
}
