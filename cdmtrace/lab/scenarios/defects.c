// SPDX-License-Identifier: GPL-2.0-only
/*
 * A step for each defect that the other scenarios do not show, small and counted
 *
 * Each step does what makes one rule's premise hold. What user space can see of the
 * outcome (errno, the node of every page, the flags of every VMA) is compared with
 * what a kernel with the given quirks must show. Numbers of pages are prime unless
 * the step needs another one. Step N is at 0x100000000000 + N GiB.
 *
 * For each such place there is a line, to hold a recording against: tell() in tools.h.
 */
#include "tools.h"

#include <dirent.h>

#ifndef MPOL_F_NUMA_BALANCING
#define MPOL_F_NUMA_BALANCING	(1 << 13)	/* Linux 5.12 */
#endif

enum {
	SLOT_FAILED_BIND = 1,
	SLOT_REFUSED_COPY,
	SLOT_READ_AHEAD,
	SLOT_PSEUDO_VMA,
	SLOT_STALE_SPLIT,
	SLOT_STALE_FORK,
	SLOT_NEIGHBOURS,
	SLOT_KSM,
	SLOT_MERGEABLE,
	SLOT_SCANNED,
	SLOT_RESIDUE,
	SLOT_TWO_FAULTS,
	SLOT_LOST_FLAG,
	SLOT_LATE_TAG,
	SLOT_PROTECT,
	SLOT_SPLIT,
	SLOT_FORK,
};

/* A number that must come out: of pages, or of VMAs */
static bool expect_count(unsigned int found, unsigned int expected,
			 const char *what)
{
	report(found == expected, "%s: %u", what, expected);
	if (found != expected)
		diag("expected %u, found %u", expected, found);
	return found == expected;
}

/* ---- A call that fails ----------------------------------------------- */

#define MAP_COUNT	"/proc/sys/vm/max_map_count"
#define FILLER		4096	/* pages, of which every second one is a VMA */

/* More VMAs than any process has: the limit is for all, and we alone shall meet it. */
static long enough_vmas(void)
{
	static char text[1 << 20];
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	long most = 0;

	while (proc && (entry = readdir(proc))) {
		char path[300], *c;
		long lines = 0;

		snprintf(path, sizeof(path), "/proc/%s/maps", entry->d_name);
		if (read_text(path, text, sizeof(text)) <= 0)
			continue;
		for (c = text; c; c = strchr(c + 1, '\n'))
			lines++;
		if (lines > most)
			most = lines;
	}
	if (proc)
		closedir(proc);
	return most + 256;
}

static void failed_bind(void *arg)
{
	struct region *r = map_anon("middle", SLOT_FAILED_BIND, 0, 13);
	bool stays = quirk(Q_WHOLE_VMA) && policy_tags(MPOL_BIND, CDM);
	int mode = -1, err;
	unsigned int i;
	char *filler;

	(void)arg;
	filler = mmap((void *)(ARENA_START + SLOT_FAILED_BIND * GIB + SECOND),
		      FILLER * PAGE, PROT_NONE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (!r || filler == MAP_FAILED) {
		report(false, "room for VMAs");
		return;
	}
	for (i = 1; i < FILLER; i += 2)
		if (mprotect(filler + i * PAGE, PAGE, PROT_READ))
			break;
	report(i < FILLER && errno == ENOMEM, "as many VMAs as there may be");
	err = sys_mbind(r->start + 5 * PAGE, 3 * PAGE, MPOL_BIND, CDM, 0);
	munmap(filler, FILLER * PAGE);
	expect_errno(err, ENOMEM, "mbind(BIND, {cdm}) on 3 pages in the middle");

	for (i = 0; i < 13; i++)
		r->p[i].tag = stays;
	err = syscall(SYS_get_mempolicy, &mode, NULL, 0, r->start + 5 * PAGE,
		      MPOL_F_ADDR) ? errno : 0;
	report(!err && mode == MPOL_DEFAULT, "they have no policy");
	expect_state(r, "after the call has failed");
	expect_vmas(r, "after the call has failed");
	tell("CDM012", r->start, 13, stays);
}

static void step_failed_bind(void)
{
	long before = read_long(MAP_COUNT), limit = enough_vmas();

	if (before < limit || limit > FILLER ||
	    write_long(MAP_COUNT, limit)) {
		skip("a limit of VMAs", "cannot be set, not root?");
		return;
	}
	in_child(failed_bind, NULL);
	write_long(MAP_COUNT, before);
}

/* ---- A page that is allocated and not mapped ------------------------- */

static void step_refused_copy(void)
{
	static const char source[PAGE];
	struct region *r = map_anon("present", SLOT_REFUSED_COPY, 0, 7);
	unsigned int i;
	int fd;

	if (!r || !fault_pages(r, 0, 7))
		return;
	fd = uffd_register(r);
	if (fd < 0)
		return;
	bind_pages(r, 0, 7, MPOL_PREFERRED, CDM, 0, 0);
	expect_state(r, "before");
	/* The page to copy to is allocated first, and taken back. */
	expect_errno(uffd_copy(fd, r, 3, 1, source), EEXIST,
		     "UFFDIO_COPY onto a page that is there");
	for (i = 0; i < 7; i++)
		r->p[i].tag = r->p[i].tag || quirk(Q_FAULT_TAG);
	expect_state(r, "after");
	tell("CDM013", r->start, 7, quirk(Q_FAULT_TAG));
	close(fd);
}

/* ---- A tag on another VMA than the page's ---------------------------- */

#define RA_FILE		"/sys/kernel/mm/swap/vma_ra_enabled"
#define RA_WINDOW	8	/* pages, aligned: the default of vm.page-cluster */
#define RA_TRIES	5

/* The slot in swap that a page is in; 0 if it is in none */
static uint64_t slot_in_swap(unsigned long addr)
{
	uint64_t entry = pagemap_entry(addr);

	return entry >> 62 & 1 ? (entry & ((1ULL << 55) - 1)) >> 5 : 0;
}

/*
 * Since Linux 6.7 swap's readahead and shared memory are given a policy to allocate by,
 * and no VMA: what a page brings to its VMA they bring to none.
 */
static bool allocated_for_a_vma(void)
{
	return !since(6, 7);
}

static void idle_child(void *arg)
{
	(void)arg;
}

/*
 * Which page of the reader lies among pages of the other VMA, so that a window of 4
 * or 8 slots around it begins with one of those? The first page that is allocated is
 * the one that the tag comes with.
 */
static int reader_page(const struct region *reader, const struct region *other)
{
	unsigned int k, i;

	for (k = 0; k < reader->nr; k++) {
		uint64_t at = slot_in_swap(reader->start + k * PAGE);
		unsigned int around = 0;

		for (i = 0; i < other->nr; i++)
			around += slot_in_swap(other->start + i * PAGE) /
				  RA_WINDOW == at / RA_WINDOW;
		if (at % 4 && around == RA_WINDOW - 1)
			return k;
	}
	return -1;
}

static void read_ahead(struct region *seq, struct region *reader,
		       struct region *other)
{
	struct child child;
	unsigned int i, cdm;
	bool open = quirk(Q_SWAP_READAHEAD);
	int k;

	/* While they are in swap for two, they are read into the swap cache. */
	if (!begin_child(&child, idle_child, NULL))
		return;
	bind_pages(reader, 0, RA_TRIES, MPOL_PREFERRED, CDM, 0, 0);
	k = reader_page(reader, other);
	report(k >= 0, "a page whose neighbours in swap are another VMA's");
	/* The window grows while what was read ahead is used. */
	read_pages(seq->start, seq->nr);
	if (k >= 0) {
		read_pages(reader->start + k * PAGE, 1);
		if (allocated_for_a_vma())
			model_fault(reader, k, MPOL_DEFAULT, 0);
		else
			put_pages(reader, k, 1, ON_CDM);
		expect_state(reader, "the reader, one page read");
		read_pages(other->start, other->nr);
		cdm = count_on(other, ON_CDM);
		report(open ? cdm == 3 || cdm == 7 : !cdm, "%s of the other's pages are on the CDM node",
		       open ? "3 or 7" : "none");
		if (open ? cdm != 3 && cdm != 7 : cdm)
			diag("found %u", cdm);
		for (i = 0; i < other->nr; i++)
			other->p[i].place = open ? ANYWHERE : ON_RAM;
		expect_state(other, "the other, whose pages were read ahead");
		tell("CDM015", reader->start, RA_TRIES,
		     open && quirk(Q_FAULT_TAG) && allocated_for_a_vma());
	}
	end_child(&child);
}

static void step_read_ahead(void)
{
	const char *reason = swap_begin();
	struct region *seq, *reader, *other;
	char before[16];
	unsigned int i;

	if (reason) {
		skip("swap readahead", reason);
		return;
	}
	if (read_text(RA_FILE, before, sizeof(before)) < 0 ||
	    write_text(RA_FILE, "false")) {
		skip("swap readahead", "it cannot be told to look at slots, not root?");
		goto out;
	}
	seq = map_anon("one by one", SLOT_READ_AHEAD, 0, 37);
	reader = map_anon("reader", SLOT_READ_AHEAD, SECOND, RA_TRIES);
	other = map_anon("other", SLOT_READ_AHEAD, THIRD,
			 (RA_TRIES + 1) * RA_WINDOW);
	if (!seq || !reader || !other || !fault_pages(seq, 0, 37) ||
	    !fault_pages(reader, 0, RA_TRIES) ||
	    !fault_pages(other, 0, other->nr) || !page_out(seq, 37))
		goto restore;
	for (i = 0; i < other->nr; i++) {
		if (i && !(i % RA_WINDOW))
			madvise((void *)(reader->start + (i / RA_WINDOW - 1) * PAGE),
				PAGE, MADV_PAGEOUT);
		madvise((void *)(other->start + i * PAGE), PAGE, MADV_PAGEOUT);
	}
	if (page_out(reader, RA_TRIES) && page_out(other, other->nr)) {
		put_pages(seq, 0, 37, NOWHERE);
		put_pages(reader, 0, RA_TRIES, NOWHERE);
		put_pages(other, 0, other->nr, NOWHERE);
		read_ahead(seq, reader, other);
	}
restore:
	write_text(RA_FILE, before);
out:
	swap_end();
}

/*
 * Writes pages while a task policy is in force. Whatever else is touched then lands
 * where it says: no stdio here, no new page of the stack or of the text.
 */
static __attribute__((noinline)) void write_under(const unsigned long *mask,
						  unsigned long start,
						  unsigned int nr, int *err)
{
	unsigned int i;

	*err = syscall(SYS_set_mempolicy, mask ? MPOL_PREFERRED : MPOL_DEFAULT,
		       mask, mask ? MASK_BITS : 0) ? errno : 0;
	for (i = 0; i < nr; i++)
		write_page(start + i * PAGE, start + i * PAGE);
	syscall(SYS_set_mempolicy, MPOL_DEFAULT, NULL, 0);
}

static void write_by_task_policy(const struct region *r, unsigned int nr)
{
	unsigned long mask = kernel_mask(CDM);
	int err;

	write_under(NULL, r->start, 0, &err);
	write_under(&mask, r->start, nr, &err);
	expect_errno(err, quirk(Q_TASK_POLICY) ? 0 : EPERM,
		     "%s: set_mempolicy(PREFERRED, {cdm})", r->name);
}

/* A page of a shared object is allocated for a VMA on the stack, which gets the tag. */
static void step_pseudo_vma(void)
{
	bool open = quirk(Q_SHARED_POLICY), task = quirk(Q_TASK_POLICY);
	bool tags = quirk(Q_FAULT_TAG) && allocated_for_a_vma();
	int fd = make_memfd(13), plain = make_memfd(11);
	struct region *bound, *other, *free;
	unsigned int i;

	if (fd < 0 || plain < 0)
		return;
	bound = map_region("bound mapping", SLOT_PSEUDO_VMA, 0, 13, MAP_SHARED, fd);
	other = map_region("other mapping", SLOT_PSEUDO_VMA, SECOND, 13,
			   MAP_SHARED, fd);
	free = map_region("no policy", SLOT_PSEUDO_VMA, THIRD, 11, MAP_SHARED,
			  plain);
	if (!bound || !other || !free)
		goto out;
	bind_pages(bound, 0, 13, MPOL_PREFERRED, CDM, 0, open ? 0 : EOPNOTSUPP);
	for (i = 0; i < 7; i++)
		write_page(other->start + i * PAGE, i);
	put_pages(other, 0, 7, open ? ON_CDM : ON_RAM);
	expect_state(other, "7 pages by the object's policy");
	expect_state(bound, "bound, and none of them mapped here");
	tell("CDM015", other->start, 13, open && tags);

	write_by_task_policy(free, 5);
	put_pages(free, 0, 5, task ? ON_CDM : ON_RAM);
	expect_state(free, "5 pages by the task's policy");
	tell("CDM015", free->start, 11, task && tags);
out:
	close(fd);
	close(plain);
}

/* ---- Tags that are inherited, and tags that part neighbours ---------- */

static void task_fault(struct region *r, unsigned int nr)
{
	bool open = quirk(Q_TASK_POLICY);
	unsigned int i;

	write_by_task_policy(r, nr);
	for (i = 0; i < nr; i++)
		model_fault(r, i, open ? MPOL_PREFERRED : MPOL_DEFAULT,
			    open ? CDM : 0);
}

static void protect(struct region *r, unsigned int first, unsigned int nr,
		    int prot)
{
	int err = mprotect((void *)(r->start + first * PAGE), nr * PAGE, prot) ?
		  errno : 0;

	model_protect(r, first, nr, prot);
	expect_errno(err, 0, "%s: mprotect of %u pages", r->name, nr);
}

/* All pages of the CDM node are in the part that is not split off. */
static void step_stale_split(void)
{
	struct region *r = map_anon("tagged by a fault", SLOT_STALE_SPLIT, 0, 11);

	if (!r)
		return;
	task_fault(r, 5);
	expect_state(r, "5 of 11 pages faulted");
	protect(r, 5, 6, PROT_READ);
	expect_state(r, "split");
	expect_vmas(r, "split");
	tell("CDM016", r->start + 5 * PAGE, 6, r->p[5].tag);
}

/* Bound for a moment, and never used: one-way, the tag is all that is left of it. */
static struct region *map_unbound(const char *name, unsigned int slot,
				  unsigned int nr)
{
	struct region *r = map_anon(name, slot, 0, nr);

	if (!r || !bind_pages(r, 0, nr, MPOL_BIND, CDM, 0, 0) ||
	    !bind_pages(r, 0, nr, MPOL_DEFAULT, 0, 0, 0))
		return NULL;
	return r;
}

static void stale_child(void *arg)
{
	struct region *r = arg;

	model_fork(r);
	expect_state(r, "child");
	tell("CDM016", r->start, r->nr, r->p[0].tag);
}

static void step_stale_fork(void)
{
	struct region *r = map_unbound("bound no longer", SLOT_STALE_FORK, 17);

	if (!r || !fault_pages(r, 0, 7))
		return;
	expect_state(r, "before fork");
	in_child(stale_child, r);
}

/* Maps what the region would take in, were it not for its tag. */
static void map_neighbour(struct region *r, unsigned int nr)
{
	struct page_model p = { .prot = PROT_READ | PROT_WRITE };
	void *end = (void *)(r->start + r->nr * PAGE);
	unsigned int i, first = r->nr;

	if (mmap(end, nr * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE |
		 MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != end) {
		report(false, "%s: mmap of %u pages beside", r->name, nr);
		return;
	}
	r->nr += nr;
	for (i = first; i < r->nr; i++)
		r->p[i] = p;
	expect_state(r, "with a neighbour");
	expect_vmas(r, "with a neighbour");
	tell("CDM017", r->start, r->nr, r->p[0].tag != r->p[first].tag);
}

static void step_neighbours(void)
{
	struct region *stale = map_unbound("bound no longer", SLOT_NEIGHBOURS, 7);
	struct region *fault = map_region("tagged by a fault", SLOT_NEIGHBOURS,
					  SECOND, 5, MAP_PRIVATE | MAP_ANONYMOUS,
					  -1);

	if (!stale || !fault)
		return;
	map_neighbour(stale, 6);
	task_fault(fault, 2);
	map_neighbour(fault, 8);
}

/* ---- KSM ------------------------------------------------------------- */

static unsigned int merged_pairs(const struct region *a, const struct region *b)
{
	unsigned int i, nr = 0;

	for (i = 0; i < a->nr; i++) {
		uint64_t pfn = pfn_of(a->start + i * PAGE);

		nr += pfn && pfn == pfn_of(b->start + i * PAGE);
	}
	return nr;
}

/* Page by page, regions of the same @seed are alike. */
static struct region *map_mergeable(const char *name, unsigned long offset,
				    unsigned int nr, uint64_t seed)
{
	struct region *r = map_anon(name, SLOT_KSM, offset, nr);
	unsigned int i;

	if (!r || !fault_pages(r, 0, nr))
		return NULL;
	for (i = 0; i < nr; i++)
		write_page(r->start + i * PAGE, seed << 32 | (i + 1));
	advise_mergeable(r);
	return r;
}

static void step_ksm(void)
{
	bool left = quirk(Q_KSM_LEFT_ON);
	struct region *a, *b, *c, *d;

	if (!ksm_ready("KSM in a tagged VMA"))
		return;
	a = map_mergeable("tagged A", 0, 11, 0xdefec7);
	b = map_mergeable("tagged B", SECOND, 11, 0xdefec7);
	/* Something to do for ksmd, which stops where nothing is mergeable */
	c = map_mergeable("plain C", THIRD, 3, 0x91a14);
	d = map_mergeable("plain D", THIRD + SECOND, 3, 0x91a14);
	if (!a || !b || !c || !d)
		return;
	/* Without MOVE, the pages stay in RAM, where KSM takes them. */
	bind_pages(a, 0, 11, MPOL_BIND, CDM, 0, 0);
	bind_pages(b, 0, 11, MPOL_BIND, CDM, 0, 0);
	expect_state(a, "before ksmd");
	if (ksm_scan(5)) {
		expect_count(merged_pairs(c, d), 3, "pairs merged in plain VMAs");
		expect_count(merged_pairs(a, b), left ? 11 : 0,
			     "pairs merged in tagged VMAs");
		expect_state(a, "after ksmd");
		expect_state(b, "after ksmd");
		tell("CDM006", a->start, 11, left);
		tell("CDM006", b->start, 11, left);
	}
	ksm_restore();
}

static void step_mergeable(void)
{
	struct region *r = map_anon("tagged", SLOT_MERGEABLE, 0, 3);

	if (!r || !bind_pages(r, 0, 3, MPOL_BIND, CDM, 0, 0))
		return;
	advise_mergeable(r);
	expect_flags(r, "after madvise");
	tell("CDM007", r->start, 3, r->p[0].mergeable);
}

/* ---- NUMA balancing -------------------------------------------------- */

/* Before, NUMA balancing works on VMAs that have no policy, and on no other. */
static bool has_balanced_policies(void)
{
	return since(5, 12);
}

/* A policy that lets NUMA balancing place pages within its nodes */
static void bind_balanced(struct region *r, unsigned int set)
{
	int err = sys_mbind(r->start, r->nr * PAGE,
			    MPOL_BIND | MPOL_F_NUMA_BALANCING, set, 0);

	model_mbind(r, 0, r->nr, MPOL_BIND, set);
	expect_errno(err, 0, "%s: mbind(BIND|NUMA_BALANCING, %s) on %u pages",
		     r->name, set_text(set), r->nr);
	if (quirk(Q_WORKQUEUE_TAG) && policy_tags(MPOL_BIND, set))
		await_tag(r->start, r->nr * PAGE);
}

/* NUMA balancing may work on it, and no policy names the CDM node. */
static void let_balance(struct region *r)
{
	if (has_balanced_policies())
		bind_balanced(r, RAM);
	else
		bind_pages(r, 0, r->nr, MPOL_DEFAULT, 0, 0, 0);
}

/*
 * What is scanned and not used yet is nowhere, as move_pages() has it. Before Linux 6.1,
 * and since 6.12, it is where it was: then how often the scanner was there has to do, and
 * what becomes of the pages when they are used.
 */
static bool scanned_can_be_seen(void)
{
	return since(6, 1) && !since(6, 12);
}

static unsigned int count_scanned(const struct region *r)
{
	unsigned int i, nr = 0;

	sys_move_pages(r->start, r->nr, -1, page_status, 0);
	for (i = 0; i < r->nr; i++)
		nr += page_status[i] < 0;
	return nr;
}

/*
 * Runs, and touches none of the pages, until they are scanned, or others are. It is
 * off before and after: what is scanned is not to be seen until it is used.
 */
static void be_scanned(const struct region *r, bool expected)
{
	bool seen = scanned_can_be_seen();
	struct timespec begin, now;
	volatile unsigned int i;
	long first = scans();

	write_long(balancing_files[0], 1);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	do {
		/* It is scanned as it runs. */
		for (i = 0; i < 2000000; i++)
			;
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (now.tv_sec < begin.tv_sec + BALANCING_SECONDS &&
		 (expected && seen ? count_scanned(r) < r->nr :
				     scans() < first + 4));
	write_long(balancing_files[0], 0);
	report((expected && seen) || scans() >= first + 4,
	       "the scanner has been through");
	if (seen)
		expect_count(count_scanned(r), expected ? r->nr : 0,
			     "pages that the scanner has marked");
}

/*
 * Uses what was scanned, from page @first on: the fault moves it to this cpu's node, or
 * leaves it.
 */
static void use_scanned(struct region *r, unsigned int first, bool scanned)
{
	bool tagged = r->p[0].tag;
	bool moved = scanned && (!tagged || quirk(Q_NUMA_RESIDUAL));

	read_pages(r->start, r->nr);
	if (moved) {
		model_leave_cdm(r, first);
		put_pages(r, first, r->nr - first, ON_RAM);
	}
	expect_state(r, "used again");
	if (scanned && tagged)
		tell("CDM009", r->start, r->nr, moved);
}

/* Pages of this cpu's node are passed by; these are of the CDM node. */
static void scanned_child(void *arg)
{
	struct region *r = map_anon("balanced", SLOT_SCANNED, 0, 19);
	bool scanned = quirk(Q_NUMA_SCANNED);

	(void)arg;
	if (!r)
		return;
	bind_balanced(r, RAM | CDM);
	if (!fault_pages(r, 0, 19))
		return;
	put_pages(r, 0, 19, ON_RAM);
	move_region(r, ON_CDM, MPOL_MF_MOVE);
	expect_state(r, "bound to both nodes");
	be_scanned(r, scanned);
	tell("CDM008", r->start, 19, scanned);
	use_scanned(r, 0, scanned);
}

/* Before 5.12: of two VMAs it is the one without a policy; one-way, that has a tag. */
static void unbound_child(void *arg)
{
	struct region *bound = map_anon("bound", SLOT_SCANNED, SECOND, 19);
	struct region *r = map_anon("unbound", SLOT_SCANNED, 0, 17);
	bool scanned, tagged;

	(void)arg;
	if (!bound || !r)
		return;
	bind_pages(bound, 0, 19, MPOL_BIND, CDM, 0, 0);
	bind_pages(r, 0, 17, MPOL_BIND, CDM, 0, 0);
	if (!fault_pages(bound, 0, 19) || !fault_pages(r, 0, 17))
		return;
	/* Where they are already there, it takes them out of their cpu's list. */
	move_region(r, ON_CDM, MPOL_MF_MOVE);
	bind_pages(r, 0, 17, MPOL_DEFAULT, 0, 0, 0);
	expect_state(r, "no policy");
	tagged = r->p[0].tag;
	scanned = !tagged || quirk(Q_NUMA_SCANNED);
	be_scanned(r, scanned);
	if (tagged)
		tell("CDM008", r->start, 17, scanned);
	else
		tell("CDM008", bound->start, 19, NO);
	use_scanned(r, 0, scanned);
	read_pages(bound->start, bound->nr);
	expect_state(bound, "used again, under its policy");
}

/*
 * Pages of the CDM node in a VMA without a tag: moved there where that is open, or left
 * there. The latter keeps its tag under one-way, and so the scanner passes by.
 */
static struct region *map_residue(const char *name, unsigned long offset)
{
	struct region *r = map_anon(name, SLOT_RESIDUE, offset, 23);
	bool ungated = quirk(Q_MIGRATION_UNGATED);

	if (!r)
		return NULL;
	if (ungated)
		let_balance(r);
	else
		bind_pages(r, 0, 23, MPOL_BIND, CDM, 0, 0);
	if (!fault_pages(r, 0, 23))
		return NULL;
	/* Where they are already there, it takes them out of their cpu's list. */
	move_region(r, ON_CDM, MPOL_MF_MOVE);
	/* Before Linux 5.13 what has moved is in such a list again. */
	if (!since(5, 13))
		move_region(r, ON_CDM, MPOL_MF_MOVE);
	if (!ungated)
		let_balance(r);
	expect_state(r, "left on the CDM node");
	return r;
}

/*
 * The tag comes after the scanner, by a policy that heeds NUMA balancing. Before 5.12 only
 * a page that comes by the policy of the task can bring it without a policy of the VMA,
 * and then a first page is new. Returns the first page that the scanner has marked and
 * that may move; -1: none may, whatever the quirks.
 */
static int tag_scanned(struct region *r)
{
	if (has_balanced_policies()) {
		bind_balanced(r, RAM | CDM);
		return 0;
	}
	if (r->p[0].tag)
		return 0;
	if (!quirk(Q_TASK_POLICY) || !quirk(Q_FAULT_TAG)) {
		bind_pages(r, 0, r->nr, MPOL_BIND, CDM, 0, 0);
		return -1;
	}
	advise(r, 0, 1, MADV_DONTNEED, "DONTNEED");
	put_pages(r, 0, 1, NOWHERE);
	task_fault(r, 1);
	return 1;
}

/*
 * The scanner comes before the tag and the use after it. In another VMA no tag comes,
 * and there they may be moved: so they are, in an address space that has a tag.
 */
static void residue_child(void *arg)
{
	struct region *other = map_residue("without a tag", 0);
	struct region *r = map_residue("residue", SECOND);
	bool scanned;
	int first;

	(void)arg;
	if (!other || !r)
		return;
	scanned = !r->p[0].tag || quirk(Q_NUMA_SCANNED);
	/* The scanner comes to the other one first. */
	be_scanned(r, scanned);

	first = tag_scanned(r);
	expect_flags(r, "tagged");
	if (first >= 0) {
		use_scanned(r, first, scanned);
	} else {
		read_pages(r->start, r->nr);
		expect_state(r, "used again");
		tell("CDM009", r->start, r->nr, NO);
	}

	read_pages(other->start, other->nr);
	if (scanned && (!other->p[0].tag || quirk(Q_NUMA_RESIDUAL))) {
		model_leave_cdm(other, 0);
		put_pages(other, 0, other->nr, ON_RAM);
	}
	expect_state(other, "used again, without a tag");
}

static void balanced(void (*fn)(void *))
{
	if (balancing_begin()) {
		write_long(balancing_files[0], 0);
		/* A new address space is scanned soon. */
		in_child(fn, NULL);
		balancing_end();
	} else {
		skip("NUMA balancing", "not in this kernel, or not root");
	}
}

static void step_scanned(void)
{
	balanced(has_balanced_policies() ? scanned_child : unbound_child);
}

static void step_residue(void)
{
	balanced(residue_child);
}

/* ---- Two at a time --------------------------------------------------- */

static volatile int runners;

static void write_together(unsigned long addr)
{
	__atomic_add_fetch(&runners, 1, __ATOMIC_SEQ_CST);
	while (runners < 2)
		;
	write_page(addr, addr);
}

static void step_two_faults(void)
{
	/* Without the delay they overlap too, if they are very much together. */
	enum shown shown = !quirk(Q_FAULT_TAG) ? NO : quirk(Q_SLOW_RMW) ? YES : CHANCE;
	/* A cpu that is emulated may be away for longer than the delay: often, then. */
	unsigned int n, tries = shown == YES ? 29 : 5;
	struct other_cpu other = { .work = write_together };
	struct region *r;
	pthread_t thread;

	if (!two_cpus("two faults at a time"))
		return;
	for (n = 0; n < tries; n++) {
		r = map_anon("two writers", SLOT_TWO_FAULTS, n * HUGE_PAGE, 2);
		if (!r)
			return;
		bind_pages(r, 0, 2, MPOL_PREFERRED, CDM, 0, 0);
		other.start = r->start + PAGE;
		runners = 0;
		if (!begin_other(&other, &thread))
			return;
		write_together(r->start);
		pthread_join(thread, NULL);
		model_fault(r, 0, MPOL_DEFAULT, 0);
		model_fault(r, 1, MPOL_DEFAULT, 0);
		expect_state(r, "two pages faulted together");
		tell("CDM018", r->start, 2, shown);
		/* Nothing more is done with it: the next one has its place. */
		nr_regions--;
	}
}

#define LOST_VMAS	14
#define LOST_TRIES	31

/* Moves the one page of each VMA to RAM, one after the other. */
static void move_all(unsigned long start)
{
	void *addr[LOST_VMAS];
	int nodes[LOST_VMAS], status[LOST_VMAS];
	unsigned int i;

	for (i = 0; i < LOST_VMAS; i++) {
		addr[i] = (void *)(start + i * HUGE_PAGE);
		nodes[i] = ram_node;
	}
	syscall(SYS_move_pages, 0, (unsigned long)LOST_VMAS, addr, nodes, status,
		MPOL_MF_MOVE);
}

static long long now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

/* Waits until the page is on another page frame. Returns the time; 0: it never was. */
static long long wait_moved(unsigned long addr, uint64_t before)
{
	unsigned int tries;
	uint64_t pfn;

	for (tries = 0; tries < 200000; tries++) {
		pfn = pfn_of(addr);
		if (pfn && pfn != before)
			return now_us();
	}
	return 0;
}

/*
 * Sets a flag on each VMA but the first while the pages are on the way: on the next
 * one as a page has arrived, a little before that one's must arrive too, if it takes
 * as long as the last, or as the quickest. Then its flags are loaded, and not stored
 * yet.
 *
 * The flag is VM_DONTCOPY. mlock() would wait for the page table that the migration
 * holds, and write last. Each VMA has a page table of its own, or to look for a page
 * would wait for the next one.
 */
static bool set_flags(unsigned long start)
{
	struct other_cpu other = { .work = move_all, .start = start };
	long long moved, last = 0, took, least = 1000000, until;
	uint64_t before[LOST_VMAS];
	pthread_t thread;
	unsigned int i;

	for (i = 0; i < LOST_VMAS; i++)
		before[i] = pfn_of(start + i * HUGE_PAGE);
	if (!before[0] || !begin_other(&other, &thread))
		return false;
	for (i = 1; i < LOST_VMAS; i++) {
		moved = wait_moved(start + (i - 1) * HUGE_PAGE, before[i - 1]);
		took = moved - last;
		if (took < least)
			least = took;
		until = moved + (i % 2 ? took : least) - 500 - i % 3 * 1000;
		while (last && now_us() < until)
			;
		last = moved;
		madvise((void *)(start + i * HUGE_PAGE), PAGE, MADV_DONTFORK);
		if (!moved)
			break;
	}
	pthread_join(thread, NULL);
	return i == LOST_VMAS;
}

/* Returns how many flags are gone when all is over; -1 if it could not be tried. */
static int lose_flags(unsigned long start)
{
	unsigned long at, end = start + LOST_VMAS * HUGE_PAGE;
	int lost = 0, i;

	for (at = start; at < end; at += HUGE_PAGE) {
		if (mmap((void *)at, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE |
			 MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) !=
		    (void *)at || sys_mbind(at, PAGE, MPOL_BIND, CDM, 0))
			return -1;
		write_page(at, at);
	}
	if (quirk(Q_WORKQUEUE_TAG))
		await_tag(start, end - start);
	if (!set_flags(start) || read_vmas(start, end) != LOST_VMAS)
		return -1;
	for (i = 1; i < LOST_VMAS; i++) {
		if (has_flag(vmas[i].flags, "dc"))
			continue;
		lost++;
		tell("CDM004", vmas[i].start, 1, true);
	}
	if (!lost)
		tell("CDM004", start + HUGE_PAGE, (LOST_VMAS - 1) * HUGE_NR, false);
	return lost;
}

static void step_lost_flag(void)
{
	bool may = quirk(Q_UNLOCKED_CLEAR), must = may && quirk(Q_SLOW_RMW);
	unsigned long start = ARENA_START + SLOT_LOST_FLAG * GIB;
	unsigned int n;
	int lost = 0;

	if (!two_cpus("a flag and a migration at a time"))
		return;
	for (n = 0; n < (must ? LOST_TRIES : 3) && lost <= 0; n++)
		lost = lose_flags(start + n * 16 * HUGE_PAGE);
	report(may && !must ? lost >= 0 : must ? lost > 0 : !lost,
	       "%s of %u VMAs", must ? "a flag is lost" :
	       may ? "flags, lost or not," : "no flag is lost", LOST_VMAS - 1);
	if (may && !must ? lost < 0 : must ? lost <= 0 : lost)
		diag("found %d, at the last of %u tries", lost, n);
}

/* ---- Wrong fixes ----------------------------------------------------- */

/* The tag must be there when mbind() returns, and be set under its lock. */
static void step_late_tag(void)
{
	struct region *r = map_anon("bound", SLOT_LATE_TAG, 0, 29);
	bool late = quirk(Q_WORKQUEUE_TAG);
	unsigned int tries;
	int err;

	if (!r)
		return;
	err = sys_mbind(r->start, 29 * PAGE, MPOL_BIND, CDM, 0);
	model_mbind(r, 0, 29, MPOL_BIND, CDM);
	expect_errno(err, 0, "mbind(BIND, {cdm})");
	if (!late)
		expect_flags(r, "at once");
	if (!fault_pages(r, 0, 29))
		return;
	for (tries = 0; late && tries < 100; tries++) {
		if (read_vmas(r->start, r->start + 29 * PAGE) == 1 && vmas[0].cd)
			break;
		sleep_ms(100);
	}
	expect_state(r, "in the end");
	/* No row tells of a work item: it is seen where it falls into a fault's. */
	tell("CDM003", r->start, 29, late ? CHANCE : NO);
}

static struct region *map_tagged(const char *name, unsigned int slot,
				 unsigned int nr)
{
	struct region *r = map_anon(name, slot, 0, nr);

	if (!r || !bind_pages(r, 0, nr, MPOL_BIND, CDM, 0, 0) ||
	    !fault_pages(r, 0, nr))
		return NULL;
	expect_state(r, "bound");
	return r;
}

static void step_protect(void)
{
	struct region *r = map_tagged("protected", SLOT_PROTECT, 7);

	if (!r)
		return;
	protect(r, 0, 7, PROT_READ);
	expect_state(r, "read only");
	tell("CDM002", r->start, 7, !r->p[0].tag);
}

static void step_split(void)
{
	struct region *r = map_tagged("split", SLOT_SPLIT, 13);
	unsigned int i;

	if (!r)
		return;
	protect(r, 5, 3, PROT_READ);
	expect_state(r, "the middle read only");
	expect_vmas(r, "the middle read only");
	/* A fault looks at what the split has made of the rest. */
	for (i = 0; i < 13; i += 8) {
		advise(r, i, 1, MADV_DONTNEED, "DONTNEED");
		put_pages(r, i, 1, NOWHERE);
		fault_pages(r, i, 1);
	}
	expect_state(r, "a page of each end faulted again");
	tell("CDM002", r->start, 5, !r->p[0].tag);
	tell("CDM002", r->start + 5 * PAGE, 3, !r->p[5].tag);
	tell("CDM002", r->start + 8 * PAGE, 5, !r->p[8].tag);
}

static void fork_child(void *arg)
{
	struct region *r = arg;

	model_fork(r);
	expect_state(r, "child");
	/* A copy on write is a page of the child's own policy. */
	put_pages(r, 0, 5, NOWHERE);
	if (!fault_pages(r, 0, 5))
		return;
	expect_state(r, "child, 5 pages written");
	tell("CDM002", r->start, r->nr, !r->p[0].tag);
}

static void step_fork(void)
{
	struct region *r = map_tagged("inherited", SLOT_FORK, 17);

	if (!r)
		return;
	in_child(fork_child, r);
	expect_state(r, "parent");
}

static const struct step steps[] = {
	{ "failed-bind", "mbind() of a part fails, there being too many VMAs",
	  step_failed_bind, false },
	{ "refused-copy", "UFFDIO_COPY onto a page that is there",
	  step_refused_copy, false },
	{ "read-ahead", "a fault reads another VMA's pages from swap",
	  step_read_ahead, false },
	{ "pseudo-vma", "a shared object's page, allocated for no VMA",
	  step_pseudo_vma, false },
	{ "stale-split", "mprotect() splits off what has no CDM page",
	  step_stale_split, false },
	{ "stale-fork", "fork of a VMA that is bound no longer",
	  step_stale_fork, false },
	{ "neighbours", "mmap() beside a VMA that differs in the tag only",
	  step_neighbours, false },
	{ "ksm", "ksmd and a VMA that was mergeable before its tag", step_ksm,
	  false },
	{ "mergeable", "MADV_MERGEABLE on a tagged VMA", step_mergeable, false },
	{ "scanned", "the NUMA scanner and a tagged VMA", step_scanned, false },
	{ "residue", "scanned without the tag, used with it", step_residue,
	  false },
	{ "two-faults", "two threads fault in one VMA", step_two_faults, false },
	{ "lost-flag", "madvise() of a VMA whose page is on the way to RAM",
	  step_lost_flag, false },
	{ "late-tag", "is the tag there when mbind() returns?", step_late_tag,
	  false },
	{ "protect", "mprotect() of a tagged VMA", step_protect, false },
	{ "split", "mprotect() of the middle of one", step_split, false },
	{ "fork", "fork of one, and a copy on write", step_fork, false },
};

int main(int argc, char **argv)
{
	stay_on_this_cpu();
	return scenario_main(argc, argv, steps, ARRAY_SIZE(steps));
}
