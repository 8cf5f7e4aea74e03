// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pages of a device's node that were asked for, and some that were not
 *
 * For a kernel that nobody has patched, and that tags nothing: which node is meant,
 * --cdm-node says. Each step brings pages there in one way, and counts them where they
 * are; what a recording must say of it: tell() in tools.h.
 */
#include "tools.h"

enum {
	SLOT_OWN = 1,
	SLOT_TASK,
	SLOT_ASKED,
	SLOT_FLAGS,
};

static void write_pages(const struct region *r)
{
	unsigned int i;

	for (i = 0; i < r->nr; i++)
		write_page(r->start + i * PAGE, r->start + i * PAGE);
}

static void expect_all_there(const struct region *r)
{
	unsigned int found = count_on(r, ON_CDM);

	report(found == r->nr, "%s: %u pages on node %d", r->name, r->nr, cdm_node);
	if (found != r->nr)
		diag("expected %u, found %u", r->nr, found);
}

static void step_own(void)
{
	struct region *r = map_anon("own", SLOT_OWN, 0, 23);
	int err;

	if (!r)
		return;
	err = sys_mbind(r->start, r->nr * PAGE, MPOL_BIND, CDM, 0);
	if (!expect_errno(err, 0, "mbind(BIND, {cdm})"))
		return;
	write_pages(r);
	expect_all_there(r);
	tell("CDM014", r->start, r->nr, NO);
}

static void step_task(void)
{
	struct region *r = map_anon("task", SLOT_TASK, 0, 29);
	unsigned long mask = kernel_mask(CDM);
	int set, back;

	if (!r)
		return;
	/* Nothing in between that has a page of its own coming. */
	set = syscall(SYS_set_mempolicy, MPOL_BIND, &mask, MASK_BITS) ? errno : 0;
	write_pages(r);
	back = syscall(SYS_set_mempolicy, MPOL_DEFAULT, NULL, 0) ? errno : 0;
	expect_errno(set, 0, "set_mempolicy(BIND, {cdm})");
	expect_errno(back, 0, "set_mempolicy(DEFAULT)");
	expect_all_there(r);
	tell("CDM014", r->start, r->nr, YES);
}

static void step_asked(void)
{
	struct region *r = map_anon("asked", SLOT_ASKED, 0, 31);

	if (!r)
		return;
	write_pages(r);
	sys_move_pages(r->start, r->nr, cdm_node, page_status, 0);
	expect_all_there(r);
	tell("CDM014", r->start, r->nr, NO);
}

/* Flags that are written as they must be, under the lock for write */
static void step_flags(void)
{
	struct region *r = map_anon("flags", SLOT_FLAGS, 0, 17);
	void *start;

	if (!r)
		return;
	start = (void *)r->start;
	write_pages(r);
	expect_errno(mprotect(start, r->nr * PAGE, PROT_READ) ? errno : 0, 0,
		     "mprotect()");
	expect_errno(mlock(start, r->nr * PAGE) ? errno : 0, 0, "mlock()");
	expect_errno(madvise(start, r->nr * PAGE, MADV_DONTFORK) ? errno : 0, 0,
		     "madvise(DONTFORK)");
	tell("CDM003", r->start, r->nr, NO);
}

static const struct step steps[] = {
	{ "own", "the VMA's policy names the node", step_own, false },
	{ "task", "the policy of the task names it, and the VMA has none", step_task,
	  false },
	{ "asked", "move_pages() names it", step_asked, false },
	{ "flags", "mprotect(), mlock() and madvise()", step_flags, false },
};

int main(int argc, char **argv)
{
	return scenario_main(argc, argv, steps, ARRAY_SIZE(steps));
}
