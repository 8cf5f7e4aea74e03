// SPDX-License-Identifier: GPL-2.0-only
/*
 * Calls that end a guest whose kernel has a crash quirk: choose one with --step
 *
 * On any other kernel they work, and both steps pass. Under quirk default-oops the
 * first does not come back, under null-vma the second.
 */
#include "tools.h"

enum {
	SLOT_DEFAULT = 1,
	SLOT_WILLNEED,
};

/* Whoever records has yet to write down what was before. */
static void before_the_end(void)
{
	sleep_ms(10000);
}

/* The policy that goes with MPOL_DEFAULT is none at all. */
static void step_default(void)
{
	struct region *r = map_anon("no policy", SLOT_DEFAULT, 0, 5);

	if (!r)
		return;
	before_the_end();
	bind_pages(r, 0, 5, MPOL_DEFAULT, 0, 0, 0);
	if (fault_pages(r, 0, 5))
		expect_state(r, "after mbind(DEFAULT)");
}

/* What comes back from swap for a shared object is allocated without a VMA. */
static void step_willneed(void)
{
	const char *reason = swap_begin();
	struct region *r = NULL;
	unsigned int i, wrong = 0;
	int fd;

	if (reason) {
		skip("a shared object in swap", reason);
		return;
	}
	fd = make_memfd(7);
	if (fd >= 0) {
		r = map_region("swapped object", SLOT_WILLNEED, 0, 7, MAP_SHARED,
			       fd);
		close(fd);
	}
	if (!r || !fault_pages(r, 0, 7) || !page_out(r, 7))
		goto out;
	before_the_end();
	advise(r, 0, 7, MADV_WILLNEED, "WILLNEED");
	for (i = 0; i < 7; i++)
		wrong += *(volatile uint64_t *)(r->start + i * PAGE) !=
			 r->start + i * PAGE;
	report(!wrong, "7 pages are read as they were written");
	if (wrong)
		diag("expected 0 of 7 to differ, found %u", wrong);
	expect_state(r, "back from swap");
out:
	swap_end();
}

static const struct step steps[] = {
	{ "default", "mbind(DEFAULT) of a VMA without a policy", step_default,
	  false },
	{ "willneed", "madvise(WILLNEED) of a shared object in swap",
	  step_willneed, false },
};

int main(int argc, char **argv)
{
	stay_on_this_cpu();
	return scenario_main(argc, argv, steps, ARRAY_SIZE(steps));
}
