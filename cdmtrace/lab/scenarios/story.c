// SPDX-License-Identifier: GPL-2.0-only
/*
 * The mail thread's story: every way to a CDM page, and when the tag must follow
 *
 * Each step takes one sentence of the review and plays it on a prime number of
 * pages at an address that is known beforehand: step N is at 0x100000000000 +
 * N GiB. After every action it compares errno, the node of every page and the
 * flags of every VMA with what a kernel with the given quirks must show. No
 * tracer is involved: this is the ground truth that tracers are judged by.
 *
 * All regions stay mapped until the end, except those of children.
 */
#include "scenario.h"

enum {
	SLOT_BIND = 1,
	SLOT_PREFERRED = 3,
	SLOT_INTERLEAVE,
	SLOT_THP,
	SLOT_TASK_POLICY,
	SLOT_MOVE_PAGES,
	SLOT_MIGRATE_PAGES,
	SLOT_KSM,
	SLOT_PARTIAL,
	SLOT_DEFAULT,
	SLOT_INHERIT,
};

static struct region *bound;

static void step_bind(void)
{
	bound = map_anon("bind", SLOT_BIND, 0, 23);
	if (!bound)
		return;
	expect_flags(bound, "before mbind");
	bind_pages(bound, 0, 23, MPOL_BIND, CDM, 0, 0);
	expect_flags(bound, "after mbind");
	if (fault_pages(bound, 0, 23))
		expect_state(bound, "after 23 faults");
}

/* "Even if you changed the policy back ... and forced all the pages out." */
static void step_bind_back(void)
{
	unsigned int i, left = 0;
	int err = 0;

	if (!bound)
		step_bind();
	if (!bound)
		return;
	current_step = "bind-back";
	/* A page that is held for a moment stays behind: ask again. */
	for (i = 0; i < 100; i++) {
		err = sys_mbind(bound->start, bound->nr * PAGE, MPOL_BIND, RAM,
				MPOL_MF_MOVE);
		left = count_on(bound, ON_CDM);
		if (err || !left)
			break;
		sleep_ms(20);
	}
	expect_errno(err, 0, "bind: mbind(BIND, {ram}, MOVE) on 23 pages");
	report(!left, "no CDM page is left");
	if (left)
		diag("expected 0, found %u after %u tries", left, i);
	model_mbind(bound, 0, 23, MPOL_BIND, RAM);
	for (i = 0; i < bound->nr; i++) {
		model_leave_cdm(bound, i);
		bound->p[i].place = ON_RAM;
	}
	expect_state(bound, "bound back to RAM");
}

static void step_preferred(void)
{
	struct region *r = map_anon("preferred", SLOT_PREFERRED, 0, 29);

	if (!r)
		return;
	bind_pages(r, 0, 29, MPOL_PREFERRED, CDM, 0, 0);
	expect_flags(r, "after mbind");
	if (fault_pages(r, 0, 1))
		expect_state(r, "after the first fault");
	if (fault_pages(r, 1, 28))
		expect_state(r, "after 29 faults");
}

static void step_interleave(void)
{
	struct region *r = map_anon("interleave", SLOT_INTERLEAVE, 0, 31);
	unsigned int ram, cdm;

	if (!r)
		return;
	bind_pages(r, 0, 31, MPOL_INTERLEAVE, RAM | CDM, 0, 0);
	expect_flags(r, "after mbind");
	if (!fault_pages(r, 0, 31))
		return;
	expect_state(r, "after 31 faults");
	ram = count_on(r, ON_RAM);
	cdm = count_on(r, ON_CDM);
	report(ram + cdm == 31 && (cdm == 15 || cdm == 16),
	       "half of the pages on each node");
	if (ram + cdm != 31 || (cdm != 15 && cdm != 16))
		diag("expected 15 or 16 on each, found %u RAM, %u CDM", ram,
		     cdm);
}

static bool fault_huge(struct region *r, unsigned int huge)
{
	unsigned int i;

	if (!fault_pages(r, huge * HUGE_NR, 1))
		return false;
	for (i = 1; i < HUGE_NR; i++)
		model_fault(r, huge * HUGE_NR + i, MPOL_DEFAULT, 0);
	return true;
}

static void step_thp(void)
{
	static const char path[] = "/sys/kernel/mm/transparent_hugepage/enabled";
	char enabled[64] = "";
	unsigned long huge = 0;
	struct region *r;
	int err, n, nr;

	read_text(path, enabled, sizeof(enabled));
	if (strstr(enabled, "[never]"))
		write_text(path, "madvise");
	r = map_anon("thp", SLOT_THP, 0, 3 * HUGE_NR);
	if (!r)
		goto out;
	r->huge = true;
	err = madvise((void *)r->start, r->nr * PAGE, MADV_HUGEPAGE) ?
	      errno : 0;
	expect_errno(err, 0, "thp: madvise(HUGEPAGE)");
	bind_pages(r, 0, r->nr, MPOL_PREFERRED, CDM, 0, 0);
	expect_flags(r, "after mbind");
	if (!fault_huge(r, 0))
		goto out;
	expect_state(r, "after the first huge fault");
	if (!fault_huge(r, 1) || !fault_huge(r, 2))
		goto out;
	expect_state(r, "after 3 huge faults");
	nr = read_vmas(r->start, r->start + r->nr * PAGE);
	for (n = 0; n < nr; n++)
		huge += vmas[n].anon_huge;
	report(huge == 3 * HUGE_PAGE, "3 huge pages");
	if (huge != 3 * HUGE_PAGE)
		diag("expected 3 huge pages, found %lu: no huge page could be allocated (transparent_hugepage/enabled: %s)",
		     huge / HUGE_PAGE, enabled);
out:
	if (strstr(enabled, "[never]"))
		write_text(path, "never");
}

/*
 * Whatever this process faults in while the task policy is in force lands
 * where the policy says, so nothing else may happen here: no stdio, no new
 * stack page, no text page that was not run before.
 */
static __attribute__((noinline)) void
fault_under_task_policy(int mode, const unsigned long *mask,
			unsigned long start, unsigned int nr, int *err)
{
	unsigned int i;

	err[0] = syscall(SYS_set_mempolicy, mode, mask,
			 mask ? MASK_BITS : 0) ? errno : 0;
	for (i = 0; i < nr; i++)
		write_page(start + i * PAGE, start + i * PAGE);
	err[1] = syscall(SYS_set_mempolicy, MPOL_DEFAULT, NULL, 0) ? errno : 0;
}

static void step_task_policy(void)
{
	unsigned long mask = kernel_mask(CDM);
	struct region *warm, *r;
	int err[2] = { 0, 0 };
	unsigned int i;

	warm = map_anon("warm-up", SLOT_TASK_POLICY, SECOND, 2);
	r = map_anon("task-policy", SLOT_TASK_POLICY, 0, 37);
	if (!warm || !r)
		return;
	/* Once without a policy, so that the code and the stack are there */
	fault_under_task_policy(MPOL_DEFAULT, NULL, warm->start, 2, err);
	fault_under_task_policy(MPOL_PREFERRED, &mask, r->start, 37, err);
	for (i = 0; i < 2; i++)
		model_fault(warm, i, MPOL_DEFAULT, 0);
	for (i = 0; i < 37; i++) {
		if (quirk(Q_TASK_POLICY))
			model_fault(r, i, MPOL_PREFERRED, CDM);
		else
			model_fault(r, i, MPOL_DEFAULT, 0);
	}
	expect_errno(err[0], quirk(Q_TASK_POLICY) ? 0 : EPERM,
		     "set_mempolicy(PREFERRED, {cdm})");
	expect_errno(err[1], 0, "set_mempolicy(DEFAULT)");
	expect_state(r, "an ordinary VMA after 37 faults");
	expect_state(warm, "a VMA faulted without a task policy");
}

/* "This also assumes that the only way ... is via alloc_pages_vma()." */
static void step_move_pages(void)
{
	struct region *r = map_anon("no policy", SLOT_MOVE_PAGES, 0, 41);
	struct region *own = map_anon("own policy", SLOT_MOVE_PAGES, SECOND, 7);

	if (!r || !own || !fault_pages(r, 0, 41) || !fault_pages(own, 0, 7))
		return;
	expect_state(r, "no policy: before");
	move_region(r, ON_CDM, MPOL_MF_MOVE);
	expect_state(r, "no policy: after");

	/* Without MOVE, mbind leaves the pages where they are. */
	bind_pages(own, 0, 7, MPOL_BIND, CDM, 0, 0);
	expect_state(own, "own policy: before");
	move_region(own, ON_CDM, MPOL_MF_MOVE);
	expect_state(own, "own policy: after");
	move_region(own, ON_RAM, MPOL_MF_MOVE);
	expect_state(own, "own policy: and back");
}

static void migrate_self(void *arg)
{
	unsigned long from = kernel_mask(RAM), to = kernel_mask(CDM);
	struct region *r = map_anon("migrate", SLOT_MIGRATE_PAGES, 0, 43);
	unsigned int i;
	long ret = 0;
	int err = 0;

	(void)arg;
	if (!r || !fault_pages(r, 0, 43))
		return;
	expect_state(r, "child, before");
	expect_errno(drop_sys_nice(), 0, "child: give up CAP_SYS_NICE");
	for (i = 0; i < 100; i++) {
		ret = syscall(SYS_migrate_pages, 0, MASK_BITS, &from, &to);
		err = ret < 0 ? errno : 0;
		if (err || !count_on(r, ON_RAM))
			break;
		sleep_ms(20);
	}
	expect_errno(err, quirk(Q_MIGRATION_UNGATED) ? 0 : EPERM,
		     "child: migrate_pages({ram} to {cdm})");
	for (i = 0; quirk(Q_MIGRATION_UNGATED) && i < r->nr; i++)
		r->p[i].place = ON_CDM;
	expect_state(r, "child, after");
}

static void step_migrate_pages(void)
{
	in_child(migrate_self, NULL);
}

/* "You don't go and turn off KSM merging, for instance." */
static void step_ksm(void)
{
	struct region *r = map_anon("mergeable", SLOT_KSM, 0, 47);
	struct region *tagged = map_anon("tagged", SLOT_KSM, SECOND, 5);

	if (!r || !tagged || !fault_pages(r, 0, 47))
		return;
	advise_mergeable(r);
	expect_state(r, "mergeable: after madvise");
	bind_pages(r, 0, 47, MPOL_BIND, CDM, 0, 0);
	expect_state(r, "mergeable: after mbind");
	advise_mergeable(r);
	expect_flags(r, "mergeable: after madvise on the tagged VMA");

	bind_pages(tagged, 0, 5, MPOL_BIND, CDM, 0, 0);
	advise_mergeable(tagged);
	expect_flags(tagged, "tagged: after madvise");
}

static void step_partial(void)
{
	struct region *r = map_anon("partial", SLOT_PARTIAL, 0, 53);

	if (!r)
		return;
	bind_pages(r, 11, 19, MPOL_BIND, CDM, 0, 0);
	expect_flags(r, "after mbind of 19 pages");
	expect_vmas(r, "after mbind of 19 pages");
	if (!fault_pages(r, 0, 53))
		return;
	expect_state(r, "after 53 faults");
	/* What was tagged by the way is cleared by a policy of its own. */
	bind_pages(r, 0, 11, MPOL_BIND, RAM, 0, 0);
	expect_state(r, "after mbind of the head");
	expect_vmas(r, "after mbind of the head");
}

/* Back to no policy at all: mbind() has no policy to look at then. */
static void step_default(void)
{
	struct region *r = map_anon("default", SLOT_DEFAULT, 0, 59);

	if (!r)
		return;
	bind_pages(r, 0, 59, MPOL_BIND, CDM, 0, 0);
	if (!fault_pages(r, 0, 59))
		return;
	expect_state(r, "bound");
	bind_pages(r, 0, 59, MPOL_DEFAULT, 0, 0, 0);
	expect_state(r, "policy gone, pages left");
}

static void inherited(void *arg)
{
	struct region *r = arg;

	model_fork(r);
	expect_state(r, "child of a tagged VMA");
	/* A copy on write is a page of the child's own policy. */
	r->p[3].place = NOWHERE;
	if (fault_pages(r, 3, 1))
		expect_state(r, "child, after a write");
}

static void protect_pages(struct region *r, unsigned int first,
			  unsigned int nr, int prot)
{
	int err;

	err = mprotect((void *)(r->start + first * PAGE), nr * PAGE, prot) ?
	      errno : 0;
	model_protect(r, first, nr, prot);
	expect_errno(err, 0, "%s: mprotect of %u pages", r->name, nr);
}

static void step_inherit(void)
{
	struct region *r = map_anon("inherit", SLOT_INHERIT, 0, 61);
	struct region *moved = map_anon("moved", SLOT_INHERIT, SECOND, 13);
	unsigned int i;
	void *p;

	if (!r || !moved)
		return;
	bind_pages(r, 0, 61, MPOL_BIND, CDM, 0, 0);
	bind_pages(moved, 0, 13, MPOL_BIND, CDM, 0, 0);
	if (!fault_pages(r, 0, 61) || !fault_pages(moved, 0, 13))
		return;
	in_child(inherited, r);
	expect_state(r, "parent after fork");

	protect_pages(r, 7, 23, PROT_READ);
	expect_flags(r, "split by mprotect");
	expect_vmas(r, "split by mprotect");
	protect_pages(r, 7, 23, PROT_READ | PROT_WRITE);
	expect_flags(r, "merged again");
	expect_vmas(r, "merged again");

	p = mremap((void *)r->start, 61 * PAGE, 67 * PAGE, 0);
	expect_errno(p == MAP_FAILED ? errno : 0, model_is_one_vma(r) ? 0 : EFAULT,
		     "mremap from 61 to 67 pages");
	if (p != MAP_FAILED) {
		r->nr = 67;
		for (i = 61; i < 67; i++) {
			r->p[i] = r->p[60];
			r->p[i].place = NOWHERE;
		}
		expect_state(r, "grown by mremap");
		if (fault_pages(r, 61, 6))
			expect_state(r, "faults in what has grown");
	}

	p = mremap((void *)moved->start, 13 * PAGE, 13 * PAGE,
		   MREMAP_MAYMOVE | MREMAP_FIXED,
		   (void *)(moved->start - SECOND + THIRD));
	expect_errno(p == MAP_FAILED ? errno : 0, 0,
		     "mremap of 13 pages to another place");
	if (p != MAP_FAILED) {
		moved->start = moved->start - SECOND + THIRD;
		expect_state(moved, "moved by mremap");
	}
}

static const struct step steps[] = {
	{ "bind", "mbind(BIND, {cdm}) and 23 faults", step_bind, false },
	{ "bind-back", "the same VMA bound back to RAM, pages moved",
	  step_bind_back, false },
	{ "preferred", "mbind(PREFERRED, {cdm}): does the fault tag?",
	  step_preferred, false },
	{ "interleave", "mbind(INTERLEAVE, {ram,cdm})", step_interleave, false },
	{ "thp", "3 huge pages under PREFERRED", step_thp, false },
	{ "task-policy", "set_mempolicy() and an ordinary VMA",
	  step_task_policy, false },
	{ "move-pages", "move_pages() into VMAs without and with a policy",
	  step_move_pages, false },
	{ "migrate-pages", "migrate_pages() of a child", step_migrate_pages,
	  false },
	{ "ksm", "MADV_MERGEABLE before and after the tag", step_ksm, false },
	{ "partial", "mbind() of the middle of a VMA", step_partial, false },
	{ "default", "mbind(DEFAULT) with CDM pages left", step_default, false },
	{ "inherit", "fork, split, merge and mremap of a tagged VMA",
	  step_inherit, false },
};

int main(int argc, char **argv)
{
	return scenario_main(argc, argv, steps, ARRAY_SIZE(steps));
}
