// SPDX-License-Identifier: GPL-2.0
/* --- VMAs --------------------------------------------------------------- */

/* @vma is part of what mbind() works on, [start, end), and is so before it is. */
static __always_inline void range_seen(u64 vma, u64 start, u64 end)
{
	struct cdm_event *e;

	if (!is_watched(VMA_MM(vma)))
		return;
	e = event_new(CDM_EV_VMA_SEEN, CDM_PROBE_MBIND_RANGE, 0, vma, 0);
	if (!e)
		return;
	event_vma(e, vma);
	e->addr = start;
	e->size = end - start;
	event_submit(e);
}

/* The policy of @vma is to be @new_pol in [start, end); @kept: where it is found then. */
static __always_inline int range_begin(u64 vma, u64 start, u64 end, u64 new_pol, u64 kept)
{
	struct entry entry = {};
	u64 asked;

	slot_begin(SLOT_MBIND_RANGE);
	if (!wanted_vma(vma))
		return 0;
	entry_vma(&entry, vma);
	entry.probe = CDM_PROBE_MBIND_RANGE;
	entry.arg[0] = kept;
	entry.start = VMA_START(vma);
	entry.end = VMA_END(vma);
	if (start > entry.start)
		entry.start = start;
	if (end < entry.end)
		entry.end = end;
	entry.policy = read_policy(VMA_POLICY(vma), &entry.nodes);
	entry.arg[1] = read_policy(new_pol, &asked);
	entry.arg[2] = asked;

	if (NAMES_CDM(asked | entry.nodes) || entry.flags & CDM_MASK)
		watch(entry.mm);
	slot_put(SLOT_MBIND_RANGE, &entry);
	range_seen(vma, entry.start, entry.end);
	return 0;
}

/* What was begun is done, with that result; @vma is what holds the range, 0: unknown. */
static __always_inline int range_tell(struct pt_regs *ctx, struct entry *entry, u64 vma,
				      s64 ret)
{
	struct cdm_event *e;

	/* A kernel that tags for a policy of RAM nodes must not go unseen. */
	if (vma && VMA_FLAGS(vma) & CDM_MASK)
		watch(entry->mm);
	if (!is_watched(entry->mm))
		return 0;
	e = event_new(CDM_EV_POLICY, CDM_PROBE_MBIND_RANGE, entry->ts, vma, entry->mm);
	if (!e)
		return 0;
	e->ret = ret;
	if (!vma) {
		/* It failed when it had merged, or nobody saw whether it had. */
		e->bits |= CDM_BIT_VMA_UNREAD;
		e->mm = pointer_id(entry->mm);
		e->vma = pointer_id(entry->vma) >> 32;
		e->start = entry->start;
		e->end = entry->end;
		e->flags_after = entry->flags;
		e->lock_exit = CDM_LOCK(mmap_lock_state(entry->mm), 0);
		e->policy = CDM_POLICY_UNREAD;
	} else {
		event_vma(e, vma);
	}
	event_entry(e, entry);
	e->addr = entry->start;
	e->size = entry->end - entry->start;
	e->other_policy = entry->policy;
	e->other = entry->nodes;
	if (e->flags_before != e->flags_after)
		event_stack(e, ctx);
	event_submit(e);
	return 0;
}

/*
 * mbind_range(vmi, vma, prev, start, end, new_pol), once for every VMA of the
 * range. What it leaves behind is in *prev; vma itself may have been freed, by
 * vma_merge() and nobody else: it splits off what lies beside the range, and has the
 * mm locked for write all the time.
 */
int mbind_range_entry(struct pt_regs *ctx)
{
	return range_begin(ARG(mbind_range_entry, vma), ARG(mbind_range_entry, start),
			   ARG(mbind_range_entry, end), ARG(mbind_range_entry, new_pol),
			   ARG(mbind_range_entry, prev));
}

int mbind_range_return(struct pt_regs *ctx)
{
	struct entry entry;
	u64 vma;

	if (!slot_take(SLOT_MBIND_RANGE, &entry))
		return 0;
	if (!PT_REGS_RC(ctx))
		vma = READ_FIELD(entry.arg[0], u64, 0);
	else
		vma = entry.merge == MERGE_NONE ? entry.vma : 0;
	return range_tell(ctx, &entry, vma, PT_REGS_RC(ctx));
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
	      (flags | entry->flags) & CDM_MASK) || !vma_in_addr(vma))
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
	entry.mm = ARG(rebind_entry, mm);
	if (!wanted_mm(entry.mm))
		return 0;
	entry.ts = bpf_ktime_get_ns();
	entry.probe = CDM_PROBE_MPOL_REBIND;
	slot_put(SLOT_REBIND, &entry);
	return 0;
}

/*
 * The VMA to which a loop over the list of them has come (until 6.0), of which it is
 * known that it has this policy: none before it has, that is not done with.
 */
static __always_inline u64 listed_vma(struct entry *entry, u64 policy)
{
	u64 vma = entry->arg[1];
	int i;

	if (vma && policy && VMA_POLICY(vma) == policy)
		return vma;
	vma = vma ? READ_FIELD(vma, u64, OFF_vm_area_struct_vm_next) :
		    READ_FIELD(entry->mm, u64, OFF_mm_struct_mmap);
	for (i = 0; i < 256 && vma && VMA_POLICY(vma) != policy; i++)
		vma = READ_FIELD(vma, u64, OFF_vm_area_struct_vm_next);
	if (vma)
		entry->arg[1] = vma;
	return vma;
}

/*
 * mpol_rebind_policy(policy, nodes), and mpol_rebind_nodemask() alike, for each VMA
 * that mpol_rebind_mm() comes to: with the one before it is done. Told of one twice,
 * this sees nothing changed yet.
 */
int rebind_next(struct pt_regs *ctx)
{
	struct entry *entry = slot_open(SLOT_REBIND);
	u64 policy = ARG(rebind_next, pol), vma;

	if (!entry)
		return 0;
	rebind_tell(ctx, entry, 0);
	vma = HAS(OFF_mm_struct_mmap) ? listed_vma(entry, policy) :
					looped_vma(PT_REGS_SP(ctx), entry->mm);
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
	u64 vma = ARG(split_entry, vma);

	slot_begin(SLOT_SPLIT);
	if (!wanted_vma(vma) || !is_watched(VMA_MM(vma)))
		return 0;
	entry_vma(&entry, vma);
	entry.probe = CDM_PROBE_VMA_SPLIT;
	entry.arg[0] = ARG(split_entry, addr);
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
	if (!wanted_vma(vma))
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
	return flags_entry(ARG(mprotect_entry, vma), ARG(mprotect_entry, start),
			   ARG(mprotect_entry, end), ARG(mprotect_entry, pprev),
			   CDM_PROBE_MPROTECT_FIXUP);
}

int mprotect_return(struct pt_regs *ctx)
{
	return flags_return(ctx);
}

/* mlock_fixup(vma, prev, start, end, newflags) */
int mlock_entry(struct pt_regs *ctx)
{
	return flags_entry(ARG(mlock_entry, vma), ARG(mlock_entry, start),
			   ARG(mlock_entry, end), ARG(mlock_entry, prev),
			   CDM_PROBE_MLOCK_FIXUP);
}

int mlock_return(struct pt_regs *ctx)
{
	return flags_return(ctx);
}

static __always_inline int merge_begin(u64 mm, u64 start, u64 end, u64 flags)
{
	struct entry entry = {};

	slot_begin(SLOT_MERGE);
	if (!is_watched(mm) || !wanted_mm(mm))
		return 0;
	entry.ts = bpf_ktime_get_ns();
	entry.probe = CDM_PROBE_VMA_MERGE;
	entry.mm = mm;
	entry.start = start;
	entry.end = end;
	entry.flags = flags;
	entry.lock = CDM_LOCK(mmap_lock_state(mm), 0);
	slot_put(SLOT_MERGE, &entry);
	return 0;
}

/*
 * @vma: what [start, end) has become part of, or 0. madvise() has no function that is
 * told of the VMA it changes, so what it asks for here is told; it then writes the
 * flags, where it has not split the VMA yet after that.
 */
static __always_inline int merge_tell(u64 vma)
{
	struct entry entry, *call;
	struct cdm_event *e;

	if (!slot_take(SLOT_MERGE, &entry))
		return 0;
	call = slot_open(SLOT_CALL);
	if (!vma && !(call && call->probe == CDM_PROBE_SYS_MADVISE))
		return 0;
	if (!(vma ? vma_in_addr(vma) : in_addr(entry.start, entry.end)))
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

/*
 * vma_merge(mm, prev, addr, end, vm_flags, ...) returns the VMA that the range is part of
 * now, or NULL. Since 6.12 vma_modify(vmg) merges or splits, and returns the VMA that the
 * range is part of, or is: then nothing was merged. Or an error, and none was.
 */
int merge_entry(struct pt_regs *ctx)
{
	return merge_begin(ARG(merge_entry, mm), ARG(merge_entry, addr),
			   ARG(merge_entry, end), ARG(merge_entry, vm_flags));
}

int merge_return(struct pt_regs *ctx)
{
	u64 vma = PT_REGS_RC(ctx);
	struct entry *asked = slot_open(SLOT_MERGE), *range = slot_open(SLOT_MBIND_RANGE);

	if (vma >= -4095ULL)
		vma = 0;
	/* A merge is told of where it is watched; within mbind_range() it is at any rate. */
	if (vma && !asked)
		asked = range;
	if (vma && asked && VMA_START(vma) == asked->start && VMA_END(vma) == asked->end)
		vma = 0;
	/* Also where the merge is not told: the VMA may prove to be tagged later. */
	if (range)
		range->merge |= vma ? MERGE_DONE : MERGE_NONE;
	return merge_tell(vma);
}

/* vma_merge_new_range(vmg): the same of what mmap(), brk() and mremap() make */
int merge_new_entry(struct pt_regs *ctx)
{
	return merge_begin(ARG(merge_new_entry, mm), ARG(merge_new_entry, addr),
			   ARG(merge_new_entry, end), ARG(merge_new_entry, vm_flags));
}

int merge_new_return(struct pt_regs *ctx)
{
	return merge_tell(PT_REGS_RC(ctx));
}

static __always_inline int vma_is_new(u64 vma)
{
	struct cdm_event *e;

	if (!is_watched(VMA_MM(vma)) || !wanted_vma(vma))
		return 0;
	e = event_new(CDM_EV_VMA_NEW, CDM_PROBE_VMA_NEW, 0, vma, 0);
	if (!e)
		return 0;
	event_vma(e, vma);
	event_submit(e);
	return 0;
}

/* perf_event_mmap(vma): mmap, brk and a stack call it when a VMA is new or grown */
int vma_new(struct pt_regs *ctx)
{
	struct entry *call = slot_open(SLOT_CALL);

	/* So does mprotect, of which more is told. */
	if (call && call->probe == CDM_PROBE_SYS_MPROTECT)
		return 0;
	return vma_is_new(ARG(vma_new, vma));
}

/*
 * unmap_vmas(tlb, mt, vma, start, end): nobody finds these VMAs any more. Told
 * when the pages are, which tell of their VMA as well.
 */
int unmap_entry(struct pt_regs *ctx)
{
	struct entry entry = {}, *exiting;

	slot_begin(SLOT_UNMAP);
	entry.mm = VMA_MM(ARG(unmap_entry, vma));
	if (!is_watched(entry.mm) || !wanted_mm(entry.mm) ||
	    !in_addr(ARG(unmap_entry, start_addr), ARG(unmap_entry, end_addr)))
		return 0;
	/* One event tells of the end of them all. */
	exiting = slot_open(SLOT_EXIT_MMAP);
	if (exiting && exiting->mm == entry.mm)
		return 0;
	entry.ts = bpf_ktime_get_ns();
	entry.probe = CDM_PROBE_VMA_FREE;
	entry.start = ARG(unmap_entry, start_addr);
	entry.end = ARG(unmap_entry, end_addr);
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
	if (!wanted_vma(ARG(ksm_entry, vma)))
		return 0;
	entry_vma(&entry, ARG(ksm_entry, vma));
	entry.probe = CDM_PROBE_KSM_MADVISE;
	entry.start = ARG(ksm_entry, start);
	entry.end = ARG(ksm_entry, end);
	entry.arg[0] = (u32)ARG(ksm_entry, advice);
	entry.arg[1] = ARG(ksm_entry, vm_flags);
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
	if (!is_enabled() || is_viewer())
		return 0;
	entry.mm = ARG(exit_entry, mm);
	entry.ts = bpf_ktime_get_ns();
	entry.probe = CDM_PROBE_EXIT_MMAP;
	slot_put(SLOT_EXIT_MMAP, &entry);
	return 0;
}

/* unmap_vmas(tlb, mt, vma, ...): in exit_mmap(), with the gather that it finishes. */
int exit_unmaps(struct pt_regs *ctx)
{
	struct entry *entry = slot_open(SLOT_EXIT_MMAP);

	if (entry && entry->mm == VMA_MM(ARG(exit_unmaps, vma)))
		entry->arg[0] = ARG(exit_unmaps, tlb);
	return 0;
}

static __always_inline void exit_tell(struct entry *entry)
{
	struct cdm_event *e;

	unfollow(entry->mm);
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

	if (exiting && exiting->arg[0] == ARG(exit_unmapped, tlb) &&
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
