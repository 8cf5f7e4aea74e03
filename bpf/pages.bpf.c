// SPDX-License-Identifier: GPL-2.0
/* --- pages -------------------------------------------------------------- */

static __always_inline void allocation_begin(u32 tid, struct allocation *begun)
{
	/* If it cannot be new, there is one whose return was missed, or no room. */
	if (!allocations.insert(&tid, begun))
		return;
	allocation_missed(tid);
	if (allocations.update(&tid, begun))
		count_lost_at(CDM_PROBE_ALLOC, CDM_LOST_MAP, begun->mm, 0, ~0ULL);
}

/* alloc_pages_vma() and its successors: (gfp, order, vma, addr, ...) */
int alloc_entry(struct pt_regs *ctx)
{
	struct allocation begun = {};
	u64 vma = ARG(alloc_entry, vma);
	u32 tid = bpf_get_current_pid_tgid();
	struct vma_head head;

	if (!vma || !wanted_vma(vma)) {
		allocation_missed(tid);
		return 0;
	}
	head = read_vma(vma);
	begun.ts = bpf_ktime_get_ns();
	begun.vma = vma;
	begun.mm = HEAD_MM(&head);
	begun.addr = ARG(alloc_entry, addr);
	begun.flags = HEAD_FLAGS(&head);
	begun.order = ARG(alloc_entry, order);
	begun.lock = vma_lock_state(vma, HEAD_MM(&head));
	begun.policy = CDM_POLICY_UNREAD;
	allocation_begin(tid, &begun);
	return 0;
}

/*
 * The fault for which a page is allocated for a VMA that no mm has; 0: none. Its
 * return may have been missed, and what was its VMA then may be another one by now.
 */
static __always_inline struct place *open_fault(void)
{
	u64 key = place_key(PLACE_SHMEM);
	struct place *fault = places.lookup(&key);

	if (!fault || VMA_MM(fault->vma) != fault->page ||
	    fault->addr < VMA_START(fault->vma) || fault->addr >= VMA_END(fault->vma))
		return 0;
	return fault;
}

/*
 * shmem_alloc_folio(gfp, order, info, index): by folio_alloc_mpol() (since 6.7), and for
 * no VMA; before, by vma_alloc_folio() for one on the stack, that no mm has. Told of
 * what is allocated in a fault that is told of, and of what a task does otherwise.
 */
int shmem_alloc_entry(struct pt_regs *ctx)
{
	struct allocation begun = {};
	u32 tid = bpf_get_current_pid_tgid();

	if (!wanted() && !open_fault()) {
		allocation_missed(tid);
		return 0;
	}
	begun.ts = bpf_ktime_get_ns();
	begun.order = ARG(shmem_alloc_entry, order);
	begun.policy = CDM_POLICY_UNREAD;
	allocation_begin(tid, &begun);
	return 0;
}

/* shmem_fault(vmf): what is allocated in it, for a VMA on the stack, is for this */
int shmem_begin(struct pt_regs *ctx)
{
	u64 vmf = ARG(shmem_begin, vmf), vma = READ_FIELD(vmf, u64, OFF_vm_fault_vma);

	if (wanted_vma(vma))
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
	u32 tid = bpf_get_current_pid_tgid();
	struct allocation *begun = allocations.lookup(&tid);

	if (begun)
		begun->policy = read_policy(PT_REGS_RC(ctx), &begun->nodes);
	return 0;
}

static __always_inline void event_fault(struct cdm_event *e)
{
	struct place *fault = open_fault();
	u64 mm;

	if (!fault)
		return;
	mm = fault->page;
	e->mm = pointer_id(mm);
	e->addr = fault->addr & ~(e->size - 1);
	e->lock_entry = e->lock_exit = CDM_LOCK(mmap_lock_state(mm), 0);
	if (mm != current_mm())
		e->bits |= CDM_BIT_FOREIGN;
	watch(mm);
}

/* Whether the page of an allocation is for an address that is told of. */
static __always_inline int alloc_in_addr(struct allocation *begun, u64 size)
{
	struct place *fault;
	u64 addr = begun->addr;

	if (!ADDR_END)
		return 1;
	if (!VMA_MM(begun->vma)) {
		fault = open_fault();
		if (!fault)
			return 0;
		addr = fault->addr;
	}
	addr &= ~(size - 1);
	return in_addr(addr, addr + size);
}

static __always_inline int allocated(struct pt_regs *ctx)
{
	u64 page = PT_REGS_RC(ctx), task, size;
	u32 tid = bpf_get_current_pid_tgid();
	struct allocation begun, *found = allocations.lookup(&tid);
	struct cdm_event *e;
	int node = CDM_NO_NODE, changed, asked;

	if (!found)
		return 0;
	if (page)
		node = page_node(page);
	changed = VMA_FLAGS(found->vma) != found->flags;
	size = (u64)PAGE_SIZE << (found->order & 31);
	if (!changed && (!IS_FOLLOWED(node) || !alloc_in_addr(found, size))) {
		allocations.delete(&tid);
		return 0;
	}
	begun = *found;
	allocations.delete(&tid);

	e = event_begin(CDM_EV_ALLOC, CDM_PROBE_ALLOC, begun.ts, begun.vma, 0, !changed);
	if (!e)
		return 0;
	event_vma(e, begun.vma);
	e->flags_before = begun.flags;
	e->lock_entry = begun.lock;
	e->addr = begun.addr & ~(PAGE_SIZE - 1ULL);
	e->size = size;
	e->node = node;
	event_stack(e, ctx);
	if (!e->mm)
		event_fault(e);
	/* A file that is asked and has no policy leaves it to the task, not to the VMA. */
	asked = begun.policy != CDM_POLICY_UNREAD;
	if (asked && begun.policy) {
		e->policy = begun.policy;
		e->nodes = begun.nodes;
	}
	if (!(asked ? begun.policy : e->policy)) {
		task = READ_FIELD(bpf_get_current_task(), u64,
				  OFF_task_struct_mempolicy);
		e->other_policy = read_policy(task, &e->other);
	}
	event_submit(e);
	return 0;
}

int alloc_return(struct pt_regs *ctx)
{
	return allocated(ctx);
}

int shmem_alloc_return(struct pt_regs *ctx)
{
	return allocated(ctx);
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

	addr &= ~(PAGE_SIZE - 1ULL);
	if (!(IS_FOLLOWED(node) || IS_CDM_NODE(src)) || !wanted_page(vma) ||
	    !in_addr(addr, addr + size) || page_is_apart(page, vma))
		return 0;
	migration = slot_open(SLOT_MIGRATE);
	if (from || migration)
		e = event_page(CDM_EV_MIGRATE, CDM_PROBE_REMOVE_MIGRATION_PTE, 0, vma);
	else
		e = event_page(CDM_EV_MAP, CDM_PROBE_RMAP_ADD, 0, vma);
	if (!e)
		return 0;
	event_vma(e, vma);
	e->addr = addr;
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

/* page_add_new_anon_rmap(page, vma, address), or of a folio */
int rmap_add_new_anon(struct pt_regs *ctx)
{
	u64 page = ARG(rmap_add_new_anon, page);

	return page_mapped(ctx, page, ARG(rmap_add_new_anon, vma),
			   ARG(rmap_add_new_anon, address),
			   folio_bytes(page), 0, 0);
}

/* page_add_anon_rmap(page, vma, address, flags): RMAP_COMPOUND is bit 1 */
int rmap_add_anon(struct pt_regs *ctx)
{
	u64 page = ARG(rmap_add_anon, page), vma = ARG(rmap_add_anon, vma);

	return page_mapped(ctx, page, vma, ARG(rmap_add_anon, address),
			   ARG(rmap_add_anon, flags) & 2 ? PMD_BYTES : PAGE_SIZE,
			   migrated_here(page, vma), 0);
}

/*
 * folio_add_anon_rmap_ptes(folio, page, nr_pages, vma, address, flags). Of a whole huge
 * page that a PMD maps still, when that is split (__split_huge_pmd_locked() in
 * mm/huge_memory.c, 6.12): the page is where it was, and the next is that its PMD maps it
 * no more. A huge page that comes back from swap is mapped so, too, and by no PMD.
 */
int rmap_add_anon_ptes(struct pt_regs *ctx)
{
	u64 page = ARG(rmap_add_anon_ptes, page), vma = ARG(rmap_add_anon_ptes, vma);
	u64 size = (u32)ARG(rmap_add_anon_ptes, nr_pages) * (u64)PAGE_SIZE;
	u64 addr = ARG(rmap_add_anon_ptes, address);

	if (size >= PMD_BYTES && mapped_by_pmd(page)) {
		if (IS_FOLLOWED(page_node(page)) && wanted_page(vma))
			place_put(PLACE_SPLIT, page, vma, addr);
		return 0;
	}
	return page_mapped(ctx, page, vma, addr, size, migrated_here(page, vma), 0);
}

/* folio_add_anon_rmap_pmd(folio, page, vma, address, flags) */
int rmap_add_anon_pmd(struct pt_regs *ctx)
{
	u64 page = ARG(rmap_add_anon_pmd, page), vma = ARG(rmap_add_anon_pmd, vma);

	return page_mapped(ctx, page, vma, ARG(rmap_add_anon_pmd, address), PMD_BYTES,
			   migrated_here(page, vma), 0);
}

static __always_inline int file_page_mapped(struct pt_regs *ctx, u64 page, u64 vma,
					    u64 size)
{
	struct place *driver = 0;
	u64 addr;

	if (page_mapping(page)) {
		addr = page_address_in(page, vma);
	} else {
		driver = place_of(PLACE_DRIVER, page, vma);
		if (!driver) {
			if (IS_FOLLOWED(page_node(page)) && wanted_vma(vma))
				count_lost_at(CDM_PROBE_RMAP_ADD, CDM_LOST_READ,
					      VMA_MM(vma), VMA_START(vma), VMA_END(vma));
			return 0;
		}
		addr = driver->addr;
	}
	return page_mapped(ctx, page, vma, addr, size, migrated_here(page, vma),
			   driver ? CDM_CAUSE_DRIVER : CDM_CAUSE_FILE);
}

/* page_add_file_rmap(page, vma, compound) */
int rmap_add_file(struct pt_regs *ctx)
{
	return file_page_mapped(ctx, ARG(rmap_add_file, page), ARG(rmap_add_file, vma),
				ARG(rmap_add_file, compound) & 1 ? PMD_BYTES :
								   PAGE_SIZE);
}

/* folio_add_file_rmap_ptes(folio, page, nr_pages, vma) */
int rmap_add_file_ptes(struct pt_regs *ctx)
{
	return file_page_mapped(ctx, ARG(rmap_add_file_ptes, page),
				ARG(rmap_add_file_ptes, vma),
				(u32)ARG(rmap_add_file_ptes, nr_pages) * (u64)PAGE_SIZE);
}

/* folio_add_file_rmap_pmd(folio, page, vma) */
int rmap_add_file_pmd(struct pt_regs *ctx)
{
	return file_page_mapped(ctx, ARG(rmap_add_file_pmd, page),
				ARG(rmap_add_file_pmd, vma), PMD_BYTES);
}

static __always_inline int driver_page(u64 page, u64 vma, u64 addr)
{
	if (IS_FOLLOWED(page_node(page)) && !page_mapping(page) && wanted_vma(vma))
		place_put(PLACE_DRIVER, page, vma, addr & ~(PAGE_SIZE - 1ULL));
	return 0;
}

/* finish_fault(vmf) */
int fault_finish(struct pt_regs *ctx)
{
	u64 vmf = ARG(fault_finish, vmf), page = READ_FIELD(vmf, u64, OFF_vm_fault_page);

	return page ? driver_page(page, READ_FIELD(vmf, u64, OFF_vm_fault_vma),
				  READ_FIELD(vmf, u64, OFF_vm_fault_address)) : 0;
}

/* vm_insert_page(vma, addr, page) */
int driver_insert(struct pt_regs *ctx)
{
	return driver_page(ARG(driver_insert, page), ARG(driver_insert, vma),
			   ARG(driver_insert, addr));
}

/* try_to_unmap_one(folio, vma, address, arg), and try_to_migrate_one() alike */
int walk_entry(struct pt_regs *ctx)
{
	u64 folio = ARG(walk_entry, folio);

	if (IS_FOLLOWED(page_node(folio)) && wanted_page(ARG(walk_entry, vma)))
		place_put(PLACE_WALK, folio, ARG(walk_entry, vma), ARG(walk_entry, address));
	return 0;
}

int walk_return(struct pt_regs *ctx)
{
	place_drop(PLACE_WALK);
	return 0;
}

/* remove_migration_pte(folio, vma, addr, old) */
int remigrate_entry(struct pt_regs *ctx)
{
	u64 folio = ARG(remigrate_entry, folio), vma = ARG(remigrate_entry, vma);
	u64 key = place_key(PLACE_REMIGRATE);
	struct place place = {};

	place.node = page_node(migrated_from(ARG(remigrate_entry, old)));
	if (!(IS_FOLLOWED(page_node(folio)) || IS_CDM_NODE(place.node)) ||
	    !wanted_page(vma)) {
		/* Of one whose return was missed, the VMA may be gone. */
		places.delete(&key);
		return 0;
	}
	place.page = folio;
	place.vma = vma;
	place.ts = bpf_ktime_get_ns();
	place.lock = vma_lock_state(vma, VMA_MM(vma));
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
	lock = vma_lock_state(place.vma, VMA_MM(place.vma));
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
	u64 mm = ARG(gather_begin, mm);

	if (is_watched(mm) && wanted_mm(mm))
		place_put(PLACE_GATHER, ARG(gather_begin, tlb), mm, 0);
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
 * of them first, or to some of one folio at a time (zap_pte_range() in mm/memory.c);
 * it clears a whole PMD at once where the page is huge, and then the index holds.
 */
static __always_inline u64 unmapped_at(u64 page, u64 vma, u64 size)
{
	struct place *walk = place_of(PLACE_WALK, page_head(page), vma), *gather;
	u64 key = place_key(PLACE_GATHER), end;

	if (size < PMD_BYTES && !walk) {
		gather = places.lookup(&key);
		if (gather && gather->vma == VMA_MM(vma)) {
			end = READ_FIELD(gather->page, u64, OFF_mmu_gather_end);
			if (end > VMA_START(vma) && end <= VMA_END(vma))
				return end - size;
		}
	}
	if (page_is_indexed(page))
		return page_address_in(page, vma);
	return walk ? walk->addr : 0;
}

/* Where in its VMA a page is may not be known: 0. Then it is told. */
static __always_inline int place_in_addr(u64 addr, u64 size)
{
	return !addr || in_addr(addr, addr + size);
}

/*
 * Whether a range is being unmapped, the page in it: munmap(), madvise(DONTNEED), the end
 * of a process. madvise(PAGEOUT) gathers, too, and then walks the reverse map. Who takes
 * a page away otherwise, the stack alone says.
 */
static __always_inline int is_zapped(u64 page, u64 vma)
{
	u64 key = place_key(PLACE_GATHER);
	struct place *gather = places.lookup(&key);

	return gather && gather->vma == VMA_MM(vma) &&
	       !place_of(PLACE_WALK, page_head(page), vma);
}

static __always_inline int page_unmapped(struct pt_regs *ctx, u64 page, u64 vma, u64 size)
{
	struct entry *exiting;
	struct cdm_event *e;
	int node = page_node(page);
	u64 addr;

	if (!IS_FOLLOWED(node) || !wanted_page(vma) || page_is_apart(page, vma))
		return 0;
	/* The end of an mm takes all its pages: one event says so. */
	exiting = slot_open(SLOT_EXIT_MMAP);
	if (exiting && exiting->mm == VMA_MM(vma))
		return 0;
	addr = unmapped_at(page, vma, size);
	if (!place_in_addr(addr, size))
		return 0;
	e = event_page(CDM_EV_UNMAP, CDM_PROBE_RMAP_REMOVE, 0, vma);
	if (!e)
		return 0;
	event_vma(e, vma);
	e->addr = addr;
	e->size = size;
	e->src_node = node;
	if (page_is_ksm(page))
		e->bits |= CDM_BIT_KSM;
	if (IS_CDM_NODE(node) && !is_zapped(page, vma) && !slot_open(SLOT_MIGRATE))
		event_stack(e, ctx);
	event_submit(e);
	return 0;
}

/* page_remove_rmap(page, vma, compound) */
int rmap_remove(struct pt_regs *ctx)
{
	return page_unmapped(ctx, ARG(rmap_remove, page), ARG(rmap_remove, vma),
			     ARG(rmap_remove, compound) & 1 ? PMD_BYTES : PAGE_SIZE);
}

/* folio_remove_rmap_ptes(folio, page, nr_pages, vma) */
int rmap_remove_ptes(struct pt_regs *ctx)
{
	return page_unmapped(ctx, ARG(rmap_remove_ptes, page), ARG(rmap_remove_ptes, vma),
			     (u32)ARG(rmap_remove_ptes, nr_pages) * (u64)PAGE_SIZE);
}

/* folio_remove_rmap_pmd(folio, page, vma) */
int rmap_remove_pmd(struct pt_regs *ctx)
{
	u64 page = ARG(rmap_remove_pmd, page), vma = ARG(rmap_remove_pmd, vma);

	int split = !!place_of(PLACE_SPLIT, page, vma);

	place_drop(PLACE_SPLIT);
	return split ? 0 : page_unmapped(ctx, page, vma, PMD_BYTES);
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
	if (!wanted_scene())
		return 0;
	entry.ts = bpf_ktime_get_ns();
	entry.probe = CDM_PROBE_MIGRATE_PAGES;
	entry.arg[0] = (u32)ARG(migrate_entry, reason);
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
	u64 vma = ARG(numa_scan, vma);
	struct cdm_event *e;

	if (!(is_watched(VMA_MM(vma)) || VMA_FLAGS(vma) & CDM_MASK) || !wanted_vma(vma))
		return 0;
	e = event_page(CDM_EV_NUMA_SCAN, CDM_PROBE_NUMA_SCAN, 0, vma);
	if (!e)
		return 0;
	event_vma(e, vma);
	e->addr = ARG(numa_scan, addr);
	e->size = ARG(numa_scan, end) - e->addr;
	if (!e->call)
		e->cause = CDM_CAUSE_NUMA_BALANCING;
	event_submit(e);
	return 0;
}

/*
 * migrate_misplaced_page(page, vma, node), or of a folio, in a fault, which holds the
 * mmap lock for read until it has returned. The page may be freed in it: what is told is of before.
 */
static __always_inline int numa_move_begin(u64 page, u64 vma, int node)
{
	struct entry entry = {};

	slot_begin(SLOT_NUMA_MOVE);
	if (!(is_watched(VMA_MM(vma)) || VMA_FLAGS(vma) & CDM_MASK ||
	      IS_CDM_NODE(node)) || !wanted_page(vma))
		return 0;
	entry_vma(&entry, vma);
	entry.probe = CDM_PROBE_NUMA_MIGRATE;
	entry.arg[0] = page_is_indexed(page) ? page_address_in(page, vma) : 0;
	entry.arg[1] = folio_bytes(page);
	entry.arg[2] = page_node(page);
	entry.arg[3] = node;
	if (!place_in_addr(entry.arg[0], entry.arg[1]))
		return 0;
	slot_put(SLOT_NUMA_MOVE, &entry);
	return 0;
}

int numa_move_entry(struct pt_regs *ctx)
{
	return numa_move_begin(ARG(numa_move_entry, page), ARG(numa_move_entry, vma),
			       (int)ARG(numa_move_entry, node));
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

/*
 * migrate_misplaced_folio_prepare(folio, vma, node): whether it may be moved is asked of
 * the VMA. migrate_misplaced_folio(folio, node) comes next, in the same fault.
 */
int numa_move_look(struct pt_regs *ctx)
{
	place_put(PLACE_NUMA, ARG(numa_move_look, folio), ARG(numa_move_look, vma), 0);
	return 0;
}

int numa_move_looked(struct pt_regs *ctx)
{
	u64 folio = ARG(numa_move_looked, folio), key = place_key(PLACE_NUMA), vma;
	struct place *place = places.lookup(&key);

	vma = place && place->page == folio ? place->vma : 0;
	place_drop(PLACE_NUMA);
	if (!vma) {
		/* Whoever moves it otherwise is no fault, and has no VMA. */
		slot_begin(SLOT_NUMA_MOVE);
		return 0;
	}
	return numa_move_begin(folio, vma, (int)ARG(numa_move_looked, node));
}

static __always_inline int numa_move_told(struct pt_regs *ctx)
{
	struct entry entry;
	struct cdm_event *e;

	if (!slot_take(SLOT_NUMA_MOVE, &entry))
		return 0;
	e = event_page(CDM_EV_NUMA_MOVE, CDM_PROBE_NUMA_MIGRATE, entry.ts, entry.vma);
	if (!e)
		return 0;
	moved_fill(e, &entry);
	e->cause = CDM_CAUSE_NUMA_BALANCING;
	e->ret = MOVED_IS_ZERO ? !(int)PT_REGS_RC(ctx) : PT_REGS_RC(ctx);
	event_submit(e);
	return 0;
}

int numa_move_return(struct pt_regs *ctx)
{
	return numa_move_told(ctx);
}

/*
 * try_to_merge_one_page(vma, page, kpage): ksmd, with the mmap lock of another's mm
 * for read. Without a kpage the page itself becomes KSM's, and it stays where it is.
 */
int ksm_merge_entry(struct pt_regs *ctx)
{
	u64 vma = ARG(ksm_merge_entry, vma), page = ARG(ksm_merge_entry, page);
	u64 kpage = ARG(ksm_merge_entry, kpage);
	struct entry entry = {};
	int from = page_node(page), to = page_node(kpage);

	slot_begin(SLOT_KSM_MERGE);
	if (!kpage || kpage == page || !wanted_vma(vma))
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
	if (!place_in_addr(entry.arg[0], entry.arg[1]))
		return 0;
	slot_put(SLOT_KSM_MERGE, &entry);
	return 0;
}

int ksm_merge_return(struct pt_regs *ctx)
{
	struct entry entry;
	struct cdm_event *e;

	if (!slot_take(SLOT_KSM_MERGE, &entry) || (int)PT_REGS_RC(ctx))
		return 0;
	e = event_page(CDM_EV_KSM_PAGE, CDM_PROBE_KSM_MERGE, entry.ts, entry.vma);
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
	u64 src = ARG(copy_entry, src_vma);

	slot_begin(SLOT_COPY);
	if (!wanted_vma(src))
		return 0;
	if (FOLLOWS) {
		if (!FOLLOW_CHILDREN)
			return 0;
		follow(VMA_MM(ARG(copy_entry, dst_vma)));
	}
	if (!is_watched(VMA_MM(src)))
		return 0;
	entry_vma(&entry, src);
	entry.probe = CDM_PROBE_COPY_PAGE_RANGE;
	entry.arg[0] = ARG(copy_entry, dst_vma);
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
	u64 vma = ARG(move_entry, vma);

	slot_begin(SLOT_MOVE);
	if (!wanted_mm(VMA_MM(vma)) || !is_watched(VMA_MM(vma)))
		return 0;
	entry_vma(&entry, vma);
	entry.probe = CDM_PROBE_MOVE_PAGE_TABLES;
	entry.arg[0] = ARG(move_entry, old_addr);
	entry.arg[1] = ARG(move_entry, new_vma);
	entry.arg[2] = ARG(move_entry, new_addr);
	if (!in_addr(entry.arg[0], entry.arg[0] + ARG(move_entry, len)) &&
	    !in_addr(entry.arg[2], entry.arg[2] + ARG(move_entry, len)))
		return 0;
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
