/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What differs between kernels, one function each. Offsets, bit numbers and
 * symbol names are not here: user space reads them from the BTF, the
 * configuration and the symbol table of the kernel that it traces, and puts
 * them before this file as OFF_<struct>_<member>, SIZEOF_<struct>, and so on.
 * So this needs none of the kernel's own headers, which tools that compile on
 * the traced machine break on again and again.
 */
#ifndef CDMTRACE_COMPAT_H
#define CDMTRACE_COMPAT_H

/* Whether this kernel has a member: where not, its offset is none. */
#define HAS(off)	((off) != ~0ULL)

#define READ_FIELD(base, type, off)					\
({									\
	type __val = 0;							\
	bpf_probe_read_kernel(&__val, sizeof(__val), (void *)(base) + (off)); \
	__val;								\
})

/*
 * An argument by its name. Functions get, lose and move arguments from kernel to
 * kernel, so their places are not here either: user space finds them in the BTF and
 * puts them before this file as ARG_<handler>_<name>, counted from 1. Of a handler that
 * is not attached they are 0. From the seventh on they lie on the stack, above the
 * return address: these are known at entry only. Some are handed over in a struct now:
 * IN_<handler>_<name> is which byte of that, counted from 1; 0: the argument itself is
 * meant.
 */
#define ARGUMENT(place)							\
	((place) == 1 ? PT_REGS_PARM1(ctx) :				\
	 (place) == 2 ? PT_REGS_PARM2(ctx) :				\
	 (place) == 3 ? PT_REGS_PARM3(ctx) :				\
	 (place) == 4 ? PT_REGS_PARM4(ctx) :				\
	 (place) == 5 ? PT_REGS_PARM5(ctx) :				\
	 (place) == 6 ? PT_REGS_PARM6(ctx) :				\
	 (place) ? READ_FIELD(PT_REGS_SP(ctx), u64, ((place) - 6) * 8) : 0)
#define INSIDE(value, off)						\
	((off) ? READ_FIELD(value, u64, (off) - 1) : (value))
#define ARG(handler, name)						\
	INSIDE(ARGUMENT(ARG_##handler##_##name), IN_##handler##_##name)

/*
 * Members that lie close together, by one read. What user space puts before this file:
 * where the first of them is, and how many words they take.
 */
struct vma_head {
	u64 words[VMA_HEAD_WORDS];
};

struct sem_head {
	u64 words[SEM_HEAD_WORDS];
};

static __always_inline struct vma_head read_vma(u64 vma)
{
	struct vma_head head = {};

	bpf_probe_read_kernel(&head, sizeof(head), (void *)(vma + VMA_HEAD));
	return head;
}

#define HEAD_WORD(head, off, first)	((head)->words[((off) - (first)) / 8])
#define HEAD_START(head) HEAD_WORD(head, OFF_vm_area_struct_vm_start, VMA_HEAD)
#define HEAD_END(head)	HEAD_WORD(head, OFF_vm_area_struct_vm_end, VMA_HEAD)
#define HEAD_MM(head)	HEAD_WORD(head, OFF_vm_area_struct_vm_mm, VMA_HEAD)
#define HEAD_FLAGS(head) HEAD_WORD(head, OFF_vm_area_struct_vm_flags, VMA_HEAD)

#define VMA_START(vma)	READ_FIELD(vma, u64, OFF_vm_area_struct_vm_start)
#define VMA_END(vma)	READ_FIELD(vma, u64, OFF_vm_area_struct_vm_end)
#define VMA_FLAGS(vma)	READ_FIELD(vma, u64, OFF_vm_area_struct_vm_flags)
#define VMA_MM(vma)	READ_FIELD(vma, u64, OFF_vm_area_struct_vm_mm)
#define VMA_PGOFF(vma)	READ_FIELD(vma, u64, OFF_vm_area_struct_vm_pgoff)
#define VMA_FILE(vma)	READ_FIELD(vma, u64, OFF_vm_area_struct_vm_file)
#define VMA_ANON(vma)	READ_FIELD(vma, u64, OFF_vm_area_struct_anon_vma)
#define VMA_POLICY(vma)	READ_FIELD(vma, u64, OFF_vm_area_struct_vm_policy)

/*
 * The node of a page is in the top bits of its flags; how many bits and which
 * ones is the kernel's configuration (include/linux/page-flags-layout.h).
 */
static __always_inline int page_node(u64 page)
{
	return (READ_FIELD(page, u64, OFF_page_flags) >> NODES_PGSHIFT) &
	       NODES_MASK;
}

/*
 * A tail page points to its head, with bit 0 set (commit 1d798ca3f164, 4.4), or has a
 * mask for its own address (include/linux/page-flags.h, 7.2).
 */
static __always_inline u64 page_head(u64 page)
{
	u64 head = READ_FIELD(page, u64, OFF_page_compound_head);

	if (!(head & 1))
		return page;
	return HEAD_MASKS ? page & head : head - 1;
}

static __always_inline int page_is_compound(u64 page)
{
	return page_head(page) != page ||
	       (READ_FIELD(page, u64, OFF_page_flags) >> PG_HEAD) & 1;
}

/* Whether a PMD maps all of it; _entire_mapcount counts from -1 on */
static __always_inline int mapped_by_pmd(u64 page)
{
	return HAS(OFF_folio__entire_mapcount) &&
	       (s32)READ_FIELD(page_head(page), u32, OFF_folio__entire_mapcount) >= 0;
}

/* The size of the folio that it is in */
static __always_inline u64 folio_bytes(u64 page)
{
	if (!page_is_compound(page))
		return PAGE_SIZE;
	if (!HAS(OFF_folio__nr_pages))
		return PMD_BYTES;
	return READ_FIELD(page_head(page), u32, OFF_folio__nr_pages) * (u64)PAGE_SIZE;
}

/*
 * What remove_migration_pte() is told of the page that was there: in 6.12 in a struct,
 * with more (mm/migrate.c).
 */
static __always_inline u64 migrated_from(u64 arg)
{
	return HAS(OFF_rmap_walk_arg_folio) ?
	       READ_FIELD(arg, u64, OFF_rmap_walk_arg_folio) : arg;
}

/*
 * What a page belongs to: a file, an anon_vma; 0 for one that a driver has given
 * out, of which index says nothing either.
 */
static __always_inline u64 page_mapping(u64 page)
{
	return READ_FIELD(page_head(page), u64, OFF_page_mapping);
}

/* Bits 0 and 1 of mapping: anonymous, and KSM's (include/linux/page-flags.h). */
static __always_inline int page_is_ksm(u64 page)
{
	return (page_mapping(page) & 3) == 3;
}

/*
 * Whether its index tells where in a VMA it is: KSM's pages are in many places, and
 * a driver's have none.
 */
static __always_inline int page_is_indexed(u64 page)
{
	return page_mapping(page) && !page_is_ksm(page);
}

static __always_inline int vma_is_hugetlb(u64 vma)
{
	return !!(VMA_FLAGS(vma) & 0x00400000 /* VM_HUGETLB */);
}

/* numa_maps does not count the kernel's own pages, and hugetlb's in another unit. */
static __always_inline int page_is_apart(u64 page, u64 vma)
{
	return (READ_FIELD(page, u64, OFF_page_flags) >> PG_RESERVED) & 1 ||
	       vma_is_hugetlb(vma);
}

/* Where the page is in this VMA, as vma_address() in mm/internal.h has it. */
static __always_inline u64 page_address_in(u64 page, u64 vma)
{
	u64 head = page_head(page);
	u64 index = READ_FIELD(head, u64, OFF_page_index) +
		    (page - head) / SIZEOF_page;

	return VMA_START(vma) + ((index - VMA_PGOFF(vma)) << PAGE_SHIFT);
}

/*
 * The VMA to which a for_each_vma() over @mm has come, in a function that has @sp
 * above its frame. Since VMAs are in a maple tree (commit d4af56c5c7c6, 6.1) such a
 * loop's place in it, a struct ma_state, is on the stack: a leaf, and a slot in
 * that. It begins with a pointer to the tree, which a pointer to @mm equals where the
 * tree is its first member: so what follows has to lead to a VMA of @mm.
 */
static __always_inline u64 looped_vma(u64 sp, u64 mm)
{
	u64 tree = mm + OFF_mm_struct_mm_mt, node, slot, vma;
	int i;

	if (!HAS(OFF_mm_struct_mm_mt))
		return 0;
	for (i = 0; i < 64; i++, sp += sizeof(u64)) {
		if (READ_FIELD(sp, u64, OFF_ma_state_tree) != tree)
			continue;
		node = READ_FIELD(sp, u64, OFF_ma_state_node) & ~255ULL;
		slot = READ_FIELD(sp, u8, OFF_ma_state_offset);
		vma = READ_FIELD(node + OFF_maple_range_64_slot +
				 slot * sizeof(u64), u64, 0);
		if (VMA_MM(vma) == mm)
			return vma;
	}
	return 0;
}

/*
 * The nodes of a policy. Until 5.13 a preferred one is a number, in the place of the mask
 * (commit 269fbe72cded), and the local one is that of a flag, MPOL_F_LOCAL (commit
 * 7858d7bca7fb): it has no mode of its own there.
 */
static __always_inline u64 policy_nodes(u64 pol, u16 mode)
{
	short preferred;

	if (HAS(OFF_mempolicy_nodes))
		return READ_FIELD(pol, u64, OFF_mempolicy_nodes);
	if (mode != CDM_MPOL_PREFERRED)
		return READ_FIELD(pol, u64, OFF_mempolicy_v);
	preferred = READ_FIELD(pol, short, OFF_mempolicy_v);
	return preferred >= 0 && preferred < 64 ? 1ULL << preferred : 0;
}

static __always_inline int policy_is_local(u16 mode, u16 flags)
{
	return !HAS(OFF_mempolicy_nodes) && mode == CDM_MPOL_PREFERRED && flags & 2;
}

/*
 * How the mmap lock of @mm is held. struct rw_semaphore, 5.3 and later: count
 * is its first word, bit 0 the writer, bits 8 to 62 the readers; owner is the
 * second word, bit 0 says that the last who wrote it was a reader. A reader
 * that leaves does not clear owner, so owner alone proves nothing but that
 * current is the writer (kernel/locking/rwsem.c).
 */
static __always_inline u8 mmap_lock_state(u64 mm)
{
	struct sem_head sem = {};
	u64 count, owner;

	if (!mm)
		return CDM_LOCK_UNKNOWN;
	bpf_probe_read_kernel(&sem, sizeof(sem),
			      (void *)(mm + OFF_mm_struct_mmap_lock + SEM_HEAD));
	count = HEAD_WORD(&sem, OFF_rw_semaphore_count, SEM_HEAD);
	owner = HEAD_WORD(&sem, OFF_rw_semaphore_owner, SEM_HEAD);
	if (count & 1)
		return (owner & ~7ULL) == bpf_get_current_task() &&
		       !(owner & 1) ? CDM_LOCK_WRITE_SELF : CDM_LOCK_WRITE_OTHER;
	return (count << 1) >> 9 ? CDM_LOCK_READ : CDM_LOCK_NONE;
}

/*
 * Whether faults hold the lock that a VMA has of its own, for read: they are counted in
 * an rw_semaphore from 6.4 to 6.14, since then in vm_refcnt, which is 1 for the VMA and
 * has bit 30 for who waits to write (include/linux/mm_types.h, 7.2).
 */
static __always_inline int vma_is_read_locked(u64 vma)
{
	u64 lock, count;

	if (HAS(OFF_vm_area_struct_vm_refcnt))
		return (READ_FIELD(vma, u32, OFF_vm_area_struct_vm_refcnt) &
			((1U << 30) - 1)) > 1;
	lock = READ_FIELD(vma, u64, OFF_vm_area_struct_vm_lock);
	count = READ_FIELD(lock, u64, OFF_vma_lock_lock + OFF_rw_semaphore_count);
	return (count << 1) >> 9 != 0;
}

/*
 * How both locks of a VMA are held: that of its mm, and its own, where it has one (since
 * 6.4), which faults hold for read without the mmap lock. Whoever has that for write
 * waits for them, and lets nobody in by vm_lock_seq: that is the mm's until the mmap lock
 * is given back (vma_start_write()). Where it is another one, nothing is told of
 * it: at the entry of a function it is too early, and of a new VMA it need not be held.
 */
static __always_inline u8 vma_lock_state(u64 vma, u64 mm)
{
	u8 mmap = mmap_lock_state(mm);
	u32 seq;

	if (!HAS(OFF_vm_area_struct_vm_lock_seq) || !vma || !mm)
		return CDM_LOCK(mmap, CDM_VMA_LOCK_UNKNOWN);
	if (mmap == CDM_LOCK_WRITE_SELF) {
		seq = READ_FIELD(vma, u32, OFF_vm_area_struct_vm_lock_seq);
		return CDM_LOCK(mmap, seq == READ_FIELD(mm, u32, OFF_mm_struct_mm_lock_seq) ?
				      CDM_VMA_LOCK_WRITE : CDM_VMA_LOCK_UNKNOWN);
	}
	return CDM_LOCK(mmap, vma_is_read_locked(vma) ? CDM_VMA_LOCK_READ :
							CDM_VMA_LOCK_NONE);
}

#endif /* CDMTRACE_COMPAT_H */
