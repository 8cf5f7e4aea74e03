// SPDX-License-Identifier: GPL-2.0
/*
 * --- older kernels -------------------------------------------------------
 *
 * Functions that later have a VMA among their arguments, and here have none: somebody
 * who calls them, directly or not, has. What he was told is kept for them.
 */

/* Compiled where the kernel is one: with bcc it would cost all others a second. */
#if MAYBE(ARG_rmap_remove_untold_page || ARG_rmap_add_file_untold_page ||	\
	  ARG_range_next_mm || ARG_numa_huge_entry_vma || ARG_vma_linked_vma)

/*
 * The VMA that this task works in: of these functions, the one that was called last.
 * hugetlb_cow() may call __unmap_hugepage_range(), and then has none: but pages of hugetlb
 * are not told of. What is kept has its mm beside it, as the VMA may be freed where a
 * return was missed.
 */
static __always_inline int work_begin(u64 vma)
{
	if (is_enabled())
		place_put(PLACE_WORK, VMA_MM(vma), vma, 0);
	return 0;
}

/*
 * unmap_page_range(tlb, vma, addr, end, details), and
 * __unmap_hugepage_range(tlb, vma, start, end, ref_page): a range is unmapped
 */
int work_zap(struct pt_regs *ctx)
{
	return work_begin(ARG(work_zap, vma));
}

/* hugetlb_cow(mm, vma, ...), try_to_merge_one_page(vma, page, kpage) */
int work_cow_huge(struct pt_regs *ctx)
{
	return work_begin(ARG(work_cow_huge, vma));
}

int work_merge(struct pt_regs *ctx)
{
	return work_begin(ARG(work_merge, vma));
}

/* wp_page_copy(vmf): while it allocates, the task may reclaim, which is a walk */
int work_cow(struct pt_regs *ctx)
{
	return work_begin(READ_FIELD(ARG(work_cow, vmf), u64, OFF_vm_fault_vma));
}

int work_end(struct pt_regs *ctx)
{
	place_drop(PLACE_WORK);
	return 0;
}

/*
 * hugepage_vma_revalidate(mm, address, vmap): khugepaged has taken the lock anew, and
 * the VMA that it goes on with is in *vmap when it returns. Nothing tells when it is
 * done with that; what else it does to pages has a walk, or is of a file:
 * collapse_pte_mapped_thp(mm, addr), which looks for a VMA of its own.
 */
int collapse_look(struct pt_regs *ctx)
{
	place_put(PLACE_COLLAPSE, ARG(collapse_look, vmap), 0, 0);
	return 0;
}

int collapse_found(struct pt_regs *ctx)
{
	u64 key = place_key(PLACE_COLLAPSE);
	struct place *place = places.lookup(&key);
	u64 vmap = place ? place->page : 0;

	place_drop(PLACE_COLLAPSE);
	if (!vmap || (int)PT_REGS_RC(ctx)) {
		place_drop(PLACE_WORK);
		return 0;
	}
	return work_begin(READ_FIELD(vmap, u64, 0));
}

int work_over(struct pt_regs *ctx)
{
	place_drop(PLACE_WORK);
	return 0;
}

/* The VMA in which @page loses an entry; 0: nobody has said. */
static __always_inline u64 worked_vma(u64 page)
{
	u64 key = place_key(PLACE_WALK);
	struct place *place = places.lookup(&key);

	/* A walk may be within the other, where that allocates: first things first. */
	if (place && page_head(place->page) == page_head(page))
		return place->vma;
	key = place_key(PLACE_WORK);
	place = places.lookup(&key);
	return place && VMA_MM(place->vma) == place->page ? place->vma : 0;
}

/* page_remove_rmap(page, compound), until 5.17 (commit cea86fe246b6) */
int rmap_remove_untold(struct pt_regs *ctx)
{
	u64 page = ARG(rmap_remove_untold, page), vma;

	if (!IS_FOLLOWED(page_node(page)))
		return 0;
	vma = worked_vma(page);
	if (!vma) {
		if (wanted())
			count_lost(CDM_PROBE_RMAP_REMOVE, CDM_LOST_READ);
		return 0;
	}
	return page_unmapped(ctx, page, vma,
			     ARG(rmap_remove_untold, compound) & 1 ? PMD_BYTES :
								     PAGE_SIZE);
}

/* The VMA in which a page of a file is about to get an entry. */
static __always_inline int file_begin(u64 page, u64 vma)
{
	if (!page || IS_FOLLOWED(page_node(page)))
		place_put(PLACE_FILE, page, vma, 0);
	return 0;
}

/* alloc_set_pte(vmf, page): of a fault, and of those around it */
int file_fault(struct pt_regs *ctx)
{
	return file_begin(ARG(file_fault, page),
			  READ_FIELD(ARG(file_fault, vmf), u64, OFF_vm_fault_vma));
}

/* remove_migration_pte(page, vma, addr, old), vm_insert_page(vma, addr, page) */
int file_remigrate(struct pt_regs *ctx)
{
	return file_begin(ARG(file_remigrate, page), ARG(file_remigrate, vma));
}

int file_insert(struct pt_regs *ctx)
{
	return file_begin(ARG(file_insert, page), ARG(file_insert, vma));
}

/* shmem_mfill_atomic_pte(dst_mm, dst_pmd, dst_vma, ...): its page is not there yet */
int file_fill(struct pt_regs *ctx)
{
	return file_begin(0, ARG(file_fill, dst_vma));
}

int file_filled(struct pt_regs *ctx)
{
	place_drop(PLACE_FILE);
	return 0;
}

/* page_add_file_rmap(page, compound), until 5.17 (the same commit) */
int rmap_add_file_untold(struct pt_regs *ctx)
{
	u64 page = ARG(rmap_add_file_untold, page), key = place_key(PLACE_FILE);
	struct place *place;

	if (!IS_FOLLOWED(page_node(page)))
		return 0;
	place = places.lookup(&key);
	if (!place || (place->page && page_head(place->page) != page_head(page))) {
		if (wanted())
			count_lost(CDM_PROBE_RMAP_ADD, CDM_LOST_READ);
		return 0;
	}
	return file_page_mapped(ctx, page, place->vma,
				ARG(rmap_add_file_untold, compound) & 1 ? PMD_BYTES :
									  PAGE_SIZE);
}

/*
 * migrate_misplaced_transhuge_page(mm, vma, pmd, entry, address, page, node), until 5.13
 * (commit c5b5a3dd2c1f): a migration of its own, with no migrate_pages() in it.
 */
int numa_huge_entry(struct pt_regs *ctx)
{
	u64 vma = ARG(numa_huge_entry, vma);
	struct entry entry = {};

	work_begin(vma);
	slot_begin(SLOT_MIGRATE);
	if (wanted_scene()) {
		entry.ts = bpf_ktime_get_ns();
		entry.sp = PT_REGS_SP(ctx);
		entry.probe = CDM_PROBE_NUMA_MIGRATE;
		entry.arg[0] = 5;	/* MR_NUMA_MISPLACED */
		slot_put(SLOT_MIGRATE, &entry);
	}
	return numa_move_begin(ARG(numa_huge_entry, page), vma,
			       (int)ARG(numa_huge_entry, node));
}

int numa_huge_return(struct pt_regs *ctx)
{
	struct entry entry;

	place_drop(PLACE_WORK);
	slot_take(SLOT_MIGRATE, &entry);
	return numa_move_told(ctx);
}

/*
 * mbind() where mbind_range() is one for the whole range (until 6.2, commit
 * f4e9e0e69468) or no function at all. It comes to its VMAs one by one, with the mm
 * locked for write: first all are looked at for their pages; then each of which the
 * policy is another is offered to vma_merge(), and is done with when the next one is, or
 * when the lock is given back.
 */
static __always_inline struct entry *open_mbind(void)
{
	struct entry *call = slot_open(SLOT_CALL);

	return call && call->probe == CDM_PROBE_SYS_MBIND ? call : 0;
}

static __always_inline void range_done(struct pt_regs *ctx)
{
	struct entry entry;
	u64 vma, nodes, policy;

	if (!slot_take(SLOT_MBIND_RANGE, &entry))
		return;
	vma = entry.vma;
	/* It may be freed, where nobody has seen what vma_merge() has returned. */
	if (!entry.merge) {
		count_lost_at(CDM_PROBE_MBIND_RANGE, CDM_LOST_UNPAIRED, entry.mm,
			      entry.start, entry.end);
		return;
	}
	policy = read_policy(VMA_POLICY(vma), &nodes);
	/* To split it, or to copy the policy, there was no memory. */
	range_tell(ctx, &entry, vma,
		   policy != entry.arg[1] || nodes != entry.arg[2] ? -12 : 0);
}

/* queue_pages_test_walk(start, end, walk): as it is before anything is done to it */
int range_look(struct pt_regs *ctx)
{
	u64 vma = READ_FIELD(ARG(range_look, walk), u64, OFF_mm_walk_vma);

	if (open_mbind() && wanted_vma(vma))
		range_seen(vma, ARG(range_look, start), ARG(range_look, end));
	return 0;
}

/* vma_merge(mm, prev, addr, end, ..., policy, ...): @prev holds addr, or ends before it */
int range_next(struct pt_regs *ctx)
{
	u64 prev = ARG(range_next, prev), addr = ARG(range_next, addr), vma = prev;

	if (!open_mbind())
		return 0;
	range_done(ctx);
	if (!prev)
		vma = READ_FIELD(ARG(range_next, mm), u64, OFF_mm_struct_mmap);
	else if (VMA_END(prev) <= addr)
		vma = READ_FIELD(prev, u64, OFF_vm_area_struct_vm_next);
	return range_begin(vma, addr, ARG(range_next, end), ARG(range_next, policy), 0);
}

/* It returns what the range is part of now; NULL: the VMA stays, and is split. */
int range_merged(struct pt_regs *ctx)
{
	struct entry *range = slot_open(SLOT_MBIND_RANGE);

	if (!range || !open_mbind())
		return 0;
	range->merge |= PT_REGS_RC(ctx) ? MERGE_DONE : MERGE_NONE;
	if (PT_REGS_RC(ctx))
		range->vma = PT_REGS_RC(ctx);
	return 0;
}

/* up_write(sem), of any semaphore; this one's mmap lock is held until it is done */
int range_last(struct pt_regs *ctx)
{
	struct entry *range = slot_open(SLOT_MBIND_RANGE);

	if (range && ARG(range_last, sem) == range->mm + OFF_mm_struct_mmap_lock)
		range_done(ctx);
	return 0;
}

/*
 * What perf_event_mmap() tells, where that is built without ftrace, and takes no probe
 * for it (kernel/events/Makefile, 5.10). vma_link(mm, vma, ...): a VMA is put among the
 * others of its mm; mremap()'s, too, of which more is told.
 */
int vma_linked(struct pt_regs *ctx)
{
	struct entry *call = slot_open(SLOT_CALL);

	if (call && call->probe == CDM_PROBE_SYS_MREMAP)
		return 0;
	return vma_is_new(ARG(vma_linked, vma));
}

/* expand_downwards(vma, address): a stack has grown, if it returns 0 */
int grow_begin(struct pt_regs *ctx)
{
	place_put(PLACE_GROW, 0, ARG(grow_begin, vma), 0);
	return 0;
}

int grow_end(struct pt_regs *ctx)
{
	u64 key = place_key(PLACE_GROW), vma;
	struct place *place = places.lookup(&key);

	vma = place ? place->vma : 0;
	place_drop(PLACE_GROW);
	return vma && !(int)PT_REGS_RC(ctx) ? vma_is_new(vma) : 0;
}

#endif
