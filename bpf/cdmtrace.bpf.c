// SPDX-License-Identifier: GPL-2.0
/*
 * What the probes share. One handler a logical event, thin entry points around it:
 * in calls, pages, vmas, snapshots and processes, which the loader puts behind this file.
 *
 * User space puts these before this file: offsets and bit numbers of the
 * traced kernel (see compat.h), and what is asked for:
 *
 *	CDM_NODES	mask of the CDM nodes among nodes 0 to 63
 *	CDM_MASK	the bit of vm_flags that is VM_CDM, 0 if there is none
 *	KEY0, KEY1	random numbers of this recording
 *	ALL		1: every node and address space, not only what is about CDM
 *	FOLLOW_PIDS	1: only the processes in the map tgids
 *	FOLLOW_CHILDREN	1: and what they fork
 *	FOLLOW_CGROUP	1: only tasks in the cgroup in the map cgroups, or below it
 *	FOLLOW_COMM	1: only tasks of this name: its 16 bytes are COMM0, COMM1
 *	ADDR_START, ADDR_END	only what has to do with these addresses; 0: all
 *	STACKS		2: of all that has one; 1: where vm_flags change; 0: none
 *	RECORDER	the recorder's own process, which is left out
 *	VIEWER		who shows what it records, and is left out, too; 0: nobody
 *	PMD_BYTES	bytes that one PMD maps
 *	MOVED_IS_ZERO	whether migrate_misplaced_folio() returns 0 for a page that it moved
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

/* events.h, compat.h, maps.h and filters.h are put here by the loader */

#define NAMES_CDM(nodes)	(((nodes) & CDM_NODES) != 0)
#define IS_CDM_NODE(nid)	((nid) >= 0 && (nid) < 64 && NAMES_CDM(1ULL << (nid)))
/* Pages of this node are told of. */
#define IS_FOLLOWED(nid)	(ALL || IS_CDM_NODE(nid))

/* The policy at @pol: mode and flags packed as CDM_POLICY() says, and nodes. */
static __always_inline u8 read_policy(u64 pol, u64 *nodes)
{
	u16 mode, flags;

	*nodes = 0;
	if (!pol)
		return CDM_MPOL_DEFAULT;
	mode = READ_FIELD(pol, u16, OFF_mempolicy_mode);
	flags = READ_FIELD(pol, u16, OFF_mempolicy_flags);
	if (policy_is_local(mode, flags))
		mode = CDM_MPOL_LOCAL;
	if (mode != CDM_MPOL_LOCAL)
		*nodes = policy_nodes(pol, mode) & NODEMASK_MASK;
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
 * Pages come and go by the million. The last quarter of the ring is for what changes
 * VMAs and policies: no flood of pages keeps that from being told.
 */
static __always_inline int ring_is_kept(void)
{
	return ring_used() >= RING_BYTES / 4 * 3;
}

/*
 * Take room for an event about @vma, or about @mm where that is 0, and fill in
 * who, when and where. @page: it is about no more than a page.
 */
static __always_inline struct cdm_event *event_begin(u8 kind, u8 probe, u64 ts_entry,
						     u64 vma, u64 mm, int page)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();
	struct entry *call = slot_open(SLOT_CALL);
	struct cdm_event *e = 0;

	/* Of what is told of once, the end is told as well: its id is given anew. */
	watch(vma ? VMA_MM(vma) : mm);
	if (!(page && ring_is_kept())) {
		report_comm(pid_tgid);
		e = events.ringbuf_reserve(sizeof(*e));
	}
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

static __always_inline struct cdm_event *event_new(u8 kind, u8 probe, u64 ts_entry,
						   u64 vma, u64 mm)
{
	return event_begin(kind, probe, ts_entry, vma, mm, 0);
}

static __always_inline struct cdm_event *event_page(u8 kind, u8 probe, u64 ts_entry,
						    u64 vma)
{
	return event_begin(kind, probe, ts_entry, vma, 0, 1);
}

/*
 * Whoever drains the ring looks again and again, and sleeps in between. He is woken when
 * a quarter is taken; some times more, as two cpus may pass that mark at once.
 */
static __always_inline void event_submit(struct cdm_event *e)
{
	u64 beyond = ring_used() - RING_BYTES / 4;

	events.ringbuf_submit(e, beyond < 64 * sizeof(*e) ? BPF_RB_FORCE_WAKEUP :
							    BPF_RB_NO_WAKEUP);
}

/* The VMA as it is now. Flags before are the same unless the caller knows. */
static __always_inline void event_vma(struct cdm_event *e, u64 vma)
{
	struct vma_head head = read_vma(vma);
	u64 mm = HEAD_MM(&head);

	e->vma = pointer_id(vma) >> 32;
	e->mm = pointer_id(mm);
	e->start = HEAD_START(&head);
	e->end = HEAD_END(&head);
	e->flags_before = e->flags_after = HEAD_FLAGS(&head);
	e->policy = read_policy(VMA_POLICY(vma), &e->nodes);
	e->lock_entry = e->lock_exit = vma_lock_state(vma, mm);
	if (!mm)
		e->bits |= CDM_BIT_UNLINKED;
	else if (mm != READ_FIELD(bpf_get_current_task(), u64, OFF_task_struct_mm))
		e->bits |= CDM_BIT_FOREIGN;
	if (VMA_FILE(vma))
		e->bits |= CDM_BIT_FILE;
}

static __always_inline void entry_vma(struct entry *entry, u64 vma)
{
	struct vma_head head = read_vma(vma);

	entry->ts = bpf_ktime_get_ns();
	entry->vma = vma;
	entry->mm = HEAD_MM(&head);
	entry->flags = HEAD_FLAGS(&head);
	entry->lock = vma_lock_state(vma, entry->mm);
}

static __always_inline void event_stack(struct cdm_event *e, struct pt_regs *ctx)
{
#if MAYBE(STACKS)
	int id;

	if (!STACKS || (STACKS == 1 && e->flags_before == e->flags_after))
		return;
	id = stacks.get_stackid(ctx, 0);
	e->stack = id < 0 ? 0 : id + 1;
#endif
}

/* What a return adds to event_vma(): flags and lock as they were at entry. */
static __always_inline void event_entry(struct cdm_event *e, struct entry *entry)
{
	e->flags_before = entry->flags;
	e->lock_entry = entry->lock;
}
