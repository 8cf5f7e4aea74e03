/* SPDX-License-Identifier: GPL-2.0-only */
/* What the kernel must show under its quirks (a part of scenario.h) */
#ifndef SCENARIO_MODEL_H
#define SCENARIO_MODEL_H

/* ---- The model ------------------------------------------------------- */

enum place { NOWHERE, ON_RAM, ON_CDM, ANYWHERE };

/* What one page, and the VMA around it, must look like */
struct page_model {
	uint8_t mode;		/* policy of the VMA; MPOL_DEFAULT: none */
	uint8_t set;		/* and its nodes */
	uint8_t place;
	uint8_t prot;
	uint8_t more;		/* other flags, as a scenario numbers them */
	bool tag;
	bool mergeable;
};

struct region {
	const char *name;
	unsigned long start;
	unsigned int nr;	/* pages */
	bool huge;		/* faults take huge pages */
	struct page_model p[MAX_PAGES];
};

static struct region regions[MAX_REGIONS];
static unsigned int nr_regions;

static bool same_vma(const struct page_model *a, const struct page_model *b)
{
	return a->mode == b->mode && a->set == b->set && a->prot == b->prot &&
	       a->more == b->more && a->tag == b->tag &&
	       a->mergeable == b->mergeable;
}

/* Widen [*lo, *hi) to the VMAs that it touches. */
static void model_widen(const struct region *r, unsigned int *lo,
			unsigned int *hi)
{
	while (*lo && same_vma(&r->p[*lo - 1], &r->p[*lo]))
		--*lo;
	while (*hi < r->nr && same_vma(&r->p[*hi - 1], &r->p[*hi]))
		++*hi;
}

static bool policy_names_cdm(int mode, unsigned int set)
{
	return mode != MPOL_DEFAULT && mode != MPOL_LOCAL && (set & CDM);
}

/* Does mbind() with this policy set the tag? */
static bool policy_tags(int mode, unsigned int set)
{
	if (!policy_names_cdm(mode, set))
		return false;
	return mode == MPOL_BIND || !quirk(Q_BIND_ONLY);
}

/*
 * mbind(): the tag becomes what the policy says, for exactly the range. Quirk
 * whole-vma sets it before the VMA is split, and so beyond the range; quirk
 * one-way never takes it back. To set it turns KSM off, but for ksm-left-on.
 */
static UNUSED void model_mbind(struct region *r, unsigned int first,
			       unsigned int nr, int mode, unsigned int set)
{
	unsigned int i, lo = first, hi = first + nr;
	bool tags = policy_tags(mode, set);

	if (tags && quirk(Q_WHOLE_VMA))
		model_widen(r, &lo, &hi);
	for (i = lo; tags && i < hi; i++)
		r->p[i].tag = true;
	for (i = first; i < first + nr; i++) {
		if (tags && !quirk(Q_KSM_LEFT_ON))
			r->p[i].mergeable = false;
		if (!tags && !quirk(Q_ONE_WAY))
			r->p[i].tag = false;
		r->p[i].mode = mode;
		r->p[i].set = mode == MPOL_DEFAULT || mode == MPOL_LOCAL ?
			      0 : set;
	}
}

/*
 * A first write to a page. The policy of the VMA decides where it comes from,
 * or that of the task where the VMA has none. Quirk fault-tag tags the VMA
 * when the page is on a CDM node, except on the paths of interleave-untagged
 * and thp-untagged. A page of an interleaved VMA may be on either node; fault
 * at least two, then one of them is on the CDM node and the tag is certain.
 */
static UNUSED void model_fault(struct region *r, unsigned int i, int task_mode,
			       unsigned int task_set)
{
	struct page_model *p = &r->p[i];
	int mode = p->mode == MPOL_DEFAULT ? task_mode : p->mode;
	unsigned int set = p->mode == MPOL_DEFAULT ? task_set : p->set;
	unsigned int lo = i, hi = i + 1;

	if (p->place != NOWHERE)
		return;
	if (mode == MPOL_DEFAULT || mode == MPOL_LOCAL)
		set = RAM;
	p->place = set == CDM ? ON_CDM : set == RAM ? ON_RAM : ANYWHERE;

	if (!quirk(Q_FAULT_TAG) || p->tag || p->place == ON_RAM)
		return;
	if (mode == MPOL_INTERLEAVE && quirk(Q_INTERLEAVE_UNTAGGED))
		return;
	if (r->huge && mode != MPOL_INTERLEAVE && quirk(Q_THP_UNTAGGED))
		return;
	model_widen(r, &lo, &hi);
	for (; lo < hi; lo++)
		r->p[lo].tag = true;
}

/*
 * A page is about to go from the CDM node to RAM. With quirk unlocked-clear that
 * is what takes the tag from its VMA, whatever the policy says.
 */
static UNUSED void model_leave_cdm(struct region *r, unsigned int i)
{
	unsigned int lo = i, hi = i + 1;

	if (!quirk(Q_UNLOCKED_CLEAR) || r->p[i].place != ON_CDM)
		return;
	model_widen(r, &lo, &hi);
	for (; lo < hi; lo++)
		r->p[lo].tag = false;
}

/* mprotect(): quirk split-drop costs what is split off, mprotect-drop the range */
static UNUSED void model_protect(struct region *r, unsigned int first,
				 unsigned int nr, int prot)
{
	unsigned int i, end = first + nr, lo = first, hi = end;

	model_widen(r, &lo, &hi);
	for (i = lo; i < hi; i++) {
		if (i >= first && i < end)
			r->p[i].prot = prot;
		if (i >= first && i < end ? quirk(Q_MPROTECT_DROP) :
					    quirk(Q_SPLIT_DROP))
			r->p[i].tag = false;
	}
}

/* A child has the VMAs of its parent, but for quirk fork-drop. */
static UNUSED void model_fork(struct region *r)
{
	unsigned int i;

	for (i = 0; i < r->nr && quirk(Q_FORK_DROP); i++)
		r->p[i].tag = false;
}

/* mremap() takes one VMA and no more. */
static UNUSED bool model_is_one_vma(const struct region *r)
{
	unsigned int lo = 0, hi = 1;

	model_widen(r, &lo, &hi);
	return hi == r->nr;
}

/* move_pages(): may the page go to the CDM node? It never touches the tag. */
static UNUSED bool model_may_move_to_cdm(const struct page_model *p)
{
	return policy_names_cdm(p->mode, p->set) || quirk(Q_MIGRATION_UNGATED);
}

/* madvise(MADV_MERGEABLE) is ignored where the tag is, or else it is honoured. */
static UNUSED void model_mergeable(struct region *r)
{
	unsigned int i;

	for (i = 0; i < r->nr; i++)
		if (!r->p[i].tag || quirk(Q_MERGEABLE_HONOURED))
			r->p[i].mergeable = true;
}

#endif
